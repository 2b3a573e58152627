package audit

import (
	"crypto/sha256"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"raftmine/fsm/pow"
)

// tree builds the Merkle tree over the records (RFC 6962 §2.1) leaf by leaf and keeps one hash a level. Nodes whose
// stored-hash index is in wanted are kept there when they are complete.
type tree struct {
	leaves int64
	peaks  []peak // complete subtrees, the largest first
	wanted map[int64]tlog.Hash
	buffer []byte
}

type peak struct {
	level int
	hash  tlog.Hash
}

// add appends a record.
func (t *tree) add(index, term uint64, data []byte) {
	t.buffer = appendLeaf(append(t.buffer[:0], 0), index, term, data)
	top := peak{hash: sha256.Sum256(t.buffer)} // as tlog.RecordHash, without its copies
	n := t.leaves
	t.leaves++
	t.complete(top, n)
	for len(t.peaks) > 0 && t.peaks[len(t.peaks)-1].level == top.level {
		left := t.peaks[len(t.peaks)-1]
		t.peaks = t.peaks[:len(t.peaks)-1]
		n /= 2
		top = peak{level: top.level + 1, hash: nodeHash(left.hash, top.hash)}
		t.complete(top, n)
	}
	t.peaks = append(t.peaks, top)
}

func (t *tree) complete(p peak, n int64) {
	if len(t.wanted) == 0 {
		return
	}
	at := tlog.StoredHashIndex(p.level, n)
	if _, found := t.wanted[at]; found {
		t.wanted[at] = p.hash
	}
}

// nodeHash is tlog.NodeHash without its allocations.
func nodeHash(left, right tlog.Hash) tlog.Hash {
	var buffer [1 + 2*tlog.HashSize]byte
	buffer[0] = 1
	copy(buffer[1:], left[:])
	copy(buffer[1+tlog.HashSize:], right[:])
	return sha256.Sum256(buffer[:])
}

// root returns the root of the tree so far; that of no records is SHA-256 of nothing.
func (t *tree) root() pow.Hash {
	if len(t.peaks) == 0 {
		return sha256.Sum256(nil)
	}
	hash := t.peaks[len(t.peaks)-1].hash
	for i := len(t.peaks) - 2; i >= 0; i-- {
		hash = nodeHash(t.peaks[i].hash, hash)
	}
	return pow.Hash(hash)
}

// Path is the hashes of an inclusion or consistency proof, as package tlog orders them.
type Path []pow.Hash

func pathOf(hashes []tlog.Hash) Path {
	path := make(Path, len(hashes))
	for i, hash := range hashes {
		path[i] = pow.Hash(hash)
	}
	return path
}

// hex is the path's form in files.
func (p Path) hex() []hexHash {
	path := make([]hexHash, len(p))
	for i, hash := range p {
		path[i] = hexHash(hash)
	}
	return path
}

func pathFrom(hashes []hexHash) Path {
	path := make(Path, len(hashes))
	for i, hash := range hashes {
		path[i] = pow.Hash(hash)
	}
	return path
}

func (p Path) hashes() []tlog.Hash {
	hashes := make([]tlog.Hash, len(p))
	for i, hash := range p {
		hashes[i] = tlog.Hash(hash)
	}
	return hashes
}

// CheckInclusion reports whether the record, counted from 0, is in the tree of a head.
func CheckInclusion(path Path, head Head, number uint64, record Record) error {
	if number >= head.Records || head.Records > maxRecords {
		return fmt.Errorf("number %d, counted from 0, of %d records: %w", number, head.Records, ErrBadProof)
	}
	err := tlog.CheckRecord(path.hashes(), int64(head.Records), tlog.Hash(head.Tree), int64(number),
		leafHash(record.Index, record.Term, record.Data))
	if err != nil {
		return fmt.Errorf("record %d is not number %d, counted from 0, of the tree %s: %w", record.Index, number, head.Tree, ErrBadProof)
	}
	return nil
}

// CheckPrefix reports whether the history of head begins with that of older. Only Records and Tree of both count.
func CheckPrefix(path Path, head, older Head) error {
	if older.Records == 0 || older.Records > head.Records || head.Records > maxRecords {
		return fmt.Errorf("%d records as the beginning of %d: %w", older.Records, head.Records, ErrBadProof)
	}
	err := tlog.CheckTree(path.hashes(), int64(head.Records), tlog.Hash(head.Tree), int64(older.Records), tlog.Hash(older.Tree))
	if err != nil {
		return fmt.Errorf("the tree %s of %d records is no beginning of %s: %w", older.Tree, older.Records, head.Tree, ErrBadProof)
	}
	return nil
}

// maxRecords keeps tree arithmetic within int64.
const maxRecords = 1 << 56

// proofs collects the paths that want asks for in one pass over the records. want is called twice: to learn which
// hashes it reads, and to give it those.
func proofs(records Records, head Head, visit func(number uint64, record Record), want func(tlog.HashReader) error) error {
	t := tree{wanted: make(map[int64]tlog.Hash)}
	if err := want(tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		for _, at := range indexes {
			t.wanted[at] = tlog.Hash{}
		}
		return make([]tlog.Hash, len(indexes)), nil
	})); err != nil {
		return err
	}
	for record, err := range records {
		if err != nil {
			return err
		}
		if uint64(t.leaves) == head.Records {
			break // a running server has written more meanwhile
		}
		if visit != nil {
			visit(uint64(t.leaves), record)
		}
		t.add(record.Index, record.Term, record.Data)
	}
	if uint64(t.leaves) != head.Records || t.root() != head.Tree {
		return fmt.Errorf("the history of %d records has tree %s, not %s: %w", t.leaves, t.root(), head.Tree, ErrBroken)
	}
	return want(tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, at := range indexes {
			hashes[i] = t.wanted[at]
		}
		return hashes, nil
	}))
}

// ProveInclusion returns the path of the record with that number, counted from 0, and the record. The head is one that
// Replay gave for these records, or for a beginning of them.
func ProveInclusion(records Records, head Head, number uint64) (path Path, proved Record, err error) {
	if number >= head.Records {
		return nil, Record{}, fmt.Errorf("number %d, counted from 0, of %d records: %w", number, head.Records, ErrNotFound)
	}
	visit := func(n uint64, record Record) {
		if n == number {
			proved = record
			proved.Data = append([]byte(nil), record.Data...)
		}
	}
	err = proofs(records, head, visit, func(r tlog.HashReader) error {
		hashes, err := tlog.ProveRecord(int64(head.Records), int64(number), r)
		path = pathOf(hashes)
		return err
	})
	if err != nil {
		return nil, Record{}, fmt.Errorf("prove number %d, counted from 0, of the records: %w", number, err)
	}
	return path, proved, nil
}

// ProvePrefix returns the path that shows that the first older records of head's history are the beginning of it.
func ProvePrefix(records Records, head Head, older uint64) (path Path, err error) {
	if older == 0 || older > head.Records {
		return nil, fmt.Errorf("a beginning of %d records of %d: %w", older, head.Records, ErrNotFound)
	}
	err = proofs(records, head, nil, func(r tlog.HashReader) error {
		hashes, err := tlog.ProveTree(int64(head.Records), int64(older), r)
		path = pathOf(hashes)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("prove the first %d records: %w", older, err)
	}
	return path, nil
}
