package audit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// Report is what Replay found. It does not grow with the length of the history, but with what the state itself keeps and
// with the number of different miners.
type Report struct {
	// Findings are the first of what is wrong, by index; FindingCount is how many there were.
	Findings     []Finding
	FindingCount uint64

	ClusterID string
	Named     Place // where the cluster got its id
	Head      Head
	FirstIndex,
	FromUnixMilli, ToUnixMilli uint64 // earliest and latest, by the leaders' clocks
	Commands, Bytes uint64
	ServerChanges   uint64
	Terms           uint64 // with a leader in office
	Takeovers       uint64 // by another server than before
	Stops           uint64 // planned stops of the whole cluster
	Recoveries      uint64
	Strikes         uint64

	Jobs     uint64
	Verdicts [fsm.VerdictUnknown + 1]uint64 // settled blocks; 0 is not used
	Stale    uint64                         // jobs closed without a solution
	Rolls    uint64
	Ranges   uint64           // finished
	Nonces   uint64           // of them
	Regrants [revoked]Regrant // by reason, see Regrants
	Revoked  uint64           // chunks

	Office  fsm.Office
	Servers []Server
	Miners  []Miner // by name
	OpenJob *Job    // the one that is not over at the end; nil: none
	Strip   Strip
}

// Regrant counts ranges that were pending again and granted anew.
type Regrant struct {
	Reason string
	Ranges uint64
	Chunks uint64
}

// Server is one server at the end of the history.
type Server struct {
	fsm.Server
	WasUp bool // ever
}

// Miner is one miner over the whole history, also when the state forgot it.
type Miner struct {
	Name      string
	Solutions uint64
	Strikes   uint64
	Receipts  Receipts
}

// Holds reports whether nothing was found.
func (r *Report) Holds() bool { return r.FindingCount == 0 }

// First returns the first finding by index, and false when there is none.
func (r *Report) First() (Finding, bool) {
	if len(r.Findings) == 0 {
		return Finding{}, false
	}
	return r.Findings[0], true
}

// Finding is something that does not hold.
type Finding struct {
	Index uint64 // of the record; that of the last one before it when the record has none; 0: it is about no record
	Kind  Kind
	What  string // one line
}

func (f Finding) String() string {
	if f.Index == 0 {
		return fmt.Sprintf("%s: %s", f.Kind, f.What)
	}
	return fmt.Sprintf("record %d: %s: %s", f.Index, f.Kind, f.What)
}

// Error makes a finding an error that wraps ErrBroken.
func (f Finding) Error() string { return f.String() }

// Unwrap makes errors.Is(finding, ErrBroken) hold.
func (f Finding) Unwrap() error { return ErrBroken }

// Kind says which promise a finding breaks. Scripts read it.
type Kind string

const (
	KindSource    Kind = "source"    // the record cannot be read, or the history is cut off
	KindChain     Kind = "chain"     // the record is not the one that was chained
	KindEntry     Kind = "entry"     // the state machine cannot apply it
	KindReadable  Kind = "readable"  // an export says other things than its data
	KindHead      Kind = "head"      // the history is not the one whose head is known
	KindCluster   Kind = "cluster"   // its first record is not the one that opens its cluster
	KindTerm      Kind = "term"      // two leaders in one term, or none that took office
	KindPartition Kind = "partition" // a chunk with two owners, or with none
	KindJob       Kind = "job"       // a job's steps out of order
	KindProof     Kind = "proof"     // a solution or a receipt that does not verify
	KindWork      Kind = "work"      // receipts that say that the work was not done
)

// maxFindings bounds what a report lists.
const maxFindings = 100

func (r *Report) find(f Finding) {
	r.FindingCount++
	at, _ := slices.BinarySearchFunc(r.Findings, f, func(a, b Finding) int {
		if a.Index <= b.Index { // behind those of the same index
			return -1
		}
		return 1
	})
	if at < maxFindings {
		r.Findings = slices.Insert(r.Findings, at, f)
		r.Findings = r.Findings[:min(len(r.Findings), maxFindings)]
	}
}

