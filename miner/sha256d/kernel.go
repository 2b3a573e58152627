package sha256d

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"raftmine/fsm/pow"
)

// Errors of the selection.
var (
	ErrUnknownKernel     = errors.New("unknown kernel")
	ErrUnavailableKernel = errors.New("not available on this machine")
	ErrWrongKernel       = errors.New("finds other nonces than the reference on this machine")
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
	// nonce that fills hits, or after less than a millisecond. It returns how many hits there are and how many nonces were
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

// kernels is the selection table, the fastest first. The last one, generic, is always available.
var kernels = append(machineKernels, Kernel{Name: "generic", Available: func() bool { return true }, New: newGeneric})

// Kernels returns every kernel of this build, available or not, the fastest first.
func Kernels() []Kernel { return append([]Kernel(nil), kernels...) }

// Best returns the kernel to use on this machine: the one that was fastest in a short measurement, which the first call
// makes. It takes a few milliseconds.
func Best() Kernel { return best() }

var best = sync.OnceValue(func() Kernel { return fastest(kernels) })

// How the kernels are measured: in turns, and each kernel's shortest turn counts, so that a busy machine disturbs the
// order little. (tuning)
const (
	measuredTurns = 7
	measuredFirst = 1_000_000_000
	measuredLast  = measuredFirst + 2400 - 1 // 50 to 400 microseconds
)

var checkedJob = NewJob(pow.Work{Timestamp: 1_790_000_000_000})

// checkedRanges are what a kernel is compared with generic on before it is used: the nonces around the changes to 9 and
// to 10 digits, long enough for each way that a kernel works.
var checkedRanges = []pow.Range{{First: 99_999_000, Last: 100_001_299}, {First: 999_998_700, Last: measuredLast}}

// checkedThreshold makes one nonce in 32 a hit: some 190.
const checkedThreshold = 1 << 27

var checkedHits = sync.OnceValue(func() [][]uint64 { return checkHits(newGeneric()) })

func checkHits(searcher Searcher) (hits [][]uint64) {
	for _, r := range checkedRanges {
		hits = append(hits, searchHits(searcher, checkedJob, r, checkedThreshold))
	}
	return hits
}

// sound reports whether a kernel, which is available, finds what generic finds. It takes a millisecond. The tests say so
// too, but not every kernel could be tested on every processor: some were run under emulation only. A kernel that misses
// nonces would look like one that works, and its receipts would make a liar of its miner.
func sound(searcher Searcher) bool {
	return slices.EqualFunc(checkHits(searcher), checkedHits(), slices.Equal[[]uint64])
}

// fastest returns the fastest of the available kernels in the table. It measures instead of trusting the processor's
// flags: the same instructions are fast on one processor and microcode on another, and may be switched off below us. A
// kernel that is not sound is passed over.
func fastest(table []Kernel) Kernel {
	type candidate struct {
		kernel   Kernel
		searcher Searcher
		took     time.Duration
	}
	var candidates []candidate
	for _, k := range table {
		if !k.Available() {
			continue
		}
		if searcher := k.New(); sound(searcher) {
			candidates = append(candidates, candidate{k, searcher, math.MaxInt64})
		}
	}
	for range measuredTurns {
		for i := range candidates {
			c := &candidates[i]
			start := time.Now()
			searchHits(c.searcher, checkedJob, pow.Range{First: measuredFirst, Last: measuredLast}, 0)
			c.took = min(c.took, time.Since(start))
		}
	}
	first := 0
	for i := range candidates {
		if candidates[i].took < candidates[first].took {
			first = i
		}
	}
	return candidates[first].kernel // generic at least is sound
}

// searchHits returns all hits of a range.
func searchHits(searcher Searcher, job *Job, nonces pow.Range, threshold uint32) []uint64 {
	var all []uint64
	var hits [64]uint64
	for {
		found, tried := searcher.Search(job, nonces, threshold, hits[:])
		all = append(all, hits[:found]...)
		if tried > nonces.Last-nonces.First {
			return all
		}
		nonces.First += tried
	}
}

// ByName returns the kernel of that name. It returns ErrUnknownKernel, or ErrUnavailableKernel when this machine cannot
// run it, both with the names of those that it can, or ErrWrongKernel when it runs and is not sound here.
func ByName(name string) (Kernel, error) { return byName(kernels, name) }

func byName(table []Kernel, name string) (Kernel, error) {
	wrong := fmt.Errorf("%w %q", ErrUnknownKernel, name)
	var names []string
	for _, k := range table {
		available := k.Available()
		if available {
			names = append(names, k.Name)
		}
		switch {
		case k.Name != name:
		case !available:
			wrong = fmt.Errorf("kernel %q is %w", name, ErrUnavailableKernel)
		case !sound(k.New()):
			return Kernel{}, fmt.Errorf("kernel %q %w", name, ErrWrongKernel)
		default:
			return k, nil
		}
	}
	return Kernel{}, fmt.Errorf("%w, want one of %s", wrong, strings.Join(names, ", "))
}
