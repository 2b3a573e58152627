package fsm

import (
	"fmt"

	"raftmine/fsm/pow"
)

// checkJob reports parameters that no job can have.
func (c OpenJob) checkJob() error {
	if c.Height == 0 {
		return fmt.Errorf("height 0")
	}
	if c.Timestamp == 0 {
		return fmt.Errorf("timestamp 0")
	}
	if err := (pow.Work{Bits: c.Bits}).Validate(); err != nil {
		return err
	}
	if err := c.Nonces.Validate(); err != nil {
		return err
	}
	if c.ChunkSize == 0 || c.ChunkSize > MaxChunkSize {
		return fmt.Errorf("chunks of %d nonces, want 1 to %d", c.ChunkSize, uint64(MaxChunkSize))
	}
	if chunks := (c.Nonces.Len()-1)/c.ChunkSize + 1; chunks > MaxChunks {
		return fmt.Errorf("%d chunks, want at most %d: make them larger", chunks, uint64(MaxChunks))
	}
	return nil
}

// opens reports whether the command is the one that opened the job.
func (c OpenJob) opens(j *Job) bool {
	return j.Round == 0 && c == j.opening()
}

func (s *step) openJob(c OpenJob) Outcome {
	if err := c.checkJob(); err != nil {
		return wrong("open job: %v", err)
	}
	id := uint64(1)
	if s.job != nil {
		switch {
		case c.opens(s.job) && s.job.Phase == PhaseOpen:
			return Outcome{Code: Duplicate, JobID: s.job.ID}
		case c.opens(s.job):
			return stale("the same job was opened as job %d and is %s", s.job.ID, s.job.Phase)
		case s.job.Phase != PhaseClosed:
			return refused("job %d is %s", s.job.ID, s.job.Phase)
		}
		id = s.job.ID + 1
	}
	if last, ok := s.LastAccepted(); ok && c.Height <= last.Height {
		return refused("height %d is not above the accepted height %d", c.Height, last.Height)
	}
	s.job = &Job{
		ID:        id,
		Height:    c.Height,
		Previous:  c.Previous,
		Bits:      c.Bits,
		Timestamp: c.Timestamp,
		Nonces:    c.Nonces,
		ChunkSize: c.ChunkSize,
		Phase:     PhaseOpen,
		Opened:    s.index,
		OpenedAt:  s.unixMilli,
	}
	s.work = newWork(c.Nonces, c.ChunkSize) // and with it the last job's partition goes
	s.emit(JobChanged{Job: s.job.clone(), What: JobOpened})
	return Outcome{Code: Done, JobID: id}
}

// jobIs compares a command's job with the current one. It returns false with the outcome of a command for another job.
func (s *step) jobIs(id uint64) (Outcome, bool) {
	switch {
	case id == 0 || s.job == nil || id > s.job.ID:
		return wrong("there was no job %d yet", id), false
	case id < s.job.ID:
		return stale("job %d is over, the current one is job %d", id, s.job.ID), false
	}
	return Outcome{}, true
}

func (s *step) roll(c Roll) Outcome {
	if outcome, ok := s.jobIs(c.JobID); !ok {
		return outcome
	}
	switch job := s.job; {
	case c.Round == 0:
		return wrong("round 0 is not rolled to")
	case job.Phase != PhaseOpen:
		return stale("job %d is %s", job.ID, job.Phase)
	case c.Round == job.Round:
		return duplicate
	case c.Round < job.Round:
		return stale("round %d is over, the current one is round %d", c.Round, job.Round)
	case c.Round-1 != job.Round:
		return refused("round %d does not follow round %d", c.Round, job.Round)
	case c.Timestamp <= job.Timestamp:
		return refused("timestamp %d is not after %d", c.Timestamp, job.Timestamp)
	}
	if counts := s.work.counts(); counts.Pending > 0 || counts.Granted > 0 {
		return refused("%d chunks of round %d are not finished", counts.Pending+counts.Granted, s.job.Round)
	}
	s.job.Round, s.job.Timestamp = c.Round, c.Timestamp
	s.work.restart()
	s.emit(JobChanged{Job: s.job.clone(), What: JobRolled})
	return done
}

// submitting counts attempts, so that a repeated one is Done again.
func (s *step) submitting(c Submitting) Outcome {
	if outcome, ok := s.jobIs(c.JobID); !ok {
		return outcome
	}
	switch s.job.Phase {
	case PhaseOpen:
		return refused("job %d has no solution", c.JobID)
	case PhaseClosed:
		return stale("job %d is closed", c.JobID)
	}
	s.job.Phase = PhaseSubmitting
	addTo32(&s.job.Solution.Attempts, 1)
	return done
}

func (s *step) submitted(c Submitted) Outcome {
	if block := s.settled(c.JobID); block != nil {
		if block.Verdict == c.Verdict {
			return duplicate
		}
		return stale("job %d is settled: %s", c.JobID, block.Verdict)
	}
	if outcome, ok := s.jobIs(c.JobID); !ok {
		return outcome
	}
	if s.job.Phase != PhaseSubmitting {
		return refused("job %d is %s, not submitting", c.JobID, s.job.Phase)
	}
	// A block is accepted at most once per height, whatever the web service says.
	if last, ok := s.LastAccepted(); ok && c.Verdict == VerdictSuccess && s.job.Height <= last.Height {
		return refused("height %d is not above the accepted height %d", s.job.Height, last.Height)
	}
	s.job.Phase = PhaseClosed
	block := Block{
		Sequence:  uint64(len(s.blocks)) + 1,
		JobID:     s.job.ID,
		Height:    s.job.Height,
		Hash:      s.job.Solution.Hash,
		Previous:  s.job.Previous,
		Nonce:     s.job.Solution.Nonce,
		Timestamp: s.job.Timestamp,
		Bits:      s.job.Bits,
		Miner:     s.job.Solution.Miner,
		Verdict:   c.Verdict,
		Detail:    c.Detail,
		Index:     s.index,
		At:        s.unixMilli,
	}
	s.appendBlock(block)
	s.emit(BlockSettled{Block: block})
	s.emit(JobChanged{Job: s.job.clone(), What: JobClosed})
	return done
}

// appendBlock adds a settled block, with what is kept to find and to prove it.
func (s *State) appendBlock(block Block) {
	if block.Verdict == VerdictSuccess {
		s.accepted = append(s.accepted, len(s.blocks))
	}
	s.blocks = append(s.blocks, block)
	s.blockChain = chainBlock(s.blockChain, &block)
}

func (s *step) closeJob(c CloseJob) Outcome {
	if outcome, ok := s.jobIs(c.JobID); !ok {
		if outcome.Code == Stale { // whatever came before the current job is closed
			return duplicate
		}
		return outcome
	}
	switch s.job.Phase {
	case PhaseClosed:
		return duplicate
	case PhaseSolved, PhaseSubmitting:
		return refused("job %d is %s and must be settled", c.JobID, s.job.Phase)
	}
	s.job.Phase = PhaseClosed
	s.emit(JobChanged{Job: s.job.clone(), What: JobClosed})
	return done
}
