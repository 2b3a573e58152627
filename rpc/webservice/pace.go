package webservice

import (
	"math"
	"time"

	"raftmine/fsm/pow"
)

const (
	paceWindow  = 8 // blocks that the hash rate is estimated from (tuning)
	paceOutlier = 8 // a block counts as at most this many block times (tuning)
	minBits     = 1 // paced bits never fall below
)

// pacer moves bits towards one block each blockTime.
//
// The time of one block is exponentially distributed: its standard deviation is its mean, and a rule that looks at the
// last block alone wanders over a factor of four. So the hash rate is estimated from the last few blocks,
// as expected work (the sum of 1<<bits) over time, which stays right while bits move. The block time that it predicts
// at the present bits is compared with the one wanted, and bits go up or down by one when it is off by more than half
// a bit, a factor of the square root of 2. The time of one block is capped, so that miners who were away for an hour
// cost a bit or two, not eight.
//
// A block's time starts when it is first asked for, so neither a restart nor a service that nobody uses counts as slow.
type pacer struct {
	blockTime time.Duration // zero: bits are fixed
	window    []paced       // the newest last, at most paceWindow
}

type paced struct{ work, seconds float64 }

// next returns the bits of the block after one that took that long at bits.
func (p *pacer) next(bits int, took time.Duration) int {
	if p.blockTime <= 0 {
		return bits
	}
	wanted := p.blockTime.Seconds()
	p.window = append(p.window, paced{
		work:    math.Ldexp(1, bits),
		seconds: max(0, min(took.Seconds(), paceOutlier*wanted)),
	})
	if len(p.window) > paceWindow {
		p.window = p.window[1:]
	}
	var work, seconds float64
	for _, block := range p.window {
		work += block.work
		seconds += block.seconds
	}
	predicted := math.Ldexp(seconds/work, bits)
	switch {
	case predicted < wanted/math.Sqrt2:
		bits++
	case predicted > wanted*math.Sqrt2:
		bits--
	}
	return max(minBits, min(bits, pow.MaxBits))
}
