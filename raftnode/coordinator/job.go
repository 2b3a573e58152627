package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// snapshot is what the job loop asks the state.
type snapshot struct {
	job      fsm.Job
	exists   bool // there is a job, open or closed
	counts   fsm.Counts
	accepted uint64    // height of the last accepted block; 0: none
	last     fsm.Block // the last settled block; zero: none
}

func (s snapshot) open() bool { return s.exists && s.job.Phase == fsm.PhaseOpen }

// exhausted reports that the round is searched to its end without a solution.
func (s snapshot) exhausted() bool { return s.open() && s.counts.Pending == 0 && s.counts.Granted == 0 }

func (c *Coordinator) snapshot() (s snapshot) {
	c.view(func(v fsm.View) {
		s.job, s.exists = v.Job()
		s.counts = v.Counts()
		if block, ok := v.LastAccepted(); ok {
			s.accepted = block.Height
		}
		if count := v.BlockCount(); count > 0 {
			s.last = v.Blocks(count-1, 1)[0]
		}
	})
	return s
}

// jobLoop does what the state asks for next, until the term ends.
func (c *Coordinator) jobLoop() {
	retry := newBackoff(c.cfg.Heartbeat/100, c.cfg.Heartbeat)
	poll := time.Duration(0) // a new leader looks at the web service at once
	for c.term.Err() == nil {
		var err error
		s := c.snapshot()
		switch {
		case s.open():
			err = c.search(s, poll)
		case s.exists && s.job.Phase != fsm.PhaseClosed:
			c.mu.Lock()
			c.jobOver(s.job.ID, InterruptSolved)
			c.mu.Unlock()
			err = c.settle(s)
		default:
			c.mu.Lock()
			c.jobOver(s.job.ID, InterruptStale)
			c.mu.Unlock()
			err = c.openNext(s)
		}
		poll = c.cfg.Heartbeat
		if err == nil {
			retry.Reset()
			continue
		}
		if c.term.Err() != nil {
			return
		}
		delay := retry.NextBackOff()
		level := slog.LevelWarn
		if isNotLeader(err) || errors.Is(err, ErrOutcomeUnknown) { // the term is about to end
			level = slog.LevelDebug
		}
		c.log.Log(c.term, level, "job is held up", "error", err, "retry_in", delay)
		if !c.sleep(delay) {
			return
		}
	}
}

// jobOver takes the job from the miners. It may be called again for the same job. Caller holds mu.
func (c *Coordinator) jobOver(id uint64, why InterruptReason) {
	if c.job == nil || c.job.ID != id {
		return
	}
	c.job = nil
	for _, m := range c.miners {
		m.belief.unproven = nil // what is finished stays so
		if len(m.held) > 0 {
			m.held = nil
			c.send(m.session, Interrupt{JobID: id, Reason: why})
		}
		c.feed(m)
	}
	kick(c.jobKick)
}

// adopt makes an open job the one that miners search. Caller holds mu.
func (c *Coordinator) adopt(job fsm.Job) {
	c.job = &job
	c.feedAll()
}

// fetch asks the web service for its block.
func (c *Coordinator) fetch(ctx context.Context) (Block, error) {
	block, err := c.cfg.Source.Block(ctx)
	if err == nil {
		if err = (pow.Work{Bits: block.Bits}).Validate(); err != nil {
			err = fmt.Errorf("its block makes no sense: %w", err)
		}
	}
	if ctx.Err() == nil {
		c.serviceAnswered(err)
	}
	return block, err
}

// fetchUntil asks until the web service answers or the term ends.
func (c *Coordinator) fetchUntil() (Block, error) {
	retry := newBackoff(c.cfg.Heartbeat/50, c.cfg.Heartbeat)
	for {
		block, err := c.fetch(c.term)
		if err == nil {
			return block, nil
		}
		if !c.sleep(retry.NextBackOff()) {
			return Block{}, c.term.Err()
		}
	}
}

// openNext opens the job after a closed one, or the first.
func (c *Coordinator) openNext(s snapshot) error {
	block, err := c.fetchUntil()
	if err != nil {
		return nil // the term is over
	}
	if s.last.Verdict == fsm.VerdictWrong && s.last.Previous == block.Previous {
		delay := c.wrong.NextBackOff()
		c.log.Warn("web service still asks for the block whose solution it called wrong", "height", s.last.Height,
			"detail", s.last.Detail, "retry_in", delay)
		if !c.sleep(delay) {
			return nil
		}
		if block, err = c.fetchUntil(); err != nil {
			return nil
		}
	} else {
		c.wrong.Reset()
	}
	return c.open(s, block, false)
}

