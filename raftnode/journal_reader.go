package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"raftmine/fsm"
)

// JournalReader reads the journal of a data directory, also beside the server that writes it: it never locks and never
// writes. Its methods may be called concurrently.
type JournalReader struct {
	dir      string
	identity Identity
	closed   atomic.Bool
}

// ReadJournal opens the journal of a data directory for reading. A directory without one is an error that matches
// fs.ErrNotExist.
func ReadJournal(dataDir string) (*JournalReader, error) {
	absolute, err := filepath.Abs(dataDir)
	if err != nil {
		return nil, fmt.Errorf("read journal of %s: %w", dataDir, err)
	}
	r := &JournalReader{dir: filepath.Join(absolute, journalFolder)}
	if r.identity, err = readIdentity(absolute); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	info, err := os.Stat(r.dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a folder", r.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return r, nil
}

// Identity says which server's history it is; zero when the directory has no server.json.
func (r *JournalReader) Identity() Identity { return r.identity }

// Records yields the whole history in the order of indexes, from its first record to the last one that is there when it
// gets there, and at last the error that ended it, if there was one: a *JournalError around ErrJournalDamaged, or a
// *HistoryGapError. Each record is checked: its checksums, its place, and its chain hash, which is computed anew. Data is
// valid until the next step.
//
// What a killed server left half written at the end is passed over, as long as it is less than one record. An end before the
// record that was written last is damage.
func (r *JournalReader) Records() iter.Seq2[JournalRecord, error] { return r.After(0) }

// After is Records from the first one with a greater index on.
func (r *JournalReader) After(index uint64) iter.Seq2[JournalRecord, error] {
	return r.scan(index, false)
}

// Unhashed is Records for who computes the chain himself, as a replay does, and compares it with each record's Chain: that
// alone is not done here.
func (r *JournalReader) Unhashed() iter.Seq2[JournalRecord, error] { return r.scan(0, true) }

func (r *JournalReader) scan(after uint64, unhashed bool) iter.Seq2[JournalRecord, error] {
	return func(yield func(JournalRecord, error) bool) {
		scan := journalScan{JournalReader: r, after: after, unhashed: unhashed, yield: yield}
		defer scan.close()
		if err := scan.run(); err != nil {
			yield(JournalRecord{}, fmt.Errorf("read journal: %w", err))
		}
	}
}

// Close ends what is being read, with fs.ErrClosed.
func (r *JournalReader) Close() error {
	r.closed.Store(true)
	return nil
}

// journalScan is one pass over a journal.
type journalScan struct {
	*JournalReader
	after    uint64
	unhashed bool
	yield    func(JournalRecord, error) bool

	paths   []string
	at      int // segment is paths[at]
	file    *os.File
	segment *segmentReader
}

func (s *journalScan) close() {
	if s.file != nil {
		_ = s.file.Close() // it was only read
		s.file = nil
	}
}

func (s *journalScan) open(path string) (err error) {
	s.close()
	if s.file, err = os.Open(path); err != nil {
		return err
	}
	if s.segment, err = newSegmentReader(path, s.file); err != nil {
		return err
	}
	s.segment.unhashed = s.unhashed
	if s.identity.ClusterID != "" {
		return s.segment.of(s.identity.ClusterID)
	}
	return nil
}

func (s *journalScan) run() (err error) {
	marks, err := readMarks(s.dir)
	if err != nil {
		return err
	}
	if s.paths, err = segmentPaths(s.dir); err != nil {
		return err
	}
	if len(s.paths) == 0 {
		return s.complete(fsm.Head{}, marks)
	}
	for i, path := range s.paths { // begin with the last one that begins at or before it
		if filepath.Base(path) <= segmentName(fsm.Head{Index: s.after}) {
			s.at = i
		}
	}
	if err := s.open(s.paths[s.at]); err != nil {
		if s.at > 0 {
			return err // nobody read what comes before it
		}
		return beginsAfter(fsm.Head{}, err)
	}
	first := segment{continues: s.segment.header.continues, base: s.segment.header.base}
	if s.at == 0 {
		if err := first.follows(fsm.Head{}); err != nil {
			return beginsAfter(fsm.Head{}, &JournalError{Path: s.segment.path, Err: err})
		}
	}
	if first.base.Index > s.after {
		return s.gap(s.after, first.base.Index)
	}
	for {
		if more, err := s.records(marks); err != nil || !more {
			return err
		}
		end := s.segment.head
		if err := s.open(s.paths[s.at]); err != nil {
			return beginsAfter(end, err)
		}
		next := segment{continues: s.segment.header.continues, base: s.segment.header.base}
		if err := next.follows(end); err != nil {
			return beginsAfter(end, &JournalError{Path: s.segment.path, Err: err})
		}
		if next.base != end && next.base.Index > s.after {
			return s.gap(max(end.Index, s.after), next.base.Index)
		}
	}
}

// beginsAfter makes what is wrong with a segment's header an error of the segment's first record, the one after end.
func beginsAfter(end fsm.Head, err error) error {
	var header *JournalError
	if errors.As(err, &header) && header.Record == 0 {
		header.Record, header.Index = end.Records+1, end.Index+1
	}
	return err
}

func (s *journalScan) gap(after, until uint64) error {
	return fmt.Errorf("%s: %w", s.dir, &HistoryGapError{After: after, Until: until})
}

// records yields the rest of the segment, and reports whether there is another one.
func (s *journalScan) records(marks journalMarks) (more bool, err error) {
	last := true // as far as is known
	for {
		if s.closed.Load() {
			return false, fs.ErrClosed
		}
		record, err := s.segment.next()
		switch {
		case err == nil:
			if err := marks.fit(s.segment); err != nil {
				return false, err
			}
			if record.Index > s.after && !s.yield(record, nil) {
				return false, nil
			}
		case errors.Is(err, io.EOF), errors.Is(err, errTornRecord):
			if last {
				if last, err = s.isLast(); err != nil {
					return false, err
				}
				if last {
					return false, s.complete(s.segment.head, marks)
				}
				continue // its last records came before the next segment
			}
			if errors.Is(err, errTornRecord) {
				return false, s.segment.wrong(fmt.Errorf("%w: %w", ErrJournalDamaged, err))
			}
			s.at++
			return true, nil
		default:
			return false, err
		}
	}
}

// isLast looks whether another segment has come, and where this one is now.
func (s *journalScan) isLast() (bool, error) {
	path := s.paths[s.at]
	if s.at == len(s.paths)-1 {
		paths, err := segmentPaths(s.dir)
		if err != nil {
			return false, err
		}
		at := slices.Index(paths, path)
		if at < 0 {
			return false, fmt.Errorf("%s: %w: it is gone", path, ErrJournalDamaged)
		}
		s.paths, s.at = paths, at
	}
	return s.at == len(s.paths)-1, nil
}

// complete refuses an end before what was written.
func (s *journalScan) complete(end fsm.Head, m journalMarks) error {
	wrong := &JournalError{Path: s.dir, Record: end.Records + 1, Index: end.Index + 1}
	if s.segment != nil {
		wrong.Path, wrong.Offset = s.segment.path, s.segment.offset
	}
	switch {
	case end.Records < m.synced.Records:
		wrong.Err = fmt.Errorf("%w: it ends here, and %d records up to index %d were on the disk", ErrJournalDamaged,
			m.synced.Records, m.synced.Index)
	case end.Records < m.written.Records:
		wrong.Err = fmt.Errorf("%w: it ends here, and %d records up to index %d were written: they were cut off, or lost when the "+
			"power failed; a start of this server writes them again from its Raft log", ErrJournalDamaged, m.written.Records, m.written.Index)
	default:
		return nil
	}
	return wrong
}

// verifyPart is how many records are verified at once, and verifyRest how many times longer the pause after them is: the
// server has other things to do. Tuning.
const (
	verifyPart = 256
	verifyRest = 9
)

// verify reads what openJournal did not: all segments but the last one. It returns the first damage.
func (j *journal) verify(ctx context.Context) error {
	for _, s := range j.sealed() {
		if err := verifySegment(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func verifySegment(ctx context.Context, s segment) error {
	file, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer file.Close()
	r, err := newSegmentReader(s.path, file)
	if err != nil {
		return err
	}
	began := time.Now()
	for n := 1; ; n++ {
		_, err := r.next()
		if errors.Is(err, io.EOF) {
			if r.head != s.end {
				return r.wrong(fmt.Errorf("%w: it ends here, and it had %d records", ErrJournalDamaged, s.end.Records))
			}
			return nil
		}
		if err != nil {
			return whole(err)
		}
		if n%verifyPart == 0 {
			if !sleep(ctx, verifyRest*time.Since(began)) {
				return nil
			}
			began = time.Now()
		}
	}
}
