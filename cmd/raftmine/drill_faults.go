package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"sync"
	"syscall"
	"time"

	"raftmine/rpc"
)

// errAnswersRefused: a simulated miner was told that its answer is wrong. It gives none that is.
var errAnswersRefused = errors.New("right answers are refused")

// drillPatience is how long the cluster may take to become healthy again after a fault. Far more than it needs: a slow
// machine breaks no promise.
const drillPatience = 2 * time.Minute

// fault is one planned fault. Who the leader is at its time, the plan does not know.
type fault struct {
	number int
	role   string // leader, follower or miner
	which  int    // of the followers or miners, modulo their number
	kind   string // kill, pause or stop
	moment moment // of a leader's fault
	after  time.Duration
	pause  time.Duration // how long the process is paused
	down   time.Duration // how long the cluster goes on without the process before it is started again
}

// planFault returns fault number n of a seed. Each one is drawn by itself, so that a longer drill begins like a shorter one.
func planFault(seed uint64, n int, miners int, heartbeat time.Duration) fault {
	random := rand.New(rand.NewPCG(seed, uint64(n)))
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(random.Int64N(int64(most-least)+1))
	}
	f := fault{number: n, which: random.IntN(1 << 16)}
	switch role := random.IntN(100); {
	case role < 55 || miners == 0 && role < 75:
		f.role = "leader"
	case role < 75 || miners == 0:
		f.role = "follower"
	default:
		f.role = "miner"
	}
	f.kind = []string{"kill", "kill", "pause", "stop"}[random.IntN(4)]
	at := random.IntN(5)
	if f.role == "leader" && f.kind != "stop" {
		f.moment = []moment{anyMoment, anyMoment, anyMoment, unjudged, judged}[at]
	}
	f.after = between(100*time.Millisecond, 900*time.Millisecond)
	f.down = between(0, heartbeat)
	switch length := random.IntN(5); { // shorter than Raft's timeouts, around them, longer than a lease
	case length < 2:
		f.pause = between(20*time.Millisecond, 250*time.Millisecond)
	case length < 4:
		f.pause = between(250*time.Millisecond, 2*time.Second)
	default:
		f.pause = between(3*heartbeat, 4*heartbeat)
	}
	return f
}

// survived is a fault that is over. JSON names are for scripts.
type survived struct {
	Event  string `json:"event"` // fault, when it is over; fault_report, once the logs were read
	Fault  int    `json:"fault"`
	Kind   string `json:"kind"`
	Role   string `json:"role"`
	Victim string `json:"victim"`
	Moment moment `json:"moment,omitempty"`
	UnixMS int64  `json:"struck_unix_ms"`
	// PauseMS is how long the process was paused; 0: it was not.
	PauseMS float64 `json:"pause_ms,omitempty"`
	// NoLeaderMS is the time without a granting leader from the fault on, ReturnMS the longest one while the process
	// returned. HealthyMS is from its return until all is as before. Where the fault was not the leader's, and leadership did
	// not move, there was no such time: then NextAnswerMS is from the fault until the next answer was acknowledged.
	NoLeaderMS   float64 `json:"no_leader_ms"`
	ReturnMS     float64 `json:"return_ms"`
	HealthyMS    float64 `json:"healthy_ms"`
	NextAnswerMS float64 `json:"next_answer_ms,omitempty"`
	*faultCounts

	from, returned, until time.Time
}

// faultCounts is what the logs say of the time from one fault to the next.
type faultCounts struct {
	InFlight        int     `json:"ranges_in_flight"`      // granted when it struck
	Regranted       uint64  `json:"chunks_regranted"`      // granted to another, or again
	SearchedTwice   uint64  `json:"chunks_searched_twice"` // answered for after they had been taken back
	Lost            int     `json:"answers_lost"`          // acknowledged, and not in the state
	RepeatedSubmits int     `json:"repeated_submits"`
	IdleMS          float64 `json:"idle_ms"`           // of the search thread that was idle longest, all in all
	IdleWithWorkMS  float64 `json:"idle_with_work_ms"` // the longest time that a thread did nothing while it held a range
}

