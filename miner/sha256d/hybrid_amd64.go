//go:build !purego

package sha256d

import "unsafe"

const (
	hybridLanes  = 12                             // units in a group
	hybridRun    = 2400                           // nonces: two groups of 100 or twenty of 10; about 50 microseconds (tuning)
	hybridGroups = hybridRun / (10 * hybridLanes) // at most
	hybridLimit  = 6 * hybridRun                  // nonces in one call: a third of a millisecond (tuning)
	hybridLeast  = 8                              // units that are worth a group, beside the SHA-NI kernel (tuning)
)

// hybridVector is a pair of words, W[t] and W[t+1], for each of four lanes.
type hybridVector [4][2]uint32

// hybridGroup is what the nonces of twelve units share.
type hybridGroup struct {
	start [hybridLanes][4]uint32        // the kernel's own: F, E, B, A after rounds 0 and 1
	part8 [hybridLanes / 4]hybridVector // the kernel's own: of W16 and W17 what W2 does not change
	pairs [hybridLanes][2]uint32        // W0 and W1
}

// hybridBlock is what the hybrid kernel works on.
type hybridBlock struct {
	state     [2][hybridLanes][4]uint32            // the kernel's own: of each lane F, E, B, A, then of each lane H, G, D, C
	digests   [16]uint32                           // the kernel's own: from the fourth word on, of each lane the first word; the others are not used
	midstate  [8]uint32                            // as the SHA instructions want it: F, E, B, A, H, G, D, C
	midstates [4]hybridVector                      // H0 and H1, H2 and H3 and so on, the same in all lanes
	tail      [12]uint32                           // W4 to W15
	tailK     [12]uint32                           // the same with the round constants
	part8     [2]uint32                            // of W16 and W17 what is the same for all nonces
	threshold uint32                               // of the digest's first word
	_         [5]uint32                            // so that the vectors are aligned
	spilled   [8]hybridVector                      // the kernel's own
	shared    [16]hybridVector                     // the kernel's own
	scheduled [2][hybridLanes / 4][32]hybridVector // the kernel's own: W+K of the first and of the second message
	steps     [100]hybridStep
	groups    [hybridGroups + 1]hybridGroup     // the last one is read once, but what comes of it is dropped
	masks     [1 + hybridRun/hybridLanes]uint16 // of hits: a bit a lane, a mask a step, and so for each group; the first one is rubbish
}

// hybridStep is what W2 decides.
type hybridStep struct {
	part8 [2]uint32 // of W16 and W17: 0 and sigma0 of W2
	part9 [2]uint32 // of W18 and W19: what W2 to W4, W11 and W12 give
	k     [2]uint32 // W2 and W3 with the round constants
	_     [2]uint32
}

// hybridSearch tries so many steps, at least two and at most all, of the first groups of b.groups, at least one and at
// most all but one; batches is the product of the two. It sets in b.masks, from the second one on, which nonces have a
// digest whose first word is at or below the threshold: the same as generic finds, no more and no fewer. It returns all
// masks together: when that is 0 there is no hit. The nonces' last digit must be in W2. It needs SHA, AVX-512F and
// AVX-512VL.
//
//go:noescape
func hybridSearch(b *hybridBlock, groups, steps, batches int) (found int)

// hybrid is the kernel whose rounds are done by the SHA instructions and whose message schedule by AVX-512.
type hybrid struct {
	message message
	job     *Job
	unit    int
	search  func(b *hybridBlock, groups, steps, batches int) (found int)
	hits    []uint16
	b       *hybridBlock
	memory  [unsafe.Sizeof(hybridBlock{}) + 63]byte // of b, which is aligned for speed
}

// newHybrid returns a Searcher that leaves to the SHA-NI kernel what the other one is not made for.
func newHybrid() Searcher {
	s := &hybrid{search: hybridSearch, hits: make([]uint16, 0, hybridRun)}
	s.b = (*hybridBlock)(unsafe.Pointer(&s.memory[-uintptr(unsafe.Pointer(&s.memory))%64]))
	return newUnitSearcher(s, shape{call: hybridLimit, run: hybridRun, lanes: hybridLanes, least: hybridLeast}, newSHANI())
}

func (s *hybrid) prepare(job *Job, digits int) int {
	s.job = job
	if s.unit = s.message.setWide(job, digits); s.unit != 0 {
		s.fill(&job.Midstate)
	}
	return s.unit
}

// fill sets in the block what all units have in common.
func (s *hybrid) fill(h *[8]uint32) {
	b, m := s.b, &s.message
	b.midstate = [8]uint32{h[5], h[4], h[1], h[0], h[7], h[6], h[3], h[2]}
	for i := range b.midstates {
		for lane := range b.midstates[i] {
			b.midstates[i][lane] = [2]uint32{h[2*i], h[2*i+1]}
		}
	}
	for i := range b.tail {
		b.tail[i] = m.word(4 + i)
		b.tailK[i] = b.tail[i] + roundConstants[4+i]
	}
	b.part8 = [2]uint32{m.word(9) + sigma1(m.word(14)), m.word(10) + sigma1(m.word(15))}
	for i := range s.unit {
		w2, w3 := m.wideStep(i), m.word(3)
		b.steps[i] = hybridStep{
			part8: [2]uint32{0, sigma0(w2)},
			part9: [2]uint32{w2 + sigma0(w3) + m.word(11), w3 + sigma0(m.word(4)) + m.word(12)},
			k:     [2]uint32{w2 + roundConstants[2], w3 + roundConstants[3]},
		}
	}
}

func (s *hybrid) run(unit uint64, count int, threshold uint32) []uint16 {
	b, m := s.b, &s.message
	b.threshold = threshold
	m.set(s.job, unit*uint64(s.unit)/10, m.digits)
	groups := (count + hybridLanes - 1) / hybridLanes
	w0, w1 := m.word(0), m.word(1)
	for i := range b.groups[:groups] {
		w0, w1 = countDigits(b.groups[i].pairs[:], w0, w1)
	}
	s.hits = s.hits[:0]
	if s.search(b, groups, s.unit, groups*s.unit) != 0 {
		s.hits = wideHits(s.hits, b.masks[1:], hybridLanes, s.unit, count)
	}
	return s.hits
}
