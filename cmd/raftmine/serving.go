package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"raftmine/fsm"
	"raftmine/raftnode"
	"raftmine/raftnode/coordinator"
	"raftmine/raftnode/registry"
	"raftmine/rpc"
	"raftmine/rpc/webservice"
)

const (
	// roleEach is how often a server looks whether the leader changed, for people and for its companion miner.
	roleEach = 200 * time.Millisecond
	// leaderless is how long a server is without a leader before it says so.
	leaderless = 3 * time.Second
	// serverGCPercent trades a little time for memory: a server's heap is small, its garbage is messages, and what it
	// needs for each connected miner should not be doubled by garbage.
	serverGCPercent = 30
	// goodbye is how long open calls may take to end when a server stops.
	goodbye = time.Second
)

// blockSource is a coordinator's source that holds connections.
type blockSource interface {
	coordinator.BlockSource
	io.Closer
}

// openSource returns the web service that the command line names, else the one that the environment names at each call.
func (o *serverOptions) openSource(env *registry.Environment) (blockSource, error) {
	if o.webService == "" {
		return &localSource{env: env}, nil
	}
	return webservice.NewClient(o.webService, webservice.ClientConfig{})
}

// serve runs one server until ctx ends or it fails.
func (o *serverOptions) serve(ctx context.Context, listen string, env *registry.Environment, out *printer, logger *slog.Logger, logLevel string) (err error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(serverGCPercent)
	}
	raisePriority()
	source, err := o.openSource(env)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	var trailing uint64 // zero: the default
	if o.keepLog {
		trailing = math.MaxUint32
	}
	peers := rpc.NewPeerClient()
	defer func() { err = errors.Join(err, peers.Close()) }()
	hub := rpc.NewHub()
	config := raftnode.Config{Advertise: o.advertise, Join: splitList(o.join), Environment: env, Peers: peers, JoinTimeout: o.joinTimeout,
		Heartbeat: o.heartbeat, Grace: o.grace, Version: version, Logger: logger, Observer: hub, TrailingLogs: trailing, SurviveAlone: true,
		RaftHeartbeat: o.raftTimeout, RaftElection: o.raftTimeout, RaftLease: o.raftTimeout * raftnode.DefaultRaftLease / raftnode.DefaultRaftElection}
	tuneNode(&config)
	node, err := raftnode.Start(ctx, raftnode.StartConfig{Config: config, DataDirPath: o.dataDir, Listen: listen})
	if err != nil {
		return endedEarly(ctx, o.hintForStart(err))
	}
	defer func() {
		switch closeErr := node.Close(); {
		case err == nil:
			err = closeErr
		case closeErr != nil: // of the same cause: a disk that is full
			logger.Debug("closed after a failure", "error", closeErr)
		}
	}()
	o.dataDir = node.DataDir() // in which it goes on after ErrRecover
	server, err := rpc.NewServer(rpc.Config{Node: node, Hub: hub, Logger: logger, Version: version})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(node.Listener().GRPC()) }()

	running, stopRunning := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() {
		ran <- node.Run(running, func(term context.Context, number uint64) error {
			return o.lead(term, number, node, server, hub, source, logger)
		})
	}()
	if !o.again { // it is the same process, on the same address and directory
		out.processStarted(processStarted{Role: "server", ID: node.ID(), PID: os.Getpid(), Address: node.Address(), DataDir: node.DataDir()})
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		o.tellRole(running, node, env, out, logger, logLevel)
	}()

	select {
	case <-ctx.Done():
		if !errors.Is(context.Cause(ctx), errParentEnded) { // then the whole cluster ends, and nobody takes over
			if err := node.Stop(context.Background()); err != nil {
				logger.Warn("stopped without telling the others", "error", err)
			}
		}
	case err = <-served:
		served <- err
	case err = <-ran: // the replica stopped
		ran <- err
	}
	stopRunning()
	if runErr := <-ran; err == nil {
		err = runErr
	}
	stopping, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	server.Stop(stopping)
	if serveErr := <-served; err == nil {
		err = serveErr
	}
	<-told
	return err
}

