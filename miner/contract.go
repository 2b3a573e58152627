package miner

import (
	"context"
	"errors"

	"raftmine/fsm/pow"
)

// ErrRefused: the leader does not want this miner, and asking again will not change that. A Dialer's and a Conn's errors
// wrap it; Run returns it.
var ErrRefused = errors.New("refused by the leader")

// Dialer finds the leader.
type Dialer interface {
	// Dial blocks until there is a stream to a server that leads, or ctx ends. It does not back off: Run does.
	//
	// ctx may bound the stream as well: it outlives Run's own context, so that a miner can say that it leaves, and is
	// cancelled when the stream is no longer used.
	Dial(ctx context.Context) (Conn, error)
}

// Conn is one stream to the leader. Send is called by one goroutine and Receive by one other. After any error the
// stream is over. Close may be called by any goroutine, more than once, and makes both return soon.
type Conn interface {
	Send(Message) error
	Receive() (Message, error)
	Close() error
}

// Message is what crosses the stream. From the leader: HeartbeatRequest, Process, Interrupt, Acknowledgement. To the
// leader: HeartbeatReply, AnswerNo, AnswerYes. The wire's names and meanings: rpc/raftminepb.
type Message interface{ isMessage() }

// HeartbeatRequest is what the leader says first, and then each heartbeat. It is answered at once.
type HeartbeatRequest struct {
	ServerID        uint64   // of the leader
	Term            uint64   // of Raft: a higher one is a later leader
	ServerAddresses []string // of the servers that are up, lowest id first
}

// HeartbeatReply is the answer to a HeartbeatRequest, and the first message to the leader on a stream. Its slices and what
// Wanted points to are the connection's from Send on.
type HeartbeatReply struct {
	Name            string   // by which the leader keeps totals and strikes
	Instance        [16]byte // of this process: the same on each of its streams
	Threads         int
	Kernel          string // its name in sha256d
	SoftwareVersion string
	HashRate        float64  // double SHA-256 a second over the last 10 s; 0: not yet known
	Hashes          uint64   // since the process started
	Held            []uint64 // grant ids, ascending: searched, or answered and not acknowledged
	Wanted          *int     // how many ranges to hold; nil: as before
	Leaving         bool     // no more ranges: what is held and not answered returns
}

// Process is a range to search. One with a GrantID that is held already is the same range, sent once more.
type Process struct {
	GrantID, JobID uint64 // never 0
	Work           pow.Work
	Nonces         pow.Range
	ChunkSize      uint64 // partial answers end on a multiple of this, counted from Nonces.First
}

// Interrupt ends searches. Answers that were given stay, until they are acknowledged.
type Interrupt struct {
	JobID    uint64
	GrantIDs []uint64 // these alone, whatever their job; empty: every grant of the job
	Reason   string   // for a person
}

// AnswerNo says that no nonce of a range is a solution. The range is a grant's, or the whole chunks at its head.
type AnswerNo struct {
	GrantID, JobID, Timestamp uint64 // as the Process said
	Nonces                    pow.Range
	Receipt                   uint64 // the nonce of the smallest digest in Nonces
}

// AnswerYes is a solution. It ends the search of its grant, without an AnswerNo.
type AnswerYes struct {
	GrantID, JobID, Timestamp uint64 // as the Process said
	Nonce                     uint64
}

// Acknowledgement says what became of an answer. It is that of the answer which has the same GrantID, kind and nonce.
type Acknowledgement struct {
	GrantID  uint64
	Solution bool   // of an AnswerYes
	Nonce    uint64 // the solution's, or the last one of the AnswerNo
	Result   string // one of the Result constants
	Message  string // one line for a person
}

// What became of an answer. Only the first two count for the miner; after any of them it forgets the answer.
const (
	ResultCommitted = "committed" // on the disks of a majority of the voters
	ResultDuplicate = "duplicate" // was committed before
	ResultStale     = "stale"     // the job, or its timestamp, is over
	ResultReleased  = "released"  // the range was taken back
	ResultWrong     = "wrong"     // counted against the miner
)

func (HeartbeatRequest) isMessage() {}
func (HeartbeatReply) isMessage()   {}
func (Process) isMessage()          {}
func (Interrupt) isMessage()        {}
func (AnswerNo) isMessage()         {}
func (AnswerYes) isMessage()        {}
func (Acknowledgement) isMessage()  {}
