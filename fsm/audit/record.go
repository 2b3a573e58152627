package audit

import (
	"encoding/binary"
	"errors"
	"iter"

	"golang.org/x/mod/sumdb/tlog"

	"raftmine/fsm/pow"
)

// Errors of this package.
var (
	// ErrBroken: the history is not what was written: a record was changed, removed, moved or cut off. The error that
	// wraps it names the index.
	ErrBroken = errors.New("history is broken")
	// ErrBadExport: the file is no export of a known version, or one of its lines cannot be read.
	ErrBadExport = errors.New("not a readable export")
	// ErrBadProof: a proof does not prove what it says.
	ErrBadProof = errors.New("proof does not hold")
	// ErrNoProof: the file is not even meant as a proof. It is an ErrBadProof too.
	ErrNoProof = errors.New("it is no proof")
	// ErrInterrupted: the source could not be read to its end, for a reason that says nothing about the history.
	ErrInterrupted = errors.New("history could not be read")
	// ErrNotFound: the history has no such record or block.
	ErrNotFound = errors.New("not in the history")
)

// Record is one applied Raft entry. Data and Readable are valid only until the next record is asked for.
type Record struct {
	Index, Term uint64
	Data        []byte   // as stored in the log
	Chain       pow.Hash // head of the history after this record, as it was stored with it (fsm.Head.Hash)
	// Readable is what an export says that Data holds; nil when the source says nothing. Replay compares.
	Readable []byte
}

// Records is a history in index order, from its first record on. After an error there is nothing more.
type Records = iter.Seq2[Record, error]

// Head is the end of a history. Two histories with the same Chain are the same, and so are two with the same Records and
// Tree; State is the digest of what they came to.
type Head struct {
	Records     uint64
	Index, Term uint64   // of the last record
	Chain       pow.Hash // fsm.Head.Hash
	Tree        pow.Hash // root of the Merkle tree over the records
	State       pow.Hash // fsm.State.Digest
}

// Place is where something stands in a history.
type Place struct {
	Record    uint64 // counted from 0: the leaf of the Merkle tree
	Index     uint64
	Term      uint64
	Command   int    // in the entry, from 0
	UnixMilli uint64 // the leader's wall clock
}

// appendLeaf appends the bytes of a leaf: what the chain hashes of a record, without the hash before it. That is index,
// term and length of the data, 8 bytes big endian each, and the data.
func appendLeaf(dst []byte, index, term uint64, data []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, index)
	dst = binary.BigEndian.AppendUint64(dst, term)
	dst = binary.BigEndian.AppendUint64(dst, uint64(len(data)))
	return append(dst, data...)
}

// leafHash is RFC 6962's hash of a leaf, SHA256(0x00 || leaf).
func leafHash(index, term uint64, data []byte) tlog.Hash {
	return tlog.RecordHash(appendLeaf(nil, index, term, data))
}
