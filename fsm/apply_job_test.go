package fsm

import (
	"math"
	"testing"

	"raftmine/fsm/pow"
)

func changed(job OpenJob, change func(*OpenJob)) OpenJob {
	change(&job)
	return job
}

func opened(t testing.TB) *replica {
	r := newReplica(t)
	r.must(hardJob)
	return r
}

func closed(t testing.TB) *replica {
	r := opened(t)
	r.must(CloseJob{1, "the previous hash moved"})
	return r
}

// settledWith has job 1 submitted with a verdict.
func settledWith(verdict Verdict) func(testing.TB) *replica {
	return func(t testing.TB) *replica {
		r, _ := solved(t)
		r.must(Submitting{1}, Submitted{1, verdict, "said so"})
		return r
	}
}

// exhausted has every chunk of hardJob finished.
func exhausted(t testing.TB) *replica {
	r := withGrants(t, hardJob)
	r.must(grantWork("a", 2, 100), finish("a", 1, 1, 300), finish("b", 2, 301, 500), finish("a", 3, 501, 950))
	return r
}

func rolled(t testing.TB) *replica {
	r := exhausted(t)
	r.must(Roll{1, 1, 2000})
	return r
}

func TestJobCommands(t *testing.T) {
	solvedJob := func(t testing.TB) *replica { r, _ := solved(t); return r }
	submitting := func(t testing.TB) *replica { r, _ := solved(t); r.must(Submitting{1}); return r }
	second := changed(hardJob, func(j *OpenJob) { j.Height, j.Timestamp = 2, 3000 })
	secondOpen := func(t testing.TB) *replica { r := settledWith(VerdictWrong)(t); r.must(second); return r }
	third := changed(hardJob, func(j *OpenJob) { j.Timestamp = 3000 })
	everyRound := func(t testing.TB) *replica { r := exhausted(t); r.job.Round = math.MaxUint32; return r }
	checkRows(t, []row{
		{"a job is opened", empty, hardJob, Done, ""},
		{"the same job", opened, hardJob, Duplicate, ""},
		{"another job while one is open", opened, second, Refused, "job 1 is open"},
		{"another job while one is solved", solvedJob, second, Refused, "job 1 is solved"},
		{"another job while one is submitting", submitting, second, Refused, "job 1 is submitting"},
		{"the same job after it was closed", closed, hardJob, Stale, "closed"},
		{"the same height after a closed job", closed, third, Done, ""},
		{"the same height after a wrong block", settledWith(VerdictWrong), third, Done, ""},
		{"the same height after an unknown verdict", settledWith(VerdictUnknown), third, Done, ""},
		{"the same height after an accepted block", settledWith(VerdictSuccess), third, Refused, "accepted height 1"},
		{"the next height after an accepted block", settledWith(VerdictSuccess), second, Done, ""},
		{"height 0", empty, changed(hardJob, func(j *OpenJob) { j.Height = 0 }), Wrong, "height"},
		{"timestamp 0", empty, changed(hardJob, func(j *OpenJob) { j.Timestamp = 0 }), Wrong, "timestamp"},
		{"256 bits", empty, changed(hardJob, func(j *OpenJob) { j.Bits = 256 }), Done, ""},
		{"257 bits", empty, changed(hardJob, func(j *OpenJob) { j.Bits = 257 }), Wrong, "257"},
		{"nonce 0", empty, changed(hardJob, func(j *OpenJob) { j.Nonces.First = 0 }), Wrong, "starts at 0"},
		{"no nonces", empty, changed(hardJob, func(j *OpenJob) { j.Nonces.First = 951 }), Wrong, "empty"},
		{"one nonce", empty, changed(hardJob, func(j *OpenJob) { j.Nonces.First = 950 }), Done, ""},
		{"chunks of 0", empty, changed(hardJob, func(j *OpenJob) { j.ChunkSize = 0 }), Wrong, "chunks of 0"},
		{"the largest chunks", empty, changed(hardJob, func(j *OpenJob) { j.ChunkSize = MaxChunkSize }), Done, ""},
		{"larger chunks", empty, changed(hardJob, func(j *OpenJob) { j.ChunkSize = MaxChunkSize + 1 }), Wrong, "1000000001"},
		{"as many chunks as can be", empty, changed(hardJob, func(j *OpenJob) {
			j.Nonces, j.ChunkSize = pow.Range{First: 1, Last: MaxChunks}, 1
		}), Done, ""},
		{"one more chunk", empty, changed(hardJob, func(j *OpenJob) {
			j.Nonces, j.ChunkSize = pow.Range{First: 1, Last: MaxChunks + 1}, 1
		}), Wrong, "chunks, want at most"},

		{"a round that is not finished", withJobAlmostDone, Roll{1, 1, 2000}, Refused, "1 chunks of round 0 are not finished"},
		{"a round that is pending", opened, Roll{1, 1, 2000}, Refused, "10 chunks"},
		{"the next round", exhausted, Roll{1, 1, 1001}, Done, ""},
		{"the next round again", rolled, Roll{1, 1, 2001}, Duplicate, ""},
		{"round 0", exhausted, Roll{1, 0, 2000}, Wrong, "round 0"},
		{"a round too far", exhausted, Roll{1, 2, 2000}, Refused, "does not follow"},
		{"a round before", twiceRolled, Roll{1, 1, 9000}, Stale, "round 1 is over"},
		{"the last round", everyRound, Roll{1, math.MaxUint32, 2000}, Duplicate, ""},
		{"the same timestamp", exhausted, Roll{1, 1, 1000}, Refused, "not after"},
		{"a round of a solved job", solvedJob, Roll{1, 1, 2000}, Stale, "solved"},
		{"a round of a job to come", exhausted, Roll{2, 1, 2000}, Wrong, "no job 2"},
		{"a round of a job before", secondOpen, Roll{1, 1, 2000}, Stale, "job 1 is over"},
		{"a round without a job", empty, Roll{1, 1, 2000}, Wrong, "no job 1"},

		{"the intent to submit", solvedJob, Submitting{1}, Done, ""},
		{"the intent again", submitting, Submitting{1}, Done, ""},
		{"the intent without a solution", opened, Submitting{1}, Refused, "no solution"},
		{"the intent after the verdict", settledWith(VerdictStale), Submitting{1}, Stale, "closed"},
		{"the intent of a job before", secondOpen, Submitting{1}, Stale, "job 1 is over"},
		{"the intent of job 0", opened, Submitting{0}, Wrong, "no job 0"},

		{"a verdict", submitting, Submitted{1, VerdictSuccess, ""}, Done, ""},
		{"a verdict without an intent", solvedJob, Submitted{1, VerdictSuccess, ""}, Refused, "not submitting"},
		{"a verdict without a solution", opened, Submitted{1, VerdictSuccess, ""}, Refused, "not submitting"},
		{"a verdict on a closed job", closed, Submitted{1, VerdictStale, ""}, Refused, "closed"},
		{"the same verdict", settledWith(VerdictWrong), Submitted{1, VerdictWrong, "in other words"}, Duplicate, ""},
		{"another verdict", settledWith(VerdictUnknown), Submitted{1, VerdictSuccess, ""}, Stale, "unknown"},
		{"the same verdict on a job before", secondOpen, Submitted{1, VerdictWrong, ""}, Duplicate, ""},
		{"another verdict on a job before", secondOpen, Submitted{1, VerdictSuccess, ""}, Stale, "wrong"},
		{"a verdict on a job to come", submitting, Submitted{2, VerdictSuccess, ""}, Wrong, "no job 2"},

		{"a job is closed", opened, CloseJob{1, ""}, Done, ""},
		{"a job is closed twice", closed, CloseJob{1, ""}, Duplicate, ""},
		{"a settled job is closed", settledWith(VerdictSuccess), CloseJob{1, ""}, Duplicate, ""},
		{"a job before is closed", secondOpen, CloseJob{1, ""}, Duplicate, ""},
		{"a solved job is closed", solvedJob, CloseJob{1, ""}, Refused, "must be settled"},
		{"a submitting job is closed", submitting, CloseJob{1, ""}, Refused, "must be settled"},
		{"a job to come is closed", opened, CloseJob{2, ""}, Wrong, "no job 2"},
		{"no job is closed", empty, CloseJob{0, ""}, Wrong, "no job 0"},
	})
}

