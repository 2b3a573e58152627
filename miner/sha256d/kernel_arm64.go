//go:build !purego

package sha256d

import "golang.org/x/sys/cpu"

// machineKernels are the kernels in assembly.
var machineKernels = []Kernel{
	{Name: "sha2", Available: func() bool { return cpu.ARM64.HasSHA2 }, New: newSHA2},
}
