package pow

import (
	"encoding/binary"
	"math"
)

// suspicions are the fractions of the work that the sequential test compares with all of it. What lies between two of
// them is found nearly as fast. Tuning.
var suspicions = [...]float64{0.9, 0.75, 0.5, 0.1}

// Excess returns how bad a receipt is, as a number that for an honest miner is exponentially distributed with mean 1.
//
// Of n honest digests, each uniform, the smallest is above the fraction u of 2^256 with probability (1-u)^n. All of them
// are above t = 2^-bits, or the range would hold a solution, which makes that ((1-u)/(1-t))^n. So x = -n ln((1-u)/(1-t))
// exceeds any value v with probability e^-v, exactly, for small ranges and for easy jobs too. A miner that hashed only the
// share f of the range gives an x that is 1/f times as large in the mean.
func Excess(nonces uint64, bits int, digest Hash) float64 {
	u := math.Ldexp(float64(binary.BigEndian.Uint64(digest[:8])), -64) +
		math.Ldexp(float64(binary.BigEndian.Uint64(digest[8:16])), -128)
	least := math.Ldexp(1, -bits)
	if least >= 1 {
		return 0 // every nonce is a solution: no range is ever finished
	}
	if u >= 1 {
		u = 1 - 0x1p-53
	}
	return max(float64(nonces)*(math.Log1p(-least)-math.Log1p(-u)), 0)
}

// Receipts is what one miner's receipts say of its work.
//
// Two tests run over the excesses x1, x2, ...: their sum has a gamma distribution, which says how likely an honest miner
// is this bad over its whole history (LogPValue). And because a miner may turn lazy at any time, the Shiryaev-Roberts
// statistic R = (1+R) L is followed, where L = f e^((1-f)x) is how much better the last excess fits a miner that hashes the
// share f than an honest one; R is the mean over several f. For an honest miner the mean of R after k ranges is k, so by
// Doob's inequality it reaches c within k ranges with probability k/c at most, wherever it began to lie.
//
// Both take for granted that a range was fixed before it was searched. A miner that ends its answers where its luck
// suits it looks better than it is.
type Receipts struct {
	Ranges    uint64
	Nonces    uint64
	Excess    float64 // the sum
	Worst     float64 // the largest one
	Suspicion float64 // the largest R so far

	r [len(suspicions)]float64
}

// Add counts a finished range and returns R.
func (s *Receipts) Add(nonces uint64, excess float64) float64 {
	s.Ranges++
	s.Nonces += nonces
	s.Excess += excess
	s.Worst = max(s.Worst, excess)
	mean := 0.0
	for i, f := range suspicions {
		s.r[i] = min((1+s.r[i])*f*math.Exp((1-f)*excess), math.MaxFloat64)
		mean += s.r[i] / float64(len(suspicions))
	}
	s.Suspicion = max(s.Suspicion, mean)
	return mean
}

// Answered lets R start anew, because the ranges so far are not believed any more and were taken back.
func (s *Receipts) Answered() { s.r = [len(suspicions)]float64{} }

// Share estimates the share of the work that was done, with the bounds between which it lies in 95 % of all cases.
func (s *Receipts) Share() (share, low, high float64) {
	if s.Ranges == 0 || s.Excess == 0 {
		return 1, 0, 1
	}
	k := float64(s.Ranges)
	// The quantiles of the gamma distribution, as Wilson and Hilferty approximate them.
	quantile := func(z float64) float64 { return math.Pow(max(1-1/(9*k)+z/(3*math.Sqrt(k)), 0), 3) * k }
	return k / s.Excess, quantile(-1.96) / s.Excess, quantile(1.96) / s.Excess
}

// LogPValue returns the natural logarithm of the probability that an honest miner's receipts are this bad in sum, or
// worse.
func (s *Receipts) LogPValue() float64 {
	if s.Ranges == 0 {
		return 0
	}
	return logGammaTail(float64(s.Ranges), s.Excess)
}

// logGammaTail returns ln Q(k, x): the probability that the sum of k exponential variables of mean 1 exceeds x.
func logGammaTail(k, x float64) float64 {
	if x <= 0 {
		return 0
	}
	if k > 1e6 && math.Abs(x-k) < 10*math.Sqrt(k) { // Wilson and Hilferty; the exact ways grow slow here
		z := (math.Cbrt(x/k) - (1 - 1/(9*k))) * 3 * math.Sqrt(k)
		return math.Log(math.Erfc(z/math.Sqrt2) / 2)
	}
	gamma, _ := math.Lgamma(k)
	front := k*math.Log(x) - x - gamma
	const precision, rounds = 1e-12, 1 << 20
	if x < k+1 { // 1 - P, by P's series
		term, sum := 1/k, 1/k
		for n := 1.0; n < rounds && term > sum*precision; n++ {
			term *= x / (k + n)
			sum += term
		}
		return math.Log1p(-min(math.Exp(front)*sum, 1-1e-16))
	}
	// Q's continued fraction, by the way of Lentz.
	const tiny = 1e-300
	b := x + 1 - k
	c, d := 1/tiny, 1/b
	h := d
	for n := 1.0; n < rounds; n++ {
		a := -n * (n - k)
		b += 2
		if d = a*d + b; math.Abs(d) < tiny {
			d = tiny
		}
		if c = b + a/c; math.Abs(c) < tiny {
			c = tiny
		}
		d = 1 / d
		h *= d * c
		if math.Abs(d*c-1) < precision {
			break
		}
	}
	return min(front+math.Log(h), 0)
}
