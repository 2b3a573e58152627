package raftnode

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"raftmine/fsm"
)

// missingIn opens a journal that has the first records, then a gap from..to, then the rest.
func (h testHistory) withGap(t *testing.T, dir string, from, to, end int) *journal {
	t.Helper()
	j := mustOpenJournal(t, dir)
	h.mustApply(t, j, 0, from)
	if err := j.restored(h.heads[to]); err != nil {
		t.Fatal(err)
	}
	h.mustApply(t, j, to, end)
	return j
}

func wantGap(t *testing.T, j *journal, from, to fsm.Head) {
	t.Helper()
	gotFrom, gotTo, ok := j.gap()
	if ok != (from != to) || ok && (gotFrom != from || gotTo != to) {
		t.Errorf("gap from %+v to %+v (%t), want %+v to %+v", gotFrom, gotTo, ok, from, to)
	}
	if j.missing() != to.Records-from.Records {
		t.Errorf("%d records missing, want %d", j.missing(), to.Records-from.Records)
	}
}

func TestRestoredSnapshotLeavesAGapThatIsFilledFromOthers(t *testing.T) {
	const n = 80
	h := newTestHistory(n)
	for _, gap := range [][2]int{{0, 1}, {0, 50}, {1, 2}, {20, 60}, {30, n}} {
		from, to := gap[0], gap[1]
		dir := quickDir(t)
		j := h.withGap(t, dir, from, to, n)
		wantGap(t, j, h.heads[from], h.heads[to])
		count, err := h.read(t, dir, 0)
		var missing *HistoryGapError
		if count != from || !errors.Is(err, ErrHistoryGap) || !errors.As(err, &missing) ||
			*missing != (HistoryGapError{After: h.heads[from].Index, Until: h.heads[to].Index}) {
			t.Errorf("gap %v: %d records read, then %v", gap, count, err)
		}
		if count, err := h.read(t, dir, to); count != n-to || err != nil {
			t.Errorf("gap %v: behind it %d records read, then %v", gap, count, err)
		}
		// A restart knows the gap; the state is that of the snapshot, or one from before it by a longer log.
		for _, snapshot := range []int{to, from} {
			if err := j.close(); err != nil {
				t.Fatal(err)
			}
			j = mustOpenJournal(t, dir)
			if snapshot > 0 {
				if err := j.restored(h.heads[snapshot]); err != nil {
					t.Fatal(err)
				}
			}
			h.mustApply(t, j, snapshot, n)
			wantGap(t, j, h.heads[from], h.heads[to])
		}
		f := j.fill(h.heads[from], h.heads[to])
		for k := from; k < to; k++ {
			if err := f.add(h.record(k)); err != nil {
				t.Fatal(err)
			}
			if count, _ := h.read(t, dir, 0); count != from {
				t.Fatalf("gap %v: record %d is in the journal before the chain is whole", gap, count)
			}
		}
		if err := errors.Join(f.install(), f.discard()); err != nil {
			t.Fatal(err)
		}
		wantGap(t, j, fsm.Head{}, fsm.Head{})
		h.wantWhole(t, dir, n)
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
		before := journalFiles(t, dir)
		j = mustOpenJournal(t, dir)
		h.mustApply(t, j, 0, n)
		wantGap(t, j, fsm.Head{}, fsm.Head{})
		if err := errors.Join(j.verify(t.Context()), j.close()); err != nil {
			t.Error(err)
		}
		sameFiles(t, before, journalFiles(t, dir))
	}
}

