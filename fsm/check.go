package fsm

import (
	"errors"
	"fmt"

	"raftmine/fsm/pow"
)

// Check verifies every invariant of the state and every proof in it. A state that Apply made always passes: an error
// means damage, or a bug. Its cost is that of the whole state, blocks included.
func (s *State) Check() error {
	checks := []struct {
		name  string
		check func() error
	}{
		{"history", s.checkHistory},
		{"servers", s.checkServers},
		{"job", s.checkJob},
		{"partition", s.checkPartition},
		{"grants", s.checkGrants},
		{"miners", s.checkMiners},
		{"blocks", s.checkBlocks},
	}
	for _, c := range checks {
		if err := c.check(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

func (s *State) checkHistory() error {
	if (s.head.Records == 0) != (s.head == Head{}) || s.head.Records > s.head.Index {
		return fmt.Errorf("%d records up to entry %d of term %d", s.head.Records, s.head.Index, s.head.Term)
	}
	if o := s.office; (o.ServerID == 0) != (o == Office{}) || o.Term > s.head.Term || o.Index > s.head.Index ||
		o.ServerID != 0 && (o.Term == 0 || o.Index == 0) {
		return fmt.Errorf("server %d took office in term %d at entry %d, the last one is %d of term %d",
			o.ServerID, o.Term, o.Index, s.head.Index, s.head.Term)
	}
	if r := s.recovery; r != nil && (r.RecoveryID == ID{} || r.Survivor == 0 || r.Index >= s.head.Index ||
		r.Term > s.head.Term) {
		return fmt.Errorf("server %d recovered at entry %d of term %d", r.Survivor, r.Index, r.Term)
	}
	return checkText("cluster id", s.clusterID, MaxClusterID)
}

func (s *State) checkServers() error {
	requests := make(map[ID]uint64, len(s.servers))
	for i, row := range s.servers {
		if row.ID != uint64(i)+1 {
			return fmt.Errorf("server %d stands in row %d", row.ID, i+1)
		}
		if other := requests[row.RequestID]; other != 0 || row.RequestID == (ID{}) {
			return fmt.Errorf("server %d has the request id of server %d", row.ID, other)
		}
		requests[row.RequestID] = row.ID
		if row.Up && !row.Member {
			return fmt.Errorf("server %d is up and no member", row.ID)
		}
		if row.Since == 0 || row.Since > s.head.Index {
			return fmt.Errorf("server %d changed at entry %d, the last one is %d", row.ID, row.Since, s.head.Index)
		}
		if row.Address == "" || row.DataDir == "" {
			return fmt.Errorf("server %d has no address or no data directory", row.ID)
		}
		if err := checkPlace(row.Address, row.DataDir, row.Host); err != nil {
			return fmt.Errorf("server %d: %w", row.ID, err)
		}
	}
	return nil
}

// opening returns the command that opens the job as it is now, with its current timestamp.
func (j *Job) opening() OpenJob {
	return OpenJob{Height: j.Height, Previous: j.Previous, Bits: j.Bits, Timestamp: j.Timestamp, Nonces: j.Nonces,
		ChunkSize: j.ChunkSize}
}

func (s *State) checkJob() error {
	if s.job == nil {
		if s.lastGrantID != 0 || len(s.blocks) != 0 {
			return errors.New("grants or blocks without a job")
		}
		return nil
	}
	j := s.job
	if err := j.opening().checkJob(); err != nil {
		return err
	}
	if j.ID == 0 || j.Opened == 0 || j.Opened > s.head.Index {
		return fmt.Errorf("job %d opened at entry %d, the last one is %d", j.ID, j.Opened, s.head.Index)
	}
	if j.Phase < PhaseOpen || j.Phase > PhaseClosed {
		return fmt.Errorf("unknown phase %d", j.Phase)
	}
	settled := len(s.blocks) > 0 && s.blocks[len(s.blocks)-1].JobID == j.ID
	if settled && (j.Phase != PhaseClosed || j.Solution == nil) || !settled && j.Phase == PhaseClosed && j.Solution != nil {
		return fmt.Errorf("it is %s and its block does not fit", j.Phase)
	}
	if j.Solution == nil {
		if j.Phase == PhaseSolved || j.Phase == PhaseSubmitting {
			return fmt.Errorf("it is %s without a solution", j.Phase)
		}
		return nil
	}
	if j.Phase == PhaseOpen {
		return errors.New("it is open with a solution")
	}
	return s.checkSolution(j)
}

func (s *State) checkSolution(j *Job) error {
	solution := j.Solution
	grant := s.work.grant(solution.GrantID)
	switch {
	case (solution.Attempts == 0) != (j.Phase == PhaseSolved):
		return fmt.Errorf("it is %s with %d attempts", j.Phase, solution.Attempts)
	case solution.Index < j.Opened || solution.Index > s.head.Index:
		return fmt.Errorf("solved at entry %d", solution.Index)
	case grant == nil || grant.Miner != solution.Miner || !grant.Nonces.Contains(solution.Nonce):
		return fmt.Errorf("nonce %d of miner %s does not lie in grant %d", solution.Nonce, solution.Miner, solution.GrantID)
	}
	if hash, valid := j.Work().Verify(solution.Nonce); !valid || hash != solution.Hash {
		return fmt.Errorf("the proof of nonce %d does not hold", solution.Nonce)
	}
	return nil
}

// checkPartition verifies that each chunk is pending, granted once, or finished, and that the representation of what is
// pending is the only one.
func (s *State) checkPartition() error {
	w := &s.work
	if s.job == nil {
		if w.total != 0 || w.cursor != 0 || len(w.returned) != 0 || len(w.grants) != 0 {
			return errors.New("a partition without a job")
		}
		return nil
	}
	if w.nonces != s.job.Nonces || w.chunkSize != s.job.ChunkSize || w.total != s.job.Chunks() || w.cursor > w.total {
		return fmt.Errorf("%d chunks of %s with a cursor at %d", w.total, w.nonces, w.cursor)
	}
	var returned, granted uint64
	for i, r := range w.returned {
		if r.first >= r.end || r.end >= w.cursor || i > 0 && r.first <= w.returned[i-1].end {
			return fmt.Errorf("returned chunks %d to %d, cursor at %d", r.first, r.end, w.cursor)
		}
		returned += r.len()
	}
	at := 0 // in returned
	var before uint64
	for _, g := range w.byFirst {
		r, ok := w.runOf(g.Nonces)
		if !ok || r.end > w.cursor || r.first < before || g.key != g.Nonces.First {
			return fmt.Errorf("grant %d of %s meets another, or what was never granted", g.ID, g.Nonces)
		}
		before = r.end
		for at < len(w.returned) && w.returned[at].end <= r.first {
			at++
		}
		if at < len(w.returned) && w.returned[at].first < r.end {
			return fmt.Errorf("grant %d of %s is also returned", g.ID, g.Nonces)
		}
		granted += r.len()
	}
	if returned != w.returnedChunks || granted != w.grantedChunks {
		return fmt.Errorf("%d returned and %d granted, counted as %d and %d",
			returned, granted, w.returnedChunks, w.grantedChunks)
	}
	return nil
}

func (s *State) checkGrants() error {
	w := &s.work
	var last uint64
	for _, g := range w.grants {
		if g.key != g.ID || g.ID <= last || g.ID > s.lastGrantID || g.JobID != s.job.ID {
			return fmt.Errorf("grant %d of job %d follows grant %d, the last one is %d", g.ID, g.JobID, last, s.lastGrantID)
		}
		last = g.ID
		if g.Index < s.job.Opened || g.Index > s.head.Index {
			return fmt.Errorf("grant %d is of entry %d", g.ID, g.Index)
		}
		if err := CheckMinerName(g.Miner); err != nil {
			return fmt.Errorf("grant %d: %w", g.ID, err)
		}
		if s.job.Phase == PhaseOpen && s.miner(g.Miner) == nil {
			return fmt.Errorf("grant %d: miner %s is not known", g.ID, g.Miner)
		}
	}
	held := 0
	for name, h := range w.byMiner {
		held += len(h.grants)
		for i, g := range h.grants {
			if g.Miner != name || g.holder != h || w.grant(g.ID) != g.holding || g.key != g.ID || i > 0 && g.ID <= h.grants[i-1].ID {
				return fmt.Errorf("miner %s is listed with grant %d", name, g.ID)
			}
		}
	}
	if held != len(w.grants) || len(w.byFirst) != len(w.grants) {
		return fmt.Errorf("%d grants, %d by miner, %d by nonce", len(w.grants), held, len(w.byFirst))
	}
	return nil
}

func (s *State) checkMiners() error {
	if len(s.byName) != len(s.miners) {
		return fmt.Errorf("%d miners, and %d names of them", len(s.miners), len(s.byName))
	}
	for i, m := range s.miners {
		if s.byName[m.Name] != m {
			return fmt.Errorf("%s is another miner by its name", m.Name)
		}
		if err := CheckMinerName(m.Name); err != nil {
			return err
		}
		if i > 0 && m.Name <= s.miners[i-1].Name {
			return fmt.Errorf("%s follows %s", m.Name, s.miners[i-1].Name)
		}
		if (m.LastRequestID == 0) != (m.LastGrantID == 0) || m.LastGrantID > s.lastGrantID {
			return fmt.Errorf("%s: request %d was answered with grant %d", m.Name, m.LastRequestID, m.LastGrantID)
		}
		if g := s.work.grant(m.LastGrantID); g != nil && g.Miner != m.Name {
			return fmt.Errorf("%s: grant %d is miner %s's", m.Name, g.ID, g.Miner)
		}
	}
	if f := s.forgotten; f.Name != "" || f.LastRequestID != 0 || f.LastGrantID != 0 {
		return fmt.Errorf("the forgotten have the name %q and request %d", f.Name, f.LastRequestID)
	}
	return nil
}

func (s *State) checkBlocks() error {
	var chain pow.Hash
	var last Block
	var height uint64 // of the last accepted one
	accepted := 0
	for i := range s.blocks {
		b := &s.blocks[i]
		if b.Sequence != uint64(i)+1 || b.JobID <= last.JobID || b.JobID > s.job.ID || b.Index < last.Index ||
			b.Index > s.head.Index {
			return fmt.Errorf("block %d of job %d at entry %d stands in row %d", b.Sequence, b.JobID, b.Index, i+1)
		}
		if b.Verdict < VerdictSuccess || b.Verdict > VerdictUnknown {
			return fmt.Errorf("block %d: unknown verdict %d", b.Sequence, b.Verdict)
		}
		if b.Height <= height {
			return fmt.Errorf("block %d: height %d is not above the accepted height %d", b.Sequence, b.Height, height)
		}
		if err := errors.Join(CheckMinerName(b.Miner), checkText("detail", b.Detail, MaxText)); err != nil {
			return fmt.Errorf("block %d: %w", b.Sequence, err)
		}
		work := pow.Work{Previous: b.Previous, Timestamp: b.Timestamp, Bits: b.Bits}
		if hash, valid := work.Verify(b.Nonce); !valid || hash != b.Hash || work.Validate() != nil || b.Nonce == 0 {
			return fmt.Errorf("block %d: the proof of nonce %d does not hold", b.Sequence, b.Nonce)
		}
		if b.Verdict == VerdictSuccess {
			if accepted >= len(s.accepted) || s.accepted[accepted] != i {
				return fmt.Errorf("block %d is not listed as accepted", b.Sequence)
			}
			accepted++
			height = b.Height
		}
		chain = chainBlock(chain, b)
		last = *b
	}
	if chain != s.blockChain || accepted != len(s.accepted) {
		return fmt.Errorf("%d accepted blocks, counted as %d, or their chain is broken", accepted, len(s.accepted))
	}
	if n := len(s.blocks); n > 0 && last.JobID == s.job.ID {
		j := s.job
		if j.Solution == nil || last.Hash != j.Solution.Hash || last.Nonce != j.Solution.Nonce || last.Height != j.Height ||
			last.Miner != j.Solution.Miner || last.Previous != j.Previous || last.Timestamp != j.Timestamp ||
			last.Bits != j.Bits {
			return fmt.Errorf("block %d is not the solution of job %d", last.Sequence, j.ID)
		}
	} else if s.job != nil && s.job.Height <= height {
		return fmt.Errorf("job %d is for height %d, and %d is accepted", s.job.ID, s.job.Height, height)
	}
	return nil
}
