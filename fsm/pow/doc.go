// Package pow defines what a valid proof of work is: the message, its digest, the number of leading zero bits, and
// the nonce ranges that a search is divided into. It uses the standard library alone, so that the judge of every
// kernel shares no code with any of them.
//
// The definition (protocol; a change splits every cluster from its history):
//
//	message = ASCII(previous hash, 64 lower-case hex digits) + ASCII(nonce, decimal) + ASCII(timestamp, decimal)
//	digest  = SHA256(SHA256(message)), the inner digest in its 32 raw bytes
//
// A digest is valid for n bits when its first n bits, most significant bit of byte 0 first, are zero.
//
// Beside the definition stands what the smallest digest of a range says of the work that was done there: Excess for one
// receipt, Receipts for all of a miner's. The leader and the audit judge by the same numbers.
package pow
