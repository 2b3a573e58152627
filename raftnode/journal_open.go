package raftnode

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"raftmine/fsm"
)

// openJournal opens the journal of a data directory that this process has locked, and makes it when there is none. A torn
// tail is cut. It reads the last segment whole, and of the others where they begin and end: verify reads the rest.
func openJournal(config journalConfig) (_ *journal, err error) {
	if config.open == nil {
		config.open = func(path string, flag int, mode fs.FileMode) (JournalFile, error) {
			return os.OpenFile(path, flag, mode)
		}
	}
	j := &journal{config: config, dir: filepath.Join(config.dataDir, journalFolder)}
	j.gapped, j.grown = make(chan struct{}, 1), make(chan struct{}, 1)
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make journal: %w", err)
	}
	if err := j.tidy(); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	marks, err := readMarks(j.dir)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", j.advise(err))
	}
	j.marked, j.written = marks.synced.Records, marks.written
	if err := j.load(marks); err != nil {
		return nil, fmt.Errorf("open journal: %w", j.advise(err))
	}
	if len(j.segments) > 0 {
		last := j.segments[len(j.segments)-1].path
		if j.out, err = config.open(last, os.O_WRONLY|os.O_APPEND, 0); err != nil {
			return nil, fmt.Errorf("open journal: %w", err)
		}
		if err := j.loadWritten(marks); err != nil {
			return nil, fmt.Errorf("open journal: %w", errors.Join(err, j.out.Close()))
		}
	}
	poke(j.gapped)
	return j, nil
}

// loadWritten makes the file "written" fit for what was loaded: one of format 1 has none, and a kill may come between a
// record and its note.
func (j *journal) loadWritten(m journalMarks) error {
	end := j.end()
	if !m.noted {
		if err := j.writeMark(writtenFileName, writtenMagic, end); err != nil {
			return unwritable(j.dir, err)
		}
		j.written = end
	}
	if end.Records < j.written.Records {
		j.config.logger.Warn("journal's end is lost, and is written again from the log", "after_index", end.Index,
			"until_index", j.written.Index, "records", j.written.Records-end.Records)
		return nil
	}
	return j.wrote(end)
}

// advise says what to do with a journal that is damaged.
func (j *journal) advise(err error) error {
	if !errors.Is(err, ErrJournalDamaged) {
		return err
	}
	return fmt.Errorf("%w; if %s is the newest state of this very disk, move %s away to fetch the history from other servers, else %s",
		err, logFile, j.dir, joinAnew)
}

