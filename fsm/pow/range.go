package pow

import "fmt"

// Range is the closed nonce interval [First, Last], as the exercise counts: 1 to 100,000 is one chunk. Both ends are
// uint64, so that Last == 1<<32-1 is representable and loops over it end. First is at least 1, so Len never overflows.
type Range struct{ First, Last uint64 }

// Len returns the number of nonces in r.
func (r Range) Len() uint64 { return r.Last - r.First + 1 }

// Contains reports whether nonce lies in r.
func (r Range) Contains(nonce uint64) bool { return r.First <= nonce && nonce <= r.Last }

// Validate reports an interval that is empty or holds nonce 0.
func (r Range) Validate() error {
	if r.First == 0 {
		return fmt.Errorf("nonce range %s starts at 0, want 1 or more", r)
	}
	if r.Last < r.First {
		return fmt.Errorf("nonce range %s is empty", r)
	}
	return nil
}

// String returns "first-last".
func (r Range) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }
