package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

var errUnknownAddress = errors.New("address not known")

// landing is how long Close waits for entries in flight and for the futures of Raft.
const landing = 2 * time.Second

// Node is one server of a cluster: an opened data directory, a Raft instance on it, and what this server knows of the
// others. Its methods may be called by any goroutine.
type Node struct {
	config    Config
	log       *slog.Logger
	id        uint64
	clusterID string
	requestID fsm.ID

	stores    *Stores
	journal   *journal
	replica   *replica
	raft      *raft.Raft                // set before Open returns
	started   atomic.Pointer[raft.Raft] // the same, for those whom Raft itself calls while it starts
	stream    *guardedStream
	transport *raftTransport
	book      *addressBook
	commits   committer
	entry     *registry.Published
	peers     peerSet
	watchers  watchers
	door      *watchDoor // of a server that joins; nil: there is none
	disk      watchdog
	diskGuard diskGuard
	gate      *voteGate      // nil: none is needed
	recovered *recoveryFacts // the last recovery that this server did; nil: none
	alone     atomic.Value   // string: why this server does not go on alone

	term         atomic.Uint64            // the term in which this server is in office; 0: it is not
	stopping     atomic.Bool              // a planned stop has begun
	passedOn     atomic.Pointer[[]string] // where servers that are up listen, as the last heartbeat said
	diskChanged  chan struct{}            // cap 1: the disk stalls, or no longer
	govern       chan struct{}            // cap 1: the leader has something to look at
	regroup      chan struct{}            // cap 1: the set of servers may have changed
	configTurn   turn                     // one change of Raft's configuration at a time
	transferTurn turn                     // one leadership transfer at a time
	joinTurn     turn                     // a few joining servers are dialled back at a time
	transferTry  transferPace             // used by the governing goroutine alone

	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	background calls
	running    sync.Mutex // held by Run
	closeOnce  sync.Once
	closeErr   error
}

// Open makes a server of a data directory: it bootstraps a cluster, or joins one, or goes on where the server on that
// directory stopped. The server takes part in Raft when Open returns, and does its other duties while Run runs. Callers
// must serve HandleHeartbeat, HandleJoin and HandleLeave to the other servers from then on.
func Open(ctx context.Context, config Config) (*Node, error) {
	config = config.withDefaults()
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("open server: %w", err)
	}
	n := &Node{
		config: config,
		log:    config.Logger,
		govern: make(chan struct{}, 1),

		diskChanged: make(chan struct{}, 1),
		regroup:     make(chan struct{}, 1),

		configTurn:   make(turn, 1),
		transferTurn: make(turn, 1),
		joinTurn:     make(turn, joinsAtOnce),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.replica = newReplica(n.onApplied)
	if err := n.open(ctx); err != nil {
		n.cancel()
		n.release()
		return nil, err
	}
	return n, nil
}

func (n *Node) open(ctx context.Context) error {
	identity := n.config.DataDir.Identity()
	fresh := identity.ServerID == 0 // then no Raft instance ever ran here
	founding := fresh && n.config.Bootstrap
	switch {
	case founding:
		identity.ClusterID, identity.ServerID = uuid.NewString(), 1
	case fresh:
		stop := n.vouch(identity.RequestID)
		reply, err := n.askToJoin(ctx, identity.RequestID)
		stop()
		if err != nil {
			return err
		}
		identity.ClusterID, identity.ServerID = reply.ClusterID, reply.ServerID
		n.newBook(identity)
		for _, server := range reply.Servers {
			n.book.hear(server.ServerID, server.Address)
		}
	}
	if n.book == nil {
		n.newBook(identity)
	}
	n.id, n.clusterID, n.requestID = identity.ServerID, identity.ClusterID, identity.RequestID
	n.log = n.log.With("server_id", n.id)
	n.peers.init()

	rejoin, err := n.settle(ctx, identity)
	if err != nil {
		return err
	}
	if err := n.openStores(fresh, rejoin); err != nil {
		return err
	}
	if n.journal, err = openJournal(journalConfig{
		dataDir:      n.config.DataDir.Path(),
		clusterID:    n.clusterID,
		segmentBytes: n.config.JournalSegment,
		logger:       n.log,
		open:         n.config.OpenJournalFile,
	}); err != nil {
		return err
	}
	if err := n.checkLog(); err != nil {
		return err
	}
	n.replica.belongs = n.belongs
	if !n.config.withoutJournal {
		n.replica.journal = n.journal
	}
	n.disk.limit, n.disk.alarm = n.config.StallLimit, n.diskAlarm
	n.guardDisk()
	n.disk.guard(n.stores)
	n.openTransport()
	if n.gate, err = n.closedGate(); err != nil {
		return err
	}
	raftConfig := n.raftConfig()
	if founding {
		self := raft.Server{ID: raftID(n.id), Address: raftAddress(n.id, n.config.Advertise)}
		err := raft.BootstrapCluster(raftConfig, n.stores.Log, n.stores.Stable, n.stores.Snapshots, n.transport,
			raft.Configuration{Servers: []raft.Server{self}})
		if err != nil {
			return fmt.Errorf("bootstrap cluster: %w", err)
		}
	}
	// From here on the directory belongs to this server: its log exists, and its id is on the disk before Raft starts.
	if n.config.Listener != nil {
		identity.Address = n.config.Listener.Addr().String()
	}
	identity.DataDir, identity.MachineID = n.config.DataDir.Path(), n.config.Host.MachineID
	if identity != n.config.DataDir.Identity() {
		if err := n.config.DataDir.SetIdentity(identity); err != nil {
			return fmt.Errorf("store identity: %w", err)
		}
	}
	if err := n.publish(); err != nil {
		return err
	}
	if err := n.book.refresh(); err != nil {
		n.log.Warn("local environment has damaged entries", "error", err)
	}
	n.openCommitter()
	return n.startRaft(raftConfig)
}

