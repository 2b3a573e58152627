package fsm

import (
	"slices"

	"raftmine/fsm/pow"
)

// model is what the state should be, written as naively as can be: one owner for each chunk. It shares no arithmetic
// with State.
type model struct {
	job       OpenJob
	jobID     uint64
	phase     Phase
	round     uint32
	owners    []int64 // of each chunk: pending, finished, or a grant id
	chunks    []pow.Range
	grants    map[uint64]string // id to miner, those that are held
	lastGrant uint64
	miners    map[string]*modelMiner
	forgotten modelMiner
	solution  Solve
	heights   []uint64           // of accepted blocks
	verdicts  map[uint64]Verdict // by job
}

type modelMiner struct{ chunks, nonces, solutions, strikes, request, grant uint64 }

const (
	ownerPending  = 0
	ownerFinished = -1
)

func newModel() *model {
	return &model{grants: map[uint64]string{}, miners: map[string]*modelMiner{}, verdicts: map[uint64]Verdict{}}
}

func (m *model) work() pow.Work {
	return pow.Work{Previous: m.job.Previous, Timestamp: m.job.Timestamp, Bits: m.job.Bits}
}

func (m *model) miner(name string) *modelMiner {
	if m.miners[name] == nil {
		m.miners[name] = &modelMiner{}
	}
	return m.miners[name]
}

// find returns the chunks that make up nonces exactly, and false when there are none.
func (m *model) find(nonces pow.Range) (from, to int, ok bool) {
	from = slices.IndexFunc(m.chunks, func(c pow.Range) bool { return c.First == nonces.First })
	to = slices.IndexFunc(m.chunks, func(c pow.Range) bool { return c.Last == nonces.Last })
	return from, to, from >= 0 && to >= from
}

func (m *model) all(from, to int, owner int64) bool {
	for k := from; k <= to; k++ {
		if m.owners[k] != owner {
			return false
		}
	}
	return true
}

func (m *model) counts() Counts {
	c := Counts{Total: uint64(len(m.owners))}
	for _, owner := range m.owners {
		switch owner {
		case ownerPending:
			c.Pending++
		case ownerFinished:
			c.Finished++
		default:
			c.Granted++
		}
	}
	return c
}

// apply returns the code that a command must have.
func (m *model) apply(command Command) Code {
	switch c := command.(type) {
	case OpenJob:
		return m.openJob(c)
	case GrantWork:
		return m.grantWork(c)
	case Finish:
		return m.finish(c)
	case Solve:
		return m.solve(c)
	case Release:
		return m.release(c)
	case Strike:
		m.miner(c.Miner).strikes++
		return Done
	case Revoke:
		return m.revoke(c)
	case Roll:
		return m.roll(c)
	case Submitting:
		if code := m.sameJob(c.JobID); code != 0 {
			return code
		}
		switch m.phase {
		case PhaseOpen:
			return Refused
		case PhaseClosed:
			return Stale
		}
		m.phase = PhaseSubmitting
		return Done
	case Submitted:
		return m.submitted(c)
	case CloseJob:
		switch {
		case c.JobID == 0 || c.JobID > m.jobID:
			return Wrong
		case c.JobID < m.jobID || m.phase == PhaseClosed:
			return Duplicate
		case m.phase != PhaseOpen:
			return Refused
		}
		m.phase = PhaseClosed
		return Done
	}
	panic("no such command in the model")
}

// sameJob returns 0 when the command is for the current job.
func (m *model) sameJob(id uint64) Code {
	if id == 0 || id > m.jobID {
		return Wrong
	}
	if id < m.jobID {
		return Stale
	}
	return 0
}

