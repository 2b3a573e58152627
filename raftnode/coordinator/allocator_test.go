package coordinator

import (
	"container/heap"
	"math"
	"testing"
	"time"
)

func TestFirstGrantFollowsTheReportWithinBounds(t *testing.T) {
	for _, row := range []struct {
		threads  int
		reported float64
		want     float64
	}{
		{1, 0, assumedRate / 10},
		{4, 0, 4 * assumedRate / 10},
		{0, 0, assumedRate / 10},
		{2, 8e6, 8e6 / 10},
		{1, 1e30, maxClaimedRate / 10},
		{1 << 16, 1e30, maxClaimedRate / 10},
		{1 << 16, 0, maxClaimedRate / 10},
	} {
		if got := firstSpeed(row.threads, row.reported, 5*time.Second); got != row.want {
			t.Errorf("firstSpeed(%d, %g) = %g, want %g", row.threads, row.reported, got, row.want)
		}
	}
}

func TestSpeedIsLearnedAndOneOddAnswerDoesLittle(t *testing.T) {
	speed, measured := firstSpeed(1, 0, 5*time.Second), false
	for range 5 {
		speed = nextSpeed(speed, measured, uint64(5e6), time.Second)
		measured = true
	}
	if math.Abs(speed-5e6) > 5e5 {
		t.Errorf("speed %g after five answers at 5e6", speed)
	}
	for _, odd := range []struct {
		nonces  uint64
		elapsed time.Duration
	}{{1, time.Hour}, {math.MaxUint64, 0}, {math.MaxUint64, -time.Second}, {0, time.Second}} {
		got := nextSpeed(speed, true, odd.nonces, odd.elapsed)
		if got < speed/speedStep || got > speed*speedStep || math.IsNaN(got) {
			t.Errorf("%+v moves the speed from %g to %g", odd, speed, got)
		}
	}
}

func TestGrantSize(t *testing.T) {
	for name, row := range map[string]struct {
		sizing
		want uint64
	}{
		"five seconds of work":        {sizing{5e6, 5e6, 20000, 100000, 5 * time.Second, 10000}, 250},
		"half of what is left":        {sizing{5e6, 5e6, 100, 100000, 5 * time.Second, 10000}, 50},
		"half of the share":           {sizing{5e6, 10e6, 100, 100000, 5 * time.Second, 10000}, 25},
		"no shorter than a commit":    {sizing{45e6, 45e6, 30, 100000, 5 * time.Second, 10000}, 22},
		"all that is left":            {sizing{45e6, 45e6, 20, 100000, 5 * time.Second, 10000}, 20},
		"half of a tenth":             {sizing{45e6, 450e6, 1000, 100000, 5 * time.Second, 10000}, 50},
		"at least one chunk":          {sizing{1, 5e6, 20000, 100000, 5 * time.Second, 10000}, 1},
		"one chunk of the last":       {sizing{5e6, 5e6, 1, 100000, 5 * time.Second, 10000}, 1},
		"nothing pending":             {sizing{5e6, 5e6, 0, 100000, 5 * time.Second, 10000}, 1},
		"bounded":                     {sizing{1e12, 1e12, 1 << 36, 100000, 5 * time.Second, 10000}, 10000},
		"no speed":                    {sizing{0, 0, 20000, 100000, 5 * time.Second, 10000}, 1},
		"not a number":                {sizing{math.NaN(), 1, 20000, 100000, 5 * time.Second, 10000}, 1},
		"sum lags behind the miner's": {sizing{5e6, 0, 20000, 100000, 5 * time.Second, 10000}, 250},
	} {
		if got := row.chunks(); got != row.want {
			t.Errorf("%s: %d chunks, want %d", name, got, row.want)
		}
	}
}

// queueing simulates miners that hold two grants each and search at constant speed. It returns when
// the last grant was finished, in seconds.
func queueing(speeds []float64, chunks, chunkSize uint64) (makespan float64) {
	total := 0.0
	for _, speed := range speeds {
		total += speed
	}
	next := func(miner int) (seconds float64, ok bool) {
		if chunks == 0 {
			return 0, false
		}
		size := min(sizing{speeds[miner], total, chunks, chunkSize, 5 * time.Second, 10000}.chunks(), chunks)
		chunks -= size
		return float64(size*chunkSize) / speeds[miner], true
	}
	var running events
	queued := make([]float64, len(speeds)) // seconds of the second range; 0: none
	for miner := range speeds {
		if seconds, ok := next(miner); ok {
			heap.Push(&running, event{seconds, miner})
		}
	}
	for miner := range speeds {
		queued[miner], _ = next(miner)
	}
	for len(running) > 0 {
		e := heap.Pop(&running).(event)
		makespan = e.at
		if queued[e.miner] == 0 {
			continue
		}
		heap.Push(&running, event{e.at + queued[e.miner], e.miner})
		queued[e.miner], _ = next(e.miner)
	}
	return makespan
}

type event struct {
	at    float64
	miner int
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func TestNobodyWaitsForAStraggler(t *testing.T) {
	many := make([]float64, 1000)
	for i := range many {
		many[i] = 1e6 * float64(1+i%7)
	}
	for name, row := range map[string]struct {
		speeds []float64
		chunks uint64
	}{
		"two alike":         {[]float64{5e6, 5e6}, 20000},
		"one in hundred":    {[]float64{50e6, 0.5e6}, 20000},
		"mixed":             {[]float64{44e6, 44e6, 20e6, 5e6, 5e6, 1e6}, 20000},
		"a thousand":        {many, 20000},
		"more than chunks":  {many, 300},
		"a single chunk":    {[]float64{5e6, 5e6}, 1},
		"a very long range": {[]float64{5e6, 20e6}, 2_000_000},
	} {
		const chunkSize = 100_000
		total, slowest := 0.0, math.Inf(1)
		for _, speed := range row.speeds {
			total += speed
			slowest = min(slowest, speed)
		}
		ideal := float64(row.chunks*chunkSize) / total
		makespan := queueing(row.speeds, row.chunks, chunkSize)
		// Nobody can be better than ideal; two single chunks of the slowest miner are what double buffering costs.
		if limit := 1.02*ideal + 2*chunkSize/slowest; makespan > limit {
			t.Errorf("%s: takes %.2f s, ideally %.2f, want at most %.2f", name, makespan, ideal, limit)
		}
	}
}
