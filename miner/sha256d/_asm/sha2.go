package main

import "fmt"

// The SHA2 instructions of arm64 do four rounds at once on a state in natural order, A to D and E to H, and take four
// cycles for it. Two nonces, the chains, are interleaved to fill that wait; a decade is five such batches. All that a
// chain needs fits its registers.
//
// The schedule of a step i, which is four rounds with W[4i] to W[4i+3], for one chain:
//
//	t = quad[i] + K
//	quad[i+4] = SU1(SU0(quad[i], quad[i+1]), quad[i+2], quad[i+3])      in the register of quad[i]
//	A..D = H(A..D, E..H, t); E..H = H2(E..H, A..D before, t)
//
// Registers:
//
//	V0 to V7     chain 0: A..D, E..H, A..D before, t, and four quads; V8 to V15 chain 1
//	V16          the round constants of the step
//	V17          temporary
//	R0           the block
//	R1           the round constants
//	R2           decades left
//	R3           W0 to W3 of the decade's first nonce, in the block
//	R4, R8       the last digits of the batch, and the end of them, in the block
//	R5           the threshold
//	R6           the batch's first nonce, counted from the first decade's
//	R7           the place for the next hit, in the block
//	R9, R10      temporary
const sha2Chains = 2

// vector is a register of the vector unit, by number.
type vector int

func (v vector) whole() register { return register(fmt.Sprintf("F%d", v)) } // as a load or store names it
func (v vector) words() register { return register(fmt.Sprintf("V%d.S4", v)) }
func (v vector) first() register { return register(fmt.Sprintf("V%d.S[0]", v)) }
func (v vector) bytes() register { return register(fmt.Sprintf("V%d.B16", v)) }
func (v vector) plain() register { return register(fmt.Sprintf("V%d", v)) }

func abcd(chain int) vector     { return vector(8 * chain) }
func efgh(chain int) vector     { return vector(8*chain + 1) }
func before(chain int) vector   { return vector(8*chain + 2) }
func wk(chain int) vector       { return vector(8*chain + 3) }
func word4(chain, i int) vector { return vector(8*chain + 4 + i%4) }

const stepK, spare = vector(16), vector(17)

// sha2 writes the one function.
type sha2 struct{ *printer }

func sha2File() []byte {
	s := sha2{newPrinter("!purego")}
	s.search()
	k := roundConstants
	s.words("sha2K", k[:]...)
	// The last round's constant carries H0's initial value: A after it is the digest's first word at once.
	last := [4]uint32(k[60:])
	last[3] += initial[0]
	s.words("sha2KLast", last[:]...)
	s.words("sha2Initial", initial[:]...)
	// W8 to W15 of the second message, without and with the round constants.
	pad := [8]uint32{0: paddingBit, 7: digestLength}
	s.words("sha2Pad", pad[:]...)
	for i := range pad {
		pad[i] += k[8+i]
	}
	s.words("sha2PadK", pad[:]...)
	return s.bytes()
}

