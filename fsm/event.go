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

const (
	JobOpened JobStep = iota + 1
	JobRolled
	JobSolved
	JobClosed
)

// BlockSettled: a verdict was logged.
type BlockSettled struct{ Block Block }

func (LeaderChanged) isEvent() {}
func (ServerChanged) isEvent() {}
func (JobChanged) isEvent()    {}
func (BlockSettled) isEvent()  {}
