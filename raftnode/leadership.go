package raftnode

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

const (
	// retryFirst and retryMost bound the pause before what failed within a term is tried again.
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
	// transferPauseFirst and transferPauseMost bound the pause after a leadership transfer. It doubles with each one that
	// did not help; one that did, and a quiet while of transferPauseMost, forget them.
	transferPauseFirst = time.Second
	transferPauseMost  = time.Minute
	// transferCatchUp is how long a transfer waits for its target, with proposals held.
	transferCatchUp = time.Second
	// stopTimeout bounds a planned stop.
	stopTimeout = 2 * time.Second
)

// Run does this server's duties until ctx ends, the node is closed, its replica stops or its disk stalls for good: heartbeats and, while it leads, the
// membership and lead. Lead is called once this server took office, with a context that ends with the leadership; Run
// waits for it, and calls it again when it returns early. Run returns nil, why the replica stopped, ErrDiskStalled or
// ErrRecover; it is called once.
func (n *Node) Run(ctx context.Context, lead func(ctx context.Context, term uint64) error) error {
	n.running.Lock()
	defer n.running.Unlock()
	if n.ctx.Err() != nil {
		return n.replica.failure()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	var work sync.WaitGroup
	work.Go(func() { n.keepHeartbeats(ctx) })
	work.Go(func() { n.findOthers(ctx) })
	work.Go(func() {
		n.book.run(ctx, n.config.Heartbeat, func(err error) {
			n.log.Warn("going on without a part of the local environment", "error", err)
		})
	})
	work.Go(func() { n.keepHistory(ctx) })
	for _, duty := range []func(context.Context) error{n.journal.verify, n.journal.syncOften} {
		work.Go(func() {
			if err := duty(ctx); err != nil {
				_ = n.replica.fail(fmt.Errorf("%w: %w", ErrReplicaStopped, err)) // Run returns it
			}
		})
	}
	work.Go(func() { n.watchLeadership(ctx, lead) })
	work.Go(func() { n.watchPair(ctx) })
	if listener := n.watchListener(); listener != nil {
		work.Go(func() { n.serveWatches(ctx, listener) })
		if n.config.Advertise != listener.Addr().String() {
			work.Go(func() { n.findSelf(ctx) })
		}
	}
	work.Go(func() { n.openGate(ctx) })
	var orphan error
	work.Go(func() {
		if orphan = n.watchOrphaned(ctx); orphan != nil {
			cancel()
		}
	})
	if n.onlyVoter() {
		// Nobody else could win or object, so there is nothing to wait for.
		if err := n.callElection(ctx, n.id); err != nil {
			n.log.Debug("immediate election failed, waiting for the timeout", "error", err)
		}
	}
	var stalled error
	work.Go(func() {
		if stalled = n.watchDisk(ctx); stalled != nil {
			cancel()
		}
	})
	select {
	case <-ctx.Done():
	case <-n.replica.failed:
		cancel()
	}
	work.Wait()
	return cmp.Or(n.replica.failure(), stalled, orphan)
}

// watchLeadership runs one term after the other. LeaderCh holds the last change only, so a loss and a gain in quick
// succession come as a gain: it ends the term before.
func (n *Node) watchLeadership(ctx context.Context, lead func(context.Context, uint64) error) {
	end := func() {}
	defer func() { end() }()
	for {
		leading := false
		select {
		case <-ctx.Done():
			return
		case <-n.diskChanged: // Raft may lead through a stall, because its main loop is what stands still
			leading = n.raft.State() == raft.Leader
		case leading = <-n.raft.LeaderCh():
		}
		end()
		end = func() {}
		if !leading || n.disk.isStalled() {
			continue
		}
		termCtx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.serveTerm(termCtx, lead)
		}()
		end = func() { cancel(); <-done }
	}
}

