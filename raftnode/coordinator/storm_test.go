package coordinator

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

var stormTime = flag.Duration("storm", 2*time.Minute, "virtual time for which TestStormLosesNothing storms")

// dice is a random source for many goroutines.
type dice struct {
	mu  sync.Mutex
	rng *rand.Rand
}

// chance is true in one of n cases.
func (d *dice) chance(n int) bool { return d.below(n) == 0 }

func (d *dice) below(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.IntN(n)
}

// storm is miners that come and go, leaders that change, commits and web service that fail, until calm.
type storm struct {
	t    *testing.T
	r    *rig
	dice *dice
	calm atomic.Bool

	leader atomic.Pointer[Coordinator] // nil: nobody leads

	mu    sync.Mutex
	acked []Message // answers that were acknowledged as committed
}

// stormMiner is an honest miner, apart from its accidents.
type stormMiner struct {
	storm    *storm
	name     string
	instance fsm.ID
	perChunk time.Duration
	held     []Process
	kept     []Message // answers without an acknowledgement
}

// run connects again and again.
func (m *stormMiner) run(ctx context.Context) {
	for ctx.Err() == nil {
		if c := m.storm.leader.Load(); c != nil {
			if s, err := c.Open(); err == nil {
				m.session(ctx, s)
				s.Close()
			}
		}
		pause := time.Duration(m.storm.dice.below(2000)+1) * time.Millisecond
		if !m.storm.calm.Load() {
			switch {
			case m.storm.dice.chance(30):
				pause = 20 * time.Second // beyond its lease
			case m.storm.dice.chance(30): // it crashed
				m.held, m.kept = nil, nil
				m.instance[15]++
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (m *stormMiner) session(ctx context.Context, s *Session) {
	introduced := false
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var working *Process
	for {
		if working == nil && len(m.held) > 0 && introduced {
			p := m.held[0]
			working = &p
			timer.Reset(time.Duration(p.Nonces.Len()/p.ChunkSize) * m.perChunk)
		}
		if !m.storm.calm.Load() && m.storm.dice.chance(60) {
			return // the stream breaks
		}
		select {
		case <-ctx.Done():
			return
		case message, ok := <-s.Outgoing():
			if !ok {
				return
			}
			switch message := message.(type) {
			case HeartbeatRequest:
				wanted := 2
				report := HeartbeatReply{Name: m.name, Instance: m.instance, Threads: 1, Held: m.ids(), Wanted: &wanted}
				if s.Receive(ctx, report) != nil {
					return
				}
				if !introduced {
					introduced = true
					for _, answer := range slices.Clone(m.kept) {
						if s.Receive(ctx, answer) != nil {
							return
						}
					}
				}
			case Process:
				if !slices.Contains(m.ids(), message.GrantID) {
					m.held = append(m.held, message)
				}
			case Interrupt:
				m.held = slices.DeleteFunc(m.held, func(p Process) bool {
					return slices.Contains(message.GrantIDs, p.GrantID) || len(message.GrantIDs) == 0 && p.JobID == message.JobID
				})
				if working != nil && !slices.Contains(m.held, *working) {
					working = nil
				}
			case Acknowledgement:
				m.acknowledged(message)
			}
		case <-timer.C:
			if working == nil {
				continue
			}
			p := *working
			working = nil
			m.held = slices.DeleteFunc(m.held, func(h Process) bool { return h.GrantID == p.GrantID })
			best, solved := search(p)
			var answer Message = AnswerNo{p.GrantID, p.JobID, p.Work.Timestamp, p.Nonces, best}
			if solved {
				answer = AnswerYes{p.GrantID, p.JobID, p.Work.Timestamp, best}
			}
			m.kept = append(m.kept, answer)
			if s.Receive(ctx, answer) != nil {
				return
			}
		}
	}
}

func (m *stormMiner) ids() (ids []uint64) {
	for _, p := range m.held {
		ids = append(ids, p.GrantID)
	}
	for _, answer := range m.kept {
		ids = append(ids, grantOf(answer))
	}
	return ids
}

func grantOf(answer Message) uint64 {
	if no, ok := answer.(AnswerNo); ok {
		return no.GrantID
	}
	return answer.(AnswerYes).GrantID
}

func (m *stormMiner) acknowledged(ack Acknowledgement) {
	i := slices.IndexFunc(m.kept, func(answer Message) bool { return grantOf(answer) == ack.GrantID })
	if i < 0 {
		return // of a delivery before; the answer was acknowledged twice
	}
	answer := m.kept[i]
	m.kept = slices.Delete(m.kept, i, i+1)
	switch ack.Result {
	case Wrong:
		m.storm.t.Errorf("honest miner %s was told %+v for %+v", m.name, ack, answer)
	case Committed, Duplicate:
		m.storm.mu.Lock()
		m.storm.acked = append(m.storm.acked, answer)
		m.storm.mu.Unlock()
	}
}

// lead changes the leader now and then.
func (s *storm) lead(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(5+s.dice.below(40)) * time.Second):
		}
		if s.calm.Load() {
			continue
		}
		s.leader.Store(nil)
		s.r.stop()
		s.checkState()
		time.Sleep(time.Duration(s.dice.below(3000)) * time.Millisecond)
		s.r.begin()
		s.leader.Store(s.r.c)
	}
}

func (s *storm) checkState() {
	s.r.cl.mu.RLock()
	defer s.r.cl.mu.RUnlock()
	if err := s.r.cl.state.Check(); err != nil {
		s.t.Errorf("state is broken: %v", err)
	}
}

// weather is what the web service does to one submission.
func (s *storm) weather(accept func() Reply) (Reply, error) {
	if s.calm.Load() {
		return accept(), nil
	}
	switch s.dice.below(8) {
	case 0:
		return Reply{}, errDown
	case 1:
		accept()
		return Reply{}, errDown
	case 2:
		return Reply{Detail: "wrong"}, nil
	}
	return accept(), nil
}

func TestStormLosesNothing(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runStorm(t, seed) })
		})
	}
}

