package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/renameio/v2"

	"raftmine/fsm"
)

const (
	journalFolder   = "journal"
	segmentSuffix   = ".journal"
	fetchedSuffix   = ".fetched" // a segment that is being fetched, not yet part of the journal
	tornSuffix      = ".torn"    // an end that was cut off a segment because it was damaged, kept for whoever asks why
	syncedFileName  = "synced"
	writtenFileName = "written"

	// DefaultJournalSegment bounds a segment, in bytes, but for its last record. Tuning: the last one is read whole when a
	// server starts.
	DefaultJournalSegment = 16 << 20
	// syncEach is after how many bytes a sync is asked for. Tuning: a segment is synced before the next one is begun, while
	// the state machine waits, so little should be left to do then.
	syncEach = 2 << 20
	// syncEvery is how long what is little stays unsynced. Tuning.
	syncEvery = 10 * time.Second
)

// JournalFile is what a journal writes to: a file, or the disk of a test.
type JournalFile interface {
	io.WriteCloser
	io.WriterAt
	Sync() error
}

// journalConfig is what a journal is made of.
type journalConfig struct {
	dataDir      string
	clusterID    string
	segmentBytes int64
	logger       *slog.Logger
	// open opens a segment for writing: os.OpenFile, or a test's disk.
	open func(path string, flag int, mode fs.FileMode) (JournalFile, error)
}

// journal keeps the history: one record for each entry that the state machine applies. It is given each head of the state,
// and always knows the place of the state in the history: entries that are applied again after a restart are compared with
// the records, those after the end are written. Nothing is synced entry by entry: what is not on the disk yet is in the Raft
// log, until a snapshot takes its place, and that syncs the journal first. That something was cut off before it was synced is
// known by the file "written", which costs no more than a second write.
type journal struct {
	config journalConfig
	dir    string

	mu       sync.Mutex // guards all below
	segments []segment  // in order
	out      JournalFile
	size     int64    // of the last segment
	place    fsm.Head // of the state; at the end of the history, but for a while after a start
	again    *segmentReader
	againIn  *os.File // what again reads
	buffer   []byte
	failed   error // the first error: nothing is written after it
	dirty    int   // bytes since a sync was asked for

	note    JournalFile // the file "written"; nil: not open
	written fsm.Head    // what it says
	noted   []byte      // its bytes

	markMu sync.Mutex
	marked uint64 // records in the file "synced"

	absent atomic.Uint64 // records in gaps; read while mu waits for the disk

	gapped chan struct{} // cap 1: there may be a gap to fill
	grown  chan struct{} // cap 1: there is something to sync
}

// segment is one file of the journal. Its end is that of the last record in it.
type segment struct {
	path      string
	continues bool
	base, end fsm.Head
}

func segmentName(base fsm.Head) string { return fmt.Sprintf("%020d%s", base.Index+1, segmentSuffix) }

// baseName is the name of a segment, also while it is being fetched.
func baseName(path string) string { return strings.TrimSuffix(filepath.Base(path), fetchedSuffix) }

// end is called with mu held.
func (j *journal) end() fsm.Head {
	if len(j.segments) == 0 {
		return fsm.Head{}
	}
	return j.segments[len(j.segments)-1].end
}

// append takes the entry that brought the state to head: it is written, or compared with what is written. After an error
// the state must not go on.
func (j *journal) append(head fsm.Head, data []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed != nil {
		return j.failed
	}
	end := j.end()
	switch {
	case head.Records <= end.Records:
		return j.fail(j.compare(head))
	case j.place != end || head.Records != end.Records+1:
		return j.fail(fmt.Errorf("%s: %w: it ends at record %d of index %d, and the state goes from record %d to %d",
			j.dir, ErrJournalMismatch, end.Records, end.Index, j.place.Records, head.Records))
	case head.Records == j.written.Records && head != j.written: // written again after a power failure
		return j.fail(mismatch(filepath.Join(j.dir, writtenFileName), 0, head, j.written))
	}
	if j.out == nil || j.size >= j.config.segmentBytes {
		if err := j.begin(segmentHeader{continues: true, base: end}); err != nil {
			return j.fail(err)
		}
	}
	j.buffer = appendRecord(j.buffer[:0], head, data)
	last := &j.segments[len(j.segments)-1]
	// A short write may leave a part of the record: a torn tail, that the next start cuts.
	if n, err := j.out.Write(j.buffer); err != nil || n < len(j.buffer) {
		if err == nil {
			err = io.ErrShortWrite
		}
		return j.fail(unwritable(last.path, err))
	}
	j.size += int64(len(j.buffer))
	if j.dirty += len(j.buffer); j.dirty >= syncEach {
		j.dirty = 0
		poke(j.grown)
	}
	if cap(j.buffer) > readWindow {
		j.buffer = nil
	}
	last.end, j.place = head, head
	return j.fail(j.wrote(head))
}