func (s survived) String() string {
	what := map[string]string{"kill": "killed", "pause": "paused", "stop": "stopped"}[s.Kind]
	line := fmt.Sprintf("fault %-4d %s %s", s.Fault, s.Victim, what)
	if s.Role == "leader" {
		line += " (leader)"
	}
	if s.PauseMS > 0 {
		line += fmt.Sprintf(" for %.0f ms", s.PauseMS)
	}
	switch s.Moment {
	case unjudged:
		line += " while it submitted"
	case judged:
		line += " before it had the verdict"
	}
	if s.NextAnswerMS > 0 {
		line += fmt.Sprintf(": the leader stayed, the next answer was acknowledged after %.0f ms", s.NextAnswerMS)
	} else {
		line += fmt.Sprintf(": %.0f ms without a granting leader", s.NoLeaderMS)
	}
	if s.ReturnMS > 0 {
		line += fmt.Sprintf(", %.0f ms when it returned", s.ReturnMS)
	}
	return line + fmt.Sprintf("; healthy after %.1f s", s.HealthyMS/1000)
}

// surviveAll does the faults one after the other, until ctx ends.
func (d *drill) surviveAll(ctx context.Context) (all []survived, err error) {
	for n := 1; n <= d.o.faults && ctx.Err() == nil; n++ {
		f := planFault(d.o.seed, n, d.o.miners, d.o.serverFlags.heartbeat)
		s, err := d.survive(ctx, f)
		if errors.Is(err, errAnswersRefused) {
			break // the judge says the rest
		}
		if err != nil {
			return nil, fmt.Errorf("fault %d, %s of the %s: %w", n, f.kind, f.role, err)
		}
		if s == nil {
			break // interrupted before it struck
		}
		all = append(all, *s)
		d.out.print(*s, "%s", *s)
	}
	return all, nil
}

// victim returns the name of the process that f means now, and for a server its id.
func (d *drill) victim(f fault) (name string, server int) {
	switch f.role {
	case "leader":
		return serverName(int(d.leader)), int(d.leader)
	case "miner":
		return minerName(1 + f.which%d.o.miners), 0
	}
	id := 1 + f.which%(d.o.servers-1)
	if id >= int(d.leader) {
		id++
	}
	return serverName(id), id
}

// survive does one fault and waits until the cluster is healthy again. An interrupted one is brought to its end.
func (d *drill) survive(ctx context.Context, f fault) (*survived, error) {
	wait(ctx, f.after)
	release := func() {}
	if f.moment != anyMoment {
		var reached <-chan struct{}
		reached, release = d.service.await(f.moment)
		select {
		case <-reached:
		case <-ctx.Done():
		case <-time.After(d.o.momentPatience()):
			f.moment = anyMoment // no block fell in time: strike now
		}
	}
	if ctx.Err() != nil {
		release()
		return nil, nil
	}
	ctx = context.WithoutCancel(ctx)
	if err := d.checkAlive(""); err != nil {
		release()
		return nil, err
	}
	name, id := d.victim(f)
	process := d.process(name)
	s := &survived{Event: "fault", Fault: f.number, Kind: f.kind, Role: f.role, Victim: name, Moment: f.moment, from: time.Now()}
	s.UnixMS = s.from.UnixMilli()
	err := d.strike(ctx, f, process, release)
	if err == nil && f.kind != "pause" {
		err = d.awaitTakeover(ctx, name, s.from)
		if errors.Is(err, errAnswersRefused) {
			err = nil // found again below, when the process is back
		}
		wait(ctx, f.down)
	}
	s.returned = time.Now()
	switch {
	case f.kind == "pause":
		s.PauseMS = milliseconds(s.returned.Sub(s.from))
		err = errors.Join(err, process.cmd.Process.Signal(syscall.SIGCONT))
	case err != nil:
	case id > 0:
		err = d.startServer(ctx, id)
	default:
		err = d.startMiner(ctx, 1+f.which%d.o.miners)
	}
	if err == nil {
		err = d.awaitHealthy(ctx, s.returned)
	}
	if err != nil {
		return nil, err
	}
	s.until = time.Now()
	s.HealthyMS = milliseconds(s.until.Sub(s.returned))
	s.measure(d.probe.trace(s.from, s.until))
	return s, nil
}

