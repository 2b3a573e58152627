package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

const (
	recordFormat = "raftmine record proof"
	// RecordVersion stands in every record proof. Protocol.
	RecordVersion = 1
	// maxRecordProof bounds what VerifyRecordProof reads: a record of the largest size, in base64 and in words.
	maxRecordProof = 2 * maxExportLine
)

// RecordProof shows that the tree of a head holds one record at one place, with a few hashes and without the others: what was
// logged, by whom and when. What came of its commands follows from all records before, and only an audit shows it. Whoever
// checks a proof compares the head, both its number of records and its tree, with one from a source that he trusts.
type RecordProof struct {
	Head   Head   // Records and Tree alone
	Number uint64 // of the record, counted from 0
	Record Record // without Chain
	Path   Path
}

type recordProofJSON struct {
	Format  string          `json:"format"`
	Version int             `json:"version"`
	Head    treeJSON        `json:"head"`
	Number  uint64          `json:"number"`
	Index   uint64          `json:"index"`
	Term    uint64          `json:"term"`
	Data    string          `json:"data"`
	Entry   json.RawMessage `json:"entry"`
	Path    []hexHash       `json:"path"`
}

// ProveRecord proves that a history holds the record with that log index. open is called twice and gives the same history, or
// one that has grown. A history that does not hold proves nothing.
func ProveRecord(open func() (Records, error), index uint64) (*RecordProof, error) {
	records, err := open()
	if err != nil {
		return nil, err
	}
	number, found := uint64(0), false
	report, err := Replay(func(yield func(Record, error) bool) {
		for record, err := range records {
			if found = found || record.Index == index; !found {
				number++
			}
			if !yield(record, err) {
				return
			}
		}
	}, Options{})
	if err != nil {
		return nil, err
	}
	if first, broken := report.First(); broken {
		return nil, first
	}
	if !found {
		return nil, fmt.Errorf("record %d: %w, which goes from %d to %d without Raft's own entries", index, ErrNotFound,
			report.FirstIndex, report.Head.Index)
	}
	if records, err = open(); err != nil {
		return nil, err
	}
	p := &RecordProof{Head: Head{Records: report.Head.Records, Tree: report.Head.Tree}, Number: number}
	if p.Path, p.Record, err = ProveInclusion(records, p.Head, number); err != nil {
		return nil, err
	}
	return p, p.Verify()
}

// Verify checks the proof with nothing but what it holds. Errors wrap ErrBadProof.
func (p *RecordProof) Verify() error {
	if _, err := p.Entry(); err != nil {
		return err
	}
	return CheckInclusion(p.Path, p.Head, p.Number, p.Record)
}

// Entry returns what the record holds. Errors wrap ErrBadProof.
func (p *RecordProof) Entry() (fsm.Entry, error) {
	entry, err := fsm.DecodeEntry(p.Record.Data)
	if err != nil {
		err = fmt.Errorf("record %d: %w: %w", p.Record.Index, ErrBadProof, err)
	}
	return entry, err
}

// WriteTo writes the proof as JSON.
func (p *RecordProof) WriteTo(w io.Writer) (int64, error) {
	entry, err := p.Entry()
	if err != nil {
		return 0, err
	}
	file := recordProofJSON{Format: recordFormat, Version: RecordVersion, Head: treeJSON{p.Head.Records, hexHash(p.Head.Tree)},
		Number: p.Number, Index: p.Record.Index, Term: p.Record.Term, Data: strictBase64.EncodeToString(p.Record.Data),
		Entry: Readable(p.Record, entry, fsm.Result{}), Path: p.Path.hex()}
	text, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return 0, err
	}
	n, err := w.Write(append(text, '\n'))
	return int64(n), err
}

// StartsRecordProof reports whether what begins so is a record proof of any version.
func StartsRecordProof(start []byte) bool { return startsAs(start, recordFormat) }

// VerifyRecordProof reads a proof and checks it, also that what it says of the entry is what the data holds. Errors that are
// not the reader's own wrap ErrBadProof.
func VerifyRecordProof(r io.Reader) (*RecordProof, error) {
	var file recordProofJSON
	if err := readProof(r, maxRecordProof, &file); err != nil {
		return nil, err
	}
	if file.Format != recordFormat || file.Version != RecordVersion {
		return nil, fmt.Errorf("%w: it is %q of version %d, this software reads %q of version %d", ErrBadProof, file.Format,
			file.Version, recordFormat, RecordVersion)
	}
	data, err := strictBase64.DecodeString(file.Data)
	if err != nil {
		return nil, fmt.Errorf("%w: data: %w", ErrBadProof, err)
	}
	p := &RecordProof{Head: Head{Records: file.Head.Records, Tree: pow.Hash(file.Head.Tree)}, Number: file.Number,
		Record: Record{Index: file.Index, Term: file.Term, Data: data}, Path: pathFrom(file.Path)}
	if err := p.Verify(); err != nil {
		return nil, err
	}
	entry, err := p.Entry()
	if err != nil {
		return nil, err
	}
	var said bytes.Buffer
	if err := json.Compact(&said, file.Entry); err != nil || !bytes.Equal(said.Bytes(), Readable(p.Record, entry, fsm.Result{})) {
		return nil, fmt.Errorf("%w: what it says of the entry is not what the data holds", ErrBadProof)
	}
	return p, nil
}

// readProof reads one JSON object of at most limit bytes.
func readProof(r io.Reader, limit int64, into any) error {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return fmt.Errorf("read proof: %w", err)
	}
	if int64(len(text)) > limit {
		return fmt.Errorf("it is larger than %d bytes: %w", limit, ErrBadProof)
	}
	in := json.NewDecoder(bytes.NewReader(text))
	in.DisallowUnknownFields()
	if err = in.Decode(into); err == nil && in.More() {
		err = errors.New("there is more after it")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadProof, err)
	}
	return nil
}
