//go:build !purego

package sha256d

import (
	"fmt"
	"slices"
	"testing"

	"raftmine/fsm/pow"
)

func TestNextDigitsCountsInDecimal(t *testing.T) {
	for _, start := range []int{0, 8, 98, 1_998, 9_989, 99_899, 12_999_985, 99_999_970} {
		digits := fmt.Sprintf("%08d", start)
		w0, w1 := wordOf(digits[:4]), wordOf(digits[4:])
		for i := range 40 {
			want := fmt.Sprintf("%08d", (start+i)%100_000_000)
			if w0 != wordOf(want[:4]) || w1 != wordOf(want[4:]) {
				t.Fatalf("%d after %08d: %#x %#x, want %s", i, start, w0, w1, want)
			}
			w0, w1 = nextDigits(w0, w1)
		}
	}
}

func wordOf(digits string) uint32 {
	return uint32(digits[0])<<24 | uint32(digits[1])<<16 | uint32(digits[2])<<8 | uint32(digits[3])
}

func TestStepsOfAUnitAreItsNonces(t *testing.T) {
	job := NewJob(pow.Work{Timestamp: 1_790_000_000_000})
	for _, unit := range []struct{ digits, size int }{{9, 10}, {10, 100}} {
		if got := wideUnit(unit.digits); got != unit.size {
			t.Fatalf("a unit of %d digits has %d nonces, want %d", unit.digits, got, unit.size)
		}
		var base, m message
		base.set(job, powerOfTen(unit.digits-2), unit.digits)
		for step := range unit.size {
			nonce := powerOfTen(unit.digits-1) + uint64(step)
			m.set(job, nonce/10, unit.digits)
			if got, want := base.wideStep(step), m.word(2)+uint32(nonce%10)<<(24-8*((unit.digits-1)%4)); got != want {
				t.Errorf("%d digits, step %d: W2 is %#x, want %#x", unit.digits, step, got, want)
			}
		}
	}
}

func TestMasksBecomeHitsInOrder(t *testing.T) {
	masks := []uint16{0b001, 0b100, 0, 0b010, 0b011} // of two groups of two steps, and one that does not count
	if got, want := wideHits(nil, masks, 3, 2, 5), []uint16{0, 5, 9}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
