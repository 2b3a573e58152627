package raftnode

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"raftmine/fsm"
)

// The journal on the disk. Protocol: a change of anything here is a new format version, and the old one stays readable.
//
// A journal is the folder DATA-DIR/journal with segments, and the files "synced" and "written". A segment is named after the
// lowest index that it may hold, in twenty digits: 00000000000000000001.journal is the first one. Integers are big endian;
// the checksums are CRC-32C (Castagnoli).
//
// A segment starts with a header of 140 bytes, which is whole and synced before the segment has its name:
//
//	  0   8  "RAFTMJNL"
//	  8   4  format version: 2
//	 12   4  1: the segment before must end where this one begins. 0: it may end earlier (this one was begun at a snapshot,
//	         and the records in between are, or were, missing)
//	 16  64  cluster id, filled up with zeroes
//	 80   8  the history before the segment: number of records,
//	 88   8    index of the last one,
//	 96   8    its term,
//	104  32    its chain hash; all are zero before the first record
//	136   4  checksum of bytes 0 to 135
//
// Records follow without gaps, one for each applied log entry; n is the length of its data:
//
//	  0   4  n
//	  4   8  number of the record in the history: 1, 2, 3 ...
//	 12   8  index: it grows, but not by one, because Raft's own entries are not applied
//	 20   8  term: it never falls
//	 28   4  checksum of bytes 0 to 27
//	 32   n  data: the entry's stored bytes
//	+ 0  32  chain hash: SHA256(chain hash before || index || term || n as 8 bytes || data), which is fsm.Head.Hash
//	+32   4  checksum of data and chain hash
//	+36   4  n once more: the last record can be read from the segment's end
//
// The file "synced" is a header with the magic "RAFTMSYN": up to the record that it names everything was on the disk when
// it was written. It is replaced as a whole. What fails its checksum after that record, in the last segment, is a torn
// tail; all else is damage.
//
// The file "written" is a header with the magic "RAFTMWRT", which is overwritten in its place after each record, and not
// synced: it names the last one. The kernel keeps it with the records when the server is killed, so a journal that ends
// before it was cut. Only when the power failed may what it names be lost without that; then Raft's log has it still.
//
// Format 1 is the same without the file "written". With a "synced" of format 2 it must be there.
const (
	segmentMagic  = "RAFTMJNL"
	syncedMagic   = "RAFTMSYN"
	writtenMagic  = "RAFTMWRT"
	journalFormat = 2
	oldestFormat  = 1

	flagContinues = 1

	segmentHeaderSize = 140
	recordHeadSize    = 32
	recordTailSize    = 40
)

// Errors of the journal.
var (
	// ErrJournalDamaged: what is on the disk is not what was written there. The *JournalError around it says where.
	ErrJournalDamaged = errors.New("journal is damaged")
	// ErrJournalMismatch: the journal and the Raft log or a snapshot say different things of one record.
	ErrJournalMismatch = errors.New("journal disagrees with the log")
	// ErrHistoryGap: records are missing. It comes as a *HistoryGapError.
	ErrHistoryGap = errors.New("history has a gap")
)

// errTornRecord: the file ends within a record. More of it may come.
var errTornRecord = errors.New("the file ends within a record")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// JournalError says where in a journal something is wrong.
type JournalError struct {
	Path   string
	Offset int64  // of the record, in the file; 0: it is not there
	Record uint64 // its number in the history: of a segment's header its first record's; 0: it is about no record
	Index  uint64 // its log index as far as it can be read, else the first one that it may have; 0: it is about no record
	Err    error
}

func (e *JournalError) Error() string {
	text := e.Path + ": "
	if e.Offset > 0 {
		text += fmt.Sprintf("offset %d: ", e.Offset)
	}
	if e.Record > 0 {
		text += fmt.Sprintf("index %d: ", e.Index)
	}
	return text + e.Err.Error()
}

func (e *JournalError) Unwrap() error { return e.Err }

// HistoryGapError names records that are missing: those with After < index <= Until. It matches ErrHistoryGap.
type HistoryGapError struct{ After, Until uint64 }

func (e *HistoryGapError) Error() string {
	return fmt.Sprintf("%v: the records from index %d to %d are missing", ErrHistoryGap, e.After+1, e.Until)
}

// Is makes errors.Is(err, ErrHistoryGap) hold.
func (e *HistoryGapError) Is(target error) bool { return target == ErrHistoryGap }

// JournalRecord is one applied log entry.
type JournalRecord struct {
	Index, Term uint64
	Data        []byte   // as stored in the log
	Chain       [32]byte // fsm.Head.Hash with this record as the last one
}

// segmentHeader is what a segment says of itself.
type segmentHeader struct {
	format    uint32 // as it was read; what is written has journalFormat
	clusterID string
	continues bool
	base      fsm.Head // the history before the segment
}

