package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"raftmine/raftnode/registry"
	"raftmine/rpc/webservice"
)

// runOptions are the flags of "raftmine run".
type runOptions struct {
	servers, miners, threads int
	blocks                   uint64
	zeros                    int
	blockTime                time.Duration
	webService               string
	dataDir                  string
	kernel                   string
	minerFlags               []string
	respawn                  bool
	serverFlags              serverTuning
}

func newRunCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Mine on this machine: a web service, servers and miners, each a process of its own",
		Long: `Start the block web service, servers and miners as processes of their own, print their process ids, show progress,
and end after --blocks accepted blocks (0: when interrupted). Kill any process and watch the others go on.
Run again with the same --data-dir to continue where it stopped.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return usageError{err}
			}
			var err error
			if o.minerFlags, err = kernelFlags(o.kernel); err != nil {
				return err
			}
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			logLevel, _ := cmd.Flags().GetString("log-level")
			if _, err := newLogger(cmd, cmd.ErrOrStderr()); err != nil {
				return err
			}
			if !cmd.Flags().Changed("log-level") {
				logLevel = "info" // the children's logs go to files
			}
			return o.run(cmd.Context(), out, logLevel)
		},
	}
	cmd.Flags().IntVar(&o.servers, "servers", 3, "how many servers")
	cmd.Flags().IntVar(&o.miners, "miners", 2, "how many miners")
	cmd.Flags().IntVar(&o.threads, "threads", 1, "search threads of each miner")
	cmd.Flags().Uint64Var(&o.blocks, "blocks", 0, "end after this many accepted blocks; 0: when interrupted")
	cmd.Flags().IntVar(&o.zeros, "zeros", 6, "leading zero hex digits of the first block, of our own web service")
	cmd.Flags().DurationVar(&o.blockTime, "block-time", 3*time.Second, "pace of blocks, of our own web service; 0 keeps --zeros fixed")
	cmd.Flags().StringVar(&o.webService, "web-service", "", "URL of a block web service to use instead of our own")
	cmd.Flags().StringVar(&o.dataDir, "data-dir", "", "folder of all data (default: a new one here)")
	cmd.Flags().BoolVar(&o.respawn, "respawn", false, "start a process that died again after 2s")
	addKernelFlag(cmd, &o.kernel)
	o.serverFlags.add(cmd)
	return cmd
}

func (o *runOptions) validate() error {
	switch {
	case o.servers < 1 || o.servers > maxServers:
		return fmt.Errorf("--servers %d: want 1 to %d", o.servers, maxServers)
	case o.miners < 0 || o.miners > 256:
		return fmt.Errorf("--miners %d: want 0 to 256", o.miners)
	case o.threads < 1 || o.threads > 1024:
		return fmt.Errorf("--threads %d: want 1 to 1024", o.threads)
	case o.zeros < 1 || o.zeros > 64:
		return fmt.Errorf("--zeros %d: want 1 to 64 hex digits", o.zeros)
	case o.blockTime < 0:
		return fmt.Errorf("--block-time %s: want 0 (fixed difficulty) or more", o.blockTime)
	}
	if err := checkWebService(o.webService); err != nil {
		return err
	}
	return o.serverFlags.validate()
}

// checkWebService refuses a URL of which no client can be made. Empty is none.
func checkWebService(url string) error {
	if url == "" {
		return nil
	}
	client, err := webservice.NewClient(url, webservice.ClientConfig{})
	if err != nil {
		return fmt.Errorf("--web-service: %w", err)
	}
	return client.Close()
}

// maxServers bounds the servers of a local run: Raft's cost grows with each, and its sense ends long before this.
const maxServers = 15

// run does the whole job. Whatever way it ends, its processes end with it.
func (o *runOptions) run(ctx context.Context, out *printer, logLevel string) (err error) {
	dir, err := o.makeDataDir()
	if err != nil {
		return hinted(err, "choose a folder that can be written with --data-dir DIR")
	}
	c, err := newCluster(dir, out, logLevel)
	if errors.Is(err, errForeignFolder) {
		return err
	}
	if errors.Is(err, registry.ErrHeld) {
		return hinted(fmt.Errorf("another run uses %s: %w", dir, err), "end it first, or choose another folder with --data-dir DIR")
	}
	if err != nil {
		return hinted(err, "choose a folder that can be written with --data-dir DIR")
	}
	c.respawn = o.respawn
	defer func() { err = errors.Join(err, c.close()) }()

	accepted, err := o.mine(ctx, c)
	if err != nil && ctx.Err() == nil {
		return err
	}
	agreement, err := c.stopCluster()
	done := doneEvent{Event: "done", Blocks: accepted, DataDir: dir, agreement: agreement}
	out.print(done, "done: %d %s accepted; %s; data in %s", accepted, plural(accepted, "block"), agreement, dir)
	return errors.Join(err, out.failed())
}

// mine starts everything and follows it until the blocks are accepted or ctx ends. It returns how many were.
func (o *runOptions) mine(ctx context.Context, c *cluster) (accepted uint64, err error) {
	if err := c.checkServers(o.servers); err != nil {
		return 0, err
	}
	flags := o.serverFlags.args()
	if o.webService != "" {
		flags = append(flags, "--web-service", o.webService)
	} else if err := c.startWebService(ctx, o.zeros, o.blockTime); err != nil {
		// Servers find it in the local environment, also at another port when it was started again.
		return 0, err
	}
	if err := c.startServers(ctx, o.servers, flags); err != nil {
		return 0, err
	}
	sequence, err := c.settledBlocks(ctx)
	if err != nil {
		return 0, err
	}
	if err := c.startMiners(ctx, o.miners, o.threads, o.minerFlags...); err != nil {
		return 0, err
	}
	return c.follow(ctx, sequence, o.blocks)
}

// doneEvent is the last line of a run. Scripts rely on its names.
type doneEvent struct {
	Event   string `json:"event"`
	Blocks  uint64 `json:"blocks"`
	DataDir string `json:"data_dir"`
	agreement
}

// makeDataDir makes the folder of all data, a new one when none is named.
func (o *runOptions) makeDataDir() (string, error) {
	dir := o.dataDir
	if dir == "" {
		stamp := "raftmine-run-" + time.Now().Format("20060102-150405")
		dir = stamp
		for n := 2; ; n++ {
			err := os.Mkdir(dir, 0o700)
			if err == nil {
				break
			}
			if !errors.Is(err, os.ErrExist) {
				return "", err
			}
			dir = fmt.Sprintf("%s-%d", stamp, n)
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, nil
}

// endedEarly turns an interruption into an ordinary end.
func endedEarly(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func plural(n uint64, noun string) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}