// tidy removes what a killed server left unfinished.
func (j *journal) tidy() error {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") || strings.HasSuffix(entry.Name(), fetchedSuffix) {
			if err := os.Remove(filepath.Join(j.dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *journal) load(marks journalMarks) error {
	paths, err := segmentPaths(j.dir)
	if err != nil {
		return err
	}
	var end fsm.Head
	for i, path := range paths {
		s, size, err := j.loadSegment(path, i == len(paths)-1, marks)
		if err != nil {
			return err
		}
		if err := s.follows(end); err != nil {
			return &JournalError{Path: path, Err: err}
		}
		j.segments, j.size, end = append(j.segments, s), size, s.end
	}
	j.count()
	if end.Records < marks.synced.Records {
		return fmt.Errorf("%s: %w: it ends at record %d, and %d were on the disk", j.dir, ErrJournalDamaged,
			end.Records, marks.synced.Records)
	}
	return nil
}

// follows says why a segment cannot come after the one that ends at end.
func (s segment) follows(end fsm.Head) error {
	switch {
	case s.base == end, s.base.Records > end.Records && s.base.Index > end.Index && s.base.Term >= end.Term && !s.continues:
		return nil
	case s.base.Records > end.Records:
		return fmt.Errorf("%w: it begins after %d records up to index %d, and the segment before it ends after %d up to index %d",
			ErrJournalDamaged, s.base.Records, s.base.Index, end.Records, end.Index)
	}
	return fmt.Errorf("%w: it begins after %d records up to index %d, chain %s, and the segment before it ends after %d up to index %d, chain %s",
		ErrJournalDamaged, s.base.Records, s.base.Index, s.base.Hash, end.Records, end.Index, end.Hash)
}

// loadSegment finds where a segment ends. The last one is read, and cut where its tail is torn.
func (j *journal) loadSegment(path string, last bool, marks journalMarks) (s segment, size int64, err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return s, 0, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return s, 0, err
	}
	r, err := newSegmentReader(path, file)
	if err != nil {
		return s, 0, err
	}
	if err := r.of(j.config.clusterID); err != nil {
		return s, 0, err
	}
	s = segment{path: path, continues: r.header.continues, base: r.header.base}
	if !last {
		s.end, err = readEnd(path, file, info.Size(), s.base)
		return s, info.Size(), err
	}
	for {
		_, err := r.next()
		if err == nil {
			if err := marks.fit(r); err != nil {
				return s, 0, err
			}
			continue
		}
		s.end = r.head
		if errors.Is(err, io.EOF) {
			return s, r.offset, nil
		}
		torn := errors.Is(err, errTornRecord) || errors.Is(err, ErrJournalDamaged)
		if !torn || r.head.Records < marks.synced.Records {
			if errors.Is(err, errTornRecord) {
				err = r.wrong(fmt.Errorf("%w: %w", ErrJournalDamaged, err))
			}
			return s, 0, err
		}
		// Not synced, so still in the Raft log.
		var kept string
		if errors.Is(err, ErrJournalDamaged) { // perhaps by somebody, and not by a crash
			kept = fmt.Sprintf("%s.%d%s", path, r.offset, tornSuffix)
			if err := keepTail(kept, file, r.offset); err != nil {
				return s, 0, unwritable(kept, err)
			}
		}
		j.config.logger.Warn("journal's torn tail cut", "path", path, "offset", r.offset, "bytes", info.Size()-r.offset,
			"after_index", r.head.Index, "kept", kept, "cause", err)
		if err := errors.Join(file.Truncate(r.offset), file.Sync()); err != nil {
			return s, 0, err
		}
		return s, r.offset, nil
	}
}

// keepTail copies what follows an offset of a file to another one.
func keepTail(to string, file *os.File, offset int64) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	tail, err := renameio.NewPendingFile(to, renameio.WithTempDir(filepath.Dir(to)), renameio.WithPermissions(0o600))
	if err != nil {
		return err
	}
	defer func() { _ = tail.Cleanup() }() // does nothing to one that was put in place
	if _, err := io.Copy(tail, io.NewSectionReader(file, offset, info.Size()-offset)); err != nil {
		return err
	}
	return tail.CloseAtomicallyReplace()
}

// of refuses another cluster's segment.
func (r *segmentReader) of(clusterID string) error {
	if r.header.clusterID != clusterID {
		return &JournalError{Path: r.path, Err: fmt.Errorf("it is of cluster %s, this is %s: %w",
			r.header.clusterID, clusterID, ErrForeignCluster)}
	}
	return nil
}

// readEnd reads the last record of a segment; without one the end is the base.
func readEnd(path string, file io.ReaderAt, size int64, base fsm.Head) (end fsm.Head, err error) {
	if size == segmentHeaderSize {
		return base, nil
	}
	wrong := func(offset int64, err error) (fsm.Head, error) {
		return fsm.Head{}, &JournalError{Path: path, Offset: offset, Record: base.Records + 1, Index: base.Index + 1,
			Err: fmt.Errorf("its last record: %w", err)}
	}
	tail := make([]byte, 4)
	if size < segmentHeaderSize+recordHeadSize+recordTailSize {
		return wrong(segmentHeaderSize, fmt.Errorf("%w: it is cut off", ErrJournalDamaged))
	}
	if _, err := file.ReadAt(tail, size-4); err != nil {
		return wrong(size-4, err)
	}
	length := int64(tail[0])<<24 | int64(tail[1])<<16 | int64(tail[2])<<8 | int64(tail[3])
	start := size - recordHeadSize - recordTailSize - length
	if start < segmentHeaderSize || length > fsm.MaxEntrySize {
		return wrong(size-4, fmt.Errorf("%w: it is cut off, or its last bytes are wrong", ErrJournalDamaged))
	}
	data := make([]byte, size-start)
	if _, err := file.ReadAt(data, start); err != nil {
		return wrong(start, err)
	}
	head, err := parseRecordHead(data)
	if err == nil && int64(head.length) != length {
		err = fmt.Errorf("%w: its length is %d at its beginning and %d at its end", ErrJournalDamaged, head.length, length)
	}
	var record JournalRecord
	if err == nil {
		record, err = head.parse(data)
	}
	if err == nil && (head.number <= base.Records || head.index <= base.Index || head.term < base.Term) {
		err = fmt.Errorf("%w: number %d, index %d comes before the segment's first", ErrJournalDamaged, head.number, head.index)
	}
	if err != nil {
		return wrong(start, err)
	}
	return fsm.Head{Records: head.number, Index: head.index, Term: head.term, Hash: record.Chain}, nil
}

