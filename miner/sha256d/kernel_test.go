package sha256d

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"raftmine/fsm/pow"
)

// forEachKernel runs test for every kernel this machine can run. RAFTMINE_REQUIRE_KERNELS names those that must be
// among them, separated by commas.
func forEachKernel(t *testing.T, test func(t *testing.T, searcher Searcher)) {
	t.Helper()
	for _, k := range Kernels() {
		t.Run(k.Name, func(t *testing.T) {
			if !k.Available() {
				t.Skip("not available on this machine")
			}
			test(t, k.New())
		})
		if k.Available() && alone(k.New()) != nil {
			t.Run(k.Name+" alone", func(t *testing.T) { test(t, alone(k.New())) })
		}
	}
}

// alone returns a searcher that leaves as little as it can to another one; nil when that makes no difference.
var alone = func(Searcher) Searcher { return nil }

func TestRequiredKernelsAreAvailable(t *testing.T) {
	names := os.Getenv("RAFTMINE_REQUIRE_KERNELS")
	if names == "" {
		names = "generic"
	}
	for name := range strings.SplitSeq(names, ",") {
		if _, err := ByName(name); err != nil {
			t.Error(err)
		}
	}
}

// reference is the first word of a digest by definition, written as plainly as possible and sharing nothing with any
// kernel. All kernels are asked for the same nonces, so what was computed is kept for a while.
func reference(work pow.Work, nonce uint64) uint32 {
	type question struct {
		work  pow.Work
		nonce uint64
	}
	if word, found := answered.Load(question{work, nonce}); found {
		return word.(uint32)
	}
	inner := sha256.Sum256(fmt.Appendf(nil, "%x%d%d", work.Previous[:], nonce, work.Timestamp))
	outer := sha256.Sum256(inner[:])
	word := binary.BigEndian.Uint32(outer[:])
	if answers.Add(1)%100_000 == 0 {
		answered.Clear()
	}
	answered.Store(question{work, nonce}, word)
	return word
}

var (
	answered sync.Map
	answers  atomic.Int64
)

// referenceHits returns the nonces of r at or below threshold.
func referenceHits(work pow.Work, r pow.Range, threshold uint32) []uint64 {
	var hits []uint64
	for n := r.First; ; n++ {
		if reference(work, n) <= threshold {
			hits = append(hits, n)
		}
		if n == r.Last {
			return hits
		}
	}
}

// middleWord is the threshold that makes half of r hits: the first word of one of its digests.
func middleWord(work pow.Work, r pow.Range) uint32 {
	var words []uint32
	for n := r.First; ; n++ {
		words = append(words, reference(work, n))
		if n == r.Last {
			slices.Sort(words)
			return words[len(words)/2]
		}
	}
}

// searchAll calls the kernel until it has tried all of r, holds every call to its contract, and returns the hits that
// are none of the false positives it may return.
func searchAll(t *testing.T, searcher Searcher, job *Job, r pow.Range, threshold uint32, room int) []uint64 {
	t.Helper()
	var all []uint64
	buffer := make([]uint64, room)
	for first := r.First; ; {
		rest := pow.Range{First: first, Last: r.Last}
		found, tried := searcher.Search(job, rest, threshold, buffer)
		if found < 0 || found > room {
			t.Fatalf("Search(%s) reports %d hits in a buffer of %d", rest, found, room)
		}
		if tried == 0 || tried-1 > r.Last-first {
			t.Fatalf("Search(%s) says it tried %d nonces", rest, tried)
		}
		done := first + tried - 1
		for i, n := range buffer[:found] {
			if n < first || n > done || i > 0 && n <= buffer[i-1] {
				t.Fatalf("Search(%s) tried up to %d and reports %v", rest, done, buffer[:found])
			}
			if reference(job.Work, n) <= threshold {
				all = append(all, n)
			}
		}
		if done == r.Last {
			return all
		}
		first = done + 1
	}
}

