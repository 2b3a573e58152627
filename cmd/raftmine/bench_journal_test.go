package main

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
	"raftmine/raftnode"
	"raftmine/raftnode/coordinator"
	"raftmine/raftnode/registry"
	"raftmine/rpc"
)

// BenchmarkCoordinatorWithJournal lets two leaders work turn by turn, one of them without a journal, so that what else the
// machine does meets both alike. Each is one server of this process, with fsync, and its coordinator; 1,000 miners answer
// for what they hold and are granted as much again, without a network between. It reports the medians of the throughput
// with a journal, as a part of that without, and of the processor time that it takes more. Want 95 % or more.
func BenchmarkCoordinatorWithJournal(b *testing.B) {
	const turns, answers = 21, 10_000
	leaders := []*benchedLeader{startBenchedLeader(b, false), startBenchedLeader(b, true)}
	var rates, slower, costlier []float64
	for b.Loop() {
		for turn := range turns {
			var took, cpu [2]float64
			for i := range leaders {
				which := (i + turn) % 2
				runtime.GC() // the garbage of each turn is its own
				began, before := time.Now(), ownProcessorTime(b)
				leaders[which].turn(answers)
				took[which], cpu[which] = time.Since(began).Seconds(), (ownProcessorTime(b) - before).Seconds()
			}
			rates = append(rates, 2*answers/took[0])
			slower, costlier = append(slower, took[0]/took[1]), append(costlier, cpu[0]/cpu[1])
		}
	}
	b.ReportMetric(0, "ns/op") // of no meaning here
	b.ReportMetric(median(rates), "both/s")
	b.ReportMetric(100/median(slower), "%throughput")
	b.ReportMetric(100*(median(costlier)-1), "%cpu")
	slices.Sort(slower)
	b.Logf("throughput with a journal: %.1f to %.1f %% of that without, in the middle half of %d turns", 100/slower[len(slower)*3/4],
		100/slower[len(slower)/4], len(slower))
}

// ownProcessorTime returns what this process has used so far, on all cores.
func ownProcessorTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// benchedLeader is a server that leads, and miners that wait for their turn to answer.
type benchedLeader struct {
	b         *testing.B
	answer    chan struct{} // each one lets a miner answer
	committed chan struct{} // each one is an answer
}

func startBenchedLeader(b *testing.B, withoutJournal bool) *benchedLeader {
	const miners = 1000
	env, err := registry.Open(filepath.Join(b.TempDir(), "env"))
	if err != nil {
		b.Fatal(err)
	}
	peers := rpc.NewPeerClient()
	node, err := raftnode.Start(b.Context(), raftnode.StartConfig{Config: raftnode.Config{
		Environment: env, Peers: peers, Version: version, WithoutJournal: withoutJournal,
	}})
	if err != nil {
		b.Fatal(err)
	}
	l := &benchedLeader{b: b, answer: make(chan struct{}), committed: make(chan struct{}, miners)}
	leading := make(chan *coordinator.Coordinator, 1)
	ran := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ran <- node.Run(ctx, func(ctx context.Context, term uint64) error {
			c, err := coordinator.New(coordinator.Config{
				Proposer: proposer{node}, Source: unsolvable{}, ServerID: node.ID(), ClusterID: node.ClusterID(), Address: node.Address(),
				Term: term, Nonces: pow.Range{First: 1, Last: math.MaxUint32}, ChunkSize: 1, MaxGrantChunks: 1,
			})
			if err != nil {
				return err
			}
			leading <- c
			return c.Run(ctx)
		})
	}()
	c := <-leading
	var mining sync.WaitGroup
	for i := range miners {
		mining.Go(func() { l.mine(ctx, c, fmt.Sprintf("miner-%d", i)) })
	}
	b.Cleanup(func() {
		cancel()
		mining.Wait()
		<-ran // what the end of a term came to
		if err := node.Close(); err != nil {
			b.Error(err)
		}
		if err := peers.Close(); err != nil {
			b.Error(err)
		}
	})
	l.turn(miners) // until all are connected and hold something
	return l
}

// mine is one miner with two ranges of one nonce: their receipts are honest without a search.
func (l *benchedLeader) mine(ctx context.Context, c *coordinator.Coordinator, name string) {
	s, err := c.Open()
	if err != nil {
		l.b.Error(err)
		return
	}
	defer s.Close()
	wanted := 2
	var held []coordinator.Process
	for {
		answer := l.answer
		if len(held) == 0 {
			answer = nil
		}
		var err error
		select {
		case <-ctx.Done():
			return
		case <-answer:
			p := held[0]
			held = held[1:]
			err = s.Receive(ctx, coordinator.AnswerNo{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonces: p.Nonces,
				Receipt: p.Nonces.First})
		case message, open := <-s.Outgoing():
			if !open {
				if ctx.Err() == nil {
					l.b.Errorf("the stream of %s ended: %v", name, s.Err())
				}
				return
			}
			switch m := message.(type) {
			case coordinator.HeartbeatRequest:
				reply := coordinator.HeartbeatReply{Name: name, Instance: fsm.ID{1}, Threads: 1, Wanted: &wanted}
				for _, p := range held {
					reply.Held = append(reply.Held, p.GrantID)
				}
				err = s.Receive(ctx, reply)
			case coordinator.Process:
				held = append(held, m)
			case coordinator.Acknowledgement:
				if m.Result == coordinator.Committed {
					l.committed <- struct{}{}
				} else {
					err = fmt.Errorf("an answer of %s: %+v", name, m)
				}
			}
		}
		if err != nil && ctx.Err() == nil {
			l.b.Error(err)
			return
		}
	}
}

// turn lets miners answer so often, and waits until all answers are committed.
func (l *benchedLeader) turn(answers int) {
	go func() {
		for range answers {
			l.answer <- struct{}{}
		}
	}()
	for range answers {
		select {
		case <-l.committed:
		case <-time.After(patience):
			l.b.Fatal("no answer is committed any more")
		}
	}
}

// unsolvable is a web service whose block nobody finds.
type unsolvable struct{}

func (unsolvable) Block(context.Context) (coordinator.Block, error) {
	return coordinator.Block{Previous: pow.Sum([]byte("unsolvable")), Bits: 256}, nil
}

func (unsolvable) Submit(context.Context, uint64, uint64) (coordinator.Reply, error) {
	return coordinator.Reply{}, fmt.Errorf("nobody solves this block")
}

func (unsolvable) Address() string { return "none" }
