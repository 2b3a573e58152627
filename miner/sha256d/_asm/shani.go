package main

// The SHA instructions work on quads, four words in one register or 16 bytes of memory. sha256rnds2 does two rounds and
// takes four cycles, but another one may start in each. So the rounds of several nonces, the chains, are interleaved;
// five of them, because a decade is twice five, and their states fit the registers.
//
// The schedule of a step i, which is four rounds with W[4i] to W[4i+3], for one chain:
//
//	X0 = quad[i] + K                                        waits for msg2 of the step before
//	C,D,G,H = rnds2(state, X0)                              these are the new A,B,E,F: the two registers change roles
//	quad[i+1] = msg2(msg1(quad[i-3], quad[i-2]) + W[4i-3..4i], quad[i])      while rnds2 runs
//	A,B,E,F = rnds2(state, high half of X0)                 and change back
//
// and so for each chain before the next step. The message words stay in memory, each chain's latest four quads in four
// places of its own: loads are free beside what the vector units have to do, and that is what bounds the rate.
// (Measured on Zen 3: all chains' steps at once is best, 28.7 MH/s; two steps of a chain at a time 25.1, four 20.2;
// the schedule three quads ahead, or spread evenly over the steps without one, 28.2 and 28.5.)
//
// Registers:
//
//	X0                 W+K of the next two rounds, implicit in sha256rnds2
//	X1, X2; X3, X4 ... the state of chain 0, of chain 1 ...: A,B,E,F and C,D,G,H, the first word highest
//	X11 to X15         temporary
//	DI                 the block
//	SI                 W0 to W3 of the decade's first nonce, in the block
//	DX                 decades left
//	R8, R11            the last digits of the batch, and the end of them, in the block
//	R9                 the batch's first nonce, counted from the first decade's
//	R10                the place for the next hit, in the block
//	AX, CX             temporary
const (
	chains         = 5
	firstTemporary = 1 + 2*chains
)

// shani writes one function.
type shani struct {
	*printer
	temporary int // registers handed out
}

func shaniFile() []byte {
	p := newPrinter("amd64 && !purego")
	(&shani{printer: p}).search()
	(&shaniWide{printer: p}).search()

	p.words("shaniK", roundConstants[:]...)
	// The last round's constant carries H0's initial value: A after it is the digest's first word at once.
	last := [4]uint32(roundConstants[60:])
	last[3] += initial[0]
	p.words("shaniKLast", last[:]...)
	p.words("shaniInitial", initial[5], initial[4], initial[1], initial[0], initial[7], initial[6], initial[3], initial[2])
	// W8 to W15 of the second message, without and with the round constants.
	pad := [8]uint32{0: paddingBit, 7: digestLength}
	p.words("shaniPad", pad[:]...)
	for i := range pad {
		pad[i] += roundConstants[8+i]
	}
	p.words("shaniPadK", pad[:]...)
	return p.bytes()
}

// in is a field of the block.
func in(field string) memory { return memory{symbol: "shaniBlock_" + field, base: "DI"} }

func abef(chain int) register { return xmm(1 + 2*chain) }
func cdgh(chain int) register { return xmm(2 + 2*chain) }

// take hands out the temporary registers in turn.
func (s *shani) take() register {
	s.temporary++
	return xmm(firstTemporary + s.temporary%(16-firstTemporary))
}

// quads tells where a compression's quads are, and which of the schedule's parts are known before.
type quads struct {
	fixed map[int]memory // quads that are the same for all nonces
	fixK  map[int]memory // the same with the round constants
	part  map[int]memory // msg1(quad[i-4], quad[i-3])
	align map[int]memory // W[4i-7] to W[4i-4]
	lastK memory         // the round constants of the last step
}

func (q quads) at(chain, i int) memory {
	if m, found := q.fixed[i]; found {
		return m
	}
	return in("quads").plus(16 * (4*chain + i%4))
}