// measure takes the times out of the trace of a client that always has one answer on its way.
func (s *survived) measure(trace []mark) {
	moved := slices.ContainsFunc(trace, func(m mark) bool { return m.term != trace[0].term })
	if s.Role != "leader" && !moved {
		if next, ok := nextAnswer(trace, s.from); ok {
			s.NextAnswerMS = milliseconds(next.Sub(s.from))
		}
		return
	}
	without, again := outage(trace, s.from, s.returned)
	s.NoLeaderMS = milliseconds(without)
	if again.Before(s.returned) {
		again = s.returned
	}
	without, _ = outage(trace, again, s.until)
	s.ReturnMS = milliseconds(without)
}

// nextAnswer returns when the first answer that was sent after from was acknowledged.
func nextAnswer(trace []mark, from time.Time) (at time.Time, ok bool) {
	i := slices.IndexFunc(trace, func(m mark) bool { return !m.sent.Before(from) })
	if i < 0 {
		return time.Time{}, false
	}
	return trace[i].at, true
}

// momentPatience is how long a fault that strikes during a submission waits for one.
func (o *drillOptions) momentPatience() time.Duration { return max(5*o.blockTime, 5*time.Second) }

// strike does the fault itself. A submission that was held goes on when the process is dead or paused; one that is told to
// stop gets its answer.
func (d *drill) strike(ctx context.Context, f fault, process *child, release func()) error {
	defer release()
	switch f.kind {
	case "kill":
		if err := process.cmd.Process.Kill(); err != nil {
			return err
		}
		<-process.exited
	case "stop":
		process.stop(drillPatience)
		if process.waitErr != nil {
			return fmt.Errorf("it did not end in order: %w: see %s", process.waitErr, process.log)
		}
	default:
		if err := process.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		wait(ctx, f.pause)
	}
	return nil
}

// checkAlive finds a process that died although nobody asked for it.
func (d *drill) checkAlive(except string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, process := range d.children {
		if name == except || process.alive() {
			continue
		}
		said := process.lastError()
		if said == "" {
			said = describeExit(process.waitErr)
		}
		return fmt.Errorf("%s ended by itself: %s: see %s", name, said, process.log)
	}
	return nil
}

// awaitTakeover waits until the others work without the victim: the lowest of the servers that live leads, and answers
// are committed.
func (d *drill) awaitTakeover(ctx context.Context, victim string, since time.Time) error {
	return d.awaitView(ctx, victim, since, "did not go on without "+victim, func([]rpc.Status) string { return "" })
}

// awaitHealthy waits until every process works: all servers are up and vote, all see the lowest id lead, and every miner
// is connected.
func (d *drill) awaitHealthy(ctx context.Context, since time.Time) error {
	return d.awaitView(ctx, "", since, "did not become healthy again", func(views []rpc.Status) string {
		for _, view := range views {
			for _, server := range view.Servers {
				if !server.Up || !server.Voter || !server.Member {
					return fmt.Sprintf("server %d is not an up voter in the table of server %d", server.ID, view.ServerID)
				}
			}
			if len(view.Servers) != d.o.servers {
				return fmt.Sprintf("server %d knows %d servers", view.ServerID, len(view.Servers))
			}
			if view.Coordinator == nil {
				continue
			}
			connected := 0
			for _, m := range view.Miners {
				if m.Connected {
					connected++
				}
			}
			if want := d.o.miners + len(d.clients); connected != want {
				return fmt.Sprintf("%d of %d miners are connected", connected, want)
			}
		}
		return ""
	})
}

