//go:build !purego

package sha256d

import (
	"embed"
	"encoding/binary"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unsafe"
)

// An emulator of the instructions that the amd64 kernels use. It runs the assembly as the generator printed it, so that
// kernels which the machine of the tests cannot run are tested nevertheless: their arithmetic, registers, places in
// memory and control flow. What it cannot tell is whether the assembler encodes an instruction right and whether a
// processor does what the manual says; the kernels that run here are run on both.

//go:embed *_amd64.s
var assembly embed.FS

// machine is a processor with its memory: the arguments, the block and the constants. Other addresses are errors.
type machine struct {
	general [16]uint64
	vector  [32][16]uint32
	mask    [8]uint64
	zero    bool
	regions []region
}

type region struct {
	start uint64
	bytes []byte
}

const (
	argumentsAt = 0x1000
	blockAt     = 0x10_0000 // aligned as blocks are
	constantsAt = 0x100_0000
)

// at returns so many bytes of memory.
func (m *machine) at(address uint64, size int) []byte {
	for _, r := range m.regions {
		if address >= r.start && address+uint64(size) <= r.start+uint64(len(r.bytes)) {
			return r.bytes[address-r.start:][:size]
		}
	}
	panic(fmt.Sprintf("%d bytes at %#x are not the kernel's", size, address))
}

// program is one function.
type program struct {
	steps     []func(m *machine) (jump int) // jump is the next step, -1 the one after this
	constants []byte
}

const (
	next = -1
	done = -2
)

// run calls the function with the address of block and integers, and returns what it returned.
func (p *program) run(block []byte, arguments ...int) int {
	m := &machine{regions: []region{{argumentsAt, make([]byte, 8*(len(arguments)+2))}, {blockAt, block}, {constantsAt, p.constants}}}
	binary.LittleEndian.PutUint64(m.regions[0].bytes, blockAt)
	for i, argument := range arguments {
		binary.LittleEndian.PutUint64(m.regions[0].bytes[8*(i+1):], uint64(argument))
	}
	// Registers hold anything at the start.
	for i := range m.vector {
		for j := range m.vector[i] {
			m.vector[i][j] = 0xdeadbeef
		}
	}
	for i := range m.general {
		m.general[i] = 0xdeadbeefdeadbeef
	}
	for i := range m.mask {
		m.mask[i] = 0xdeadbeef
	}
	for pc := 0; ; {
		switch jump := p.steps[pc](m); jump {
		case next:
			pc++
		case done:
			return int(binary.LittleEndian.Uint64(m.regions[0].bytes[8*(len(arguments)+1):]))
		default:
			pc = jump
		}
	}
}

var (
	emulatedPrograms = make(map[string]*program) // by function
	emulatedMutex    sync.Mutex
)

// emulate reads a function out of a file of assembly. Block is a pointer to its block, whose fields it names.
func emulate(t testing.TB, file, function string, block any) *program {
	t.Helper()
	emulatedMutex.Lock()
	defer emulatedMutex.Unlock()
	if p := emulatedPrograms[function]; p != nil {
		return p
	}
	text, err := assembly.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	a := &assembler{symbols: map[string]uint64{}, labels: map[string]int{}}
	blockType := reflect.TypeOf(block).Elem()
	for i := range blockType.NumField() {
		field := blockType.Field(i)
		a.symbols[blockType.Name()+"_"+field.Name] = uint64(field.Offset)
	}
	// Constants first: DATA name<>+offset(SB)/8, $value.
	for line := range strings.Lines(string(text)) {
		var name string
		var offset, value uint64
		if n, _ := fmt.Sscanf(strings.NewReplacer("<>+", " ", "(SB)/8, $", " ").Replace(line), "DATA %s %d 0x%x", &name, &offset, &value); n != 3 {
			continue
		}
		if _, found := a.symbols[name+"<>"]; !found {
			a.symbols[name+"<>"] = constantsAt + uint64(len(a.constants))
		}
		a.constants = binary.LittleEndian.AppendUint64(a.constants, value)
	}
	_, body, found := strings.Cut(string(text), "TEXT ·"+function+"(SB)")
	if !found {
		t.Fatalf("%s has no function %s", file, function)
	}
	body, _, _ = strings.Cut(body, "\nTEXT")
	var lines [][]string
	for line := range strings.Lines(body[strings.Index(body, "\n")+1:]) {
		line, _, _ = strings.Cut(line, "//")
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case strings.HasPrefix(line, "DATA") || strings.HasPrefix(line, "GLOBL"):
		case strings.HasSuffix(line, ":"):
			a.labels[strings.TrimSuffix(line, ":")] = len(lines)
		default:
			name, rest, _ := strings.Cut(line, " ")
			lines = append(lines, append([]string{name}, strings.Split(strings.ReplaceAll(rest, " ", ""), ",")...))
		}
	}
	p := &program{constants: a.constants}
	for _, line := range lines {
		p.steps = append(p.steps, a.decode(line[0], line[1:]))
	}
	emulatedPrograms[function] = p
	return p
}

