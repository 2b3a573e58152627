package fsm

import (
	"maps"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"raftmine/fsm/pow"
)

// TestStateHoldsItsPromisesForAnyCommands applies random entries to three replicas: one straight, one that is restored
// from snapshots on the way, and the naive model.
func TestStateHoldsItsPromisesForAnyCommands(t *testing.T) { rapid.Check(t, checkPromises) }

// FuzzApply is the same, with bytes that the fuzzer chooses in place of random ones.
func FuzzApply(f *testing.F) {
	for seed := range 8 {
		data := make([]byte, 4096)
		for i := range data {
			data[i] = byte(i * (seed*2 + 1) * 131 >> (seed % 5))
		}
		f.Add(data)
	}
	f.Fuzz(rapid.MakeFuzz(checkPromises))
}

func checkPromises(t *rapid.T) {
	straight, restored, naive := newReplica(t), newReplica(t), newModel()
	for range rapid.IntRange(1, 60).Draw(t, "entries") {
		commands := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Command { return drawCommand(t, naive) }), 1, 3).
			Draw(t, "commands")
		if rapid.IntRange(0, 9).Draw(t, "restore") == 0 {
			restored = restored.restored()
		}
		if rapid.IntRange(0, 9).Draw(t, "next term") == 0 {
			straight.term++
			restored.term++
			commands = append(commands, TakeOffice{ServerID: 1})
		}
		before := straight.content()
		result := straight.entry(commands...)
		restored.entry(commands...)
		if straight.Digest() != restored.Digest() {
			t.Fatalf("after entry %d the replicas differ", straight.index)
		}
		changed := false
		for i, command := range commands {
			outcome := result.Outcomes[i]
			changed = changed || outcome.Code == Done
			if _, ok := command.(TakeOffice); ok {
				continue
			}
			if want := naive.apply(command); outcome.Code != want {
				t.Fatalf("%#v is %s (%s), want %s", command, outcome.Code, outcome.Detail, want)
			}
			if c, ok := command.(GrantWork); ok && (outcome.Code == Done || outcome.Code == Duplicate) {
				if outcome.Grant.Miner != c.Miner || naive.grants[outcome.Grant.ID] != c.Miner {
					t.Fatalf("%#v gives %+v", command, outcome.Grant)
				}
			}
		}
		if changed != (straight.content() != before) {
			t.Fatalf("%#v: done: %t, state changed: %t", commands, changed, !changed)
		}
		compare(t, straight, naive)
	}
}

// compare holds P2 and P3: the state's partition is the model's, chunk by chunk, and a height is accepted once.
func compare(t *rapid.T, r *replica, m *model) {
	t.Helper()
	if r.Counts() != m.counts() {
		t.Fatalf("the partition is %+v, want %+v", r.Counts(), m.counts())
	}
	owners := make([]int64, len(m.owners))
	for k := range owners {
		owners[k] = ownerFinished
		if uint64(k) >= r.work.cursor {
			owners[k] = ownerPending
		}
	}
	for _, run := range r.work.returned {
		for k := run.first; k < run.end; k++ {
			owners[k] = ownerPending
		}
	}
	held := make(map[uint64]string)
	for grant := range r.Grants() {
		held[grant.ID] = grant.Miner
		from, to, ok := m.find(grant.Nonces)
		if !ok {
			t.Fatalf("grant %+v is not whole chunks", grant)
		}
		for k := from; k <= to; k++ {
			if owners[k] != ownerFinished {
				t.Fatalf("chunk %d has two owners", k)
			}
			owners[k] = int64(grant.ID)
		}
	}
	if !slices.Equal(owners, m.owners) || !maps.Equal(held, m.grants) {
		t.Fatalf("the chunks belong to %v, want %v; grants are %v, want %v", owners, m.owners, held, m.grants)
	}
	if len(r.Miners()) != len(m.miners) {
		t.Fatalf("miners are %+v, want %d of them", r.Miners(), len(m.miners))
	}
	for _, row := range append(r.Miners(), r.Forgotten()) {
		want := &m.forgotten
		if row.Name != "" {
			want = m.miner(row.Name)
		}
		got := modelMiner{row.Chunks, row.Nonces, row.Solutions, uint64(row.Strikes), row.LastRequestID, row.LastGrantID}
		if got != *want {
			t.Fatalf("miner %q is %+v, want %+v", row.Name, got, *want)
		}
	}
	var heights []uint64
	for _, block := range r.Blocks(0, 0) {
		if block.Verdict == VerdictSuccess {
			heights = append(heights, block.Height)
		}
	}
	if job, ok := r.Job(); !slices.Equal(heights, m.heights) || ok && (job.Phase != m.phase || job.ID != m.jobID) {
		t.Fatalf("accepted heights are %v, want %v; job %+v, want job %d that is %s", heights, m.heights, job, m.jobID, m.phase)
	}
	if !slices.IsSorted(heights) || len(slices.Compact(slices.Clone(heights))) != len(heights) {
		t.Fatalf("a height is accepted twice: %v", heights)
	}
}

