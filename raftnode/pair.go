package raftnode

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// A group of two voters needs both, so a leader whose only follower fails would lose its lease. It removes the follower
// from the voters before that. This is safe: the other one needs two votes, and one of them is this server's, which no
// longer counts it. On return it is added again (bringIn).
//
// Three things say that the follower failed: its process died (watch.go), it announced a stop, or a Raft heartbeat
// found no answer for pairPatience. Without a deadline of its own a Raft heartbeat to a paused process would hang for
// longer than a lease.

// pairPatience is the part of a lease for which the only follower may be silent. With a deadline of lease/2 for a Raft
// heartbeat, and one sent at least each heartbeat/5, a silent one is known by then.
func pairPatience(lease time.Duration) time.Duration { return lease * 6 / 10 }

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
		case raft.FailedHeartbeatObservation, raft.ResumedHeartbeatObservation:
			return true
		}
		return false
	})
	n.raft.RegisterObserver(observer)
	defer n.raft.DeregisterObserver(observer)
	due := time.NewTimer(time.Hour)
	due.Stop()
	defer due.Stop()
	var silent uint64
	var contact time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-seen:
			switch data := o.Data.(type) {
			case raft.FailedHeartbeatObservation:
				silent, contact = serverID(data.PeerID), data.LastContact
				due.Reset(time.Until(contact.Add(pairPatience(n.config.RaftLease))))
			case raft.ResumedHeartbeatObservation:
				due.Stop()
			}
		case <-due.C:
			// After more than a lease it was this process that stood still, and Raft deals with that.
			if time.Since(contact) < n.config.RaftLease {
				n.goOnWithout(ctx, silent, "it answered no raft heartbeat")
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
		n.log.Warn("only follower failed and could not be removed from the voters", "peer", id, "reason", reason, "error", err)
		return
	}
	n.log.Warn("only follower failed, going on alone", "peer", id, "reason", reason)
	poke(n.govern)
}
