package fsm

import (
	"math"
	"slices"
	"testing"

	"raftmine/fsm/pow"
)

func hardGrants(t testing.TB) *replica { return withGrants(t, hardJob) }

// struck has a miner c with three strikes.
func struck(t testing.TB) *replica {
	r := hardGrants(t)
	r.must(Strike{"c", "a"}, Strike{"c", "b"}, Strike{"c", "c"})
	return r
}

func TestGrantWork(t *testing.T) {
	solvedJob := func(t testing.TB) *replica { r, _ := solved(t); return r }
	partly := func(t testing.TB) *replica { r := hardGrants(t); r.must(finish("a", 1, 1, 200)); return r }
	gone := func(t testing.TB) *replica { r := hardGrants(t); r.must(finish("a", 1, 1, 300)); return r }
	twoRequests := func(t testing.TB) *replica { r := hardGrants(t); r.must(grantWork("a", 2, 1)); return r }
	twoStrikes := func(t testing.TB) *replica { r := opened(t); r.must(Strike{"c", "a"}, Strike{"c", "b"}); return r }
	checkRows(t, []row{
		{"a grant", hardGrants, grantWork("c", 1, 2), Done, ""},
		{"a second grant", hardGrants, grantWork("a", 2, 2), Done, ""},
		{"the largest request id", hardGrants, grantWork("a", math.MaxUint64, 2), Done, ""},
		{"an older request", twoRequests, grantWork("a", 1, 2), Refused, "request 1 of miner a comes after request 2"},
		{"the same request", hardGrants, grantWork("a", 1, 3), Duplicate, ""},
		{"the same request of a half finished grant", partly, grantWork("a", 1, 3), Duplicate, ""},
		{"the same request of a finished grant", gone, grantWork("a", 1, 3), Refused, "answered with grant 1, which is gone"},
		{"request id 0", hardGrants, grantWork("a", 0, 1), Wrong, "request id"},
		{"no chunks", hardGrants, grantWork("c", 1, 0), Wrong, "0 chunks"},
		{"more chunks than there are", hardGrants, grantWork("c", 1, math.MaxUint64), Done, ""},
		{"nothing left", withJobAlmostDone, grantWork("c", 1, 1), NoWork, "nothing of job 1"},
		{"two strikes", twoStrikes, grantWork("c", 1, 1), Done, ""},
		{"three strikes", struck, grantWork("c", 1, 1), Refused, "3 strikes"},
		{"a closed job", closed, grantWork("c", 1, 1), Stale, "closed"},
		{"a solved job", solvedJob, grantWork("c", 1, 1), Stale, "solved"},
		{"a job to come", hardGrants, GrantWork{JobID: 2, Miner: "c", RequestID: 1, Chunks: 1}, Wrong, "no job 2"},
		{"no job", empty, grantWork("c", 1, 1), Wrong, "no job 1"},
	})
}

func TestGrantsAreCutLowestReturnedFirst(t *testing.T) {
	r := newReplica(t)
	r.must(hardJob)
	grant := func(miner string, request, chunks uint64) pow.Range {
		t.Helper()
		outcome := r.do(grantWork(miner, request, chunks))
		if outcome.Code != Done || outcome.Grant.Miner != miner || outcome.Grant.Index != r.index {
			t.Fatalf("%+v", outcome)
		}
		return outcome.Grant.Nonces
	}
	want := []pow.Range{{First: 1, Last: 300}, {First: 301, Last: 400}, {First: 401, Last: 600}, {First: 601, Last: 700}}
	got := []pow.Range{grant("a", 1, 3), grant("b", 1, 1), grant("a", 2, 2), grant("c", 1, 1)}
	if !slices.Equal(got, want) {
		t.Fatalf("grants are %v, want %v", got, want)
	}
	r.must(finish("a", 1, 1, 100), Release{Miner: "a", Reason: ReleaseSilent})
	if len(r.work.returned) != 2 || r.Counts() != (Counts{Total: 10, Pending: 7, Granted: 2, Finished: 1}) {
		t.Errorf("returned are %v, partition is %+v", r.work.returned, r.Counts())
	}
	want = []pow.Range{{First: 101, Last: 200}, {First: 201, Last: 300}, {First: 401, Last: 600}, {First: 701, Last: 950}}
	got = []pow.Range{grant("d", 1, 1), grant("d", 2, 9), grant("d", 3, 2), grant("d", 4, 9)}
	if !slices.Equal(got, want) {
		t.Errorf("grants after the release are %v, want %v", got, want)
	}
}