// wrote notes in the file "written" that the history goes up to head, after it does. It is called with mu held.
func (j *journal) wrote(head fsm.Head) error {
	if head.Records <= j.written.Records {
		return nil // what was lost is written again
	}
	path := filepath.Join(j.dir, writtenFileName)
	if j.note == nil {
		note, err := j.config.open(path, os.O_WRONLY, 0)
		if err != nil {
			return unwritable(path, err)
		}
		j.note = note
	}
	j.noted = appendHeader(j.noted[:0], writtenMagic, segmentHeader{clusterID: j.config.clusterID, base: head})
	if _, err := j.note.WriteAt(j.noted, 0); err != nil {
		return unwritable(path, err)
	}
	j.written = head
	return nil
}

func unwritable(path string, err error) error {
	return fmt.Errorf("write journal %s: %w; make the disk writable and start the server again", path, err)
}

// fail remembers the first error.
func (j *journal) fail(err error) error {
	if err != nil && j.failed == nil {
		j.failed = err
	}
	return err
}

// begin makes the next segment, after syncing the one before. It is called with mu held.
func (j *journal) begin(header segmentHeader) error {
	if err := j.endSegment(); err != nil {
		return err
	}
	header.clusterID = j.config.clusterID
	if len(j.segments) == 0 { // first, so that a journal without them is not whole
		var err error
		if j.written.Records == 0 {
			err = j.writeMark(writtenFileName, writtenMagic, fsm.Head{})
		}
		if err == nil {
			err = j.writeMark(syncedFileName, syncedMagic, fsm.Head{})
		}
		if err != nil {
			return unwritable(j.dir, err)
		}
	}
	path := filepath.Join(j.dir, segmentName(header.base))
	file, err := createSegment(j.config, path, header)
	if err != nil {
		return err
	}
	j.out, j.size = file, segmentHeaderSize
	j.segments = append(j.segments, segment{path: path, continues: header.continues, base: header.base, end: header.base})
	j.count()
	return nil
}

// createSegment makes a segment that has its header, on the disk, from the moment it has its name.
func createSegment(config journalConfig, path string, header segmentHeader) (_ JournalFile, err error) {
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	file, err := config.open(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, unwritable(path, err)
	}
	_, err = file.Write(appendHeader(nil, segmentMagic, header))
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, unwritable(path, errors.Join(err, file.Close()))
	}
	return file, nil
}

func (j *journal) endSegment() error {
	if j.out == nil {
		return nil
	}
	err := j.out.Sync()
	err = errors.Join(err, j.out.Close())
	j.out = nil
	if err != nil {
		return unwritable(j.segments[len(j.segments)-1].path, err)
	}
	return nil
}

// restored says that the state was replaced by that of a snapshot, with this head. If the journal does not reach so far,
// what lies between is a gap, and the history goes on in a new segment behind it.
func (j *journal) restored(head fsm.Head) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed != nil {
		return j.failed
	}
	j.endCompare()
	end := j.end()
	if head.Records <= end.Records {
		if err := j.seek(head); err != nil {
			return j.fail(err)
		}
		j.place = head
		return nil
	}
	if head.Index <= end.Index || head.Term < end.Term {
		return j.fail(fmt.Errorf("%s: %w: it ends at record %d of index %d and term %d, and the snapshot's record %d has index %d and term %d",
			j.dir, ErrJournalMismatch, end.Records, end.Index, end.Term, head.Records, head.Index, head.Term))
	}
	if err := j.begin(segmentHeader{base: head}); err != nil {
		return j.fail(err)
	}
	j.place = head
	j.config.logger.Warn("history has a gap, which other servers are asked to fill", "records", head.Records-end.Records,
		"after_index", end.Index, "until_index", head.Index)
	poke(j.gapped)
	return j.fail(j.wrote(head))
}

// seek checks that head is in the history, and makes again read what follows it. Nothing is known of a head in a gap.
func (j *journal) seek(head fsm.Head) error {
	if head == j.end() {
		return nil
	}
	for _, s := range j.segments {
		switch {
		case head.Records < s.base.Records: // in a gap
			return nil
		case head == s.base && head.Records < s.end.Records:
		case head.Records == s.base.Records && head != s.base:
			return mismatch(s.path, 0, head, s.base)
		case head.Records > s.end.Records, head.Records == s.end.Records && head == s.end:
			continue
		}
		if err := j.read(s); err != nil {
			return err
		}
		for j.again.head.Records < head.Records {
			if _, err := j.again.next(); err != nil {
				return whole(err)
			}
		}
		if j.again.head != head {
			return mismatch(s.path, j.again.offset, head, j.again.head)
		}
		return nil
	}
	return nil
}

// read opens a segment for comparing.
func (j *journal) read(s segment) error {
	j.endCompare()
	file, err := os.Open(s.path)
	if err != nil {
		return err
	}
	if j.again, err = newSegmentReader(s.path, file); err != nil {
		return errors.Join(err, file.Close())
	}
	j.againIn = file
	return nil
}

