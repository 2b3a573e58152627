//go:build !purego

package sha256d

import (
	"fmt"
	"math/bits"
	"strings"
)

func vectorInstruction(name string, o []operand, broadcast, zeroing bool) func(m *machine) int {
	if name == "VZEROUPPER" {
		return func(m *machine) int {
			for i := range 16 {
				clear(m.vector[i][4:])
			}
			return next
		}
	}
	last := o[len(o)-1]
	words := last.words
	for _, operand := range o {
		words = max(words, operand.words)
	}
	immediate := 0
	if o[0].kind == 'i' {
		immediate, o = int(o[0].value), o[1:]
	}
	// lanewise is the instruction that does f to each word of its sources.
	lanewise := func(f func(a, b uint32) uint32) func(m *machine) int {
		mask := -1
		sources := o[:len(o)-1]
		if sources[len(sources)-1].kind == 'k' {
			mask, sources = sources[len(sources)-1].n, sources[:len(sources)-1]
		}
		return func(m *machine) int {
			var a, b, result [16]uint32
			sources[0].words32(m, words, broadcast, &a)
			if len(sources) > 1 {
				sources[1].words32(m, words, false, &b)
			}
			for i := range words {
				switch {
				case mask < 0 || m.mask[mask]>>i&1 != 0:
					result[i] = f(a[i], b[i])
				case !zeroing:
					result[i] = m.vector[last.n][i]
				}
			}
			last.setWords(m, words, &result)
			return next
		}
	}
	// whole is the instruction that makes its result from its sources and what is in its destination.
	whole := func(f func(m *machine, a, b, old, result *[16]uint32)) func(m *machine) int {
		return func(m *machine) int {
			var a, b, old, result [16]uint32
			o[0].words32(m, words, broadcast, &a)
			if len(o) > 2 && o[1].kind == 'v' {
				o[1].words32(m, words, false, &b)
			}
			if last.kind == 'v' {
				old = m.vector[last.n]
			}
			f(m, &a, &b, &old, &result)
			last.setWords(m, words, &result)
			return next
		}
	}
	switch name {
	case "VMOVDQU", "VMOVDQU32":
		return whole(func(_ *machine, a, _, _, result *[16]uint32) { *result = *a })
	case "VPADDD":
		return lanewise(func(a, b uint32) uint32 { return a + b })
	case "VPXOR":
		return lanewise(func(a, b uint32) uint32 { return a ^ b })
	case "VPAND":
		return lanewise(func(a, b uint32) uint32 { return a & b })
	case "VPMINUD":
		return lanewise(func(a, b uint32) uint32 { return min(a, b) })
	case "VPCMPEQD":
		return lanewise(func(a, b uint32) uint32 {
			if a == b {
				return 1<<32 - 1
			}
			return 0
		})
	case "VPSLLD":
		return lanewise(func(a, _ uint32) uint32 { return a << immediate })
	case "VPSRLD":
		return lanewise(func(a, _ uint32) uint32 { return a >> immediate })
	case "VPRORD":
		return lanewise(func(a, _ uint32) uint32 { return bits.RotateLeft32(a, -immediate) })
	case "VPBLENDMD":
		k := o[2].n
		return whole(func(m *machine, a, b, _, result *[16]uint32) {
			*result = *b
			for i := range words {
				if m.mask[k]>>i&1 != 0 {
					result[i] = a[i]
				}
			}
		})
	case "VPTERNLOGD":
		return whole(func(_ *machine, a, b, old, result *[16]uint32) {
			for row := range 8 {
				if immediate>>row&1 == 0 {
					continue
				}
				// The words where old, b and a are the bits of row.
				notX, notY, notZ := uint32(row>>2&1)-1, uint32(row>>1&1)-1, uint32(row&1)-1
				for i := range words {
					result[i] |= (old[i] ^ notX) & (b[i] ^ notY) & (a[i] ^ notZ)
				}
			}
		})
	case "VPERMI2D":
		return whole(func(_ *machine, a, b, old, result *[16]uint32) {
			for i := range words {
				source := b
				if old[i]&uint32(words) != 0 {
					source = a
				}
				result[i] = source[old[i]%uint32(words)]
			}
		})
	case "VPSHUFD":
		return whole(func(_ *machine, a, _, _, result *[16]uint32) {
			for i := range words {
				result[i] = a[i&^3|immediate>>(2*(i%4))&3]
			}
		})
	case "VPUNPCKLQDQ", "VPUNPCKHQDQ":
		high := 2 * strings.Count(name, "H")
		return whole(func(_ *machine, a, b, _, result *[16]uint32) {
			for i := 0; i < words; i += 4 {
				copy(result[i:], b[i+high:i+high+2])
				copy(result[i+2:], a[i+high:i+high+2])
			}
		})
	case "VPUNPCKHDQ":
		return whole(func(_ *machine, a, b, _, result *[16]uint32) {
			for i := 0; i < words; i += 4 {
				result[i], result[i+1], result[i+2], result[i+3] = b[i+2], a[i+2], b[i+3], a[i+3]
			}
		})
	case "VSHUFPS":
		return whole(func(_ *machine, a, b, _, result *[16]uint32) {
			for i := range words {
				source := b // of the lower two words of four
				if i%4 > 1 {
					source = a
				}
				result[i] = source[i&^3|immediate>>(2*(i%4))&3]
			}
		})
	case "VPALIGNR":
		return whole(func(_ *machine, a, b, _, result *[16]uint32) {
			for i := 0; i < words; i += 4 {
				both := append(append([]uint32{}, a[i:i+4]...), b[i:i+4]...)
				copy(result[i:i+4], both[immediate/4:])
			}
		})
	case "VPBROADCASTD", "VPBROADCASTQ":
		size := 1 + strings.Count(name, "Q")
		return func(m *machine) int {
			var a, result [16]uint32
			o[0].words32(m, size, false, &a)
			for i := range words {
				result[i] = a[i%size]
			}
			last.setWords(m, words, &result)
			return next
		}
	case "VMOVQ":
		return func(m *machine) int {
			var a [16]uint32
			o[0].words32(m, 2, false, &a)
			clear(a[2:])
			if last.kind == 'm' {
				words = 2
			}
			last.setWords(m, words, &a)
			return next
		}
	case "VMOVMSKPS":
		return func(m *machine) int {
			var v uint64
			for i := range words {
				v |= uint64(m.vector[o[0].n][i]>>31) << i
			}
			m.general[last.n] = v
			return next
		}
	case "VPCMPUD":
		if immediate != 2 { // at or below
			panic("unknown comparison")
		}
		return func(m *machine) int {
			var a [16]uint32
			o[0].words32(m, words, broadcast, &a)
			b := m.vector[o[1].n]
			var mask uint64
			for i := range words {
				if b[i] <= a[i] {
					mask |= 1 << i
				}
			}
			m.mask[last.n] = mask
			return next
		}
	case "SHA256RNDS2", "SHA256MSG1", "SHA256MSG2":
		return shaInstruction(name, o)
	}
	panic("unknown instruction " + name)
}

