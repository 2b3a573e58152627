package fsm

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"

	"raftmine/fsm/fsmpb"
	"raftmine/fsm/pow"
)

// parts yields the stored form of the snapshot, piece by piece.
func (s *Snapshot) parts() iter.Seq[*fsmpb.SnapshotPart] {
	return func(yield func(*fsmpb.SnapshotPart) bool) {
		if !yield(&fsmpb.SnapshotPart{Part: &fsmpb.SnapshotPart_Header{Header: s.storeHeader()}}) {
			return
		}
		for rows := range slices.Chunk(s.servers, rowsPerPart) {
			if !yield(&fsmpb.SnapshotPart{Part: &fsmpb.SnapshotPart_Servers{
				Servers: &fsmpb.ServerRows{Rows: storeRows(rows, storeServer)}}}) {
				return
			}
		}
		for rows := range slices.Chunk(s.returned, rowsPerPart) {
			if !yield(&fsmpb.SnapshotPart{Part: &fsmpb.SnapshotPart_Returned{
				Returned: &fsmpb.ReturnedRows{Rows: storeRows(rows, storeReturned)}}}) {
				return
			}
		}
		for rows := range slices.Chunk(s.grants, rowsPerPart) {
			if !yield(&fsmpb.SnapshotPart{Part: &fsmpb.SnapshotPart_Grants{
				Grants: &fsmpb.GrantRows{Rows: storeRows(rows, storeGrant)}}}) {
				return
			}
		}
		for rows := range slices.Chunk(s.miners, rowsPerPart) {
			if !yield(&fsmpb.SnapshotPart{Part: &fsmpb.SnapshotPart_Miners{
				Miners: &fsmpb.MinerRows{Rows: storeRows(rows, storeMiner)}}}) {
				return
			}
		}
		for rows := range slices.Chunk(s.blocks, rowsPerPart) {
			if !yield(&fsmpb.SnapshotPart{Part: &fsmpb.SnapshotPart_Blocks{
				Blocks: &fsmpb.BlockRows{Rows: storeRows(rows, storeBlock)}}}) {
				return
			}
		}
	}
}

func storeRows[T, P any](rows []T, store func(*T) *P) []*P {
	stored := make([]*P, len(rows))
	for i := range rows {
		stored[i] = store(&rows[i])
	}
	return stored
}

func (s *Snapshot) storeHeader() *fsmpb.SnapshotHeader {
	header := &fsmpb.SnapshotHeader{
		ClusterId:   s.clusterID,
		Stopped:     s.stopped,
		Office:      &fsmpb.Office{ServerId: s.office.ServerID, Term: s.office.Term, Index: s.office.Index},
		Head:        &fsmpb.Head{Records: s.head.Records, Index: s.head.Index, Term: s.head.Term, Hash: s.head.Hash[:]},
		Cursor:      s.cursor,
		LastGrantId: s.lastGrantID,
		Forgotten:   storeMiner(&s.forgotten),
	}
	if s.recovery != nil {
		header.Recovery = storeRecover(*s.recovery)
	}
	if j := s.job; j != nil {
		header.Job = &fsmpb.Job{
			Id: j.ID, Height: j.Height, Previous: j.Previous[:], Bits: uint32(j.Bits), Timestamp: j.Timestamp,
			Round: j.Round, Nonces: storeRange(j.Nonces), ChunkSize: j.ChunkSize, Phase: fsmpb.Phase(j.Phase),
			Opened: j.Opened, OpenedUnixMs: j.OpenedAt,
		}
		if solution := j.Solution; solution != nil {
			header.Job.Solution = &fsmpb.Solution{
				GrantId: solution.GrantID, Miner: solution.Miner, Nonce: solution.Nonce, Hash: solution.Hash[:],
				Index: solution.Index, Attempts: solution.Attempts,
			}
		}
	}
	return header
}

func storeServer(r *Server) *fsmpb.ServerRow {
	return &fsmpb.ServerRow{
		Id: r.ID, RequestId: r.RequestID[:], Address: r.Address, DataDir: r.DataDir, Host: storeHost(r.Host),
		Member: r.Member, Up: r.Up, Since: r.Since,
	}
}

func storeReturned(r *run) *fsmpb.Returned { return &fsmpb.Returned{First: r.first, End: r.end} }

func storeGrant(g *Grant) *fsmpb.GrantRow {
	return &fsmpb.GrantRow{
		Id: g.ID, Miner: g.Miner, Instance: g.Instance[:], Nonces: storeRange(g.Nonces), Index: g.Index,
	}
}