func (m *model) openJob(c OpenJob) Code {
	if m.jobID > 0 {
		if m.round == 0 && m.job == c {
			if m.phase == PhaseOpen {
				return Duplicate
			}
			return Stale
		}
		if m.phase != PhaseClosed {
			return Refused
		}
	}
	if len(m.heights) > 0 && c.Height <= slices.Max(m.heights) {
		return Refused
	}
	m.job, m.jobID, m.phase, m.round = c, m.jobID+1, PhaseOpen, 0
	m.solution = Solve{}
	clear(m.grants)
	m.chunks = nil
	for first := c.Nonces.First; ; first += c.ChunkSize {
		if c.Nonces.Last-first < c.ChunkSize {
			m.chunks = append(m.chunks, pow.Range{First: first, Last: c.Nonces.Last})
			break
		}
		m.chunks = append(m.chunks, pow.Range{First: first, Last: first + c.ChunkSize - 1})
	}
	m.owners = make([]int64, len(m.chunks))
	return Done
}

func (m *model) grantWork(c GrantWork) Code {
	if code := m.sameJob(c.JobID); code != 0 {
		return code
	}
	if m.phase != PhaseOpen {
		return Stale
	}
	if known := m.miners[c.Miner]; known != nil {
		if known.strikes >= MaxStrikes {
			return Refused
		}
		if c.RequestID < known.request {
			return Refused
		}
		if known.request == c.RequestID {
			if m.grants[known.grant] == c.Miner {
				return Duplicate
			}
			return Refused
		}
	}
	from := slices.Index(m.owners, ownerPending)
	if from < 0 {
		return NoWork
	}
	m.lastGrant++
	for k := from; k < len(m.owners) && uint64(k-from) < c.Chunks && m.owners[k] == ownerPending; k++ {
		m.owners[k] = int64(m.lastGrant)
	}
	m.grants[m.lastGrant] = c.Miner
	row := m.miner(c.Miner)
	row.request, row.grant = c.RequestID, m.lastGrant
	return Done
}

// answer checks what Finish and Solve have in common, for an open job.
func (m *model) answer(job, grant, timestamp uint64, miner string) Code {
	if grant == 0 || grant > m.lastGrant {
		return Wrong
	}
	if holder, held := m.grants[grant]; held && holder != miner {
		return Wrong
	}
	if code := m.sameJob(job); code != 0 {
		return code
	}
	switch {
	case m.phase != PhaseOpen || timestamp < m.job.Timestamp:
		return Stale
	case timestamp > m.job.Timestamp:
		return Wrong
	}
	return 0
}

func (m *model) finish(c Finish) Code {
	if code := m.answer(c.JobID, c.GrantID, c.Timestamp, c.Miner); code != 0 {
		return code
	}
	from, to, ok := m.find(c.Nonces)
	if !ok || c.Receipt < c.Nonces.First || c.Receipt > c.Nonces.Last {
		return Wrong
	}
	if _, held := m.grants[c.GrantID]; !held {
		if m.all(from, to, ownerFinished) {
			return Duplicate
		}
		return Released
	}
	head := slices.Index(m.owners, int64(c.GrantID))
	if to < head && m.all(from, to, ownerFinished) {
		return Duplicate
	}
	if from != head || !m.all(from, to, int64(c.GrantID)) {
		return Wrong
	}
	if m.work().Digest(c.Receipt).LeadingZeroBits() >= m.job.Bits {
		return Wrong
	}
	row := m.miner(c.Miner)
	for k := from; k <= to; k++ {
		m.owners[k] = ownerFinished
		row.chunks++
		row.nonces += m.chunks[k].Last - m.chunks[k].First + 1
	}
	if !slices.Contains(m.owners, int64(c.GrantID)) {
		delete(m.grants, c.GrantID)
	}
	return Done
}

func (m *model) solve(c Solve) Code {
	if c.JobID == m.jobID && m.jobID > 0 && m.phase != PhaseOpen && m.solution == c {
		return Duplicate
	}
	if code := m.answer(c.JobID, c.GrantID, c.Timestamp, c.Miner); code != 0 {
		return code
	}
	at := slices.IndexFunc(m.chunks, func(r pow.Range) bool { return r.First <= c.Nonce && c.Nonce <= r.Last })
	if at < 0 || m.work().Digest(c.Nonce).LeadingZeroBits() < m.job.Bits {
		return Wrong
	}
	if _, held := m.grants[c.GrantID]; !held {
		return Released
	}
	if m.owners[at] != int64(c.GrantID) {
		return Wrong
	}
	m.phase, m.solution = PhaseSolved, c
	m.miner(c.Miner).solutions++
	return Done
}

