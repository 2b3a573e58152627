package coordinator

import (
	"fmt"
	"slices"
	"testing/synctest"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// testMiner is a miner that does what the test says.
type testMiner struct {
	r        *rig
	name     string
	instance fsm.ID
	s        *Session

	held       []Process // as a real miner would hold them
	received   []Message // all but heartbeats
	acks       []Acknowledgement
	interrupts []Interrupt
	beats      []HeartbeatRequest
	over       bool // Outgoing is closed
}

// miner connects a miner that wants so many ranges.
func (r *rig) miner(name string, wanted int) *testMiner {
	r.t.Helper()
	m := &testMiner{r: r, name: name, instance: fsm.ID([]byte(fmt.Sprintf("%-16.16s", name)))}
	if err := m.connect(wanted); err != nil {
		r.t.Fatalf("connect %s: %v", name, err)
	}
	return m
}

func (m *testMiner) heldIDs() (ids []uint64) {
	for _, p := range m.held {
		ids = append(ids, p.GrantID)
	}
	return ids
}

func (m *testMiner) hello(wanted int) HeartbeatReply {
	return HeartbeatReply{Name: m.name, Instance: m.instance, Threads: 1, Kernel: "test", Held: m.heldIDs(), Wanted: &wanted}
}

// connect opens a stream and introduces the miner.
func (m *testMiner) connect(wanted int) error {
	m.r.t.Helper()
	return m.connectAs(m.hello(wanted))
}

func (m *testMiner) connectAs(reply HeartbeatReply) error {
	m.r.t.Helper()
	s, err := m.r.c.Open()
	if err != nil {
		return err
	}
	m.s, m.over = s, false
	first := <-s.Outgoing()
	if _, ok := first.(HeartbeatRequest); !ok {
		m.r.t.Fatalf("first message is %T, want HeartbeatRequest", first)
	}
	err = s.Receive(m.r.t.Context(), reply)
	m.pump()
	return err
}

// pump reads what has arrived, as a real miner takes it.
func (m *testMiner) pump() {
	synctest.Wait()
	for {
		select {
		case message, ok := <-m.s.Outgoing():
			if !ok {
				m.over = true
				return
			}
			m.take(message)
		default:
			return
		}
	}
}

func (m *testMiner) take(message Message) {
	switch message := message.(type) {
	case HeartbeatRequest:
		m.beats = append(m.beats, message)
		return
	case Process:
		if !slices.ContainsFunc(m.held, func(p Process) bool { return p.GrantID == message.GrantID }) {
			m.held = append(m.held, message)
		}
	case Interrupt:
		m.interrupts = append(m.interrupts, message)
		m.held = slices.DeleteFunc(m.held, func(p Process) bool {
			if len(message.GrantIDs) > 0 {
				return slices.Contains(message.GrantIDs, p.GrantID)
			}
			return p.JobID == message.JobID
		})
	case Acknowledgement:
		m.acks = append(m.acks, message)
	}
	m.received = append(m.received, message)
}

// stayFor lets d pass while the miners answer heartbeats.
func stayFor(d time.Duration, miners ...*testMiner) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(time.Second, time.Until(end)))
		for _, m := range miners {
			m.pump()
			for range m.beats {
				if !m.over {
					_ = m.s.Receive(m.r.t.Context(), HeartbeatReply{Name: m.name, Instance: m.instance, Threads: 1, Held: m.heldIDs()})
				}
			}
			m.beats = nil
			m.pump()
		}
	}
}

// lastAck returns the newest acknowledgement.
func (m *testMiner) lastAck() Acknowledgement {
	m.r.t.Helper()
	if len(m.acks) == 0 {
		m.r.t.Fatalf("%s has no acknowledgement", m.name)
	}
	return m.acks[len(m.acks)-1]
}

// no answers that p holds no solution.
func (m *testMiner) no(p Process) error {
	m.held = slices.DeleteFunc(m.held, func(h Process) bool { return h.GrantID == p.GrantID })
	err := m.s.Receive(m.r.t.Context(), honest(p))
	m.pump()
	return err
}

func (m *testMiner) yes(p Process, nonce uint64) error {
	m.held = slices.DeleteFunc(m.held, func(h Process) bool { return h.GrantID == p.GrantID })
	err := m.s.Receive(m.r.t.Context(), answerYes(p, nonce))
	m.pump()
	return err
}

// honest is the AnswerNo of a miner that searched p.
func honest(p Process) AnswerNo {
	best, _ := search(p)
	return answerNo(p, best)
}

func answerNo(p Process, receipt uint64) AnswerNo {
	return AnswerNo{
		GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonces: p.Nonces, Receipt: receipt,
	}
}

func answerYes(p Process, nonce uint64) AnswerYes {
	return AnswerYes{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonce: nonce}
}

// search returns the nonce of the smallest digest, and whether it is a solution.
func search(p Process) (best uint64, solution bool) {
	var smallest pow.Hash
	for nonce := p.Nonces.First; nonce <= p.Nonces.Last; nonce++ {
		if digest := p.Work.Digest(nonce); best == 0 || digest.Compare(smallest) < 0 {
			best, smallest = nonce, digest
		}
	}
	return best, smallest.LeadingZeroBits() >= p.Work.Bits
}

func (m *testMiner) process() Process {
	m.r.t.Helper()
	if len(m.held) == 0 {
		m.r.t.Fatalf("%s holds nothing", m.name)
	}
	return m.held[0]
}
