package coordinator

import (
	"errors"
	"fmt"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// isNotLeader reports an error after which nothing can have been committed.
func isNotLeader(err error) bool { return errors.Is(err, ErrNotLeader) }

// answerNo commits that a range holds no solution, and in the same entry the grant that follows.
func (s *Session) answerNo(m *miner, a AnswerNo) error {
	c := s.c
	ack := Acknowledgement{GrantID: a.GrantID, Nonce: a.Nonces.Last}

	c.mu.Lock()
	var job fsm.Job
	var counts fsm.Counts
	var last uint64 // nonce of the grant
	var head bool   // the answer is for the head of what is left of the grant, so it was not delivered before
	c.view(func(v fsm.View) {
		job, _ = v.Job()
		counts = v.Counts()
		if grant, ok := v.Grant(a.GrantID); ok && grant.Miner == m.name {
			last, head = grant.Nonces.Last, grant.Nonces.First == a.Nonces.First
		}
	})
	if why, over := answerIsOver(job, a.JobID, a.Timestamp); over {
		ack.Result, ack.Message = Stale, why
		c.dropGone(m, a.GrantID)
		c.send(s, ack)
		c.feed(m)
		c.mu.Unlock()
		return nil
	}
	excess, why := checkAnswerNo(job, a)
	if why != "" {
		c.mu.Unlock()
		return s.strike(m, ack, why)
	}
	if head && m.belief.wouldLie(a.Nonces.Len(), excess) {
		why := m.belief.disbelief(a.Nonces.Len(), excess)
		c.mu.Unlock()
		return s.disbelieve(m, ack, why)
	}
	whole := last == a.Nonces.Last && m.find(a.GrantID) >= 0
	commands := []fsm.Command{fsm.Finish{
		JobID: a.JobID, GrantID: a.GrantID, Miner: m.name, Timestamp: a.Timestamp, Nonces: a.Nonces, Receipt: a.Receipt,
	}}
	need := 0
	if m.session == s && m.eats() && c.job != nil && c.job.ID == job.ID {
		need = m.wanted - len(m.held)
		if whole {
			need++
		}
		need = max(need, 0)
	}
	if counts.Pending == 0 {
		need = 0
	}
	generation := c.generation
	if need > 0 {
		pending := counts.Pending
		commands = append(commands, c.ask(m, need, job.ID, job.ChunkSize, &pending)...)
	}
	c.mu.Unlock()

	outcomes, err := c.propose(commands...)
	if err != nil {
		if need > 0 {
			c.mu.Lock()
			c.notGranted(m, err)
			c.mu.Unlock()
		}
		kick(c.jobKick)
		return fmt.Errorf("finish %s of grant %d: %w", a.Nonces, a.GrantID, err)
	}

	finished := outcomes[0]
	ack.Result, ack.Message = resultOf(finished)
	c.mu.Lock()
	if finished.Code == fsm.Done {
		c.finished(m, a)
		if m.belief.finished(job, a.Nonces, excess) || m.proven == (fsm.ID{}) {
			m.proven = m.instance
		}
	}
	c.dropGone(m, a.GrantID)
	if ack.Result != Wrong {
		c.send(s, ack)
	}
	switch {
	case need > 0:
		c.deliver(m, outcomes[1:], generation)
	case counts.Pending == 0:
		c.starve(m, generation)
	default:
		c.feed(m)
	}
	exhausted := c.exhausted()
	c.mu.Unlock()
	if exhausted {
		kick(c.jobKick)
	}
	switch ack.Result {
	case 0:
		return fmt.Errorf("finish %s of grant %d: unexpected outcome %s: %s", a.Nonces, a.GrantID,
			finished.Code, finished.Detail)
	case Wrong:
		return s.strike(m, ack, finished.Detail)
	}
	return nil
}

// answerIsOver reports answers that came too late for ever: jobs and timestamps only grow, a solved job never opens again.
// So nothing has to be committed to say so.
func answerIsOver(job fsm.Job, jobID, timestamp uint64) (why string, over bool) {
	switch {
	case jobID < job.ID:
		return fmt.Sprintf("job %d is over, the current one is job %d", jobID, job.ID), true
	case jobID > job.ID:
		return "", false
	case timestamp < job.Timestamp:
		return fmt.Sprintf("timestamp %d is over, the current one is %d", timestamp, job.Timestamp), true
	case job.Phase > fsm.PhaseOpen:
		return fmt.Sprintf("job %d is over", jobID), true
	}
	return "", false
}

// checkAnswerNo returns why an answer is wrong in itself, else the pow.Excess of its receipt. It costs one digest.
func checkAnswerNo(job fsm.Job, a AnswerNo) (excess float64, why string) {
	if err := a.Nonces.Validate(); err != nil {
		return 0, err.Error()
	}
	if !a.Nonces.Contains(a.Receipt) {
		return 0, fmt.Sprintf("receipt %d lies outside %s", a.Receipt, a.Nonces)
	}
	if a.JobID != job.ID || a.Timestamp != job.Timestamp {
		return 0, "" // what the state has not seen it refuses
	}
	digest, valid := job.Work().Verify(a.Receipt)
	if valid {
		return 0, fmt.Sprintf("receipt %d is a solution", a.Receipt)
	}
	if excess = pow.Excess(a.Nonces.Len(), job.Bits, digest); excess > impossible {
		return excess, fmt.Sprintf("receipt %d is not the best of %s: the best of so many digests is smaller", a.Receipt, a.Nonces)
	}
	return excess, ""
}

// finished learns from a committed answer how fast its miner is. Caller holds mu.
func (c *Coordinator) finished(m *miner, a AnswerNo) {
	now := c.cfg.Now()
	since := m.answered
	if i := m.find(a.GrantID); i >= 0 && !m.held[i].sent.IsZero() {
		if m.held[i].sent.After(since) {
			since = m.held[i].sent
		}
		m.seen = nextSpeed(m.seen, true, a.Nonces.Len(), now.Sub(since))
		c.setSpeed(m, nextSpeed(m.speed, m.measured, a.Nonces.Len(), now.Sub(since)))
		m.measured = true
	}
	m.answered, m.progress, m.mute = now, now, time.Time{}
	c.log.Debug("range finished", "job", a.JobID, "grant_id", a.GrantID, "miner", m.name, "nonces", a.Nonces)
}

// dropGone forgets a grant that the state has no more. Caller holds mu.
func (c *Coordinator) dropGone(m *miner, id uint64) {
	var ok bool
	c.view(func(v fsm.View) { _, ok = v.Grant(id) })
	if !ok {
		m.drop(id)
	}
}

// exhausted reports that the round is searched to its end without a solution. Caller holds mu.
func (c *Coordinator) exhausted() bool {
	if c.job == nil {
		return false
	}
	var counts fsm.Counts
	c.view(func(v fsm.View) { counts = v.Counts() })
	return counts.Pending == 0 && counts.Granted == 0
}

// resultOf says an outcome to the miner. Result 0: an answer never comes to that.
func resultOf(outcome fsm.Outcome) (Result, string) {
	switch outcome.Code {
	case fsm.Done:
		return Committed, ""
	case fsm.Duplicate:
		return Duplicate, "committed before"
	case fsm.Stale:
		return Stale, outcome.Detail
	case fsm.Released:
		return Released, outcome.Detail
	case fsm.Wrong:
		return Wrong, outcome.Detail
	}
	return 0, outcome.Detail
}

// answerYes commits a solution, and in the same entry the intent to submit it. Then everybody else stops.
func (s *Session) answerYes(m *miner, a AnswerYes) error {
	c := s.c
	ack := Acknowledgement{GrantID: a.GrantID, Solution: true, Nonce: a.Nonce}

	c.mu.Lock()
	var job fsm.Job
	c.view(func(v fsm.View) { job, _ = v.Job() })
	why, over := answerIsOver(job, a.JobID, a.Timestamp)
	if over && !sameSolution(job, m.name, a) { // the same one is asked for its outcome: it is a duplicate
		ack.Result, ack.Message = Stale, why
		c.dropGone(m, a.GrantID)
		c.send(s, ack)
		c.feed(m)
		c.mu.Unlock()
		return nil
	}
	if a.JobID == job.ID && a.Timestamp == job.Timestamp {
		if hash, valid := job.Work().Verify(a.Nonce); !valid {
			c.mu.Unlock()
			return s.strike(m, ack, fmt.Sprintf("nonce %d gives %d leading zero bits, want %d",
				a.Nonce, hash.LeadingZeroBits(), job.Bits))
		}
	}
	commands := []fsm.Command{fsm.Solve{
		JobID: a.JobID, GrantID: a.GrantID, Miner: m.name, Timestamp: a.Timestamp, Nonce: a.Nonce,
	}}
	// Submitting is refused when Solve is not Done. A second solution that is committed at the same time leaves it to the
	// first, so that attempts are not counted that were never made.
	first := !over && !c.solving
	if first {
		c.solving = true
		commands = append(commands, fsm.Submitting{JobID: a.JobID})
	}
	c.mu.Unlock()

	outcomes, err := c.propose(commands...)

	c.mu.Lock()
	if first {
		c.solving = false
	}
	if err != nil {
		c.mu.Unlock()
		kick(c.jobKick)
		return fmt.Errorf("solve job %d with nonce %d: %w", a.JobID, a.Nonce, err)
	}
	solved := outcomes[0]
	ack.Result, ack.Message = resultOf(solved)
	if solved.Code == fsm.Done {
		c.log.Info("block solved", "job", job.ID, "height", job.Height, "nonce", a.Nonce, "miner", m.name)
		m.progress, m.solved = c.cfg.Now(), true
		m.drop(a.GrantID)
		c.send(s, ack)
		c.jobOver(job.ID, InterruptSolved)
		c.mu.Unlock()
		kick(c.jobKick)
		return nil
	}
	c.dropGone(m, a.GrantID)
	if ack.Result != Wrong {
		c.send(s, ack)
		c.feed(m)
	}
	c.mu.Unlock()
	switch ack.Result {
	case 0:
		return fmt.Errorf("solve job %d with nonce %d: unexpected outcome %s: %s", a.JobID, a.Nonce,
			solved.Code, solved.Detail)
	case Wrong:
		return s.strike(m, ack, solved.Detail)
	}
	return nil
}

func sameSolution(job fsm.Job, name string, a AnswerYes) bool {
	solution := job.Solution
	return job.ID == a.JobID && solution != nil && job.Timestamp == a.Timestamp &&
		solution.GrantID == a.GrantID && solution.Nonce == a.Nonce && solution.Miner == name
}
