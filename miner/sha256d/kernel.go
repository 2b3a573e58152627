package sha256d

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"raftmine/fsm/pow"
)

// Errors of the selection.
var (
	ErrUnknownKernel     = errors.New("unknown kernel")
	ErrUnavailableKernel = errors.New("kernel not available on this machine")
)

// Job is what all nonces of one search share. It is read-only once made, and searchers may be given it by several
// goroutines at once.
type Job struct {
	Work      pow.Work
	Midstate  [8]uint32 // the state after the first block, H0 to H7 (FIPS 180-4 §6.2.2)
	Timestamp string    // decimal, 1 to 20 digits

	state []byte // the midstate as crypto/sha256 marshals it
}

// NewJob computes what the nonces of work share.
func NewJob(work pow.Work) *Job {
	first := sha256.New().(state)
	first.Write(hex.AppendEncode(nil, work.Previous[:]))
	j := &Job{Work: work, Timestamp: strconv.FormatUint(work.Timestamp, 10)}
	j.state, _ = first.AppendBinary(nil) // never an error
	for i := range j.Midstate {
		j.Midstate[i] = binary.BigEndian.Uint32(j.state[stateOffset+4*i:])
	}
	return j
}

// state is what crypto/sha256 returns: a hash whose inner state can be taken out and put back.
type state interface {
	hash.Hash
	encoding.BinaryAppender
	encoding.BinaryUnmarshaler
}

// How crypto/sha256 marshals its state: a magic of 4 bytes, H0 to H7 big endian, the buffered input (zeros when there
// is none) and the length. TestStateLayout holds it.
const (
	stateOffset = 4
	stateSize   = stateOffset + sha256.Size + sha256.BlockSize + 8
)

// Searcher is one goroutine's use of a kernel. It owns scratch memory, so a call allocates nothing.
type Searcher interface {
	// Search tries the nonces of nonces in ascending order from First on, and writes every nonce whose digest's first
	// word (big endian) is at or below threshold into hits, ascending; perhaps others too. It stops at Last, or with the
	// nonce that fills hits, or after about a millisecond. It returns how many hits there are and how many nonces were
	// tried: at least one, and never more than nonces holds.
	//
	// hits must not be empty and nonces must be valid.
	Search(job *Job, nonces pow.Range, threshold uint32, hits []uint64) (found int, tried uint64)
}

// Kernel is one implementation of the search.
type Kernel struct {
	Name      string          // for people, flags and reports
	Available func() bool     // whether this machine can run it
	New       func() Searcher // only when available
}

// kernels is the selection table, the fastest first.
var kernels = []Kernel{
	{Name: "generic", Available: func() bool { return true }, New: newGeneric},
}

// Kernels returns every kernel of this build, available or not, the fastest first.
func Kernels() []Kernel { return append([]Kernel(nil), kernels...) }

// Best returns the kernel to use on this machine.
func Best() Kernel {
	for _, k := range kernels {
		if k.Available() {
			return k
		}
	}
	return kernels[len(kernels)-1] // the last is generic, which is always available
}

// ByName returns the kernel of that name. It returns ErrUnknownKernel, or ErrUnavailableKernel when this machine cannot
// run it.
func ByName(name string) (Kernel, error) {
	var names []string
	for _, k := range kernels {
		if k.Name == name {
			if !k.Available() {
				return Kernel{}, fmt.Errorf("%w: %q", ErrUnavailableKernel, name)
			}
			return k, nil
		}
		names = append(names, k.Name)
	}
	return Kernel{}, fmt.Errorf("%w %q, want one of %s", ErrUnknownKernel, name, strings.Join(names, ", "))
}
