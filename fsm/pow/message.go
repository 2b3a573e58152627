package pow

import (
	"encoding/hex"
	"fmt"
	"strconv"
)

// MaxDecimalDigits is the length of the longest nonce or timestamp: 1<<64-1 has 20 decimal digits.
const MaxDecimalDigits = 20

// MaxMessageSize is the length of the longest message in bytes.
const MaxMessageSize = 2*HashSize + 2*MaxDecimalDigits

// Work is one search: every nonce is tried with the same previous hash and timestamp.
type Work struct {
	Previous  Hash   // the previous block's hash
	Timestamp uint64 // Unix milliseconds
	Bits      int    // leading zero bits that a digest needs, 0 to MaxBits
}

// AppendMessage appends the message of nonce to dst.
func (w Work) AppendMessage(dst []byte, nonce uint64) []byte {
	dst = hex.AppendEncode(dst, w.Previous[:])
	dst = strconv.AppendUint(dst, nonce, 10)
	return strconv.AppendUint(dst, w.Timestamp, 10)
}

// CheckDecimal reports why text is not a nonce or timestamp as the block web service takes them: 1 to 20 decimal
// digits. Leading zeros are allowed: there the text is opaque and is hashed as it stands.
func CheckDecimal(text string) error {
	if len(text) == 0 || len(text) > MaxDecimalDigits {
		return fmt.Errorf("%d digits, want 1 to %d", len(text), MaxDecimalDigits)
	}
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return fmt.Errorf("%q is not a decimal number", text)
		}
	}
	return nil
}
