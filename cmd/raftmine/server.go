package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"raftmine/fsm"
	"raftmine/fsm/pow"
	"raftmine/raftnode"
	"raftmine/raftnode/coordinator"
)

// serverTuning are the flags that a server shares with "raftmine run".
type serverTuning struct {
	heartbeat, grace      time.Duration
	nonceFirst, nonceLast uint64
	chunk                 uint64
}

func (t *serverTuning) add(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&t.heartbeat, "heartbeat", 5*time.Second, "heartbeat interval")
	cmd.Flags().DurationVar(&t.grace, "grace", raftnode.DefaultGrace, "how long a server that is down stays a voter")
	cmd.Flags().Uint64Var(&t.nonceFirst, "nonce-first", 1, "first nonce of a job")
	cmd.Flags().Uint64Var(&t.nonceLast, "nonce-last", 2_000_000_000, "last nonce of a job")
	cmd.Flags().Uint64Var(&t.chunk, "chunk", 100_000, "nonces of a chunk")
}

func (t *serverTuning) validate() error {
	if t.heartbeat < 100*time.Millisecond || t.heartbeat > time.Hour {
		return fmt.Errorf("--heartbeat %s: want 100ms to 1h", t.heartbeat)
	}
	if t.grace < 100*time.Millisecond || t.grace > 24*time.Hour {
		return fmt.Errorf("--grace %s: want 100ms to 24h", t.grace)
	}
	if err := t.nonces().Validate(); err != nil {
		return fmt.Errorf("--nonce-first, --nonce-last: %w", err)
	}
	if t.chunk == 0 || t.chunk > fsm.MaxChunkSize {
		return fmt.Errorf("--chunk %d: want 1 to %d nonces", t.chunk, uint64(fsm.MaxChunkSize))
	}
	if chunks := (t.nonces().Len()-1)/t.chunk + 1; chunks > fsm.MaxChunks {
		return fmt.Errorf("nonces %s make %d chunks of %d, want at most %d: raise --chunk", t.nonces(), chunks, t.chunk, uint64(fsm.MaxChunks))
	}
	return nil
}

func (t *serverTuning) nonces() pow.Range { return pow.Range{First: t.nonceFirst, Last: t.nonceLast} }

// args gives the flags to a child.
func (t *serverTuning) args() []string {
	return []string{"--heartbeat", t.heartbeat.String(), "--grace", t.grace.String(), "--nonce-first", strconv.FormatUint(t.nonceFirst, 10),
		"--nonce-last", strconv.FormatUint(t.nonceLast, 10), "--chunk", strconv.FormatUint(t.chunk, 10)}
}

// mostRaftTimeout keeps the lease below the limit of a stalled disk.
const mostRaftTimeout = 2 * time.Second

// serverOptions are the flags of "raftmine server".
type serverOptions struct {
	serverTuning
	listen, advertise, join string
	webService, dataDir     string
	joinTimeout             time.Duration
	raftTimeout             time.Duration
	grantTime               time.Duration
	mine                    int
	kernel                  string
	minerFlags              []string
	insecure                bool
	keepLog                 bool
	withStdin               bool
	again                   bool // this process served before
}

