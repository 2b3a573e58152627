package audit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// wide is a range of the usual size.
var wide = pow.Range{First: 1, Last: 100_000}

// TestHonestMinersAreNeverCalledImplausible: 100 miners with 10,000 ranges each, a million in all.
func TestHonestMinersAreNeverCalledImplausible(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	worst := 0.0
	small := 0
	for range 100 {
		var r Receipts
		for range 10_000 {
			r.Add(wide, rng.ExpFloat64(), Place{})
		}
		if worst = max(worst, r.Suspicion); r.Implausible() {
			t.Errorf("an honest miner is implausible after %d ranges", r.FlaggedAfter)
		}
		if share, low, high, _ := r.Share(); share < 0.95 || share > 1.05 || low > share || high < share {
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
					r.Add(wide, rng.ExpFloat64(), Place{})
				}
				for !r.Implausible() {
					r.Add(wide, row.x(rng), Place{})
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

// TestOneImpossibleReceiptSaysNothingOfTheOthers: it is named with how impossible it is, and what the other ranges say is
// not mixed with it.
func TestOneImpossibleReceiptSaysNothingOfTheOthers(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 3))
	var r Receipts
	for i := range uint64(8) {
		x := rng.ExpFloat64()
		if i == 4 {
			x = 50_000 // about what a made-up one has in the middle
		}
		r.Add(pow.Range{First: 100*i + 1, Last: 100*i + 100}, x, Place{Index: 20 + i})
	}
	share, low, high, ok := r.Share()
	if !ok || share < 0.3 || share > 3 || low > 1 || high < 1 {
		t.Errorf("the seven honest ones say %v of the work, %v to %v", share, low, high)
	}
	want := fmt.Sprintf("after 5 ranges its receipts say that the work was not done, which an honest miner's do with a probability of "+
		"5e-09 at most; 1 of its 8 ranges cannot have been searched (p is how likely one that is comes out as bad): 401-500 in record 24 with p = 10^-21715; if it searched the same "+
		"share of each of the other 7 ranges, that is %.1f %% (%.1f to %.1f %%, 95 times of 100)", 100*share, 100*low, 100*high)
	if got := r.String(); got != want {
		t.Errorf("it says\n%s, want\n%s", got, want)
	}
	if r.Others.LogPValue() < math.Log(0.001) || r.LogPValue() > -40_000 {
		t.Errorf("p is e^%v of the others, e^%v of all", r.Others.LogPValue(), r.LogPValue())
	}

	r = Receipts{}
	for i := range uint64(12) {
		r.Add(wide, 1000, Place{Index: i})
	}
	if _, _, _, ok := r.Share(); ok || r.Impossible != 12 || len(r.FirstImpossible) != maxImpossible {
		t.Errorf("of twelve impossible ones there are %d, %d are listed; a share of the others: %t", r.Impossible, len(r.FirstImpossible), ok)
	}
	if got := r.String(); !strings.HasPrefix(got, "after 1 range its") || !strings.HasSuffix(got, "with p = 10^-434, and 9 more") {
		t.Errorf("of twelve impossible ones it says: %s", got)
	}
}

// TestShareOfTheOthersIsNotTooLarge: the worst ranges of a miner that does little are impossible; that they are left out
// does not flatter what is said of the rest.
func TestShareOfTheOthersIsNotTooLarge(t *testing.T) {
	for _, share := range []float64{1, 0.5, 0.1, 0.05} {
		rng := rand.New(rand.NewPCG(6, 3))
		var r Receipts
		missed, sum := 0, 0.0
		for range 200 {
			r = Receipts{}
			for range 500 {
				r.Add(wide, rng.ExpFloat64()/share, Place{})
			}
			got, low, high, _ := r.Share()
			sum += got
			if share < low || share > high {
				missed++
			}
		}
		t.Logf("%v: the bounds missed it %d times of 200; %d of the last 500 ranges are impossible", share, missed, r.Impossible)
		if mean := sum / 200; missed > 20 || math.Abs(mean-share) > 0.05*share {
			t.Errorf("%v of the work is called %v in the mean, and the bounds missed it %d times of 200, want 10", share, mean, missed)
		}
	}
}

// TestServerThatWasNeverUpIsToldFromOneThatIsDown at the end of a history.
func TestServerThatWasNeverUpIsToldFromOneThatIsDown(t *testing.T) {
	w := newWorld(t, 15) // its three servers are up
	w.commit(fsm.ServerDown{ServerID: 2, Reason: "port refused"},
		fsm.AddServer{RequestID: fsm.ID{9}, Address: "127.0.0.1:7004", DataDir: "/data/4"})
	var was []bool
	for _, server := range replay(t, w.records, Options{}).Servers {
		was = append(was, server.WasUp)
	}
	if !slices.Equal(was, []bool{true, true, true, false}) {
		t.Errorf("were up: %v, want all but the last", was)
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
		got, low, high, _ := lazyRow.Receipts.Share()
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
