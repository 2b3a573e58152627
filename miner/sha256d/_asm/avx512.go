package main

import "fmt"

// The AVX-512 kernel has one nonce in each of 16 lanes. A group is as many units as there are lanes, one unit a lane; a
// unit is the nonces that have W0 and W1 in common, 10 of 9 digits or 100 of 10. All lanes step through the unit's W2
// together, so W2 and what it alone decides come from a table and are the same in all lanes; what W0 and W1 decide is
// computed once a group.
//
// Registers:
//
//	DI              the block
//	SI              W0 and W1 of the group's lanes, in the block
//	DX              groups left
//	R8, R11         the step, and the end of them, in the block
//	R10             the place for the next mask of hits, in the block
//	BX              all masks together
//	AX              temporary
//	K1              the mask
//	Z0 to Z31       as lanes.go assigns them
const (
	avx512Shared  = 64
	avx512Spilled = 16
	avx512Lanes   = 16
	avx512Bytes   = 4 * avx512Lanes
)

func avx512File() []byte {
	p := newPrinter("amd64 && !purego")
	field := func(name string) memory { return memory{symbol: "avx512Block_" + name, base: "DI"} }
	word := func(m memory, i int) memory {
		m = m.plus(4 * i)
		m.broadcast = true
		return m
	}

	g := newGraph()
	g.avx512 = true
	var midstate [8]*node
	var inner [16]*node
	for i := range midstate {
		midstate[i] = g.input(word(field("midstate"), i), perRun)
	}
	for i := range inner {
		inner[i] = g.input(word(field("message"), i), perRun)
	}
	for i := range 2 {
		inner[i] = g.input(memory{offset: avx512Bytes * i, base: "SI"}, perGroup)
	}
	step := memory{base: "R8"}
	inner[2] = g.input(word(step, 0), perNonce)
	g.given[inner[2]] = g.input(word(step, 1), perNonce)
	result := g.doubleDigest(midstate, inner)

	l := newLanes(p, avx512Vectors, field("spilled"))
	var constants []uint32
	levels := l.plan(g.live(result), field("shared"), func(value pair) memory {
		constants = append(constants, value.even())
		return word(constant("avx512Constants"), len(constants)-1)
	})

	p.function("avx512Search(b *avx512Block, groups, steps int) (found int)", 32, "See avx512_amd64.go.")
	p.op("MOVQ", "b+0(FP)", "DI")
	p.op("MOVQ", "groups+8(FP)", "DX")
	p.op("MOVQ", "steps+16(FP)", "R11")
	p.op("SHLQ", 3, "R11")
	p.op("LEAQ", field("steps"), "R8")
	p.op("ADDQ", "R8", "R11")
	p.op("LEAQ", field("groups"), "SI")
	p.op("LEAQ", field("masks"), "R10")
	p.op("XORL", "BX", "BX")
	p.note("What all nonces share.")
	l.level(levels[perRun], nil)

	p.label("group")
	p.note("What the nonces of a unit share.")
	l.level(levels[perGroup], nil)
	p.op("LEAQ", field("steps"), "R8")

	p.label("step")
	r := l.level(levels[perNonce], result)
	p.note("Which lanes are at or below the threshold?")
	l.combine("VPCMPUD", 2, word(field("threshold"), 0), r, "K1")
	p.op("KMOVW", "K1", "AX")
	p.op("MOVW", "AX", memory{base: "R10"})
	p.op("ORL", "AX", "BX")
	p.op("ADDQ", 2, "R10")
	p.op("ADDQ", 8, "R8")
	p.op("CMPQ", "R8", "R11")
	p.op("JNE", "step")
	p.op("ADDQ", 2*avx512Bytes, "SI")
	p.op("DECQ", "DX")
	p.op("JNZ", "group")
	p.op("MOVQ", "BX", "found+24(FP)")
	p.op("VZEROUPPER")
	p.op("RET")
	if len(l.shared) > avx512Shared || l.spills > avx512Spilled {
		panic(fmt.Sprintf("%d shared and %d spilled values: make room in avx512Block", len(l.shared), l.spills))
	}
	if len(constants)%2 != 0 {
		constants = append(constants, 0)
	}
	p.words("avx512Constants", constants...)
	return p.bytes()
}