// serveTerm is one leadership: take office, then govern and lead until ctx ends.
func (n *Node) serveTerm(ctx context.Context, lead func(context.Context, uint64) error) {
	term, ok := n.takeOffice(ctx)
	if !ok {
		return
	}
	n.log.Info("leading", "term", term)
	n.term.Store(term)
	var work sync.WaitGroup
	work.Go(func() { n.governTerm(ctx) })
	for pause := retryFirst; ctx.Err() == nil; pause = min(2*pause, retryMost) {
		started := time.Now()
		err := lead(ctx, term)
		if ctx.Err() != nil {
			break
		}
		if time.Since(started) > retryMost {
			pause = retryFirst
		}
		n.log.Warn("leader's work ended early, starting it again", "term", term, "error", err)
		sleep(ctx, pause)
	}
	<-ctx.Done()
	n.term.Store(0)
	work.Wait()
	n.log.Info("leadership over", "term", term)
}

// takeOffice waits until everything of earlier terms is applied, and commits the term's first entry. The first entry of
// all also opens the cluster and gives this server its id.
func (n *Node) takeOffice(ctx context.Context) (term uint64, ok bool) {
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		if n.stopping.Load() {
			return 0, false // an office would only be in the way of those who stay
		}
		term, err := n.tryTakeOffice(ctx)
		if err == nil {
			return term, true
		}
		if ctx.Err() != nil || n.raft.State() != raft.Leader || n.replica.failure() != nil {
			return 0, false
		}
		n.log.Log(ctx, troubleLevel(err), "taking office failed, trying again", "error", err)
		if !sleep(ctx, pause) {
			return 0, false
		}
	}
}

func (n *Node) tryTakeOffice(ctx context.Context) (term uint64, err error) {
	term = n.raft.CurrentTerm() // before the barrier: of a later term it says nothing
	if err := n.barrier(ctx); err != nil {
		return 0, err
	}
	var clusterID string
	n.View(func(v fsm.View) { clusterID = v.ClusterID() })
	commands := []fsm.Command{fsm.TakeOffice{ServerID: n.id}, fsm.ServerUp{ServerID: n.id}}
	switch clusterID {
	case n.clusterID:
	case "":
		commands = []fsm.Command{
			fsm.OpenCluster{ClusterID: n.clusterID},
			fsm.TakeOffice{ServerID: n.id},
			fsm.AddServer{
				RequestID: n.requestID,
				Address:   n.config.Advertise,
				DataDir:   n.config.DataDir.Path(),
				Host:      n.config.Host,
			},
			fsm.ServerUp{ServerID: n.id},
		}
	default:
		return 0, n.replica.fail(fmt.Errorf("%w: the log is of cluster %s, server.json says %s: %w",
			ErrReplicaStopped, clusterID, n.clusterID, ErrForeignCluster))
	}
	commands = append(n.announceRecovery(), commands...)
	outcomes, err := n.commits.propose(ctx, term, commands)
	if err != nil {
		return 0, err
	}
	for i, outcome := range outcomes {
		if add, ok := commands[i].(fsm.AddServer); ok && outcome.ServerID != n.id {
			return 0, n.replica.fail(fmt.Errorf("%w: the first server, %s, was given id %d, not %d",
				ErrReplicaStopped, add.Address, outcome.ServerID, n.id))
		}
		if outcome.Code != fsm.Done && outcome.Code != fsm.Duplicate {
			return 0, fmt.Errorf("take office: %s", outcome.Detail)
		}
	}
	return term, nil
}

// troubleLevel is the level to log at what failed in a term: that leadership moved meanwhile is no trouble.
func troubleLevel(err error) slog.Level {
	for _, usual := range []error{ErrNotLeader, ErrOutcomeUnknown, raft.ErrNotLeader, raft.ErrLeadershipLost, context.Canceled} {
		if errors.Is(err, usual) {
			return slog.LevelDebug
		}
	}
	return slog.LevelWarn
}

// transferPace spaces the transfers that the rule asks for.
type transferPace struct {
	pause time.Duration
	next  time.Time
}

func (p *transferPace) ready(now time.Time) bool { return !now.Before(p.next) }

func (p *transferPace) attempt(now time.Time) {
	if p.pause == 0 || now.Sub(p.next) > transferPauseMost {
		p.pause = transferPauseFirst
	} else {
		p.pause = min(2*p.pause, transferPauseMost)
	}
	p.next = now.Add(p.pause)
}

// helped forgets the attempts that did not help before.
func (p *transferPace) helped() { p.pause = 0 }

