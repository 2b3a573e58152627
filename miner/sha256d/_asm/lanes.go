package main

import (
	"fmt"
	"slices"
)

// lanes puts a graph into registers, one level at a time.
//
// Where a value is: in a register, in memory, or both. A register that is needed is taken from the value whose next use
// is farthest away; that value is written to memory first, unless it is there already or is not used any more. An
// operand in memory is used from there, since loads are free beside the arithmetic, unless it is needed again soon.
type lanes struct {
	*printer
	vectors vectors
	homes   map[*node]memory           // values in memory: inputs, constants, results of outer levels
	shared  map[*node]memory           // the places for results that inner levels use
	spilled memory                     // the first place for spilled values
	spills  int                        // how many there are of those
	made    func(n *node, at register) // if not nil, called after the instruction of each node

	// While a level is written:
	in    map[*node]int   // register
	holds []*node         // by register; the first few may be others'
	uses  map[*node][]int // indices of instructions, the next one first
	slot  map[*node]int
	free  []int // spill places
	count int   // of spill places
}

const soon = 8 // instructions

// vectors is a kind of vector registers.
type vectors struct {
	name      func(n int) register
	bytes     int
	first     int    // register; those before are not ours
	registers int    // as many as there are
	move      string // between registers, and between them and memory
}

var (
	avx2Vectors   = vectors{name: ymm, bytes: 32, registers: 16, move: "VMOVDQU"}
	avx512Vectors = vectors{name: zmm, bytes: 64, registers: 32, move: "VMOVDQU32"}
	hybridVectors = vectors{name: ymm, bytes: 32, first: 16, registers: 32, move: "VMOVDQU32"}
)

// newLanes puts graphs into registers of that kind.
func newLanes(p *printer, v vectors, spilled memory) *lanes {
	return &lanes{printer: p, vectors: v, spilled: spilled, homes: make(map[*node]memory), shared: make(map[*node]memory)}
}

// plan sorts nodes by level and finds the places of all values that are in memory: inputs are there already, for
// literals constant tells where, and what inner loops need of outer ones goes to shared and after it.
func (l *lanes) plan(nodes []*node, shared memory, constant func(pair) memory) (levels [numLevels][]*node) {
	for _, n := range nodes {
		switch n.operation {
		case literal:
			l.homes[n] = constant(n.value)
		case input:
			l.homes[n] = n.from
		default:
			levels[n.level] = append(levels[n.level], n)
		}
		for _, operand := range n.operands() {
			if operand.operation <= input || operand.level == n.level {
				continue
			}
			if _, found := l.shared[operand]; !found {
				l.shared[operand] = shared.plus(l.vectors.bytes * len(l.shared))
			}
		}
	}
	return levels
}

// slotAt is a spill place.
func (l *lanes) slotAt(i int) memory { return l.spilled.plus(l.vectors.bytes * i) }

// level writes the instructions of nodes, which are all of one level. It returns the register of result, if that is
// not nil. Values for inner levels are stored where l.shared says.
func (l *lanes) level(nodes []*node, result *node) register {
	l.in, l.uses, l.slot = make(map[*node]int), make(map[*node][]int), make(map[*node]int)
	l.holds, l.free, l.count = make([]*node, l.vectors.registers), nil, 0
	for i, n := range nodes {
		for _, operand := range n.operands() {
			l.uses[operand] = append(l.uses[operand], i)
		}
	}
	if result != nil {
		l.uses[result] = append(l.uses[result], len(nodes))
	}
	for i, n := range nodes {
		l.instruction(i, n)
		if l.made != nil {
			l.made(n, l.registerOf(n))
		}
		if to, found := l.shared[n]; found {
			l.op(l.vectors.move, l.registerOf(n), to)
			l.homes[n] = to
			l.release(n)
		}
	}
	l.spills = max(l.spills, l.count)
	if result == nil {
		return ""
	}
	return l.load(len(nodes), result)
}

func (l *lanes) registerOf(n *node) register { return l.vectors.name(l.in[n]) }

