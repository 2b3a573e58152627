// Command asm writes the assembly of package sha256d: every kernel from one description of SHA-256.
//
//	cd miner/sha256d/_asm && go run .
//
// It is a module of its own and uses the standard library alone, so the package's users depend on nothing of it.
//
//	main.go     which kernels there are and into which files they go
//	sha256.go   SHA-256's constants and functions (FIPS 180-4)
//	printer.go  lines of Go assembly, shared by all
//	shani.go    amd64's SHA instructions: five nonces' rounds interleaved
//	shaniwide.go  the same for nonces of 9 and 10 digits: four of them, with more in common
//	graph.go    SHA-256 on vectors as a graph: what is known, what nonces share, what each has of its own
//	lanes.go    a graph put into registers
//	avx2.go     the AVX2 kernel: eight nonces side by side
//	vector512.go, avx512.go  what AVX-512 adds to lanes.go, and its kernel: sixteen nonces side by side
//	hybrid.go   SHA's rounds with AVX-512's schedule: twelve nonces
//	sha2.go     arm64's SHA2 instructions: two nonces' rounds interleaved
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	out := flag.String("out", "..", "folder to write into")
	flag.Parse()
	for name, generate := range map[string]func() []byte{
		"shani_amd64.s":  shaniFile,
		"avx2_amd64.s":   avx2File,
		"avx512_amd64.s": avx512File,
		"hybrid_amd64.s": hybridFile,
		"sha2_arm64.s":   sha2File,
	} {
		path := filepath.Join(*out, name)
		text := generate()
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
			continue
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "asm:", err)
			os.Exit(1)
		}
	}
}
