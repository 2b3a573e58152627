package main

import (
	"fmt"
	"maps"
	"slices"
)

// The hybrid kernel does the rounds with the SHA instructions and the message schedule with AVX-512, interleaved in one
// stream of instructions. On Zen 4 that is the best of both: sha256rnds2 is cheap and sha256msg1 and sha256msg2 are dear,
// with AVX-512 it is the other way round.
//
// A batch is twelve nonces, the lanes, each of a unit of its own (avx512.go says what a unit is). For the rounds six lanes
// are in flight at a time, the chains; X0 is implicit in sha256rnds2, so no more than seven would fit. For the schedule
// four lanes are in one vector, with a pair (W[t], W[t+1]) of each lane side by side, t even. Then W+K is stored by pairs,
// and two rounds read their eight bytes with VMOVQ, which breaks the dependency on X0. Pair i is
//
//	pair[i] = pair[i-8] + sigma0(straddle(pair[i-8], pair[i-7])) + straddle(pair[i-4], pair[i-3]) + sigma1(pair[i-1])
//
// The schedule runs ahead of the rounds, so that neither waits for the other. One turn of the loop:
//
//	rounds of batch b, first message        beside    schedule of batch b-1, second message
//	rounds of batch b-1, second message     beside    schedule of batch b+1, first message
//
// So the loop turns once more than there are batches. In its first turn the second message is rubbish and its hits go to
// a place that nobody reads; in its last turn the first one is. What a chain's rounds leave, its state, is read as the
// second message by the schedule of the next turn, before the rounds of that turn write theirs: the first six lanes' in
// the middle of it, when two of the three vectors were read, the others' at its end.
//
// A turn has 3,648 instructions, 756 of them sha256rnds2 and 906 shifts and shuffles, which have two ports of four: those
// bound it. Nobody timed it on a processor with AVX-512 yet. What was timed, on Zen 3, whose SHA instructions take as long
// as Zen 4's: the two halves of a turn with AVX instructions for the same ports in the place of AVX-512's, the same loads
// and stores, and the schedule's results ignored: 73 cycles a nonce. So does the prototype of this design, which took
// 82.7 as a whole on Zen 4. A turn with more lanes does not fit that processor's cache of decoded instructions.
//
// In the first message everything from W3 on is the same for all nonces. What W2 decides alone (with them) comes from a
// table, the same for all lanes; what W0 and W1 decide, the first two rounds and a part of pair 8, is made once a group:
// twelve units.
//
// Registers:
//
//	X0                   W+K of the next two rounds
//	X1, X2; X3, X4 ...   the state of chain 0, of chain 1 ...: A,B,E,F and C,D,G,H, the first word highest
//	X13                  temporary
//	Y16 to Y31           the schedule's, as lanes.go assigns them: no legacy instruction can name these, so that the
//	                     upper halves of X0 to X15 stay clean and legacy instructions do not wait for them
//	DI                   the block
//	SI                   the group of the batch, in the block
//	DX                   turns left
//	R8, R9               the step of the batch, and the end of them, in the block
//	R10                  the place for the next mask of hits, in the block
//	BX                   all masks together
//	K5                   the even places of pairs
//	AX, CX, K1, K2       temporary
const (
	hybridChains  = 6
	hybridStreams = 3
	hybridLanes   = 4 * hybridStreams
	hybridShared  = 16
	hybridSpilled = 8
	hybridStep    = 32             // bytes of a step
	hybridGroup   = 16*12 + 2*3*32 // bytes of a group: see hybridBlock
)

type hybrid struct {
	*printer
	lanes     *lanes
	constants []uint32
}

func (h *hybrid) field(name string) memory { return memory{symbol: "hybridBlock_" + name, base: "DI"} }

// The parts of a group.
func groupStart(lane int) memory  { return memory{base: "SI"}.plus(16 * lane) }
func groupPart(stream int) memory { return memory{base: "SI"}.plus(16*hybridLanes + 32*stream) }
func groupPairs(stream int) memory {
	return memory{base: "SI"}.plus(16*hybridLanes + 32*hybridStreams + 32*stream)
}

// scheduled is W+K of a pair of a lane.
func (h *hybrid) scheduled(message, lane, pair int) memory {
	return h.field("scheduled").plus(32 * (32*(hybridStreams*message+lane/4) + pair)).plus(8 * (lane % 4))
}