func newServerCommand() *cobra.Command {
	var o serverOptions
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run one server of the Raft group",
		Long: `Run one server. The first one on this host makes a new cluster and is server 1; the next one finds it in the local
environment and joins as server 2. A server that comes back on its data directory keeps its id. The server that is up
and has the lowest id leads.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			var err error
			if o.minerFlags, err = kernelFlags(o.kernel); err != nil {
				return err
			}
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			logger, err := newLogger(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			env, err := openEnvironment(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := withParent(cmd.Context(), o.withStdin)
			defer cancel()
			listen := o.listen
			if !cmd.Flags().Changed("listen") {
				listen = "" // where this server listened last, if that is free
			}
			logLevel, _ := cmd.Flags().GetString("log-level")
			err = o.serve(ctx, listen, env, out, logger, logLevel)
			for errors.Is(err, raftnode.ErrRecover) && ctx.Err() == nil {
				// On the same directory: without a flag, the first free one may be that of the server that died.
				out.print(recoveringView{"recovering", os.Getpid()}, "%v", raftnode.ErrRecover)
				o.again, listen = true, "" // where it listened before
				err = o.serve(ctx, listen, env, out, logger, logLevel)
			}
			return err
		},
	}
	cmd.AddCommand(newMembershipCommands()...)
	o.serverTuning.add(cmd)
	cmd.Flags().StringVar(&o.listen, "listen", "127.0.0.1:0", "address for Raft and gRPC alike; without this flag a server takes its last one again")
	cmd.Flags().StringVar(&o.advertise, "advertise", "", "address that others dial (default: the listen address)")
	cmd.Flags().StringVar(&o.join, "join", "", "addresses of servers to join, comma separated (default: those of this host)")
	cmd.Flags().DurationVar(&o.joinTimeout, "join-timeout", raftnode.DefaultJoinTimeout, "how long to ask for an id before giving up")
	cmd.Flags().DurationVar(&o.raftTimeout, "raft-timeout", raftnode.DefaultRaftElection,
		"how long Raft waits for a leader before an election; raise it above three round trips between far servers")
	cmd.Flags().StringVar(&o.webService, "web-service", "", "URL of the block web service (default: the one in the local environment)")
	cmd.Flags().StringVar(&o.dataDir, "data-dir", "", "folder of this server (default: the first free one in the local environment)")
	cmd.Flags().IntVar(&o.mine, "mine", 0, "search threads of a companion miner that works while this server does not lead")
	addKernelFlag(cmd, &o.kernel)
	cmd.Flags().BoolVar(&o.insecure, "insecure", false, "allow an address that other machines can reach")
	cmd.Flags().BoolVar(&o.keepLog, "keep-log", false, "never drop log entries that snapshots cover, so that the whole log can be replayed")
	_ = cmd.Flags().MarkHidden("keep-log")
	// With next to nothing a grant, simulated miners can search what they answer for, and benchmarks count commits.
	cmd.Flags().DurationVar(&o.grantTime, "grant-time", coordinator.DefaultGrantTime, "how much work one grant is")
	_ = cmd.Flags().MarkHidden("grant-time")
	addStdinFlag(cmd, &o.withStdin)
	cmd.AddCommand(newServerRecoverCommand())
	return cmd
}

func (o *serverOptions) validate() error {
	if err := errors.Join(o.serverTuning.validate(), checkWebService(o.webService)); err != nil {
		return usageError{err}
	}
	if err := checkListen(o.listen, o.insecure); err != nil {
		return err
	}
	if strings.Contains(o.advertise, ",") {
		return usageError{fmt.Errorf("--advertise %q: want one HOST:PORT", o.advertise)}
	}
	if err := checkAddresses("advertise", o.advertise); err != nil {
		return err
	}
	told, flag := o.listen, "listen"
	if o.advertise != "" {
		told, flag = o.advertise, "advertise"
	}
	if err := checkDialable(flag, told); err != nil {
		return err
	}
	if !o.insecure {
		if err := checkLoopback(flag, told); err != nil {
			return err
		}
	}
	if o.mine < 0 || o.mine > 1024 {
		return usageError{fmt.Errorf("--mine %d: want 0 to 1024 threads", o.mine)}
	}
	if o.grantTime <= 0 || o.grantTime > coordinator.DefaultAnswerTimeout/2 {
		return usageError{fmt.Errorf("--grant-time %s: want more than 0, and at most %s", o.grantTime, coordinator.DefaultAnswerTimeout/2)}
	}
	if o.joinTimeout <= 0 {
		return usageError{fmt.Errorf("--join-timeout %s: want more than 0", o.joinTimeout)}
	}
	if o.raftTimeout < raftnode.DefaultRaftElection || o.raftTimeout > mostRaftTimeout {
		return usageError{fmt.Errorf("--raft-timeout %s: want %s to %s", o.raftTimeout, raftnode.DefaultRaftElection, mostRaftTimeout)}
	}
	return checkAddresses("join", o.join)
}
