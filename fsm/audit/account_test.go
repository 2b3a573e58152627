package audit

import (
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// TestAccountContradictsAFalseOutcome: package fsm never comes to these outcomes. If it did, the audit would say so,
// because it keeps its own account.
func TestAccountContradictsAFalseOutcome(t *testing.T) {
	// Job 1, chunks of 20: grant 1 of miner a is 1-60, of which 1-20 is finished; grant 2 of miner b is 61-100; the grant 3
	// of miner c, 101-120, was taken back; 121-1990 was never granted.
	w := newWorld(t, 30)
	w.bits = 16
	a, b, c := w.miner("a", 1), w.miner("b", 1), w.miner("c", 1)
	w.open(1_990, 20)
	w.commit(w.grantCommand(a, 3), w.grantCommand(b, 2), w.grantCommand(c, 1))
	job := w.current()
	_, solution := w.search(a, pow.Range{First: 1, Last: 1_990})
	if solution != 0 {
		t.Fatal("choose another seed: the job has a solution")
	}
	first, _ := w.search(a, pow.Range{First: 1, Last: 20})
	w.commit(fsm.Finish{JobID: 1, GrantID: 1, Miner: "a", Timestamp: job.Timestamp, Nonces: pow.Range{First: 1, Last: 20}, Receipt: first})
	w.commit(fsm.Release{Miner: "c", Reason: fsm.ReleaseSilent})

	done := fsm.Outcome{Code: fsm.Done}
	grant := func(id, first, last uint64) fsm.Outcome {
		return fsm.Outcome{Code: fsm.Done, Grant: fsm.Grant{ID: id, JobID: 1, Miner: "b", Nonces: pow.Range{First: first, Last: last}}}
	}
	ask := fsm.GrantWork{JobID: 1, Miner: "b", RequestID: 9, Chunks: 2}
	finish := func(grant uint64, miner string, first, last, receipt uint64) fsm.Finish {
		return fsm.Finish{JobID: 1, GrantID: grant, Miner: miner, Timestamp: job.Timestamp, Nonces: pow.Range{First: first, Last: last},
			Receipt: receipt}
	}
	for name, row := range map[string]struct {
		command fsm.Command
		outcome fsm.Outcome
		kind    Kind // empty: it is right
	}{
		"a returned chunk":               {ask, grant(4, 101, 120), ""},
		"a returned and a new chunk":     {ask, grant(4, 101, 140), ""},
		"granted to another":             {ask, grant(4, 81, 120), KindPartition},
		"finished before":                {ask, grant(4, 1, 20), KindPartition},
		"half a chunk":                   {ask, grant(4, 101, 110), KindPartition},
		"outside of the job":             {ask, grant(4, 1_981, 2_000), KindPartition},
		"more than asked for":            {ask, grant(4, 101, 160), KindPartition},
		"a grant id left out":            {ask, grant(5, 101, 120), KindPartition},
		"another job":                    {fsm.GrantWork{JobID: 2, Miner: "b", RequestID: 9, Chunks: 2}, grant(4, 101, 120), KindJob},
		"again what it does not hold":    {ask, fsm.Outcome{Code: fsm.Duplicate, Grant: grant(1, 21, 60).Grant}, KindPartition},
		"another's range finished":       {finish(1, "b", 21, 40, 30), done, KindPartition},
		"not the head of what is left":   {finish(1, "a", 41, 60, 50), done, KindPartition},
		"finished again":                 {finish(1, "a", 1, 20, first), done, KindPartition},
		"a receipt outside":              {finish(1, "a", 21, 40, 41), done, KindProof},
		"a good answer not taken":        {finish(1, "a", 21, 40, 30), fsm.Outcome{Code: fsm.Released}, KindPartition},
		"a proof that does not hold":     {fsm.Solve{JobID: 1, GrantID: 1, Miner: "a", Timestamp: job.Timestamp, Nonce: 30}, done, KindProof},
		"a solution in another's range":  {fsm.Solve{JobID: 1, GrantID: 2, Miner: "b", Timestamp: job.Timestamp, Nonce: 30}, done, KindPartition},
		"revoked what was not finished":  {fsm.Revoke{JobID: 1, Miner: "a", Ranges: []pow.Range{{First: 21, Last: 40}}}, done, KindPartition},
		"revoked in another round":       {fsm.Revoke{JobID: 1, Round: 1, Miner: "a", Ranges: []pow.Range{{First: 1, Last: 20}}}, done, KindJob},
		"rolled with work left":          {fsm.Roll{JobID: 1, Round: 1, Timestamp: job.Timestamp + 1}, done, KindPartition},
		"submitted without a solution":   {fsm.Submitting{JobID: 1}, done, KindJob},
		"a verdict without a submission": {fsm.Submitted{JobID: 1, Verdict: fsm.VerdictSuccess}, done, KindJob},
		"opened while another is":        {fsm.OpenJob{Height: 2, Bits: 16, Timestamp: 1, Nonces: pow.Range{First: 1, Last: 9}, ChunkSize: 3}, fsm.Outcome{Code: fsm.Done, JobID: 2}, KindJob},
		"closed another":                 {fsm.CloseJob{JobID: 2}, done, KindJob},
		"office taken in another's name": {fsm.TakeOffice{ServerID: 3}, done, KindTerm},
		"refused, and nothing changed":   {ask, fsm.Outcome{Code: fsm.Refused}, ""},
		"a strike is nobody's falsehood": {fsm.Strike{Miner: "a", Reason: "x"}, done, ""},
	} {
		au := newAuditor(Options{})
		for _, r := range w.records {
			au.record(r)
		}
		if !au.report.Holds() {
			t.Fatal(au.report.Findings)
		}
		au.command(&fsm.Entry{LeaderID: 1}, row.command, &row.outcome, &fsm.Head{})
		if first, _ := au.report.First(); first.Kind != row.kind {
			t.Errorf("%s: found %v, want %q", name, au.report.Findings, row.kind)
		}
	}
}

// TestGapBelowASolutionIsFound: an account in which chunks below the solution were never granted.
func TestGapBelowASolutionIsFound(t *testing.T) {
	w := newWorld(t, 31)
	w.bits = 4
	m := w.miner("a", 1)
	w.open(1_990, 20)
	job := w.current()
	_, solution := w.search(m, pow.Range{First: 101, Last: 200})
	au := newAuditor(Options{})
	for _, r := range w.records {
		au.record(r)
	}
	at := (solution - 1) / 20 * 20
	au.command(&fsm.Entry{}, w.grantCommand(m, 5), &fsm.Outcome{Code: fsm.Done,
		Grant: fsm.Grant{ID: 1, Miner: "a", Nonces: pow.Range{First: at + 1, Last: at + 20}}}, &fsm.Head{})
	au.command(&fsm.Entry{}, fsm.Solve{JobID: 1, GrantID: 1, Miner: "a", Timestamp: job.Timestamp, Nonce: solution},
		&fsm.Outcome{Code: fsm.Done}, &fsm.Head{})
	if first, _ := au.report.First(); first.Kind != KindPartition || au.job.Below.Gaps != at/20 {
		t.Errorf("found %v with %+v", au.report.Findings, au.job.Below)
	}
}

// TestStateThatPartsFromTheAccountIsFound: after a record both must say the same.
func TestStateThatPartsFromTheAccountIsFound(t *testing.T) {
	w := history(t, 32, 3, 1)
	au := newAuditor(Options{})
	w.open(1_990, 20)
	w.commit(w.grantCommand(w.miners["miner-0"], 3))
	for _, r := range w.records {
		au.record(r)
	}
	au.part.set(pow.Range{First: 1, Last: 20}, stretch{owner: finished})
	au.compare()
	if first, _ := au.report.First(); first.Kind != KindPartition {
		t.Errorf("found %v", au.report.Findings)
	}
}

// TestPartitionCountsEachChunkOnce compares with an owner for each chunk.
func TestPartitionCountsEachChunkOnce(t *testing.T) {
	w := newWorld(t, 33)
	p := newPartition(pow.Range{First: 5, Last: 998}, 10)
	owners := make([]stretch, 100)
	for range 5000 {
		from := w.rng.Uint64N(100)
		to := from + w.rng.Uint64N(min(100-from, 8))
		s := stretch{owner: owner(w.rng.IntN(4)), grant: w.rng.Uint64N(2)}
		p.set(pow.Range{First: 5 + 10*from, Last: min(14+10*to, 998)}, s)
		for k := from; k <= to; k++ {
			owners[k] = s
		}
		var counts [finished + 1]uint64
		for k, own := range owners {
			counts[own.owner]++
			if got := p.stretches[p.at(5+10*uint64(k))]; !got.same(own) {
				t.Fatalf("chunk %d is %+v, want %+v", k, got, own)
			}
		}
		if counts != p.chunks {
			t.Fatalf("it counts %v, want %v", p.chunks, counts)
		}
		for i := 1; i < len(p.stretches); i++ {
			if p.stretches[i].nonces.First != p.stretches[i-1].nonces.Last+1 || p.stretches[i].same(p.stretches[i-1]) {
				t.Fatalf("stretches %+v", p.stretches)
			}
		}
	}
}
