package main

import "fmt"

// The vector kernels have one nonce in each 32-bit lane. A group is as many decades as there are lanes, one decade a
// lane; all lanes step through the last digits together. So what a decade shares is computed once a group, and the
// nonces of a group are consecutive.
//
// Six of these instructions in sixteen are shifts, which have two ports on Zen 3, the others four. That mix alone runs at
// 3.1 to 3.7 instructions a cycle there, depending on how far apart what depends on each other is; the kernel at 3.2: 246
// cycles a nonce. (Tried and no better: the schedule a round ahead; A's half of a round before E's; the sigmas as a chain
// of single shifts, or nested; the sums in another order. Half the code, which then fits the cache of decoded
// instructions, runs but 3 % faster. Clang's order of the same computation takes 1 % longer.)
//
// Registers:
//
//	DI              the block
//	SI              W0 to W3 of the group's lanes, in the block
//	DX              groups left
//	R8, R11         the last digit, and the end of them, in the block
//	R10             the place for the next mask of hits, in the block
//	AX              temporary
//	Y0 to Y15       as lanes.go assigns them

// The places that avx2Block has for values of outer loops and for spilled ones, and the lanes.
const (
	avx2Shared  = 64
	avx2Spilled = 16
	avx2Lanes   = 8
	avx2Bytes   = 4 * avx2Lanes
)

// avx2File has a function for each word that the last digit can be in: what comes before that word is computed once a
// group.
func avx2File() []byte {
	p := newPrinter("amd64 && !purego")
	constants := make(map[pair]memory)
	for word := 1; word <= 2; word++ {
		p.avx2Search(word, constants)
	}
	words := make([]uint32, avx2Lanes*len(constants))
	for value, at := range constants {
		for lane := range avx2Lanes {
			words[at.offset/4+lane] = value.even()
		}
	}
	p.words("avx2Constants", words...)
	return p.bytes()
}

// firstWord makes the first word of the double digest, with the last digit in the given word of the message.
func firstWord(g *graph, word int, field func(name string) memory) *node {
	var midstate [8]*node
	var inner [16]*node
	for i := range midstate {
		midstate[i] = g.input(field("midstate").plus(avx2Bytes*i), perRun)
	}
	for i := range inner {
		if i < 4 {
			inner[i] = g.input(memory{offset: avx2Bytes * i, base: "SI"}, perGroup)
		} else {
			inner[i] = g.input(field("tail").plus(avx2Bytes*(i-4)), perRun)
		}
	}
	inner[word] = g.sum(inner[word], g.input(memory{base: "R8"}, perNonce))
	return g.doubleDigest(midstate, inner)
}

// avx2Search writes the search function for the given word. Constants collects the literals and their places.
func (p *printer) avx2Search(word int, constants map[pair]memory) {
	field := func(name string) memory { return memory{symbol: "avx2Block_" + name, base: "DI"} }
	g := newGraph()
	result := firstWord(g, word, field)
	l := newLanes(p, avx2Vectors, field("spilled"))
	levels := l.plan(g.live(result), field("shared"), func(value pair) memory {
		if _, found := constants[value]; !found {
			constants[value] = constant("avx2Constants").plus(avx2Bytes * len(constants))
		}
		return constants[value]
	})

	name := fmt.Sprintf("avx2Search%d", word)
	p.function(name+"(b *avx2Block, groups int)", 16, "See avx2_amd64.go.")
	p.op("MOVQ", "b+0(FP)", "DI")
	p.op("MOVQ", "groups+8(FP)", "DX")
	p.op("LEAQ", field("groups"), "SI")
	p.op("LEAQ", field("masks"), "R10")
	p.op("LEAQ", field("digits").plus(avx2Bytes*10), "R11")
	p.note("What all nonces share.")
	l.level(levels[perRun], nil)

	p.label("group")
	p.note("What the nonces of a decade share.")
	l.level(levels[perGroup], nil)
	p.op("LEAQ", field("digits"), "R8")

	p.label("nonce")
	r := l.level(levels[perNonce], result)
	other := register("Y0")
	if r == other {
		other = "Y1"
	}
	p.note("Which lanes are at or below the threshold?")
	p.op("VPMINUD", field("threshold"), r, other)
	p.op("VPCMPEQD", r, other, other)
	p.op("VMOVMSKPS", other, "AX")
	p.op("MOVB", "AX", memory{base: "R10"})
	p.op("INCQ", "R10")
	p.op("ADDQ", avx2Bytes, "R8")
	p.op("CMPQ", "R8", "R11")
	p.op("JNE", "nonce")
	p.op("ADDQ", 4*avx2Bytes, "SI")
	p.op("ADDQ", 16-10, "R10") // the masks of a group have 16 bytes
	p.op("DECQ", "DX")
	p.op("JNZ", "group")
	p.op("VZEROUPPER")
	p.op("RET")
	if len(l.shared) > avx2Shared || l.spills > avx2Spilled {
		panic(fmt.Sprintf("%s: %d shared and %d spilled values: make room in avx2Block", name, len(l.shared), l.spills))
	}
}