func (s sha2) search() {
	field := func(name string) memory { return memory{symbol: "sha2Block_" + name, base: "R0"} }
	address := func(name string, to register) { s.op("MOVD", "$"+constant(name).String(), to) }
	s.function("sha2Search(b *sha2Block, decades int) (found int)", 24, "See sha2_arm64.go.")
	s.op("MOVD", "b+0(FP)", "R0")
	s.op("MOVD", "decades+8(FP)", "R2")
	address("sha2K", "R1")
	s.op("MOVD", "$"+field("decades").String(), "R3")
	s.op("MOVD", "$"+field("digits").plus(16*10).String(), "R8")
	s.op("MOVD", "$"+field("hits").String(), "R7")
	s.op("MOVWU", field("threshold"), "R5")
	s.op("MOVD", 0, "R6")

	s.label("decade")
	s.op("MOVD", "$"+field("digits").String(), "R4")

	s.label("batch")
	s.note("First message: the digit goes into its word.")
	s.op("FMOVQ", memory{base: "R3"}, spare.whole())
	for c := range sha2Chains {
		s.op("FMOVQ", memory{base: "R4"}.plus(16*c), word4(c, 0).whole())
		s.op("VADD", spare.words(), word4(c, 0).words(), word4(c, 0).words())
		for i := 1; i < 4; i++ {
			s.op("FMOVQ", field("tail").plus(16*(i-1)), word4(c, i).whole())
		}
		s.op("FMOVQ", field("midstate"), abcd(c).whole())
		s.op("FMOVQ", field("midstate").plus(16), efgh(c).whole())
	}
	for i := range 16 {
		part := map[int]memory{1: field("part5"), 2: field("part6")}[i]
		if i >= 1 && i < 4 {
			s.step(i, field("tailK").plus(16*(i-1)), true, part)
		} else {
			s.step(i, memory{base: "R1"}.plus(16*i), false, part)
		}
	}

	s.note("Second message: the first digest is the midstate plus the state.")
	for half := range 2 {
		s.op("FMOVQ", field("midstate").plus(16*half), spare.whole())
		for c := range sha2Chains {
			s.op("VADD", spare.words(), vector(int(abcd(c))+half).words(), word4(c, half).words())
		}
	}
	address("sha2Pad", "R9")
	address("sha2Initial", "R10")
	for c := range sha2Chains {
		for half := range 2 {
			s.op("FMOVQ", memory{base: "R9"}.plus(16*half), word4(c, 2+half).whole())
			s.op("FMOVQ", memory{base: "R10"}.plus(16*half), vector(int(abcd(c))+half).whole())
		}
	}
	address("sha2PadK", "R9")
	address("sha2KLast", "R10")
	for i := range 16 {
		switch {
		case i == 2 || i == 3:
			s.step(i, memory{base: "R9"}.plus(16*(i-2)), true, memory{})
		case i == 15:
			s.step(i, memory{base: "R10"}, false, memory{})
		default:
			s.step(i, memory{base: "R1"}.plus(16*i), false, memory{})
		}
	}

	s.note("A is the digest's first word. Is the smaller one at or below the threshold?")
	s.op("VUMIN", abcd(0).words(), abcd(1).words(), spare.words())
	s.op("VMOV", spare.first(), "R9")
	s.op("CMPW", "R5", "R9")
	s.op("BLS", "hit")

	s.label("next")
	s.op("ADD", sha2Chains, "R6")
	s.op("ADD", 16*sha2Chains, "R4")
	s.op("CMP", "R8", "R4")
	s.op("BNE", "batch")
	s.op("ADD", 16, "R3")
	s.op("SUBS", 1, "R2")
	s.op("BNE", "decade")
	s.op("MOVD", "$"+field("hits").String(), "R9")
	s.op("SUB", "R9", "R7")
	s.op("LSR", 1, "R7")
	s.op("MOVD", "R7", "found+16(FP)")
	s.op("RET")

	s.label("hit")
	for c := range sha2Chains {
		s.op("VMOV", abcd(c).first(), "R9")
		s.op("ADD", c, "R6", "R10")
		s.op("MOVH", "R10", memory{base: "R7"})
		s.op("CMPW", "R5", "R9")
		s.op("CSET", "LS", "R9")
		s.op("ADD", "R9<<1", "R7")
	}
	s.op("B", "next")
}

// step does step i for both chains. K is the memory of the round constants, or with known of the step's W+K. Part is the
// memory of SU0 of the quad, if it is known.
func (s sha2) step(i int, k memory, known bool, part memory) {
	s.note("Rounds %d to %d.", 4*i, 4*i+3)
	s.op("FMOVQ", k, stepK.whole())
	for c := range sha2Chains {
		t := stepK
		if !known {
			t = wk(c)
			s.op("VADD", stepK.words(), word4(c, i).words(), t.words())
		}
		s.op("VMOV", abcd(c).bytes(), before(c).bytes())
		s.op("SHA256H", t.words(), efgh(c).plain(), abcd(c).plain())
		s.op("SHA256H2", t.words(), before(c).plain(), efgh(c).plain())
		if i >= 12 {
			continue
		}
		if part != (memory{}) {
			s.op("FMOVQ", part, word4(c, i).whole())
		} else {
			s.op("SHA256SU0", word4(c, i+1).words(), word4(c, i).words())
		}
		s.op("SHA256SU1", word4(c, i+3).words(), word4(c, i+2).words(), word4(c, i).words())
	}
}
