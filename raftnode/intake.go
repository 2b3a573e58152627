package raftnode

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// What Raft checks too little, or too much, is looked at before it gets it.
//
// It installs every snapshot, also one that is older than what this server has, and goes back to that snapshot's configuration,
// while the entries that changed it since are never looked at again. Such snapshots come: the goroutine of a leader that
// sent entries to a removed server may sleep through the removal, and sends its snapshot when the server is a member
// again. With a configuration of long ago a server could be elected by voters that are no majority any more.
//
// Entries that follow one which this server has applied, and compacted since, it refuses, because that one is not in its log.
// The leader then goes back to its snapshot, which is old, and so on without a pause. What is applied is the same in
// the log of every later leader.
//
// A leader that lost its office may go on to send what its log has, in its old term, when that log has the entries of the next
// leader already. Taken, they are of a term that this server never entered, and after a restart it would refuse its own log.
//
// It handles heartbeats beside its main goroutine, also those that bring a new term. On a slow disk the older of two new terms may
// then be saved last, and the server is back in a term that it left. So these go to the main goroutine with everything else.
//
// And it stands for election when it is told to (TimeoutNow), also without a vote in its own configuration.
//
// It votes for nobody who is no voter in its own configuration. But a leader of two that died while it made a third server a
// voter may have told that one alone: then the two that are left wait for each other's vote. So a non-voter with a longer
// log, and with it perhaps a newer configuration, is voted for all the same (Raft dissertation §4.1).

var (
	errOldSnapshot = errors.New("snapshot is older than the log of this server")
	errLateLeader  = errors.New("the entries are of a later term than the leader that sends them")
	errNoVote      = errors.New("this server has no vote in its own configuration, it calls no election")
)

// intake hands requests to Raft, one at a time.
type intake struct {
	rpcs chan raft.RPC
	quit chan struct{}
	work sync.WaitGroup
	once sync.Once
	term func() (now uint64, known bool)
}

func newIntake(term func() (uint64, bool)) *intake {
	return &intake{rpcs: make(chan raft.RPC), quit: make(chan struct{}), term: term}
}

// ofNewTerm hands a heartbeat to Raft's main goroutine, and returns true, unless it is of a term that is known.
func (i *intake) ofNewTerm(rpc raft.RPC) bool {
	request, ok := rpc.Command.(*raft.AppendEntriesRequest)
	if now, known := i.term(); ok && known && request.Term <= now {
		return false
	}
	select {
	case i.rpcs <- rpc:
	case <-i.quit:
		rpc.Respond(nil, raft.ErrTransportShutdown)
	}
	return true
}

// start begins, once Raft runs.
func (i *intake) start(from <-chan raft.RPC, answered func(*raft.RPC) bool) {
	i.work.Go(func() {
		for {
			select {
			case <-i.quit:
				return
			case rpc := <-from:
				if answered(&rpc) {
					continue
				}
				select {
				case i.rpcs <- rpc:
				case <-i.quit:
					rpc.Respond(nil, raft.ErrTransportShutdown)
					return
				}
			}
		}
	})
}

func (i *intake) close() {
	i.once.Do(func() { close(i.quit) })
	i.work.Wait()
}

// Consumer implements raft.Transport.
func (t *raftTransport) Consumer() <-chan raft.RPC {
	if t.intake == nil {
		return t.NetworkTransport.Consumer()
	}
	return t.intake.rpcs
}