// state is where a lane's A,B,E,F (half 0) or C,D,G,H (half 1) is.
func (h *hybrid) state(half, lane int) memory {
	return h.field("state").plus(16 * (hybridLanes*half + lane))
}

func hybridFile() []byte {
	p := newPrinter("amd64 && !purego")
	h := &hybrid{printer: p, lanes: newLanes(p, hybridVectors, memory{})}
	h.lanes.spilled = h.field("spilled")
	h.search()
	if len(h.lanes.shared) > hybridShared || h.lanes.spills > hybridSpilled {
		panic(fmt.Sprintf("%d shared and %d spilled values: make room in hybridBlock", len(h.lanes.shared), h.lanes.spills))
	}

	k := roundConstants
	p.words("hybridK", fourTimes(k[:])...)
	// The last round's constant carries H0's initial value: A after it is the digest's first word at once.
	p.words("hybridKLast", fourTimes([]uint32{k[62], k[63] + initial[0]})...)
	p.words("hybridConstants", h.constants...)
	p.words("hybridInitial", initial[5], initial[4], initial[1], initial[0], initial[7], initial[6], initial[3], initial[2])
	// W+K of W8 to W15 of the second message.
	pad := [8]uint32{0: paddingBit, 7: digestLength}
	for i := range pad {
		pad[i] += k[8+i]
	}
	p.words("hybridPadK", pad[:]...)
	// Which words of two states of A,B,E,F are A,B of four lanes, and which are E,F.
	p.words("hybridFirst", 3, 2, 7, 6, 11, 10, 15, 14)
	p.words("hybridSecond", 1, 0, 5, 4, 9, 8, 13, 12)
	return p.bytes()
}

// fourTimes repeats each pair of words for four lanes.
func fourTimes(words []uint32) (vectors []uint32) {
	for pair := range slices.Chunk(words, 2) {
		vectors = append(vectors, slices.Repeat(pair, 4)...)
	}
	return vectors
}

func (h *hybrid) search() {
	h.function("hybridSearch(b *hybridBlock, groups, steps, batches int) (found int)", 40, "See hybrid_amd64.go.")
	h.op("VZEROUPPER") // the SHA instructions are legacy ones
	h.op("MOVQ", "b+0(FP)", "DI")
	h.op("MOVQ", "groups+8(FP)", "DX")
	h.op("MOVQ", "steps+16(FP)", "R9")
	h.op("SHLQ", 5, "R9")
	h.op("LEAQ", h.field("steps"), "R8")
	h.op("ADDQ", "R8", "R9")
	h.op("MOVL", 0x55, "AX")
	h.op("KMOVW", "AX", "K5")

	g := newGraph()
	g.avx512 = true
	var first, second [hybridStreams]map[*node]int // the pairs to store, by node
	for stream := range hybridStreams {
		first[stream] = h.firstMessage(g, stream)
		second[stream] = h.secondMessage(g, stream)
	}
	var results []*node
	for stream := range hybridStreams {
		for _, n := range g.nodes { // not the maps' order, which changes
			_, isFirst := first[stream][n]
			_, isSecond := second[stream][n]
			if isFirst || isSecond {
				results = append(results, n)
			}
		}
	}
	levels := h.lanes.plan(g.live(results...), h.field("shared"), func(value pair) memory {
		h.constants = append(h.constants, fourTimes([]uint32{value.even(), value.odd()})...)
		return constant("hybridConstants").plus(4*len(h.constants) - 32)
	})
	h.note("What all nonces share.")
	h.lanes.level(levels[perRun], nil)

	h.groups()
	h.op("LEAQ", h.field("groups"), "SI")
	h.op("LEAQ", h.field("masks"), "R10")
	h.op("MOVQ", "batches+24(FP)", "DX")
	h.op("INCQ", "DX")
	h.op("XORL", "BX", "BX")

	var schedule [2][]string
	for message, results := range [2][hybridStreams]map[*node]int{first, second} {
		for stream := range hybridStreams {
			schedule[message] = append(schedule[message], h.capture(func() {
				h.schedule(g, levels[perNonce], message, stream, results[stream])
			})...)
		}
	}
	h.note("The schedule of the first batch, first message.")
	h.lines(schedule[0]...)
	h.label("turn")
	h.note("The rounds of this batch, first message, and the schedule of the one before, second message.")
	h.interleave(h.rounds(0), schedule[1])
	h.note("On to the next batch.")
	h.op("ADDQ", hybridStep, "R8")
	h.op("CMPQ", "R8", "R9")
	h.op("JNE", "same")
	h.op("LEAQ", h.field("steps"), "R8")
	h.op("ADDQ", hybridGroup, "SI")
	h.label("same")
	h.note("The rounds of the batch before, second message, and the schedule of the next one, first message.")
	h.interleave(h.rounds(1), schedule[0])

	h.note("Which lanes are at or below the threshold?")
	threshold := h.field("threshold")
	h.op("VMOVDQU32", h.field("digests").plus(12), "Y16")
	h.op("VMOVDQU32", h.field("digests").plus(12+32), "X17")
	h.op("VPCMPUD.BCST", 2, threshold, "Y16", "K1")
	h.op("VPCMPUD.BCST", 2, threshold, "X17", "K2")
	h.op("KMOVW", "K1", "AX")
	h.op("KMOVW", "K2", "CX")
	h.op("SHLL", 8, "CX")
	h.op("ORL", "CX", "AX")
	h.op("MOVW", "AX", memory{base: "R10"})
	h.op("ORL", "AX", "BX")
	h.op("ADDQ", 2, "R10")
	h.op("DECQ", "DX")
	h.op("JNZ", "turn")
	h.op("MOVQ", "BX", "found+32(FP)")
	h.op("VZEROUPPER")
	h.op("RET")
}

