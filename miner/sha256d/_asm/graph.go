package main

import (
	"math/bits"
	"slices"
)

// A graph is a computation on vectors, written down before it is put into registers. Every node is one instruction at
// most: equal nodes are one node, and what is known when the code is generated is computed then.
//
// Each node has a level, which says how often it changes: it is computed in the loop of its level and kept in memory for
// the loops inside that one. The level of a node is the highest of its operands'.
type graph struct {
	nodes  []*node
	known  map[key]*node
	given  map[*node]*node // smallSigma0 of inputs, where that is an input too
	avx512 bool            // there are rotations and functions of three values
}

// The levels.
const (
	fixed    = iota // when the code is generated
	perRun          // once a run: the words that all nonces share
	perGroup        // for each group of lanes: what the nonces of a decade share
	perNonce        // for each last digit
	numLevels
)

type operation int

const (
	literal operation = iota // the same known pair of words in every lane
	input                    // a vector in memory
	add
	xor
	and
	shiftLeft
	shiftRight
	// With AVX-512:
	rotateRight
	xor3
	choose
	majority
	// On vectors of pairs:
	straddle // the odd word of a and the even word of b
	gather   // words of a and b, chosen by the vector in memory at from
)

// A literal is a pair of words: vectors of pairs have the low half in even places and the high one in odd places, all
// others have equal halves.
type pair uint64

func same(word uint32) pair        { return pairOf(word, word) }
func pairOf(even, odd uint32) pair { return pair(odd)<<32 | pair(even) }
func (p pair) even() uint32        { return uint32(p) }
func (p pair) odd() uint32         { return uint32(p >> 32) }
func (p pair) each(f func(even, odd uint32) uint32, q pair) pair {
	return pairOf(f(p.even(), q.even()), f(p.odd(), q.odd()))
}

type node struct {
	key
	level int
}

type key struct {
	operation operation
	a, b, c   *node
	value     pair   // of a literal; how far to shift
	from      memory // of an input; of the choice that gather makes
}

func newGraph() *graph { return &graph{known: make(map[key]*node), given: make(map[*node]*node)} }

// operands returns those that there are.
func (n *node) operands() []*node {
	return slices.DeleteFunc([]*node{n.a, n.b, n.c}, func(n *node) bool { return n == nil })
}

func (g *graph) make(k key, level int) *node {
	if n := g.known[k]; n != nil {
		return n
	}
	n := &node{key: k, level: level}
	g.known[k] = n
	g.nodes = append(g.nodes, n)
	return n
}

func (g *graph) literal(value uint32) *node { return g.pair(same(value)) }

func (g *graph) pair(value pair) *node {
	return g.make(key{operation: literal, value: value}, fixed)
}

func (g *graph) input(from memory, level int) *node {
	return g.make(key{operation: input, from: from}, level)
}

// binary makes a+b, a^b or a&b.
func (g *graph) binary(o operation, a, b *node) *node {
	if a.operation == literal && b.operation == literal {
		switch o {
		case add:
			return g.pair(a.value.each(func(a, b uint32) uint32 { return a + b }, b.value))
		case xor:
			return g.pair(a.value ^ b.value)
		default:
			return g.pair(a.value & b.value)
		}
	}
	if a.operation == literal {
		a, b = b, a
	}
	if b.operation == literal && b.value == 0 {
		if o == and {
			return b
		}
		return a
	}
	if n := g.known[key{operation: o, a: b, b: a}]; n != nil {
		return n
	}
	return g.make(key{operation: o, a: a, b: b}, max(a.level, b.level))
}

func (g *graph) shift(o operation, a *node, by int) *node {
	if a.operation == literal {
		f := map[operation]func(x, by uint32) uint32{
			shiftLeft:   func(x, by uint32) uint32 { return x << by },
			shiftRight:  func(x, by uint32) uint32 { return x >> by },
			rotateRight: func(x, by uint32) uint32 { return bits.RotateLeft32(x, -int(by)) },
		}[o]
		return g.pair(a.value.each(f, same(uint32(by))))
	}
	return g.make(key{operation: o, a: a, value: pair(by)}, a.level)
}

func (g *graph) xor(a, b *node) *node { return g.binary(xor, a, b) }

// sum adds terms, those of the lowest level first, so that each loop adds only what changes in it; within a level in
// the order given.
func (g *graph) sum(terms ...*node) *node {
	terms = slices.Clone(terms)
	slices.SortStableFunc(terms, func(a, b *node) int { return a.level - b.level })
	total := g.literal(0)
	for _, term := range terms {
		total = g.binary(add, total, term)
	}
	return total
}

// sigma makes the exclusive or of x rotated right by r1 and r2, and rotated by r3 or, without a rotation, shifted by it.
// There is no rotation in AVX2, so each is two shifts. Their order keeps three registers busy, no more.
func (g *graph) sigma(x *node, r1, r2, r3 int, rotate3 bool) *node {
	if g.avx512 {
		third := shiftRight
		if rotate3 {
			third = rotateRight
		}
		return g.ternary(xor3, g.shift(rotateRight, x, r1), g.shift(rotateRight, x, r2), g.shift(third, x, r3))
	}
	first := g.xor(g.shift(shiftRight, x, r1), g.shift(shiftLeft, x, 32-r1))
	second := g.xor(g.shift(shiftRight, x, r2), g.shift(shiftLeft, x, 32-r2))
	both := g.xor(first, second)
	third := g.shift(shiftRight, x, r3)
	if rotate3 {
		third = g.xor(third, g.shift(shiftLeft, x, 32-r3))
	}
	return g.xor(both, third)
}