func (n *Node) newBook(identity Identity) {
	n.book = &addressBook{
		self:       identity.ServerID,
		advertise:  n.config.Advertise,
		clusterID:  identity.ClusterID,
		fresh:      3 * n.config.Heartbeat,
		env:        n.config.Environment,
		stale:      make(chan struct{}, 1),
		heard:      make(map[uint64]heard),
		configured: n.configuration,
		table: func(id uint64) (row fsm.Server, ok bool) {
			n.View(func(v fsm.View) { row, ok = v.Server(id) })
			return row, ok
		},
	}
}

func (n *Node) openTransport() {
	inner := n.config.Stream
	if inner == nil {
		inner = NewStreamLayer(n.config.Listener, n.config.Advertise)
	}
	n.stream = newGuardedStream(inner, n.clusterID, n.id)
	n.stream.refused = n.book.dialFailed
	n.stream.strange = func(from string) {
		n.log.Debug("raft connection meant for another server closed", "from", from)
	}
	n.stream.start()
	n.transport = newRaftTransport(raft.NetworkTransportConfig{
		ServerAddressProvider: n.book,
		Logger:                newRaftLogger(n.log),
		Stream:                n.stream,
		MaxPool:               raftPool,
		Timeout:               n.config.TransportTimeout,
	}, n.config.RaftLease/2, func() bool { return n.onlyFollower() != 0 })
	n.transport.intake = newIntake(func() (uint64, bool) {
		if instance := n.started.Load(); instance != nil {
			return instance.CurrentTerm(), true
		}
		return 0, false
	})
	n.transport.starting = func() { n.diskGuard.started.Store(true) }
}

func (n *Node) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raftID(n.id)
	c.HeartbeatTimeout = n.config.RaftHeartbeat
	c.ElectionTimeout = n.config.RaftElection
	c.LeaderLeaseTimeout = n.config.RaftLease
	c.CommitTimeout = max(c.CommitTimeout, n.config.RaftHeartbeat/6) // an idle leader's news of what is committed
	c.ShutdownOnRemove = false
	c.MaxAppendEntries = maxRaftEntries
	c.SnapshotInterval = n.config.SnapshotInterval
	c.SnapshotThreshold = n.config.SnapshotThreshold
	c.TrailingLogs = n.config.TrailingLogs
	c.NoLegacyTelemetry = true
	c.LogOutput = io.Discard
	c.Logger = newRaftLogger(n.log)
	return c
}

// startRaft also turns what the library panics over, a log with holes, into an error.
func (n *Node) startRaft(config *raft.Config) (err error) {
	defer func() {
		if n.diskGuard.early != nil {
			err = n.diskGuard.early // and no damage
		}
	}()
	defer recoverDamage(filepath.Join(n.config.DataDir.Path(), logFile), &err)
	var transport raft.Transport = n.transport
	if n.gate != nil {
		transport = n.gate
		config.HeartbeatTimeout, config.ElectionTimeout = gateTimeout, gateTimeout
	}
	instance, err := raft.NewRaft(config, n.replica, n.stores.Log, n.stores.Stable, n.stores.Snapshots, transport)
	if failure := n.replica.failure(); failure != nil {
		return failure // the library only says that no snapshot could be restored
	}
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	n.raft = instance
	n.started.Store(instance)
	n.transport.intake.start(n.transport.NetworkTransport.Consumer(), n.answered)
	return nil
}

