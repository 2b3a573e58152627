package webservice

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"raftmine/fsm/pow"
)

// simulate finds blocks at hashRate and returns the mean block time and the lowest and highest bits.
func simulate(p *pacer, random *rand.Rand, bits *int, hashRate float64, blocks int) (mean float64, low, high int) {
	low, high = *bits, *bits
	for range blocks {
		seconds := random.ExpFloat64() * math.Ldexp(1, *bits) / hashRate
		mean += seconds / float64(blocks)
		*bits = p.next(*bits, time.Duration(min(seconds, 1e6)*float64(time.Second)))
		low, high = min(low, *bits), max(high, *bits)
	}
	return mean, low, high
}

func TestPaceConvergesOnSlowAndFastMachines(t *testing.T) {
	const blockTime = 3 * time.Second
	for _, hashRate := range []float64{1e3, 1e5, 5e6, 1e9, 1e15} {
		random := rand.New(rand.NewPCG(1, uint64(hashRate)))
		p, bits := pacer{blockTime: blockTime}, 24
		ideal := math.Log2(hashRate * blockTime.Seconds())
		simulate(&p, random, &bits, hashRate, int(math.Abs(ideal-24))+12)
		mean, low, high := simulate(&p, random, &bits, hashRate, 1000)
		if mean < 0.7*blockTime.Seconds() || mean > 1.5*blockTime.Seconds() {
			t.Errorf("%g hashes a second: a block each %.2f s, want about %s", hashRate, mean, blockTime)
		}
		if float64(low) < ideal-3 || float64(high) > ideal+3 {
			t.Errorf("%g hashes a second: bits went from %d to %d, want about %.1f", hashRate, low, high, ideal)
		}
	}
}

func TestPaceFollowsMinersThatComeAndGo(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	p, bits := pacer{blockTime: 3 * time.Second}, 20
	for _, hashRate := range []float64{1e6, 64e6, 1e6} {
		simulate(&p, random, &bits, hashRate, 30)
		if mean, _, _ := simulate(&p, random, &bits, hashRate, 500); mean < 2 || mean > 4.5 {
			t.Errorf("%g hashes a second: a block each %.2f s, want about 3 s", hashRate, mean)
		}
	}
}

func TestPaceForgivesOneVeryLongBlock(t *testing.T) {
	p, bits := pacer{blockTime: 3 * time.Second}, 22
	steady := func(blocks int) (low int) {
		low = bits
		for range blocks {
			bits = p.next(bits, time.Duration(3*math.Ldexp(1, bits-22)*float64(time.Second)))
			low = min(low, bits)
		}
		return low
	}
	if low := steady(20); low != 22 || bits != 22 {
		t.Fatalf("bits moved to %d on a steady pace", bits)
	}
	bits = p.next(bits, 10*time.Hour)
	if low := steady(20); low < 20 || bits != 22 {
		t.Errorf("bits fell to %d and came back to %d, want 20 or more and 22", low, bits)
	}
}

func TestPaceMovesByOneABlockWithinTheLimits(t *testing.T) {
	for _, row := range []struct {
		name       string
		blockTime  time.Duration
		bits, want int
		took       time.Duration
	}{
		{"no block time", 0, 24, 24, time.Nanosecond},
		{"at once", time.Second, 24, 25, 0},
		{"clock set back", time.Second, 24, 25, -time.Hour},
		{"a little fast", time.Second, 24, 24, 720 * time.Millisecond},
		{"fast", time.Second, 24, 25, 700 * time.Millisecond},
		{"a little slow", time.Second, 24, 24, 1400 * time.Millisecond},
		{"slow", time.Second, 24, 23, 1430 * time.Millisecond},
		{"highest", time.Second, pow.MaxBits, pow.MaxBits, 0},
		{"lowest", time.Second, minBits, minBits, time.Hour},
		{"longest block time", math.MaxInt64, 24, 25, time.Hour},
	} {
		p := pacer{blockTime: row.blockTime}
		if got := p.next(row.bits, row.took); got != row.want {
			t.Errorf("%s: %d bits become %d, want %d", row.name, row.bits, got, row.want)
		}
	}
}