func twiceRolled(t testing.TB) *replica {
	r := rolled(t)
	r.must(GrantWork{JobID: 1, Miner: "a", RequestID: 9, Chunks: 10},
		Finish{JobID: 1, GrantID: 4, Miner: "a", Timestamp: 2000, Nonces: hardJob.Nonces, Receipt: 7}, Roll{1, 2, 3000})
	return r
}

// withJobAlmostDone has all chunks of hardJob finished but the last, which is granted.
func withJobAlmostDone(t testing.TB) *replica {
	r := newReplica(t)
	r.must(hardJob, grantWork("a", 1, 10), finish("a", 1, 1, 900))
	return r
}

// A block is accepted at most once per height: P3 is held here even if the phases did not hold it.
func TestSecondAcceptedBlockOfAHeightIsRefused(t *testing.T) {
	r := settledWith(VerdictWrong)(t)
	r.must(changed(easyJob, func(j *OpenJob) { j.Timestamp = 1001 }),
		GrantWork{JobID: 2, Miner: "a", RequestID: 2, Chunks: 10})
	job, _ := r.Job()
	nonce, _ := search(job.Work(), job.Nonces)
	r.must(Solve{JobID: 2, GrantID: 2, Miner: "a", Timestamp: 1001, Nonce: nonce}, Submitting{2})
	r.blocks[0].Verdict, r.accepted = VerdictSuccess, []int{0} // as if job 1 had been accepted behind its back
	data, err := EncodeEntry(Entry{Commands: []Command{Submitted{2, VerdictSuccess, ""}}})
	if err != nil {
		t.Fatal(err)
	}
	result, err := r.State.Apply(r.index+1, 1, data)
	if err != nil || result.Outcomes[0].Code != Refused || r.Accepted() != 1 {
		t.Errorf("it is %+v (%v), and %d are accepted", result.Outcomes, err, r.Accepted())
	}
}

