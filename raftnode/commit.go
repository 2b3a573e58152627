package raftnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// committer is the group commit: it makes one entry of all proposals that wait, and keeps a few entries on their way.
// While they are, the next proposals gather, so a busy leader's entries grow.
type committer struct {
	maxCommands, maxBytes, maxInFlight int

	encode func([]fsm.Command) ([]byte, error)
	// apply hands an entry to Raft, if it still leads in that term.
	apply func(term uint64, data []byte) (raft.ApplyFuture, error)
	// refused makes the error of proposals that never reached the log.
	refused func() error

	wake     chan struct{}    // cap 1: there is something to do
	inFlight chan entryFlight // cap maxInFlight: sent never blocks
	quit     chan struct{}
	abandon  chan struct{} // closed: entries in flight are waited for no longer
	work     sync.WaitGroup

	mu     sync.Mutex // guards what follows
	queue  []*proposal
	flying int           // entries on their way
	paused int           // pauses in force: nothing is taken from the queue
	idle   chan struct{} // not nil: closed when flying becomes 0
	closed bool
}

// proposal is one caller's commands.
type proposal struct {
	term     uint64 // it is refused in any other
	commands []fsm.Command
	bytes    int // estimated
	done     chan proposalResult
	taken    bool // out of the queue, on its way; guarded by committer.mu
}

type proposalResult struct {
	outcomes []fsm.Outcome
	err      error
}

// entryFlight is an entry that Raft was given.
type entryFlight struct {
	proposals []*proposal
	future    raft.ApplyFuture
}

func (c *committer) start() {
	c.wake = make(chan struct{}, 1)
	c.inFlight = make(chan entryFlight, c.maxInFlight)
	c.quit = make(chan struct{})
	c.abandon = make(chan struct{})
	c.work.Add(2)
	go c.send()
	go c.receive()
}

// propose blocks until the commands are committed and applied here. When ctx ends while they wait in the queue they are
// never proposed, and the error is that of ctx; afterwards it is ErrOutcomeUnknown as well.
func (c *committer) propose(ctx context.Context, term uint64, commands []fsm.Command) ([]fsm.Outcome, error) {
	p := &proposal{term: term, commands: commands, done: make(chan proposalResult, 1)}
	for _, command := range commands {
		p.bytes += estimate(command)
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	c.queue = append(c.queue, p)
	c.mu.Unlock()
	c.poke()
	select {
	case result := <-p.done:
		return result.outcomes, result.err
	case <-ctx.Done():
		if c.withdraw(p) {
			return nil, fmt.Errorf("not proposed: %w", ctx.Err())
		}
		return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
	}
}

// withdraw takes a proposal back. It returns false when that is too late.
func (c *committer) withdraw(p *proposal) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.queue, p); i >= 0 {
		c.queue = slices.Delete(c.queue, i, i+1)
	}
	return !p.taken
}

func (c *committer) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// send makes entries of the queue.
func (c *committer) send() {
	defer c.work.Done()
	defer close(c.inFlight)
	for {
		select {
		case <-c.wake:
		case <-c.quit:
			return
		}
		for batch := c.take(); batch != nil; batch = c.take() {
			c.submit(batch)
		}
	}
}

// take returns the next entry's proposals, all of one term, and counts the entry as flying; nil: not now.
func (c *committer) take() []*proposal {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused > 0 || c.flying >= c.maxInFlight {
		return nil
	}
	var batch []*proposal
	commands, bytes := 0, 0
	for _, p := range c.queue {
		commands, bytes = commands+len(p.commands), bytes+p.bytes
		if len(batch) > 0 && (commands > c.maxCommands || bytes > c.maxBytes || p.term != batch[0].term) {
			break
		}
		p.taken = true
		batch = append(batch, p)
	}
	taken := len(batch)
	clear(c.queue[:taken]) // the array lives on: let go of what was sent
	if c.queue = c.queue[taken:]; len(c.queue) == 0 {
		c.queue = nil
	}
	if batch != nil {
		c.flying++
	}
	return batch
}