func appendHeader(buffer []byte, magic string, h segmentHeader) []byte {
	start := len(buffer)
	buffer = append(buffer, magic...)
	buffer = binary.BigEndian.AppendUint32(buffer, journalFormat)
	var flags uint32
	if h.continues {
		flags |= flagContinues
	}
	buffer = binary.BigEndian.AppendUint32(buffer, flags)
	var cluster [fsm.MaxClusterID]byte
	copy(cluster[:], h.clusterID)
	buffer = append(buffer, cluster[:]...)
	buffer = binary.BigEndian.AppendUint64(buffer, h.base.Records)
	buffer = binary.BigEndian.AppendUint64(buffer, h.base.Index)
	buffer = binary.BigEndian.AppendUint64(buffer, h.base.Term)
	buffer = append(buffer, h.base.Hash[:]...)
	return binary.BigEndian.AppendUint32(buffer, crc32.Checksum(buffer[start:], castagnoli))
}

func parseHeader(data []byte, magic string) (h segmentHeader, err error) {
	switch {
	case len(data) < segmentHeaderSize:
		return h, fmt.Errorf("%w: %d bytes, its header has %d", ErrJournalDamaged, len(data), segmentHeaderSize)
	case string(data[:8]) != magic:
		return h, fmt.Errorf("%w: it does not start with %s", ErrJournalDamaged, magic)
	case crc32.Checksum(data[:136], castagnoli) != binary.BigEndian.Uint32(data[136:]):
		return h, fmt.Errorf("%w: its header fails the checksum", ErrJournalDamaged)
	}
	if h.format = binary.BigEndian.Uint32(data[8:]); h.format < oldestFormat || h.format > journalFormat {
		return h, fmt.Errorf("journal format %d, this software reads formats %d to %d: use the version that wrote it",
			h.format, oldestFormat, journalFormat)
	}
	flags := binary.BigEndian.Uint32(data[12:])
	if flags&^flagContinues != 0 {
		return h, fmt.Errorf("%w: its header has unknown flags %#x", ErrJournalDamaged, flags)
	}
	h.continues = flags&flagContinues != 0
	h.clusterID = string(bytes.TrimRight(data[16:80], "\x00"))
	h.base.Records = binary.BigEndian.Uint64(data[80:])
	h.base.Index = binary.BigEndian.Uint64(data[88:])
	h.base.Term = binary.BigEndian.Uint64(data[96:])
	copy(h.base.Hash[:], data[104:136])
	if (h.base.Records == 0) != (h.base == fsm.Head{}) || h.base.Records > h.base.Index {
		return h, fmt.Errorf("%w: its header has %d records up to index %d", ErrJournalDamaged, h.base.Records, h.base.Index)
	}
	return h, nil
}

// appendRecord encodes the record that makes head.
func appendRecord(buffer []byte, head fsm.Head, data []byte) []byte {
	start := len(buffer)
	buffer = binary.BigEndian.AppendUint32(buffer, uint32(len(data)))
	buffer = binary.BigEndian.AppendUint64(buffer, head.Records)
	buffer = binary.BigEndian.AppendUint64(buffer, head.Index)
	buffer = binary.BigEndian.AppendUint64(buffer, head.Term)
	buffer = binary.BigEndian.AppendUint32(buffer, crc32.Checksum(buffer[start:], castagnoli))
	body := len(buffer)
	buffer = append(buffer, data...)
	buffer = append(buffer, head.Hash[:]...)
	buffer = binary.BigEndian.AppendUint32(buffer, crc32.Checksum(buffer[body:], castagnoli))
	return binary.BigEndian.AppendUint32(buffer, uint32(len(data)))
}

// recordHead is the first part of a record.
type recordHead struct {
	length              int
	number, index, term uint64
}

func parseRecordHead(data []byte) (h recordHead, err error) {
	if crc32.Checksum(data[:28], castagnoli) != binary.BigEndian.Uint32(data[28:]) {
		return h, fmt.Errorf("%w: the record's first bytes fail their checksum", ErrJournalDamaged)
	}
	length := binary.BigEndian.Uint32(data)
	if length > fsm.MaxEntrySize {
		return h, fmt.Errorf("%w: a record of %d bytes", ErrJournalDamaged, length)
	}
	return recordHead{
		length: int(length),
		number: binary.BigEndian.Uint64(data[4:]),
		index:  binary.BigEndian.Uint64(data[12:]),
		term:   binary.BigEndian.Uint64(data[20:]),
	}, nil
}

func (h recordHead) size() int { return recordHeadSize + h.length + recordTailSize }

