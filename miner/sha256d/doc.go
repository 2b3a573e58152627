// Package sha256d holds the kernels: the loops that try nonces, one after the other, by double SHA-256.
//
// A kernel is a filter and judges nothing. It compares the first word of each digest, big endian, with a threshold and
// reports the nonces at or below it. It may report a nonce too many, never one too few; whoever asks computes the full
// digest again with package pow. That is enough for solutions (a digest with leading zero bits has a small first word)
// and for receipts (the smallest digest has the smallest first word).
//
// Every kernel stands in one table, Kernels, and every test runs for every entry of it. A call stays near a
// millisecond, so that a caller that checks for interrupts between calls is quick, also with code that the Go scheduler
// cannot preempt.
//
// What all kernels use: the previous block's hash fills the first SHA-256 block of every message exactly, so its
// compression, the midstate, is computed once for a job. What is left of the message is 2 to 40 digits, which with their
// padding always fit the second block. A nonce costs two compressions.
package sha256d