func TestReturnedRunsMergeAndPullTheCursorBack(t *testing.T) {
	r := newReplica(t)
	r.must(hardJob)
	for i := range uint64(10) {
		r.must(grantWork("a", i+1, 1))
	}
	release := func(ids ...uint64) {
		t.Helper()
		r.must(Release{Miner: "a", GrantIDs: ids, Reason: ReleaseLeft})
	}
	check := func(cursor uint64, returned ...run) {
		t.Helper()
		if r.work.cursor != cursor || !slices.Equal(r.work.returned, returned) {
			t.Errorf("cursor %d and %v, want %d and %v", r.work.cursor, r.work.returned, cursor, returned)
		}
	}
	release(2)
	check(10, run{1, 2})
	release(4)
	check(10, run{1, 2}, run{3, 4})
	release(3)
	check(10, run{1, 4})
	release(7, 6)
	check(10, run{1, 4}, run{5, 7})
	release(10)
	check(9, run{1, 4}, run{5, 7})
	release(8)
	check(9, run{1, 4}, run{5, 8})
	release(9)
	check(5, run{1, 4})
	release(5)
	check(1)
	release(1)
	check(0)
}

func TestFinish(t *testing.T) {
	solvedJob := func(t testing.TB) *replica { r, _ := solved(t); return r }
	partly := func(t testing.TB) *replica { r := hardGrants(t); r.must(finish("a", 1, 1, 200)); return r }
	released := func(t testing.TB) *replica {
		r := partly(t)
		r.must(Release{Miner: "a", Reason: ReleaseSilent})
		return r
	}
	regranted := func(t testing.TB) *replica { r := released(t); r.must(grantWork("b", 2, 1)); return r }
	refinished := func(t testing.TB) *replica { r := regranted(t); r.must(finish("b", 3, 201, 300)); return r }
	second := func(t testing.TB) *replica {
		r := hardGrants(t)
		r.must(CloseJob{1, ""}, changed(hardJob, func(j *OpenJob) { j.Timestamp = 3000 }))
		return r
	}
	with := func(change func(*Finish)) Finish { c := finish("a", 1, 1, 300); change(&c); return c }
	easy := func(t testing.TB) *replica { return withGrants(t, easyJob) }
	solution, _ := search(pow.Work{Previous: easyJob.Previous, Timestamp: 1000, Bits: 8}, pow.Range{First: 1, Last: 300})
	if solution == 0 {
		t.Fatal("no solution in the first grant")
	}
	checkRows(t, []row{
		{"a whole grant", hardGrants, finish("a", 1, 1, 300), Done, ""},
		{"its first chunk", hardGrants, finish("a", 1, 1, 100), Done, ""},
		{"the rest", partly, finish("a", 1, 201, 300), Done, ""},
		{"the job's short last chunk", withJobAlmostDone, finish("a", 1, 901, 950), Done, ""},
		{"what was finished of a grant that is held", partly, finish("a", 1, 1, 200), Duplicate, ""},
		{"a part of that", partly, finish("a", 1, 101, 200), Duplicate, ""},
		{"what was finished of a grant that is gone", released, finish("a", 1, 1, 100), Duplicate, ""},
		{"what another finished", refinished, finish("a", 1, 1, 300), Duplicate, ""},
		{"a released range", released, finish("a", 1, 201, 300), Released, "grant 1"},
		{"a range that another holds", regranted, finish("a", 1, 201, 300), Released, "grant 1"},
		{"half of it released", released, finish("a", 1, 1, 300), Released, "grant 1"},
		{"not from the head", hardGrants, finish("a", 1, 101, 300), Wrong, "not the head"},
		{"across the head", partly, finish("a", 1, 101, 300), Wrong, "not the head"},
		{"beyond the grant", hardGrants, finish("a", 1, 1, 400), Wrong, "not the head"},
		{"another miner's range", hardGrants, finish("a", 1, 301, 500), Wrong, "not the head"},
		{"before the grant, not finished", hardGrants, finish("b", 2, 1, 300), Wrong, "not the head"},
		{"not up to a chunk's end", hardGrants, finish("a", 1, 1, 250), Wrong, "whole chunks"},
		{"not from a chunk's start", hardGrants, finish("a", 1, 2, 300), Wrong, "whole chunks"},
		{"upside down", hardGrants, finish("a", 1, 101, 100), Wrong, "whole chunks"},
		{"outside the job", hardGrants, finish("a", 1, 1, 1000), Wrong, "whole chunks"},
		{"from nonce 0", hardGrants, finish("a", 1, 0, 100), Wrong, "whole chunks"},
		{"another miner's grant", hardGrants, finish("b", 1, 1, 300), Wrong, "not miner b's"},
		{"a grant that never was", hardGrants, finish("a", 3, 1, 300), Wrong, "no grant 3"},
		{"grant 0", hardGrants, finish("a", 0, 1, 300), Wrong, "no grant 0"},
		{"a receipt after the range", hardGrants, with(func(f *Finish) { f.Receipt = 301 }), Wrong, "receipt 301"},
		{"a receipt before the range", hardGrants, with(func(f *Finish) { f.Receipt = 0 }), Wrong, "receipt 0"},
		{"a receipt that is a solution", easy, with(func(f *Finish) { f.Receipt = solution }), Wrong, "is a solution"},
		{"a timestamp that is over", rolled, with(func(f *Finish) {}), Stale, "timestamp 1000 is over"},
		{"a timestamp to come", hardGrants, with(func(f *Finish) { f.Timestamp = 1001 }), Wrong, "never searched"},
		{"a solved job", solvedJob, with(func(f *Finish) {}), Stale, "solved"},
		{"a job before", second, with(func(f *Finish) {}), Stale, "job 1 is over"},
		{"a job to come", hardGrants, with(func(f *Finish) { f.JobID = 2 }), Wrong, "no job 2"},
	})
}