// parse reads a whole record, of which h is the head.
func (h recordHead) parse(data []byte) (JournalRecord, error) {
	tail := data[recordHeadSize+h.length:]
	record := JournalRecord{Index: h.index, Term: h.term, Data: data[recordHeadSize : recordHeadSize+h.length : recordHeadSize+h.length]}
	copy(record.Chain[:], tail)
	switch {
	case crc32.Checksum(data[recordHeadSize:recordHeadSize+h.length+32], castagnoli) != binary.BigEndian.Uint32(tail[32:]):
		return record, fmt.Errorf("%w: the record fails its checksum", ErrJournalDamaged)
	case binary.BigEndian.Uint32(tail[36:]) != uint32(h.length):
		return record, fmt.Errorf("%w: the record's last bytes are wrong", ErrJournalDamaged)
	}
	return record, nil
}

// segmentReader reads one segment from its beginning and checks everything. It may be used beside the writer: after
// io.EOF and errTornRecord, next may be called again, when there is more.
type segmentReader struct {
	path   string
	file   io.ReaderAt
	header segmentHeader
	head   fsm.Head // after the last record that was read
	// unhashed: the chain hash of each record is what the record says, and whoever reads it computes it.
	unhashed bool

	offset int64  // in the file, of what window[begin] is
	window []byte // what was read ahead
	begin  int
}

// readWindow is how much is read at once. Tuning.
const readWindow = 64 << 10

func newSegmentReader(path string, file io.ReaderAt) (*segmentReader, error) {
	r := &segmentReader{path: path, file: file}
	data, err := r.peek(segmentHeaderSize)
	if err == nil {
		r.header, err = parseHeader(data, segmentMagic)
	}
	if err == nil && segmentName(r.header.base) != baseName(path) {
		err = fmt.Errorf("%w: it should be named %s", ErrJournalDamaged, segmentName(r.header.base))
	}
	if err != nil {
		return nil, &JournalError{Path: path, Err: err}
	}
	r.head = r.header.base
	r.skip(segmentHeaderSize)
	return r, nil
}

// next returns the next record, whose Data is valid until the next call.
func (r *segmentReader) next() (JournalRecord, error) {
	data, err := r.peek(recordHeadSize)
	switch {
	case err != nil:
		return JournalRecord{}, r.wrong(err)
	case len(data) == 0:
		return JournalRecord{}, io.EOF
	case len(data) < recordHeadSize:
		return JournalRecord{}, errTornRecord
	}
	head, err := parseRecordHead(data)
	if err != nil {
		return JournalRecord{}, r.wrong(err)
	}
	if data, err = r.peek(head.size()); err != nil {
		return JournalRecord{}, r.wrong(err)
	}
	if len(data) < head.size() {
		return JournalRecord{}, errTornRecord
	}
	record, err := head.parse(data[:head.size()])
	if err != nil {
		return JournalRecord{}, r.wrongAt(head.index, err)
	}
	if head.number != r.head.Records+1 || head.index <= r.head.Index || head.term < r.head.Term || head.term == 0 {
		return JournalRecord{}, r.wrongAt(head.index, fmt.Errorf(
			"%w: number %d, index %d, term %d follows number %d, index %d, term %d", ErrJournalDamaged,
			head.number, head.index, head.term, r.head.Records, r.head.Index, r.head.Term))
	}
	if !r.unhashed && r.head.Next(head.index, head.term, record.Data).Hash != record.Chain {
		return JournalRecord{}, r.wrongAt(head.index, fmt.Errorf("%w: the chain breaks: the record is not what was applied",
			ErrJournalDamaged))
	}
	r.head = fsm.Head{Records: head.number, Index: head.index, Term: head.term, Hash: record.Chain}
	r.skip(head.size())
	return record, nil
}

func (r *segmentReader) wrong(err error) error { return r.wrongAt(r.head.Index+1, err) }

func (r *segmentReader) wrongAt(index uint64, err error) error {
	return &JournalError{Path: r.path, Offset: r.offset, Record: r.head.Records + 1, Index: index, Err: err}
}

// peek returns at least n bytes from offset on; fewer only at the end of the file.
func (r *segmentReader) peek(n int) ([]byte, error) {
	if have := r.window[r.begin:]; len(have) >= n {
		return have, nil
	}
	have := copy(r.window, r.window[r.begin:])
	r.begin = 0
	if cap(r.window) < n {
		r.window = append(make([]byte, 0, max(n, readWindow)), r.window[:have]...)
	}
	r.window = r.window[:cap(r.window)]
	for have < n {
		got, err := r.file.ReadAt(r.window[have:], r.offset+int64(have))
		have += got
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			r.window = r.window[:have]
			return nil, err
		}
	}
	r.window = r.window[:have]
	return r.window, nil
}

func (r *segmentReader) skip(n int) {
	r.begin += n
	r.offset += int64(n)
}
