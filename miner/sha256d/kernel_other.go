//go:build (!amd64 && !arm64) || purego

package sha256d

// machineKernels are the kernels in assembly: none in this build.
var machineKernels []Kernel
