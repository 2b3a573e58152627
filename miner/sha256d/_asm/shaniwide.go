package main

import "slices"

// The nonces of 9 and 10 digits have a function of their own: those that share W0 and W1, a unit, are stepped through
// together, so that what W2 decides comes from a table (see hybrid.go) and much of the first message is made once a unit.
// There are four chains, each with a unit of its own, and each chain's latest quad stays in a register. What is gained over
// shani.go, by what it leaves out for each nonce:
//
//	quad 4    is msg2 of a sum, one term a unit's and one a step's
//	quad 5    is msg2 of what a unit has; of quads 6 and 7 it has msg1 and adds, but for what VPALIGNR brings
//	W+K       of two rounds is loaded with VMOVQ where it is known. Elsewhere, for one chain of a pair, it stays in X0, and a
//	          shuffle brings the high half down; for the other one it is stored, and that half loaded: shuffles have two
//	          ports, which msg2 alone takes for two cycles
//	quads 4 to 6 of the second message have words that are zero: no msg1, or nothing to align
//
// (Measured on Zen 3: 96.5 cycles a nonce, shani.go's function 111.4. The chains are written in pairs, their msg2 side by
// side; one at a time it takes 2 cycles more, and 3 more when both of a pair store W+K. Shorter addresses are no gain. It
// seems to be bound by what the processor dispatches, where msg2, which is microcode, costs as much as a dozen others.
//
// AVX2 for the schedule, as hybrid.go has AVX-512, is of no use there: with data in the upper halves of Y0 to Y15, each
// change between a legacy and a 256-bit instruction takes some 170 cycles.)
//
// Registers:
//
//	X0                 W+K of the next two rounds, implicit in sha256rnds2
//	X1, X2; X3, X4 ... the state of chain 0, of chain 1 ...: A,B,E,F and C,D,G,H, the first word highest
//	X9 to X15          each chain's latest quad; temporary
//	DI                 the block
//	SI                 the group, in the block
//	DX                 groups left
//	R8, R9             the step, and the end of them, in the block
//	R10                the place for the next mask of hits, in the block
//	BX                 all masks together
//	AX, CX             temporary
const (
	wideChains = 4
	widePair   = 2                           // chains whose instructions are mixed
	wideUnit   = 64                          // bytes of a unit
	wideGroup  = (wideUnit + 8) * wideChains // bytes of a group: see shaniWideBlock
	wideStep   = 32                          // bytes of a step
)

// shaniWide writes the function.
type shaniWide struct {
	*printer
	free   []register
	latest [wideChains]register // quad
}

func (s *shaniWide) take() register {
	r := s.free[0] // the one that was given back first
	s.free = s.free[1:]
	return r
}

func (s *shaniWide) give(r register) { s.free = append(s.free, r) }

func (s *shaniWide) field(name string) memory {
	return memory{symbol: "shaniWideBlock_" + name, base: "DI"}
}

// quad is where quad i of a chain is: there are places for the latest four.
func (s *shaniWide) quad(chain, i int) memory { return s.field("quads").plus(16 * (4*chain + i%4)) }

// scheduled is W+K of quad 1 of the second message (early) or of the current quad.
func (s *shaniWide) scheduled(chain int, early bool) memory {
	if early {
		chain += wideChains
	}
	return s.field("scheduled").plus(16 * chain)
}

// The parts of a unit.
func unitStart(chain int) memory { return memory{base: "SI"}.plus(wideUnit * chain) }
func unitPart(chain, quad int) memory {
	return unitStart(chain).plus(map[int]int{4: 16, 5: 32, 7: 48}[quad])
}
func unitPairs(chain int) memory { return memory{base: "SI"}.plus(wideUnit*wideChains + 8*chain) }

