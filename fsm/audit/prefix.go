package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"raftmine/fsm/pow"
)

const (
	prefixFormat = "raftmine prefix proof"
	// PrefixVersion stands in every prefix proof. Protocol.
	PrefixVersion = 1
	maxPrefixSize = 64 << 10 // a path has at most one hash more than the tree has levels
)

// PrefixProof shows that the history of Head begins with that of Older, with a few hashes and without any record. Of both
// heads only Records and Tree are set. Whoever keeps Older learns from it that nothing was changed up to there; that Head is
// the cluster's he learns elsewhere.
type PrefixProof struct {
	Older, Head Head
	Path        Path
}

type prefixJSON struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Older   treeJSON  `json:"older"`
	Head    treeJSON  `json:"head"`
	Path    []hexHash `json:"path"`
}

// ProveOlder proves that a history begins with that of an older head. open is called twice and gives the same history, or
// one that has grown. A history that does not hold, or does not begin so, proves nothing.
func ProveOlder(open func() (Records, error), older Head) (*PrefixProof, error) {
	records, err := open()
	if err != nil {
		return nil, err
	}
	older = Head{Records: older.Records, Tree: older.Tree}
	report, err := Replay(records, Options{Known: []Head{older}})
	if err != nil {
		return nil, err
	}
	if first, found := report.First(); found {
		return nil, first
	}
	if records, err = open(); err != nil {
		return nil, err
	}
	p := &PrefixProof{Older: older, Head: Head{Records: report.Head.Records, Tree: report.Head.Tree}}
	if p.Path, err = ProvePrefix(records, p.Head, older.Records); err != nil {
		return nil, err
	}
	return p, p.Verify()
}

// Verify checks the proof with nothing but what it holds. Errors wrap ErrBadProof.
func (p *PrefixProof) Verify() error { return CheckPrefix(p.Path, p.Head, p.Older) }

// WriteTo writes the proof as JSON.
func (p *PrefixProof) WriteTo(w io.Writer) (int64, error) {
	file := prefixJSON{Format: prefixFormat, Version: PrefixVersion, Older: treeJSON{p.Older.Records, hexHash(p.Older.Tree)},
		Head: treeJSON{p.Head.Records, hexHash(p.Head.Tree)}, Path: p.Path.hex()}
	text, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return 0, err
	}
	n, err := w.Write(append(text, '\n'))
	return int64(n), err
}

// StartsPrefixProof reports whether what begins so is a prefix proof of any version, and no proof of a block.
func StartsPrefixProof(start []byte) bool { return startsAs(start, prefixFormat) }

func startsAs(start []byte, format string) bool {
	in := json.NewDecoder(bytes.NewReader(start))
	for _, want := range []json.Token{json.Delim('{'), "format", format} {
		if token, err := in.Token(); err != nil || token != want {
			return false
		}
	}
	return true
}

// VerifyPrefixProof reads a proof and checks it. Errors that are not the reader's own wrap ErrBadProof.
func VerifyPrefixProof(r io.Reader) (*PrefixProof, error) {
	var file prefixJSON
	if err := readProof(r, maxPrefixSize, &file); err != nil {
		return nil, err
	}
	if file.Format != prefixFormat || file.Version != PrefixVersion {
		return nil, fmt.Errorf("%w: it is %q of version %d, this software reads %q of version %d", ErrBadProof, file.Format,
			file.Version, prefixFormat, PrefixVersion)
	}
	p := &PrefixProof{Older: Head{Records: file.Older.Records, Tree: pow.Hash(file.Older.Tree)},
		Head: Head{Records: file.Head.Records, Tree: pow.Hash(file.Head.Tree)}, Path: pathFrom(file.Path)}
	return p, p.Verify()
}
