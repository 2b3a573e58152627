package raftnode

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
)

const testSegment = 2 << 10 // a few records

// testHistory is a history of n records, without the state that made them.
type testHistory struct {
	heads []fsm.Head // heads[k] is after k records
	data  [][]byte   // data[k] is that of record k+1
}

func newTestHistory(n int) testHistory { return newHistoryOf(n, 300) }

// newHistoryOf makes n records of 1 to size bytes.
func newHistoryOf(n, size int) testHistory {
	random := rand.New(rand.NewPCG(1, 2))
	h := testHistory{heads: []fsm.Head{{}}}
	var head fsm.Head
	for range n {
		data := make([]byte, 1+random.IntN(size))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		head = head.Next(head.Index+1+random.Uint64N(3), max(1, head.Term)+random.Uint64N(2), data)
		h.heads, h.data = append(h.heads, head), append(h.data, data)
	}
	return h
}

func (h testHistory) record(k int) JournalRecord {
	head := h.heads[k+1]
	return JournalRecord{Index: head.Index, Term: head.Term, Data: h.data[k], Chain: head.Hash}
}

// quickDir returns a folder in memory where there is one: these tests do not pull the plug, and a disk that works for others
// takes its time to sync.
func quickDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "raftmine-journal-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// openTestJournal opens the journal under a data directory without an identity.
func openTestJournal(dir string, change ...func(*journalConfig)) (*journal, error) {
	config := journalConfig{dataDir: dir, clusterID: "test-cluster", segmentBytes: testSegment, logger: discard()}
	for _, f := range change {
		f(&config)
	}
	return openJournal(config)
}

func mustOpenJournal(t testing.TB, dir string, change ...func(*journalConfig)) *journal {
	t.Helper()
	j, err := openTestJournal(dir, change...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(j.fail(fs.ErrClosed), j.close()) }) // without a sync
	return j
}

// apply gives the journal the records from+1 to to.
func (h testHistory) apply(j *journal, from, to int) error {
	for k := from; k < to; k++ {
		if err := j.append(h.heads[k+1], h.data[k]); err != nil {
			return fmt.Errorf("record %d: %w", k+1, err)
		}
	}
	return nil
}

func (h testHistory) mustApply(t testing.TB, j *journal, from, to int) {
	t.Helper()
	if err := h.apply(j, from, to); err != nil {
		t.Fatal(err)
	}
}

// read returns how many records come, all of which must be those of h after skip, and the error behind them.
func (h testHistory) read(t testing.TB, dir string, skip int) (count int, end error) {
	t.Helper()
	reader, err := ReadJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for record, err := range reader.After(h.heads[skip].Index) {
		if err != nil {
			return count, err
		}
		want := h.record(skip + count)
		if record.Index != want.Index || record.Term != want.Term || record.Chain != want.Chain ||
			!bytes.Equal(record.Data, want.Data) {
			t.Fatalf("record %d reads as index %d, term %d, %d bytes", skip+count+1, record.Index, record.Term, len(record.Data))
		}
		count++
	}
	return count, nil
}

func (h testHistory) wantWhole(t testing.TB, dir string, n int) {
	t.Helper()
	if count, err := h.read(t, dir, 0); count != n || err != nil {
		t.Fatalf("%d records read, then %v; want %d", count, err, n)
	}
}