// lead is one term of leadership: its coordinator serves miners until ctx ends.
func (o *serverOptions) lead(ctx context.Context, term uint64, node *raftnode.Node, server *rpc.Server, hub *rpc.Hub,
	source coordinator.BlockSource, logger *slog.Logger) error {
	consensus, blocks := termEdges(proposer{node}, source)
	c, err := coordinator.New(coordinator.Config{
		Proposer: consensus, Source: blocks, Observer: hub.MinerObserver(node.ID()), Logger: logger,
		ServerID: node.ID(), ClusterID: node.ClusterID(), Address: node.Address(), Term: term,
		Heartbeat: o.heartbeat, Nonces: o.nonces(), ChunkSize: o.chunk, GrantTime: o.grantTime,
	})
	if err != nil {
		return err
	}
	server.Lead(rpc.LeaderOf(c))
	defer server.Unlead()
	return c.Run(ctx)
}

// tuneNode lets tests change what no flag does.
var tuneNode = func(*raftnode.Config) {}

// termEdges wraps what a coordinator reaches the world by. Tests replace it, to end this process at a chosen step.
var termEdges = func(p coordinator.Proposer, s coordinator.BlockSource) (coordinator.Proposer, coordinator.BlockSource) {
	return p, s
}

// proposer gives a coordinator its consensus: a node, with the coordinator's own errors.
type proposer struct{ node *raftnode.Node }

func (p proposer) Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Outcome, error) {
	outcomes, err := p.node.Propose(ctx, commands...)
	return outcomes, coordinatorError(err)
}

func (p proposer) View(read func(fsm.View)) { p.node.View(read) }

func (p proposer) VerifyLeader(ctx context.Context) error {
	return coordinatorError(p.node.VerifyLeader(ctx))
}

func coordinatorError(err error) error {
	switch {
	case errors.Is(err, raftnode.ErrNotLeader):
		return fmt.Errorf("%w: %v", coordinator.ErrNotLeader, err) // what a miner sees is the coordinator's error alone
	case errors.Is(err, raftnode.ErrOutcomeUnknown):
		return fmt.Errorf("%w: %v", coordinator.ErrOutcomeUnknown, err)
	}
	return err
}