func TestSnapshotsInARowLeaveGapsThatAreFilledInOrder(t *testing.T) {
	h := newTestHistory(30)
	for _, restarts := range []bool{false, true} {
		dir := quickDir(t)
		j := mustOpenJournal(t, dir)
		h.mustApply(t, j, 0, 4)
		for _, k := range []int{10, 20, 25} { // nothing is applied between the first and the second
			if err := j.restored(h.heads[k]); err != nil {
				t.Fatal(err)
			}
			if k > 10 {
				h.mustApply(t, j, k, k+2)
			}
		}
		for _, gap := range [][2]int{{4, 10}, {10, 20}, {22, 25}} {
			if restarts {
				if err := j.close(); err != nil {
					t.Fatal(err)
				}
				j = mustOpenJournal(t, dir)
			}
			if from, to, ok := j.gap(); !ok || from != h.heads[gap[0]] || to != h.heads[gap[1]] {
				t.Fatalf("gap from %+v to %+v; want %v", from, to, gap)
			}
			f := j.fill(h.heads[gap[0]], h.heads[gap[1]])
			for k := gap[0]; k < gap[1]; k++ {
				if err := f.add(h.record(k)); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.install(); err != nil {
				t.Fatal(err)
			}
		}
		wantGap(t, j, fsm.Head{}, fsm.Head{})
		h.wantWhole(t, dir, 27)
	}
}

func TestRecordsThatDoNotLeadToTheSnapshotAreThrownAway(t *testing.T) {
	const from, to, n = 5, 25, 30
	h, dir := newTestHistory(n), quickDir(t)
	j := h.withGap(t, dir, from, to, n)
	before := journalFiles(t, dir)
	good := func(f *gapFill, until int) {
		t.Helper()
		for k := from; k < until; k++ {
			if err := f.add(h.record(k)); err != nil {
				t.Fatal(err)
			}
		}
	}
	change := func(k int, f func(*JournalRecord)) JournalRecord {
		record := h.record(k)
		f(&record)
		return record
	}
	other := func(k int, head fsm.Head) JournalRecord { // a lie with a chain of its own
		record := change(k, func(r *JournalRecord) { r.Data = []byte("another") })
		record.Chain = head.Next(record.Index, record.Term, record.Data).Hash
		return record
	}
	for name, lie := range map[string]func(f *gapFill) error{
		"data":      func(f *gapFill) error { return f.add(change(10, func(r *JournalRecord) { r.Data = []byte("x") })) },
		"chain":     func(f *gapFill) error { return f.add(change(10, func(r *JournalRecord) { r.Chain[0]++ })) },
		"index":     func(f *gapFill) error { return f.add(change(10, func(r *JournalRecord) { r.Index-- })) },
		"repeated":  func(f *gapFill) error { return f.add(h.record(9)) },
		"left out":  func(f *gapFill) error { return f.add(h.record(11)) },
		"term zero": func(f *gapFill) error { return f.add(change(10, func(r *JournalRecord) { r.Term = 0 })) },
		"too far": func(f *gapFill) error {
			return f.add(change(10, func(r *JournalRecord) { r.Index = h.heads[to].Index + 1 }))
		},
		"large": func(f *gapFill) error {
			return f.add(change(10, func(r *JournalRecord) { r.Data = make([]byte, fsm.MaxEntrySize+1) }))
		},
		"another history": func(f *gapFill) error {
			for k := 10; k < to; k++ {
				if err := f.add(other(k, f.head)); err != nil {
					if k < to-1 {
						t.Errorf("the lie was found at record %d already: %v", k+1, err)
					}
					return err
				}
			}
			return nil
		},
	} {
		f := j.fill(h.heads[from], h.heads[to])
		good(f, 10)
		if err := lie(f); !errors.Is(err, ErrJournalMismatch) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		sameFiles(t, before, journalFiles(t, dir)) // nothing is left of it
		good(f, to)
		if f.head != h.heads[to] {
			t.Errorf("%s: an honest server after a liar brings no more than record %d", name, f.head.Records)
		}
		if err := f.discard(); err != nil {
			t.Error(err)
		}
	}
	wantGap(t, j, h.heads[from], h.heads[to])
}

func TestServerKilledWhileItFillsAGapGoesOn(t *testing.T) {
	const from, to, n = 5, 45, 50
	h, dir := newTestHistory(n), quickDir(t)
	j := h.withGap(t, dir, from, to, n)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	// Killed while it fetched, then after each of the renames.
	for installed := range 4 {
		j := mustOpenJournal(t, dir)
		start, target, ok := j.gap()
		if !ok {
			t.Fatalf("no gap after %d kills", installed)
		}
		f := j.fill(start, target)
		for k := int(start.Records); k < to; k++ {
			if err := f.add(h.record(k)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.endFile(); err != nil || len(f.files) < 2 {
			t.Fatal(err, len(f.files))
		}
		if installed > 0 {
			if err := os.Rename(f.files[0].path, strings.TrimSuffix(f.files[0].path, fetchedSuffix)); err != nil {
				t.Fatal(err)
			}
		}
		j.fail(errors.New("killed"))
	}
	j = mustOpenJournal(t, dir)
	if left, err := filepath.Glob(filepath.Join(dir, journalFolder, "*"+fetchedSuffix)); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	start, target, _ := j.gap()
	if start.Records <= from || target != h.heads[to] {
		t.Errorf("the gap is from %+v to %+v", start, target)
	}
	f := j.fill(start, target)
	for k := int(start.Records); k < to; k++ {
		if err := f.add(h.record(k)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.install(), j.close()); err != nil {
		t.Fatal(err)
	}
	h.wantWhole(t, dir, n)
}

func TestReaderBesideAWriterSeesAWholeBeginning(t *testing.T) {
	const n, gapFrom, gapTo = 3000, 1000, 1100
	h, dir := newTestHistory(n), quickDir(t)
	j := mustOpenJournal(t, dir)
	var written, passed atomic.Int64
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			for k := range n {
				if k%500 == 250 { // however fast this is: a pass begins and ends here
					for before := passed.Load(); passed.Load() < before+2; runtime.Gosched() {
						if t.Context().Err() != nil {
							return t.Context().Err()
						}
					}
				}
				if gapFrom <= k && k < gapTo {
					continue
				}
				if k == gapTo {
					if err := j.restored(h.heads[gapTo]); err != nil {
						return err
					}
				}
				if err := j.append(h.heads[k+1], h.data[k]); err != nil {
					return err
				}
				written.Store(int64(k + 1))
				if k%500 == 0 {
					if err := j.sync(); err != nil {
						return err
					}
				}
				if k == 2000 {
					f := j.fill(h.heads[gapFrom], h.heads[gapTo])
					for k := gapFrom; k < gapTo; k++ {
						if err := f.add(h.record(k)); err != nil {
							return err
						}
					}
					if err := f.install(); err != nil {
						return err
					}
				}
			}
			return nil
		}()
	}()
	passes, partial := 0, 0
	for running := true; running; passes++ {
		passed.Store(int64(passes))
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		least := int(written.Load())
		count, err := h.read(t, dir, 0)
		switch {
		case errors.Is(err, ErrHistoryGap) && gapFrom <= count && count < gapTo && least <= 2001: // it is filled file by file
		case err != nil || count < least && least <= gapFrom:
			t.Fatalf("pass %d: %d of at least %d records, then %v", passes, count, least, err)
		}
		if count > 0 && count < n {
			partial++
		}
	}
	if partial == 0 {
		t.Error("no pass met the writer at its work")
	}
	h.wantWhole(t, dir, n)
	t.Log(fmt.Sprint(passes, " passes, ", partial, " beside the writer"))
}

// lateReader is a file that grows right after its end was seen.
type lateReader struct {
	*os.File
	grow func()
}

func (r *lateReader) ReadAt(data []byte, offset int64) (int, error) {
	n, err := r.File.ReadAt(data, offset)
	if errors.Is(err, io.EOF) && r.grow != nil {
		grow := r.grow
		r.grow = nil
		grow()
	}
	return n, err
}

func TestReaderMissesNothingWhenTheNextSegmentBeginsBehindItsBack(t *testing.T) {
	const n, before = 60, 3
	h, dir := newTestHistory(n), quickDir(t)
	j := mustOpenJournal(t, dir)
	h.mustApply(t, j, 0, before)
	reader, err := ReadJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	paths := segments(t, dir)
	file, err := os.Open(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var count uint64
	scan := journalScan{JournalReader: reader, paths: paths, yield: func(JournalRecord, error) bool { count++; return true }}
	late := &lateReader{File: file}
	if scan.segment, err = newSegmentReader(paths[0], late); err != nil {
		t.Fatal(err)
	}
	late.grow = func() { h.mustApply(t, j, before, n) }
	more, err := scan.records(journalMarks{})
	if !more || err != nil || count != j.segments[0].end.Records || count <= before {
		t.Errorf("%d of the segment's %d records were read; more: %t, %v", count, j.segments[0].end.Records, more, err)
	}
}

func TestClosedReaderEnds(t *testing.T) {
	h, dir := newTestHistory(10), quickDir(t)
	h.mustApply(t, mustOpenJournal(t, dir), 0, 10)
	reader, err := ReadJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, err := range reader.Records() {
		if count++; count == 4 {
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
			break
		}
		if count == 3 {
			if err := reader.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if count != 4 {
		t.Errorf("%d steps", count)
	}
	if _, err := ReadJournal(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no journal: %v", err)
	}
}
