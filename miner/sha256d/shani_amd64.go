//go:build !purego

package sha256d

import "unsafe"

const (
	shaniDecades = 64                // decades in one run: 30 microseconds (tuning)
	shaniRun     = 10 * shaniDecades // nonces
	shaniLimit   = 10 * shaniRun     // nonces in one call: a third of a millisecond (tuning)
)

// shaniBlock is what the SHA-NI kernel works on. All quads are four words, W[t] first; they and the block itself are
// aligned to 16 bytes, as legacy instructions want it.
type shaniBlock struct {
	midstate  [8]uint32               // as the instructions want it: F, E, B, A, H, G, D, C
	tail      [12]uint32              // W4 to W15, the same for all nonces
	tailK     [12]uint32              // the same with the round constants
	align4    [4]uint32               // W9 to W12
	part5     [4]uint32               // W4 to W7, each with sigma0 of the word after it
	part6     [4]uint32               // W8 to W11, likewise
	threshold [4]uint32               // the last word counts
	digits    [10][4]uint32           // what each last digit adds to W0 to W3
	quads     [5][4][4]uint32         // the kernel's own: each chain's latest four quads
	decades   [shaniDecades][4]uint32 // W0 to W3 of each decade's first nonce
	hits      [shaniRun]uint16        // nonces counted from the first decade's, ascending
}

// shaniSearch tries the ten nonces of each of the first decades of b.decades, at least one and at most all, and writes
// those whose digest's first word is at or below the threshold into b.hits: the same as generic finds, no more and no
// fewer. The nonces' digits must end in W3 or before. It needs SHA, AVX and SSE4.1.
//
//go:noescape
func shaniSearch(b *shaniBlock, decades int) (found int)

// shani is the SHA-NI kernel for what shaniWide leaves out, other numbers of digits than 9 and 10 above all: five nonces' rounds
// interleaved.
type shani struct {
	job     *Job
	message message
	search  func(b *shaniBlock, decades int) (found int)
	b       *shaniBlock
	memory  [unsafe.Sizeof(shaniBlock{}) + 15]byte // of b
}

func newSHANIDecades() Searcher {
	s := &shani{search: shaniSearch}
	s.b = (*shaniBlock)(unsafe.Pointer(&s.memory[-uintptr(unsafe.Pointer(&s.memory))%16]))
	return newUnitSearcher(s, shape{call: shaniLimit, run: shaniRun, lanes: 1}, newGeneric())
}

func (s *shani) prepare(job *Job, digits int) int {
	if digits < 2 || digits > 16 { // a decade of one digit is not whole; after 16 the last digit is in W4
		return 0
	}
	s.job = job
	s.message.set(job, powerOfTen(digits-2), digits)
	s.fill(&job.Midstate)
	return 10
}

// fill sets in the block what all decades have in common.
func (s *shani) fill(h *[8]uint32) {
	b := s.b
	b.midstate = [8]uint32{h[5], h[4], h[1], h[0], h[7], h[6], h[3], h[2]}
	s.message.quads(&b.tail, &b.tailK, &b.part5, &b.part6)
	copy(b.align4[:], b.tail[5:])
	s.message.lastDigits(&b.digits)
}

func (s *shani) run(decade uint64, count int, threshold uint32) []uint16 {
	s.b.threshold[3] = threshold
	s.message.firstQuads(s.job, decade, s.b.decades[:count])
	return s.b.hits[:s.search(s.b, count)]
}