func parseHash(t testing.TB, text string) pow.Hash {
	t.Helper()
	h, err := pow.ParseHash(text)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

var somePrevious = pow.Hash(sha256.Sum256([]byte("a previous block")))

func TestKernelAgreesWithTheReference(t *testing.T) {
	ranges := []pow.Range{
		{First: 1, Last: 1},
		{First: 1, Last: 9},
		{First: 1, Last: 250},
		{First: 9, Last: 10},
		{First: 7, Last: 13},
		{First: 19, Last: 20},
		{First: 99, Last: 100},
		{First: 995, Last: 1004},
		{First: 99_990, Last: 100_009},
		{First: 99_999, Last: 100_000},
		{First: 999_999_937, Last: 1_000_000_021},
		{First: 1_999_999_983, Last: 2_000_000_000},
		{First: 1<<32 - 5, Last: 1 << 32},
		{First: 4_999, Last: 9_998}, // several calls of generic
		{First: 9_999_999_999_999_999_990, Last: 10_000_000_000_000_000_005},
		{First: math.MaxUint64 - 33, Last: math.MaxUint64},
		{First: math.MaxUint64, Last: math.MaxUint64},
	}
	timestamps := []uint64{1_790_000_000_000, 0, 7, math.MaxUint64}
	thresholds := []uint32{0, 1 << 24, 1 << 28, math.MaxUint32}
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		for _, timestamp := range timestamps {
			job := NewJob(pow.Work{Previous: somePrevious, Timestamp: timestamp})
			for _, r := range ranges {
				for _, threshold := range thresholds {
					got := searchAll(t, searcher, job, r, threshold, 16)
					if want := referenceHits(job.Work, r, threshold); !slices.Equal(got, want) {
						t.Fatalf("timestamp %d, range %s, threshold %#x:\ngot  %v\nwant %v", timestamp, r, threshold, got, want)
					}
				}
			}
		}
	})
}

func TestNonceExactlyAtTheThresholdIsAHit(t *testing.T) {
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 1_790_000_000_000})
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		for nonce := uint64(1); nonce <= 120; nonce++ {
			r := pow.Range{First: nonce, Last: nonce + 3}
			if got := searchAll(t, searcher, job, r, reference(job.Work, nonce), 4); !slices.Contains(got, nonce) {
				t.Fatalf("threshold of nonce %d: hits %v", nonce, got)
			}
		}
	})
}

// Every message length there is: nonces of 1 to 20 digits with timestamps of 1 to 20 digits.
func TestEveryMessageLength(t *testing.T) {
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		for timestamp, i := uint64(1), 0; i < pow.MaxDecimalDigits; timestamp, i = 10*timestamp+3, i+1 {
			job := NewJob(pow.Work{Previous: somePrevious, Timestamp: timestamp})
			if len(job.Timestamp) != i+1 {
				t.Fatalf("timestamp %d has %d digits, want %d", timestamp, len(job.Timestamp), i+1)
			}
			for nonce, j := uint64(1), 0; j < pow.MaxDecimalDigits; nonce, j = 10*nonce, j+1 {
				r := pow.Range{First: max(nonce, 4) - 3, Last: nonce + 3} // over the digit-count change
				got := searchAll(t, searcher, job, r, math.MaxUint32/2, 16)
				if want := referenceHits(job.Work, r, math.MaxUint32/2); !slices.Equal(got, want) {
					t.Fatalf("timestamp %d, range %s: got %v, want %v", timestamp, r, got, want)
				}
			}
		}
	})
}

// Every digit count, each lane and chain, run lengths that fill no group, and starts anywhere in a decade: half of all
// nonces are hits here, so that one wrong digest or place shows, and one of them is exactly at the threshold.
func TestEveryDigitCountOnDenseHits(t *testing.T) {
	const length = 333
	type stretch struct {
		job       *Job
		r         pow.Range
		threshold uint32
		want      []uint64
	}
	var stretches []stretch
	add := func(timestamp, first, last uint64) {
		job, r := NewJob(pow.Work{Previous: somePrevious, Timestamp: timestamp}), pow.Range{First: first, Last: last}
		threshold := middleWord(job.Work, r)
		stretches = append(stretches, stretch{job, r, threshold, referenceHits(job.Work, r, threshold)})
	}
	timestamp := uint64(1)
	for power, digits := uint64(1), 1; digits <= pow.MaxDecimalDigits; power, digits = 10*power, digits+1 {
		add(1_790_000_000_000, max(power, length)-length+1, power+length) // over the change
		middle := power + power/3 + power/7 + uint64(digits)
		add(timestamp, middle, middle+length+uint64(digits))
		add(math.MaxUint64/timestamp, middle, middle+3*uint64(digits))
		timestamp = 10*timestamp + uint64(digits%10)
	}
	add(1_790_000_000_000, math.MaxUint64-length, math.MaxUint64)
	add(1_790_000_000_000, 2_000_000_000-1000, 2_000_000_000)
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		for i, s := range stretches {
			if got := searchAll(t, searcher, s.job, s.r, s.threshold, 1+i*37%400); !slices.Equal(got, s.want) {
				t.Fatalf("timestamp %s, range %s:\ngot  %v\nwant %v", s.job.Timestamp, s.r, got, s.want)
			}
		}
	})
}