func (m *model) release(c Release) Code {
	for _, id := range c.GrantIDs {
		if id == 0 || id > m.lastGrant {
			return Wrong
		}
		if holder, held := m.grants[id]; held && holder != c.Miner {
			return Wrong
		}
	}
	changed, kept := false, false
	for id, holder := range m.grants {
		if holder != c.Miner {
			continue
		}
		if m.phase != PhaseOpen {
			kept = true
		} else if len(c.GrantIDs) == 0 || c.Forget || slices.Contains(c.GrantIDs, id) {
			for k := range m.owners {
				if m.owners[k] == int64(id) {
					m.owners[k] = ownerPending
				}
			}
			delete(m.grants, id)
			changed = true
		}
	}
	if row := m.miners[c.Miner]; row != nil && c.Forget {
		m.forgotten.chunks += row.chunks
		m.forgotten.nonces += row.nonces
		m.forgotten.solutions += row.solutions
		m.forgotten.strikes += row.strikes
		delete(m.miners, c.Miner)
		changed = true
	}
	switch {
	case changed:
		return Done
	case kept:
		return Stale
	}
	return Duplicate
}

func (m *model) revoke(c Revoke) Code {
	if len(c.Ranges) == 0 {
		return Wrong
	}
	if code := m.sameJob(c.JobID); code != 0 {
		return code
	}
	switch {
	case m.phase != PhaseOpen || c.Round < m.round:
		return Stale
	case c.Round > m.round:
		return Wrong
	}
	listed := make([]bool, len(m.owners))
	pending, finished := true, true
	for _, nonces := range c.Ranges {
		from, to, ok := m.find(nonces)
		if !ok {
			return Wrong
		}
		pending = pending && m.all(from, to, ownerPending)
		finished = finished && m.all(from, to, ownerFinished)
		for k := from; k <= to; k++ {
			if listed[k] {
				return Wrong
			}
			listed[k] = true
		}
	}
	switch {
	case pending:
		return Duplicate
	case !finished:
		return Refused
	}
	row := m.miners[c.Miner]
	if row == nil {
		row = &m.forgotten
	}
	for k := range m.owners {
		if listed[k] {
			m.owners[k] = ownerPending
			row.chunks -= min(row.chunks, 1)
			row.nonces -= min(row.nonces, m.chunks[k].Last-m.chunks[k].First+1)
		}
	}
	return Done
}

func (m *model) roll(c Roll) Code {
	if code := m.sameJob(c.JobID); code != 0 {
		return code
	}
	switch {
	case c.Round == 0:
		return Wrong
	case m.phase != PhaseOpen || c.Round < m.round:
		return Stale
	case c.Round == m.round:
		return Duplicate
	case c.Round > m.round+1 || c.Timestamp <= m.job.Timestamp || !m.all(0, len(m.owners)-1, ownerFinished):
		return Refused
	}
	m.round, m.job.Timestamp = c.Round, c.Timestamp
	clear(m.owners)
	return Done
}

func (m *model) submitted(c Submitted) Code {
	if verdict := m.verdicts[c.JobID]; verdict != 0 {
		if verdict == c.Verdict {
			return Duplicate
		}
		return Stale
	}
	if code := m.sameJob(c.JobID); code != 0 {
		return code
	}
	if m.phase != PhaseSubmitting {
		return Refused
	}
	m.phase = PhaseClosed
	m.verdicts[c.JobID] = c.Verdict
	if c.Verdict == VerdictSuccess {
		m.heights = append(m.heights, m.job.Height)
	}
	return Done
}