func runStorm(t *testing.T, seed uint64) {
	s := &storm{t: t, dice: &dice{rng: rand.New(rand.NewPCG(seed, 1))}}
	s.r = newRig(t, func(r *rig) {
		r.cfg.Nonces, r.cfg.ChunkSize, r.cfg.MaxGrantChunks = pow.Range{First: 1, Last: 640}, 16, 6
		r.service.block.Bits = 9
		r.cfg.Logger = slog.New(slog.NewTextHandler(r.logs, nil))
		r.service.behave = s.weather
		r.cl.latency = 2 * time.Millisecond
		r.cl.fail = func([]fsm.Command) failure {
			if s.calm.Load() || !s.dice.chance(80) {
				return commit
			}
			return failure(1 + s.dice.below(4))
		}
	})
	s.leader.Store(s.r.c)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { s.lead(ctx) })
	for i := range 6 {
		m := &stormMiner{
			storm: s, name: fmt.Sprintf("m%d", i), instance: fsm.ID{byte(i + 1)},
			perChunk: time.Duration(30*(i+1)) * time.Millisecond,
		}
		all.Go(func() { m.run(ctx) })
	}
	all.Go(func() { // the service has bad hours, and other clients
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(s.dice.below(60)) * time.Second):
				s.r.service.set(func(sv *service) {
					switch sv.down = nil; {
					case s.calm.Load():
					case s.dice.chance(3):
						sv.down = errDown
					case s.dice.chance(3):
						sv.block.Previous = pow.Sum(sv.block.Previous[:])
					}
				})
			}
		}
	})

	time.Sleep(*stormTime)
	s.calm.Store(true)
	time.Sleep(time.Minute)
	before := len(s.r.cl.blocks())
	time.Sleep(30 * time.Second)
	after := len(s.r.cl.blocks())
	if after-before < 10 {
		t.Errorf("%d blocks in the last calm half minute: something is stuck: job %+v, %+v",
			after-before, s.r.cl.job(), s.r.cl.counts())
	}
	cancel()
	all.Wait()
	s.checkState()
	s.audit()
	t.Logf("%d blocks, %d answers acknowledged, term %d", after, len(s.acked), s.r.cl.term)
}

// audit compares what was acknowledged, and what the web service accepted, with the history.
func (s *storm) audit() {
	type search struct{ job, timestamp uint64 }
	finished := map[search][]pow.Range{}
	done := map[Message]bool{} // answers that the history knows
	for _, step := range s.r.cl.history() {
		if step.outcome.Code != fsm.Done {
			continue
		}
		switch c := step.command.(type) {
		case fsm.Finish:
			key := search{c.JobID, c.Timestamp}
			for _, r := range finished[key] {
				if r.First <= c.Nonces.Last && c.Nonces.First <= r.Last {
					s.t.Errorf("%v was finished twice in job %d: %v", c.Nonces, c.JobID, r)
				}
			}
			finished[key] = append(finished[key], c.Nonces)
			done[AnswerNo{c.GrantID, c.JobID, c.Timestamp, c.Nonces, c.Receipt}] = true
		case fsm.Solve:
			done[AnswerYes{c.GrantID, c.JobID, c.Timestamp, c.Nonce}] = true
		}
	}
	for _, answer := range s.acked {
		if !done[answer] {
			s.t.Errorf("%+v was acknowledged, and is not in the history", answer)
		}
	}
	verdicts := map[pow.Hash]fsm.Verdict{}
	heights := map[uint64]bool{}
	for _, block := range s.r.cl.blocks() {
		verdicts[block.Hash] = block.Verdict
		if block.Verdict != fsm.VerdictSuccess {
			continue
		}
		if heights[block.Height] {
			s.t.Errorf("height %d was accepted twice", block.Height)
		}
		heights[block.Height] = true
		if !slices.Contains(s.r.service.accepted, block.Hash) {
			s.t.Errorf("height %d is a success that the web service never accepted", block.Height)
		}
	}
	for _, hash := range s.r.service.accepted {
		if v := verdicts[hash]; v != fsm.VerdictSuccess && v != fsm.VerdictUnknown {
			job := s.r.cl.job()
			if v == 0 && job.Solution != nil && job.Solution.Hash == hash {
				continue // its verdict is being logged
			}
			s.t.Errorf("the web service accepted %v, the history says %v", hash, v)
		}
	}
	for _, m := range s.r.c.Status().Miners {
		if strikes := s.r.cl.miner(m.Name).Strikes; strikes > 0 {
			s.t.Errorf("honest miner %s has %d strikes", m.Name, strikes)
		}
	}
}
