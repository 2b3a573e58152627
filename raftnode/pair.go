package raftnode

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// A group of two voters needs both, so a leader whose only follower fails would lose its lease. It removes the follower
// from the voters before that. This is safe: the other one needs two votes, and one of them is this server's, which no
// longer counts it. On return it is added again (bringIn). A follower that is stopped on purpose leaves the voters as well: a
// stopped server stays one elsewhere, but here it would take the leadership with it, and only a recovery would bring it back.
//
// Three things say that the follower failed: its process died (watch.go), it announced a stop, or a Raft heartbeat
// found no answer for pairPatience. Without a deadline of its own a Raft heartbeat to a paused process would hang for
// longer than a lease.
//
// On a busy machine it may be this process that stood still, and the follower's answer waits to be read. So the time in
// which the leader's own ticks were late is not the follower's silence: it gets another chance, and if it stays silent until
// the lease ends, Raft ends the term and no voter is lost. A follower that alone gets no CPU looks as a paused one does.

// pairPatience is the part of a lease for which the only follower may be silent. With a deadline of lease/2 for a Raft
// heartbeat, and one sent at least each heartbeat/5, a silent one is known by then.
func pairPatience(lease time.Duration) time.Duration { return lease * 6 / 10 }

// pairTicks is how many ticks of its own a leader counts in a lease. Tuning.
const pairTicks = 12

// ownPauses are the times in which this process stood still, as its ticks tell.
type ownPauses struct {
	period time.Duration // of the ticks
	keep   time.Duration
	last   time.Time // tick
	gaps   [][2]time.Time
}

// tick says that a tick came.
func (p *ownPauses) tick(now time.Time) {
	if now.Sub(p.last) > 2*p.period {
		p.gaps = append(p.gaps, [2]time.Time{p.last.Add(p.period), now})
	}
	p.last = now
	p.gaps = slices.DeleteFunc(p.gaps, func(gap [2]time.Time) bool { return now.Sub(gap[1]) > p.keep })
}

// since returns how much of the time from since until now this process stood still.
func (p *ownPauses) since(since, now time.Time) (sum time.Duration) {
	gaps := p.gaps
	if now.Sub(p.last) > 2*p.period { // this tick is late
		gaps = append(slices.Clip(gaps), [2]time.Time{p.last.Add(p.period), now})
	}
	for _, gap := range gaps {
		from := gap[0]
		if from.Before(since) {
			from = since
		}
		sum += max(0, gap[1].Sub(from))
	}
	return sum
}

// raftPool is how many idle connections to each server the library's transport keeps. Tuning.
const raftPool = 3

// raftTransport is the library's, with a deadline for the Raft heartbeats of a leader with one follower.
type raftTransport struct {
	*raft.NetworkTransport
	beats *raft.NetworkTransport // for those heartbeats: it dials only
	pair  func() bool

	starting func()  // diskerror.go
	intake   *intake // nil: Raft gets everything
}

// newRaftTransport makes a transport on stream. Config is that of the library's transport.
func newRaftTransport(config raft.NetworkTransportConfig, beat time.Duration, pair func() bool) *raftTransport {
	t := &raftTransport{NetworkTransport: raft.NewNetworkTransportWithConfig(&config), pair: pair}
	config.Stream = &dialOnly{StreamLayer: config.Stream, closed: make(chan struct{})}
	config.Timeout = beat
	config.MaxPool = 1
	t.beats = raft.NewNetworkTransportWithConfig(&config)
	return t
}

// AppendEntries implements raft.Transport.
func (t *raftTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	// This is how the library itself tells a heartbeat.
	heartbeat := args.PrevLogEntry == 0 && args.PrevLogTerm == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0
	if heartbeat && t.pair() {
		return t.beats.AppendEntries(id, target, args, resp)
	}
	return t.NetworkTransport.AppendEntries(id, target, args, resp)
}

// RequestVote implements raft.Transport.
func (t *raftTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return pastBrokenConnections(func() error { return t.NetworkTransport.RequestVote(id, target, args, resp) })
}

// RequestPreVote implements raft.WithPreVote.
func (t *raftTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return pastBrokenConnections(func() error { return t.NetworkTransport.RequestPreVote(id, target, args, resp) })
}

// TimeoutNow implements raft.Transport.
func (t *raftTransport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return pastBrokenConnections(func() error { return t.NetworkTransport.TimeoutNow(id, target, args, resp) })
}

// pastBrokenConnections asks again while the library takes connections from its pool that ended long ago: those to a server
// that was started again since. An election with few voters is lost with one vote, and the next one takes a timeout. What is
// asked here may be asked twice.
func pastBrokenConnections(ask func() error) (err error) {
	for range raftPool + 1 {
		if err = ask(); !connectionEnded(err) {
			return err
		}
	}
	return err
}

