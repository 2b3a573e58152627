//go:build !race

package sha256d

import (
	"math"
	"testing"
	"time"

	"raftmine/fsm/pow"
)

// TestCallIsShorterThanAMillisecond bounds a call by the kernel's own rate, and that by plain hashing in the same turns, which
// a slow or busy machine slows alike (the race detector does not). README's machine does 4,600 plain double SHA-256 in a millisecond.
func TestCallIsShorterThanAMillisecond(t *testing.T) {
	const most = 4600
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 1_790_000_000_000})
	plain := plainMidstate(job)
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		hits := make([]uint64, 4)
		for _, digits := range []uint64{10_000_000, 100_000_000, 1_000_000_000} {
			var nonces uint64
			call, one := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64) // the fastest of all turns, which nobody disturbed
			for turn := range uint64(100) {
				start := time.Now()
				_, nonces = searcher.Search(job, pow.Range{First: digits + turn<<16, Last: math.MaxUint64}, 0, hits)
				call = min(call, time.Since(start))
				start = time.Now()
				for i := range uint64(500) {
					plain(digits + i)
				}
				one = min(one, time.Since(start))
			}
			if worth := 500 * float64(call) / float64(one); worth > most {
				t.Errorf("a call of %d nonces from %d on takes as long as %.0f plain hashes, want %d at most: a millisecond", nonces, digits, worth, most)
			} else {
				t.Logf("a call of %d nonces from %d on takes as long as %.0f plain hashes", nonces, digits, worth)
			}
		}
	})
}