// False positives would be allowed, but no kernel of this table has any.
func TestKernelsReportNothingAboveTheThreshold(t *testing.T) {
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 1_790_000_000_000})
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		for _, first := range []uint64{3_000_000, 300_000_000, 3_000_000_000} {
			for _, threshold := range []uint32{1 << 31, 1 << 28, reference(job.Work, first+333) - 1} {
				for _, nonce := range searchHits(searcher, job, pow.Range{First: first, Last: first + 700}, threshold) {
					if word := reference(job.Work, nonce); word > threshold {
						t.Errorf("nonce %d with first word %#x is reported at or below %#x", nonce, word, threshold)
					}
				}
			}
		}
	})
}

// The proofs were found and their digests computed with an independent implementation (Python's hashlib).
func TestKnownBlocks(t *testing.T) {
	tests := []struct {
		previous  string
		timestamp uint64
		nonce     uint64
		digest    string
	}{
		{"0000000000000000000000000000000000000000000000000000000000000000", 1790000000000, 77105, "0000e8fee526ae5b6ce39ec249cdce49fb57259d7ca66790fcfebd495a8c2b75"},
		{"0000e8fee526ae5b6ce39ec249cdce49fb57259d7ca66790fcfebd495a8c2b75", 1790000003001, 99036, "00008daa4e5ff8101ab61495c3ec6489c8e9471ff89ef149a15f66b151b57bec"},
		{"00008daa4e5ff8101ab61495c3ec6489c8e9471ff89ef149a15f66b151b57bec", 1790000006002, 187636, "0000f4047687229a8abcccd2b6710fbc14e7803c46d01a56b05f59b4f827734a"},
		{"0000f4047687229a8abcccd2b6710fbc14e7803c46d01a56b05f59b4f827734a", 1790000009003, 1000004742, "00081fd43830fc4c7dbf8f424413c7860b495257e3c61bfe17168b74af611056"},
		{"00081fd43830fc4c7dbf8f424413c7860b495257e3c61bfe17168b74af611056", 1790000012004, 1999001694, "000592d5d41d4654a020dee46402c7a6e262ea5a07380452aaee98b0e410a5da"},
	}
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		for _, test := range tests {
			work := pow.Work{Previous: parseHash(t, test.previous), Timestamp: test.timestamp, Bits: 12}
			if got, ok := work.Verify(test.nonce); got.String() != test.digest || !ok {
				t.Fatalf("nonce %d has digest %s, want %s", test.nonce, got, test.digest)
			}
			r := pow.Range{First: max(test.nonce, 50) - 49, Last: test.nonce + 50}
			hits := searchAll(t, searcher, NewJob(work), r, 1<<(32-12)-1, 4)
			if !slices.Contains(hits, test.nonce) {
				t.Errorf("range %s: got %v, want %d among them", r, hits, test.nonce)
			}
		}
	})
}

func TestFullHitBufferEndsTheCallWithoutLosingANonce(t *testing.T) {
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 1_790_000_000_000})
	r := pow.Range{First: 95, Last: 1_120}
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		for _, room := range []int{1, 2, 3, 7, 10, 11, 100} {
			for _, threshold := range []uint32{math.MaxUint32, math.MaxUint32 / 3} {
				got := searchAll(t, searcher, job, r, threshold, room)
				if want := referenceHits(job.Work, r, threshold); !slices.Equal(got, want) {
					t.Fatalf("%d places, threshold %#x: got %d hits, want %d", room, threshold, len(got), len(want))
				}
			}
		}
	})
}