func TestSettledBlockHoldsItsProof(t *testing.T) {
	r, solve := solved(t)
	r.must(Submitting{1}, Submitting{1})
	result := r.entry(Submitted{1, VerdictSuccess, "success"})
	job, _ := r.Job()
	hash, _ := job.Work().Verify(solve.Nonce)
	want := Block{Sequence: 1, JobID: 1, Height: 1, Hash: hash, Previous: pow.Hash{1}, Nonce: solve.Nonce, Timestamp: 1000,
		Bits: 8, Miner: "a", Verdict: VerdictSuccess, Detail: "success", Index: r.index, At: 1_790_000_000_000 + r.index}
	if last, ok := r.LastAccepted(); !ok || last != want {
		t.Errorf("the last accepted block is %+v, want %+v", last, want)
	}
	if len(result.Events) != 2 || result.Events[0] != Event(BlockSettled{want}) {
		t.Errorf("events are %+v", result.Events)
	}
	if job.Solution.Attempts != 2 || job.Phase != PhaseClosed || job.OpenedAt != 1_790_000_000_001 {
		t.Errorf("the job is %+v with %+v", job, *job.Solution)
	}
	if m, _ := r.Miner("a"); m.Solutions != 1 {
		t.Errorf("the miner is %+v", m)
	}
	if r.Counts() != (Counts{Total: 10, Granted: 10}) {
		t.Errorf("the closed job's partition is %+v", r.Counts())
	}
}

func TestBlocksAreListedFromASequence(t *testing.T) {
	r := newReplica(t)
	for i := range uint64(3) {
		r.must(changed(easyJob, func(j *OpenJob) { j.Height, j.Timestamp = i+1, 1000+i }),
			GrantWork{JobID: i + 1, Miner: "a", RequestID: i + 1, Chunks: 10})
		job, _ := r.Job()
		nonce, _ := search(job.Work(), job.Nonces)
		r.must(Solve{JobID: i + 1, GrantID: i + 1, Miner: "a", Timestamp: 1000 + i, Nonce: nonce},
			Submitting{i + 1}, Submitted{i + 1, VerdictSuccess + Verdict(i%2), ""})
	}
	for _, c := range []struct {
		after uint64
		limit int
		first uint64
		count int
	}{{0, 0, 1, 3}, {0, 2, 1, 2}, {1, 5, 2, 2}, {2, 1, 3, 1}, {3, 0, 0, 0}, {math.MaxUint64, 1, 0, 0}} {
		blocks := r.Blocks(c.after, c.limit)
		if len(blocks) != c.count || c.count > 0 && blocks[0].Sequence != c.first {
			t.Errorf("Blocks(%d, %d) = %+v", c.after, c.limit, blocks)
		}
	}
	if last, _ := r.LastAccepted(); r.BlockCount() != 3 || r.Accepted() != 2 || last.Height != 3 {
		t.Errorf("%d blocks, %d accepted, the last one %+v", r.BlockCount(), r.Accepted(), last)
	}
}
