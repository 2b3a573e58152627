package coordinator

import (
	"math"
	"time"
)

// How the speed of a miner is learned. Tuning.
const (
	speedSmoothing = 0.5                    // weight of the newest answer
	speedStep      = 4.0                    // one answer moves the speed by this factor at most
	assumedRate    = 5e6                    // nonces a second and thread, of a miner that does not know its speed yet
	firstWork      = 500 * time.Millisecond // how much work such a miner is granted first
	firstRanges    = 4                      // how many ranges it holds until it has answered for one
	maxClaimedRate = 5e7                    // nonces a second of a process: a claim above is not believed
	// leastWork is the least work of a grant, while there is as much: more than a commit takes, or a fast miner would wait
	// for each of the last ones.
	leastWork = 50 * time.Millisecond
)

// firstSpeed guesses the speed of a miner that has not answered yet, in nonces a second. It is so low that the first grant
// is firstWork of the work of the miner that it says it is, up to a bound.
func firstSpeed(threads int, reported float64, grantTime time.Duration) float64 {
	if reported <= 0 {
		reported = assumedRate * float64(max(threads, 1))
	}
	return min(reported, maxClaimedRate) * min(1, firstWork.Seconds()/grantTime.Seconds())
}

// nextSpeed learns from one answer: nonces were searched in elapsed. The first answer replaces the guess, later ones are
// smoothed; no answer moves the speed by more than speedStep, up or down, so that one odd answer does little.
func nextSpeed(speed float64, measured bool, nonces uint64, elapsed time.Duration) float64 {
	sample := float64(nonces) / max(elapsed, time.Microsecond).Seconds()
	if speed <= 0 {
		return sample
	}
	sample = min(max(sample, speed/speedStep), speed*speedStep)
	if !measured {
		return sample
	}
	return speed + speedSmoothing*(sample-speed)
}

// sizing is what the size of one grant depends on.
type sizing struct {
	speed     float64 // of the miner, nonces a second
	total     float64 // of all connected miners, this one included
	pending   uint64  // chunks that nobody holds
	chunkSize uint64  // nonces
	target    time.Duration
	limit     uint64 // chunks
}

// chunks returns the size of the next grant in chunks, at least 1. It is target worth of the miner's work, but no more
// than half of the miner's share of what is pending: guided self-scheduling (Polychronopoulos and Kuck, 1987), with
// shares by speed. So the grants shrink for everybody towards the end of the range, all of them of the same duration, down
// to leastWork, or a single chunk: nobody waits long for a straggler.
func (s sizing) chunks() uint64 {
	size := s.speed * s.target.Seconds() / float64(s.chunkSize)
	share := float64(s.pending) / 2
	if s.total > s.speed {
		share *= s.speed / s.total
	}
	share = max(share, min(s.speed*leastWork.Seconds()/float64(s.chunkSize), float64(s.pending)))
	size = min(size, share, float64(s.limit))
	if !(size > 1) { // NaN as well
		return 1
	}
	return uint64(math.Floor(size))
}
