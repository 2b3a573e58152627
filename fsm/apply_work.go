package fsm

import (
	"cmp"
	"slices"

	"raftmine/fsm/pow"
)

// jobOpen is jobIs for commands that need an open job.
func (s *step) jobOpen(id uint64) (Outcome, bool) {
	if outcome, ok := s.jobIs(id); !ok {
		return outcome, false
	}
	if s.job.Phase != PhaseOpen {
		return stale("job %d is %s", id, s.job.Phase), false
	}
	return Outcome{}, true
}

// roundIs compares the timestamp that a miner searched with.
func (s *step) roundIs(timestamp uint64) (Outcome, bool) {
	switch {
	case timestamp > s.job.Timestamp:
		return wrong("timestamp %d was never searched with, the current one is %d", timestamp, s.job.Timestamp), false
	case timestamp < s.job.Timestamp:
		return stale("timestamp %d is over, the current one is %d", timestamp, s.job.Timestamp), false
	}
	return Outcome{}, true
}

func (s *step) grantWork(c GrantWork) Outcome {
	if c.RequestID == 0 {
		return wrong("request id 0")
	}
	if c.Chunks == 0 {
		return wrong("a grant of 0 chunks")
	}
	if outcome, ok := s.jobOpen(c.JobID); !ok {
		return outcome
	}
	row := s.miner(c.Miner)
	if row != nil {
		if row.Strikes >= MaxStrikes {
			return refused("miner %s has %d strikes", c.Miner, row.Strikes)
		}
		switch {
		case c.RequestID < row.LastRequestID:
			return refused("request %d of miner %s comes after request %d", c.RequestID, c.Miner, row.LastRequestID)
		case c.RequestID == row.LastRequestID:
			if grant := s.work.grant(row.LastGrantID); grant != nil {
				return Outcome{Code: Duplicate, Grant: grant.Grant}
			}
			return refused("request %d of miner %s was answered with grant %d, which is gone",
				c.RequestID, c.Miner, row.LastGrantID)
		}
	}
	run, ok := s.work.take(c.Chunks)
	if !ok {
		return because(NoWork, "nothing of job %d is pending", c.JobID)
	}
	s.lastGrantID++
	grant := Grant{
		ID:       s.lastGrantID,
		JobID:    c.JobID,
		Miner:    c.Miner,
		Instance: c.Instance,
		Nonces:   s.work.rangeOf(run),
		Index:    s.index,
	}
	s.work.hold(grant, run)
	if row == nil {
		row = s.minerRow(c.Miner)
	}
	row.LastRequestID, row.LastGrantID = c.RequestID, grant.ID
	return Outcome{Code: Done, Grant: grant}
}

// grantIs finds the grant that an answer is for. A nil grant with true means that it was issued and is gone.
func (s *step) grantIs(id uint64, miner string) (*holding, Outcome, bool) {
	if id == 0 || id > s.lastGrantID {
		return nil, wrong("there was no grant %d yet", id), false
	}
	grant := s.work.grant(id)
	if grant != nil && grant.Miner != miner {
		return nil, wrong("grant %d is not miner %s's", id, miner), false
	}
	return grant, Outcome{}, true
}

func (s *step) finish(c Finish) Outcome {
	grant, outcome, ok := s.grantIs(c.GrantID, c.Miner)
	if !ok {
		return outcome
	}
	if outcome, ok := s.jobOpen(c.JobID); !ok {
		return outcome
	}
	if outcome, ok := s.roundIs(c.Timestamp); !ok {
		return outcome
	}
	run, ok := s.work.runOf(c.Nonces)
	if !ok {
		return wrong("%s is not whole chunks of job %d", c.Nonces, c.JobID)
	}
	if !c.Nonces.Contains(c.Receipt) {
		return wrong("receipt %d lies outside %s", c.Receipt, c.Nonces)
	}
	switch {
	case grant == nil:
		if s.work.finished(run) {
			return duplicate
		}
		return because(Released, "grant %d was taken back", c.GrantID)
	case c.Nonces.Last < grant.Nonces.First && s.work.finished(run):
		return duplicate
	case c.Nonces.First != grant.Nonces.First || c.Nonces.Last > grant.Nonces.Last:
		return wrong("%s is not the head of %s, which is left of grant %d", c.Nonces, grant.Nonces, c.GrantID)
	}
	// The receipt is the best of the range. If even that is a solution, "no solution" is a lie.
	if _, valid := s.job.Work().Verify(c.Receipt); valid {
		return wrong("receipt %d is a solution", c.Receipt)
	}
	s.work.finish(grant, run)
	row := s.minerRow(c.Miner)
	addTo(&row.Chunks, run.len())
	addTo(&row.Nonces, c.Nonces.Len())
	return done
}