// submit hands one entry to Raft. A proposal that cannot be encoded fails alone.
func (c *committer) submit(batch []*proposal) {
	data, err := c.encode(commandsOf(batch))
	if err != nil && len(batch) > 1 {
		fit := batch[:0:0]
		for _, p := range batch {
			if _, err := c.encode(p.commands); err != nil {
				p.done <- proposalResult{err: err}
				continue
			}
			fit = append(fit, p)
		}
		if batch = fit; len(batch) == 0 {
			c.landed()
			return
		}
		data, err = c.encode(commandsOf(batch))
	}
	if err != nil {
		c.finish(batch, err)
		return
	}
	future, err := c.apply(batch[0].term, data)
	if err != nil {
		c.finish(batch, err)
		return
	}
	c.inFlight <- entryFlight{proposals: batch, future: future}
}

func commandsOf(batch []*proposal) []fsm.Command {
	if len(batch) == 1 {
		return batch[0].commands
	}
	var commands []fsm.Command
	for _, p := range batch {
		commands = append(commands, p.commands...)
	}
	return commands
}

// receive hands out what became of the entries, in order.
func (c *committer) receive() {
	defer c.work.Done()
	for flight := range c.inFlight {
		landed := make(chan error, 1)
		go func() { landed <- flight.future.Error() }() // nothing can interrupt that
		select {
		case err := <-landed:
			if err != nil {
				c.finish(flight.proposals, c.meaning(err))
				continue
			}
		case <-c.abandon:
			c.finish(flight.proposals, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrClosed))
			continue
		}
		outcomes, ok := flight.future.Response().([]fsm.Outcome)
		if !ok {
			// Committed, but this replica has stopped.
			reason, _ := flight.future.Response().(error)
			c.finish(flight.proposals, fmt.Errorf("%w: %w", ErrOutcomeUnknown, reason))
			continue
		}
		for _, p := range flight.proposals {
			n := len(p.commands)
			p.done <- proposalResult{outcomes: outcomes[:n:n]}
			outcomes = outcomes[n:]
		}
		c.landed()
	}
}

// meaning tells what never reached the log from what may be committed yet.
func (c *committer) meaning(err error) error {
	for _, refusal := range []error{raft.ErrNotLeader, raft.ErrLeadershipTransferInProgress, raft.ErrEnqueueTimeout} {
		if errors.Is(err, refusal) {
			return c.refused()
		}
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}

func (c *committer) finish(batch []*proposal, err error) {
	for _, p := range batch {
		p.done <- proposalResult{err: err}
	}
	c.landed()
}

func (c *committer) landed() {
	c.mu.Lock()
	c.flying--
	if c.flying == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
	c.mu.Unlock()
	c.poke()
}

// pause stops taking from the queue and waits until nothing is in flight. Proposals wait until resume, which follows
// in any case.
func (c *committer) pause(ctx context.Context) error {
	c.mu.Lock()
	c.paused++
	if c.flying == 0 {
		c.mu.Unlock()
		return nil
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *committer) resume() {
	c.mu.Lock()
	c.paused--
	c.mu.Unlock()
	c.poke()
}

// stop refuses new proposals and those that wait, and lets the ones in flight land for at most patience. After that their
// outcome is unknown: a Raft instance that is shut down forgets some futures, so it must be stopped first, and nobody may
// wait for them for ever.
func (c *committer) stop(patience time.Duration) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	waiting := c.queue
	c.queue = nil
	c.mu.Unlock()
	for _, p := range waiting {
		p.done <- proposalResult{err: ErrClosed}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	landed := c.pause(ctx) == nil
	close(c.quit)
	close(c.abandon)
	if landed {
		c.work.Wait() // else send may be inside Raft, which lets it go when it is shut down
	}
}

// estimate says roughly how many bytes a command takes in an entry; never much too few.
func estimate(command fsm.Command) int {
	const fixed = 160
	switch c := command.(type) {
	case fsm.AddServer:
		return fixed + len(c.Address) + len(c.DataDir)
	case fsm.UpdateServer:
		return fixed + len(c.Address) + len(c.DataDir)
	case fsm.Release:
		return fixed + 10*len(c.GrantIDs)
	case fsm.Revoke:
		return fixed + 24*len(c.Ranges) + len(c.Reason)
	case fsm.Submitted:
		return fixed + len(c.Detail)
	}
	return fixed
}
