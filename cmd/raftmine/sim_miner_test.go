package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
	"raftmine/raftnode/coordinator"
)

// simMiner is a miner process that can be killed. It searches for real, and takes its time for it.
type simMiner struct {
	sim      *sim
	name     string
	perChunk time.Duration
	liar     bool
	dice     *rand.Rand // of the miner's goroutine alone
	lives    byte

	mu   sync.Mutex
	kill context.CancelFunc // nil: it is dead
	done chan struct{}

	// Of the running process.
	instance fsm.ID
	held     []coordinator.Process
	kept     []coordinator.Message // answers without an acknowledgement
	wronged  int                   // lies that were found out
}

func (m *simMiner) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kill != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	before := m.done
	m.kill, m.done = cancel, make(chan struct{})
	done := m.done
	go func() {
		defer close(done)
		if before != nil { // one process after the other
			<-before
		}
		m.lives++
		m.held, m.kept = nil, nil
		m.instance = fsm.ID{m.name[1], m.lives}
		m.run(ctx)
	}()
}

func (m *simMiner) stop() {
	m.mu.Lock()
	kill, done := m.kill, m.done
	m.kill = nil
	m.mu.Unlock()
	if kill != nil {
		kill()
		<-done
	}
}

// run looks for the leader again and again.
func (m *simMiner) run(ctx context.Context) {
	for ctx.Err() == nil {
		for _, i := range m.dice.Perm(len(m.sim.servers)) {
			if stream := m.connect(ctx, m.sim.servers[i]); stream != nil {
				m.session(ctx, stream)
				stream.end()
			}
		}
		wait(ctx, time.Duration(m.dice.IntN(400)+100)*time.Millisecond)
	}
}

// simStream is a mining stream.
type simStream struct {
	up, down *simQueue[coordinator.Message]
}

func (s *simStream) end() {
	s.up.end(false)
	s.down.end(true)
}

// connect opens a stream to a server that leads; nil: it could not.
func (m *simMiner) connect(ctx context.Context, s *simServer) *simStream {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if m.sim.net.travel(ctx, m.name, s.name) != nil || m.sim.net.travel(ctx, s.name, m.name) != nil {
		return nil
	}
	p := s.running()
	if p == nil {
		return nil
	}
	c := p.leading.Load()
	if c == nil {
		return nil
	}
	session, err := c.Open()
	if err != nil {
		return nil
	}
	stream := &simStream{
		up:   newSimQueue[coordinator.Message](m.sim.net, m.name, s.name),
		down: newSimQueue[coordinator.Message](m.sim.net, s.name, m.name),
	}
	p.work.Go(func() { p.serveMiner(session, stream) })
	return stream
}

// serveMiner is what rpc does with a stream.
func (p *simProcess) serveMiner(session *coordinator.Session, stream *simStream) {
	var both sync.WaitGroup
	both.Go(func() {
		for {
			message, err := stream.up.pop(p.life.Done())
			if err != nil || session.Receive(p.life, message) != nil {
				session.Close()
				return
			}
		}
	})
	both.Go(func() {
		for message := range session.Outgoing() {
			if p.dead() || stream.down.push(message) != nil {
				break
			}
		}
		session.Close()
		stream.down.end(p.dead())
		stream.up.end(true) // ends the receiver
	})
	both.Wait()
}

// simReceived is what a miner's reader hands on.
type simReceived struct {
	message coordinator.Message
	err     error
}

