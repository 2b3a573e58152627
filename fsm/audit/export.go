package audit

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// exportFormat and ExportVersion stand in the first line of an export. Protocol: another meaning is another version, and
// the old ones stay readable.
const (
	exportFormat  = "raftmine history"
	ExportVersion = 1
)

// maxExportLine bounds what a line may take: the largest entry, in base64 and as readable JSON.
const maxExportLine = 64 << 20

// hexHash is a hash as 64 lower-case hex digits.
type hexHash pow.Hash

func (h hexHash) MarshalText() ([]byte, error) { return []byte(pow.Hash(h).String()), nil }

func (h *hexHash) UnmarshalText(text []byte) error {
	hash, err := pow.ParseHash(string(text))
	if err != nil {
		return err
	}
	if hash.String() != string(text) {
		return fmt.Errorf("hash %s: want lower-case digits", text)
	}
	*h = hexHash(hash)
	return nil
}

// Base64 without padding bits that say nothing: each byte string has one form.
var strictBase64 = base64.StdEncoding.Strict()

type exportHeader struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
}

type exportRecord struct {
	Index uint64          `json:"index"`
	Term  uint64          `json:"term"`
	Data  string          `json:"data"`
	Chain hexHash         `json:"chain"`
	Entry json.RawMessage `json:"entry"`
}

type exportEnd struct {
	End headJSON `json:"end"`
}

// headJSON is a Head in files.
type headJSON struct {
	Records uint64  `json:"records"`
	Index   uint64  `json:"index"`
	Term    uint64  `json:"term"`
	Chain   hexHash `json:"chain"`
	Tree    hexHash `json:"tree"`
	State   hexHash `json:"state"`
}

func (h Head) json() headJSON {
	return headJSON{h.Records, h.Index, h.Term, hexHash(h.Chain), hexHash(h.Tree), hexHash(h.State)}
}

func (h headJSON) head() Head {
	return Head{h.Records, h.Index, h.Term, pow.Hash(h.Chain), pow.Hash(h.Tree), pow.Hash(h.State)}
}

// Export writes a history as JSON lines, the format of this package's documentation. It stops at a record that is not the
// one that was chained: an export vouches for what it holds. It returns the head.
func Export(w io.Writer, records Records) (Head, error) {
	out := bufio.NewWriterSize(w, 1<<16)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(exportHeader{exportFormat, ExportVersion}); err != nil {
		return Head{}, fmt.Errorf("export: %w", err)
	}
	state, t, d := fsm.New(), tree{}, fsm.Decoder{}
	for record, err := range records {
		if err != nil {
			return Head{}, fmt.Errorf("export: %w", err)
		}
		applied, kind, err := apply(state, &d, record)
		if err != nil {
			return Head{}, fmt.Errorf("export: %w", Finding{record.Index, kind, err.Error()})
		}
		t.add(record.Index, record.Term, record.Data)
		if err := encoder.Encode(exportRecord{
			Index: record.Index,
			Term:  record.Term,
			Data:  strictBase64.EncodeToString(record.Data),
			Chain: hexHash(record.Chain),
			Entry: Readable(record, applied.entry, applied.result),
		}); err != nil {
			return Head{}, fmt.Errorf("export record %d: %w", record.Index, err)
		}
	}
	fsmHead := state.Head()
	head := Head{fsmHead.Records, fsmHead.Index, fsmHead.Term, fsmHead.Hash, t.root(), state.Digest()}
	if err := encoder.Encode(exportEnd{head.json()}); err != nil {
		return Head{}, fmt.Errorf("export: %w", err)
	}
	if err := out.Flush(); err != nil {
		return Head{}, fmt.Errorf("export: %w", err)
	}
	return head, nil
}

// Import reads what Export wrote.
type Import struct {
	in   *bufio.Reader
	line uint64 // the last one that was read, from 1
	end  Head
	done bool
}

