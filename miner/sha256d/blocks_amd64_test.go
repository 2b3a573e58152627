//go:build !purego

package sha256d

import (
	"testing"
	"unsafe"
)

// Legacy instructions fault on operands in memory that are not aligned to 16 bytes.
func TestSHANIBlockIsAligned(t *testing.T) {
	for range 100 {
		s := newSHANI().(*unitSearcher).kernel.(*shani)
		b := s.b
		for name, at := range map[string]unsafe.Pointer{
			"midstate": unsafe.Pointer(&b.midstate), "tail": unsafe.Pointer(&b.tail), "tailK": unsafe.Pointer(&b.tailK),
			"digits": unsafe.Pointer(&b.digits), "quads": unsafe.Pointer(&b.quads), "decades": unsafe.Pointer(&b.decades),
		} {
			if uintptr(at)%16 != 0 {
				t.Fatalf("%s is at %p", name, at)
			}
		}
		inside := uintptr(unsafe.Pointer(b)) >= uintptr(unsafe.Pointer(&s.memory)) &&
			uintptr(unsafe.Pointer(b))+unsafe.Sizeof(*b) <= uintptr(unsafe.Pointer(&s.memory))+unsafe.Sizeof(s.memory)
		if !inside {
			t.Fatal("the block is not inside its memory")
		}
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
