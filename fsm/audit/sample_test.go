package audit

import (
	"errors"
	"math"
	"slices"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

func sampleOf(t *testing.T, w *world, head Head, fraction float64) (all []Sampled) {
	t.Helper()
	if err := Sample(recordsOf(w.records), head, fraction, func(s Sampled) error {
		all = append(all, s)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestSampleIsTheSameForEverybodyAndOfTheRightSize(t *testing.T) {
	w := history(t, 13, 6, 10)
	report := replay(t, w.records, Options{})
	all := sampleOf(t, w, report.Head, 1)
	if uint64(len(all)) != report.Ranges {
		t.Fatalf("%d ranges of %d", len(all), report.Ranges)
	}
	half := sampleOf(t, w, report.Head, 0.5)
	n, sigma := float64(len(all))/2, math.Sqrt(float64(len(all)))/2
	if got := float64(len(half)); math.Abs(got-n) > 5*sigma {
		t.Errorf("half of %d ranges are %v", len(all), got)
	}
	quarter := sampleOf(t, w, report.Head, 0.25) // a smaller sample is part of a larger one
	for _, s := range quarter {
		if !slices.ContainsFunc(half, func(h Sampled) bool { return h.Finished == s.Finished }) {
			t.Errorf("%v is in the quarter and not in the half", s.Finished)
		}
	}
	other := report.Head
	other.Chain[0] ^= 1
	if err := Sample(recordsOf(w.records), other, 1, func(Sampled) error { return nil }); !errors.Is(err, ErrBroken) {
		t.Errorf("another head: %v", err)
	}
}

// Drawn is pinned: everybody must draw the same, also with another program.
func TestDrawIsPinned(t *testing.T) {
	drawn := []uint64{}
	for index := range uint64(64) {
		if Drawn(pow.Sum([]byte("head")), Place{Index: index, Command: 1}, 0.125) {
			drawn = append(drawn, index)
		}
	}
	if !slices.Equal(drawn, pinnedDraw) {
		t.Errorf("%v are drawn, want %v", drawn, pinnedDraw)
	}
}

var pinnedDraw = []uint64{12, 13, 16, 29, 35, 50}

func TestSampleKnowsWhatWasRevoked(t *testing.T) {
	w := history(t, 14, 4, 6)
	revoked := 0
	for _, s := range sampleOf(t, w, replay(t, w.records, Options{}).Head, 1) {
		best, digest := uint64(0), pow.Hash{}
		for nonce := s.Nonces.First; nonce <= s.Nonces.Last; nonce++ {
			if d := s.Work.Digest(nonce); best == 0 || d.Compare(digest) < 0 {
				best, digest = nonce, d
			}
		}
		if best != s.Receipt || digest != s.Digest {
			t.Errorf("%s: receipt %d, and the best is %d", s.Nonces, s.Receipt, best)
		}
		if s.Revoked {
			revoked++
		}
	}
	if revoked == 0 {
		t.Error("no range is marked as revoked")
	}
}

func TestHistoriesAreCompared(t *testing.T) {
	w := history(t, 15, 4, 2)
	n := len(w.records)
	parted := slices.Clone(w.records)
	parted[n-4].Data = append(slices.Clone(parted[n-4].Data), 1)
	for name, row := range map[string]struct {
		left  []Record
		same  uint64
		parts bool
		index uint64
	}{
		"the same": {w.records, uint64(n), false, 0},
		"shorter":  {w.records[:n-3], uint64(n - 3), false, w.records[n-3].Index},
		"parted":   {parted, uint64(n - 4), true, w.records[n-4].Index},
		"empty":    {nil, 0, false, w.records[0].Index},
	} {
		a, err := Compare(recordsOf(row.left), recordsOf(w.records))
		if err != nil || a.Same != row.same || a.Parts() != row.parts || a.RightIndex != row.index {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	if _, err := Compare(func(yield func(Record, error) bool) { yield(Record{}, fsm.ErrBadEntry) }, recordsOf(w.records)); err == nil {
		t.Error("a source that fails is compared")
	}
}

// TestStripKeepsEverything: whatever the clocks say.
func TestStripKeepsEverything(t *testing.T) {
	var s Strip
	for _, at := range []uint64{1000, 1001, 900, 5000, 1_000_000, 1 << 62, math.MaxUint64, 0} {
		s.at(at).Records++
	}
	var sum uint64
	for i, c := range s.Cells {
		sum += c.Records
		if c.Records > 0 && i >= s.Used {
			t.Errorf("cell %d is beyond %d", i, s.Used)
		}
	}
	if sum != 8 || s.From != 1000 {
		t.Errorf("%d of 8 records are left, from %d", sum, s.From)
	}
}
