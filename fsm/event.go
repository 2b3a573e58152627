package fsm

// Result is what applying one entry came to.
type Result struct {
	Outcomes []Outcome // one for each command, in order
	Events   []Event   // what people and watchers want to know
}

// Event is something that happened to the state, derived from it alone.
type Event interface{ isEvent() }

// LeaderChanged: a leader took office.
type LeaderChanged struct{ ServerID, Term uint64 }

// ServerChanged: a server was added, went up or down, or was removed.
type ServerChanged struct {
	Server Server
	Reason string
}

// JobChanged: a job was opened, rolled, solved or closed.
type JobChanged struct {
	Job  Job
	What JobStep
}

// JobStep is one step of a job's life.
type JobStep uint8

// Steps of a job. A job that is rolled may be rolled again; one that is solved is closed by its verdict.
const (
	JobOpened JobStep = iota + 1
	JobRolled         // everything was searched: a new timestamp
	JobSolved         // a solution was committed
	JobClosed         // with a verdict, or as stale
)

// BlockSettled: a verdict was logged.
type BlockSettled struct{ Block Block }

func (LeaderChanged) isEvent() {}
func (ServerChanged) isEvent() {}
func (JobChanged) isEvent()    {}
func (BlockSettled) isEvent()  {}
