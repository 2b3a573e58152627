package pow

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/bits"
)

// HashSize is the length of a digest in bytes.
const HashSize = sha256.Size

// MaxBits is the largest number of leading zero bits that can be asked for.
const MaxBits = 8 * HashSize

// Hash is a digest, or the previous block's hash, in the byte order SHA-256 emits it. Its text is 64 lower-case hex
// digits, leading zeros first.
type Hash [HashSize]byte

// ParseHash reads 64 hex digits of either case.
func ParseHash(text string) (Hash, error) {
	var h Hash
	if len(text) != 2*HashSize {
		return h, fmt.Errorf("hash has %d characters, want %d hex digits", len(text), 2*HashSize)
	}
	if _, err := hex.Decode(h[:], []byte(text)); err != nil {
		return Hash{}, fmt.Errorf("hash: %w", err)
	}
	return h, nil
}

// String returns 64 lower-case hex digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Compare orders hashes as big-endian numbers: -1 when h is the smaller one, which is the better proof.
func (h Hash) Compare(other Hash) int { return bytes.Compare(h[:], other[:]) }

// LeadingZeroBits counts the zero bits before the first one bit, 0 to 256.
func (h Hash) LeadingZeroBits() int {
	for i, b := range h {
		if b != 0 {
			return 8*i + bits.LeadingZeros8(b)
		}
	}
	return MaxBits
}

// Sum returns the double SHA-256 of message.
func Sum(message []byte) Hash {
	inner := sha256.Sum256(message)
	return sha256.Sum256(inner[:])
}

// SumText returns the digest of a proof whose nonce and timestamp are opaque decimal text, as the block web service
// takes them. The caller has checked both with CheckDecimal.
func SumText(previous Hash, nonce, timestamp string) Hash {
	message := make([]byte, 0, MaxMessageSize)
	message = hex.AppendEncode(message, previous[:])
	message = append(message, nonce...)
	return Sum(append(message, timestamp...))
}
