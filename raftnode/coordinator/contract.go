package coordinator

import (
	"context"
	"errors"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// Errors that a coordinator's callers tell apart. A Proposer returns the first two.
var (
	// ErrNotLeader: nothing was proposed; ask the next leader.
	ErrNotLeader = errors.New("not leader")
	// ErrOutcomeUnknown: leadership was lost while waiting; the commands may be committed yet.
	ErrOutcomeUnknown = errors.New("leadership lost, outcome unknown")
	// ErrMinerRefused: the miner has MaxStrikes, its receipts are not believed, or its report makes no sense.
	ErrMinerRefused = errors.New("miner refused")
	// ErrNameTaken: a miner of that name and another instance is connected.
	ErrNameTaken = errors.New("miner name taken")
	// ErrTooSlow: the miner does not read what it is sent.
	ErrTooSlow = errors.New("miner does not read its messages")
	// ErrTooManyMiners: MaxMiners streams are open already.
	ErrTooManyMiners = errors.New("too many miners")
	// ErrSilent: nothing was heard of the miner for LeaseHeartbeats heartbeats.
	ErrSilent = errors.New("miner is silent")
	// ErrReplaced: the same process of the miner opened another stream, which goes on instead.
	ErrReplaced = errors.New("miner opened another stream")
	// ErrDisconnected: the stream was closed from the miner's side.
	ErrDisconnected = errors.New("miner disconnected")
)

// Proposer is what a coordinator needs of consensus.
type Proposer interface {
	// Propose commits commands in order, perhaps together with those of other callers, and returns an outcome for
	// each. It blocks until they are on the disks of a majority and applied here.
	Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Outcome, error)
	// View calls read with the applied state, which does not change until read returns.
	View(read func(fsm.View))
	// VerifyLeader confirms with a majority that this server still leads. Called before every side effect.
	VerifyLeader(ctx context.Context) error
}

// BlockSource is the block web service.
type BlockSource interface {
	// Block asks what is to be searched now.
	Block(ctx context.Context) (Block, error)
	// Submit hands a solution in. It returns an error when no verdict was had: the outcome is unknown.
	Submit(ctx context.Context, nonce, timestamp uint64) (Reply, error)
	// Address names the service for people.
	Address() string
}

// Block is what the web service asks for.
type Block struct {
	Previous pow.Hash
	Bits     int
	Height   uint64 // 0: the service did not say
}

// Reply is the web service's verdict.
type Reply struct {
	Accepted bool
	Detail   string // its words, at most 200 bytes
}

// Observer is told what happens to miners, for watchers. It is called with the coordinator's lock held, in order: it must
// not block, nor call the coordinator.
type Observer interface {
	MinerConnected(name string)
	MinerDisconnected(name, why string)
	// MinerRefused: name is what the miner called itself, perhaps nonsense.
	MinerRefused(name, why string)
	// Heartbeat is called once for each heartbeat that was due to a connected miner: when it is answered, or when the
	// next one is due and it was not.
	Heartbeat(miner string, answered bool)
}

// Message is what crosses a miner's stream. From the miner: HeartbeatReply, AnswerNo, AnswerYes. To the miner:
// HeartbeatRequest, Process, Interrupt, Acknowledgement. The wire's names and meanings: rpc/raftminepb.
type Message interface{ isMessage() }

// HeartbeatRequest is sent when a stream opens, and then each heartbeat.
type HeartbeatRequest struct {
	ClusterID       string
	ServerID        uint64 // of the leader, as are Address and Term
	Address         string
	Term            uint64
	SentUnixMilli   uint64   // wall clock: for people alone
	ServerAddresses []string // of the servers that are up, lowest id first
}

// HeartbeatReply is a miner's report, and must be its first message; one that makes no sense ends the stream with
// ErrMinerRefused. It is the coordinator's from Receive on.
type HeartbeatReply struct {
	Name            string // totals and strikes are kept by it; proven by nothing
	Instance        fsm.ID // of the process: only the same one may take up what a broken stream held
	Threads         int
	Kernel          string
	SoftwareVersion string
	HashRate        float64  // double SHA-256 a second; 0: not yet known
	Hashes          uint64   // since the process started
	Held            []uint64 // grant ids: searched, or answered and not acknowledged
	Wanted          *int     // ProcessRequest: how many ranges to hold; nil: as before
	Leaving         bool     // what it holds returns
}

// AnswerNo says that a grant, or the whole chunks at its head, have no solution.
type AnswerNo struct {
	GrantID, JobID, Timestamp uint64 // as the Process said
	Nonces                    pow.Range
	Receipt                   uint64 // the nonce of the smallest digest in Nonces
}

// AnswerYes is a solution in a grant.
type AnswerYes struct {
	GrantID, JobID, Timestamp uint64 // as the Process said
	Nonce                     uint64
}

// Process is a committed grant. It may be sent more than once, unchanged.
type Process struct {
	GrantID, JobID uint64
	Work           pow.Work
	Nonces         pow.Range
	ChunkSize      uint64 // nonces; partial answers end on a multiple of it, counted from Nonces.First
}

// Interrupt ends searches. An answer that is on its way is acknowledged all the same.
type Interrupt struct {
	JobID    uint64
	Reason   InterruptReason
	GrantIDs []uint64 // these alone, whatever their job; empty: all of the job
}

// InterruptReason is why a search ends.
type InterruptReason uint8

// Reasons of an Interrupt.
const (
	InterruptSolved   InterruptReason = iota + 1 // a solution was committed
	InterruptStale                               // the job is over without one
	InterruptReleased                            // the range was taken back
)

// Acknowledgement says what became of an answer; each answer gets one.
type Acknowledgement struct {
	GrantID  uint64
	Solution bool   // of an AnswerYes
	Nonce    uint64 // the solution's, or the last one of the AnswerNo
	Result   Result
	Message  string // one line for a person; empty for Committed
}

// Result is what became of an answer. Only the first two count for the miner.
type Result uint8

// Results of an answer.
const (
	Committed Result = iota + 1 // on the disks of a majority of the voters
	Duplicate                   // was committed before, or is not needed because others finished the range
	Stale                       // the job, or its timestamp, is over
	Released                    // the range was taken back
	Wrong                       // a strike
)

func (HeartbeatRequest) isMessage() {}
func (HeartbeatReply) isMessage()   {}
func (AnswerNo) isMessage()         {}
func (AnswerYes) isMessage()        {}
func (Process) isMessage()          {}
func (Interrupt) isMessage()        {}
func (Acknowledgement) isMessage()  {}