func (j *journal) endCompare() {
	if j.again != nil {
		_ = j.againIn.Close() // it was only read
		j.again, j.againIn = nil, nil
	}
}

// whole makes an error of an end that must not be there.
func whole(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, errTornRecord) {
		return fmt.Errorf("%w: it was cut while it was read", ErrJournalDamaged)
	}
	return err
}

func mismatch(path string, offset int64, log, journal fsm.Head) error {
	return &JournalError{Path: path, Offset: offset, Record: log.Records, Index: log.Index, Err: fmt.Errorf(
		"%w: the log's record has term %d and chain %s, the journal's index %d, term %d and chain %s; nothing was overwritten",
		ErrJournalMismatch, log.Term, log.Hash, journal.Index, journal.Term, journal.Hash)}
}

// compare checks an entry that is applied again. It is called with mu held.
func (j *journal) compare(head fsm.Head) error {
	if j.again == nil {
		if err := j.seek(j.place); err != nil {
			return err
		}
	}
	if j.again == nil { // in a gap: only its end is known
		for _, s := range j.segments {
			if s.base.Records == head.Records && s.base != head {
				return mismatch(s.path, 0, head, s.base)
			}
		}
		j.place = head
		return nil
	}
	offset := j.again.offset
	if _, err := j.again.next(); err != nil {
		return whole(err)
	}
	if j.again.head != head {
		return mismatch(j.again.path, offset, head, j.again.head)
	}
	j.place = head
	for _, s := range j.segments {
		if s.end == head {
			j.endCompare()
			break
		}
	}
	return nil
}

// sync brings everything that was appended onto the disk, and notes that it is there.
func (j *journal) sync() error {
	j.mu.Lock()
	if j.failed != nil {
		j.mu.Unlock()
		return j.failed
	}
	out, end := j.out, j.end()
	j.mu.Unlock()
	if out == nil || j.isMarked(end) {
		return nil
	}
	// Not under the lock: entries go on to be applied. A file that is closed by now was synced before.
	err := out.Sync()
	if errors.Is(err, fs.ErrClosed) {
		err = nil
	}
	if err == nil {
		err = j.mark(end)
	}
	if err != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.fail(unwritable(j.dir, err)) // what a failed sync left on the disk is not known
	}
	return nil
}

// syncOften syncs whenever much was written, and now and then what is little, until ctx ends or a sync fails.
func (j *journal) syncOften(ctx context.Context) error {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-j.grown:
		}
		if err := j.sync(); err != nil {
			return err
		}
	}
}

func (j *journal) isMarked(end fsm.Head) bool {
	j.markMu.Lock()
	defer j.markMu.Unlock()
	return end.Records <= j.marked
}

// mark notes that the history up to end is on the disk.
func (j *journal) mark(end fsm.Head) error {
	j.markMu.Lock()
	defer j.markMu.Unlock()
	if end.Records <= j.marked {
		return nil
	}
	if err := j.writeMark(syncedFileName, syncedMagic, end); err != nil {
		return err
	}
	j.marked = end.Records
	return nil
}

// writeMark replaces the file "synced" or "written", so that it is on the disk.
func (j *journal) writeMark(name, magic string, end fsm.Head) error {
	content := appendHeader(nil, magic, segmentHeader{clusterID: j.config.clusterID, base: end})
	path := filepath.Join(j.dir, name)
	if err := renameio.WriteFile(path, content, 0o600, renameio.WithTempDir(j.dir)); err != nil {
		return err
	}
	return syncDir(j.dir)
}

// close syncs and ends the journal. More calls do nothing.
func (j *journal) close() error {
	j.mu.Lock()
	failed := j.failed != nil // told when it happened
	j.mu.Unlock()
	var err error
	if !failed {
		err = j.sync()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.endCompare()
	if j.out != nil {
		err = errors.Join(err, j.out.Close())
		j.out = nil
	}
	if j.note != nil {
		err = errors.Join(err, j.note.Close())
		j.note = nil
	}
	_ = j.fail(fs.ErrClosed)
	return err
}

// gap returns the first part of the history that is missing: the records after from, up to that of to.
func (j *journal) gap() (from, to fsm.Head, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var end fsm.Head
	for _, s := range j.segments {
		if s.base.Records > end.Records {
			return end, s.base, true
		}
		end = s.end
	}
	return fsm.Head{}, fsm.Head{}, false
}

// missing counts the records in gaps. It never waits.
func (j *journal) missing() uint64 { return j.absent.Load() }

// count is called with mu held, whenever segments were added.
func (j *journal) count() {
	var records uint64
	var end fsm.Head
	for _, s := range j.segments {
		records += s.base.Records - end.Records
		end = s.end
	}
	j.absent.Store(records)
}

// sealed returns the segments that are not written to any more.
func (j *journal) sealed() []segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.segments) == 0 {
		return nil
	}
	return slices.Clone(j.segments[:len(j.segments)-1])
}