func TestFinishedWorkIsCounted(t *testing.T) {
	r := hardGrants(t)
	r.must(finish("a", 1, 1, 100), finish("a", 1, 101, 300), finish("b", 2, 301, 500))
	r.must(grantWork("a", 2, 9), finish("a", 3, 501, 950))
	want := []Miner{
		{Name: "a", Chunks: 8, Nonces: 750, LastRequestID: 2, LastGrantID: 3},
		{Name: "b", Chunks: 2, Nonces: 200, LastRequestID: 1, LastGrantID: 2},
	}
	if !slices.Equal(r.Miners(), want) {
		t.Errorf("miners are %+v, want %+v", r.Miners(), want)
	}
	if r.Counts() != (Counts{Total: 10, Finished: 10}) {
		t.Errorf("the partition is %+v", r.Counts())
	}
}

func TestSolve(t *testing.T) {
	easy := func(t testing.TB) *replica { return withGrants(t, easyJob) }
	work := pow.Work{Previous: easyJob.Previous, Timestamp: 1000, Bits: 8}
	first, _ := search(work, pow.Range{First: 1, Last: 300})
	later, _ := search(work, pow.Range{First: 501, Last: 950})
	if first == 0 || later == 0 {
		t.Fatal("the job has too few solutions")
	}
	solve := Solve{JobID: 1, GrantID: 1, Miner: "a", Timestamp: 1000, Nonce: first}
	with := func(change func(*Solve)) Solve { c := solve; change(&c); return c }
	solvedJob := func(t testing.TB) *replica { r := easy(t); r.must(solve); return r }
	settled := func(t testing.TB) *replica {
		r := solvedJob(t)
		r.must(Submitting{1}, Submitted{1, VerdictSuccess, ""})
		return r
	}
	released := func(t testing.TB) *replica {
		r := easy(t)
		r.must(Release{Miner: "a", Reason: ReleaseSilent})
		return r
	}
	passed := func(t testing.TB) *replica { // the miner said that there is none
		r := easy(t)
		chunks := (first-1)/100 + 1
		c := finish("a", 1, 1, chunks*100)
		if c.Receipt == first {
			c.Receipt++
		}
		r.must(grantWork("a", 2, 1), c)
		return r
	}
	checkRows(t, []row{
		{"a solution", easy, solve, Done, ""},
		{"the same solution", solvedJob, solve, Duplicate, ""},
		{"the same solution of a settled job", settled, solve, Duplicate, ""},
		{"the same nonce of another miner", solvedJob, with(func(s *Solve) { s.Miner, s.GrantID = "b", 2 }), Stale, "solved"},
		{"another solution of a settled job", settled, with(func(s *Solve) { s.Nonce = later }), Stale, "closed"},
		{"no solution", easy, with(func(s *Solve) { s.Nonce++ }), Wrong, "leading zero bits, want 8"},
		{"a solution outside the grant", easy, with(func(s *Solve) { s.Nonce = later }), Wrong, "outside 1-300"},
		{"a solution in what was finished", passed, solve, Wrong, "outside"},
		{"a nonce outside the job", easy, with(func(s *Solve) { s.Nonce = 951 }), Wrong, "outside 1-950"},
		{"a solution of a released grant", released, solve, Released, "grant 1"},
		{"no solution of a released grant", released, with(func(s *Solve) { s.Nonce++ }), Wrong, "leading zero bits"},
		{"another miner's grant", easy, with(func(s *Solve) { s.Miner = "b" }), Wrong, "not miner b's"},
		{"a grant that never was", easy, with(func(s *Solve) { s.GrantID = 3 }), Wrong, "no grant 3"},
		{"a timestamp to come", easy, with(func(s *Solve) { s.Timestamp++ }), Wrong, "never searched"},
		{"a timestamp that is over", easy, with(func(s *Solve) { s.Timestamp-- }), Stale, "is over"},
		{"a job to come", easy, with(func(s *Solve) { s.JobID = 2 }), Wrong, "no job 2"},
	})
}