// journalFiles returns the content of every file of a journal.
func journalFiles(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	paths, err := filepath.Glob(filepath.Join(dir, journalFolder, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(path)] = string(content)
	}
	return files
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	paths, err := segmentPaths(filepath.Join(dir, journalFolder))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func sameFiles(t testing.TB, before, after map[string]string) {
	t.Helper()
	if len(before) != len(after) {
		t.Errorf("%d files became %d", len(before), len(after))
	}
	for name, content := range before {
		if after[name] != content {
			t.Errorf("%s changed, from %d bytes to %d", name, len(content), len(after[name]))
		}
	}
}

func TestHistoryComesBackAsItWasWritten(t *testing.T) {
	const n = 100
	h, dir := newTestHistory(n), quickDir(t)
	for k := range 5 { // with restarts, from snapshots of the end
		j := mustOpenJournal(t, dir)
		if k > 0 {
			if err := j.restored(h.heads[k*n/5]); err != nil {
				t.Fatal(err)
			}
		}
		h.mustApply(t, j, k*n/5, (k+1)*n/5)
		h.wantWhole(t, dir, (k+1)*n/5) // also while it is open
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
	}
	h.wantWhole(t, dir, n)
	if count := len(segments(t, dir)); count < 5 {
		t.Errorf("%d segments of at most %d bytes", count, testSegment)
	}
	for skip := range n {
		if count, err := h.read(t, dir, skip); count != n-skip || err != nil {
			t.Fatalf("after record %d: %d records, then %v", skip, count, err)
		}
	}
	j := mustOpenJournal(t, dir)
	if err := j.verify(t.Context()); err != nil {
		t.Error(err)
	}
	if j.missing() != 0 {
		t.Errorf("%d records are missing", j.missing())
	}
}

// TestStatusOfTheHistoryWaitsForNoDisk: a segment is synced with the journal's lock held.
func TestStatusOfTheHistoryWaitsForNoDisk(t *testing.T) {
	const from, to, n = 5, 45, 50
	h, dir := newTestHistory(n), quickDir(t)
	j := h.withGap(t, dir, from, to, n)
	j.mu.Lock()
	defer j.mu.Unlock()
	counted := make(chan uint64, 1)
	go func() { counted <- j.missing() }()
	select {
	case got := <-counted:
		if got != to-from {
			t.Errorf("%d records missing", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for the disk")
	}
}

func TestEntriesAppliedAgainAreComparedAndNotWritten(t *testing.T) {
	const n = 60
	h, dir := newTestHistory(n+1), quickDir(t)
	j := mustOpenJournal(t, dir)
	h.mustApply(t, j, 0, n)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	before := journalFiles(t, dir)
	for snapshot := range n + 1 {
		j := mustOpenJournal(t, dir)
		if snapshot > 0 {
			if err := j.restored(h.heads[snapshot]); err != nil {
				t.Fatalf("snapshot of record %d: %v", snapshot, err)
			}
		}
		h.mustApply(t, j, snapshot, n)
		// And back again, as when a snapshot is installed that the server was ahead of.
		if err := j.restored(h.heads[max(1, snapshot/2)]); err != nil {
			t.Fatal(err)
		}
		h.mustApply(t, j, max(1, snapshot/2), n)
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
	}
	sameFiles(t, before, journalFiles(t, dir))
	j = mustOpenJournal(t, dir)
	h.mustApply(t, j, 0, n+1) // and what follows is written
	h.wantWhole(t, dir, n+1)
}

func TestWhatDiffersFromTheJournalStopsItAndOverwritesNothing(t *testing.T) {
	const n = 40
	h, dir := newTestHistory(n+5), quickDir(t)
	j := mustOpenJournal(t, dir)
	h.mustApply(t, j, 0, n)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	before := journalFiles(t, dir)
	refused := func(name string, err error) {
		t.Helper()
		if !errors.Is(err, ErrJournalMismatch) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", name, err)
		}
		sameFiles(t, before, journalFiles(t, dir))
	}
	for k := range n {
		j := mustOpenJournal(t, dir)
		h.mustApply(t, j, 0, k)
		other := h.heads[k].Next(h.heads[k+1].Index, h.heads[k+1].Term, []byte("another"))
		err := j.append(other, []byte("another"))
		refused(fmt.Sprint("entry ", k+1), err)
		if !strings.Contains(err.Error(), fmt.Sprintf(": index %d:", other.Index)) {
			t.Errorf("entry %d: %v", k+1, err)
		}
		if again := h.apply(j, k, n); !errors.Is(again, ErrJournalMismatch) {
			t.Errorf("the journal goes on after a mismatch: %v", again)
		}
		other.Hash[0]++
		refused(fmt.Sprint("snapshot ", k+1), mustOpenJournal(t, dir).restored(other))
	}
	// A state that is not the journal's, though the journal has nothing of its next entry.
	refused("jump", func() error {
		return mustOpenJournal(t, dir).append(h.heads[n+1], h.data[n])
	}())
	j = mustOpenJournal(t, dir)
	if err := j.restored(h.heads[n]); err != nil {
		t.Fatal(err)
	}
	refused("hole", j.append(h.heads[n+2], h.data[n+1]))
	refused("snapshot that is later and earlier", mustOpenJournal(t, dir).restored(
		fsm.Head{Records: n + 1, Index: h.heads[n].Index, Term: h.heads[n].Term, Hash: h.heads[n+1].Hash}))
}

// TestEndThatIsMissingIsFoundAndWrittenAgain: an audit before the restart names the first record that is not there, wherever
// the journal was cut, and the server has it from its log.
func TestEndThatIsMissingIsFoundAndWrittenAgain(t *testing.T) {
	const n, synced = 6, 3
	h, original := newHistoryOf(n+1, 20), quickDir(t)
	j := mustOpenJournal(t, original)
	h.mustApply(t, j, 0, synced)
	if err := j.sync(); err != nil {
		t.Fatal(err)
	}
	sizes := []int64{j.size}
	for k := synced; k < n; k++ {
		h.mustApply(t, j, k, k+1)
		sizes = append(sizes, j.size)
	}
	path := segments(t, original)[0]
	whole, err := os.ReadFile(path)
	if err != nil || len(segments(t, original)) != 1 {
		t.Fatal(err, segments(t, original))
	}
	files := journalFiles(t, original)
	for cut := sizes[0]; cut <= int64(len(whole)); cut++ {
		kept := synced - 1
		for _, size := range sizes {
			if size <= cut {
				kept++
			}
		}
		files[filepath.Base(path)] = string(whole[:cut])
		dir := putJournal(t, files)
		missing := func() {
			t.Helper()
			if kept == n {
				h.wantWhole(t, dir, n)
				return
			}
			count, err := h.read(t, dir, 0)
			var where *JournalError
			if count != kept || !errors.As(err, &where) || where.Record != uint64(kept+1) || where.Index != h.heads[kept].Index+1 ||
				where.Offset != sizes[kept-synced] || !strings.Contains(err.Error(), fmt.Sprintf("%d records up to index %d were written",
				n, h.heads[n].Index)) {
				t.Fatalf("cut at %d: %d records read, then %v", cut, count, err)
			}
		}
		missing()
		j := mustOpenJournal(t, dir)
		for k := kept; k < n; k++ { // until it is all there, another kill may come
			missing()
			h.mustApply(t, j, 0, k)
			j = mustOpenJournal(t, dir)
			kept = k
		}
		h.mustApply(t, j, 0, n+1)
		h.wantWhole(t, dir, n+1)
		for _, lost := range []string{writtenFileName, syncedFileName} {
			less := journalFiles(t, dir)
			delete(less, lost)
			if _, err := h.read(t, putJournal(t, less), 0); !errors.Is(err, ErrJournalDamaged) || !strings.Contains(err.Error(), lost) {
				t.Errorf("without the file %q: %v", lost, err)
			}
		}
	}
	// One byte less, and something that was synced is gone.
	if err := os.Truncate(path, sizes[0]-1); err != nil {
		t.Fatal(err)
	}
	if _, err := openTestJournal(original); !errors.Is(err, ErrJournalDamaged) {
		t.Errorf("a synced record is gone: %v", err)
	}
	if count, err := h.read(t, original, 0); count != synced-1 || !errors.Is(err, ErrJournalDamaged) {
		t.Errorf("a synced record is gone: %d records read, %v", count, err)
	}
}

func TestUnsyncedPagesThatAPowerFailureLostAreWrittenAgain(t *testing.T) {
	const n, synced = 7, 3
	h, dir := newTestHistory(n), quickDir(t)
	j := mustOpenJournal(t, dir)
	h.mustApply(t, j, 0, synced)
	if err := j.sync(); err != nil {
		t.Fatal(err)
	}
	hole := j.size
	h.mustApply(t, j, synced, n)
	path := segments(t, dir)[0]
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.WriteAt(make([]byte, 200), hole) // later pages came through
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	if count, err := h.read(t, dir, 0); count != synced || !errors.Is(err, ErrJournalDamaged) {
		t.Errorf("an audit before the restart read %d records, %v", count, err)
	}
	damaged, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	j = mustOpenJournal(t, dir)
	h.mustApply(t, j, 0, n)
	h.wantWhole(t, dir, n)
	if kept, err := os.ReadFile(fmt.Sprintf("%s.%d.torn", path, hole)); err != nil || !bytes.Equal(kept, damaged[hole:]) {
		t.Errorf("of the %d bytes that were cut off %d are kept as they were (%v)", len(damaged[hole:]), len(kept), err)
	}
}

// putJournal writes the files of a journal into a new data directory.
func putJournal(t testing.TB, files map[string]string) (dir string) {
	t.Helper()
	dir = quickDir(t)
	if err := os.Mkdir(filepath.Join(dir, journalFolder), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, journalFolder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestWhatIsWrittenAgainMustBeWhatWasLost: else the log is another one.
func TestWhatIsWrittenAgainMustBeWhatWasLost(t *testing.T) {
	const n, kept = 7, 3
	h, dir := newTestHistory(n), quickDir(t)
	j := mustOpenJournal(t, dir)
	h.mustApply(t, j, 0, kept)
	size := j.size
	h.mustApply(t, j, kept, n)
	if err := os.Truncate(segments(t, dir)[0], size); err != nil {
		t.Fatal(err)
	}
	j = mustOpenJournal(t, dir)
	h.mustApply(t, j, 0, n-1)
	other := h.heads[n-1].Next(h.heads[n].Index, h.heads[n].Term, []byte("another"))
	if err := j.append(other, []byte("another")); !errors.Is(err, ErrJournalMismatch) || !strings.Contains(err.Error(), writtenFileName) {
		t.Errorf("append: %v", err)
	}
}

// brokenDisk writes until its space is used up.
type brokenDisk struct {
	space  int
	broken error // of Sync
	syncs  int
}

type brokenFile struct {
	disk *brokenDisk
	*os.File
}

func (d *brokenDisk) open(path string, flag int, mode fs.FileMode) (JournalFile, error) {
	file, err := os.OpenFile(path, flag, mode)
	if err != nil {
		return nil, err
	}
	return &brokenFile{d, file}, nil
}

func (f *brokenFile) Write(data []byte) (int, error) {
	fit := min(len(data), f.disk.space)
	n, err := f.File.Write(data[:fit])
	f.disk.space -= n
	if err == nil && fit < len(data) {
		err = syscall.ENOSPC
	}
	return n, err
}

func (f *brokenFile) Sync() error {
	f.disk.syncs++
	return f.disk.broken
}

func TestFullDiskStopsTheJournalAndLeavesNoGap(t *testing.T) {
	const n = 20
	h := newTestHistory(n)
	for space := 0; space < 4000; space += 61 {
		dir := quickDir(t)
		disk := &brokenDisk{space: space}
		j := mustOpenJournal(t, dir, func(c *journalConfig) { c.open = disk.open })
		err := h.apply(j, 0, n)
		if !errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), dir) {
			t.Fatalf("%d bytes: %v", space, err)
		}
		disk.space = 1 << 20
		if again := h.apply(j, 0, n); !errors.Is(again, syscall.ENOSPC) {
			t.Fatalf("the journal goes on after what it could not write: %v", again)
		}
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
		j = mustOpenJournal(t, dir)
		h.mustApply(t, j, 0, n)
		h.wantWhole(t, dir, n)
	}
}

func TestWhatWasWrittenIsSyncedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &brokenDisk{space: 100 << 20}
		j := mustOpenJournal(t, t.TempDir(), func(c *journalConfig) { c.open, c.segmentBytes = disk.open, DefaultJournalSegment })
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- j.syncOften(ctx) }()
		h := newHistoryOf(7, 1<<20)
		for k := range 7 {
			h.mustApply(t, j, k, k+1)
			synctest.Wait()
			if marks, err := readMarks(j.dir); err != nil || int64(h.sizeBetween(int(marks.synced.Records), k+1)) >= syncEach {
				t.Errorf("after record %d only %d are synced (%v)", k+1, marks.synced.Records, err)
			}
		}
		time.Sleep(syncEvery)
		synctest.Wait()
		if marks, err := readMarks(j.dir); err != nil || marks.synced.Records != 7 {
			t.Errorf("%v after the last record %d of 7 are synced (%v)", syncEvery, marks.synced.Records, err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		h = newHistoryOf(8, 1<<20)
		h.mustApply(t, j, 7, 8)
		disk.broken = syscall.EIO
		j.grown <- struct{}{}
		if err := j.syncOften(t.Context()); !errors.Is(err, syscall.EIO) {
			t.Errorf("a failed sync: %v", err)
		}
	})
}

