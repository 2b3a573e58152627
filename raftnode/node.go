package raftnode

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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
	refused   refusal        // of the recovery with which Open began

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
			n.background.settle(landing) // Raft has answered all
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
	for {
		// The library forgets a question that a follower had when it was removed from the voters, and answers it with the end of
		// the leadership alone. So it is asked again.
		err := n.askMajority(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return err
		case !n.leadsIn(term) || n.term.Load() != term:
			return n.notLeader()
		case err == nil:
			return nil
		case !errors.Is(err, context.DeadlineExceeded):
			return n.notLeader()
		}
	}
}

// askMajority asks whether this server leads, and waits one election timeout at most.
func (n *Node) askMajority(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.config.RaftElection)
	defer cancel()
	return n.await(ctx, func() error {
		// The library counts the next answer of a follower, also to a question asked before. In a process that was paused
		// those may be old; the second round asks anew.
		if err := n.raft.VerifyLeader().Error(); err != nil {
			return err
		}
		return n.raft.VerifyLeader().Error()
	})
}

// barrier waits until everything committed before it is applied here. Leader only.
func (n *Node) barrier(ctx context.Context) error {
	if err := n.alive(); err != nil {
		return err
	}
	err := n.await(ctx, func() error {
		n.background.barriers.Add(1)
		defer n.background.barriers.Add(-1)
		if err := ctx.Err(); err != nil { // and perhaps the end of this server
			return err
		}
		return n.raft.Barrier(n.config.TransportTimeout).Error()
	})
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
	defer n.background.awaited.Done()
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

// leader returns the id of the server that leads, as far as this one knows; 0: it knows none.
func (n *Node) leader() uint64 {
	if n.gated() && time.Since(n.raft.LastContact()) > 2*n.config.RaftElection { // Raft believes in it for gateTimeout
		return 0
	}
	_, leader := n.raft.LeaderWithID()
	return serverID(leader)
}

// notLeader says who leads, if that is known and not this server.
func (n *Node) notLeader() error {
	leader := n.leader()
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
	status := Status{
		ServerID:  n.id,
		Address:   n.config.Advertise,
		Term:      n.raft.CurrentTerm(),
		LeaderID:  n.leader(),
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
	for _, id := range status.Voters {
		status.VoterAddresses = append(status.VoterAddresses, n.book.address(id))
	}
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

// calls counts calls into Raft that may outlive those who made them. Raft answers some of those that nobody waits for any
// more with its own end alone.
type calls struct {
	mu      sync.Mutex
	ended   bool
	awaited sync.WaitGroup // those who wait for an answer
	active  sync.WaitGroup // the calls themselves

	barriers atomic.Int32 // active ones that are barriers
}

func (c *calls) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.awaited.Add(1)
	c.active.Add(1)
	return true
}

// taking is how long Raft may need to take up a barrier that nobody waits for any more. Tuning.
const taking = 50 * time.Millisecond

// end lets no call begin any more and waits for those that somebody waits for; only a disk that stalls makes that long.
func (c *calls) end(patience time.Duration) {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	waitAtMost(&c.awaited, patience)
	if c.barriers.Load() > 0 { // Raft never answers one that it has not taken up when it is shut down
		waitAtMost(&c.active, taking)
	}
}

// settle waits for all calls, once Raft has ended.
func (c *calls) settle(patience time.Duration) { waitAtMost(&c.active, patience) }

func waitAtMost(work *sync.WaitGroup, patience time.Duration) {
	done := make(chan struct{})
	go func() {
		work.Wait()
		close(done)
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}