func storeMiner(m *Miner) *fsmpb.MinerRow {
	return &fsmpb.MinerRow{
		Name: m.Name, Chunks: m.Chunks, Nonces: m.Nonces, Solutions: m.Solutions, Strikes: m.Strikes,
		LastRequestId: m.LastRequestID, LastGrantId: m.LastGrantID,
	}
}

func storeBlock(b *Block) *fsmpb.BlockRow {
	return &fsmpb.BlockRow{
		Sequence: b.Sequence, JobId: b.JobID, Height: b.Height, Hash: b.Hash[:], Previous: b.Previous[:],
		Nonce: b.Nonce, Timestamp: b.Timestamp, Bits: uint32(b.Bits), Miner: b.Miner,
		Verdict: fsmpb.Verdict(b.Verdict), Detail: b.Detail, Index: b.Index, AtUnixMs: b.At,
	}
}

// loader builds a state from parts. It checks what its own steps rely on; State.Check does the rest.
type loader struct {
	state *State
	begun bool // the header was seen
}

func (l *loader) load(part *fsmpb.SnapshotPart) error {
	if header := part.GetHeader(); header != nil {
		if l.begun {
			return errors.New("a second header")
		}
		l.begun = true
		return l.loadHeader(header)
	}
	if !l.begun {
		return errors.New("the header is not first")
	}
	switch p := part.GetPart().(type) {
	case *fsmpb.SnapshotPart_Servers:
		return loadRows("server", p.Servers.GetRows(), l.loadServer)
	case *fsmpb.SnapshotPart_Returned:
		return loadRows("returned run", p.Returned.GetRows(), l.loadReturned)
	case *fsmpb.SnapshotPart_Grants:
		return loadRows("grant", p.Grants.GetRows(), l.loadGrant)
	case *fsmpb.SnapshotPart_Miners:
		return loadRows("miner", p.Miners.GetRows(), l.loadMiner)
	case *fsmpb.SnapshotPart_Blocks:
		return loadRows("block", p.Blocks.GetRows(), l.loadBlock)
	}
	return errors.New("a part that is not set")
}

func loadRows[P any](kind string, rows []*P, load func(*P) error) error {
	for i, row := range rows {
		if err := load(row); err != nil {
			return fmt.Errorf("%s %d of its part: %w", kind, i, err)
		}
	}
	return nil
}

func (l *loader) loadHeader(h *fsmpb.SnapshotHeader) error {
	s := l.state
	s.clusterID = h.GetClusterId()
	s.stopped = h.GetStopped()
	s.office = Office{
		ServerID: h.GetOffice().GetServerId(), Term: h.GetOffice().GetTerm(), Index: h.GetOffice().GetIndex(),
	}
	s.head = Head{Records: h.GetHead().GetRecords(), Index: h.GetHead().GetIndex(), Term: h.GetHead().GetTerm()}
	if err := loadBytes("head", s.head.Hash[:], h.GetHead().GetHash()); err != nil {
		return err
	}
	if h.GetRecovery() != nil {
		recovery, err := loadRecover(h.GetRecovery())
		if err != nil {
			return fmt.Errorf("recovery: %w", err)
		}
		s.recovery = &recovery
	}
	s.lastGrantID = h.GetLastGrantId()
	s.forgotten = minerOf(h.GetForgotten())
	if h.GetJob() == nil {
		if h.GetCursor() != 0 {
			return errors.New("a cursor without a job")
		}
		return nil
	}
	if err := l.loadJob(h.GetJob()); err != nil {
		return fmt.Errorf("job: %w", err)
	}
	if h.GetCursor() > s.work.total {
		return fmt.Errorf("cursor %d lies after %d chunks", h.GetCursor(), s.work.total)
	}
	s.work.cursor = h.GetCursor()
	return nil
}

func (l *loader) loadJob(stored *fsmpb.Job) error {
	nonces, err := loadRange(stored.GetNonces())
	if err != nil {
		return err
	}
	if stored.GetBits() > pow.MaxBits {
		return fmt.Errorf("%d bits", stored.GetBits())
	}
	j := &Job{
		ID: stored.GetId(), Height: stored.GetHeight(), Bits: int(stored.GetBits()), Timestamp: stored.GetTimestamp(),
		Round: stored.GetRound(), Nonces: nonces, ChunkSize: stored.GetChunkSize(), Phase: Phase(stored.GetPhase()),
		Opened: stored.GetOpened(), OpenedAt: stored.GetOpenedUnixMs(),
	}
	if err := loadBytes("previous", j.Previous[:], stored.GetPrevious()); err != nil {
		return err
	}
	if err := j.opening().checkJob(); err != nil { // the partition divides by what it holds
		return err
	}
	if m := stored.GetSolution(); m != nil {
		j.Solution = &Solution{
			GrantID: m.GetGrantId(), Miner: m.GetMiner(), Nonce: m.GetNonce(), Index: m.GetIndex(), Attempts: m.GetAttempts(),
		}
		if err := loadBytes("hash", j.Solution.Hash[:], m.GetHash()); err != nil {
			return err
		}
	}
	l.state.job = j
	l.state.work = newWork(j.Nonces, j.ChunkSize)
	return nil
}

