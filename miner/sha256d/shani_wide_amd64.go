//go:build !purego

package sha256d

import "unsafe"

const (
	shaniWideLanes  = 4                                    // units in a group
	shaniWideRun    = 800                                  // nonces: two groups of 100 or twenty of 10; about 30 microseconds (tuning)
	shaniWideGroups = shaniWideRun / (10 * shaniWideLanes) // at most
	shaniWideLimit  = 10 * shaniWideRun                    // nonces in one call: a third of a millisecond (tuning)
	shaniWideLeast  = shaniWideLanes                       // units that are worth a group, beside shaniSearch
)

// shaniWideGroup is what the nonces of four units share. Quads are four words, W[t] first.
type shaniWideGroup struct {
	units [shaniWideLanes]struct { // the kernel's own
		start               [4]uint32 // F, E, B, A after rounds 0 and 1
		part4, part5, part7 [4]uint32 // of quads 4, 5 and 7 what W2 does not change
	}
	pairs [shaniWideLanes][2]uint32 // W0 and W1
}

// shaniWideBlock is what the SHA-NI kernel works on when nonces have 9 or 10 digits. Its quads and the block itself are
// aligned to 16 bytes, as legacy instructions want it.
type shaniWideBlock struct {
	midstate  [8]uint32                    // as the instructions want it: F, E, B, A, H, G, D, C
	tailK     [12]uint32                   // W4 to W15 with the round constants
	quad3     [4]uint32                    // W12 to W15
	part4     [4]uint32                    // W9, W10
	part5     [4]uint32                    // W4 to W7, each with sigma0 of the word after it, and W13 to W15
	part6     [4]uint32                    // W8 to W11, each with sigma0 of the word after it
	threshold [4]uint32                    // of the digest's first word; the last one counts
	quads     [shaniWideLanes][4][4]uint32 // the kernel's own: each lane's latest four quads
	scheduled [2][shaniWideLanes][4]uint32 // the kernel's own: W+K
	steps     [100]shaniWideStep
	groups    [shaniWideGroups]shaniWideGroup
	masks     [shaniWideRun / shaniWideLanes]uint16 // of hits: a bit a lane, a mask a step, and so for each group
}

// shaniWideStep is what W2 decides.
type shaniWideStep struct {
	part4 [4]uint32 // of quad 4: 0, sigma0 of W2, what W2 to W4, W11 and W12 give
	k     [2]uint32 // W2 and W3 with the round constants
	_     [2]uint32
}

// shaniSearchWide tries so many steps, at least one and at most all, of the first groups of b.groups, at least one and
// at most all. It sets in b.masks which nonces have a digest whose first word is at or below the threshold: the same as
// generic finds, no more and no fewer. It returns all masks together: when that is 0 there is no hit. The nonces' last
// digit must be in W2. It needs SHA and AVX.
//
//go:noescape
func shaniSearchWide(b *shaniWideBlock, groups, steps int) (found int)

// shaniWide is the SHA-NI kernel for nonces of 9 and 10 digits: the rounds of four nonces, each of a unit of its own,
// interleaved.
type shaniWide struct {
	message message
	job     *Job
	unit    int
	search  func(b *shaniWideBlock, groups, steps int) (found int)
	hits    []uint16
	b       *shaniWideBlock
	memory  [unsafe.Sizeof(shaniWideBlock{}) + 63]byte // of b
}

// newSHANI returns a Searcher with both of the kernel's functions.
func newSHANI() Searcher {
	s := &shaniWide{search: shaniSearchWide, hits: make([]uint16, 0, shaniWideRun)}
	s.b = (*shaniWideBlock)(unsafe.Pointer(&s.memory[-uintptr(unsafe.Pointer(&s.memory))%64]))
	return newUnitSearcher(s, shape{call: shaniWideLimit, run: shaniWideRun, lanes: shaniWideLanes, least: shaniWideLeast}, newSHANIDecades())
}

func (s *shaniWide) prepare(job *Job, digits int) int {
	s.job = job
	if s.unit = s.message.setWide(job, digits); s.unit != 0 {
		s.fill(&job.Midstate)
	}
	return s.unit
}

// fill sets in the block what all units have in common.
func (s *shaniWide) fill(h *[8]uint32) {
	b, m := s.b, &s.message
	b.midstate = [8]uint32{h[5], h[4], h[1], h[0], h[7], h[6], h[3], h[2]}
	var tail [12]uint32
	m.quads(&tail, &b.tailK, &b.part5, &b.part6)
	copy(b.quad3[:], tail[8:])
	b.part4 = [4]uint32{tail[5], tail[6]}
	for i, w := range tail[9:] {
		b.part5[i] += w
	}
	for i := range s.unit {
		w2, w3 := m.wideStep(i), m.word(3)
		b.steps[i] = shaniWideStep{
			part4: [4]uint32{0, sigma0(w2), w2 + sigma0(w3) + m.word(11), w3 + sigma0(m.word(4)) + m.word(12)},
			k:     [2]uint32{w2 + roundConstants[2], w3 + roundConstants[3]},
		}
	}
}

func (s *shaniWide) run(unit uint64, count int, threshold uint32) []uint16 {
	b, m := s.b, &s.message
	b.threshold[3] = threshold
	m.set(s.job, unit*uint64(s.unit)/10, m.digits)
	groups := (count + shaniWideLanes - 1) / shaniWideLanes
	w0, w1 := m.word(0), m.word(1)
	for i := range b.groups[:groups] {
		w0, w1 = countDigits(b.groups[i].pairs[:], w0, w1)
	}
	s.hits = s.hits[:0]
	if s.search(b, groups, s.unit) != 0 {
		s.hits = wideHits(s.hits, b.masks[:], shaniWideLanes, s.unit, count)
	}
	return s.hits
}