func (s *shaniWide) search() {
	for r := 1 + 2*wideChains; r < 16; r++ {
		s.give(xmm(r))
	}
	s.function("shaniSearchWide(b *shaniWideBlock, groups, steps int) (found int)", 32, "See shani_wide_amd64.go.")
	s.op("VZEROUPPER") // else each change between VEX and legacy instructions may cost hundreds of cycles
	s.op("MOVQ", "b+0(FP)", "DI")
	s.op("MOVQ", "groups+8(FP)", "DX")
	s.op("MOVQ", "steps+16(FP)", "R9")
	s.op("SHLQ", 5, "R9")
	s.op("LEAQ", s.field("steps"), "R8")
	s.op("ADDQ", "R8", "R9")
	s.op("LEAQ", s.field("groups"), "SI")
	s.op("LEAQ", s.field("masks"), "R10")
	s.op("XORL", "BX", "BX")

	s.label("group")
	s.note("What the nonces of a unit share.")
	for c := range wideChains {
		s.unit(c)
	}
	s.op("LEAQ", s.field("steps"), "R8")

	s.label("step")
	for message := range 2 {
		for i := range 16 {
			s.note("Message %d, rounds %d to %d.", message+1, 4*i, 4*i+3)
			s.rounds(message, i)
		}
		if message == 0 {
			s.note("The first digest is the midstate plus the state.")
			for c := range wideChains {
				s.digest(c)
			}
		}
	}

	s.note("A is the digest's first word. Is the smallest one at or below the threshold?")
	least := s.take()
	s.op("VPMINUD", abef(0), abef(1), least)
	for c := 2; c < wideChains; c++ {
		s.op("VPMINUD", abef(c), least, least)
	}
	s.op("VPMINUD", s.field("threshold"), least, "X0")
	s.op("VPCMPEQD", least, "X0", "X0")
	s.op("VMOVMSKPS", "X0", "AX")
	s.op("ANDL", 8, "AX")
	s.op("JNZ", "hit")

	s.label("next")
	s.op("MOVW", "AX", memory{base: "R10"})
	s.op("ADDQ", 2, "R10")
	s.op("ADDQ", wideStep, "R8")
	s.op("CMPQ", "R8", "R9")
	s.op("JNE", "step")
	s.op("ADDQ", wideGroup, "SI")
	s.op("DECQ", "DX")
	s.op("JNZ", "group")
	s.op("MOVQ", "BX", "found+24(FP)")
	s.op("VZEROUPPER")
	s.op("RET")

	s.label("hit")
	s.op("XORL", "AX", "AX")
	for c := wideChains - 1; c >= 0; c-- {
		s.op("VPMINUD", s.field("threshold"), abef(c), "X0")
		s.op("VPCMPEQD", abef(c), "X0", "X0")
		s.op("VMOVMSKPS", "X0", "CX")
		s.op("SHRL", 3, "CX")
		s.op("ADDL", "AX", "AX")
		s.op("ORL", "CX", "AX")
	}
	s.op("ORL", "AX", "BX")
	s.op("JMP", "next")
}

// unit makes what the nonces of a unit share: A,B,E,F after the first two rounds (C,D,G,H then is the midstate's A,B,E,F),
// of quad 4 what W0 and W1 give, and of quads 5 and 7 what msg2 is added to.
func (s *shaniWide) unit(c int) {
	pair, other, zero := register("X1"), register("X3"), register("X4")
	s.op("VMOVQ", unitPairs(c), pair)
	s.op("VPADDD", constant("shaniK"), pair, "X0")
	s.op("VMOVDQU", s.field("midstate"), "X2")
	s.op("VMOVDQU", s.field("midstate").plus(16), other)
	s.op("SHA256RNDS2", "X0", "X2", other)
	s.op("VMOVDQU", other, unitStart(c))
	s.op("VPXOR", zero, zero, zero)
	s.op("SHA256MSG1", zero, pair)
	s.op("VPADDD", s.field("part4"), pair, pair)
	s.op("VMOVDQU", pair, unitPart(c, 4))
	s.op("VMOVDQU", s.field("quad3"), other)
	s.op("SHA256MSG2", other, pair) // now the first word is W16
	s.op("SHA256MSG1", pair, other)
	s.op("VMOVDQU", other, unitPart(c, 7))
	s.op("VPALIGNR", 4, zero, pair, pair) // W16 becomes the last word, the others zero
	s.op("VPADDD", s.field("part5"), pair, pair)
	s.op("VMOVDQU", pair, unitPart(c, 5))
}

// rounds does step i, four rounds, of all chains.
func (s *shaniWide) rounds(message, i int) {
	for first := 0; first < wideChains; first += widePair {
		var parts [widePair][]func()
		for c := range parts {
			parts[c] = s.step(message, i, first+c, c == widePair-1)
		}
		for k := range parts[0] {
			for c := range parts {
				parts[c][k]()
			}
			if k == 2 {
				slices.Reverse(parts[:]) // X0 still is the last one's
			}
		}
	}
}

