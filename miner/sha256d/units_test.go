//go:build (amd64 || arm64) && !purego

package sha256d

import (
	"math"
	"slices"
	"testing"

	"raftmine/fsm/pow"
)

func init() {
	alone = func(searcher Searcher) Searcher {
		s, ok := searcher.(*unitSearcher)
		if !ok || s.shape.least <= 1 {
			return nil
		}
		s.shape.least, s.other = 1, newGeneric()
		return s
	}
}

// runLog is a unitKernel that finds every nonce and notes what it was asked.
type runLog struct {
	digits []int
	counts []int
	able   bool
}

func (k *runLog) prepare(_ *Job, digits int) int {
	k.digits = append(k.digits, digits)
	if !k.able {
		return 0
	}
	return 10
}

func (k *runLog) run(_ uint64, count int, _ uint32) []uint16 {
	k.counts = append(k.counts, count)
	hits := make([]uint16, 10*count)
	for i := range hits {
		hits[i] = uint16(i)
	}
	return hits
}

// A run cannot be preempted, so it must stay small whatever the call asks for.
func TestRunsStayShort(t *testing.T) {
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 42})
	for _, r := range []pow.Range{{First: 1, Last: math.MaxUint64}, {First: 10, Last: 10}, {First: 999, Last: 1001}, {First: math.MaxUint64 - 9, Last: math.MaxUint64}} {
		k := &runLog{able: true}
		s := newUnitSearcher(k, shape{call: 1000, run: 70, lanes: 1}, newGeneric())
		if _, tried := s.Search(job, r, 0, make([]uint64, 5000)); tried == 0 || tried > 1000 {
			t.Errorf("Search(%s) tried %d nonces, want 1 to 1000", r, tried)
		}
		for _, count := range k.counts {
			if count < 1 || count > 7 {
				t.Errorf("Search(%s) ran %d decades at a time, want 1 to 7", r, count)
			}
		}
	}
}

// Nonces of other decades or beyond the range's ends are tried along, but never reported.
func TestDecadesReportTheirRangeAlone(t *testing.T) {
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 42})
	s := newUnitSearcher(&runLog{able: true}, shape{call: 1000, run: 70, lanes: 1}, newGeneric())
	for first := uint64(95); first < 130; first++ {
		for length := uint64(1); length < 130; length += 3 {
			r := pow.Range{First: first, Last: first + length - 1}
			hits := make([]uint64, 200)
			found, tried := s.Search(job, r, math.MaxUint32, hits)
			if uint64(found) != length || tried != length || hits[0] != first || hits[found-1] != r.Last {
				t.Fatalf("Search(%s) found %d and tried %d, want %d: %v", r, found, tried, length, hits[:found])
			}
		}
	}
}

// A wide kernel takes as long for one unit as for all its lanes.
func TestSmallRestsAreLeftToTheOtherSearcher(t *testing.T) {
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 42})
	shape := shape{call: 1000, run: 120, lanes: 4, least: 3}
	for _, test := range []struct {
		units uint64
		runs  []int // of the kernel
	}{{1, nil}, {2, nil}, {3, []int{3}}, {4, []int{4}}, {5, []int{4}}, {6, []int{4}}, {7, []int{7}}, {12, []int{12}}, {13, []int{12}}, {29, []int{12, 12, 4}}} {
		k := &runLog{able: true}
		s := newUnitSearcher(k, shape, newGeneric())
		r := pow.Range{First: 5000, Last: 5000 + 10*test.units - 1}
		hits := make([]uint64, 400)
		found, tried := s.Search(job, r, math.MaxUint32, hits)
		if uint64(found) != 10*test.units || tried != 10*test.units || hits[found-1] != r.Last || !slices.IsSorted(hits[:found]) {
			t.Errorf("%d units: found %d and tried %d", test.units, found, tried)
		}
		if !slices.Equal(k.counts, test.runs) {
			t.Errorf("%d units: runs of %v units, want %v", test.units, k.counts, test.runs)
		}
	}
}

// So only the first call of a range has part of a unit at its start.
func TestCallsEndWhereUnitsEnd(t *testing.T) {
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 42})
	s := newUnitSearcher(&runLog{able: true}, shape{call: 1000, run: 100, lanes: 1}, newGeneric())
	for first := uint64(5000); first < 5200; first += 7 {
		_, tried := s.Search(job, pow.Range{First: first, Last: 9999}, 0, make([]uint64, 2000))
		if (first+tried)%100 != 0 || tried > 1000 {
			t.Errorf("from %d on %d nonces were tried: the next call starts with part of a unit", first, tried)
		}
	}
}

func TestKernelIsPreparedOnceForEachJobAndDigitCount(t *testing.T) {
	job, other := NewJob(pow.Work{Timestamp: 1}), NewJob(pow.Work{Timestamp: 2})
	k := &runLog{able: true}
	s := newUnitSearcher(k, shape{call: 1000, run: 70, lanes: 1}, newGeneric())
	hits := make([]uint64, 500)
	s.Search(job, pow.Range{First: 50, Last: 120}, 0, hits)
	s.Search(job, pow.Range{First: 121, Last: 130}, 0, hits)
	s.Search(other, pow.Range{First: 131, Last: 140}, 0, hits)
	if want := []int{2, 3, 3}; !slices.Equal(k.digits, want) {
		t.Errorf("prepared for %v digits, want %v", k.digits, want)
	}
}

// When nearly every nonce is a hit, a kernel that tries many at a time would throw most of them away.
func TestFewNoncesAreTriedWhenNearlyAllAreHits(t *testing.T) {
	k := &runLog{able: true}
	s := newUnitSearcher(k, shape{call: 10_000, run: 640, lanes: 1}, newGeneric())
	s.Search(NewJob(pow.Work{}), pow.Range{First: 1_000_000, Last: 2_000_000}, math.MaxUint32, make([]uint64, 16))
	if want := []int{2}; len(k.counts) == 0 || k.counts[0] > 4 {
		t.Errorf("tried %v decades for 16 hits, want %v", k.counts, want)
	}
}

func TestWhatTheKernelCannotDoIsDoneByGeneric(t *testing.T) {
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 42})
	k := &runLog{}
	s := newUnitSearcher(k, shape{call: 10_000, run: 640, lanes: 1}, newGeneric())
	r := pow.Range{First: 1_000, Last: 1_200}
	if got, want := searchAll(t, s, job, r, 1<<30, 16), referenceHits(job.Work, r, 1<<30); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if len(k.counts) != 0 {
		t.Error("the kernel was run")
	}
}