// open opens a job, and grants it to the waiting miners in the same entry; with closing, the open job is closed in it as
// well. The grants name the job id that comes next. When the job is not opened, because the one before was solved in this
// very moment, there is no such job, and its miners wait for the one that is opened instead.
func (c *Coordinator) open(s snapshot, block Block, closing bool) error {
	job := fsm.OpenJob{
		Height:    s.accepted + 1,
		Previous:  block.Previous,
		Bits:      block.Bits,
		Timestamp: c.timestampAfter(s.job.Timestamp),
		Nonces:    c.cfg.Nonces,
		ChunkSize: c.cfg.ChunkSize,
	}
	if block.Height > s.accepted {
		job.Height = block.Height
	}
	b := &batch{}
	c.mu.Lock()
	c.feedAll()
	if closing {
		why := "the web service asks for another block"
		if block.Previous == s.job.Previous {
			why = fmt.Sprintf("the web service asks for %d bits", block.Bits)
		}
		b.commands = append(b.commands, fsm.CloseJob{JobID: s.job.ID, Reason: why})
		for _, m := range c.miners { // what they hold is over
			if m.eats() && m.wanted > 0 {
				c.hungry[m] = struct{}{}
			}
		}
	}
	b.commands = append(b.commands, job)
	at := len(b.commands) - 1
	chunks := (job.Nonces.Len()-1)/job.ChunkSize + 1
	c.askHungry(b, closing, s.job.ID+1, job.ChunkSize, chunks)
	c.mu.Unlock()

	outcomes, err := c.propose(b.commands...)

	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.granted(b, nil, err)
		return fmt.Errorf("open job for height %d: %w", job.Height, err)
	}
	if closing && (outcomes[0].Code == fsm.Done || outcomes[0].Code == fsm.Duplicate) {
		c.log.Info("job is stale", "job", s.job.ID, "height", s.job.Height)
		c.jobOver(s.job.ID, InterruptStale)
	}
	opened := outcomes[at]
	if opened.Code == fsm.Done || opened.Code == fsm.Duplicate {
		if now := c.snapshot(); now.open() && now.job.ID == opened.JobID {
			c.log.Info("job opened", "job", now.job.ID, "height", now.job.Height, "bits", now.job.Bits,
				"previous", now.job.Previous)
			c.adopt(now.job)
		}
	}
	if opened.Code != fsm.Done && opened.Code != fsm.Duplicate {
		for i := range outcomes[at+1:] {
			if outcome := &outcomes[at+1+i]; outcome.Code == fsm.Wrong {
				*outcome = fsm.Outcome{Code: fsm.NoWork}
			}
		}
	}
	c.granted(b, outcomes, nil)
	if opened.Code == fsm.Wrong || opened.Code == fsm.Refused && !closing {
		return fmt.Errorf("open job for height %d: %s", job.Height, opened.Detail)
	}
	return nil
}

// timestampAfter returns the wall clock in Unix milliseconds, or last+1 if that is larger.
func (c *Coordinator) timestampAfter(last uint64) uint64 {
	return max(uint64(max(c.cfg.Now().UnixMilli(), 1)), last+1)
}

// search waits while the miners search the open job of s. It returns when the state asks for something else. The first
// look at the web service is due after poll.
func (c *Coordinator) search(s snapshot, poll time.Duration) error {
	ctx, cancel := context.WithCancel(c.term)
	looks := c.look(ctx, poll)
	// A solved job takes the look back: nothing is requested, and nothing acted upon, until its verdict is logged.
	defer func() {
		cancel()
		for range looks {
		}
	}()
	for {
		now := c.snapshot()
		if !now.open() || now.job.ID != s.job.ID {
			return nil
		}
		c.mu.Lock()
		if c.job == nil || c.job.ID != now.job.ID || c.job.Round != now.job.Round {
			c.adopt(now.job)
		}
		c.mu.Unlock()
		if now.exhausted() {
			if err := c.roll(now); err != nil {
				return err
			}
			continue
		}
		select {
		case <-c.term.Done():
			return nil
		case <-c.jobKick:
		case block, ok := <-looks:
			if ok && (block.Previous != s.job.Previous || block.Bits != s.job.Bits) {
				return c.open(now, block, true)
			}
		}
	}
}

// look asks the web service for its block each heartbeat, the first time after delay, and backs off while it is
// unreachable. Its channel is closed when ctx has ended and no request is under way.
func (c *Coordinator) look(ctx context.Context, delay time.Duration) <-chan Block {
	blocks := make(chan Block)
	go func() {
		defer close(blocks)
		retry := newBackoff(c.cfg.Heartbeat/2, 4*c.cfg.Heartbeat)
		timer := time.NewTimer(delay)
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
			if !c.snapshot().open() { // solved this very moment
				return
			}
			block, err := c.fetch(ctx)
			if err != nil {
				timer.Reset(retry.NextBackOff())
				continue
			}
			retry.Reset()
			timer.Reset(c.cfg.Heartbeat)
			select {
			case blocks <- block:
			case <-ctx.Done():
				return
			}
		}
	}()
	return blocks
}

// roll starts the next round of a job whose range holds no solution, and grants it in the same entry.
func (c *Coordinator) roll(s snapshot) error {
	next := fsm.Roll{JobID: s.job.ID, Round: s.job.Round + 1, Timestamp: c.timestampAfter(s.job.Timestamp)}
	b := &batch{commands: []fsm.Command{next}}
	c.mu.Lock()
	c.feedAll()
	c.askHungry(b, false, s.job.ID, s.job.ChunkSize, s.job.Chunks())
	c.mu.Unlock()

	outcomes, err := c.propose(b.commands...)

	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		if now := c.snapshot(); now.open() && now.job.ID == s.job.ID {
			c.adopt(now.job)
		}
	}
	c.granted(b, outcomes, err)
	switch {
	case err != nil:
		return fmt.Errorf("roll the timestamp of job %d: %w", s.job.ID, err)
	case outcomes[0].Code == fsm.Done:
		c.log.Info("range has no solution, timestamp rolled", "job", s.job.ID, "round", next.Round,
			"timestamp", next.Timestamp)
	case outcomes[0].Code == fsm.Wrong, outcomes[0].Code == fsm.Refused:
		return errors.New("roll the timestamp: " + outcomes[0].Detail)
	}
	return nil
}