// groups makes what the nonces of each unit share: A,B,E,F after the first two rounds (C,D,G,H then is the midstate's
// A,B,E,F), and what W0 and W1 give to pair 8.
func (h *hybrid) groups() {
	h.op("LEAQ", h.field("groups"), "SI")
	part := h.field("part8")
	part.broadcast, part.pairs = true, true
	h.lanes.fetch(part, "Y16")
	h.label("group")
	h.note("What the nonces of a unit share.")
	for lane := range hybridLanes {
		state := xmm(1 + lane)
		h.op("VMOVQ", groupPairs(lane/4).plus(8*(lane%4)), "X0")
		h.op("VPADDD", constant("hybridK"), "X0", "X0")
		h.op("VMOVDQU", h.field("midstate"), "X13")
		h.op("VMOVDQU", h.field("midstate").plus(16), state)
		h.op("SHA256RNDS2", "X0", "X13", state)
		h.op("VMOVDQU", state, groupStart(lane))
	}
	for stream := range hybridStreams {
		h.op("VMOVDQU32", groupPairs(stream), "Y17")
		h.op("VPSHUFD", swapWords, "Y17", "Y18")
		h.op("VPRORD", 7, "Y18", "Y19")
		h.op("VPRORD", 18, "Y18", "Y20")
		h.op("VPSRLD", 3, "Y18", "Y18")
		h.op("VPTERNLOGD", truthTable(xor3, 0, 1, 2), "Y20", "Y19", "Y18")
		h.op("VPADDD", "Y16", "Y17", "Y17")
		h.op("VPADDD", "Y18", "Y17", "K5", "Y17") // to the even words only
		h.op("VMOVDQU32", "Y17", groupPart(stream))
	}
	h.op("ADDQ", hybridGroup, "SI")
	h.op("DECQ", "DX")
	h.op("JNZ", "group")
}

// firstMessage makes the pairs of the first message in a graph, and returns those to store.
func (h *hybrid) firstMessage(g *graph, stream int) map[*node]int {
	stepPair := func(i int) *node {
		return g.input(memory{base: "R8", offset: 8 * i, broadcast: true, pairs: true}, perNonce)
	}
	pairs := make([]*node, 32)
	for i := 2; i < 8; i++ {
		from := h.field("tail").plus(8 * (i - 2))
		from.broadcast, from.pairs = true, true
		pairs[i] = g.input(from, perRun)
	}
	pairs[8] = g.sum(g.input(groupPart(stream), perGroup), stepPair(0))
	pairs[9] = g.sum(stepPair(1), g.smallSigma1(pairs[8]))
	return g.finish(pairs, 10)
}