func (n *Node) openCommitter() {
	n.commits = committer{
		maxCommands: n.config.BatchCommands,
		maxBytes:    n.config.BatchBytes,
		maxInFlight: n.config.InFlight,
		encode: func(commands []fsm.Command) ([]byte, error) {
			return fsm.EncodeEntry(fsm.Entry{
				LeaderID:  n.id,
				UnixMilli: uint64(max(0, n.config.Now().UnixMilli())),
				Version:   n.config.Version,
				Commands:  commands,
			})
		},
		apply: func(term uint64, data []byte) (raft.ApplyFuture, error) {
			if !n.leadsIn(term) {
				return nil, n.notLeader()
			}
			return n.raft.Apply(data, n.config.TransportTimeout), nil
		},
		refused: n.notLeader,
	}
	n.commits.start()
}

func (n *Node) publish() error {
	if n.config.Environment == nil {
		return nil
	}
	entry, err := n.config.Environment.Publish(registry.Entry{
		Role:             registry.RoleServer,
		ServerID:         n.id,
		ClusterID:        n.clusterID,
		Address:          n.config.Advertise,
		DataDir:          n.config.DataDir.Path(),
		PID:              os.Getpid(),
		StartedUnixMilli: uint64(max(0, n.config.Now().UnixMilli())),
	})
	if err != nil {
		return fmt.Errorf("publish address: %w", err)
	}
	n.entry = entry
	return nil
}

// Close ends the server without a word to the others: Stop before it for a planned stop. It waits for Run, ends Raft,
// removes the entry of the local environment and frees the data directory and the listener.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		n.cancel()
		n.running.Lock() // Run is over
		defer n.running.Unlock()
		n.commits.stop(landing)
		n.background.end(landing)
		n.closeErr = errors.Join(n.release(), n.closeOwned())
	})
	return n.closeErr
}

// release ends what Open made itself.
func (n *Node) release() error {
	var errs []error
	if n.door != nil {
		errs = append(errs, n.door.Close())
	}
	if n.entry != nil {
		errs = append(errs, n.entry.Remove())
	}
	if n.commits.quit != nil {
		n.commits.stop(0) // once more is harmless
	}
	var ended raft.Future
	if n.raft != nil {
		ended = n.raft.Shutdown()
	}
	if n.transport != nil {
		n.transport.CloseStreams()
		errs = append(errs, n.transport.Close()) // breaks the calls that Raft waits for
	}
	errs = append(errs, n.unlessStalled(func() error {
		var errs []error
		if ended != nil {
			errs = append(errs, ended.Error())
		}
		if n.gate != nil {
			n.gate.close()
		}
		if n.transport != nil {
			n.transport.intake.close()
		}
		if n.journal != nil { // nothing is applied any more
			errs = append(errs, n.journal.close())
		}
		if n.stores != nil {
			errs = append(errs, n.stores.Close())
		}
		return errors.Join(errs...)
	}))
	return errors.Join(errs...)
}

func (n *Node) closeOwned() error {
	var errs []error
	if n.config.Listener != nil {
		errs = append(errs, n.config.Listener.Close())
	}
	if n.disk.isStalled() {
		return errors.Join(errs...) // a write may land yet: only the end of the process frees the lock
	}
	return errors.Join(append(errs, n.config.DataDir.Close())...)
}

// ID returns this server's id.
func (n *Node) ID() uint64 { return n.id }

// ClusterID returns the cluster's id.
func (n *Node) ClusterID() string { return n.clusterID }

// Address returns where the other servers reach this one.
func (n *Node) Address() string { return n.config.Advertise }

// DataDir returns the absolute path of the data directory.
func (n *Node) DataDir() string { return n.config.DataDir.Path() }

// Listener returns the listener that the node was given or made; its gRPC part is for the caller to serve.
func (n *Node) Listener() *Listener { return n.config.Listener }

// View calls read with the applied state, which does not change until read returns.
func (n *Node) View(read func(fsm.View)) { n.replica.view(read) }

// Failed is closed when the replica met an entry that it cannot apply; Run then returns why.
func (n *Node) Failed() <-chan struct{} { return n.replica.failed }

// Propose commits commands in order, perhaps in one entry with those of other callers, and returns an outcome for each
// when they are on the disks of a majority and applied here. Errors: ErrNotLeader, nothing was proposed;
// ErrOutcomeUnknown, they may be committed yet, also when ctx ended first; another error: nothing was proposed.
func (n *Node) Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Outcome, error) {
	if len(commands) == 0 {
		return nil, nil
	}
	if err := n.alive(); err != nil {
		return nil, err
	}
	term := n.term.Load()
	if term == 0 {
		return nil, n.notLeader()
	}
	return n.commits.propose(ctx, term, commands)
}

