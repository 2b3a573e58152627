//go:build !purego

package sha256d

import "golang.org/x/sys/cpu"

// machineKernels are the kernels in assembly, the fastest first. (hybrid and avx512 were not measured yet.)
var machineKernels = []Kernel{
	{Name: "hybrid", Available: func() bool { return hasSHANI && cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL }, New: newHybrid},
	{Name: "shani", Available: func() bool { return hasSHANI }, New: newSHANI},
	{Name: "avx512", Available: func() bool { return cpu.X86.HasAVX512F && cpu.X86.HasAVX2 }, New: newAVX512},
	{Name: "avx2", Available: func() bool { return cpu.X86.HasAVX2 }, New: newAVX2},
}

// hasSHANI: package cpu looks at what the operating system saves (XCR0: the upper halves of registers, for AVX-512 also
// the masks and the registers from Z16 on) before it says AVX, AVX2 or AVX512F. It does not know of the SHA instructions,
// which use no registers but those of SSE.
var hasSHANI = cpuidSHA() && cpu.X86.HasAVX && cpu.X86.HasSSE41

// cpuidSHA reports whether the processor has the SHA instructions: CPUID leaf 7, EBX bit 29.
func cpuidSHA() bool