// bytesOf is a block's memory.
func bytesOf[T any](block *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(block)), unsafe.Sizeof(*block))
}

type assembler struct {
	symbols   map[string]uint64
	labels    map[string]int
	constants []byte
}

// operand is one operand of an instruction.
type operand struct {
	kind  byte // 'r' general, 'v' vector, 'k' mask, 'm' memory, 'i' immediate
	n     int  // the register
	words int  // of a vector
	value uint64
	base  int // of memory: a general register, -1 none
}

var generalNames = []string{"AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"}

func (a *assembler) operand(text string) operand {
	for i, name := range generalNames {
		if text == name {
			return operand{kind: 'r', n: i}
		}
	}
	if value, isImmediate := strings.CutPrefix(text, "$"); isImmediate {
		v, err := strconv.ParseInt(value, 0, 64)
		if err != nil {
			panic(err)
		}
		return operand{kind: 'i', value: uint64(v)}
	}
	if place, isMemory := strings.CutSuffix(text, ")"); isMemory {
		place, base, _ := strings.Cut(place, "(")
		o := operand{kind: 'm', base: -1}
		switch base {
		case "SB":
		case "FP":
			_, place, _ = strings.Cut(place, "+")
			o.value = argumentsAt
		default:
			o.base = a.operand(base).n
		}
		symbol, offset, hasSymbol := strings.Cut(place, "+")
		if hasSymbol {
			start, found := a.symbols[symbol]
			if !found {
				panic("unknown symbol " + symbol)
			}
			o.value, place = start, offset
		}
		if place != "" {
			v, err := strconv.ParseInt(place, 0, 64)
			if err != nil {
				panic(err)
			}
			o.value += uint64(v)
		}
		return o
	}
	n, err := strconv.Atoi(text[1:])
	if err != nil {
		panic("unknown operand " + text)
	}
	switch text[0] {
	case 'X', 'Y', 'Z':
		return operand{kind: 'v', n: n, words: map[byte]int{'X': 4, 'Y': 8, 'Z': 16}[text[0]]}
	case 'K':
		return operand{kind: 'k', n: n}
	}
	panic("unknown operand " + text)
}

func (o operand) address(m *machine) uint64 {
	if o.base < 0 {
		return o.value
	}
	return m.general[o.base] + o.value
}

// integer reads an operand of so many bytes, as an instruction for whole numbers does.
func (o operand) integer(m *machine, size int) uint64 {
	var value uint64
	switch o.kind {
	case 'r':
		value = m.general[o.n]
	case 'k':
		value = m.mask[o.n]
	case 'i':
		value = o.value
	case 'm':
		var raw [8]byte
		copy(raw[:], m.at(o.address(m), size))
		value = binary.LittleEndian.Uint64(raw[:])
	}
	return value << (64 - 8*size) >> (64 - 8*size)
}

// setInteger writes it. 32 bits clear the upper half of a register; fewer leave the rest.
func (o operand) setInteger(m *machine, size int, value uint64) {
	switch {
	case o.kind == 'm':
		var raw [8]byte
		binary.LittleEndian.PutUint64(raw[:], value)
		copy(m.at(o.address(m), size), raw[:])
	case size >= 4:
		m.general[o.n] = value << (64 - 8*size) >> (64 - 8*size)
	default:
		keep := ^uint64(0) << (8 * size)
		m.general[o.n] = m.general[o.n]&keep | value&^keep
	}
}

