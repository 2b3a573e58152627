package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"raftmine/fsm/pow"
	"raftmine/miner"
	"raftmine/miner/sha256d"
	"raftmine/raftnode/registry"
	"raftmine/rpc"
)

// asSearcher makes this test binary a process that searches at low priority and counts its hashes where its parent sees
// them. Its arguments are the file of the count, the threads, a name, and the environment; without the last two the kernel
// searches alone, with them a miner of that name does.
const asSearcher = "TEST_BINARY_IS_SEARCHER"

// BenchmarkMinerInCluster compares miners of one thread and of two in a running cluster, on a job that is never solved,
// with the same kernel alone. Each is a process of its own at the same priority, and each is paused but for its turns,
// which are short, so that whatever else the machine does slows all of them alike. The rates of one round are divided by
// each other; a metric is the median of all rounds, and the spread is from the first quarter to the third.
//
// A metric of CPU divides hashes by the processor time that the process had, gRPC and Go's runtime included: what it costs
// to be a miner, which can be told on a busy machine as well.
func BenchmarkMinerInCluster(b *testing.B) {
	const rounds, length = 300, 50 * time.Millisecond
	for range b.N {
		c := startBenchCluster(b, 16)
		contenders := []*searcher{startSearcher(b, c, "", 1), startSearcher(b, c, "one", 1)}
		if runtime.NumCPU() > 1 {
			contenders = append(contenders, startSearcher(b, c, "two", 2), startSearcher(b, c, "", 2))
		}
		turns := make([][rounds]turn, len(contenders))
		for round := range rounds {
			for i := range contenders {
				if round%2 == 1 {
					i = len(contenders) - 1 - i // what changes steadily favours nobody
				}
				turns[i][round] = contenders[i].turn(b, length)
			}
		}
		report := func(name string, of, by int, scale float64, rate func(turn) float64) {
			var ratios []float64
			for i := range rounds {
				if rate(turns[of][i]) > 0 && rate(turns[by][i]) > 0 { // else one of them had no processor
					ratios = append(ratios, scale*rate(turns[of][i])/rate(turns[by][i]))
				}
			}
			if len(ratios) == 0 {
				b.Errorf("no round tells %s", name)
				return
			}
			slices.Sort(ratios)
			b.ReportMetric(median(ratios), name)
			b.ReportMetric(ratios[len(ratios)*3/4]-ratios[len(ratios)/4], name+"-spread")
		}
		var alone []float64
		for _, t := range turns[0] {
			alone = append(alone, t.rate())
		}
		b.ReportMetric(median(alone), "kernel-H/s")
		report("%-of-kernel", 1, 0, 100, turn.rate)
		_, perCPU := processTime(os.Getpid()) // does this system tell?
		if perCPU {
			report("%-of-kernel-CPU", 1, 0, 100, turn.ratePerCPU)
		}
		if len(contenders) > 2 {
			report("two-threads/one", 2, 1, 1, turn.rate)
			report("two-kernels/one", 3, 0, 1, turn.rate)
			report("%-of-two-kernels", 2, 3, 100, turn.rate)
			if perCPU {
				report("%-of-two-kernels-CPU", 2, 3, 100, turn.ratePerCPU)
			}
		}
		b.ReportMetric(100*contenders[1].logged(b, c), "%-in-log")
	}
}

// turn is what came of one turn.
type turn struct {
	hashes       float64
	clock, spent time.Duration // spent is 0 when it is not known
}

func (t turn) rate() float64 { return t.hashes / t.clock.Seconds() }

func (t turn) ratePerCPU() float64 {
	if t.spent == 0 {
		return 0
	}
	return t.hashes / t.spent.Seconds()
}

// searcher is one process that searches in turns.
type searcher struct {
	name   string
	pid    int
	hashes *atomic.Uint64 // shared with the process
}

// startSearcher starts a process and pauses it when it searches.
func startSearcher(b *testing.B, c *cluster, name string, threads int) *searcher {
	b.Helper()
	path := filepath.Join(b.TempDir(), "hashes")
	if err := os.WriteFile(path, make([]byte, os.Getpagesize()), 0o600); err != nil {
		b.Fatal(err)
	}
	args := []string{path, strconv.Itoa(threads)}
	if name != "" {
		args = append(args, name, c.env.Dir())
	}
	s := &searcher{name: name}
	var err error
	if s.hashes, err = sharedCount(path); err != nil {
		b.Fatal(err)
	}
	s.pid = startHelper(b, asSearcher, func([]byte) {}, args...)
	eventually(b, fmt.Sprintf("searcher %q searches", name), func() string {
		if s.hashes.Load() == 0 {
			return "no hash yet"
		}
		return ""
	})
	s.pause(b)
	return s
}