// Job is the story of one job.
type Job struct {
	ID, Height uint64
	Previous   pow.Hash
	Bits       int
	Nonces     pow.Range
	ChunkSize  uint64
	Timestamp  uint64 // of the last round
	Rounds     uint32
	Opened     Place
	Rolled     Place // the last roll; zero: never

	// How it ended. Exactly one of Settled and Closed is set, none when the history ends before.
	Solution    *Solution
	Submissions uint32
	Submitted   Place // the first intent; zero: none
	Verdict     fsm.Verdict
	Detail      string // of the verdict, or the reason for which it was closed
	Settled     Place
	Closed      Place

	Chunks   uint64   // in a round
	Below    Coverage // of the chunks below the solution's, at that moment
	Searched Coverage // of all chunks of the last round, when the job was solved or closed
	Ranges   uint64   // finished, over all rounds
	Hashes   uint64   // nonces of them, and the solution's range up to its nonce; see Interrupted
	// Interrupted is how many grants were not finished when the job was over or they were taken back, without the
	// solution's own. What was hashed of them is not known, and not in Hashes.
	Interrupted uint64
	Regrants    [revoked]Regrant
	Revoked     uint64  // chunks
	Shares      []Share // by miner
	shares      []*Share
}

// Solution is where and by whom a job was solved.
type Solution struct {
	Miner   string
	Nonce   uint64
	Hash    pow.Hash
	GrantID uint64
	Nonces  pow.Range // of the grant when it was made
	Left    pow.Range // what was left of the grant
	Granted Place
	At      Place
}

// Share is what one miner did for one job.
type Share struct {
	Miner           string
	Ranges, Nonces  uint64
	FirstUnixMilli  uint64 // first grant
	LastUnixMilli   uint64 // last answer
	GrantsTakenBack uint64
}

// Start returns when the search began, and End when the job was solved or closed; Unix milliseconds, 0: not yet.
func (j *Job) Start() uint64 { return j.Opened.UnixMilli }

// End is described with Start.
func (j *Job) End() uint64 {
	if j.Solution != nil {
		return j.Solution.At.UnixMilli
	}
	return j.Closed.UnixMilli
}

// told fills Shares.
func (j *Job) told() *Job {
	j.Shares = j.Shares[:0]
	for _, row := range j.shares {
		j.Shares = append(j.Shares, *row)
	}
	slices.SortFunc(j.Shares, func(a, b Share) int { return cmp.Compare(a.Miner, b.Miner) })
	return j
}

// Event is something that Options.Visit is told, in the order of the history.
type Event interface{ isEvent() }

// TookOffice: a leader began its term. Before is the leader of the term before, 0 when there was none.
type TookOffice struct {
	ServerID, Term, Before uint64
	Silent                 uint64 // milliseconds since the last record of another term, by the leaders' clocks
	At                     Place
}

// ServerChanged: a server was added, went up or down, or was removed.
type ServerChanged struct {
	Server fsm.Server
	Reason string
	At     Place
}

// ClusterEvent: a planned stop or a recovery.
type ClusterEvent struct {
	What string
	At   Place
}

// Regranted: chunks that were pending again found another miner, or the same one.
type Regranted struct {
	JobID    uint64
	Nonces   pow.Range
	From, To string // miners
	Reason   string
	At       Place
}

// Revoked: finished chunks became pending again.
type Revoked struct {
	JobID  uint64
	Miner  string
	Ranges []pow.Range
	Chunks uint64
	Reason string
	At     Place
}

// Struck: a wrong answer was counted.
type Struck struct {
	Miner, Reason string
	At            Place
}

// JobEnded: a job was settled or closed. The Job is the visitor's own.
type JobEnded struct{ Job *Job }

// Found: something does not hold.
type Found struct{ Finding Finding }

func (TookOffice) isEvent()    {}
func (ServerChanged) isEvent() {}
func (ClusterEvent) isEvent()  {}
func (Regranted) isEvent()     {}
func (Revoked) isEvent()       {}
func (Struck) isEvent()        {}
func (JobEnded) isEvent()      {}
func (Found) isEvent()         {}

// Searched is one finished range.
type Searched struct {
	JobID    uint64
	Round    uint32
	GrantID  uint64
	Miner    string
	Work     pow.Work
	Nonces   pow.Range
	Receipt  uint64
	Digest   pow.Hash // of the receipt
	Excess   float64  // see Excess
	Granted  Place
	Finished Place
}

// Why a grant was interrupted, beside the reasons of a fsm.Release.
const (
	InterruptedBySolution = "solution" // its own
	InterruptedSolved     = "solved"   // by another grant
	InterruptedClosed     = "closed"   // the job, without a solution
)

// Interrupted is a grant that was not finished.
type Interrupted struct {
	JobID   uint64
	Round   uint32
	GrantID uint64
	Miner   string
	Nonces  pow.Range // what was left of it; nobody knows how much of that was hashed, but up to the solution of its own
	Reason  string
	Granted Place
	At      Place
}

// sortedMiners returns the rows by name.
func sortedMiners(rows map[string]*minerRow) []Miner {
	miners := make([]Miner, 0, len(rows))
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		miners = append(miners, rows[name].Miner)
	}
	return miners
}