// instruction writes one node.
func (l *lanes) instruction(i int, n *node) {
	name := map[operation]string{add: "VPADDD", xor: "VPXOR", and: "VPAND", shiftLeft: "VPSLLD", shiftRight: "VPSRLD",
		rotateRight: "VPRORD"}[n.operation]
	switch n.operation {
	case xor3, choose, majority:
		l.ternary(i, n)
		return
	case straddle:
		l.straddle(i, n)
		return
	case gather:
		l.gather(i, n)
		return
	}
	a := n.a
	if n.b == nil {
		source := l.load(i, a)
		l.used(a, i)
		l.op(name, int(n.value), source, l.assign(i, n))
		return
	}
	b := n.b
	if _, found := l.in[a]; !found {
		a, b = b, a // all operations with two operands are commutative: the second one may be in memory
	}
	first := l.load(i, a)
	var second any
	if _, found := l.in[b]; found || l.wanted(b, i) || l.place(b).pairs {
		second = l.load(i, b, a)
		first = l.registerOf(a)
	} else {
		second = l.place(b)
	}
	if r, found := l.in[b]; found && r >= 8 && l.vectors.registers == 16 && second != first {
		second, first = first, second.(register) // one byte less when the first operand is one of Y0 to Y7
	}
	l.used(a, i)
	l.used(b, i)
	l.combine(name, second, first, l.assign(i, n))
}

// combine writes an instruction whose first operand may be a word in memory that stands for a vector of them.
func (l *lanes) combine(name string, operands ...any) {
	for _, operand := range operands {
		if m, ok := operand.(memory); ok && m.broadcast {
			if m.pairs {
				panic("no instruction takes a pair in memory for all lanes")
			}
			name += ".BCST"
		}
	}
	l.op(name, operands...)
}

// wanted reports whether n is used again soon after instruction i.
func (l *lanes) wanted(n *node, i int) bool {
	u := l.uses[n]
	return len(u) > 1 && u[1] > i && u[1]-i <= soon
}

// place is where n is in memory.
func (l *lanes) place(n *node) memory {
	if m, found := l.homes[n]; found {
		return m
	}
	if s, found := l.slot[n]; found {
		return l.slotAt(s)
	}
	panic(fmt.Sprintf("a value of operation %d is nowhere", n.operation))
}

// load returns a register with n, which keeps clear of the registers of the other nodes.
func (l *lanes) load(i int, n *node, keep ...*node) register {
	if r, found := l.in[n]; found {
		return l.vectors.name(r)
	}
	from := l.place(n)
	r := l.take(i, keep...)
	l.in[n], l.holds[r] = r, n
	l.fetch(from, l.vectors.name(r))
	return l.vectors.name(r)
}

// fetch writes a load.
func (l *lanes) fetch(from memory, to register) {
	switch {
	case !from.broadcast:
		l.op(l.vectors.move, from, to)
	case from.pairs:
		l.op("VPBROADCASTQ", from, to)
	default:
		l.op("VPBROADCASTD", from, to)
	}
}

// assign returns a register for the new value n.
func (l *lanes) assign(i int, n *node) register {
	r := l.take(i)
	l.in[n], l.holds[r] = r, n
	return l.vectors.name(r)
}

// take frees a register.
func (l *lanes) take(i int, keep ...*node) int {
	best, farthest := -1, -1
	for r, n := range l.holds {
		if r < l.vectors.first {
			continue
		}
		if n == nil {
			return r
		}
		if slices.Contains(keep, n) {
			continue
		}
		if next := l.uses[n][0]; next > farthest {
			best, farthest = r, next
		}
	}
	n := l.holds[best]
	_, home := l.homes[n]
	_, spilled := l.slot[n]
	if !home && !spilled {
		if len(l.free) == 0 {
			l.free = append(l.free, l.count)
			l.count++
		}
		s := l.free[len(l.free)-1]
		l.free = l.free[:len(l.free)-1]
		l.slot[n] = s
		l.op(l.vectors.move, l.vectors.name(best), l.slotAt(s))
	}
	delete(l.in, n)
	l.holds[best] = nil
	return best
}

// used counts off the uses of n in instruction i.
func (l *lanes) used(n *node, i int) {
	for len(l.uses[n]) > 0 && l.uses[n][0] <= i {
		l.uses[n] = l.uses[n][1:]
	}
	l.release(n)
}

// release lets go of n when it is not used any more.
func (l *lanes) release(n *node) {
	if len(l.uses[n]) > 0 {
		return
	}
	if r, found := l.in[n]; found {
		l.holds[r] = nil
		delete(l.in, n)
	}
	if s, found := l.slot[n]; found {
		l.free = append(l.free, s)
		delete(l.slot, n)
	}
}