// preferLowest hands leadership to the lowest id that is up, when that is another, a voter, caught up, and answers. That
// it is stable the table says: after a restart of the whole cluster nobody waits for two heartbeats again.
func (n *Node) preferLowest(ctx context.Context, servers []raft.Server) {
	var lowest uint64
	var over bool // the cluster is being stopped: a new term would take that back
	n.View(func(v fsm.View) { lowest, over = v.LowestUp(), v.Stopped() })
	if over || lowest == 0 || lowest == n.id || !n.transferTry.ready(time.Now()) {
		return
	}
	p, ok := n.peers.get(lowest)
	if !ok || !p.present || p.answered == 0 || p.left || !isVoter(servers, lowest) || !n.caughtUp(p.report) {
		return
	}
	n.transferTry.attempt(time.Now())
	if err := n.transfer(ctx, lowest); err == nil {
		n.transferTry.helped()
	} else if ctx.Err() == nil {
		n.log.Info("leadership transfer did not succeed", "to", lowest, "error", err)
	}
}

// leaveOffice hands over when this server leads without a vote of its own, which it should not. What it believes to be the
// configuration is not to be built upon, so it changes nothing else.
func (n *Node) leaveOffice(ctx context.Context) {
	if !n.transferTry.ready(time.Now()) {
		return
	}
	n.transferTry.attempt(time.Now())
	heir := n.heir(nil)
	n.log.Warn("leading without a vote, handing over", "to", heir)
	if heir == 0 {
		return
	}
	if err := n.transfer(ctx, heir); err != nil && ctx.Err() == nil {
		n.log.Warn("leadership transfer did not succeed", "to", heir, "error", err)
	}
}

var errNoTakeover = errors.New("it did not take over")

// transfer hands leadership to a voter by Raft's own message for it, without the library's transfer state, which can
// wedge a leader for good (hashicorp/raft issue 696): hold the proposals, wait until nothing is in flight and the target
// has our last entry, then tell it to call an election. Proposals go on when it did not take over.
func (n *Node) transfer(ctx context.Context, target uint64) error {
	if err := n.transferTurn.take(ctx); err != nil {
		return err
	}
	defer n.transferTurn.pass()
	term := n.raft.CurrentTerm()
	n.log.Debug("leadership transfer begins", "to", target, "term", term)
	if err := n.answersNow(ctx, target); err != nil {
		return err
	}
	defer n.commits.resume()
	waiting, cancel := context.WithTimeout(ctx, transferCatchUp)
	defer cancel()
	if err := n.commits.pause(waiting); err != nil {
		return fmt.Errorf("wait for entries in flight: %w", err)
	}
	for {
		report, err := n.ask(waiting, target, n.book.address(target))
		if err != nil {
			return fmt.Errorf("ask how far it is: %w", err)
		}
		if report.Stopping {
			return errors.New("it is stopping")
		}
		// The same term: its log has no suffix of another leader.
		if report.LastIndex == n.raft.LastIndex() && report.Term == term {
			break
		}
		if !sleep(waiting, 2*time.Millisecond) {
			return fmt.Errorf("it lags: it has entry %d, the last one is %d", report.LastIndex, n.raft.LastIndex())
		}
	}
	if !n.leadsIn(term) {
		return n.notLeader()
	}
	if err := n.callElection(ctx, target); err != nil {
		return fmt.Errorf("send timeout-now: %w", err)
	}
	took := time.NewTimer(n.config.RaftElection)
	defer took.Stop()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for n.leadsIn(term) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-took.C:
			return errNoTakeover
		case <-look.C:
		}
	}
	n.log.Info("leadership handed over", "to", target)
	return nil
}

// answersNow finds out about a target before anybody waits for it: a paused process is up in the table for three heartbeats
// more, and its successor may be asked for a transfer back as its first act.
func (n *Node) answersNow(ctx context.Context, target uint64) error {
	asking, cancel := context.WithTimeout(ctx, n.config.RaftElection)
	defer cancel()
	if _, err := n.ask(asking, target, n.book.address(target)); err != nil {
		return fmt.Errorf("ask whether it is there: %w", err)
	}
	return nil
}