// sizeBetween returns the bytes of records from+1 to to in the file.
func (h testHistory) sizeBetween(from, to int) (size int) {
	for _, data := range h.data[from:to] {
		size += recordHeadSize + len(data) + recordTailSize
	}
	return size
}

func TestFailedSyncStopsTheJournal(t *testing.T) {
	h, disk := newTestHistory(10), &brokenDisk{space: 1 << 20}
	dir := quickDir(t)
	j := mustOpenJournal(t, dir, func(c *journalConfig) { c.open = disk.open })
	h.mustApply(t, j, 0, 3)
	disk.broken = syscall.EIO
	if err := j.sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("sync: %v", err)
	}
	disk.broken = nil // the next sync would not tell what the failed one lost
	if err := j.sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("the next sync: %v", err)
	}
	if err := h.apply(j, 3, 4); !errors.Is(err, syscall.EIO) {
		t.Errorf("append: %v", err)
	}
	if marks, err := readMarks(filepath.Join(dir, journalFolder)); err != nil || marks.synced.Records != 0 {
		t.Errorf("synced: %+v, %v", marks.synced, err)
	}
}

var updateJournal = flag.Bool("update", false, "write golden files of a version that has none; existing ones are never rewritten")

// TestGoldenJournalStaysReadable holds the byte layout: journals of all formats are read, and written as one of the newest
// was. A change of the layout is another format with a golden folder of its own.
func TestGoldenJournalStaysReadable(t *testing.T) {
	h := newTestHistory(13)
	dir := quickDir(t)
	j := mustOpenJournal(t, dir, func(c *journalConfig) { c.segmentBytes = smallestJournalSegment })
	h.mustApply(t, j, 0, 7)
	if err := j.restored(h.heads[9]); err != nil { // with a gap, which is filled
		t.Fatal(err)
	}
	h.mustApply(t, j, 9, 12)
	from, to, _ := j.gap()
	fill := j.fill(from, to)
	if err := errors.Join(fill.add(h.record(7)), fill.add(h.record(8)), fill.install(), j.close()); err != nil {
		t.Fatal(err)
	}
	goldenOf := func(format int) string { return filepath.Join("..", "testdata", "journal", fmt.Sprint("v", format)) }
	if newest := goldenOf(journalFormat); *updateJournal {
		if _, err := os.Stat(newest); errors.Is(err, fs.ErrNotExist) {
			if err := os.CopyFS(filepath.Join(newest, journalFolder), os.DirFS(filepath.Join(dir, journalFolder))); err != nil {
				t.Fatal(err)
			}
		}
	}
	sameFiles(t, journalFiles(t, goldenOf(journalFormat)), journalFiles(t, dir))
	for format := oldestFormat; format <= journalFormat; format++ {
		h.wantWhole(t, goldenOf(format), 12)
		old := putJournal(t, journalFiles(t, goldenOf(format)))
		j := mustOpenJournal(t, old)
		h.mustApply(t, j, 0, 13) // it goes on in the newest format
		if err := errors.Join(j.verify(t.Context()), j.close()); err != nil {
			t.Error(err)
		}
		h.wantWhole(t, old, 13)
		if marks, err := readMarks(filepath.Join(old, journalFolder)); err != nil || marks.written != h.heads[13] {
			t.Errorf("format %d, gone on with: %+v, %v", format, marks, err)
		}
	}
}