func (g *graph) bigSigma0(x *node) *node { return g.sigma(x, 2, 13, 22, true) }
func (g *graph) bigSigma1(x *node) *node { return g.sigma(x, 6, 11, 25, true) }
func (g *graph) smallSigma0(x *node) *node {
	if n := g.given[x]; n != nil {
		return n
	}
	return g.sigma(x, 7, 18, 3, false)
}
func (g *graph) smallSigma1(x *node) *node { return g.sigma(x, 17, 19, 10, false) }

// ternary makes a function of three values, of which AVX-512 has every one in one instruction.
func (g *graph) ternary(o operation, a, b, c *node) *node {
	if a.operation == literal && b.operation == literal && c.operation == literal {
		x, y, z := a.value, b.value, c.value
		switch o {
		case xor3:
			return g.pair(x ^ y ^ z)
		case choose:
			return g.pair(x&y | ^x&z)
		default:
			return g.pair(x&y | x&z | y&z)
		}
	}
	return g.make(key{operation: o, a: a, b: b, c: c}, max(a.level, b.level, c.level))
}

// straddle makes the pair between two pairs that follow one another.
func (g *graph) straddle(a, b *node) *node {
	if a.operation == literal && b.operation == literal {
		return g.pair(pairOf(a.value.odd(), b.value.even()))
	}
	return g.make(key{operation: straddle, a: a, b: b}, max(a.level, b.level))
}

func (g *graph) gather(a, b *node, choice memory) *node {
	return g.make(key{operation: gather, a: a, b: b, from: choice}, max(a.level, b.level))
}

// ch is FIPS 180-4's (e and f) xor (not e and g).
func (g *graph) ch(e, f, h *node) *node {
	if g.avx512 {
		return g.ternary(choose, e, f, h)
	}
	return g.xor(h, g.binary(and, e, g.xor(f, h)))
}

// maj is b where a and b, or b and c, agree. The second half of it was the first half one round ago.
func (g *graph) maj(a, b, c *node) *node {
	if g.avx512 {
		return g.ternary(majority, a, b, c)
	}
	return g.xor(b, g.binary(and, g.xor(a, b), g.xor(b, c)))
}

// compress makes the state after 64 rounds (FIPS 180-4 §6.2.2), without the final addition. With onlyFirst it makes A
// alone, plus H0's initial value: the first word of a digest.
func (g *graph) compress(state [8]*node, message [16]*node, onlyFirst bool) [8]*node {
	w := slices.Clone(message[:])
	a, b, c, d, e, f, h6, h := state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7]
	for t := range 64 {
		if t >= 16 {
			w = append(w, g.sum(w[t-16], g.smallSigma0(w[t-15]), w[t-7], g.smallSigma1(w[t-2])))
		}
		k := g.literal(roundConstants[t])
		if onlyFirst && t == 63 {
			k = g.literal(roundConstants[t] + initial[0])
			first := g.sum(w[t], k, h, g.maj(a, b, c), g.bigSigma0(a), g.ch(e, f, h6), g.bigSigma1(e))
			return [8]*node{first}
		}
		terms := []*node{w[t], k, h, g.ch(e, f, h6), g.bigSigma1(e)}
		two := []*node{g.maj(a, b, c), g.bigSigma0(a)}
		var newE, newA *node
		if t1 := g.sum(terms...); d.level == t1.level || len(lower(terms, t1.level)) == 0 {
			newE, newA = g.sum(d, t1), g.sum(append(two, t1)...)
		} else {
			// D changes less often than the rest: add it to those terms that do so too, outside the loop.
			often := g.sum(higher(terms, t1.level)...)
			seldom := lower(terms, t1.level)
			newE = g.sum(append(seldom, d, often)...)
			newA = g.sum(append(append(slices.Clone(seldom), two...), often)...)
		}
		h, h6, f, e, d, c, b, a = h6, f, e, newE, c, b, a, newA
	}
	return [8]*node{a, b, c, d, e, f, h6, h}
}

// doubleDigest makes the first word of the digest of the digest.
func (g *graph) doubleDigest(midstate [8]*node, message [16]*node) *node {
	var state [8]*node
	var outer [16]*node
	for i := range state {
		state[i] = g.literal(initial[i])
	}
	for i, n := range g.compress(midstate, message, false) {
		outer[i] = g.sum(n, midstate[i])
	}
	for i, value := range [8]uint32{0: paddingBit, 7: digestLength} {
		outer[8+i] = g.literal(value)
	}
	return g.compress(state, outer, true)[0]
}

func lower(terms []*node, level int) []*node {
	return slices.DeleteFunc(slices.Clone(terms), func(n *node) bool { return n.level >= level })
}

func higher(terms []*node, level int) []*node {
	return slices.DeleteFunc(slices.Clone(terms), func(n *node) bool { return n.level < level })
}

// live returns the nodes that the results need, in the order they were made.
func (g *graph) live(results ...*node) []*node {
	needed := make(map[*node]bool)
	var visit func(n *node)
	visit = func(n *node) {
		if n == nil || needed[n] {
			return
		}
		needed[n] = true
		for _, operand := range n.operands() {
			visit(operand)
		}
	}
	for _, n := range results {
		visit(n)
	}
	return slices.DeleteFunc(slices.Clone(g.nodes), func(n *node) bool { return !needed[n] })
}