func (n *Node) leadsIn(term uint64) bool {
	return n.raft.State() == raft.Leader && n.raft.CurrentTerm() == term
}

// callElection makes a voter, this server or another, stand for election at once, past pre-vote and leader stickiness.
// It must not be sent to a non-voter: Raft checks nothing there.
func (n *Node) callElection(ctx context.Context, id uint64) error {
	request := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax,
		ID:              []byte(raftID(n.id)),
		Addr:            []byte(n.transport.LocalAddr()),
	}}
	return n.await(ctx, func() error {
		var response raft.TimeoutNowResponse
		return n.transport.TimeoutNow(raftID(id), raftAddress(id, n.book.address(id)), request, &response)
	})
}

// onlyVoter reports whether this server is the cluster's only voter.
func (n *Node) onlyVoter() bool {
	voters := 0
	for _, server := range n.configuration() {
		if server.Suffrage == raft.Voter {
			voters++
		}
	}
	return voters == 1 && isVoter(n.configuration(), n.id)
}

// Stop announces a planned stop: it hands leadership to another voter that is up, if this server leads, and has it committed
// that this server is down. It stays a voter, but in a group of two (pair.go). It takes at most 2 s; Close follows in any case. After StopCluster there
// is nothing to announce.
func (n *Node) Stop(ctx context.Context) error {
	if err := n.alive(); err != nil {
		return err
	}
	n.stopping.Store(true)
	n.watchers.leave()
	var stopped bool
	n.View(func(v fsm.View) { stopped = v.Stopped() })
	if stopped {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	var unwilling []uint64
	for pause := retryFirst / 4; ; pause = min(2*pause, retryMost) {
		for n.raft.State() == raft.Leader && ctx.Err() == nil {
			heir := n.heir(unwilling)
			if heir == 0 {
				break
			}
			if err := n.transfer(ctx, heir); err != nil {
				n.log.Info("leadership not handed over before the stop", "to", heir, "error", err)
				unwilling = append(unwilling, heir)
			}
		}
		last := n.announceStop(ctx)
		switch {
		case last == nil:
			return nil
		case n.deserted():
			n.log.Info("nobody is left to be told of the stop", "error", last)
			return nil
		case !sleep(ctx, pause):
			return fmt.Errorf("announce stop: %w", last)
		}
	}
}

// deserted reports whether every other voter is gone or stops as well, so that nobody is left to be told.
func (n *Node) deserted() bool {
	for _, server := range n.configuration() {
		id := serverID(server.ID)
		if p, ok := n.peers.get(id); id != n.id && server.Suffrage == raft.Voter && ok && p.present && !p.left {
			return false
		}
	}
	return true
}

func (n *Node) announceStop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout/4)
	defer cancel()
	if n.term.Load() != 0 {
		_, err := n.Propose(ctx, fsm.ServerDown{ServerID: n.id, Reason: "stopped"})
		return err
	}
	leader := n.leader()
	if leader == 0 || leader == n.id {
		return &NotLeaderError{}
	}
	return n.config.Peers.Leave(ctx, n.book.address(leader), LeaveRequest{ClusterID: n.clusterID, ServerID: n.id})
}

// heir returns the lowest other voter that is up and answers, and is not among the unwilling; 0: there is none.
func (n *Node) heir(unwilling []uint64) (id uint64) {
	servers := n.configuration()
	n.View(func(v fsm.View) {
		for _, row := range v.Servers() {
			if p, ok := n.peers.get(row.ID); row.Up && row.ID != n.id && !slices.Contains(unwilling, row.ID) && ok && p.present && !p.left && isVoter(servers, row.ID) {
				id = row.ID
				return
			}
		}
	})
	return id
}

// StopCluster commits that all servers are about to be stopped on purpose. Leader only.
func (n *Node) StopCluster(ctx context.Context, reason string) error {
	outcomes, err := n.Propose(ctx, fsm.ClusterStop{Reason: fsm.Line(reason)})
	if err != nil {
		return fmt.Errorf("stop cluster: %w", err)
	}
	if code := outcomes[0].Code; code != fsm.Done && code != fsm.Duplicate {
		return fmt.Errorf("stop cluster: %s", outcomes[0].Detail)
	}
	return nil
}