// awaitView waits until the living servers agree that the lowest of them leads, the probe has an answer acknowledged that
// it sent after since, and check says "".
func (d *drill) awaitView(ctx context.Context, victim string, since time.Time, complaint string, check func([]rpc.Status) string) error {
	deadline := time.Now().Add(drillPatience)
	for {
		if err := d.checkAlive(victim); err != nil {
			return err
		}
		if len(d.book.wrong()) > 0 {
			return errAnswersRefused
		}
		views, problem := d.views(ctx, victim)
		if problem == "" {
			if problem = check(views); problem == "" {
				if d.probe.lastAcked().sent.After(since) {
					d.leader = views[0].LeaderID
					return nil
				}
				problem = "no answer of the simulated miner that measures was committed"
			}
		}
		wait(ctx, 10*time.Millisecond)
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the cluster %s within %s: %s", complaint, drillPatience, problem)
		}
	}
}

// views asks all servers but the victim, and checks that they agree on the leader: the lowest of them.
func (d *drill) views(ctx context.Context, victim string) (views []rpc.Status, problem string) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var ids []int
	for id := 1; id <= d.o.servers; id++ {
		if serverName(id) != victim {
			ids = append(ids, id)
		}
	}
	views = make([]rpc.Status, len(ids))
	errs := make([]error, len(ids))
	var asked sync.WaitGroup
	for i, id := range ids {
		asked.Go(func() { views[i], errs[i] = d.client.Status(ctx, d.server(id).started.Address) })
	}
	asked.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err.Error()
	}
	leads := false
	for _, view := range views {
		lowest := uint64(ids[0])
		if view.LeaderID != lowest || view.ComputedLeaderID != lowest {
			return nil, fmt.Sprintf("server %d sees server %d lead, and by its table it should be %d; want %d",
				view.ServerID, view.LeaderID, view.ComputedLeaderID, lowest)
		}
		leads = leads || view.ServerID == lowest && view.Coordinator != nil
	}
	if !leads {
		return nil, fmt.Sprintf("server %d does not serve miners yet", ids[0])
	}
	return views, ""
}

// mark is one acknowledgement as the measuring client saw it.
type mark struct {
	sent, at time.Time
	term     uint64
}

// trace returns the client's acknowledgements from the last one before from to the first one after until.
func (c *drillClient) trace(from, until time.Time) []mark {
	var marks []mark
	for _, a := range c.book.all() {
		if a.client == c.name {
			marks = append(marks, mark{a.sent, a.at, a.term})
		}
	}
	first := sort.Search(len(marks), func(i int) bool { return !marks[i].at.Before(from) })
	last := sort.Search(len(marks), func(i int) bool { return marks[i].at.After(until) })
	return slices.Clone(marks[max(0, first-1):min(len(marks), last+1)])
}

// outage returns the longest time without a leader that commits, and when it ended, in a trace of a client that always has
// one answer on its way. It is the longest of the time from from until the first answer that was sent after it is
// acknowledged, and the times between two acknowledgements of different terms that begin before until. Waiting that a
// change of the job causes does not count, unless the leader changes meanwhile.
func outage(trace []mark, from, until time.Time) (longest time.Duration, end time.Time) {
	count := func(begin, at time.Time) {
		if begin.Before(from) {
			begin = from
		}
		if at.Sub(begin) > longest {
			longest, end = at.Sub(begin), at
		}
	}
	if at, ok := nextAnswer(trace, from); ok {
		count(from, at)
	}
	for i := 1; i < len(trace); i++ {
		before, after := trace[i-1], trace[i]
		if before.term != after.term && before.at.Before(until) && after.at.After(from) {
			count(before.at, after.at)
		}
	}
	return longest, end
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}