// segmentPaths lists the segments of a journal folder, in order.
func segmentPaths(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), segmentSuffix) && !strings.HasPrefix(entry.Name(), ".") {
			if !entry.Type().IsRegular() { // a pipe, for one, would be waited for
				return nil, &JournalError{Path: filepath.Join(dir, entry.Name()), Err: fmt.Errorf("%w: not a regular file", ErrJournalDamaged)}
			}
			paths = append(paths, filepath.Join(dir, entry.Name()))
		}
	}
	return paths, nil
}

// journalMarks are what the files "synced" and "written" say; zero in a journal without segments.
type journalMarks struct {
	synced  fsm.Head // up to here it was on the disk
	written fsm.Head // up to here there were records
	noted   bool     // there is a file "written"
}

// readMarks reads them before the segments, which hold at least that. Both are there before the first segment is: a journal
// without them may be cut, and must not pass for whole.
func readMarks(dir string) (m journalMarks, err error) {
	synced, found, err := readMark(dir, syncedFileName, syncedMagic)
	if err == nil && !found {
		var paths []string
		if paths, err = segmentPaths(dir); err != nil || len(paths) == 0 {
			return m, err
		}
		synced, found, err = readMark(dir, syncedFileName, syncedMagic) // it may have come meanwhile
	}
	if err == nil && !found {
		err = missingMark(dir, syncedFileName, "how much of the history was on the disk")
	}
	if err != nil {
		return m, err
	}
	written, found, err := readMark(dir, writtenFileName, writtenMagic)
	if err == nil && !found && synced.format > oldestFormat {
		err = missingMark(dir, writtenFileName, "where the history ended")
	}
	return journalMarks{synced.base, written.base, found}, err
}

// fit compares the last record that was read with what they say of it.
func (m journalMarks) fit(r *segmentReader) error {
	switch {
	case r.head.Records == m.synced.Records && r.head != m.synced:
		return r.wrong(fmt.Errorf("%w: the record before is not the one that was synced", ErrJournalDamaged))
	case r.head.Records == m.written.Records && r.head != m.written:
		return r.wrong(fmt.Errorf("%w: the record before is not the one that was written last", ErrJournalDamaged))
	}
	return nil
}

func missingMark(dir, name, what string) error {
	return &JournalError{Path: filepath.Join(dir, name), Err: fmt.Errorf("%w: it is missing, and says %s", ErrJournalDamaged, what)}
}

// readMark reads one of these files, if it is there. "written" may be read while it is overwritten, half old and half new:
// so it is damaged only when it is so more than once.
func readMark(dir, name, magic string) (h segmentHeader, found bool, err error) {
	path := filepath.Join(dir, name)
	for range 3 {
		if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
			return h, false, &JournalError{Path: path, Err: fmt.Errorf("%w: not a regular file", ErrJournalDamaged)}
		}
		data, readErr := os.ReadFile(path)
		if errors.Is(readErr, fs.ErrNotExist) {
			return h, false, nil
		} else if readErr != nil {
			return h, false, readErr
		}
		if h, err = parseHeader(data, magic); err == nil {
			return h, true, nil
		}
		err = &JournalError{Path: path, Err: err}
	}
	return h, false, err
}
