package pow

import "fmt"

// Digest returns the digest of nonce.
func (w Work) Digest(nonce uint64) Hash {
	var buffer [MaxMessageSize]byte
	return Sum(w.AppendMessage(buffer[:0], nonce))
}

// Verify returns the digest of nonce and whether it starts with at least w.Bits zero bits. It uses crypto/sha256 on
// purpose: it judges the kernels and shares no code with them.
func (w Work) Verify(nonce uint64) (Hash, bool) {
	digest := w.Digest(nonce)
	return digest, digest.LeadingZeroBits() >= w.Bits
}

// Validate reports work that no search may be opened with.
func (w Work) Validate() error {
	if w.Bits < 0 || w.Bits > MaxBits {
		return fmt.Errorf("%d leading zero bits, want 0 to %d", w.Bits, MaxBits)
	}
	return nil
}
