package coordinator

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// benchMiner answers whatever it is granted at once.
func benchMiner(b *testing.B, c *Coordinator, name string, left *atomic.Int64) {
	s, err := c.Open()
	if err != nil {
		b.Error(err)
		return
	}
	defer s.Close()
	wanted := 2
	ctx := context.Background()
	for message := range s.Outgoing() {
		switch p := message.(type) {
		case HeartbeatRequest:
			err = s.Receive(ctx, HeartbeatReply{Name: name, Instance: fsm.ID{1}, Threads: 1, Wanted: &wanted})
		case Process:
			err = s.Receive(ctx, answerNo(p, p.Nonces.First))
			if left.Add(-1) < 0 {
				return
			}
		}
		if err != nil {
			b.Error(err)
			return
		}
	}
}

// BenchmarkThousandMiners measures the coordinator and the state machine without disks and network: one answer and one
// grant for each operation.
func BenchmarkThousandMiners(b *testing.B) {
	cl := newCluster(b)
	cl.forgetful = true
	c, err := New(Config{
		Proposer: cl, Source: &service{cl: cl, block: Block{Previous: pow.Sum(nil), Bits: 256}}, ServerID: 1, Term: 2,
		Nonces: pow.Range{First: 1, Last: math.MaxUint32}, ChunkSize: 1, MaxGrantChunks: 1,
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	var left atomic.Int64
	left.Store(int64(b.N))
	var miners sync.WaitGroup
	b.ReportAllocs()
	for i := range 1000 {
		miners.Go(func() { benchMiner(b, c, fmt.Sprintf("miner-%d", i), &left) })
	}
	miners.Wait()
	b.ReportMetric(2*float64(b.N)/b.Elapsed().Seconds(), "answers+grants/s")
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// BenchmarkSessionMemory measures what a connected miner with two ranges costs the coordinator.
func BenchmarkSessionMemory(b *testing.B) {
	const miners = 5000
	for range b.N {
		cl := newCluster(b)
		cl.forgetful = true
		c, err := New(Config{
			Proposer: cl, Source: &service{cl: cl, block: Block{Previous: pow.Sum(nil), Bits: 256}}, ServerID: 1, Term: 2,
		})
		if err != nil {
			b.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		sessions := make([]*Session, miners)
		wanted := 2
		for i := range sessions {
			if sessions[i], err = c.Open(); err != nil {
				b.Fatal(err)
			}
			report := HeartbeatReply{Name: fmt.Sprintf("miner-%d", i), Instance: fsm.ID{1}, Threads: 1, Kernel: "generic", Wanted: &wanted}
			if err := sessions[i].Receive(b.Context(), report); err != nil {
				b.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		for _, s := range sessions {
			for range 3 { // the heartbeat and two ranges
				<-s.Outgoing()
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/miners, "bytes/miner")
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		runtime.KeepAlive(sessions)
	}
}
