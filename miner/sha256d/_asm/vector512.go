package main

import "fmt"

// What AVX-512 has beyond AVX2: more registers, rotations, and every function of three values in one instruction, which
// writes its result over one of them.

// ternary writes a function of three values. The result takes the register of a value that is not used any more; if
// there is none, of a copy.
func (l *lanes) ternary(i int, n *node) {
	operands := []*node{n.a, n.b, n.c}
	// One operand may be in memory.
	third := -1
	for k, operand := range operands {
		if _, found := l.in[operand]; !found && third < 0 && !l.wanted(operand, i) && !l.place(operand).pairs {
			third = k
		}
	}
	for k, operand := range operands {
		if k != third {
			l.load(i, operand, operands...)
		}
	}
	over := -1
	for k, operand := range operands {
		if k != third && len(l.uses[operand]) == 1 {
			over = k
			break
		}
	}
	var destination register
	var r int
	switch {
	case over >= 0:
		r = l.in[operands[over]]
		destination = l.vectors.name(r)
	case third >= 0:
		// What is in memory is copied by loading it.
		over, third = third, -1
		r = l.take(i, operands...)
		destination = l.vectors.name(r)
		l.fetch(l.place(operands[over]), destination)
	default:
		over = 0
		r = l.take(i, operands...)
		destination = l.vectors.name(r)
		l.op(l.vectors.move, l.registerOf(operands[0]), destination)
	}
	second := -1
	for k := range operands {
		switch {
		case k == over || k == third:
		case second < 0:
			second = k
		default:
			third = k
		}
	}
	var last any
	if _, found := l.in[operands[third]]; found {
		last = l.registerOf(operands[third])
	} else {
		last = l.place(operands[third])
	}
	middle := l.registerOf(operands[second])
	l.combine("VPTERNLOGD", truthTable(n.operation, over, second, third), last, middle, destination)
	for _, operand := range operands {
		l.used(operand, i)
	}
	l.in[n], l.holds[r] = r, n
}

// truthTable is what VPTERNLOGD wants to know of a function: its value for all operands, the one that is written over
// counting 4, the second one 2 and the third one 1.
func truthTable(o operation, over, second, third int) int {
	table := 0
	for i := range 8 {
		var x [3]int
		x[over], x[second], x[third] = i>>2, i>>1&1, i&1
		var value int
		switch o {
		case xor3:
			value = x[0] ^ x[1] ^ x[2]
		case choose:
			value = x[0]&x[1] | (1-x[0])&x[2]
		case majority:
			value = (x[0] + x[1] + x[2]) / 2
		default:
			panic(fmt.Sprintf("operation %d has no truth table", o))
		}
		table |= value << i
	}
	return table
}

// straddle takes the even words from b, the odd ones from a, and swaps them. Mask K5 has the even places.
func (l *lanes) straddle(i int, n *node) {
	first := l.load(i, n.a, n.b)
	var second any
	if _, found := l.in[n.b]; found || l.wanted(n.b, i) || l.place(n.b).pairs {
		second = l.load(i, n.b, n.a)
	} else {
		second = l.place(n.b)
	}
	l.used(n.a, i)
	l.used(n.b, i)
	to := l.assign(i, n)
	l.combine("VPBLENDMD", second, first, "K5", to)
	l.op("VPSHUFD", swapWords, to, to)
}

// swapWords is the shuffle that swaps the two words of each pair.
const swapWords = 0xb1

// gather writes its result over the vector that tells which words are wanted: 0 to 7 are a's, 8 to 15 b's.
func (l *lanes) gather(i int, n *node) {
	first := l.load(i, n.a, n.b)
	second := l.load(i, n.b, n.a)
	r := l.take(i, n.a, n.b)
	to := l.vectors.name(r)
	l.fetch(n.from, to)
	l.op("VPERMI2D", second, first, to)
	l.used(n.a, i)
	l.used(n.b, i)
	l.in[n], l.holds[r] = r, n
}
