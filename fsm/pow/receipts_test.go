package pow

import (
	"math"
	"slices"
	"testing"
)

// TestExcessOfHonestReceiptsIsExponential searches real ranges, small and easy ones too, where approximations would be
// off: most of them hold a solution and do not count.
func TestExcessOfHonestReceiptsIsExponential(t *testing.T) {
	for _, row := range []struct {
		nonces uint64
		bits   int
	}{{1, 1}, {3, 2}, {50, 6}, {200, 40}} {
		work := Work{Previous: Sum([]byte("excess")), Bits: row.bits}
		var excesses []float64
		for len(excesses) < 2000 {
			work.Timestamp++
			best, solved := Hash{0xff}, false
			for nonce := uint64(1); nonce <= row.nonces && !solved; nonce++ {
				var digest Hash
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
	ones := Hash{}
	for i := range ones {
		ones[i] = 0xff
	}
	for _, digest := range []Hash{{}, {0x80}, ones} {
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
