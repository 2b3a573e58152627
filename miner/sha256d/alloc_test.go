//go:build !race

package sha256d

import (
	"testing"

	"raftmine/fsm/pow"
)

// Not under the race detector: with it the compiler makes crypto/sha256 allocate in AppendBinary.
func TestSearchAllocatesNothing(t *testing.T) {
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 1_790_000_000_000})
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		hits := make([]uint64, 4)
		r := pow.Range{First: 99_000, Last: 100_500}
		if n := testing.AllocsPerRun(20, func() { searcher.Search(job, r, 0, hits) }); n != 0 {
			t.Errorf("a call allocates %v times, want 0", n)
		}
	})
}
