package raftnode

import (
	"encoding/binary"
	"fmt"

	"raftmine/fsm"
)

// What one message of Raft's may hold. Raft's decoder makes room for as many bytes or entries as a message announces, before
// one of them has come, so what is announced is looked at before the decoder gets it. Protocol: an honest server says no more.
const (
	maxRaftEntries = 64               // in one AppendEntries; raftConfig
	maxRaftBytes   = fsm.MaxEntrySize // of one entry; the configuration and all else is smaller
	maxRaftAnswer  = 64 << 10         // bytes of one value of an answer
	maxRaftFields  = 31               // of a structure; the largest has 13
	maxRaftName    = 31               // bytes of a field's name
	maxRaftDepth   = 3                // request, entries, entry
)

const (
	raftInstallSnapshot = 2      // the library's type byte: Size bytes follow this message
	raftSnapshotSize    = "Size" // the library's field
)

// raftMessages follows what one side of a Raft connection says, and refuses what is beyond the limits. A request is a
// type byte and a structure, an answer a text and a structure. Both are MessagePack, of which only what the library writes is
// taken: its decoder reads much else leniently, and the two must never disagree where a value ends.
type raftMessages struct {
	answers bool // else they are requests

	requests int    // that have come whole; of a snapshot, what precedes it
	ending   bool   // a request, but for the bytes of its last value
	typed    bool   // the type byte of the request has come
	kind     byte   // that byte
	size     uint64 // of the snapshot that follows
	open     [maxRaftDepth]raftContainer
	depth    int    // of open
	head     []byte // of a value: its first byte and what says how long it is, or which number
	field    []byte // of the outermost structure
	fieldEnd int    // bytes of field that are yet to come
	skip     uint64 // bytes that have no meaning here
}

// raftContainer is an array or a structure that has not ended.
type raftContainer struct {
	left  int // values, in a structure names too
	named bool
}

// see takes the next bytes, however they were cut. After an error nothing more may be read.
func (m *raftMessages) see(p []byte) error {
	for len(p) > 0 {
		switch {
		case m.fieldEnd > 0:
			n := min(m.fieldEnd, len(p))
			m.field, m.fieldEnd, p = append(m.field, p[:n]...), m.fieldEnd-n, p[n:]
		case m.skip > 0:
			n := min(m.skip, uint64(len(p)))
			m.skip, p = m.skip-n, p[n:]
			m.count()
		case !m.answers && !m.typed:
			m.typed, m.kind, m.size, p = true, p[0], 0, p[1:]
		default:
			m.head, p = append(m.head, p[0]), p[1:]
			if len(m.head) <= argumentSize(m.head[0]) {
				continue
			}
			if err := m.value(m.head[0], argument(m.head[1:])); err != nil {
				return fmt.Errorf("raft message refused: %w", err)
			}
			m.head = m.head[:0]
		}
	}
	return nil
}

// argumentSize returns how many bytes after its first one say how long a value is, or which number (MessagePack
// specification, formats). Values that have none, and those that are refused, have 0.
func argumentSize(first byte) int {
	switch first {
	case 0xc4, 0xcc, 0xd0, 0xd9:
		return 1
	case 0xc5, 0xcd, 0xd1, 0xda, 0xdc, 0xde:
		return 2
	case 0xc6, 0xce, 0xd2, 0xdb, 0xdd, 0xdf:
		return 4
	case 0xcf, 0xd3:
		return 8
	}
	return 0
}

func argument(b []byte) uint64 {
	var whole [8]byte
	copy(whole[8-len(b):], b)
	return binary.BigEndian.Uint64(whole[:])
}

// value takes a value whose head is complete.
func (m *raftMessages) value(first byte, n uint64) error {
	name := m.depth > 0 && m.open[m.depth-1].named && m.open[m.depth-1].left%2 == 0
	size := m.depth == 1 && !name && string(m.field) == raftSnapshotSize
	switch {
	case first >= 0xa0 && first <= 0xbf:
		return m.bytes(uint64(first&0x1f), name, size)
	case first >= 0xd9 && first <= 0xdb, first >= 0xc4 && first <= 0xc6:
		return m.bytes(n, name, size)
	case name:
		return fmt.Errorf("a field's name is of type %#x", first)
	case first >= 0x80 && first <= 0x8f:
		return m.container(uint64(first&0x0f), true, size)
	case first == 0xde, first == 0xdf:
		return m.container(n, true, size)
	case first >= 0x90 && first <= 0x9f:
		return m.container(uint64(first&0x0f), false, size)
	case first == 0xdc, first == 0xdd:
		return m.container(n, false, size)
	case m.depth == 0 && !(m.answers && first == 0xc0): // with an error there may be no structure
		return fmt.Errorf("a value of type %#x where a structure belongs", first)
	case first <= 0x7f:
		n = uint64(first)
	case first >= 0xcc && first <= 0xcf, first >= 0xd0 && first <= 0xd3 && n>>(8*argumentSize(first)-1) == 0:
	case size:
		return fmt.Errorf("a snapshot's size of type %#x, or below zero", first)
	case first >= 0xe0, first >= 0xd0 && first <= 0xd3, first == 0xc0, first == 0xc2, first == 0xc3:
	default:
		return fmt.Errorf("a value of type %#x", first)
	}
	if size {
		m.size = n
	}
	m.ended()
	return nil
}

func (m *raftMessages) bytes(n uint64, name, size bool) error {
	limit := uint64(maxRaftBytes)
	switch {
	case name:
		limit = maxRaftName
	case m.answers:
		limit = maxRaftAnswer
	case m.depth == 0 || size:
		return fmt.Errorf("text where there is none")
	}
	if n > limit {
		return fmt.Errorf("a value of %d bytes, want at most %d", n, limit)
	}
	if name && m.depth == 1 {
		m.field, m.fieldEnd = m.field[:0], int(n)
	} else {
		m.skip = n
	}
	m.ended()
	return nil
}

func (m *raftMessages) container(n uint64, named, size bool) error {
	switch {
	case size, !named && (m.answers || m.depth != 1), m.depth == maxRaftDepth:
		return fmt.Errorf("a list or structure at depth %d", m.depth)
	case named && n > maxRaftFields:
		return fmt.Errorf("a structure of %d fields, want at most %d", n, maxRaftFields)
	case !named && n > maxRaftEntries:
		return fmt.Errorf("a list of %d values, want at most %d", n, maxRaftEntries)
	}
	left := int(n)
	if named {
		left = 2 * left
	}
	m.open[m.depth] = raftContainer{left, named}
	m.depth++
	m.close()
	return nil
}

// ended counts a value, or a name, and closes what ends with it.
func (m *raftMessages) ended() {
	if m.depth > 0 {
		m.open[m.depth-1].left--
	}
	m.close()
}

func (m *raftMessages) close() {
	for m.depth > 0 && m.open[m.depth-1].left == 0 {
		if m.depth--; m.depth > 0 {
			m.open[m.depth-1].left--
		}
	}
	if m.depth > 0 || m.answers {
		return
	}
	m.typed, m.field, m.ending = false, m.field[:0], true
	if m.kind != raftInstallSnapshot {
		m.size = 0
	}
	m.skip += m.size // the last value's own bytes come first
	m.count()
}

func (m *raftMessages) count() {
	if m.ending && m.skip <= m.size {
		m.ending = false
		m.requests++
	}
}