// VerifyLeader confirms with a majority that this server still leads, in the term that it took office in. One that lost
// leadership and won it again leads in another: what it began before is not its to finish.
func (n *Node) VerifyLeader(ctx context.Context) error {
	if err := n.alive(); err != nil {
		return err
	}
	term := n.term.Load()
	if term == 0 || !n.leadsIn(term) {
		return n.notLeader()
	}
	verify := func() error {
		// The library counts the next answer of a follower, also to a question asked before. In a process that was paused
		// those may be old; the second round asks anew.
		if err := n.raft.VerifyLeader().Error(); err != nil {
			return err
		}
		return n.raft.VerifyLeader().Error()
	}
	// The library forgets a question that a follower had when it was removed from the voters, and answers it with the end of
	// the leadership alone. So it is asked again.
	err := context.DeadlineExceeded
	for err == context.DeadlineExceeded && ctx.Err() == nil && n.leadsIn(term) {
		asked, cancel := context.WithTimeout(ctx, n.config.RaftElection)
		err = n.await(asked, verify)
		cancel()
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil || !n.leadsIn(term) || n.term.Load() != term:
		return n.notLeader()
	}
	return nil
}

// Barrier waits until everything committed before it is applied here. Leader only.
func (n *Node) Barrier(ctx context.Context) error {
	if err := n.alive(); err != nil {
		return err
	}
	err := n.await(ctx, func() error { return n.raft.Barrier(n.config.TransportTimeout).Error() })
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) {
		return n.notLeader()
	}
	return err
}

// await calls a function that cannot be interrupted, and does not wait for it longer than ctx.
func (n *Node) await(ctx context.Context, call func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !n.background.begin() {
		return ErrClosed
	}
	done := make(chan error, 1)
	go func() {
		defer n.background.active.Done()
		done <- call()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// alive refuses everything once the node is closed or its replica stopped.
func (n *Node) alive() error {
	if n.ctx.Err() != nil {
		return ErrClosed
	}
	return n.replica.failure()
}

// notLeader says who leads, if that is known and not this server.
func (n *Node) notLeader() error {
	_, id := n.raft.LeaderWithID()
	leader := serverID(id)
	if leader == 0 || leader == n.id {
		return &NotLeaderError{}
	}
	return &NotLeaderError{LeaderID: leader, Address: n.book.address(leader)}
}

// configuration returns Raft's latest configuration.
func (n *Node) configuration() []raft.Server {
	instance := n.started.Load()
	if instance == nil {
		return nil
	}
	return instance.GetConfiguration().Configuration().Servers // never fails or blocks
}

// Status returns this server's own view of the cluster.
func (n *Node) Status() Status {
	_, leader := n.raft.LeaderWithID()
	status := Status{
		ServerID:  n.id,
		Address:   n.config.Advertise,
		Term:      n.raft.CurrentTerm(),
		LeaderID:  serverID(leader),
		LastIndex: n.raft.LastIndex(),
		Leading:   n.term.Load() != 0,

		HistoryMissing: n.journal.missing(),
	}
	if status.LeaderID != 0 {
		status.LeaderAddress = n.book.address(status.LeaderID)
	}
	n.View(func(v fsm.View) { status.ComputedLeaderID = v.LowestUp() })
	for _, server := range n.configuration() {
		if server.Suffrage == raft.Voter {
			status.Voters = append(status.Voters, serverID(server.ID))
		}
	}
	slices.Sort(status.Voters)
	return status
}

// onApplied runs on Raft's goroutine for each entry that caused events.
func (n *Node) onApplied(index uint64, events []fsm.Event) {
	if n.config.Observer != nil {
		n.config.Observer.Applied(index, events)
	}
	for _, event := range events {
		if _, ok := event.(fsm.ServerChanged); ok {
			poke(n.regroup)
			poke(n.govern)
			return
		}
	}
}

// turn is a mutex that is not waited for longer than a context. Its capacity is how many hold it at a time.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) pass() { <-t }

// poke wakes the one who waits on a channel of capacity 1.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// calls counts calls into Raft that may outlive those who made them.
type calls struct {
	mu     sync.Mutex
	ended  bool
	active sync.WaitGroup
}

func (c *calls) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.active.Add(1)
	return true
}

// end lets no call begin any more and waits for those that did; only a disk that stalls makes that long.
func (c *calls) end(patience time.Duration) {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	done := make(chan struct{})
	go func() {
		c.active.Wait()
		close(done)
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}
