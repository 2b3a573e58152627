package miner

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"raftmine/fsm/pow"
	"raftmine/miner/sha256d"
)

// BenchmarkSearch compares search threads with as many loops around the kernel alone, in turns of 100 ms, so that a
// machine that is sometimes busy is fair to both. The efficiency is the median of the turns' ratios.
func BenchmarkSearch(b *testing.B) {
	const turn = 100 * time.Millisecond
	for threads := 1; threads <= runtime.NumCPU(); threads *= 2 {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			job := sha256d.NewJob(hardWork)
			s := newSearch(threads, sha256d.Best())
			defer s.close()
			var ratios []float64
			var searched, alone float64
			for b.Loop() {
				mine := searchRate(s, job, turn)
				kernel := kernelRate(threads, job, turn)
				ratios = append(ratios, mine/kernel)
				searched, alone = searched+mine, alone+kernel
			}
			slices.Sort(ratios)
			b.ReportMetric(searched/float64(len(ratios)), "H/s")
			b.ReportMetric(alone/float64(len(ratios)), "kernel-H/s")
			b.ReportMetric(ratios[len(ratios)/2], "efficiency")
		})
	}
}

// searchRate runs the threads for a while on grants as a leader gives them, two at a time.
func searchRate(s *search, job *sha256d.Job, turn time.Duration) float64 {
	const size = 500_000 // far smaller than five seconds of work, so that ends of grants weigh more than they do
	before, start := s.hashes(), time.Now()
	next := uint64(1_000_000_000)
	var open []*grant
	for end := time.After(turn); ; {
		for len(open) < 2 {
			p := Process{Work: hardWork, Nonces: pow.Range{First: next, Last: next + size - 1}, ChunkSize: 100_000}
			open = append(open, s.add(p, job))
			next += size
		}
		select {
		case <-s.settled:
			for _, done := range s.collect() {
				open = slices.DeleteFunc(open, func(g *grant) bool { return g == done })
			}
			continue
		case <-end:
		}
		rate := float64(s.hashes()-before) / time.Since(start).Seconds()
		for _, g := range open {
			s.stop(g)
		}
		return rate
	}
}

// kernelRate runs the kernel alone.
func kernelRate(threads int, job *sha256d.Job, turn time.Duration) float64 {
	tried := make(chan uint64)
	start := time.Now()
	for i := range threads {
		go func() {
			searcher, hits, sum := sha256d.Best().New(), make([]uint64, hitRoom), uint64(0)
			first := uint64(1_000_000_000 + 100_000_000*i)
			for time.Since(start) < turn {
				_, n := searcher.Search(job, pow.Range{First: first + sum, Last: math.MaxUint64}, 0, hits)
				sum += n
			}
			tried <- sum
		}()
	}
	var sum uint64
	for range threads {
		sum += <-tried
	}
	return float64(sum) / time.Since(start).Seconds()
}

// BenchmarkInterrupt measures, on the wall clock and with a search thread for every processor, the time from when the
// leader sends an Interrupt until the last thread has stopped.
func BenchmarkInterrupt(b *testing.B) {
	dialer := newFakeDialer()
	begun := time.Now()
	var inside, ended atomic.Int64 // calls, and when the last one ended
	m, err := New(Config{Name: "m", Dialer: dialer, Kernel: sha256d.Kernel{Name: "timed", New: func() sha256d.Searcher {
		return timedSearcher{sha256d.Best().New(), begun, &inside, &ended}
	}}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	left := make(chan error)
	go func() { left <- m.Run(ctx) }()
	c := &fakeConn{toMiner: make(chan Message), fromMiner: make(chan Message, 16), over: make(chan struct{})}
	dialer.results <- dialResult{conn: c}
	c.toMiner <- HeartbeatRequest{}
	<-c.fromMiner

	var took []time.Duration
	for job := uint64(1); b.Loop(); job++ {
		c.toMiner <- Process{
			GrantID: job, JobID: job, Work: hardWork, Nonces: pow.Range{First: 1 << 30, Last: 1 << 50}, ChunkSize: 100_000,
		}
		time.Sleep(5 * time.Millisecond) // to be in the middle of the search; nothing is asserted
		start := time.Now()
		c.toMiner <- Interrupt{JobID: job}
		// A thread that waits for a processor is inside a call, so it is not taken for one that has stopped.
		for idle := start; time.Since(idle) < 3*time.Millisecond; runtime.Gosched() {
			if inside.Load() > 0 {
				idle = time.Now()
			}
		}
		took = append(took, max(0, time.Duration(ended.Load())-start.Sub(begun)))
	}
	cancel()
	if err := <-left; err != nil {
		b.Fatal(err)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/1e6, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100])/1e6, "p99-ms")
}

// timedSearcher notes when its calls end.
type timedSearcher struct {
	sha256d.Searcher
	begun         time.Time
	inside, ended *atomic.Int64
}

func (s timedSearcher) Search(job *sha256d.Job, nonces pow.Range, threshold uint32, hits []uint64) (int, uint64) {
	s.inside.Add(1)
	defer func() {
		s.ended.Store(int64(time.Since(s.begun)))
		s.inside.Add(-1)
	}()
	return s.Searcher.Search(job, nonces, threshold, hits)
}