// secondMessage does the same for the second message.
func (h *hybrid) secondMessage(g *graph, stream int) map[*node]int {
	pairs := make([]*node, 32)
	for half := range 2 {
		low := g.input(h.state(half, 4*stream), perNonce)
		high := g.input(h.state(half, 4*stream+2), perNonce)
		for i, choice := range []string{"hybridFirst", "hybridSecond"} {
			words := g.gather(low, high, constant(choice))
			pairs[half+2*i] = g.sum(words, g.input(h.field("midstates").plus(32*(half+2*i)), perRun))
		}
	}
	results := make(map[*node]int)
	for i := range 4 {
		results[pairs[i]] = i
		pairs[4+i] = g.literal(0)
	}
	pairs[4], pairs[7] = g.pair(pairOf(paddingBit, 0)), g.pair(pairOf(0, digestLength))
	for n, i := range g.finish(pairs, 8) {
		results[n] = i
	}
	return results
}

// finish makes the pairs from i on.
func (g *graph) finish(pairs []*node, i int) map[*node]int {
	for ; i < 32; i++ {
		pairs[i] = g.sum(pairs[i-8], g.smallSigma0(g.straddle(pairs[i-8], pairs[i-7])), g.straddle(pairs[i-4], pairs[i-3]),
			g.smallSigma1(pairs[i-1]))
	}
	results := make(map[*node]int)
	for i := 8; i < 32; i++ {
		results[pairs[i]] = i
	}
	return results
}

// schedule writes the schedule of one vector of lanes: those nodes that its results need, and W+K of them to memory.
func (h *hybrid) schedule(g *graph, nodes []*node, message, stream int, results map[*node]int) {
	needed := g.live(slices.Collect(maps.Keys(results))...)
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return !slices.Contains(needed, n) })
	l := h.lanes
	l.made = func(n *node, at register) {
		i, found := results[n]
		if !found {
			return
		}
		k := constant("hybridK").plus(32 * i)
		if message == 1 && i == 31 {
			k = constant("hybridKLast")
		}
		sum := l.vectors.name(l.take(0, n))
		h.op("VPADDD", k, at, sum)
		h.op("VMOVDQU32", sum, h.scheduled(message, 4*stream, i))
		if len(l.uses[n]) == 0 {
			l.release(n)
		}
	}
	l.level(nodes, nil)
	l.made = nil
}

// rounds returns the rounds of all lanes, in small parts.
func (h *hybrid) rounds(message int) (parts [][]string) {
	part := func(write func()) { parts = append(parts, h.capture(write)) }
	starts := []int{0, hybridChains}
	if message == 1 {
		slices.Reverse(starts) // for the digests
	}
	for _, start := range starts {
		var a, b [hybridChains]register // A,B,E,F and C,D,G,H
		for c := range hybridChains {
			a[c], b[c] = xmm(1+2*c), xmm(2+2*c)
			part(func() {
				if message == 0 {
					h.op("VMOVDQU", groupStart(start+c), a[c])
					h.op("VMOVDQU", h.field("midstate"), b[c])
				} else {
					h.op("VMOVDQU", constant("hybridInitial"), a[c])
					h.op("VMOVDQU", constant("hybridInitial").plus(16), b[c])
				}
			})
		}
		for i := 1 - message; i < 32; i++ {
			for c := range hybridChains {
				wk := h.scheduled(message, start+c, i)
				switch {
				case message == 0 && i == 1:
					wk = memory{base: "R8"}.plus(16)
				case message == 0 && i < 8:
					wk = h.field("tailK").plus(8 * (i - 2))
				case message == 1 && i >= 4 && i < 8:
					wk = constant("hybridPadK").plus(8 * (i - 4))
				}
				part(func() {
					h.op("VMOVQ", wk, "X0")
					h.op("SHA256RNDS2", "X0", a[c], b[c])
				})
				a[c], b[c] = b[c], a[c]
			}
		}
		if message == 0 {
			for c := range hybridChains {
				part(func() {
					h.op("VMOVDQU", a[c], h.state(0, start+c))
					h.op("VMOVDQU", b[c], h.state(1, start+c))
				})
			}
			continue
		}
		// A, the highest word, is the digest's first one. Each state is stored so that its lower words fall where those of
		// the lanes before it will be: what stays is A of every lane, side by side, and no shuffle was needed.
		for c := hybridChains - 1; c >= 0; c-- {
			part(func() { h.op("VMOVDQU", a[c], h.field("digests").plus(4*(start+c))) })
		}
	}
	return parts
}

// interleave writes lines evenly between parts, which stay whole.
func (h *hybrid) interleave(parts [][]string, lines []string) {
	written := 0
	for i, part := range parts {
		h.lines(part...)
		upTo := (i + 1) * len(lines) / len(parts)
		h.lines(lines[written:upTo]...)
		written = upTo
	}
}
