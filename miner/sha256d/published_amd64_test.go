//go:build !purego

package sha256d

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"testing"
)

// Two blocks of Bitcoin, whose headers and hashes are published everywhere: the first one, and number 125552, which is the
// example of the protocol's documentation. A header of 80 bytes is double SHA-256 of one full block and a second one, as
// our messages are, but what it has for W0 to W3 is no decimal digits: so it goes into the kernels below the Searcher.
// Hashes of Bitcoin are written back to front.
func TestPublishedBitcoinBlocks(t *testing.T) {
	for _, published := range []struct{ header, hash string }{
		{"0100000000000000000000000000000000000000000000000000000000000000000000003ba3edfd7a7b12b27ac72c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4a29ab5f49ffff001d1dac2b7c",
			"000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"},
		{"0100000081cd02ab7e569e8bcd9317e2fe99f2de44d49ab2b8851ba4a308000000000000e320b6c2fffc8d750423db8b1eb942ae710e951ed797f7affc8892b0f1fc122bc7f5d74df2b9441a42a14695",
			"00000000000000001e8d6829a8a21adc5d38d0a473b144b6765798e61f98bd1d"},
	} {
		header, err := hex.DecodeString(published.header)
		if err != nil {
			t.Fatal(err)
		}
		hash, err := hex.DecodeString(published.hash)
		if err != nil {
			t.Fatal(err)
		}
		slices.Reverse(hash)
		first := binary.BigEndian.Uint32(hash)

		hasher := sha256.New().(state)
		hasher.Write(header[:sha256.BlockSize])
		raw, _ := hasher.AppendBinary(nil)
		var midstate [8]uint32
		for i := range midstate {
			midstate[i] = binary.BigEndian.Uint32(raw[stateOffset+4*i:])
		}
		// The nine bytes that a nonce of nine digits would be in are the header's.
		m := message{digits: 9}
		m.block[copy(m.block[:], header[sha256.BlockSize:])] = 0x80
		binary.BigEndian.PutUint64(m.block[sha256.BlockSize-8:], 8*uint64(len(header)))

		lanes := []lane{{hash: hasher, block: m.block}}
		digest(&Job{state: raw}, lanes)
		if got := lanes[0].out[stateOffset:][:sha256.Size]; !slices.Equal(got, hash) {
			t.Errorf("generic: %x, want %x", got, hash)
		}
		for name, searcher := range emulatedKernels(t) {
			for _, below := range []uint32{0, 1} {
				if got, want := emulatedHits(t, searcher.kernel, m, &midstate, first-below), below == 0; got != want {
					t.Errorf("%s: block %s is a hit at %#x: %v, want %v", name, published.hash, first-below, got, want)
				}
			}
		}
	}
}

// emulatedHits reports whether the first nonce of a unit whose message is m, in every lane, is a hit. All lanes must agree.
func emulatedHits(t *testing.T, kernel unitKernel, m message, midstate *[8]uint32, threshold uint32) bool {
	w := [4]uint32{m.word(0), m.word(1), m.word(2), m.word(3)}
	if k, ok := kernel.(*emulatedKernel); ok {
		k.install(m.digits)
		kernel = k.unitKernel
	}
	var lanes, hits int
	switch k := kernel.(type) {
	case *hybrid:
		k.message, k.unit = m, 10
		k.fill(midstate)
		for lane := range hybridLanes {
			k.b.groups[0].pairs[lane] = [2]uint32(w[:2])
		}
		k.b.threshold = threshold
		k.search(k.b, 1, 10, 10)
		lanes, hits = 1<<hybridLanes-1, int(k.b.masks[1])
	case *avx512:
		k.message, k.unit = m, 10
		k.fill(midstate)
		for i := range k.b.groups[0] {
			for lane := range avx512Lanes {
				k.b.groups[0][i][lane] = w[i]
			}
		}
		k.b.threshold = threshold
		k.search(k.b, 1, 10)
		lanes, hits = 1<<avx512Lanes-1, int(k.b.masks[0])
	case *avx2:
		k.message = m
		k.fill(midstate)
		for i := range w {
			k.b.groups[0][i].set(w[i])
		}
		k.b.threshold.set(threshold)
		k.search(k.b, 1)
		lanes, hits = 1<<avx2Lanes-1, int(k.b.masks[0][0])
	case *shaniWide:
		k.message, k.unit = m, 10
		k.fill(midstate)
		for lane := range shaniWideLanes {
			k.b.groups[0].pairs[lane] = [2]uint32(w[:2])
		}
		k.b.threshold[3] = threshold
		k.search(k.b, 1, 10)
		lanes, hits = 1<<shaniWideLanes-1, int(k.b.masks[0])
	case *shani:
		k.message = m
		k.fill(midstate)
		k.b.decades[0], k.b.threshold[3] = w, threshold
		found := k.search(k.b, 1)
		lanes = 1
		if slices.Contains(k.b.hits[:found], 0) {
			hits = 1
		}
	default:
		t.Fatalf("%T is not known here", kernel)
	}
	if hits != 0 && hits != lanes {
		t.Errorf("%T: the same message is a hit in lanes %#b only", kernel, hits)
	}
	return hits == lanes
}