func (l *loader) loadServer(m *fsmpb.ServerRow) error {
	row := Server{
		ID: m.GetId(), Address: m.GetAddress(), DataDir: m.GetDataDir(), Host: loadHost(m.GetHost()),
		Member: m.GetMember(), Up: m.GetUp(), Since: m.GetSince(),
	}
	l.state.servers = append(l.state.servers, row)
	return loadBytes("request_id", l.state.servers[len(l.state.servers)-1].RequestID[:], m.GetRequestId())
}

func (l *loader) loadReturned(m *fsmpb.Returned) error {
	r := run{first: m.GetFirst(), end: m.GetEnd()}
	w := &l.state.work
	if r.first >= r.end || r.end > w.cursor {
		return fmt.Errorf("chunks %d to %d are not below the cursor %d", r.first, r.end, w.cursor)
	}
	if n := len(w.returned); n > 0 && r.first <= w.returned[n-1].end {
		return fmt.Errorf("chunks %d to %d do not follow the run that ends at %d", r.first, r.end, w.returned[n-1].end)
	}
	w.returned = append(w.returned, r)
	w.returnedChunks += r.len()
	return nil
}

func (l *loader) loadGrant(m *fsmpb.GrantRow) error {
	s := l.state
	if s.job == nil {
		return errors.New("there is no job")
	}
	nonces, err := loadRange(m.GetNonces())
	if err != nil {
		return err
	}
	r, ok := s.work.runOf(nonces)
	if !ok {
		return fmt.Errorf("%s is not whole chunks", nonces)
	}
	if n := len(s.work.grants); n > 0 && m.GetId() <= s.work.grants[n-1].ID {
		return fmt.Errorf("id %d follows %d", m.GetId(), s.work.grants[n-1].ID)
	}
	grant := Grant{ID: m.GetId(), JobID: s.job.ID, Miner: m.GetMiner(), Nonces: nonces, Index: m.GetIndex()}
	if err := loadBytes("instance", grant.Instance[:], m.GetInstance()); err != nil {
		return err
	}
	if r.len() > math.MaxUint64-s.work.grantedChunks {
		return errors.New("more chunks than can be")
	}
	s.work.hold(grant, r)
	return nil
}

func (l *loader) loadMiner(m *fsmpb.MinerRow) error {
	row := minerOf(m)
	if n := len(l.state.miners); n > 0 && row.Name <= l.state.miners[n-1].Name {
		return fmt.Errorf("%q follows %q", row.Name, l.state.miners[n-1].Name)
	}
	l.state.miners = append(l.state.miners, &row)
	l.state.byName[row.Name] = &row
	return nil
}

func minerOf(m *fsmpb.MinerRow) Miner {
	return Miner{
		Name: m.GetName(), Chunks: m.GetChunks(), Nonces: m.GetNonces(), Solutions: m.GetSolutions(),
		Strikes: m.GetStrikes(), LastRequestID: m.GetLastRequestId(), LastGrantID: m.GetLastGrantId(),
	}
}

func (l *loader) loadBlock(m *fsmpb.BlockRow) error {
	if m.GetBits() > pow.MaxBits {
		return fmt.Errorf("%d bits", m.GetBits())
	}
	b := Block{
		Sequence: m.GetSequence(), JobID: m.GetJobId(), Height: m.GetHeight(), Nonce: m.GetNonce(),
		Timestamp: m.GetTimestamp(), Bits: int(m.GetBits()), Miner: m.GetMiner(), Verdict: Verdict(m.GetVerdict()),
		Detail: m.GetDetail(), Index: m.GetIndex(), At: m.GetAtUnixMs(),
	}
	if err := loadBytes("hash", b.Hash[:], m.GetHash()); err != nil {
		return err
	}
	if err := loadBytes("previous", b.Previous[:], m.GetPrevious()); err != nil {
		return err
	}
	l.state.appendBlock(b)
	return nil
}
