package sha256d

import (
	"hash/crc32"
	"math"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raftmine/fsm/pow"
)

// Go cannot preempt assembly. The garbage collector, which stops every thread for a moment, waits for the runs they are in.

// TestCollectorWaitsForARunAndNotForACall compares how long the collector waits for each kernel with how long for assembly
// that goes on for 15 calls. A run is a fifth of a call or less: with what stopping takes anyway, some 50 times are usual. If
// a call were one run it would be 10 times. Both become longer on a slow machine; on a busy one the shortest of some turns
// are those that nobody disturbed.
func TestCollectorWaitsForARunAndNotForACall(t *testing.T) {
	const calls, least, turns, collections = 15, 25, 10, 10
	threads := min(4, runtime.GOMAXPROCS(0)) // to stop a hundred takes as long as a call
	for _, k := range Kernels() {
		t.Run(k.Name, func(t *testing.T) {
			if !k.Available() {
				t.Skip("not available on this machine")
			}
			control := newControl(calls * shortestCall(k.New()))
			short, long := math.Inf(1), math.Inf(1)
			for turn := range turns {
				short = min(short, quantile(collectorWaits(threads, k.New, collections), 0.25))
				long = min(long, quantile(collectorWaits(threads, func() Searcher { return control }, collections), 0.25))
				if turn > 1 && long >= least*short {
					break
				}
			}
			t.Logf("a quarter of the waits are shorter than %.0f µs, for the control %.0f µs", 1e6*short, 1e6*long)
			if long < least*short {
				t.Errorf("the collector waits 1/%.0f as long as for assembly that lasts for %d calls, want 1/%d", long/short, calls, least)
			}
		})
	}
}

// control is a Searcher whose call is one stretch of assembly. (crypto/sha256 would be left every 64 KiB.)
type control []byte

func newControl(duration time.Duration) control {
	const most, piece = 128 << 20, 1 << 20
	memory := make(control, most) // never written: it costs no memory
	memory.Search(nil, pow.Range{}, 0, nil)
	took := time.Duration(math.MaxInt64)
	for range 50 {
		start := time.Now()
		memory[:piece].Search(nil, pow.Range{}, 0, nil)
		took = min(took, time.Since(start))
	}
	return memory[:min(most, piece*duration/took)]
}

func (c control) Search(*Job, pow.Range, uint32, []uint64) (int, uint64) {
	atomic.AddUint32(&sink, crc32.ChecksumIEEE(c))
	return 0, 1
}

// shortestCall is how long a call takes when nothing disturbs it.
func shortestCall(searcher Searcher) time.Duration {
	job, hits, shortest := NewJob(benchmarkWork), make([]uint64, 4), time.Duration(math.MaxInt64)
	nonces := pow.Range{First: 1_000_000_000, Last: math.MaxUint64}
	for range 50 {
		start := time.Now()
		_, tried := searcher.Search(job, nonces, 0, hits)
		shortest = min(shortest, time.Since(start))
		nonces.First += tried
	}
	return shortest
}

// BenchmarkCollector measures how long the collector waits until every thread stands while all processors search: half of
// its waits are shorter than p50.
func BenchmarkCollector(b *testing.B) {
	for _, k := range Kernels() {
		if !k.Available() {
			continue
		}
		b.Run(k.Name, func(b *testing.B) {
			waits := collectorWaits(runtime.GOMAXPROCS(0), k.New, b.N)
			b.ReportMetric(1e6*quantile(waits, 0.5), "p50-wait-us")
			b.ReportMetric(1e6*quantile(waits, 0.99), "p99-wait-us")
		})
	}
}

// collectorWaits keeps threads in Searchers of that kind, with a Go processor to spare as a miner has it, forces some
// collections, and returns how long each wait was until all threads stood.
func collectorWaits(threads int, newSearcher func() Searcher, collections int) *metrics.Float64Histogram {
	const stops = "/sched/pauses/stopping/gc:seconds"
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(threads + 1))
	var over atomic.Bool
	var ended sync.WaitGroup
	job, called := NewJob(benchmarkWork), make(chan struct{})
	for i := range threads {
		ended.Go(func() {
			searcher, hits := newSearcher(), make([]uint64, 4)
			nonces := pow.Range{First: 1_000_000_000 + uint64(i)<<32, Last: math.MaxUint64}
			for !over.Load() {
				_, tried := searcher.Search(job, nonces, 0, hits)
				nonces.First += tried
				select {
				case called <- struct{}{}:
				default:
				}
			}
		})
	}
	before := readHistogram(stops)
	for range collections {
		for range threads { // they search and do not stand
			<-called
		}
		runtime.GC()
	}
	waits := readHistogram(stops)
	over.Store(true)
	ended.Wait()
	for i := range waits.Counts {
		waits.Counts[i] -= before.Counts[i]
	}
	return waits
}

func readHistogram(name string) *metrics.Float64Histogram {
	sample := []metrics.Sample{{Name: name}}
	metrics.Read(sample)
	return sample[0].Value.Float64Histogram()
}

// quantile returns the upper end of the bucket that holds this part of all values.
func quantile(h *metrics.Float64Histogram, part float64) float64 {
	sum := uint64(0)
	for _, n := range h.Counts {
		sum += n
	}
	seen := uint64(0)
	for i, n := range h.Counts {
		if seen += n; float64(seen) >= part*float64(sum) {
			return h.Buckets[i+1]
		}
	}
	return math.Inf(1)
}