// shaInstruction leaves the upper words of its register as they are, as all legacy instructions do.
func shaInstruction(name string, o []operand) func(m *machine) int {
	last := o[len(o)-1]
	source := o[len(o)-2]
	rotate := func(x uint32, by int) uint32 { return bits.RotateLeft32(x, -by) }
	return func(m *machine) int {
		var a [16]uint32
		source.words32(m, 4, false, &a)
		if source.kind == 'm' && source.address(m)%16 != 0 {
			panic(fmt.Sprintf("%s: the operand at %#x is not aligned", name, source.address(m)))
		}
		d := &m.vector[last.n]
		switch name {
		case "SHA256RNDS2":
			kw := m.vector[0]
			state := [8]uint32{a[3], a[2], d[3], d[2], a[1], a[0], d[1], d[0]}
			for i := range 2 {
				e, s := state[4], &state
				t1 := s[7] + (e&s[5] ^ ^e&s[6]) + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + kw[i]
				t2 := (s[0]&s[1] ^ s[0]&s[2] ^ s[1]&s[2]) + (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22))
				state = [8]uint32{t1 + t2, s[0], s[1], s[2], s[3] + t1, s[4], s[5], s[6]}
			}
			d[3], d[2], d[1], d[0] = state[0], state[1], state[4], state[5]
		case "SHA256MSG1":
			old := *d
			for i := range 4 {
				following := a[0]
				if i < 3 {
					following = old[i+1]
				}
				d[i] += sigma0(following)
			}
		default:
			sigma1 := func(x uint32) uint32 { return rotate(x, 17) ^ rotate(x, 19) ^ x>>10 }
			d[0] += sigma1(a[2])
			d[1] += sigma1(a[3])
			d[2] += sigma1(d[0])
			d[3] += sigma1(d[1])
		}
		return next
	}
}