func TestRelease(t *testing.T) {
	some := func(ids ...uint64) Release { return Release{Miner: "a", GrantIDs: ids, Reason: ReleaseLeft} }
	grantGone := func(t testing.TB) *replica {
		r := withJobAlmostDone(t)
		r.must(finish("a", 1, 901, 950))
		return r
	}
	solvedJob := func(t testing.TB) *replica { r, _ := solved(t); return r }
	checkRows(t, []row{
		{"all of a miner's grants", hardGrants, Release{Miner: "a", Reason: ReleaseSilent}, Done, ""},
		{"one of them", hardGrants, some(1), Done, ""},
		{"one of them, and the miner", hardGrants, Release{"a", []uint64{1}, ReleaseLeft, true}, Done, ""},
		{"another miner's grant", hardGrants, some(1, 2), Wrong, "grant 2"},
		{"a grant that never was", hardGrants, some(3), Wrong, "no grant 3"},
		{"a grant that is gone", grantGone, some(1), Duplicate, ""},
		{"a miner without grants", struck, Release{Miner: "c", Reason: ReleaseRefused}, Duplicate, ""},
		{"a miner without grants is forgotten", struck, Release{Miner: "c", Reason: ReleaseRefused, Forget: true}, Done, ""},
		{"an unknown miner", hardGrants, Release{Miner: "z", Reason: ReleaseLeft, Forget: true}, Duplicate, ""},
		{"no job", empty, Release{Miner: "a", Reason: ReleaseLeft, Forget: true}, Duplicate, ""},
		{"a solved job", solvedJob, Release{Miner: "a", Reason: ReleaseSilent}, Stale, "keeps its partition"},
		{"a solved job's miner is forgotten", solvedJob, Release{Miner: "a", Reason: ReleaseSilent, Forget: true}, Done, ""},
	})
}

