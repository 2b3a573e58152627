package raftnode

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"raftmine/fsm"
)

// Errors that a node's callers tell apart.
var (
	// ErrNotLeader: nothing was proposed. It may come as a *NotLeaderError, which knows the leader.
	ErrNotLeader = errors.New("not leader")
	// ErrOutcomeUnknown: leadership was lost while waiting; the commands may be committed yet.
	ErrOutcomeUnknown = errors.New("leadership lost, outcome unknown")
	// ErrClosed: the node was closed.
	ErrClosed = errors.New("server is closed")
	// ErrForeignCluster: the message belongs to another cluster.
	ErrForeignCluster = errors.New("another cluster")
	// ErrTwin: another process is the same server, or may become it. The text that wraps it says which, and what to do.
	ErrTwin = errors.New("this data directory is a copy")
	// ErrNoAnswer: no server that was asked gave an id in time. The text that wraps it ends with what the last one said.
	ErrNoAnswer = errors.New("gave up")
	// ErrNotThere: the leader does not reach the server that asks to join at the address that it advertises.
	ErrNotThere = errors.New("the server that asks is not where it says")
	// ErrJoinRefused: the request to join makes no sense; asking again does not help.
	ErrJoinRefused = errors.New("join refused")
)

// NotLeaderError says who leads instead. It matches ErrNotLeader.
type NotLeaderError struct {
	LeaderID uint64 // 0: not known
	Address  string
}

func (e *NotLeaderError) Error() string {
	if e.LeaderID == 0 {
		return "not leader, and no leader is known"
	}
	return fmt.Sprintf("not leader; server %d at %s is", e.LeaderID, e.Address)
}

// Is makes errors.Is(err, ErrNotLeader) hold.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNotLeader }

// PeerClient is how a node speaks to other servers beside Raft. Every call ends with ctx.
type PeerClient interface {
	Heartbeat(ctx context.Context, address string, request HeartbeatRequest) (ServerReport, error)
	Join(ctx context.Context, address string, request JoinRequest) (JoinReply, error)
	Leave(ctx context.Context, address string, request LeaveRequest) error
	// History yields records, and at last an error, if there was one. Data is valid until the next step.
	History(ctx context.Context, address string, request HistoryRequest) iter.Seq2[JournalRecord, error]
}

// HeartbeatRequest is what one server tells another each heartbeat interval.
type HeartbeatRequest struct {
	ClusterID       string
	ServerID        uint64
	Address         string
	Term            uint64
	LeaderID        uint64 // the Raft leader the sender knows; 0: none
	SentUnixMilli   uint64
	ServerAddresses []string // of the servers that are up, lowest id first
}

// ServerReport is the reply: what a server says of itself.
type ServerReport struct {
	ClusterID        string
	ServerID         uint64
	Address          string
	Term             uint64
	LeaderID         uint64
	ComputedLeaderID uint64 // the lowest id that is up in its table; 0: none
	LastIndex        uint64 // of its Raft log
	AppliedIndex     uint64
	DataDir          string
	Host             fsm.Host
	Stopping         bool // a planned stop has begun
}

// JoinRequest asks for an id, or, with an id that was given before, for membership.
type JoinRequest struct {
	RequestID       fsm.ID // kept in the data directory: asking again gives the same id
	Address         string
	DataDir         string
	Host            fsm.Host
	SoftwareVersion string
}

// JoinReply gives the id.
type JoinReply struct {
	ClusterID string
	ServerID  uint64
	Servers   []ServerAddress
}

// ServerAddress is where a server listens.
type ServerAddress struct {
	ServerID uint64
	Address  string
}

// LeaveRequest announces a planned stop to the leader.
type LeaveRequest struct {
	ClusterID string
	ServerID  uint64
}

// Observer is told what happens on this server, for watchers. It must not block.
type Observer interface {
	// Applied is called after each entry that caused events, in log order.
	Applied(index uint64, events []fsm.Event)
	// Heartbeat is called for each heartbeat that this server sent (answered or not) or received (answered).
	Heartbeat(from, to uint64, answered bool)
}

// Status is this server's own view of the cluster.
type Status struct {
	ServerID         uint64
	Address          string
	Term             uint64
	LeaderID         uint64 // the Raft leader; 0: none known
	LeaderAddress    string
	ComputedLeaderID uint64
	Voters           []uint64 // ids in the Raft configuration that vote
	VoterAddresses   []string // of Voters, where this server would dial them
	LastIndex        uint64
	Leading          bool   // this server leads and its term's coordinator may run
	HistoryMissing   uint64 // records that this server's journal lacks, and asks the others for
}
