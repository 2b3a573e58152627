// Package sha256d holds the kernels: the loops that try nonces, one after the other, by double SHA-256.
//
// A kernel is a filter and judges nothing. It compares the first word of each digest, big endian, with a threshold and
// reports the nonces at or below it. It may report a nonce too many, never one too few; whoever asks computes the full
// digest again with package pow. That is enough for solutions (a digest with leading zero bits has a small first word)
// and for receipts (the smallest digest has the smallest first word).
//
// Every kernel stands in one table, Kernels, and every test runs for every entry of it. A call stays below a
// millisecond, so that a caller that checks for interrupts between calls is quick. Go cannot preempt assembly, so that
// is entered anew for every few hundred nonces, about 50 microseconds, and the garbage collector never waits longer.
//
//	hybrid   amd64 with SHA, AVX-512F, AVX-512VL: twelve nonces, the rounds by the SHA instructions and
//	         the schedule by AVX-512          nonces of 9 and 10 digits; shani does the others
//	shani    amd64 with SHA: the rounds of four nonces interleaved, or of five where they have neither
//	         9 nor 10 digits                                                nonces of 2 to 16 digits
//	avx512   amd64 with AVX-512F: sixteen nonces side by side               nonces of 9 and 10 digits; avx2 does the others
//	avx2     amd64 with AVX2: eight nonces side by side                     nonces of 5 to 12 digits
//	sha2     arm64 with SHA2: the rounds of two nonces interleaved          nonces of 2 to 16 digits
//	generic  crypto/sha256, everywhere: the reference                       all nonces, and what the others leave out
//
// A kernel must find what generic finds on some thousand nonces before it is chosen or given by name: not all of them
// could be run on every processor they may meet. The tests run every amd64 kernel twice, on the machine where that has
// the instructions, and in an emulator of them that reads the assembly as it was printed.
//
// The build tag purego leaves the assembly out. The assembly is written by the generator in _asm (make generate), which
// also says how the rounds are scheduled and which register holds what; units.go is what those kernels share.
//
// What all kernels use: the previous block's hash fills the first SHA-256 block of every message exactly, so its
// compression, the midstate, is computed once for a job. What is left of the message is 2 to 40 digits, which with their
// padding always fit the second block. A nonce costs two compressions.
package sha256d
