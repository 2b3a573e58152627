package raftnode

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// gateTimeout stands for never: a server behind a closed gate does not campaign.
	gateTimeout = 1000 * time.Hour
	// gatePoll is how often a closed gate looks at the log. Tuning.
	gatePoll = 100 * time.Millisecond
)

var errGateClosed = errors.New("this server's log is not complete yet, it neither gives nor asks for votes")

// voteGate stands before the Raft of a server that begins with an empty log under an id that has voted and been a voter
// before. Until its log has an entry of the recovery's term or later, it gives no vote, asks for none and calls no
// election. Without it
//   - a server that missed the recovery could win with its vote: an empty log finds every other log good enough;
//   - replaying the first entries of the history it would find itself the only voter of long ago, and lead alone.
//
// An entry of that term says that all entries before it, and the survivor's configuration, are here: Raft's log matching.
type voteGate struct {
	*raftTransport
	survivor    uint64 // who left this server behind
	survivorDir string
	minTerm     uint64
	open        atomic.Bool
	rpcs        chan raft.RPC
	quit        chan struct{}
	work        sync.WaitGroup
	once        sync.Once
}

func newVoteGate(transport *raftTransport, rejoin *fence) *voteGate {
	g := &voteGate{raftTransport: transport, survivor: rejoin.Survivor, survivorDir: rejoin.SurvivorDir, minTerm: rejoin.NewTerm, rpcs: make(chan raft.RPC), quit: make(chan struct{})}
	g.work.Go(g.pass)
	return g
}

// pass hands requests on, but for those of elections.
func (g *voteGate) pass() {
	for {
		select {
		case <-g.quit:
			return
		case rpc := <-g.raftTransport.Consumer():
			if !g.open.Load() {
				var response any
				switch rpc.Command.(type) {
				case *raft.RequestVoteRequest:
					response = &raft.RequestVoteResponse{}
				case *raft.RequestPreVoteRequest:
					response = &raft.RequestPreVoteResponse{}
				case *raft.TimeoutNowRequest:
					response = &raft.TimeoutNowResponse{}
				}
				if response != nil {
					rpc.Respond(response, errGateClosed)
					continue
				}
			}
			select {
			case g.rpcs <- rpc:
			case <-g.quit:
				rpc.Respond(nil, raft.ErrTransportShutdown)
				return
			}
		}
	}
}

// Consumer implements raft.Transport.
func (g *voteGate) Consumer() <-chan raft.RPC { return g.rpcs }

// RequestVote implements raft.Transport.
func (g *voteGate) RequestVote(id raft.ServerID, target raft.ServerAddress, request *raft.RequestVoteRequest,
	response *raft.RequestVoteResponse) error {
	if !g.open.Load() {
		return errGateClosed
	}
	return g.raftTransport.RequestVote(id, target, request, response)
}

// RequestPreVote implements raft.WithPreVote.
func (g *voteGate) RequestPreVote(id raft.ServerID, target raft.ServerAddress, request *raft.RequestPreVoteRequest,
	response *raft.RequestPreVoteResponse) error {
	if !g.open.Load() {
		return errGateClosed
	}
	return g.raftTransport.RequestPreVote(id, target, request, response)
}

func (g *voteGate) close() {
	g.once.Do(func() { close(g.quit) })
	g.work.Wait()
}

// closedGate makes a gate when this server began anew behind a fence and its log is not complete; nil: it needs none.
func (n *Node) closedGate() (*voteGate, error) {
	rejoin, err := readFence(n.config.DataDir.Path(), rejoinFileName)
	if err != nil || rejoin == nil {
		return nil, err
	}
	term, err := lastTermOf(n.stores)
	if err != nil || term >= rejoin.NewTerm {
		return nil, err
	}
	return newVoteGate(n.transport, rejoin), nil
}

// openGate waits until the log is complete, and gives this server its timeouts and votes back.
func (n *Node) openGate(ctx context.Context) {
	if n.gate == nil || n.gate.open.Load() {
		return
	}
	for sleep(ctx, gatePoll) {
		// The survivor may listen elsewhere by now, and nothing else may say where: the server table is still empty.
		if n.leader() == 0 {
			if survivor, err := readIdentity(n.gate.survivorDir); err == nil {
				n.book.hear(n.gate.survivor, survivor.Address)
				poke(n.regroup)
			}
		}
		if n.lastLogTerm() < n.gate.minTerm {
			continue
		}
		n.gate.open.Store(true)
		timeouts := n.raft.ReloadableConfig()
		timeouts.HeartbeatTimeout, timeouts.ElectionTimeout = n.config.RaftHeartbeat, n.config.RaftElection
		if err := n.raft.ReloadConfig(timeouts); err != nil {
			n.log.Warn("timeouts were not set, this server calls no election before its restart", "error", err)
		}
		return
	}
}

// lastLogTerm is the term of the last entry, in the log or in a snapshot.
func (n *Node) lastLogTerm() uint64 {
	stats := n.raft.Stats()
	logged, _ := strconv.ParseUint(stats["last_log_term"], 10, 64)
	restored, _ := strconv.ParseUint(stats["last_snapshot_term"], 10, 64)
	return max(logged, restored)
}

// gated reports whether this server's log is not complete yet.
func (n *Node) gated() bool { return n.gate != nil && !n.gate.open.Load() }