// search writes the search function.
func (s *shani) search() {
	s.function("shaniSearch(b *shaniBlock, decades int) (found int)", 24, "See shani_amd64.go.")
	s.op("VZEROUPPER") // else each change between VEX and legacy instructions may cost hundreds of cycles
	s.op("MOVQ", "b+0(FP)", "DI")
	s.op("MOVQ", "decades+8(FP)", "DX")
	s.op("LEAQ", in("decades"), "SI")
	s.op("LEAQ", in("hits"), "R10")
	s.op("LEAQ", in("digits").plus(16*10), "R11")
	s.op("XORL", "R9", "R9")

	s.label("decade")
	s.op("LEAQ", in("digits"), "R8")

	s.label("batch")
	s.note("First message, rounds 0 to 3: the digit goes into its word.")
	for c := range chains {
		t := s.take()
		s.op("VMOVDQU", memory{base: "SI"}, t)
		s.op("VPADDD", memory{base: "R8"}.plus(16*c), t, t)
		s.op("VMOVDQU", t, in("quads").plus(16*4*c))
		s.op("VPADDD", constant("shaniK"), t, "X0")
		s.op("VMOVDQU", in("midstate"), abef(c))
		s.op("VMOVDQU", in("midstate").plus(16), cdgh(c))
		s.op("SHA256RNDS2", "X0", abef(c), cdgh(c))
		s.op("VPSHUFD", 0x0e, "X0", "X0")
		s.op("SHA256RNDS2", "X0", cdgh(c), abef(c))
	}
	first := quads{
		fixed: map[int]memory{1: in("tail"), 2: in("tail").plus(16), 3: in("tail").plus(32)},
		fixK:  map[int]memory{1: in("tailK"), 2: in("tailK").plus(16), 3: in("tailK").plus(32)},
		part:  map[int]memory{5: in("part5"), 6: in("part6")},
		align: map[int]memory{4: in("align4")},
		lastK: constant("shaniK").plus(16 * 15),
	}
	for i := 1; i < 16; i++ {
		s.step(i, first)
	}

	s.note("Second message: the first digest, W0 first, is the midstate plus the state.")
	for c := range chains {
		a, b, low, high := s.take(), s.take(), s.take(), s.take()
		s.op("VPADDD", in("midstate"), abef(c), a)
		s.op("VPADDD", in("midstate").plus(16), cdgh(c), b)
		s.op("VPSHUFD", 0x1b, a, a)
		s.op("VPSHUFD", 0x1b, b, b)
		s.op("VPUNPCKLQDQ", b, a, low)
		s.op("VPUNPCKHQDQ", b, a, high)
		s.op("VMOVDQU", low, in("quads").plus(16*4*c))
		s.op("VMOVDQU", high, in("quads").plus(16*(4*c+1)))
		s.op("VMOVDQU", constant("shaniInitial"), abef(c))
		s.op("VMOVDQU", constant("shaniInitial").plus(16), cdgh(c))
	}
	second := quads{
		fixed: map[int]memory{2: constant("shaniPad"), 3: constant("shaniPad").plus(16)},
		fixK:  map[int]memory{2: constant("shaniPadK"), 3: constant("shaniPadK").plus(16)},
		lastK: constant("shaniKLast"),
	}
	for i := range 16 {
		s.step(i, second)
	}

	s.note("A is the digest's first word. Is the smallest one at or below the threshold?")
	least := s.take()
	s.op("VPMINUD", abef(0), abef(1), least)
	for c := 2; c < chains; c++ {
		s.op("VPMINUD", abef(c), least, least)
	}
	s.op("VPMINUD", in("threshold"), least, "X0")
	s.op("VPCMPEQD", least, "X0", "X0")
	s.op("VMOVMSKPS", "X0", "AX")
	s.op("TESTL", 8, "AX")
	s.op("JNZ", "hit")

	s.label("next")
	s.op("ADDL", chains, "R9")
	s.op("ADDQ", 16*chains, "R8")
	s.op("CMPQ", "R8", "R11")
	s.op("JNE", "batch")
	s.op("ADDQ", 16, "SI")
	s.op("DECQ", "DX")
	s.op("JNZ", "decade")
	s.op("LEAQ", in("hits"), "AX")
	s.op("SUBQ", "AX", "R10")
	s.op("SHRQ", 1, "R10")
	s.op("MOVQ", "R10", "found+16(FP)")
	s.op("VZEROUPPER")
	s.op("RET")

	s.label("hit")
	for c := range chains {
		s.op("VPMINUD", in("threshold"), abef(c), "X0")
		s.op("VPCMPEQD", abef(c), "X0", "X0")
		s.op("VMOVMSKPS", "X0", "AX")
		s.op("ANDL", 8, "AX")
		s.op("SHRL", 2, "AX") // 2, the size of a hit, or 0
		s.op("LEAL", memory{offset: c, base: "R9"}, "CX")
		s.op("MOVW", "CX", memory{base: "R10"})
		s.op("ADDQ", "AX", "R10")
	}
	s.op("JMP", "next")
}

// step does step i for all chains: four rounds, and quad i+1.
func (s *shani) step(i int, q quads) {
	s.note("Rounds %d to %d.", 4*i, 4*i+3)
	for c := range chains {
		current := s.take()
		k, known := q.fixK[i]
		switch {
		case known:
			s.op("VMOVDQU", k, "X0")
			if i == 3 {
				s.op("VMOVDQU", q.at(c, i), current)
			}
		case i == 15:
			s.op("VMOVDQU", q.at(c, i), current)
			s.op("VPADDD", q.lastK, current, "X0")
		default:
			s.op("VMOVDQU", q.at(c, i), current)
			s.op("VPADDD", constant("shaniK").plus(16*i), current, "X0")
		}
		s.op("SHA256RNDS2", "X0", abef(c), cdgh(c))
		if i >= 3 && i < 15 {
			s.schedule(c, i+1, q, current)
		}
		s.op("VPSHUFD", 0x0e, "X0", "X0")
		s.op("SHA256RNDS2", "X0", cdgh(c), abef(c))
	}
}

// schedule makes quad i. The quad before it is in a register.
func (s *shani) schedule(c, i int, q quads, before register) {
	sum := s.take()
	add := any(q.align[i])
	if _, found := q.align[i]; !found {
		add = s.take()
		s.op("VPALIGNR", 4, q.at(c, i-2), before, add)
	}
	if m, found := q.part[i]; found {
		s.op("VPADDD", m, add, sum)
	} else {
		s.op("VMOVDQU", q.at(c, i-4), sum)
		s.op("SHA256MSG1", q.at(c, i-3), sum)
		s.op("VPADDD", add, sum, sum)
	}
	s.op("SHA256MSG2", before, sum)
	s.op("VMOVDQU", sum, q.at(c, i))
}
