//go:build !purego

package sha256d

import "unsafe"

const (
	avx512Lanes  = 16                             // units in a group
	avx512Run    = 1600                           // nonces: one group of 100 or ten of 10; about 50 microseconds (tuning)
	avx512Groups = avx512Run / (10 * avx512Lanes) // at most
	avx512Limit  = 6 * avx512Run                  // nonces in one call: a third of a millisecond (tuning)
	avx512Least  = avx512Lanes / 2                // units that are worth a group, beside the AVX2 kernel (tuning)
)

// avx512Vector is one word for each lane.
type avx512Vector [avx512Lanes]uint32

// avx512Block is what the AVX-512 kernel works on.
type avx512Block struct {
	midstate  [8]uint32                       // H0 to H7
	message   [16]uint32                      // W3 to W15, the same for all nonces; W0 to W2 are not used
	threshold uint32                          // of the digest's first word
	_         [7]uint32                       // so that the vectors are aligned
	shared    [64]avx512Vector                // the kernel's own
	spilled   [16]avx512Vector                // the kernel's own
	groups    [avx512Groups][2]avx512Vector   // W0 and W1 of each unit, a unit a lane
	steps     [100][2]uint32                  // of each step W2 and sigma0 of it
	masks     [avx512Run / avx512Lanes]uint16 // of hits: a bit a lane, a mask a step, and so for each group
}

// avx512Search tries so many steps, at least one and at most all, of the first groups of b.groups, at least one and at
// most all, and sets in b.masks which nonces have a digest whose first word is at or below the threshold: the same as
// generic finds, no more and no fewer. It returns all masks together: 0 when there is no hit. The nonces' last digit must
// be in W2. It needs AVX-512F.
//
//go:noescape
func avx512Search(b *avx512Block, groups, steps int) (found int)

// avx512 is the AVX-512 kernel: sixteen nonces side by side.
type avx512 struct {
	message message
	job     *Job
	unit    int
	search  func(b *avx512Block, groups, steps int) (found int)
	hits    []uint16
	b       *avx512Block
	memory  [unsafe.Sizeof(avx512Block{}) + 63]byte // of b, which is aligned to the vectors' size for speed
}

// newAVX512 returns a Searcher that leaves to the AVX2 kernel what the other one is not made for: a processor with
// AVX-512 has AVX2.
func newAVX512() Searcher {
	s := &avx512{search: avx512Search, hits: make([]uint16, 0, avx512Run)}
	s.b = (*avx512Block)(unsafe.Pointer(&s.memory[-uintptr(unsafe.Pointer(&s.memory))%64]))
	return newUnitSearcher(s, shape{call: avx512Limit, run: avx512Run, lanes: avx512Lanes, least: avx512Least}, newAVX2())
}

func (s *avx512) prepare(job *Job, digits int) int {
	s.job = job
	if s.unit = s.message.setWide(job, digits); s.unit != 0 {
		s.fill(&job.Midstate)
	}
	return s.unit
}

// fill sets in the block what all units have in common.
func (s *avx512) fill(midstate *[8]uint32) {
	b, m := s.b, &s.message
	b.midstate = *midstate
	for i := range b.message {
		b.message[i] = m.word(i)
	}
	for i := range s.unit {
		w := m.wideStep(i)
		b.steps[i] = [2]uint32{w, sigma0(w)}
	}
}

func (s *avx512) run(unit uint64, count int, threshold uint32) []uint16 {
	b, m := s.b, &s.message
	b.threshold = threshold
	m.set(s.job, unit*uint64(s.unit)/10, m.digits)
	groups := (count + avx512Lanes - 1) / avx512Lanes
	w0, w1 := m.word(0), m.word(1)
	for i := range b.groups[:groups] {
		group := &b.groups[i]
		for lane := range group[0] {
			group[0][lane], group[1][lane] = w0, w1
			w0, w1 = nextDigits(w0, w1)
		}
	}
	s.hits = s.hits[:0]
	if s.search(b, groups, s.unit) != 0 {
		s.hits = wideHits(s.hits, b.masks[:], avx512Lanes, s.unit, count)
	}
	return s.hits
}