// connectionEnded says that the other side, or this one, ended the connection.
func connectionEnded(err error) bool {
	var decoding interface{ Cause() error } // the library's decoder wraps what it reads so, and not for errors.Is
	if errors.As(err, &decoding) {
		err = decoding.Cause()
	}
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed)
}

// CloseStreams ends the pooled connections.
func (t *raftTransport) CloseStreams() {
	t.beats.CloseStreams()
	t.NetworkTransport.CloseStreams()
}

// Close implements raft.WithClose.
func (t *raftTransport) Close() error {
	err := t.beats.Close()
	if closeErr := t.NetworkTransport.Close(); err == nil {
		err = closeErr
	}
	return err
}

// dialOnly is a stream layer that accepts nothing.
type dialOnly struct {
	raft.StreamLayer
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (d *dialOnly) Accept() (net.Conn, error) {
	<-d.closed
	return nil, net.ErrClosed
}

// Close implements net.Listener. The stream layer beneath lives on.
func (d *dialOnly) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// onlyFollower returns the other voter of a group of two, if this server votes in it; 0: it is no such group.
func (n *Node) onlyFollower() (other uint64) {
	servers := n.configuration()
	voters := 0
	for _, server := range servers {
		if server.Suffrage == raft.Voter {
			if voters++; serverID(server.ID) != n.id {
				other = serverID(server.ID)
			}
		}
	}
	if voters != 2 || !isVoter(servers, n.id) {
		return 0
	}
	return other
}

// watchPair waits for Raft heartbeats that a group's only follower does not answer, until ctx ends.
func (n *Node) watchPair(ctx context.Context) {
	seen := make(chan raft.Observation, 16)
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.RaftState, raft.FailedHeartbeatObservation, raft.ResumedHeartbeatObservation:
			return true
		}
		return false
	})
	n.raft.RegisterObserver(observer)
	defer n.raft.DeregisterObserver(observer)
	lease := n.config.RaftLease
	pauses := ownPauses{period: lease / pairTicks, keep: lease}
	ticker := time.NewTicker(pauses.period)
	ticker.Stop() // only a leader counts ticks: they would be a good part of what an idle follower does
	defer ticker.Stop()
	ticks := n.config.pairTicks
	if ticks == nil {
		ticks = ticker.C
	}
	due := time.NewTimer(time.Hour)
	due.Stop()
	defer due.Stop()
	leading := false
	lead := func(leads bool) {
		switch {
		case leads == leading:
		case leads:
			pauses.last, pauses.gaps = time.Now(), nil
			ticker.Reset(pauses.period)
		default:
			ticker.Stop()
			due.Stop()
		}
		leading = leads
	}
	lead(n.raft.State() == raft.Leader)
	var silent uint64
	var contact time.Time
	// wait waits for what is left of the follower's time.
	wait := func(now time.Time) {
		due.Reset(contact.Add(pairPatience(lease) + pauses.since(contact, now)).Sub(now))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
			pauses.tick(time.Now())
		case o := <-seen:
			switch data := o.Data.(type) {
			case raft.RaftState:
				lead(data == raft.Leader)
			case raft.FailedHeartbeatObservation:
				lead(true) // also when the news of it was dropped
				silent, contact = serverID(data.PeerID), data.LastContact
				wait(time.Now())
			case raft.ResumedHeartbeatObservation:
				due.Stop()
			}
		case <-due.C:
			now := time.Now()
			switch quiet := now.Sub(contact); {
			case quiet >= lease: // Raft deals with that
			case quiet-pauses.since(contact, now) < pairPatience(lease):
				wait(now)
			default:
				n.goOnWithout(ctx, silent, "it answered no raft heartbeat")
				pauses.last = time.Now() // no tick was taken meanwhile
			}
		}
	}
}

// goOnWithout removes a voter that failed if it is the only other one and this server leads. A stopped cluster keeps
// its voters, and so does a server that stops itself.
func (n *Node) goOnWithout(ctx context.Context, id uint64, reason string) {
	var over bool
	n.View(func(v fsm.View) { over = v.Stopped() })
	if n.raft.State() != raft.Leader || n.onlyFollower() != id || over || n.stopping.Load() {
		return
	}
	p, _ := n.peers.get(id)
	n.peers.lost(id) // it counts as gone until it answers again
	if n.configTurn.take(ctx) != nil {
		return
	}
	defer n.configTurn.pass()
	if n.raft.State() != raft.Leader || n.onlyFollower() != id {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.config.RaftElection)
	defer cancel()
	err := n.await(ctx, func() error { return n.raft.RemoveServer(raftID(id), 0, n.config.RaftElection).Error() })
	if err != nil {
		n.log.Warn("only follower is gone and could not be removed from the voters", "peer", id, "reason", reason, "error", err)
		return
	}
	if p.left {
		n.log.Info("only follower was stopped, going on without its vote", "peer", id)
	} else {
		n.log.Warn("only follower failed, going on without its vote", "peer", id, "reason", reason)
	}
	poke(n.govern)
}
