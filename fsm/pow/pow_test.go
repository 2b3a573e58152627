package pow

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func mustParse(t testing.TB, text string) Hash {
	t.Helper()
	hash, err := ParseHash(text)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

// Published vectors: double SHA-256 as Bitcoin uses it, of "hello" (the Bitcoin wiki's example), of nothing, and of the
// first block header, whose digest is printed there with its bytes reversed.
func TestSumIsDoubleSHA256(t *testing.T) {
	genesis, err := hex.DecodeString("01000000" + strings.Repeat("0", 64) +
		"3ba3edfd7a7b12b27ac72c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4a" + "29ab5f49ffff001d1dac2b7c")
	if err != nil {
		t.Fatal(err)
	}
	block := mustParse(t, "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f")
	slices.Reverse(block[:])
	for _, vector := range []struct {
		message string
		digest  Hash
	}{
		{"hello", mustParse(t, "9595c9df90075148eb06860365df33584b75bff782a510c6cd4883a419833d50")},
		{"", mustParse(t, "5df6e0e2761359d30a8275058e299fcc0381534545f55cf43e41983f5d4c9456")},
		{string(genesis), block},
	} {
		if got := Sum([]byte(vector.message)); got != vector.digest {
			t.Errorf("Sum(%q) = %s, want %s", vector.message, got, vector.digest)
		}
	}
}

// The message is fixed byte by byte; the digest is computed here from crypto/sha256 and a literal message.
func TestMessageIsHashNonceTimestamp(t *testing.T) {
	work := Work{Previous: mustParse(t, "00000000000000000000000000000000000000000000000000000000000000aB"), Timestamp: 1234}
	message := strings.Repeat("0", 62) + "ab" + "100000" + "1234"
	if got := string(work.AppendMessage([]byte("x"), 100_000)); got != "x"+message {
		t.Errorf("message is %q, want %q", got, "x"+message)
	}
	inner := sha256.Sum256([]byte(message))
	want := Hash(sha256.Sum256(inner[:]))
	if a, b := work.Digest(100_000), SumText(work.Previous, "100000", "1234"); a != want || b != want {
		t.Errorf("digests are %s and %s, want %s", a, b, want)
	}
	// The web service's text is opaque: a leading zero is another message.
	if SumText(work.Previous, "0100000", "1234") == work.Digest(100_000) {
		t.Error("a leading zero is lost")
	}
}

func TestMessageGrowsWithTheDigits(t *testing.T) {
	work := Work{Timestamp: math.MaxUint64}
	for nonce := uint64(1); ; nonce *= 10 {
		for _, n := range []uint64{nonce - 1, nonce, nonce + 1} { // 9 to 10, 99,999 to 100,000, ...
			text := new(big.Int).SetUint64(n).String()
			if got, want := string(work.AppendMessage(nil, n)), strings.Repeat("0", 64)+text+"18446744073709551615"; got != want {
				t.Errorf("message of %d is %q, want %q", n, got, want)
			}
		}
		if nonce > math.MaxUint64/10 {
			break
		}
	}
	if n := len(work.AppendMessage(nil, math.MaxUint64)); n != MaxMessageSize {
		t.Errorf("the longest message has %d bytes, want %d", n, MaxMessageSize)
	}
}

func TestDigestDoesNotAllocate(t *testing.T) {
	work := Work{Timestamp: math.MaxUint64}
	if n := testing.AllocsPerRun(100, func() { work.Verify(math.MaxUint64) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestLeadingZeroBitsCountFromTheFirstByte(t *testing.T) {
	if n := (Hash{}).LeadingZeroBits(); n != 256 {
		t.Errorf("the zero hash has %d", n)
	}
	for want := range 256 {
		for _, rest := range []byte{0, 0xff} { // what follows the first one bit does not count
			var hash Hash
			hash[want/8] = 0x80 >> (want % 8)
			for i := want/8 + 1; i < len(hash); i++ {
				hash[i] = rest
			}
			if got := hash.LeadingZeroBits(); got != want {
				t.Errorf("%s has %d, want %d", hash, got, want)
			}
		}
	}
}

// Every digest is judged by what it is: one bit less than it has is accepted, one more is not.
func TestVerifyAcceptsExactlyTheBitsAsked(t *testing.T) {
	work := Work{Previous: Hash{7}, Timestamp: 1_790_000_000_000}
	for nonce := uint64(1); nonce <= 2000; nonce++ {
		digest := work.Digest(nonce)
		bits := digest.LeadingZeroBits()
		for _, asked := range []int{0, bits - 1, bits, bits + 1, 256} {
			work.Bits = max(asked, 0)
			got, valid := work.Verify(nonce)
			if got != digest || valid != (bits >= work.Bits) {
				t.Fatalf("nonce %d with %d zero bits, %d asked: %t", nonce, bits, work.Bits, valid)
			}
		}
	}
}

func TestWorkIsValidated(t *testing.T) {
	for bits, ok := range map[int]bool{-1: false, 0: true, 256: true, 257: false} {
		if err := (Work{Bits: bits}).Validate(); (err == nil) != ok {
			t.Errorf("%d bits: %v", bits, err)
		}
	}
}

func TestHashIsReadAndPrintedAsHex(t *testing.T) {
	text := "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	hash := mustParse(t, strings.ToUpper(text))
	if hash.String() != text || hash[1] != 0x11 {
		t.Errorf("it is %s", hash)
	}
	for _, bad := range []string{"", text[1:], text + "0", text[:63] + "g", text[:62] + "é", strings.Repeat(" ", 64)} {
		if hash, err := ParseHash(bad); err == nil || hash != (Hash{}) {
			t.Errorf("ParseHash(%q) = %s, %v", bad, hash, err)
		}
	}
}

func TestCompareOrdersAsNumbers(t *testing.T) {
	small, large := Hash{0, 1}, Hash{1, 0}
	if small.Compare(large) != -1 || large.Compare(small) != 1 || small.Compare(small) != 0 {
		t.Error("the order is wrong")
	}
}

func TestDecimalIs1To20Digits(t *testing.T) {
	for text, ok := range map[string]bool{
		"0": true, "00": true, "18446744073709551615": true, "99999999999999999999": true, "": false,
		"100000000000000000000": false, "-1": false, "+1": false, " 1": false, "1.0": false, "0x1": false, "٣": false,
	} {
		if err := CheckDecimal(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestRangeEndsAreClosed(t *testing.T) {
	for _, c := range []struct {
		r       Range
		length  uint64
		in, out []uint64
		valid   bool
	}{
		{Range{1, 100_000}, 100_000, []uint64{1, 100_000}, []uint64{0, 100_001}, true},
		{Range{5, 5}, 1, []uint64{5}, []uint64{4, 6}, true},
		{Range{1, math.MaxUint64}, math.MaxUint64, []uint64{1, math.MaxUint64}, []uint64{0}, true},
		{Range{math.MaxUint64, math.MaxUint64}, 1, []uint64{math.MaxUint64}, []uint64{math.MaxUint64 - 1, 0}, true},
		{Range{1, math.MaxUint32}, math.MaxUint32, []uint64{math.MaxUint32}, []uint64{math.MaxUint32 + 1}, true},
		{Range{0, 5}, 6, nil, nil, false},
		{Range{6, 5}, 0, nil, []uint64{5, 6}, false},
	} {
		if got := c.r.Len(); got != c.length {
			t.Errorf("%s has %d nonces, want %d", c.r, got, c.length)
		}
		for _, nonce := range c.in {
			if !c.r.Contains(nonce) {
				t.Errorf("%d is not in %s", nonce, c.r)
			}
		}
		for _, nonce := range c.out {
			if c.r.Contains(nonce) {
				t.Errorf("%d is in %s", nonce, c.r)
			}
		}
		if err := c.r.Validate(); (err == nil) != c.valid {
			t.Errorf("%s: %v", c.r, err)
		}
	}
	if text := (Range{1, 100_000}).String(); text != "1-100000" {
		t.Errorf("it is printed as %q", text)
	}
}

// FuzzDigest compares with the definition, spelled out with fmt.
func FuzzDigest(f *testing.F) {
	f.Add(make([]byte, 32), uint64(1), uint64(0))
	f.Add([]byte("0123456789abcdef0123456789abcdef"), uint64(math.MaxUint64), uint64(math.MaxUint64))
	f.Add([]byte{0xff}, uint64(99_999), uint64(1_790_000_000_000))
	f.Fuzz(func(t *testing.T, previous []byte, nonce, timestamp uint64) {
		work := Work{Timestamp: timestamp}
		copy(work.Previous[:], previous)
		inner := sha256.Sum256(fmt.Appendf(nil, "%064x%d%d", work.Previous[:], nonce, timestamp))
		want := Hash(sha256.Sum256(inner[:]))
		if got := work.Digest(nonce); got != want {
			t.Errorf("nonce %d, timestamp %d: %s, want %s", nonce, timestamp, got, want)
		}
		if got := SumText(work.Previous, strconv.FormatUint(nonce, 10), strconv.FormatUint(timestamp, 10)); got != want {
			t.Errorf("as text: %s, want %s", got, want)
		}
	})
}

// FuzzParseHash: what is read is printed as it was, in lower case.
func FuzzParseHash(f *testing.F) {
	f.Add(strings.Repeat("aB", 32))
	f.Add("zz")
	f.Fuzz(func(t *testing.T, text string) {
		if hash, err := ParseHash(text); err == nil && hash.String() != strings.ToLower(text) {
			t.Errorf("%q is read as %s", text, hash)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	work := Work{Timestamp: 1_790_000_000_000, Bits: 32}
	nonce := uint64(1_000_000_000)
	for b.Loop() {
		work.Verify(nonce)
		nonce++
	}
}
