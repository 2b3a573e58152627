package audit

import (
	"cmp"
	"fmt"
	"slices"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// command takes one command and its outcome into the account. What the state did is checked against what the account
// allows; before is the head before the record.
func (a *auditor) command(entry *fsm.Entry, command fsm.Command, outcome *fsm.Outcome, before *fsm.Head) {
	done := outcome.Code == fsm.Done
	switch c := command.(type) {
	case fsm.GrantWork:
		a.grantWork(c, outcome)
	case fsm.Finish:
		a.finish(c, done)
	case fsm.Solve:
		a.solve(c, done)
	case fsm.Release:
		if done {
			a.release(c)
		}
	case fsm.Revoke:
		switch outcome.Code {
		case fsm.Done:
			a.revoke(c)
		case fsm.Stale: // the job was over before, and with it what could be taken back
			a.miner(c.Miner).Receipts.revoke(0)
		}
	case fsm.Strike:
		a.report.Strikes++
		a.cell().Faults++
		row := a.miner(c.Miner)
		row.Strikes++
		row.strikes++
		a.visit(Struck{Miner: c.Miner, Reason: c.Reason, At: a.at})
	case fsm.OpenJob:
		if done {
			a.openJob(c, outcome.JobID)
		}
	case fsm.Roll:
		a.roll(c, done)
	case fsm.Submitting:
		if done {
			a.submitting()
		}
	case fsm.Submitted:
		if done {
			a.submitted(c)
		}
	case fsm.CloseJob:
		if done {
			a.closeJob(c)
		}
	case fsm.TakeOffice:
		if done {
			a.takeOffice(entry, c, before)
		}
	case fsm.OpenCluster:
		if done {
			a.report.Named = a.at
			if want := a.o.ClusterID; want != "" && c.ClusterID != want {
				a.wrong(KindCluster, "it opens cluster %s, and the history should be of cluster %s: it is another cluster's", c.ClusterID, want)
			}
		}
	case fsm.ClusterStop:
		if done {
			a.report.Stops++
			a.visit(ClusterEvent{What: "planned stop of all servers: " + c.Reason, At: a.at})
		}
	case fsm.Recover:
		if done {
			a.report.Recoveries++
			a.cell().Faults++
			a.visit(ClusterEvent{What: recovered(c), At: a.at})
		}
	}
}

func (a *auditor) miner(name string) *minerRow {
	row := a.known(name)
	if row == nil {
		row = &minerRow{Miner: Miner{Name: name}}
		a.miners[name] = row
	}
	return row
}

// known returns the row of a miner, nil when there is none.
func (a *auditor) known(name string) *minerRow {
	if a.recent == nil || a.recent.Name != name {
		a.recent = a.miners[name]
	}
	return a.recent
}

// holding returns a grant that a miner holds, nil when it does not.
func (a *auditor) holding(miner string, grant uint64) *held {
	row := a.known(miner)
	if row == nil || row.job != a.report.Jobs {
		return nil
	}
	for _, own := range row.grants {
		if own.id == grant {
			return own
		}
	}
	return nil
}

// working returns the row of a miner that works for the current job.
func (a *auditor) working(name string) *minerRow {
	row := a.miner(name)
	if row.job != a.report.Jobs {
		row.job = a.report.Jobs
		row.share = &Share{Miner: name}
		row.number = a.part.number(name)
		row.grants = row.grants[:0]
		a.job.shares = append(a.job.shares, row.share)
	}
	return row
}

func (a *auditor) takeOffice(entry *fsm.Entry, c fsm.TakeOffice, before *fsm.Head) {
	if c.ServerID != entry.LeaderID {
		a.wrong(KindTerm, "server %d says that server %d takes office", entry.LeaderID, c.ServerID)
	}
	report := a.report
	event := TookOffice{ServerID: c.ServerID, Term: a.at.Term, Before: a.office, At: a.at}
	if before.Records > 0 {
		event.Silent = a.at.UnixMilli - min(a.at.UnixMilli, a.lastUnixMilli)
	}
	report.Terms++
	if event.Before != 0 && event.Before != c.ServerID {
		report.Takeovers++
	}
	a.office = c.ServerID
	a.led[c.ServerID] = true
	a.cell().Leader = c.ServerID
	a.cell().Terms++
	a.visit(event)
}

func recovered(c fsm.Recover) string {
	return fmt.Sprintf("server %d went on alone from entry %d of term %d", c.Survivor, c.Index, c.Term)
}

func (a *auditor) openJob(c fsm.OpenJob, id uint64) {
	last := uint64(0)
	if a.job != nil {
		last = a.job.ID
	}
	switch {
	case a.job != nil && a.phase != fsm.PhaseClosed:
		a.wrong(KindJob, "job %d is opened while job %d is %s", id, last, a.phase)
	case id != last+1:
		a.wrong(KindJob, "job %d follows job %d", id, last)
	case c.Height <= a.accepted:
		a.wrong(KindJob, "job %d is for height %d, and height %d is accepted", id, c.Height, a.accepted)
	}
	a.job = &Job{ID: id, Height: c.Height, Previous: c.Previous, Bits: c.Bits, Nonces: c.Nonces, ChunkSize: c.ChunkSize,
		Timestamp: c.Timestamp, Opened: a.at}
	for i := range a.job.Regrants {
		a.job.Regrants[i].Reason = reason(i + 1).String()
	}
	a.report.Jobs++
	a.work = pow.Work{Previous: c.Previous, Timestamp: c.Timestamp, Bits: c.Bits}
	a.phase = fsm.PhaseOpen
	a.part = newPartition(c.Nonces, c.ChunkSize)
	a.job.Chunks = a.part.chunks[untouched]
	a.lost, a.jobMoved = false, true
	a.held = 0 // the miners' rows find out for themselves
}

// open reports whether the job with that id is being searched.
func (a *auditor) open(job uint64) bool {
	return a.job != nil && job == a.job.ID && a.phase == fsm.PhaseOpen
}

func (a *auditor) grantWork(c fsm.GrantWork, outcome *fsm.Outcome) {
	grant := &outcome.Grant
	switch outcome.Code {
	case fsm.Duplicate:
		if own := a.holding(c.Miner, grant.ID); own == nil || own.left != grant.Nonces {
			a.wrong(KindPartition, "miner %s is given grant %d of %s again, which it does not hold", c.Miner, grant.ID,
				grant.Nonces)
		}
		return
	case fsm.Done:
	default:
		return
	}
	if !a.open(c.JobID) {
		a.wrong(KindJob, "a grant of job %d, which is not open", c.JobID)
		return
	}
	row := a.working(c.Miner)
	if row.strikes >= fsm.MaxStrikes {
		a.wrong(KindJob, "miner %s has %d strikes and is granted %s", c.Miner, row.strikes, grant.Nonces)
	}
	if grant.ID != a.lastGrant+1 || grant.Miner != c.Miner {
		a.wrong(KindPartition, "grant %d of miner %s answers miner %s and follows grant %d", grant.ID, grant.Miner, c.Miner,
			a.lastGrant)
	}
	a.lastGrant = grant.ID
	if err := a.part.whole(grant.Nonces); err != nil {
		a.wrong(KindPartition, "grant %d: %v", grant.ID, err)
		return
	}
	if n := a.part.count(grant.Nonces); n > c.Chunks {
		a.wrong(KindPartition, "grant %d has %d chunks, and %d were asked for", grant.ID, n, c.Chunks)
	}
	for _, s := range a.part.in(grant.Nonces) {
		switch nonces := clip(s.nonces, grant.Nonces); s.owner {
		case untouched:
		case returned:
			a.regrant(s, nonces, c.Miner)
		default:
			a.wrong(KindPartition, "grant %d: %s is granted to miner %s and is %s", grant.ID, nonces, c.Miner,
				a.part.describe(s))
		}
	}
	a.part.set(grant.Nonces, stretch{owner: granted, grant: grant.ID, miner: row.number})
	a.hold(held{id: grant.ID, miner: row, all: grant.Nonces, left: grant.Nonces, granted: a.at})
	if row.share.FirstUnixMilli == 0 {
		row.share.FirstUnixMilli = a.at.UnixMilli
	}
}

func (p *partition) describe(s stretch) string {
	switch s.owner {
	case granted:
		return "granted to miner " + p.names[s.miner]
	case finished:
		return "finished"
	}
	return "pending"
}

func (a *auditor) regrant(s stretch, nonces pow.Range, to string) {
	chunks := a.part.count(nonces)
	for _, row := range []*Regrant{&a.report.Regrants[s.why-1], &a.job.Regrants[s.why-1]} {
		row.Ranges++
		row.Chunks += chunks
	}
	if a.o.Visit != nil {
		a.visit(Regranted{JobID: a.job.ID, Nonces: nonces, From: a.part.names[s.miner], To: to, Reason: s.why.String(), At: a.at})
	}
}

// holds returns a miner's grant when it may be answered for.
func (a *auditor) holds(job, grant, timestamp uint64, miner string) *held {
	if !a.open(job) || timestamp != a.work.Timestamp {
		return nil
	}
	return a.holding(miner, grant)
}

func (a *auditor) finish(c fsm.Finish, done bool) {
	own := a.holds(c.JobID, c.GrantID, c.Timestamp, c.Miner)
	may := own != nil && c.Nonces.First == own.left.First && c.Nonces.Last <= own.left.Last &&
		a.part.whole(c.Nonces) == nil
	if !may {
		if done {
			a.wrong(KindPartition, "miner %s finished %s of grant %d, which it does not hold", c.Miner, c.Nonces, c.GrantID)
		}
		return
	}
	inside := c.Nonces.Contains(c.Receipt)
	digest, solved := a.work.Verify(c.Receipt)
	switch {
	case done && (!inside || solved):
		a.wrong(KindProof, "the receipt %d of %s is outside of it, or a solution", c.Receipt, c.Nonces)
	case !done && inside && !solved:
		a.wrong(KindPartition, "miner %s finished %s of grant %d, and it was not taken", c.Miner, c.Nonces, c.GrantID)
		return
	case !done:
		return
	}
	n := c.Nonces.Len()
	a.report.Ranges++
	a.report.Nonces += n
	a.job.Ranges++
	a.job.Hashes += n
	a.part.set(c.Nonces, stretch{owner: finished})
	row, grantedAt := own.miner, own.granted
	if c.Nonces.Last == own.left.Last {
		a.drop(own)
	} else {
		own.left.First = c.Nonces.Last + 1
	}
	share := row.share
	share.Ranges++
	share.Nonces += n
	share.LastUnixMilli = a.at.UnixMilli
	excess := pow.Excess(n, a.work.Bits, digest)
	row.Receipts.Add(c.Nonces, excess, a.at)
	if a.o.Searched != nil && a.err == nil {
		a.err = a.o.Searched(Searched{JobID: c.JobID, Round: a.job.Rounds, GrantID: c.GrantID, Miner: c.Miner, Work: a.work,
			Nonces: c.Nonces, Receipt: c.Receipt, Digest: digest, Excess: excess, Granted: grantedAt, Finished: a.at})
	}
}

// hold remembers a grant.
func (a *auditor) hold(grant held) {
	var own *held
	if n := len(a.spare); n > 0 {
		own, a.spare = a.spare[n-1], a.spare[:n-1]
	} else {
		own = new(held)
	}
	*own = grant
	a.held++
	grant.miner.grants = append(grant.miner.grants, own)
}

// interrupt tells of a grant that was not finished.
func (a *auditor) interrupt(own *held, why string) {
	if a.o.Interrupted != nil && a.err == nil {
		a.err = a.o.Interrupted(Interrupted{JobID: a.job.ID, Round: a.job.Rounds, GrantID: own.id, Miner: own.miner.Name,
			Nonces: own.left, Reason: why, Granted: own.granted, At: a.at})
	}
}

// interruptAll tells of all grants that are held when the job is over, in the order of their nonces. solved is the one
// that solved it, nil when none did.
func (a *auditor) interruptAll(why string, solved *held) {
	if a.o.Interrupted == nil {
		return
	}
	var all []*held
	for _, row := range a.miners {
		if row.job == a.report.Jobs {
			all = append(all, row.grants...)
		}
	}
	slices.SortFunc(all, func(x, y *held) int { return cmp.Compare(x.left.First, y.left.First) })
	for _, own := range all {
		if own == solved {
			a.interrupt(own, InterruptedBySolution)
		} else {
			a.interrupt(own, why)
		}
	}
}

// drop forgets a grant of which nothing is left.
func (a *auditor) drop(own *held) {
	a.held--
	if at := slices.Index(own.miner.grants, own); at >= 0 {
		own.miner.grants = slices.Delete(own.miner.grants, at, at+1)
	}
	a.spare = append(a.spare, own)
}

func (a *auditor) solve(c fsm.Solve, done bool) {
	own := a.holds(c.JobID, c.GrantID, c.Timestamp, c.Miner)
	if own == nil || !own.left.Contains(c.Nonce) {
		if done {
			a.wrong(KindPartition, "miner %s solved job %d with nonce %d of grant %d, which it does not hold", c.Miner, c.JobID,
				c.Nonce, c.GrantID)
		}
		return
	}
	hash, valid := a.work.Verify(c.Nonce)
	if done != valid {
		a.wrong(KindProof, "nonce %d of job %d gives %d leading zero bits of %d, and was taken: %t", c.Nonce, c.JobID,
			hash.LeadingZeroBits(), a.work.Bits, done)
	}
	if !done {
		return
	}
	job := a.job
	job.Solution = &Solution{Miner: c.Miner, Nonce: c.Nonce, Hash: hash, GrantID: c.GrantID, Nonces: own.all, Left: own.left,
		Granted: own.granted, At: a.at}
	job.Hashes += c.Nonce - own.left.First + 1
	share := own.miner.share
	share.Nonces += c.Nonce - own.left.First + 1
	share.LastUnixMilli = a.at.UnixMilli
	own.miner.Solutions++
	job.Interrupted += uint64(a.held - 1)
	a.interruptAll(InterruptedSolved, own)
	job.Below, job.Searched = a.part.below(c.Nonce), a.part.below(0)
	if job.Below.Gaps > 0 {
		a.wrong(KindPartition, "%d chunks below the solution %d of job %d were never granted", job.Below.Gaps, c.Nonce, job.ID)
	}
	a.phase, a.jobMoved = fsm.PhaseSolved, true
}

func (a *auditor) release(c fsm.Release) {
	row := a.miner(c.Miner)
	if a.job != nil && a.phase == fsm.PhaseOpen && row.job == a.report.Jobs {
		back := 0
		for _, own := range slices.Clone(row.grants) {
			if len(c.GrantIDs) > 0 && !c.Forget && !slices.Contains(c.GrantIDs, own.id) {
				continue
			}
			a.part.set(own.left, stretch{owner: returned, miner: row.number, why: reason(c.Reason)})
			a.job.Interrupted++
			a.interrupt(own, c.Reason.String())
			a.drop(own)
			row.share.GrantsTakenBack++
			back++
		}
		if back > 0 && c.Reason != fsm.ReleaseLeft {
			a.cell().Faults++
		}
	}
	if c.Forget {
		row.strikes = 0
	}
}

func (a *auditor) revoke(c fsm.Revoke) {
	if !a.open(c.JobID) || c.Round != a.job.Rounds {
		a.wrong(KindJob, "chunks of job %d, round %d, are revoked, which is over", c.JobID, c.Round)
		return
	}
	row := a.working(c.Miner)
	chunks := uint64(0)
	for _, nonces := range c.Ranges {
		if err := a.part.whole(nonces); err != nil {
			a.wrong(KindPartition, "revoked: %v", err)
			continue
		}
		if at, s, ok := a.part.all(nonces, func(s stretch) bool { return s.owner == finished }); !ok {
			a.wrong(KindPartition, "%s is revoked and is %s", at, a.part.describe(s))
		}
		a.part.set(nonces, stretch{owner: returned, miner: row.number, why: revoked})
		chunks += a.part.count(nonces)
	}
	a.report.Revoked += chunks
	a.job.Revoked += chunks
	row.Receipts.revoke(chunks)
	a.cell().Faults++
	a.visit(Revoked{JobID: c.JobID, Miner: c.Miner, Ranges: c.Ranges, Chunks: chunks, Reason: c.Reason, At: a.at})
}

func (a *auditor) roll(c fsm.Roll, done bool) {
	may := a.open(c.JobID) && c.Round == a.job.Rounds+1 && c.Timestamp > a.job.Timestamp &&
		a.part.chunks[finished] == a.job.Chunks
	if done != may {
		a.wrong(KindPartition, "job %d goes on to round %d with %d of %d chunks finished, and that was taken: %t", c.JobID,
			c.Round, a.part.chunks[finished], a.part.chunks[finished]+a.part.chunks[granted]+a.part.chunks[returned]+
				a.part.chunks[untouched], done)
	}
	if !done || a.job == nil {
		return
	}
	a.job.Rounds, a.job.Timestamp, a.job.Rolled = c.Round, c.Timestamp, a.at
	a.work.Timestamp = c.Timestamp
	a.report.Rolls++
	a.part.restart()
	a.jobMoved = true
}

func (a *auditor) submitting() {
	if a.job == nil || a.phase != fsm.PhaseSolved && a.phase != fsm.PhaseSubmitting {
		a.wrong(KindJob, "a solution is submitted, and there is none")
		return
	}
	if a.job.Submissions == 0 {
		a.job.Submitted = a.at
	}
	a.job.Submissions++
	a.phase, a.jobMoved = fsm.PhaseSubmitting, true
}

func (a *auditor) submitted(c fsm.Submitted) {
	if a.job == nil || c.JobID != a.job.ID || a.phase != fsm.PhaseSubmitting {
		a.wrong(KindJob, "a verdict for job %d, which was not submitted", c.JobID)
		return
	}
	job := a.job
	job.Verdict, job.Detail, job.Settled = c.Verdict, c.Detail, a.at
	a.report.Verdicts[c.Verdict]++
	if c.Verdict == fsm.VerdictSuccess {
		if job.Height <= a.accepted {
			a.wrong(KindJob, "height %d is accepted again, after height %d", job.Height, a.accepted)
		}
		a.accepted = job.Height
		a.cell().Blocks++
	} else {
		a.cell().Faults++
	}
	a.phase, a.jobMoved = fsm.PhaseClosed, true
	a.visit(JobEnded{job.told()})
}

func (a *auditor) closeJob(c fsm.CloseJob) {
	if !a.open(c.JobID) {
		a.wrong(KindJob, "job %d is closed, and is not open", c.JobID)
		return
	}
	a.job.Interrupted += uint64(a.held)
	a.interruptAll(InterruptedClosed, nil)
	a.job.Closed, a.job.Detail, a.job.Searched = a.at, c.Reason, a.part.below(0)
	a.report.Stale++
	a.phase, a.jobMoved = fsm.PhaseClosed, true
	a.visit(JobEnded{a.job.told()})
}