// drawCommand prefers commands that could be right in the model's state.
func drawCommand(t *rapid.T, m *model) Command {
	miner := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "miner")
	job := m.jobID
	if rapid.IntRange(0, 19).Draw(t, "other job") == 0 {
		job = rapid.Uint64Range(0, m.jobID+1).Draw(t, "job")
	}
	timestamp := m.job.Timestamp
	if rapid.IntRange(0, 19).Draw(t, "other timestamp") == 0 {
		timestamp += uint64(rapid.IntRange(-1, 1).Draw(t, "timestamp"))
	}
	switch kind := rapid.IntRange(0, 29).Draw(t, "kind"); {
	case m.jobID == 0 || m.phase == PhaseClosed && kind < 20 || kind == 0:
		return drawJob(t, m)
	case m.phase == PhaseSolved && kind < 15:
		return Submitting{JobID: job}
	case m.phase == PhaseSubmitting && kind < 15:
		return Submitted{JobID: job, Verdict: Verdict(rapid.IntRange(1, 4).Draw(t, "verdict")), Detail: "detail"}
	case kind < 10:
		return GrantWork{JobID: job, Miner: miner, Instance: ID{1}, RequestID: drawRequest(t, m, miner),
			Chunks: rapid.Uint64Range(1, 5).Draw(t, "chunks")}
	case kind < 18:
		id, holder := drawGrant(t, m, miner)
		nonces := drawRange(t, m, id)
		return Finish{JobID: job, GrantID: id, Miner: holder, Timestamp: timestamp, Nonces: nonces,
			Receipt: nonces.First + rapid.Uint64Range(0, m.job.ChunkSize).Draw(t, "receipt")}
	case kind < 21:
		id, holder := drawGrant(t, m, miner)
		nonce := drawRange(t, m, id).First + rapid.Uint64Range(0, m.job.ChunkSize).Draw(t, "nonce")
		return Solve{JobID: job, GrantID: id, Miner: holder, Timestamp: timestamp, Nonce: nonce}
	case kind < 24:
		var ids []uint64
		if rapid.Bool().Draw(t, "listed") {
			var id uint64
			id, miner = drawGrant(t, m, miner)
			ids = []uint64{id}
		}
		return Release{Miner: miner, GrantIDs: ids, Reason: ReleaseSilent,
			Forget: rapid.IntRange(0, 3).Draw(t, "forget") == 0}
	case kind < 25:
		return Strike{Miner: miner, Reason: "reason"}
	case kind < 27:
		ranges := []pow.Range{drawRange(t, m, 0)}
		if rapid.Bool().Draw(t, "two") {
			ranges = append(ranges, drawRange(t, m, 0))
		}
		return Revoke{JobID: job, Round: m.round + rapid.SampledFrom([]uint32{0, 0, 0, 0, 1}).Draw(t, "round"),
			Miner: miner, Ranges: ranges, Reason: "reason"}
	case kind < 28:
		return Roll{JobID: job, Round: m.round + rapid.SampledFrom([]uint32{1, 1, 1, 0, 2}).Draw(t, "round"),
			Timestamp: m.job.Timestamp + rapid.Uint64Range(0, 3).Draw(t, "later")}
	case kind < 29:
		return Submitted{JobID: job, Verdict: VerdictSuccess}
	default:
		return CloseJob{JobID: job, Reason: "reason"}
	}
}

// drawRequest draws the miner's next request id most of the time, else the last ones again.
func drawRequest(t *rapid.T, m *model, miner string) uint64 {
	var last uint64
	if known := m.miners[miner]; known != nil {
		last = known.request
	}
	next := last + rapid.Uint64Range(1, 2).Draw(t, "request")
	if back := rapid.Uint64Range(0, 19).Draw(t, "asked before"); back < 3 {
		return max(1, last-min(last, back))
	}
	return next
}

// drawJob draws a job of few chunks, somewhere among all nonces, that is solved now and then.
func drawJob(t *rapid.T, m *model) Command {
	if m.jobID > 0 && rapid.IntRange(0, 4).Draw(t, "same job") == 0 {
		return m.job
	}
	size := rapid.Uint64Range(1, 4).Draw(t, "chunk size")
	length := rapid.Uint64Range(1, 30).Draw(t, "length")
	first := rapid.SampledFrom([]uint64{1, 95, math.MaxUint64 - length + 1}).Draw(t, "first")
	return OpenJob{
		Height:    rapid.Uint64Range(1, uint64(len(m.heights))+2).Draw(t, "height"),
		Previous:  pow.Hash{byte(m.jobID)},
		Bits:      rapid.IntRange(0, 6).Draw(t, "bits"),
		Timestamp: rapid.Uint64Range(1000, 1010).Draw(t, "opened at"),
		Nonces:    pow.Range{First: first, Last: first + length - 1},
		ChunkSize: size,
	}
}

// drawGrant draws a grant that is held, if there is one, and its holder; now and then something else.
func drawGrant(t *rapid.T, m *model, miner string) (uint64, string) {
	ids := slices.Sorted(maps.Keys(m.grants))
	if len(ids) == 0 || rapid.IntRange(0, 9).Draw(t, "other grant") == 0 {
		return rapid.Uint64Range(0, m.lastGrant+1).Draw(t, "grant"), miner
	}
	id := rapid.SampledFrom(ids).Draw(t, "grant")
	return id, m.grants[id]
}

// drawRange draws whole chunks: the head of a grant if that is held, else any; now and then not quite.
func drawRange(t *rapid.T, m *model, grant uint64) pow.Range {
	from := rapid.IntRange(0, len(m.chunks)-1).Draw(t, "from")
	head := slices.Index(m.owners, int64(grant))
	if grant != 0 && head >= 0 && rapid.IntRange(0, 9).Draw(t, "not the head") > 0 {
		from = head
	}
	to := min(len(m.chunks)-1, from+rapid.IntRange(0, 3).Draw(t, "more chunks"))
	nonces := pow.Range{First: m.chunks[from].First, Last: m.chunks[to].Last}
	switch rapid.IntRange(0, 29).Draw(t, "crooked") {
	case 0:
		nonces.First++
	case 1:
		nonces.Last--
	case 2:
		nonces.First, nonces.Last = nonces.Last, nonces.First
	}
	return nonces
}
