//go:build !purego

package sha256d

import (
	"encoding/binary"
	"unsafe"
)

const (
	avx2Lanes  = 8                           // decades in a group
	avx2Groups = 8                           // groups in one run: 60 microseconds (tuning)
	avx2Run    = 10 * avx2Lanes * avx2Groups // nonces
	avx2Limit  = 5 * avx2Run                 // nonces in one call: a third of a millisecond (tuning)
)

// avx2Vector is one word for each lane.
type avx2Vector [avx2Lanes]uint32

// avx2Block is what the AVX2 kernel works on.
type avx2Block struct {
	midstate  [8]avx2Vector             // H0 to H7, the same in all lanes
	tail      [12]avx2Vector            // W4 to W15, the same in all lanes
	threshold avx2Vector                // the same in all lanes
	digits    [10]avx2Vector            // what each last digit adds to its word, the same in all lanes
	groups    [avx2Groups][4]avx2Vector // W0 to W3 of each decade's first nonce, a decade a lane
	masks     [avx2Groups][16]uint8     // of hits: a bit a lane, a byte a last digit; 6 bytes are not used
	shared    [64]avx2Vector            // the kernel's own
	spilled   [16]avx2Vector            // the kernel's own
}

// avx2Search1 and avx2Search2 try all nonces of the first groups of b.groups, at least one and at most all, and set in
// b.masks which of them have a digest whose first word is at or below the threshold: the same as generic finds, no more
// and no fewer. The nonces' last digit must be in W1, for avx2Search2 in W2. They need AVX2.
//
//go:noescape
func avx2Search1(b *avx2Block, groups int)

//go:noescape
func avx2Search2(b *avx2Block, groups int)

// avx2 is the AVX2 kernel: eight nonces side by side.
type avx2 struct {
	job     *Job
	message message
	search  func(b *avx2Block, groups int)
	hits    []uint16
	quads   [avx2Lanes * avx2Groups][4]uint32 // W0 to W3 of each decade's first nonce
	b       *avx2Block
	memory  [unsafe.Sizeof(avx2Block{}) + 31]byte // of b, which is aligned to the vectors' size for speed
}

func newAVX2() Searcher {
	s := &avx2{hits: make([]uint16, 0, avx2Run)}
	s.b = (*avx2Block)(unsafe.Pointer(&s.memory[-uintptr(unsafe.Pointer(&s.memory))%32]))
	return newUnitSearcher(s, shape{call: avx2Limit, run: avx2Run, lanes: avx2Lanes}, newGeneric())
}

func (s *avx2) prepare(job *Job, digits int) int {
	switch (digits - 1) / 4 {
	case 1:
		s.search = avx2Search1
	case 2:
		s.search = avx2Search2
	default:
		return 0
	}
	s.job = job
	s.message.set(job, powerOfTen(digits-2), digits)
	s.fill(&job.Midstate)
	return 10
}

// fill sets in the block what all decades have in common.
func (s *avx2) fill(midstate *[8]uint32) {
	b := s.b
	for i := range b.midstate {
		b.midstate[i].set(midstate[i])
	}
	for i := range b.tail {
		b.tail[i].set(s.message.word(4 + i))
	}
	for i := range b.digits {
		b.digits[i].set(s.message.lastDigit(i))
	}
}

// set puts word into every lane.
func (v *avx2Vector) set(word uint32) {
	for i := range v {
		v[i] = word
	}
}

func (s *avx2) run(decade uint64, count int, threshold uint32) []uint16 {
	b, m := s.b, &s.message
	b.threshold.set(threshold)
	m.firstQuads(s.job, decade, s.quads[:count])
	groups := (count + avx2Lanes - 1) / avx2Lanes
	for i := range groups * avx2Lanes {
		// The last group's lanes past the end do the last decade again.
		quad := &s.quads[min(i, count-1)]
		group, lane := &b.groups[i/avx2Lanes], i%avx2Lanes
		group[0][lane], group[1][lane], group[2][lane], group[3][lane] = quad[0], quad[1], quad[2], quad[3]
	}
	s.search(b, groups)
	s.hits = s.hits[:0]
	for i := range groups {
		masks := &b.masks[i]
		if binary.LittleEndian.Uint64(masks[:])|uint64(binary.LittleEndian.Uint16(masks[8:])) == 0 {
			continue
		}
		for lane := range min(avx2Lanes, count-i*avx2Lanes) {
			for digit, mask := range masks[:10] {
				if mask>>lane&1 != 0 {
					s.hits = append(s.hits, uint16(10*(i*avx2Lanes+lane)+digit))
				}
			}
		}
	}
	return s.hits
}
