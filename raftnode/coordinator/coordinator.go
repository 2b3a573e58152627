package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"raftmine/fsm"
)

// Coordinator does one leader's work for one term. Make it with New, after the state is up to date (a barrier), and Run it.
type Coordinator struct {
	cfg Config
	log *slog.Logger

	// term ends with the leadership. Commits are waited for with it and never with a stream's context, so that within a
	// term every outcome is known.
	term      context.Context
	endTerm   context.CancelFunc
	receiving sync.WaitGroup // calls of Session.Receive

	jobKick   chan struct{} // wakes the job loop
	grantKick chan struct{} // wakes the grant loop

	// mu guards everything below, and the fields of sessions and miners. View may be called with it held, Propose never.
	mu       sync.Mutex
	started  bool
	over     bool // no session is opened any more
	sessions map[*Session]struct{}
	miners   map[string]*miner // by name; also those that are away

	job        *fsm.Job // the open job as the miners know it; nil: none
	generation uint64   // counts what may have made chunks pending
	// Connected miners that hold less than they want: the hungry may find work now, the starved found none in this
	// generation.
	hungry, starved map[*miner]struct{}
	releases        []release           // to be proposed by the grant loop
	releasing       map[uint64]struct{} // grant ids in releases or in a Propose of them
	totalSpeed      float64             // of the connected miners, nonces a second
	solving         bool                // a Solve is being committed that brings Submitting along
	nextAudit       time.Time           // when memory is next compared with the state

	service serviceState

	// Of the job loop alone: the job whose solution may have been handed in by a request without a known verdict.
	doubt uint64
	wrong *backoff.ExponentialBackOff // between two tries at a block whose solution was judged wrong
}

// New returns a coordinator that is ready for Open. Its leases start now. Only Run makes it work.
func New(cfg Config) (*Coordinator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	term, endTerm := context.WithCancel(context.Background())
	c := &Coordinator{
		cfg:       cfg,
		log:       cfg.Logger,
		term:      term,
		endTerm:   endTerm,
		jobKick:   make(chan struct{}, 1),
		grantKick: make(chan struct{}, 1),
		sessions:  make(map[*Session]struct{}),
		miners:    make(map[string]*miner),
		hungry:    make(map[*miner]struct{}),
		starved:   make(map[*miner]struct{}),
		releasing: make(map[uint64]struct{}),
		wrong:     newBackoff(cfg.Heartbeat/5, 12*cfg.Heartbeat),
	}
	c.rebuild()
	return c, nil
}

// Run leads until ctx ends. It returns only after every session was ended and every goroutine has finished, with nil. It
// may be called once.
func (c *Coordinator) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.started {
		c.mu.Unlock()
		return errors.New("coordinator: already run")
	}
	c.started = true
	c.mu.Unlock()

	var loops sync.WaitGroup
	loops.Go(c.jobLoop)
	loops.Go(c.grantLoop)
	loops.Go(c.sweepLoop)

	<-ctx.Done()
	c.endTerm()
	c.mu.Lock()
	c.over = true
	for s := range c.sessions {
		c.end(s, ErrNotLeader)
	}
	c.mu.Unlock()
	loops.Wait()
	c.receiving.Wait()
	return nil
}

// propose commits commands within the term.
func (c *Coordinator) propose(commands ...fsm.Command) ([]fsm.Outcome, error) {
	outcomes, err := c.cfg.Proposer.Propose(c.term, commands...)
	if err == nil && len(outcomes) != len(commands) {
		return nil, fmt.Errorf("%d outcomes for %d commands: %w", len(outcomes), len(commands), ErrOutcomeUnknown)
	}
	return outcomes, err
}

func (c *Coordinator) view(read func(fsm.View)) { c.cfg.Proposer.View(read) }

// sleep waits for d. It returns false when the term ended first.
func (c *Coordinator) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c.term.Done():
		return false
	case <-timer.C:
		return true
	}
}

// kick wakes the loop behind a channel of capacity 1, or leaves it the wake-up that already waits.
func kick(loop chan struct{}) {
	select {
	case loop <- struct{}{}:
	default:
	}
}

// newBackoff returns delays that double from first to most, each with a third of jitter.
func newBackoff(first, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = first
	b.MaxInterval = most
	b.Multiplier = 2
	b.RandomizationFactor = 1.0 / 3
	b.Reset()
	return b
}
