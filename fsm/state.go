package fsm

import (
	"iter"

	"raftmine/fsm/pow"
)

// MaxStrikes is the number of wrong answers after which a miner is refused work. Protocol.
const MaxStrikes = 3

// ID is a UUID in its 16 bytes.
type ID [16]byte

// Host identifies a machine and its current boot, so that a process of another boot is known to be dead.
type Host struct{ MachineID, BootID string }

// Server is one row of the server table.
type Server struct {
	ID        uint64
	RequestID ID
	Address   string // host:port
	DataDir   string
	Host      Host
	Member    bool   // false: removed; the id is kept
	Up        bool   // a voter, caught up, and stable for two heartbeats
	Since     uint64 // log index of the last change of Up or Member
}

// Phase is where a job is in its life: it only grows.
type Phase uint8

const (
	PhaseOpen       Phase = iota + 1 // being searched
	PhaseSolved                      // a solution is committed
	PhaseSubmitting                  // the intent to submit is committed
	PhaseClosed
)

// Job is one previous hash and its search. Chunk k, counted from 0, holds the nonces from Nonces.First+k*ChunkSize on.
type Job struct {
	ID        uint64 // 1, 2, 3 ...
	Height    uint64
	Previous  pow.Hash
	Bits      int
	Timestamp uint64 // of the current round, Unix milliseconds
	Round     uint32 // 0, 1, 2 ...: how often the timestamp was rolled
	Nonces    pow.Range
	ChunkSize uint64
	Phase     Phase
	Solution  *Solution // nil before PhaseSolved
	Opened    uint64    // log index
	OpenedAt  uint64    // Unix milliseconds, of the entry
}

// Work returns what the current round searches.
func (j Job) Work() pow.Work {
	return pow.Work{Previous: j.Previous, Timestamp: j.Timestamp, Bits: j.Bits}
}

// Chunks returns the number of chunks of a round; the last one may be short.
func (j Job) Chunks() uint64 { return (j.Nonces.Len()-1)/j.ChunkSize + 1 }

// Solution is a verified proof.
type Solution struct {
	GrantID  uint64
	Miner    string
	Nonce    uint64
	Hash     pow.Hash
	Index    uint64 // log index
	Attempts uint32 // how often Submitting was logged
}

// Grant is a run of chunks that one miner holds. Nonces shrinks from its first end as answers come.
type Grant struct {
	ID       uint64 // 1, 2, 3 ... over all jobs
	JobID    uint64
	Miner    string
	Instance ID
	Nonces   pow.Range
	Index    uint64 // log index of the grant
}

// Miner is what is kept of a miner by name.
type Miner struct {
	Name      string
	Chunks    uint64 // finished, over all jobs
	Nonces    uint64 // finished, over all jobs
	Solutions uint64
	Strikes   uint32
	// The last GrantWork, by which it is idempotent.
	LastRequestID uint64
	LastGrantID   uint64
}

// Block is a solution that was submitted, with its verdict.
type Block struct {
	Sequence  uint64 // 1, 2, 3 ... over all of them
	JobID     uint64
	Height    uint64
	Hash      pow.Hash
	Previous  pow.Hash
	Nonce     uint64
	Timestamp uint64
	Bits      int
	Miner     string
	Verdict   Verdict
	Detail    string
	Index     uint64 // log index of the verdict
	At        uint64 // Unix milliseconds, of that entry
}

// Counts is the partition of a job's chunks. Pending+Granted+Finished == Total.
type Counts struct{ Total, Pending, Granted, Finished uint64 }

// Office is the current leader, as the log knows it.
type Office struct {
	ServerID uint64
	Term     uint64
	Index    uint64
}

// Head is the end of the history: every applied entry, hash-chained.
// Hash(n) = SHA256(Hash(n-1) || index || term || len(data) || data), integers as 8 bytes big endian; Hash(0) is zero.
type Head struct {
	Records uint64 // applied entries
	Index   uint64 // of the last one
	Term    uint64
	Hash    pow.Hash
}

// View is read access to a State. It is valid only while the State does not change: the owner of the state says for
// how long. What its methods return are copies, except that iterators must not outlive it.
type View interface {
	ClusterID() string
	Stopped() bool // a ClusterStop is in force
	Recovery() (Recover, bool)
	Office() Office
	Head() Head
	Digest() pow.Hash // of the canonical encoding; O(state)

	Server(id uint64) (Server, bool)
	Servers() []Server // by id
	LowestUp() uint64  // the leader by the rule; 0: none is up
	Job() (Job, bool)  // the last job, open or closed
	Counts() Counts    // of that job
	Grant(id uint64) (Grant, bool)
	Grants() iter.Seq[Grant] // of the current job, by id
	LastGrantID() uint64

	Miner(name string) (Miner, bool)
	Miners() []Miner  // by name
	Forgotten() Miner // the sum of those that were forgotten; its name is empty

	Accepted() uint64 // blocks with VerdictSuccess
	LastAccepted() (Block, bool)
	BlockCount() uint64                     // all settled blocks
	Blocks(after uint64, limit int) []Block // those with Sequence > after
}

// State is the replicated state. It is not safe for concurrent use.
type State struct {
	clusterID string
	stopped   bool
	office    Office
	head      Head
	recovery  *Recover // the last one; never changed in place

	servers []Server // by id: server n is servers[n-1]

	job         *Job // the last one; nil: none was opened yet
	work        work // its partition
	lastGrantID uint64

	miners    []*Miner          // by name
	byName    map[string]*Miner // the same
	forgotten Miner

	blocks     []Block  // append-only, so that snapshots may share it
	blockChain pow.Hash // over blocks, see chainBlock
	accepted   []int    // positions in blocks of those with VerdictSuccess; append-only

	// No part of the state:
	decoder  Decoder   // of Apply
	outcomes []Outcome // of ApplyEntry
}

// New returns the state before the first entry.
func New() *State { return &State{byName: make(map[string]*Miner)} }
