package audit

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// TestHonestMinersAreNeverCalledImplausible: 100 miners with 10,000 ranges each, a million in all.
func TestHonestMinersAreNeverCalledImplausible(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	worst := 0.0
	small := 0
	for range 100 {
		var r Receipts
		for range 10_000 {
			r.Add(100_000, rng.ExpFloat64(), Place{})
		}
		if worst = max(worst, r.Suspicion); r.Implausible() {
			t.Errorf("an honest miner is implausible after %d ranges", r.FlaggedAfter)
		}
		if share, low, high := r.Share(); share < 0.95 || share > 1.05 || low > share || high < share {
			t.Errorf("an honest miner did %v of the work, %v to %v", share, low, high)
		}
		if r.LogPValue() < math.Log(0.01) {
			small++
		}
	}
	t.Logf("the largest suspicion among a million honest ranges is %.3g; %d p-values of 100 are below 0.01", worst, small)
	if small > 6 {
		t.Errorf("%d p-values of 100 are below 0.01", small)
	}
}

// TestLazyMinersAreFound reports after how many ranges a miner is found that hashes only a share of each, from the first
// range on, or after 2,000 honest ones.
func TestLazyMinersAreFound(t *testing.T) {
	for _, row := range []struct {
		name  string
		x     func(*rand.Rand) float64
		limit uint64 // ranges, nine times of ten
	}{
		{"0 %, made up", func(rng *rand.Rand) float64 { return -100_000 * math.Log1p(-rng.Float64()) }, 1},
		{"0 %, the best of 1000", func(rng *rand.Rand) float64 { return 100 * rng.ExpFloat64() }, 2},
		{"50 %", func(rng *rand.Rand) float64 { return 2 * rng.ExpFloat64() }, 130},
		{"80 %", func(rng *rand.Rand) float64 { return 1.25 * rng.ExpFloat64() }, 1700},
	} {
		for _, honest := range []uint64{0, 2_000} {
			var after []uint64
			for seed := range uint64(100) {
				rng := rand.New(rand.NewPCG(seed, 3))
				var r Receipts
				for range honest {
					r.Add(100_000, rng.ExpFloat64(), Place{})
				}
				for !r.Implausible() {
					r.Add(100_000, row.x(rng), Place{})
					if r.Ranges > 100_000 {
						t.Fatalf("%s: not found", row.name)
					}
				}
				after = append(after, r.FlaggedAfter-honest)
			}
			slices.Sort(after)
			t.Logf("%s after %d honest ranges: found after %d ranges in the middle, %d nine times of ten, %d at most", row.name, honest,
				after[50], after[90], after[99])
			if after[90] > row.limit {
				t.Errorf("%s: found after %d ranges nine times of ten, want %d", row.name, after[90], row.limit)
			}
		}
	}
}

// TestLazyMinerInAHistoryIsNamed hashes for real.
func TestLazyMinerInAHistoryIsNamed(t *testing.T) {
	for name, row := range map[string]struct {
		share  float64
		ranges int
	}{"none": {-1, 100}, "half": {0.5, 400}, "most": {0.8, 2000}} {
		share := row.share
		w := newWorld(t, 12)
		w.bits = 40
		lazy, honest := w.miner("lazy", share), w.miner("honest", 1)
		w.open(10_000_000, 20) // small ranges: the statistics of a receipt are exact for them too
		for range row.ranges {
			for _, m := range []*worldMiner{lazy, honest} {
				w.commit(w.grantCommand(m, 1))
				w.answer(m)
			}
		}
		report := replay(t, w.records, Options{})
		first, _ := report.First()
		lazyRow := report.Miners[1]
		if report.FindingCount != 1 || first.Kind != KindWork || first.Index != lazyRow.Receipts.Flagged.Index || lazyRow.Name != "lazy" {
			t.Fatalf("%s: %v", name, report.Findings)
		}
		t.Logf("%s: %s", name, first)
		if report.Miners[0].Receipts.Implausible() {
			t.Errorf("%s: the honest one is implausible", name)
		}
		// Four standard deviations: one history is one draw, and the 95 % bounds miss one of twenty.
		got, low, high := lazyRow.Receipts.Share()
		if share > 0 && math.Abs(got-share) > 4*share/math.Sqrt(float64(lazyRow.Receipts.Ranges)) {
			t.Errorf("%s: it did %v of the work, %v to %v, and really %v", name, got, low, high, share)
		}
	}
}

// TestRevokedLiesAreNoFaultOfTheHistory: a miner that was found out by its leader is told of; one that lies on is a fault
// again.
func TestRevokedLiesAreNoFaultOfTheHistory(t *testing.T) {
	w := newWorld(t, 14)
	w.bits = 40
	lazy, honest := w.miner("lazy", -1), w.miner("honest", 1)
	w.open(10_000_000, 100)
	lie := func() pow.Range {
		w.commit(w.grantCommand(lazy, 1))
		nonces := w.held(lazy)[0].Nonces
		for w.answer(lazy); len(w.held(lazy)) > 0; w.answer(lazy) { // it may answer for a part of it
		}
		return nonces
	}
	var lies []pow.Range
	for range 30 {
		lies = append(lies, lie())
	}
	if report := replay(t, w.records, Options{}); report.Holds() {
		t.Fatal("thirty ranges that nobody searched are not found")
	}
	revoke := fsm.Revoke{JobID: 1, Miner: lazy.name, Ranges: lies, Reason: "not believed"}
	w.commit(revoke)
	for range lies {
		w.commit(w.grantCommand(honest, 1))
		w.answer(honest)
	}
	report := replay(t, w.records, Options{})
	row := report.Miners[1].Receipts
	if !report.Holds() || !row.Implausible() || row.Revoked != 30 {
		t.Errorf("found out and searched again: %v, implausible %t, %d chunks revoked", report.Findings, row.Implausible(), row.Revoked)
	}
	for range 30 {
		lie()
	}
	again := replay(t, w.records, Options{})
	if first, _ := again.First(); again.FindingCount != 1 || first.Kind != KindWork || first.Index <= row.Flagged.Index {
		t.Errorf("it lies on: %v, want one finding after record %d", again.Findings, row.Flagged.Index)
	}
	w.commit(fsm.CloseJob{JobID: 1, Reason: "the previous hash moved"})
	w.commit(revoke)
	if late := replay(t, w.records, Options{}); !late.Holds() {
		t.Errorf("found out in the moment the job was over: %v", late.Findings)
	}
}
