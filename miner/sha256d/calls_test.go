//go:build !race

package sha256d

import (
	"math"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"raftmine/fsm/pow"
)

// TestCallIsShorterThanAMillisecond takes the fastest of many calls, which nobody disturbed. Where the processor is slower
// than README's, a call may take as long as plain hashes do that are a millisecond's there; the race detector slows both
// unequally.
func TestCallIsShorterThanAMillisecond(t *testing.T) {
	const millisecond = 4600 // plain hashes
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 1_790_000_000_000})
	plain := plainMidstate(job)
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		hits := make([]uint64, 4)
		for _, digits := range []uint64{10_000_000, 100_000_000, 1_000_000_000} {
			var nonces uint64
			call, one := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
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
			t.Logf("a call of %d nonces from %d on takes %s, as long as %d plain hashes", nonces, digits, call, 500*call/one)
			if most := max(time.Millisecond, millisecond*one/500); call > most {
				t.Errorf("want %s at most", most)
			}
		}
	})
}

// BenchmarkCall measures how long a call takes, for nonces of 8, 9 and 10 digits: on the clock, and how much of that the
// thread had a processor. On a busy machine only the latter tells whether a call is shorter than a millisecond.
func BenchmarkCall(b *testing.B) {
	for _, k := range Kernels() {
		if !k.Available() {
			continue
		}
		b.Run(k.Name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			searcher, job, hits := k.New(), NewJob(benchmarkWork), make([]uint64, 4)
			var clock, processor []time.Duration
			starts := []uint64{10_000_000, 100_000_000, 1_000_000_000}
			for i := uint64(0); b.Loop(); i++ {
				first := starts[i/100%3]
				nonces := pow.Range{First: first + i<<16%first, Last: math.MaxUint64}
				start, used := time.Now(), threadTime(b)
				searcher.Search(job, nonces, 0, hits)
				processor = append(processor, threadTime(b)-used)
				clock = append(clock, time.Since(start))
			}
			for name, all := range map[string][]time.Duration{"clock": clock, "processor": processor} {
				slices.Sort(all)
				b.ReportMetric(float64(all[len(all)/2])/1e3, "p50-"+name+"-us")
				b.ReportMetric(float64(all[len(all)*99/100])/1e3, "p99-"+name+"-us")
			}
		})
	}
}

// threadTime is how long this thread had a processor.
func threadTime(b *testing.B) time.Duration {
	var used unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Nano())
}
