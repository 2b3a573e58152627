//go:build !purego

package sha256d

import (
	"testing"
	"unsafe"
)

// Legacy instructions fault on operands in memory that are not aligned to 16 bytes.
func TestSHANIBlocksAreAligned(t *testing.T) {
	for range 100 {
		wide := newSHANI().(*unitSearcher).kernel.(*shaniWide)
		decades := newSHANIDecades().(*unitSearcher).kernel.(*shani)
		b, d := wide.b, decades.b
		for name, at := range map[string]unsafe.Pointer{
			"wide midstate": unsafe.Pointer(&b.midstate), "wide quad3": unsafe.Pointer(&b.quad3), "wide quads": unsafe.Pointer(&b.quads),
			"midstate": unsafe.Pointer(&d.midstate), "tail": unsafe.Pointer(&d.tail), "tailK": unsafe.Pointer(&d.tailK),
			"digits": unsafe.Pointer(&d.digits), "quads": unsafe.Pointer(&d.quads), "decades": unsafe.Pointer(&d.decades),
		} {
			if uintptr(at)%16 != 0 {
				t.Fatalf("%s is at %p", name, at)
			}
		}
		inside := func(at unsafe.Pointer, size uintptr, memory []byte) {
			start := uintptr(unsafe.Pointer(unsafe.SliceData(memory)))
			if uintptr(at) < start || uintptr(at)+size > start+uintptr(len(memory)) {
				t.Fatal("a block is not inside its memory")
			}
		}
		inside(unsafe.Pointer(b), unsafe.Sizeof(*b), wide.memory[:])
		inside(unsafe.Pointer(d), unsafe.Sizeof(*d), decades.memory[:])
	}
}

func TestAVX2BlockIsInsideItsMemory(t *testing.T) {
	for range 100 {
		s := newAVX2().(*unitSearcher).kernel.(*avx2)
		start, size := uintptr(unsafe.Pointer(s.b)), unsafe.Sizeof(*s.b)
		if start%32 != 0 || start < uintptr(unsafe.Pointer(&s.memory)) ||
			start+size > uintptr(unsafe.Pointer(&s.memory))+unsafe.Sizeof(s.memory) {
			t.Fatalf("block at %#x, memory at %p", start, &s.memory)
		}
	}
}
