//go:build linux && amd64

package sha256d

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestARM64KernelUnderEmulation builds the tests of this package for arm64 and runs those that compare with the
// reference.
func TestARM64KernelUnderEmulation(t *testing.T) {
	emulator, err := exec.LookPath("qemu-aarch64")
	if err != nil {
		t.Skip("qemu-aarch64 is not installed (Debian: qemu-user)")
	}
	if testing.Short() {
		t.Skip("builds for another processor")
	}
	binary := filepath.Join(t.TempDir(), "arm64.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", binary, ".")
	build.Env = append(os.Environ(), "GOARCH=arm64", "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	run := exec.CommandContext(t.Context(), emulator, binary,
		"-test.run", "Required|EveryDigitCount|KnownBlocks|ExactlyAtTheThreshold|FullHitBuffer|EveryMessageLength")
	run.Env = append(os.Environ(), "RAFTMINE_REQUIRE_KERNELS=sha2")
	if output, err := run.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, output)
	}
}