func (s *step) solve(c Solve) Outcome {
	grant, outcome, ok := s.grantIs(c.GrantID, c.Miner)
	if !ok {
		return outcome
	}
	if outcome, ok := s.jobIs(c.JobID); !ok {
		return outcome
	}
	if solution := s.job.Solution; solution != nil && c.Timestamp == s.job.Timestamp &&
		solution.GrantID == c.GrantID && solution.Miner == c.Miner && solution.Nonce == c.Nonce {
		return duplicate
	}
	if outcome, ok := s.jobOpen(c.JobID); !ok {
		return outcome
	}
	if outcome, ok := s.roundIs(c.Timestamp); !ok {
		return outcome
	}
	if !s.job.Nonces.Contains(c.Nonce) {
		return wrong("nonce %d lies outside %s", c.Nonce, s.job.Nonces)
	}
	hash, valid := s.job.Work().Verify(c.Nonce)
	if !valid {
		return wrong("nonce %d gives %d leading zero bits, want %d", c.Nonce, hash.LeadingZeroBits(), s.job.Bits)
	}
	if grant == nil {
		return because(Released, "grant %d was taken back", c.GrantID)
	}
	if !grant.Nonces.Contains(c.Nonce) { // the miner may have said before that there is none
		return wrong("nonce %d lies outside %s, which is left of grant %d", c.Nonce, grant.Nonces, c.GrantID)
	}
	s.job.Phase = PhaseSolved
	s.job.Solution = &Solution{GrantID: c.GrantID, Miner: c.Miner, Nonce: c.Nonce, Hash: hash, Index: s.index}
	addTo(&s.minerRow(c.Miner).Solutions, 1)
	s.emit(JobChanged{Job: s.job.clone(), What: JobSolved})
	return done
}

// release returns grants while the job is open. Later the partition is kept as it is, and only Forget does something.
// A forgotten miner holds nothing: with Forget all its grants return, whatever GrantIDs lists.
func (s *step) release(c Release) Outcome {
	for _, id := range c.GrantIDs {
		if _, outcome, ok := s.grantIs(id, c.Miner); !ok {
			return outcome
		}
	}
	open := s.job != nil && s.job.Phase == PhaseOpen
	changed := false
	held := s.work.heldBy(c.Miner)
	if open {
		for _, grant := range slices.Clone(held) {
			if len(c.GrantIDs) == 0 || c.Forget || slices.Contains(c.GrantIDs, grant.ID) {
				s.work.release(grant.holding)
				changed = true
			}
		}
	}
	if at, found := s.findMiner(c.Miner); found && c.Forget {
		row := s.miners[at]
		addTo(&s.forgotten.Chunks, row.Chunks)
		addTo(&s.forgotten.Nonces, row.Nonces)
		addTo(&s.forgotten.Solutions, row.Solutions)
		addTo32(&s.forgotten.Strikes, row.Strikes)
		s.miners = slices.Delete(s.miners, at, at+1)
		delete(s.byName, row.Name)
		s.work.forget(row.Name)
		changed = true
	}
	switch {
	case changed:
		return done
	case len(held) > 0 && !open:
		return stale("job %d is %s and keeps its partition", s.job.ID, s.job.Phase)
	}
	return duplicate
}

// strike counts each time it is applied.
func (s *step) strike(c Strike) Outcome {
	addTo32(&s.minerRow(c.Miner).Strikes, 1)
	return done
}

func (s *step) revoke(c Revoke) Outcome {
	if len(c.Ranges) == 0 {
		return wrong("no ranges")
	}
	if outcome, ok := s.jobOpen(c.JobID); !ok {
		return outcome
	}
	switch {
	case c.Round > s.job.Round:
		return wrong("there was no round %d yet", c.Round)
	case c.Round < s.job.Round:
		return stale("round %d is over, the current one is round %d", c.Round, s.job.Round)
	}
	runs := make([]run, len(c.Ranges))
	for i, nonces := range c.Ranges {
		var ok bool
		if runs[i], ok = s.work.runOf(nonces); !ok {
			return wrong("%s is not whole chunks of job %d", nonces, c.JobID)
		}
	}
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.first, b.first) })
	pending := 0
	var unfinished *pow.Range
	for i, r := range runs {
		nonces := s.work.rangeOf(r)
		if i > 0 && r.first < runs[i-1].end {
			return wrong("%s is listed twice", nonces)
		}
		if s.work.pending(r) {
			pending++
		} else if !s.work.finished(r) {
			unfinished = &nonces
		}
	}
	switch {
	case pending == len(runs):
		return duplicate
	case pending > 0 || unfinished != nil:
		if unfinished == nil {
			return refused("some of the chunks are pending")
		}
		return refused("%s is not finished", *unfinished)
	}
	row := s.miner(c.Miner)
	if row == nil { // forgotten, and its totals with it
		row = &s.forgotten
	}
	for _, r := range runs {
		nonces := s.work.rangeOf(r)
		s.work.putBack(r)
		takeFrom(&row.Chunks, r.len())
		takeFrom(&row.Nonces, nonces.Len())
	}
	return done
}
