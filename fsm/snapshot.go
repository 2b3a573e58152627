package fsm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"raftmine/fsm/fsmpb"
	"raftmine/fsm/pow"
)

// SnapshotVersion is the format version that WriteTo writes. Protocol: see EntryVersion.
const SnapshotVersion = 1

const (
	snapshotMagic = "RAFTMINE"
	// maxPart bounds what a reader allocates before it has seen the bytes. A part of rowsPerPart rows, each with its
	// longest texts, stays below it: a server row is the largest, with at most 5 KiB.
	maxPart     = 1 << 20
	rowsPerPart = 128
)

// ErrBadSnapshot is returned for bytes that are no snapshot of a known version, or one whose state cannot be.
var ErrBadSnapshot = errors.New("snapshot cannot be restored")

// Snapshot is the state at one log index. It shares nothing with its State that changes, so it may be written while the
// State is applied to.
type Snapshot struct {
	clusterID   string
	stopped     bool
	office      Office
	head        Head
	recovery    *Recover
	servers     []Server
	job         *Job
	cursor      uint64
	returned    []run
	lastGrantID uint64
	grants      []Grant
	miners      []Miner
	forgotten   Miner
	blocks      []Block
	blockChain  pow.Hash
}

// Snapshot copies what may change. Its cost grows with servers, grants and miners, but neither with blocks nor chunks.
func (s *State) Snapshot() *Snapshot {
	snapshot := s.share()
	snapshot.servers = slices.Clone(snapshot.servers)
	snapshot.returned = slices.Clone(snapshot.returned)
	if s.job != nil {
		job := s.job.clone()
		snapshot.job = &job
	}
	return snapshot
}

// share returns a snapshot that is valid only while the state does not change.
func (s *State) share() *Snapshot {
	grants := make([]Grant, len(s.work.grants))
	for i, g := range s.work.grants {
		grants[i] = g.Grant
	}
	return &Snapshot{
		clusterID:   s.clusterID,
		stopped:     s.stopped,
		office:      s.office,
		head:        s.head,
		recovery:    s.recovery,
		servers:     s.servers,
		job:         s.job,
		cursor:      s.work.cursor,
		returned:    s.work.returned,
		lastGrantID: s.lastGrantID,
		grants:      grants,
		miners:      s.Miners(),
		forgotten:   s.forgotten,
		blocks:      s.blocks[:len(s.blocks):len(s.blocks)],
		blockChain:  s.blockChain,
	}
}

// Head returns the end of the history that the snapshot stands for.
func (s *Snapshot) Head() Head { return s.head }

// WriteTo writes the snapshot in pieces, so that it needs little memory. The layout is in snapshot.proto.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	counter := &countingWriter{w: w}
	out := bufio.NewWriterSize(counter, 64<<10)
	if err := s.write(out); err != nil {
		return counter.n, fmt.Errorf("write snapshot: %w", err)
	}
	if err := out.Flush(); err != nil {
		return counter.n, fmt.Errorf("write snapshot: %w", err)
	}
	return counter.n, nil
}

func (s *Snapshot) write(out *bufio.Writer) error {
	if _, err := out.Write(append([]byte(snapshotMagic), SnapshotVersion)); err != nil {
		return err
	}
	var buffer []byte
	for part := range s.parts() {
		var err error
		buffer, err = proto.MarshalOptions{Deterministic: true}.MarshalAppend(buffer[:0], part)
		if err != nil {
			return err
		}
		if len(buffer) > maxPart {
			return fmt.Errorf("part of %d bytes, want at most %d", len(buffer), maxPart)
		}
		if _, err := out.Write(binary.AppendUvarint(nil, uint64(len(buffer)))); err != nil {
			return err
		}
		if _, err := out.Write(buffer); err != nil {
			return err
		}
	}
	digest := s.Digest()
	_, err := out.Write(append([]byte{0}, digest[:]...))
	return err
}

// countingWriter counts what reached w.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(data []byte) (int, error) {
	n, err := c.w.Write(data)
	c.n += int64(n)
	return n, err
}

// ReadSnapshot reads what WriteTo wrote, to the end of r. It trusts nothing: every invariant of the state is checked,
// every proof verified, and the digest compared. Errors of r itself are returned as they are; all others wrap
// ErrBadSnapshot.
func ReadSnapshot(r io.Reader) (*State, error) {
	state, stored, err := readState(bufio.NewReaderSize(r, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	if digest := state.Digest(); digest != stored {
		return nil, fmt.Errorf("read snapshot: %w: its state has digest %s, its end says %s", ErrBadSnapshot, digest, stored)
	}
	return state, nil
}

// readState reads a checked state and the digest that is stored with it.
func readState(in *bufio.Reader) (state *State, stored pow.Hash, err error) {
	start := make([]byte, len(snapshotMagic)+1)
	if err := readFull(in, start); err != nil {
		return nil, stored, err
	}
	if string(start[:len(snapshotMagic)]) != snapshotMagic {
		return nil, stored, fmt.Errorf("%w: it does not start with %q", ErrBadSnapshot, snapshotMagic)
	}
	if version := start[len(snapshotMagic)]; version != SnapshotVersion {
		return nil, stored, fmt.Errorf("%w: version %d, this software reads version %d: install the version that wrote it",
			ErrBadSnapshot, version, SnapshotVersion)
	}
	loader := loader{state: New()}
	var buffer []byte
	for {
		size, err := readLength(in)
		if err != nil {
			return nil, stored, err
		}
		if size == 0 {
			break
		}
		buffer = slices.Grow(buffer[:0], int(size))[:size]
		if err := readFull(in, buffer); err != nil {
			return nil, stored, err
		}
		var part fsmpb.SnapshotPart
		if err := proto.Unmarshal(buffer, &part); err != nil {
			return nil, stored, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
		}
		if err := checkKnown(part.ProtoReflect()); err != nil {
			return nil, stored, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
		}
		if err := loader.load(&part); err != nil {
			return nil, stored, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
		}
	}
	if err := readFull(in, stored[:]); err != nil {
		return nil, stored, err
	}
	if _, err := in.ReadByte(); err == nil {
		return nil, stored, fmt.Errorf("%w: bytes after its end", ErrBadSnapshot)
	} else if !errors.Is(err, io.EOF) {
		return nil, stored, err
	}
	if !loader.begun {
		return nil, stored, fmt.Errorf("%w: no header", ErrBadSnapshot)
	}
	if err := loader.state.Check(); err != nil {
		return nil, stored, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	}
	return loader.state, stored, nil
}

// readFull reads len(into) bytes. A file that ends too early is bad; another error is the reader's own.
func readFull(in *bufio.Reader, into []byte) error {
	_, err := io.ReadFull(in, into)
	return cut(err)
}

func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut off", ErrBadSnapshot)
	}
	return err
}

// readLength reads a part's length.
func readLength(in *bufio.Reader) (uint64, error) {
	var size uint64
	for shift := 0; shift < 21; shift += 7 { // maxPart has 21 bits
		b, err := in.ReadByte()
		if err != nil {
			return 0, cut(err)
		}
		size |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if size > maxPart {
				break
			}
			return size, nil
		}
	}
	return 0, fmt.Errorf("%w: a part is larger than %d bytes", ErrBadSnapshot, maxPart)
}