func TestForgottenMinerLeavesItsTotals(t *testing.T) {
	r := hardGrants(t)
	r.must(finish("a", 1, 1, 200), finish("b", 2, 301, 500), Strike{"a", "x"})
	r.must(Release{"a", nil, ReleaseLeft, true}, Release{"b", nil, ReleaseLeft, true})
	if want := (Miner{Chunks: 4, Nonces: 400, Strikes: 1}); r.Forgotten() != want || len(r.Miners()) != 0 {
		t.Errorf("the forgotten are %+v, want %+v; left are %+v", r.Forgotten(), want, r.Miners())
	}
	if r.Counts() != (Counts{Total: 10, Pending: 6, Finished: 4}) {
		t.Errorf("the partition is %+v", r.Counts())
	}
	grant := r.must(grantWork("a", 1, 9))[0].Grant // forgotten, and its request id with it
	if want := (pow.Range{First: 201, Last: 300}); grant.Nonces != want || grant.ID != 3 {
		t.Errorf("the new grant is %+v", grant)
	}
}

func TestClosedJobKeepsItsPartition(t *testing.T) {
	r := hardGrants(t)
	r.must(finish("a", 1, 1, 100), CloseJob{1, ""})
	want := r.Counts()
	grants := slices.Collect(r.Grants())
	r.must(Release{"a", nil, ReleaseLeft, true}, Release{"b", nil, ReleaseLeft, true}, Strike{"a", "again"})
	r.do(Release{"a", nil, ReleaseLeft, false})
	r = r.restored()
	if got := r.Counts(); got != want || !slices.Equal(slices.Collect(r.Grants()), grants) {
		t.Errorf("the partition is %+v, want %+v", got, want)
	}
	r.must(changed(hardJob, func(j *OpenJob) { j.Timestamp = 2000 }))
	if r.Counts() != (Counts{Total: 10, Pending: 10}) || len(slices.Collect(r.Grants())) != 0 {
		t.Errorf("the next job starts with %+v", r.Counts())
	}
}

func TestRevoke(t *testing.T) {
	revoke := func(ranges ...pow.Range) Revoke {
		return Revoke{JobID: 1, Round: 0, Miner: "a", Ranges: ranges, Reason: "not believed"}
	}
	with := func(change func(*Revoke)) Revoke { c := revoke(pow.Range{First: 1, Last: 100}); change(&c); return c }
	finished := func(t testing.TB) *replica { // chunks 0 to 2; 3 and 4 are b's, the rest is pending
		r := hardGrants(t)
		r.must(finish("a", 1, 1, 300))
		return r
	}
	revoked := func(t testing.TB) *replica {
		r := finished(t)
		r.must(revoke(pow.Range{First: 101, Last: 200}))
		return r
	}
	again := pow.Range{First: 101, Last: 200}
	checkRows(t, []row{
		{"all", finished, revoke(pow.Range{First: 1, Last: 300}), Done, ""},
		{"some", finished, revoke(pow.Range{First: 201, Last: 300}, pow.Range{First: 1, Last: 100}), Done, ""},
		{"again", revoked, revoke(pow.Range{First: 101, Last: 200}), Duplicate, ""},
		{"partly again", revoked, revoke(pow.Range{First: 1, Last: 300}), Refused, "not finished"},
		{"one again and one not", revoked, revoke(again, pow.Range{First: 1, Last: 100}), Refused, "pending"},
		{"granted", finished, revoke(pow.Range{First: 301, Last: 400}), Refused, "301-400 is not finished"},
		{"partly granted", finished, revoke(pow.Range{First: 201, Last: 400}), Refused, "201-400 is not finished"},
		{"across the cursor", finished, revoke(pow.Range{First: 401, Last: 600}), Refused, "401-600 is not finished"},
		{"listed twice", finished, revoke(pow.Range{First: 1, Last: 200}, again), Wrong, "listed twice"},
		{"nothing", finished, revoke(), Wrong, "no ranges"},
		{"half a chunk", finished, revoke(pow.Range{First: 1, Last: 50}), Wrong, "whole chunks"},
		{"another round", finished, with(func(c *Revoke) { c.Round = 1 }), Wrong, "no round 1"},
		{"a round before", rolled, with(func(c *Revoke) {}), Stale, "round 0 is over"},
		{"a job to come", finished, with(func(c *Revoke) { c.JobID = 2 }), Wrong, "no job 2"},
		{"a closed job", closed, with(func(c *Revoke) {}), Stale, "closed"},
	})
}