// answered answers what Raft must not get.
func (n *Node) answered(rpc *raft.RPC) bool {
	switch request := rpc.Command.(type) {
	case *raft.TimeoutNowRequest:
		if isVoter(n.configuration(), n.id) {
			return false
		}
		rpc.Respond(&raft.TimeoutNowResponse{}, errNoVote)
		return true
	case *raft.RequestPreVoteRequest:
		if !n.longer(request.ID, request.LastLogTerm, request.LastLogIndex) || request.Term < n.raft.CurrentTerm() || n.followsAnother(request.Addr) {
			return false
		}
		rpc.Respond(&raft.RequestPreVoteResponse{Term: request.Term, Granted: true}, nil)
		return true
	case *raft.RequestVoteRequest:
		// With what log it stands is surer than what it said before: entries of the dead leader may have come since (turn).
		n.peers.calling(serverID(raft.ServerID(request.ID)), request.LastLogIndex)
		if n.longer(request.ID, request.LastLogTerm, request.LastLogIndex) {
			anonymous := *request
			anonymous.ID = nil // the library then asks no configuration, and everything else as ever
			rpc.Command = &anonymous
		}
		return false
	case *raft.AppendEntriesRequest:
		if count := len(request.Entries); count > 0 && request.Entries[count-1].Term > request.Term {
			rpc.Respond(&raft.AppendEntriesResponse{Term: n.raft.CurrentTerm(), LastLog: n.raft.LastIndex()}, errLateLeader)
			return true
		}
		return n.repeated(rpc, request)
	case *raft.InstallSnapshotRequest:
		if !n.holds(request.LastLogIndex, request.LastLogTerm) {
			rpc.Reader = &snapshotReader{Reader: rpc.Reader, old: func() bool { return n.holds(request.LastLogIndex, request.LastLogTerm) }}
			return false
		}
		n.log.Debug("old snapshot passed over", "index", request.LastLogIndex)
		var err error
		if _, copyErr := io.Copy(io.Discard, rpc.Reader); copyErr != nil {
			err = fmt.Errorf("read snapshot: %w", copyErr)
		}
		// Whoever asks, and in whatever term: all this is committed, and it is here.
		rpc.Respond(&raft.InstallSnapshotResponse{Term: request.Term, Success: err == nil}, err)
		return true
	}
	return false
}

// longer reports whether a candidate that is a non-voter in this server's configuration has a longer log. One that was
// removed, or given up in a recovery, is not in the configuration at all.
func (n *Node) longer(candidate []byte, lastTerm, lastIndex uint64) bool {
	id := serverID(raft.ServerID(candidate))
	if servers := n.configuration(); n.gated() || !isConfigured(servers, id) || isVoter(servers, id) {
		return false
	}
	term := n.lastLogTerm()
	return lastTerm > term || lastTerm == term && lastIndex > n.raft.LastIndex()
}

// followsAnother reports whether this server has a leader that is not the candidate.
func (n *Node) followsAnother(candidate []byte) bool {
	leader, _ := n.raft.LeaderWithID()
	return leader != "" && leader != n.transport.DecodePeer(candidate)
}

// repeated deals with entries whose predecessor is applied, and no longer in the log: it leaves out those that are applied too,
// and answers when nothing remains.
func (n *Node) repeated(rpc *raft.RPC, request *raft.AppendEntriesRequest) bool {
	applied, count := n.raft.AppliedIndex(), uint64(len(request.Entries))
	// Raft deals with terms; after that a leader asks again.
	if request.PrevLogEntry == 0 || request.PrevLogEntry > applied || request.PrevLogEntry == n.raft.LastIndex() || request.Term != n.raft.CurrentTerm() {
		return false
	}
	var entry raft.Log
	if err := n.stores.Log.GetLog(request.PrevLogEntry, &entry); !errors.Is(err, raft.ErrLogNotFound) {
		return false
	}
	known := applied - request.PrevLogEntry
	if count <= known {
		rpc.Respond(&raft.AppendEntriesResponse{Term: request.Term, LastLog: n.raft.LastIndex(), Success: true}, nil)
		return true
	}
	rest := *request
	rest.PrevLogEntry, rest.PrevLogTerm, rest.Entries = 0, 0, request.Entries[known:] // with 0 Raft asks for no predecessor
	rpc.Command = &rest
	return false
}

// holds reports whether everything up to a committed entry is here already: it is applied, or in the log, which then has
// the same entries before it (Raft, log matching; "retain log entries following it and reply", figure 13).
func (n *Node) holds(index, term uint64) bool {
	if index <= n.raft.AppliedIndex() {
		return true
	}
	var entry raft.Log
	return n.stores.Log.GetLog(index, &entry) == nil && entry.Term == term
}

// snapshotReader looks once more when Raft begins to read, on its main goroutine: entries may have come since.
type snapshotReader struct {
	io.Reader
	old    func() bool
	looked bool
}

// Read implements io.Reader. An old snapshot is read to its end, because the connection is used again.
func (r *snapshotReader) Read(p []byte) (int, error) {
	if !r.looked {
		r.looked = true
		if r.old() {
			if _, err := io.Copy(io.Discard, r.Reader); err != nil {
				return 0, err
			}
			return 0, errOldSnapshot
		}
	}
	return r.Reader.Read(p)
}