func (m *simMiner) session(ctx context.Context, stream *simStream) {
	incoming := make(chan simReceived)
	reading, stopReading := context.WithCancel(ctx)
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			message, err := stream.down.pop(reading.Done())
			select {
			case incoming <- simReceived{message, err}:
			case <-reading.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	defer reader.Wait()
	defer stopReading()

	introduced := false
	silent := time.NewTimer(4 * simHeartbeat) // the real one notices by its own pings
	defer silent.Stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var working *coordinator.Process
	for {
		if working == nil && len(m.held) > 0 && introduced {
			p := m.held[0]
			working = &p
			timer.Reset(time.Duration(p.Nonces.Len()/p.ChunkSize) * m.perChunk)
		}
		select {
		case <-ctx.Done():
			return
		case <-silent.C:
			return
		case got := <-incoming:
			if got.err != nil {
				return
			}
			switch message := got.message.(type) {
			case coordinator.HeartbeatRequest:
				silent.Reset(4 * simHeartbeat)
				if stream.up.push(m.report()) != nil {
					return
				}
				if !introduced {
					introduced = true
					for _, answer := range m.kept {
						if stream.up.push(answer) != nil {
							return
						}
					}
				}
			case coordinator.Process:
				if !slices.Contains(m.ids(), message.GrantID) {
					m.held = append(m.held, message)
				}
			case coordinator.Interrupt:
				m.held = slices.DeleteFunc(m.held, func(p coordinator.Process) bool {
					return slices.Contains(message.GrantIDs, p.GrantID) || len(message.GrantIDs) == 0 && p.JobID == message.JobID
				})
				if working != nil && !slices.Contains(m.held, *working) {
					working = nil
				}
			case coordinator.Acknowledgement:
				m.acknowledged(message)
			}
		case <-timer.C:
			if working == nil {
				continue
			}
			// A paused process does not compute.
			if m.sim.net.running(ctx, m.name) != nil {
				return
			}
			p := *working
			working = nil
			m.held = slices.DeleteFunc(m.held, func(h coordinator.Process) bool { return h.GrantID == p.GrantID })
			answer := m.answer(p)
			m.kept = append(m.kept, answer)
			if stream.up.push(answer) != nil {
				return
			}
		}
	}
}

func (m *simMiner) report() coordinator.HeartbeatReply {
	wanted := 2
	return coordinator.HeartbeatReply{Name: m.name, Instance: m.instance, Threads: 1, Kernel: "simulation", SoftwareVersion: "simulation",
		HashRate: float64(simChunk) / m.perChunk.Seconds(), Held: m.ids(), Wanted: &wanted}
}

// answer searches a range. A liar claims a solution where there is none, now and then.
func (m *simMiner) answer(p coordinator.Process) coordinator.Message {
	var smallest pow.Hash
	best := uint64(0)
	for nonce := p.Nonces.First; nonce <= p.Nonces.Last; nonce++ {
		if digest := p.Work.Digest(nonce); best == 0 || digest.Compare(smallest) < 0 {
			best, smallest = nonce, digest
		}
	}
	solved := smallest.LeadingZeroBits() >= p.Work.Bits
	if m.liar && m.dice.IntN(4) == 0 {
		return coordinator.AnswerYes{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonce: best ^ 1}
	}
	if solved {
		return coordinator.AnswerYes{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonce: best}
	}
	return coordinator.AnswerNo{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonces: p.Nonces, Receipt: best}
}

func (m *simMiner) ids() (ids []uint64) {
	for _, p := range m.held {
		ids = append(ids, p.GrantID)
	}
	for _, answer := range m.kept {
		ids = append(ids, simGrantOf(answer))
	}
	return ids
}

func simGrantOf(answer coordinator.Message) uint64 {
	switch answer := answer.(type) {
	case coordinator.AnswerNo:
		return answer.GrantID
	case coordinator.AnswerYes:
		return answer.GrantID
	}
	panic(fmt.Sprintf("%T is no answer", answer))
}

func (m *simMiner) acknowledged(ack coordinator.Acknowledgement) {
	i := slices.IndexFunc(m.kept, func(answer coordinator.Message) bool { return simGrantOf(answer) == ack.GrantID })
	if i < 0 {
		return // of a delivery before; the answer was acknowledged twice
	}
	answer := m.kept[i]
	m.kept = slices.Delete(m.kept, i, i+1)
	switch ack.Result {
	case coordinator.Wrong:
		if m.liar {
			m.wronged++
			return
		}
		m.sim.fail("honest miner %s was told %+v for %+v", m.name, ack, answer)
	case coordinator.Committed, coordinator.Duplicate:
		m.sim.history.acknowledged(m.name, answer, ack.Result)
	}
}