// turn lets the process search for a while.
func (s *searcher) turn(b *testing.B, length time.Duration) turn {
	b.Helper()
	hashes, began := s.hashes.Load(), time.Now()
	spent, known := processTime(s.pid)
	if err := syscall.Kill(s.pid, syscall.SIGCONT); err != nil {
		b.Fatal(err)
	}
	time.Sleep(length) // what is measured
	t := turn{clock: s.pause(b).Sub(began), hashes: float64(s.hashes.Load() - hashes)}
	if now, ok := processTime(s.pid); ok && known {
		t.spent = now - spent
	}
	return t
}

// pause stops the process, says when, and waits until it stands.
func (s *searcher) pause(b *testing.B) time.Time {
	b.Helper()
	stopped := time.Now()
	if err := syscall.Kill(s.pid, syscall.SIGSTOP); err != nil {
		b.Fatal(err)
	}
	for {
		var status syscall.WaitStatus
		switch _, err := syscall.Wait4(s.pid, &status, syscall.WUNTRACED, nil); {
		case err != nil && !errors.Is(err, syscall.EINTR):
			b.Fatal(err)
		case err == nil && status.Stopped():
			return stopped
		case err == nil:
			b.Fatalf("searcher %q ended", s.name)
		}
	}
}

// logged is the part of the process's hashes that the log says are finished. What is missing is what it holds.
func (s *searcher) logged(b *testing.B, c *cluster) float64 {
	b.Helper()
	status, err := c.client.Status(b.Context(), c.children["server-1"].started.Address)
	if err != nil {
		b.Fatal(err)
	}
	for _, m := range status.Miners {
		if m.Name == s.name {
			return float64(m.ChunksFinished) * 100_000 / float64(s.hashes.Load())
		}
	}
	b.Errorf("the leader knows no miner %q", s.name)
	return 0
}

// sharedCount is the number at the start of a file, which processes share. It stays mapped.
func sharedCount(path string) (*atomic.Uint64, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	memory, err := syscall.Mmap(int(file.Fd()), 0, os.Getpagesize(), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*atomic.Uint64)(unsafe.Pointer(&memory[0])), nil
}

// countingKernel is the best kernel, which counts what it tries.
func countingKernel(hashes *atomic.Uint64) sha256d.Kernel {
	best := sha256d.Best()
	return sha256d.Kernel{Name: best.Name, Available: best.Available, New: func() sha256d.Searcher {
		return countingSearcher{best.New(), hashes}
	}}
}

type countingSearcher struct {
	sha256d.Searcher
	hashes *atomic.Uint64
}

func (s countingSearcher) Search(job *sha256d.Job, nonces pow.Range, threshold uint32, hits []uint64) (int, uint64) {
	found, tried := s.Searcher.Search(job, nonces, threshold, hits)
	s.hashes.Add(tried)
	return found, tried
}

// runSearcher is the main function of a searcher process: it searches until standard input ends.
func runSearcher(args []string) error {
	hashes, err := sharedCount(args[0])
	if err != nil {
		return err
	}
	threads, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	if err := miner.LowerPriority(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	kernel := countingKernel(hashes)
	if len(args) == 2 {
		var ended sync.WaitGroup
		for i := range threads {
			ended.Go(func() { searchAlone(ctx, kernel.New(), uint64(i)) })
		}
		ended.Wait()
		return nil
	}
	env, err := registry.Open(args[3])
	if err != nil {
		return err
	}
	dialer, err := rpc.NewMinerDialer(rpc.MinerDialerConfig{Addresses: func() []string {
		addresses, _ := serversIn(env) // none: the dialer asks again
		return addresses
	}})
	if err != nil {
		return err
	}
	defer dialer.Close()
	m, err := miner.New(miner.Config{Name: args[2], Threads: threads, Kernel: kernel, Dialer: dialer, Version: version})
	if err != nil {
		return err
	}
	if err := m.Run(ctx); err != nil {
		return fmt.Errorf("searcher: %w", err)
	}
	return nil
}

// searchAlone is a loop around the kernel and nothing else, on the nonces that a cluster's first job has for long, until
// ctx ends. Loops with different numbers begin at different nonces.
func searchAlone(ctx context.Context, kernel sha256d.Searcher, number uint64) {
	job := sha256d.NewJob(pow.Work{Previous: pow.Sum([]byte("bench")), Timestamp: uint64(time.Now().UnixMilli())})
	hits := make([]uint64, 16)
	first := 100_000_000 + 1_000_000*(number%1000)
	for nonces := (pow.Range{First: first, Last: 2_000_000_000}); ctx.Err() == nil; {
		_, tried := kernel.Search(job, nonces, 0, hits)
		if nonces.First += tried; nonces.First > nonces.Last {
			nonces.First = first
		}
	}
}