// A searcher may keep what it made for one call, but must not trip over it in the next: for another job, on the same nonces
// or from the next one on, and for nonces before.
func TestSearcherKeepsNothingFromAnotherJobOrRange(t *testing.T) {
	first := NewJob(pow.Work{Previous: somePrevious, Timestamp: 1_790_000_000_000})
	second := NewJob(pow.Work{Previous: somePrevious, Timestamp: 1_790_000_000_001})
	other := NewJob(pow.Work{Timestamp: 1_790_000_000_000})
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		check := func(job *Job, r pow.Range, room int) {
			t.Helper()
			got := searchAll(t, searcher, job, r, math.MaxUint32/4, room)
			if want := referenceHits(job.Work, r, math.MaxUint32/4); !slices.Equal(got, want) {
				t.Fatalf("range %s: got %v, want %v", r, got, want)
			}
		}
		jobs := []*Job{first, first, second, other, second, first}
		for _, r := range []pow.Range{{First: 100, Last: 140}, {First: 141, Last: 149}, {First: 145, Last: 180}, {First: 105, Last: 119}} {
			for _, job := range jobs {
				check(job, r, 8)
			}
		}
		for _, start := range []uint64{1_000, 1_234_500, 300_000_000, 3_000_000_000} {
			for i, job := range jobs {
				from := start + 400*uint64(i/2)
				check(job, pow.Range{First: from, Last: from + 399}, 400)
			}
		}
	})
}

// A call also ends where nothing is a hit and the range does not end.
func TestCallEndsOnAnyRange(t *testing.T) {
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 1_790_000_000_000})
	forEachKernel(t, func(t *testing.T, searcher Searcher) {
		hits := make([]uint64, 4)
		for first := uint64(1); first < math.MaxUint64/10; first *= 10 {
			if _, tried := searcher.Search(job, pow.Range{First: first, Last: math.MaxUint64}, 0, hits); tried == 0 || tried > 15_000 {
				t.Errorf("Search from %d on tried %d nonces in one call, want 1 to 15,000", first, tried)
			}
		}
	})
}

// TestStateLayout holds what the kernels know of crypto/sha256's marshalled state: FIPS 180-4's initial values stand
// where H0 to H7 are looked for, in the length that is reserved.
func TestStateLayout(t *testing.T) {
	s := sha256.New().(state)
	raw, err := s.AppendBinary(nil)
	if err != nil || len(raw) != stateSize {
		t.Fatalf("a marshalled state has %d bytes (%v), want %d", len(raw), err, stateSize)
	}
	want := "6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19"
	if got := hex.EncodeToString(raw[stateOffset : stateOffset+sha256.Size]); got != want {
		t.Errorf("H0 to H7 are %s, want %s", got, want)
	}
	for i, b := range raw[stateOffset+sha256.Size:] {
		if b != 0 {
			t.Errorf("byte %d after H7 is %#x, want 0", i, b)
		}
	}
}

func TestJobHoldsTheMidstateOfTheFirstBlock(t *testing.T) {
	// A message of just the first block: its digest is one more compression, of padding alone.
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 42})
	if job.Timestamp != "42" {
		t.Errorf("timestamp text %q, want 42", job.Timestamp)
	}
	s := sha256.New().(state)
	if err := s.UnmarshalBinary(job.state); err != nil {
		t.Fatal(err)
	}
	if got, want := [32]byte(s.Sum(nil)), sha256.Sum256([]byte(somePrevious.String())); got != want {
		t.Errorf("from the midstate %x, want %x", got, want)
	}
	if got := binary.BigEndian.Uint32(job.state[stateOffset:]); got != job.Midstate[0] {
		t.Errorf("H0 is %#x, want %#x", job.Midstate[0], got)
	}
}

func TestSelection(t *testing.T) {
	if best := Best(); !best.Available() {
		t.Errorf("the best kernel, %s, is not available", best.Name)
	}
	seen := map[string]bool{}
	for _, k := range Kernels() {
		if k.Name == "" || seen[k.Name] {
			t.Errorf("kernel name %q is empty or twice in the table", k.Name)
		}
		seen[k.Name] = true
		got, err := ByName(k.Name)
		if k.Available() && (err != nil || got.Name != k.Name) {
			t.Errorf("ByName(%q) = %q, %v", k.Name, got.Name, err)
		}
		if !k.Available() && !errors.Is(err, ErrUnavailableKernel) {
			t.Errorf("ByName(%q) = %v, want ErrUnavailableKernel", k.Name, err)
		}
	}
	if _, err := ByName("abacus"); !errors.Is(err, ErrUnknownKernel) || !strings.Contains(err.Error(), "generic") {
		t.Errorf("ByName(abacus) = %v, want ErrUnknownKernel and the names there are", err)
	}
}