// step returns what writes step i of a chain, in parts: two rounds, what quad i+1 needs beside msg2, that, and two rounds.
// With keeps X0 stays as it is between the first and the last part.
func (s *shaniWide) step(message, i, c int, keeps bool) []func() {
	k := constant("shaniK").plus(16 * i)
	if message == 1 && i == 15 {
		k = constant("shaniKLast")
	}
	next := i + 1
	if message == 1 && i == 0 {
		next = 4 // needs no other
	}
	var high memory  // W+K of the last two of the four rounds; without a base it is X0's high half
	var sum register // of what quad next needs beside msg2; "" when it is not to be made
	known := func(wk memory) {
		high = wk.plus(8)
		s.op("VMOVQ", wk, "X0")
		s.op("SHA256RNDS2", "X0", abef(c), cdgh(c))
	}
	return []func(){
		func() {
			switch {
			case message == 0 && i == 0:
				s.op("VMOVDQU", s.field("midstate"), abef(c))
				s.op("VMOVDQU", unitStart(c), cdgh(c)) // A,B,E,F after rounds 0 and 1
				high = memory{base: "R8"}.plus(16)
			case message == 0 && i < 4:
				known(s.field("tailK").plus(16 * (i - 1)))
			case message == 1 && i == 1:
				known(s.scheduled(c, true))
			case message == 1 && (i == 2 || i == 3):
				known(constant("shaniPadK").plus(16 * (i - 2)))
			default:
				s.op("VPADDD", k, s.latest[c], "X0")
				s.op("SHA256RNDS2", "X0", abef(c), cdgh(c))
				if !keeps {
					s.op("VMOVDQU", "X0", s.scheduled(c, false))
					high = s.scheduled(c, false).plus(8)
				}
			}
		},
		func() { sum = s.beforeMsg2(message, i, c) },
		func() {
			if sum == "" {
				return
			}
			before := any(s.latest[c])
			switch {
			case message == 0 && next == 4:
				before = s.field("quad3")
			case message == 1 && next == 4:
				before = constant("shaniPad").plus(16)
			}
			s.op("SHA256MSG2", before, sum)
		},
		func() {
			if sum != "" {
				if next < 14 { // later ones are not needed again
					s.op("VMOVDQU", sum, s.quad(c, next))
				}
				if old := s.latest[c]; old != "" && old != sum {
					s.give(old)
				}
				s.latest[c] = sum
			}
			if message == 1 && i == 15 {
				s.give(s.latest[c])
				s.latest[c] = ""
			}
			if high.base == "" {
				s.op("VPSHUFD", 0x0e, "X0", "X0")
			} else {
				s.op("VMOVQ", high, "X0")
			}
			s.op("SHA256RNDS2", "X0", cdgh(c), abef(c))
		},
	}
}

// beforeMsg2 makes what is added to in quad i+1, or in the first step of the second message in quad 4.
func (s *shaniWide) beforeMsg2(message, i, c int) (sum register) {
	aligned := func(before memory, add memory) {
		sum = s.take()
		s.op("VPALIGNR", 4, before, s.latest[c], sum)
		s.op("VPADDD", add, sum, sum)
	}
	full := func(four, three, two memory) { // quads so many before this one
		sum = s.take()
		s.op("VMOVDQU", four, sum)
		s.op("SHA256MSG1", three, sum)
		t := s.take()
		s.op("VPALIGNR", 4, two, s.latest[c], t)
		s.op("VPADDD", t, sum, sum)
		s.give(t)
	}
	pad := constant("shaniPad")
	switch {
	case i == 15:
	case message == 0 && i < 3:
	case message == 0 && i == 3:
		sum = s.take()
		s.op("VMOVDQU", memory{base: "R8"}, sum)
		s.op("VPADDD", unitPart(c, 4), sum, sum)
	case message == 0 && i == 4:
		sum = s.take()
		s.op("VMOVDQU", unitPart(c, 5), sum)
	case message == 0 && i == 5:
		aligned(s.quad(c, 4), s.field("part6"))
	case message == 0 && i == 6:
		aligned(s.quad(c, 5), unitPart(c, 7))
	case message == 1 && i == 0:
		sum = s.latest[c] // quad 0; W9 to W12 are zero
		s.op("SHA256MSG1", s.quad(c, 1), sum)
	case message == 1 && i < 4:
	case message == 1 && i == 4:
		full(s.quad(c, 1), pad, pad.plus(16))
	case message == 1 && i == 5:
		aligned(s.quad(c, 4), pad) // msg1 of the padding is the padding: sigma0 of W9 to W12 is zero
	case message == 1 && i == 6:
		full(pad.plus(16), s.quad(c, 4), s.quad(c, 5))
	default:
		full(s.quad(c, i-3), s.quad(c, i-2), s.quad(c, i-1))
	}
	return sum
}

// digest starts the second message. Quad 0 stays in a register, quad 1 goes to memory, without and with its constants.
func (s *shaniWide) digest(c int) {
	a, b := s.take(), s.take()
	s.op("VPADDD", s.field("midstate"), abef(c), a)
	s.op("VPADDD", s.field("midstate").plus(16), cdgh(c), b)
	s.op("VSHUFPS", 0xbb, b, a, s.latest[c]) // A, B, C, D
	s.op("VSHUFPS", 0x11, b, a, a)           // E, F, G, H
	s.op("VMOVDQU", a, s.quad(c, 1))
	s.op("VPADDD", constant("shaniK").plus(16), a, a)
	s.op("VMOVDQU", a, s.scheduled(c, true))
	s.op("VMOVDQU", constant("shaniInitial"), abef(c))
	s.op("VMOVDQU", constant("shaniInitial").plus(16), cdgh(c))
	s.give(a)
	s.give(b)
}