func TestJournalOfAnotherFormatIsLeftAlone(t *testing.T) {
	h, dir := newTestHistory(1), quickDir(t)
	j := mustOpenJournal(t, dir)
	h.mustApply(t, j, 0, 1)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	path := segments(t, dir)[0]
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[11] = journalFormat + 1
	binary.BigEndian.PutUint32(content[136:], crc32.Checksum(content[:136], castagnoli))
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = openTestJournal(dir)
	if err == nil || errors.Is(err, ErrJournalDamaged) || !strings.Contains(err.Error(), "format 3") {
		t.Errorf("open: %v", err)
	}
	if count, err := h.read(t, dir, 0); count != 0 || err == nil || !strings.Contains(err.Error(), "format 3") {
		t.Errorf("read: %d records, %v", count, err)
	}
}

func BenchmarkJournalAppend(b *testing.B) {
	h := newTestHistory(1)
	j := mustOpenJournal(b, b.TempDir(), func(c *journalConfig) {
		c.segmentBytes = DefaultJournalSegment
	})
	data := bytes.Repeat(h.data[0], 300/len(h.data[0])+1)
	head := fsm.Head{}
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		head.Records, head.Index, head.Term = head.Records+1, head.Index+1, 1
		if err := j.append(head, data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkJournalRead(b *testing.B) {
	h, dir := newTestHistory(5000), b.TempDir()
	j := mustOpenJournal(b, dir, func(c *journalConfig) { c.segmentBytes = DefaultJournalSegment })
	h.mustApply(b, j, 0, 5000)
	b.ResetTimer()
	for b.Loop() {
		h.wantWhole(b, dir, 5000)
	}
	b.ReportMetric(float64(b.N)*5000/b.Elapsed().Seconds(), "records/s")
}
