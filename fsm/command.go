package fsm

import "raftmine/fsm/pow"

// Entry is one Raft log entry: commands that are applied in order, in one step. Raft tells the state machine neither
// its leaders nor the time, so the entry does.
type Entry struct {
	LeaderID  uint64 // the server that proposed it
	UnixMilli uint64 // the leader's wall clock: for people and audits, never compared
	Version   string // the leader's software version
	Commands  []Command
}

// Command is one change of the state. Every command is idempotent: applied again it changes nothing and its outcome
// says so. A command that lost a race is an Outcome, not an error.
type Command interface{ isCommand() }

// OpenCluster names the cluster. It is the first command of a history.
type OpenCluster struct{ ClusterID string }

// AddServer gives a new server the next id. RequestID, made once by that server, makes it idempotent.
type AddServer struct {
	RequestID ID
	Address   string // host:port
	DataDir   string // absolute path
	Host      Host
}

// UpdateServer records where a known server is now.
type UpdateServer struct {
	ServerID uint64
	Address  string
	DataDir  string
	Host     Host
}

// ReadmitServer makes a removed server a member again, under its own id.
type ReadmitServer struct{ ServerID uint64 }

// RemoveServer ends a server's membership. Its record and id are kept, and it is down.
type RemoveServer struct {
	ServerID uint64
	Reason   string
}

// ServerUp marks a member as up.
type ServerUp struct{ ServerID uint64 }

// ServerDown marks a server as down.
type ServerDown struct {
	ServerID uint64
	Reason   string
}

// TakeOffice is the first command of each term. The term is the entry's own.
type TakeOffice struct{ ServerID uint64 }

// OpenJob starts the search for the block at Height. It is refused while another job is not closed.
type OpenJob struct {
	Height    uint64 // above the last accepted height
	Previous  pow.Hash
	Bits      int
	Timestamp uint64 // Unix milliseconds
	Nonces    pow.Range
	ChunkSize uint64 // nonces
}

// GrantWork grants a miner a run of at most Chunks chunks. Which ones is decided in Apply: the lowest returned run first,
// else the next ones never granted. RequestID makes it idempotent: a miner's request ids grow, so that none is answered
// twice, and asking again with the last one gets the same grant.
type GrantWork struct {
	JobID     uint64
	Miner     string
	Instance  ID // of the miner's process
	RequestID uint64
	Chunks    uint64
}

// Finish says that Nonces, the head of what is left of a grant, holds no solution. It must end on a chunk boundary.
type Finish struct {
	JobID     uint64
	GrantID   uint64
	Miner     string
	Timestamp uint64 // that was searched with
	Nonces    pow.Range
	Receipt   uint64 // the nonce of the smallest digest in Nonces
}

// Solve carries a solution. Its proof is checked in Apply.
type Solve struct {
	JobID     uint64
	GrantID   uint64
	Miner     string
	Timestamp uint64
	Nonce     uint64
}

// Release returns what is left of a miner's grants.
type Release struct {
	Miner    string
	GrantIDs []uint64 // empty: all of them
	Reason   ReleaseReason
	Forget   bool // also forget the miner; its totals are kept in sum
}

// Strike counts a wrong answer against a miner. With MaxStrikes it is granted no more work.
type Strike struct {
	Miner  string
	Reason string
}

// Roll starts the next round of a job whose range is finished without a solution. Round is the new round, Timestamp
// is larger than the job's.
type Roll struct {
	JobID     uint64
	Round     uint32
	Timestamp uint64
}

// Submitting is the intent to submit a job's solution: it is logged before the web service is called.
type Submitting struct{ JobID uint64 }

// Submitted logs the verdict and closes the job.
type Submitted struct {
	JobID   uint64
	Verdict Verdict
	Detail  string // what the web service said
}

// CloseJob closes an open job that has no solution.
type CloseJob struct {
	JobID  uint64
	Reason string
}

// Revoke makes finished chunks pending again, because the miner that answered for them is not believed.
type Revoke struct {
	JobID  uint64
	Round  uint32
	Miner  string
	Ranges []pow.Range // whole chunks, all finished
	Reason string
}

// ClusterStop says that all servers are about to be stopped on purpose: after it nobody shrinks the group or recovers,
// until the next TakeOffice.
type ClusterStop struct{ Reason string }

// Recover is the first command after a survivor went on alone.
type Recover struct {
	RecoveryID ID
	Survivor   uint64
	Index      uint64 // last entry of the log that was recovered
	Term       uint64
	Head       pow.Hash // of the history at Index
}

func (OpenCluster) isCommand()   {}
func (AddServer) isCommand()     {}
func (UpdateServer) isCommand()  {}
func (ReadmitServer) isCommand() {}
func (RemoveServer) isCommand()  {}
func (ServerUp) isCommand()      {}
func (ServerDown) isCommand()    {}
func (TakeOffice) isCommand()    {}
func (OpenJob) isCommand()       {}
func (GrantWork) isCommand()     {}
func (Finish) isCommand()        {}
func (Solve) isCommand()         {}
func (Release) isCommand()       {}
func (Strike) isCommand()        {}
func (Roll) isCommand()          {}
func (Submitting) isCommand()    {}
func (Submitted) isCommand()     {}
func (CloseJob) isCommand()      {}
func (Revoke) isCommand()        {}
func (ClusterStop) isCommand()   {}
func (Recover) isCommand()       {}

// Outcome is what a command came to.
type Outcome struct {
	Code     Code
	Detail   string // one line for a person; empty for Done and Duplicate
	ServerID uint64 // AddServer
	JobID    uint64 // OpenJob
	Grant    Grant  // GrantWork
}

// Code says how a command ended. All but Done left the state as it was.
type Code uint8

const (
	// Done: the state changed as asked.
	Done Code = iota + 1
	// Duplicate: it had been done before; the outcome carries the same result.
	Duplicate
	// NoWork: nothing is pending (GrantWork).
	NoWork
	// Stale: the job, its round or its timestamp is over.
	Stale
	// Released: the range was taken back and belongs to another miner, or to none (Finish, Solve).
	Released
	// Wrong: the command is false in itself: a proof that does not hold, a receipt or nonce outside its range, a
	// grant that never was.
	Wrong
	// Refused: not allowed in this state: the job is not in that phase, the miner has MaxStrikes, the server is unknown.
	Refused
)

// ReleaseReason says why ranges were returned.
type ReleaseReason uint8

const (
	ReleaseSilent    ReleaseReason = iota + 1 // no heartbeat for three intervals
	ReleaseLeft                               // the miner said that it stops
	ReleaseRestarted                          // the same name came back as another process
	ReleaseRefused                            // too many wrong answers
)

// Verdict is what came of a submitted solution.
type Verdict uint8

const (
	VerdictSuccess Verdict = iota + 1
	VerdictWrong           // the web service refused it and still asks for the same block
	VerdictStale           // the web service refused it and asks for another block by now
	VerdictUnknown         // submitted, but no answer could be had or inferred; never submitted again
)