// NewImport reads the first line. An error that is not the reader's own wraps ErrBadExport.
func NewImport(r io.Reader) (*Import, error) {
	i := &Import{in: bufio.NewReaderSize(r, 1<<16)}
	line, err := i.next()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: it is empty", ErrBadExport)
	} else if err != nil {
		return nil, fmt.Errorf("line 1: %w", err)
	}
	var header exportHeader
	if err := strictJSON(line, &header); err != nil || header.Format != exportFormat {
		return nil, fmt.Errorf("%w: line 1 is no header of the format %q", ErrBadExport, exportFormat)
	}
	if header.Version != ExportVersion {
		return nil, fmt.Errorf("%w: version %d, this software reads version %d: install the version that wrote it",
			ErrBadExport, header.Version, ExportVersion)
	}
	return i, nil
}

// lineError is a line that cannot be read.
type lineError struct {
	line, after uint64 // after: the index of the record before it
	err         error
}

func (e *lineError) Error() string {
	return fmt.Sprintf("line %d, after record %d: %v", e.line, e.after, e.err)
}

func (e *lineError) Unwrap() error { return e.err }

// RecordIndex returns the index of the last record before the line.
func (e *lineError) RecordIndex() uint64 { return e.after }

// Records returns the history. It can be read once.
func (i *Import) Records() Records {
	return func(yield func(Record, error) bool) {
		var last uint64
		var data []byte
		for {
			line, err := i.next()
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("%w: it is cut off, the line with the end is missing", ErrBadExport)
			}
			var record exportRecord
			if err == nil {
				var end exportEnd
				if bytes.HasPrefix(line, []byte(`{"end":`)) {
					if err = strictJSON(line, &end); err == nil {
						i.end, i.done = end.End.head(), true
						if _, more := i.next(); errors.Is(more, io.EOF) {
							return
						}
						err = fmt.Errorf("%w: there is more after the end", ErrBadExport)
					}
				} else {
					err = strictJSON(line, &record)
				}
			}
			if err == nil {
				if data, err = strictBase64.AppendDecode(data[:0], []byte(record.Data)); err != nil {
					err = fmt.Errorf("%w: data: %w", ErrBadExport, err)
				}
			}
			if err != nil {
				yield(Record{}, &lineError{i.line, last, err})
				return
			}
			last = record.Index
			if !yield(Record{Index: record.Index, Term: record.Term, Data: data, Chain: pow.Hash(record.Chain),
				Readable: record.Entry}, nil) {
				return
			}
		}
	}
}

// End returns what the export says of its end, and false before all of it was read. It fits Options.EndsAt.
func (i *Import) End() (Head, bool) { return i.end, i.done }

// next returns a line without its end; io.EOF after the last one.
func (i *Import) next() ([]byte, error) {
	i.line++
	var long []byte
	for {
		part, err := i.in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			if len(long)+len(part) > maxExportLine {
				return nil, fmt.Errorf("%w: the line is longer than %d bytes", ErrBadExport, maxExportLine)
			}
			long = append(long, part...)
			continue
		case errors.Is(err, io.EOF) && len(part)+len(long) > 0:
			return nil, fmt.Errorf("%w: the line is cut off", ErrBadExport)
		case err != nil:
			return nil, err
		}
		if long != nil {
			part = append(long, part...)
		}
		return part[:len(part)-1], nil
	}
}

// strictJSON reads one object with exactly the fields of into, in their one form: what it holds, written again, must give
// the same bytes. So nothing in a line can be changed without being seen.
func strictJSON(line []byte, into any) error {
	if !utf8.Valid(line) { // which encoding/json lets pass in a text that it does not look into
		return fmt.Errorf("%w: it is not valid UTF-8", ErrBadExport)
	}
	if err := json.Unmarshal(line, into); err != nil {
		return fmt.Errorf("%w: %w", ErrBadExport, err)
	}
	var again bytes.Buffer
	encoder := json.NewEncoder(&again)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(into); err != nil {
		return fmt.Errorf("%w: %w", ErrBadExport, err)
	}
	if !bytes.Equal(bytes.TrimSuffix(again.Bytes(), []byte("\n")), line) {
		return fmt.Errorf("%w: it is not written as an export writes it", ErrBadExport)
	}
	return nil
}
