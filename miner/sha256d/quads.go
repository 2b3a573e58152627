//go:build (amd64 || arm64) && !purego

package sha256d

import "math/bits"

// What the SHA instructions of all processors have in common: they work on quads, four words with W[t] first.

// roundConstants are K0 to K15 (FIPS 180-4 §4.2.2), those that stand beside words of the message itself.
var roundConstants = [16]uint32{
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
}

// sigma0 is the message schedule's function of that name (FIPS 180-4 §4.1.2).
func sigma0(x uint32) uint32 {
	return bits.RotateLeft32(x, -7) ^ bits.RotateLeft32(x, -18) ^ x>>3
}

// quads sets what the first messages of a job share beyond W0 to W3. The processor's own instruction for the first part
// of the schedule adds to each of four words sigma0 of the word after it; for these it is done once.
//
//	tail   W4 to W15, and tailK the same with the round constants
//	part5  of W4 to W7
//	part6  of W8 to W11
func (m *message) quads(tail, tailK *[12]uint32, part5, part6 *[4]uint32) {
	for i := range tail {
		tail[i] = m.word(4 + i)
		tailK[i] = tail[i] + roundConstants[4+i]
	}
	for i := range part5 {
		part5[i] = tail[i] + sigma0(tail[i+1])
		part6[i] = tail[i+4] + sigma0(tail[i+5])
	}
}

// lastDigits sets what each last digit adds to W0 to W3. The nonce has at most 16 digits.
func (m *message) lastDigits(digits *[10][4]uint32) {
	*digits = [10][4]uint32{}
	for i := range digits {
		digits[i][(m.digits-1)/4] = m.lastDigit(i)
	}
}

// firstQuads sets W0 to W3 of the first nonce of each decade, from decade on.
func (m *message) firstQuads(job *Job, decade uint64, decades [][4]uint32) {
	m.set(job, decade, m.digits)
	// Nine times in ten only the digit before the last one changes.
	at := m.digits - 2
	digit, word, one := m.block[at], at/4&3, uint32(1)<<(24-8*(at%4))
	quad := [4]uint32{m.word(0), m.word(1), m.word(2), m.word(3)}
	for i := range decades {
		switch {
		case i == 0:
		case digit != '9':
			digit++
			quad[word] += one
		default:
			m.block[at] = digit
			m.step()
			digit = m.block[at]
			quad = [4]uint32{m.word(0), m.word(1), m.word(2), m.word(3)}
		}
		decades[i] = quad
	}
}
