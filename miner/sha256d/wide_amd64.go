//go:build !purego

package sha256d

import "math/bits"

// What the kernels with AVX-512 share, and the SHA-NI kernel where its nonces are the same. These have 9 or 10 digits: W0
// and W1 are the first eight, and W2 has the last one or two. All nonces with the same W0 and W1 are a unit, and all lanes,
// each with a unit of its own, step through W2 together.

// wideUnit returns how many nonces a unit has, 0 for numbers of digits that these kernels leave to others.
func wideUnit(digits int) int {
	switch digits {
	case 9:
		return 10
	case 10:
		return 100
	}
	return 0
}

// setWide begins with the first nonce of that many digits and returns how many a unit has, as wideUnit does.
func (m *message) setWide(job *Job, digits int) (unit int) {
	if unit = wideUnit(digits); unit != 0 {
		m.set(job, powerOfTen(digits-2), digits)
	}
	return unit
}

// wideStep returns W2 of a step of a unit. The message is of a nonce with zeros there.
func (m *message) wideStep(step int) uint32 {
	w := m.word(2)
	if m.digits == 10 {
		return w + uint32(step/10)<<24 + uint32(step%10)<<16
	}
	return w + uint32(step)<<24
}

// nextDigits counts W0 and W1 of a unit on to the next one. After 99999999 comes 00000000.
func nextDigits(w0, w1 uint32) (uint32, uint32) {
	if w1&0xff != '9' {
		return w0, w1 + 1 // nine times in ten, and inlined: with 9 digits a unit has but ten nonces
	}
	return nextTen(w0, w1)
}

// countDigits sets W0 and W1 of units that follow one another, from the given ones on, and returns those of the unit after
// them.
func countDigits(pairs [][2]uint32, w0, w1 uint32) (uint32, uint32) {
	for i := range pairs {
		pairs[i] = [2]uint32{w0, w1}
		w0, w1 = nextDigits(w0, w1)
	}
	return w0, w1
}

func nextTen(w0, w1 uint32) (uint32, uint32) {
	w1, carry := incrementDigits(w1)
	if carry {
		w0, _ = incrementDigits(w0)
	}
	return w0, w1
}

// incrementDigits adds one to a word of four decimal digits. It reports true after 9999.
func incrementDigits(w uint32) (uint32, bool) {
	const zeros = 0x30303030
	for shift := 0; shift < 32; shift += 8 {
		if w>>shift&0xff != '9' {
			return w + 1<<shift, false
		}
		w -= 9 << shift
	}
	return zeros, true
}

// wideHits appends the hits that the masks tell: one mask of lanes for each step of each group, in the order of the
// steps. Only the first count units matter.
func wideHits(hits []uint16, masks []uint16, lanes, steps, count int) []uint16 {
	for unit := range count {
		group, lane := unit/lanes, unit%lanes
		for step, mask := range masks[group*steps : (group+1)*steps] {
			if mask>>lane&1 != 0 {
				hits = append(hits, uint16(unit*steps+step))
			}
		}
	}
	return hits
}

// sigma1 is the message schedule's function of that name (FIPS 180-4 §4.1.2).
func sigma1(x uint32) uint32 {
	return bits.RotateLeft32(x, -17) ^ bits.RotateLeft32(x, -19) ^ x>>10
}
