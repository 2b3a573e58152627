package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
	"raftmine/raftnode/coordinator"
)

// simWeb is the block web service, with its moods.
type simWeb struct {
	mu       sync.Mutex
	block    coordinator.Block
	accepted []pow.Hash

	gone     bool          // no connection
	slow     time.Duration // before it answers
	denies   bool          // calls right solutions wrong
	swallows bool          // judges, and its answer is lost
}

var errSimWeb = errors.New("simulated web service does not answer")

func newSimWeb() *simWeb {
	return &simWeb{block: coordinator.Block{Previous: pow.Sum([]byte("genesis")), Bits: simBits, Height: 1}}
}

func (w *simWeb) change(f func(*simWeb)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

// moveOn is what another client's solution does.
func (w *simWeb) moveOn() {
	w.block.Previous = pow.Sum(w.block.Previous[:])
	w.block.Height++
}

func (w *simWeb) acceptedHashes() []pow.Hash {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]pow.Hash(nil), w.accepted...)
}

// simSource is the web service as one server process reaches it.
type simSource struct {
	p   *simProcess
	web *simWeb
}

func (s simSource) Address() string { return "http://127.0.0.1:9" }

// call does one request. Nothing of a dead or paused process arrives.
func (s simSource) call(ctx context.Context, request func(w *simWeb)) (err error) {
	net := s.p.server.sim.net
	if err := net.running(ctx, s.p.server.name); err != nil {
		return err
	}
	s.web.mu.Lock()
	slow := s.web.slow
	s.web.mu.Unlock()
	if slow > 0 {
		wait(ctx, slow)
	}
	if ctx.Err() != nil || s.p.dead() {
		return errSimWeb
	}
	s.web.mu.Lock()
	if s.web.gone {
		s.web.mu.Unlock()
		return errSimWeb
	}
	request(s.web)
	lost := s.web.swallows
	s.web.mu.Unlock()
	if lost {
		return errSimWeb
	}
	return net.running(ctx, s.p.server.name)
}

func (s simSource) Block(ctx context.Context) (block coordinator.Block, err error) {
	err = s.call(ctx, func(w *simWeb) { block = w.block })
	return block, err
}

func (s simSource) Submit(ctx context.Context, nonce, timestamp uint64) (reply coordinator.Reply, err error) {
	var job fsm.Job
	s.p.node.View(func(v fsm.View) { job, _ = v.Job() })
	err = s.call(ctx, func(w *simWeb) {
		work := pow.Work{Previous: w.block.Previous, Timestamp: timestamp, Bits: w.block.Bits}
		hash, valid := work.Verify(nonce)
		// With so few bits a solution of the block before would now and then be one of the next block by chance.
		if !valid || w.denies || job.Previous != w.block.Previous {
			reply = coordinator.Reply{Detail: "wrong"}
			return
		}
		w.block.Previous = hash
		w.block.Height++
		w.accepted = append(w.accepted, hash)
		reply = coordinator.Reply{Accepted: true, Detail: "success"}
	})
	return reply, err
}
