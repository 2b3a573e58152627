package audit

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"raftmine/fsm/pow"
)

// TestExcessOfHonestReceiptsIsExponential searches real ranges, small and easy ones too, where approximations would be
// off: most of them hold a solution and do not count.
func TestExcessOfHonestReceiptsIsExponential(t *testing.T) {
	for _, row := range []struct {
		nonces uint64
		bits   int
	}{{1, 1}, {3, 2}, {50, 6}, {200, 40}} {
		work := pow.Work{Previous: pow.Sum([]byte("excess")), Bits: row.bits}
		var excesses []float64
		for len(excesses) < 2000 {
			work.Timestamp++
			best, solved := pow.Hash{0xff}, false
			for nonce := uint64(1); nonce <= row.nonces && !solved; nonce++ {
				var digest pow.Hash
				if digest, solved = work.Verify(nonce); nonce == 1 || digest.Compare(best) < 0 {
					best = digest
				}
			}
			if !solved {
				excesses = append(excesses, Excess(row.nonces, row.bits, best))
			}
		}
		// Kolmogorov and Smirnov: the largest distance between the distributions; above 2/sqrt(k) with p = 0.0007.
		slices.Sort(excesses)
		worst := 0.0
		for i, x := range excesses {
			worst = max(worst, math.Abs(float64(i+1)/2000-(1-math.Exp(-x))))
		}
		if limit := 2 / math.Sqrt(2000); worst > limit {
			t.Errorf("%d nonces, %d bits: off by %.4f, want below %.4f", row.nonces, row.bits, worst, limit)
		}
	}
}

func TestExcessIsAlwaysANumber(t *testing.T) {
	ones := pow.Hash{}
	for i := range ones {
		ones[i] = 0xff
	}
	for _, digest := range []pow.Hash{{}, {0x80}, ones} {
		for _, bits := range []int{0, 1, 64, 256} {
			for _, nonces := range []uint64{1, math.MaxUint64} {
				if x := Excess(nonces, bits, digest); math.IsNaN(x) || math.IsInf(x, 0) || x < 0 {
					t.Errorf("%s, %d bits, %d nonces: %v", digest, bits, nonces, x)
				}
			}
		}
	}
}

// Values of ln Q(k, x) for k small enough to be summed by hand: Q = e^-x (1 + x + ... + x^(k-1)/(k-1)!).
func TestGammaTailIsTheSum(t *testing.T) {
	for k := 1.0; k <= 60; k += 7 {
		for _, x := range []float64{0.1, 1, 5, 30, 59, 60, 61, 100, 300} {
			term, sum := 1.0, 1.0
			for j := 1.0; j < k; j++ {
				term *= x / j
				sum += term
			}
			want := math.Log(sum) - x
			if got := logGammaTail(k, x); math.Abs(got-want) > 1e-8*math.Max(1, math.Abs(want)) {
				t.Errorf("ln Q(%v, %v) = %v, want %v", k, x, got, want)
			}
		}
	}
	if got := logGammaTail(4e6, 4e6+3*2e3); math.Abs(math.Exp(got)-0.00135) > 2e-5 { // three sigma
		t.Errorf("three sigma of four million: p = %v", math.Exp(got))
	}
}

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
		w.open(10_000_000, 100)
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