// brokenSearcher finds nothing, at once.
type brokenSearcher struct{}

func (brokenSearcher) Search(_ *Job, nonces pow.Range, _ uint32, _ []uint64) (int, uint64) {
	return 0, nonces.Last - nonces.First + 1
}

// slowSearcher tries every range nine times more than needed.
type slowSearcher struct{ Searcher }

func (s slowSearcher) Search(job *Job, nonces pow.Range, threshold uint32, hits []uint64) (int, uint64) {
	for range 9 {
		s.Searcher.Search(job, nonces, threshold, hits)
	}
	return s.Searcher.Search(job, nonces, threshold, hits)
}

func TestTheFastestKernelThatFindsEverythingIsChosen(t *testing.T) {
	always := func() bool { return true }
	never := Kernel{Name: "never", Available: func() bool { return false }, New: func() Searcher { t.Error("made"); return nil }}
	broken := Kernel{Name: "broken", Available: always, New: func() Searcher { return brokenSearcher{} }}
	slow := Kernel{Name: "slow", Available: always, New: func() Searcher { return slowSearcher{newGeneric()} }}
	good := Kernel{Name: "good", Available: always, New: newGeneric}
	for _, table := range [][]Kernel{{good}, {never, good}, {slow, good}, {good, slow}, {broken, good}, {never, broken, slow, good}} {
		if got := fastest(table); got.Name != "good" {
			t.Errorf("of %d kernels %q is chosen, want good", len(table), got.Name)
		}
	}
}

func TestKernelThatFindsOtherNoncesIsRefusedByName(t *testing.T) {
	always := func() bool { return true }
	broken := Kernel{Name: "broken", Available: always, New: func() Searcher { return brokenSearcher{} }}
	if _, err := byName([]Kernel{broken}, "broken"); !errors.Is(err, ErrWrongKernel) {
		t.Errorf("got %v, want ErrWrongKernel", err)
	}
}

func FuzzSearch(f *testing.F) {
	f.Add([]byte("previous"), uint64(1_790_000_000_000), uint64(1), uint8(1), uint16(120), uint32(1<<28), uint8(4))
	f.Add([]byte(""), uint64(0), uint64(99_990), uint8(5), uint16(20), uint32(math.MaxUint32), uint8(1))
	f.Add([]byte{0xff}, uint64(math.MaxUint64), uint64(math.MaxUint64-7), uint8(20), uint16(500), uint32(0), uint8(0))
	f.Add([]byte("a"), uint64(1_790_000_000_000), uint64(1_234_567_890), uint8(10), uint16(511), uint32(1<<31), uint8(200))
	f.Add([]byte("b"), uint64(9), uint64(99_999_771), uint8(8), uint16(511), uint32(1<<30), uint8(7))
	type named struct {
		name     string
		searcher Searcher
	}
	var searchers []named
	for _, k := range Kernels() {
		if k.Available() {
			searchers = append(searchers, named{k.Name, k.New()})
			if s := alone(k.New()); s != nil {
				searchers = append(searchers, named{k.Name + " alone", s})
			}
		}
	}
	f.Fuzz(func(t *testing.T, previous []byte, timestamp, first uint64, digits uint8, length uint16, threshold uint32, room uint8) {
		if digits %= pow.MaxDecimalDigits; digits > 0 {
			first %= uint64(math.Pow10(int(digits))) // else nearly all have 19 or 20
		}
		first = max(first, 1)
		r := pow.Range{First: first, Last: first + min(uint64(length)%512, math.MaxUint64-first)}
		job := NewJob(pow.Work{Previous: sha256.Sum256(previous), Timestamp: timestamp})
		want := referenceHits(job.Work, r, threshold)
		for _, s := range searchers {
			if got := searchAll(t, s.searcher, job, r, threshold, int(room)+1); !slices.Equal(got, want) {
				t.Fatalf("%s: timestamp %d, range %s, threshold %#x:\ngot  %v\nwant %v", s.name, timestamp, r, threshold, got, want)
			}
		}
	})
}
