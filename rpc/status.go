package rpc

import (
	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// Status is what one server says of the cluster, from its own replica.
type Status struct {
	ClusterID        string
	ServerID         uint64 // who answers
	Term             uint64
	LeaderID         uint64 // 0: none known
	ComputedLeaderID uint64 // the lowest id that is up in this server's table; 0: none
	AppliedIndex     uint64
	StateDigest      pow.Hash // at AppliedIndex
	Servers          []ServerStatus
	Job              *JobStatus // nil: no job was opened yet
	Miners           []MinerStatus
	Blocks           uint64 // accepted
	Voters           int
	ClusterStopped   bool
	Coordinator      *CoordinatorStatus // nil: this server does not lead
	SoftwareVersion  string
	HistoryMissing   uint64 // records that this server's history lacks, and asks the others for
}

// ServerStatus is one row of the server table, or a voter that the table does not have as far as it was applied: a voter
// that is no member.
type ServerStatus struct {
	ID      uint64
	Address string
	DataDir string
	Up      bool // in the replicated table
	Voter   bool
	Member  bool // false: removed, its id is kept
	Leader  bool
}

// JobStatus is the current job, or the last one.
type JobStatus struct {
	ID, Height uint64
	Previous   pow.Hash
	Bits       int
	Timestamp  uint64 // Unix milliseconds
	Round      uint32
	Nonces     pow.Range
	ChunkSize  uint64
	Chunks     fsm.Counts
	Phase      fsm.Phase
}

// MinerStatus is one miner. Connected, HashRate, Threads, Kernel and why it is refused are known to the leader alone.
type MinerStatus struct {
	Name           string
	Connected      bool
	HashRate       float64 // double SHA-256 a second, as far as the leader believes it
	ChunksFinished uint64
	Solutions      uint64
	Strikes        uint32
	Threads        int
	Kernel         string
	Refused        string // why it is refused work; empty: it is not
}

// CoordinatorStatus is the leader's own memory.
type CoordinatorStatus struct {
	WebService      string  // its address
	WebServiceError string  // empty: the last request succeeded
	HashRate        float64 // of all connected miners
}

// Block is a solution that was submitted, and its verdict.
type Block struct {
	Sequence  uint64 // 1, 2, 3 ... over all settled blocks, whatever their verdict
	Height    uint64
	Hash      pow.Hash
	Previous  pow.Hash
	Nonce     uint64
	Timestamp uint64 // Unix milliseconds
	Bits      int
	Miner     string
	Verdict   fsm.Verdict
	Detail    string // what the web service said
	SettledAt uint64 // Unix milliseconds
	Index     uint64 // log index of the verdict
}

// Event is something that a Watch tells: one of the types below.
type Event interface{ isEvent() }

// StartEvent is the first of every connection: the first block that follows has sequence number AfterBlock+1.
type StartEvent struct{ ServerID, AfterBlock uint64 }

// LeaderEvent says who leads.
type LeaderEvent struct{ ID, Term uint64 }

// BlockEvent is a settled block. None is lost and none comes twice.
type BlockEvent struct{ Block Block }

// ServerEvent says that a server went up or down in the replicated table.
type ServerEvent struct {
	ID     uint64
	Up     bool
	Reason string
}

// HeartbeatEvent is one heartbeat that the answering server sent or received.
type HeartbeatEvent struct {
	From     uint64
	To       uint64 // 0: to a miner
	ToMiner  string
	Answered bool
}

// MinerEvent says that a miner was connected, disconnected or refused. Only the leader knows.
type MinerEvent struct {
	Name    string
	What    string // connected, disconnected, refused
	Message string
}

// JobEvent is one step of a job's life.
type JobEvent struct {
	ID, Height uint64
	Previous   pow.Hash
	Bits       int
	Timestamp  uint64 // Unix milliseconds
	What       fsm.JobStep
}

// LaggedEvent says that the reader was too slow: events other than blocks were dropped.
type LaggedEvent struct{ Dropped uint64 }

func (StartEvent) isEvent()     {}
func (LeaderEvent) isEvent()    {}
func (BlockEvent) isEvent()     {}
func (ServerEvent) isEvent()    {}
func (HeartbeatEvent) isEvent() {}
func (MinerEvent) isEvent()     {}
func (JobEvent) isEvent()       {}
func (LaggedEvent) isEvent()    {}

// Watched is an event and when the answering server saw it, in Unix milliseconds.
type Watched struct {
	UnixMilli uint64
	Event     Event
}