// words reads an operand of so many words; with broadcast one word in memory stands for all.
func (o operand) words32(m *machine, words int, broadcast bool, to *[16]uint32) {
	if o.kind == 'v' {
		*to = m.vector[o.n]
		return
	}
	if broadcast {
		w := binary.LittleEndian.Uint32(m.at(o.address(m), 4))
		for i := range words {
			to[i] = w
		}
		return
	}
	raw := m.at(o.address(m), 4*words)
	for i := range words {
		to[i] = binary.LittleEndian.Uint32(raw[4*i:])
	}
}

// setWords writes a vector: to a register, whose other words become zero, or to memory.
func (o operand) setWords(m *machine, words int, value *[16]uint32) {
	if o.kind == 'v' {
		m.vector[o.n] = [16]uint32{}
		copy(m.vector[o.n][:words], value[:words])
		return
	}
	raw := m.at(o.address(m), 4*words)
	for i := range words {
		binary.LittleEndian.PutUint32(raw[4*i:], value[i])
	}
}

// decode returns what an instruction does. The operands are in Go's order, the destination last.
func (a *assembler) decode(name string, texts []string) func(m *machine) int {
	name, broadcast := strings.CutSuffix(name, ".BCST")
	name, zeroing := strings.CutSuffix(name, ".Z")
	if strings.HasPrefix(name, "J") {
		target, found := a.labels[texts[0]]
		if !found {
			panic("unknown label " + texts[0])
		}
		return jump(name, target)
	}
	var o []operand
	for _, text := range texts {
		if text != "" {
			o = append(o, a.operand(text))
		}
	}
	if strings.HasPrefix(name, "V") || strings.HasPrefix(name, "SHA") {
		return vectorInstruction(name, o, broadcast, zeroing)
	}
	return integerInstruction(name, o)
}

func jump(name string, target int) func(m *machine) int {
	return func(m *machine) int {
		if name == "JMP" || m.zero == (name == "JZ" || name == "JEQ") {
			return target
		}
		return next
	}
}

func integerInstruction(name string, o []operand) func(m *machine) int {
	if name == "RET" {
		return func(*machine) int { return done }
	}
	size := map[byte]int{'B': 1, 'W': 2, 'L': 4, 'Q': 8}[name[len(name)-1]]
	first, last := o[0], o[len(o)-1]
	var value func(m *machine) uint64
	binaryOperation := func(f func(a, b uint64) uint64) func(m *machine) uint64 {
		return func(m *machine) uint64 { return f(last.integer(m, size), first.integer(m, size)) }
	}
	flags, write := true, true
	switch name[:len(name)-1] {
	case "MOV":
		flags, value = false, func(m *machine) uint64 { return first.integer(m, size) }
	case "KMOV":
		return func(m *machine) int {
			v := first.integer(m, size)
			if last.kind == 'k' {
				m.mask[last.n] = v
			} else {
				m.general[last.n] = v
			}
			return next
		}
	case "LEA":
		flags, value = false, func(m *machine) uint64 { return first.address(m) }
	case "ADD":
		value = binaryOperation(func(a, b uint64) uint64 { return a + b })
	case "SUB":
		value = binaryOperation(func(a, b uint64) uint64 { return a - b })
	case "XOR":
		value = binaryOperation(func(a, b uint64) uint64 { return a ^ b })
	case "OR":
		value = binaryOperation(func(a, b uint64) uint64 { return a | b })
	case "AND":
		value = binaryOperation(func(a, b uint64) uint64 { return a & b })
	case "TEST":
		write, value = false, binaryOperation(func(a, b uint64) uint64 { return a & b })
	case "CMP":
		write, value = false, binaryOperation(func(a, b uint64) uint64 { return a - b })
	case "SHL":
		value = binaryOperation(func(a, b uint64) uint64 { return a << b })
	case "SHR":
		value = binaryOperation(func(a, b uint64) uint64 { return a >> b })
	case "INC":
		value = func(m *machine) uint64 { return first.integer(m, size) + 1 }
	case "DEC":
		value = func(m *machine) uint64 { return first.integer(m, size) - 1 }
	default:
		panic("unknown instruction " + name)
	}
	return func(m *machine) int {
		v := value(m)
		if flags {
			m.zero = v<<(64-8*size) == 0
		}
		if write {
			last.setInteger(m, size, v)
		}
		return next
	}
}