// tellRole tells people who leads, and the companion miner whether to work, until ctx ends.
func (o *serverOptions) tellRole(ctx context.Context, node *raftnode.Node, env *registry.Environment, out *printer,
	logger *slog.Logger, logLevel string) {
	var leading chan bool
	if o.mine > 0 {
		leading = make(chan bool)
		c := companion{name: fmt.Sprintf("server-%d", node.ID()), threads: o.mine, flags: o.minerFlags, environment: env.Dir(),
			log: companionLog(node.DataDir()), logLevel: logLevel, out: out, logger: logger, servers: func() string { return o.companionServers(node, env) }}
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.run(ctx, leading)
		}()
		defer func() { <-done }()
	}
	var known uint64        // the leader that was told last
	toldMinerWaits := false // once is enough: leadership may come and go
	waiting := newWaitingPace(time.Now())
	ticker := time.NewTicker(roleEach)
	defer ticker.Stop()
	for {
		status := node.Status()
		switch {
		case status.LeaderID == 0:
			if alone := node.Alone(); waiting.due(time.Now(), alone) {
				out.print(waitingView{"waiting", status.Voters, alone}, "no leader: %s", waitingFor(status.Voters, alone))
				known = 0
			}
		case status.LeaderID != known:
			known = status.LeaderID
			out.print(leaderView{"leader", status.LeaderID, status.Term}, "leader is server %d (term %d)", status.LeaderID, status.Term)
			if leading != nil {
				self := status.LeaderID == node.ID()
				if self && !toldMinerWaits {
					out.print(minerWaitsView{"miner_waits"}, "this server leads, so its miner waits until another one leads")
					toldMinerWaits = true
				}
				select {
				case leading <- self:
				case <-ctx.Done():
				}
			}
			fallthrough
		default:
			waiting = newWaitingPace(time.Now())
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// waitingPace says when a server without a leader tells why it waits: after leaderless, and when it knows another reason, which
// after a start is known much later.
type waitingPace struct {
	since time.Time
	said  bool
	alone string // with that
}

func newWaitingPace(now time.Time) waitingPace { return waitingPace{since: now} }

func (w *waitingPace) due(now time.Time, alone string) bool {
	if now.Sub(w.since) <= leaderless || w.said && (alone == "" || alone == w.alone) {
		return false
	}
	w.said, w.alone = true, alone
	return true
}

// minerWaitsView says that the companion miner has no work, because its server leads.
type minerWaitsView struct {
	Event string `json:"event"`
}

type waitingView struct {
	Event  string   `json:"event"`
	Voters []uint64 `json:"voters"`
	Alone  string   `json:"not_alone,omitempty"` // why this server does not go on alone
}

// recoveringView says that the server begins again, as the only voter if the others' logs allow it.
type recoveringView struct {
	Event string `json:"event"`
	PID   int    `json:"pid"`
}

// waitingFor says what a server without a leader waits for, why it does not go on alone, and what a person can do.
func waitingFor(voters []uint64, alone string) string {
	switch {
	case len(voters) == 0 && alone == "":
		return "waiting for one that sends this server its log"
	case len(voters) == 0: // "server recover" would have nothing to go on with
		return fmt.Sprintf("waiting for one that sends this server its log (%s)", alone)
	}
	text := fmt.Sprintf("waiting until a majority of the servers %s is up", strings.Trim(fmt.Sprint(voters), "[]"))
	if alone != "" {
		text += fmt.Sprintf(" (this server does not go on alone: %s; to make it, stop it and see \"raftmine server recover --help\")", alone)
	}
	return text
}

// companionServers says where the companion looks for the leader: nowhere but in the local environment when that is
// enough, else at every server of the table.
func (o *serverOptions) companionServers(node *raftnode.Node, env *registry.Environment) string {
	if o.join == "" {
		return ""
	}
	var addresses []string
	node.View(func(v fsm.View) {
		for _, server := range v.Servers() {
			if server.Member {
				addresses = append(addresses, server.Address)
			}
		}
	})
	return strings.Join(addresses, ",")
}

// hintForStart says what to do when a server cannot start.
func (o *serverOptions) hintForStart(err error) error {
	switch {
	case errors.Is(err, raftnode.ErrNoClusterToJoin):
		return err // it says so itself
	case errors.Is(err, raftnode.ErrDataDirInUse):
		return hinted(err, "stop the other server, or choose another folder with --data-dir DIR")
	case errors.Is(err, raftnode.ErrForeignDataDir):
		return hinted(err, "choose an empty folder with --data-dir DIR")
	case errors.Is(err, raftnode.ErrNotThere):
		return hinted(err, "name an address that the other servers reach with --advertise HOST:PORT")
	case errors.Is(err, raftnode.ErrNoAnswer) && errors.Is(err, syscall.ECONNREFUSED) && o.join != "":
		return hinted(err, "check the addresses of --join, and that a server runs there")
	case errors.Is(err, syscall.EADDRINUSE):
		return hinted(err, "choose another port with --listen, or 127.0.0.1:0 for a free one")
	case errors.Is(err, syscall.ENOSPC):
		return hinted(err, "make room on that disk, or choose another folder with --data-dir DIR")
	case errors.Is(err, raftnode.ErrUnusableDataDir) && !o.hasServer(), errors.Is(err, syscall.EROFS):
		return hinted(err, "choose a folder that this user may write with --data-dir DIR")
	}
	return hintForPermission(err)
}

// hasServer reports whether the data directory is a server's already: in another one it would be another server.
func (o *serverOptions) hasServer() bool {
	has, err := raftnode.HasServer(o.dataDir)
	return has && err == nil
}

// hintForPermission says what to do about a file or folder that this user may not use.
func hintForPermission(err error) error {
	var file *fs.PathError
	if !errors.Is(err, fs.ErrPermission) || !errors.As(err, &file) {
		return err
	}
	path := file.Path
	if _, err := os.Lstat(path); err != nil { // it was to be made
		path = filepath.Dir(path)
	}
	return hinted(err, fmt.Sprintf("let this user (uid %d) read and write %s: chmod u+rwX", os.Geteuid(), path))
}