func TestRevokedWorkIsTakenFromItsMiner(t *testing.T) {
	r := hardGrants(t)
	r.must(finish("a", 1, 1, 300), finish("b", 2, 301, 500), Release{"b", nil, ReleaseLeft, true})
	r.must(Revoke{1, 0, "a", []pow.Range{{First: 1, Last: 100}, {First: 201, Last: 300}}, ""})
	if m, _ := r.Miner("a"); m.Chunks != 1 || m.Nonces != 100 {
		t.Errorf("the miner has %+v", m)
	}
	r.must(Revoke{1, 0, "b", []pow.Range{{First: 301, Last: 400}}, ""}) // forgotten by now
	if f := r.Forgotten(); f.Chunks != 1 || f.Nonces != 100 {
		t.Errorf("the forgotten have %+v", f)
	}
	if r.Counts() != (Counts{Total: 10, Pending: 8, Finished: 2}) {
		t.Errorf("the partition is %+v", r.Counts())
	}
}

// The last nonce is 1<<64-1: no arithmetic on ranges may overflow.
func TestJobUpToTheLastNonce(t *testing.T) {
	const last = math.MaxUint64
	for _, first := range []uint64{1, last - 2_500_000_000, last} {
		nonces := pow.Range{First: first, Last: last}
		r := newReplica(t)
		r.must(changed(hardJob, func(j *OpenJob) { j.Nonces, j.ChunkSize = nonces, MaxChunkSize }))
		total := r.Counts().Total
		before := uint64(0)
		if total > 2 {
			before = total - 2
			r.must(grantWork("a", 1, before))
		}
		grant := r.must(grantWork("b", 1, 9))[0].Grant
		if want := nonces.First + before*MaxChunkSize; grant.Nonces != (pow.Range{First: want, Last: last}) {
			t.Fatalf("of %s the last grant is %s, want it from %d", nonces, grant.Nonces, want)
		}
		r.must(Release{Miner: "b", Reason: ReleaseSilent})
		grant = r.must(grantWork("b", 2, 9))[0].Grant
		r.must(finish("b", grant.ID, grant.Nonces.First, last))
		r = r.restored()
		if before > 0 {
			r.must(finish("a", 1, nonces.First, nonces.First+before*MaxChunkSize-1))
		}
		if got := r.Counts(); got != (Counts{Total: total, Finished: total}) {
			t.Errorf("of %s the partition is %+v", nonces, got)
		}
		r.must(Roll{1, 1, 2000})
	}
}

// 20 million chunks must not cost memory: the partition's size depends on the grants alone.
func TestManyChunksCostNothing(t *testing.T) {
	r := newReplica(t)
	r.must(changed(hardJob, func(j *OpenJob) { j.Nonces.Last, j.ChunkSize = 2_000_000_000_000, 100_000 }))
	for i := range uint64(100) {
		grant := r.must(grantWork("a", i+1, 200_000))[0].Grant
		r.must(finish("a", grant.ID, grant.Nonces.First, grant.Nonces.Last))
	}
	if r.Counts() != (Counts{Total: 20_000_000, Finished: 20_000_000}) {
		t.Errorf("the partition is %+v", r.Counts())
	}
	if size := len(write(t, r.State.Snapshot())); size > 400 {
		t.Errorf("its snapshot has %d bytes", size)
	}
}
