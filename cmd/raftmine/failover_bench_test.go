package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raftmine/miner"
	"raftmine/rpc"
)

// failover measures how long a cluster of real processes is without a leader that grants work.
type failover struct {
	*cluster
	servers   int
	flags     []string
	addressOf []string // of server i+1
}

func startFailover(b *testing.B, servers int) *failover {
	b.Helper()
	f := &failover{servers: servers, addressOf: make([]string, servers)}
	f.flags = append(fewHashes(), "--heartbeat", "200ms")
	f.cluster = startBenchServers(b, servers, 16, f.flags...)
	f.settle(b)
	return f
}

// settle waits until all servers are up and server 1 leads.
func (f *failover) settle(b *testing.B) {
	b.Helper()
	eventually(b, "all servers are up, and server 1 leads", func() string {
		s, err := bestStatus(b.Context(), f.client, f.watchable())
		up := 0
		for _, server := range s.Servers {
			if server.Up && server.Voter {
				up++
				f.addressOf[server.ID-1] = server.Address
			}
		}
		if err != nil || up != f.servers || s.LeaderID != 1 || s.Coordinator == nil {
			return fmt.Sprintf("%+v, %v", s, err)
		}
		return ""
	})
}

// until signals server 1 and returns the time until server 2 has granted work.
func (f *failover) until(b *testing.B, signal syscall.Signal) time.Duration {
	b.Helper()
	watching := make(chan struct{}, 1)
	dialer, err := rpc.NewMinerDialer(rpc.MinerDialerConfig{Addresses: func() []string { return f.addressOf[1:2] },
		Logger: slog.New(slog.NewTextHandler(saysNotLeading(watching), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		b.Fatal(err)
	}
	defer dialer.Close()
	granted := make(chan error, 1)
	go func() {
		granted <- func() error {
			conn, err := dialer.Dial(b.Context())
			if err != nil {
				return err
			}
			m := simulated{name: "probe", dialer: dialer, conn: conn}
			defer conn.Close()
			for {
				message, err := m.next()
				if _, ok := message.(miner.Process); ok || err != nil {
					return err
				}
			}
		}()
	}()
	select {
	case <-watching:
	case err := <-granted:
		b.Fatalf("the probe ended before server 1 did: %v", err)
	case <-time.After(patience):
		b.Fatalf("server 2 did not say within %s that it does not lead", patience)
	}
	f.mu.Lock()
	process := f.children["server-1"]
	f.mu.Unlock()
	began := time.Now()
	if err := syscall.Kill(process.pid(), signal); err != nil {
		b.Fatal(err)
	}
	select {
	case err := <-granted:
		if err != nil {
			b.Fatal(err)
		}
	case <-time.After(patience):
		b.Fatalf("server 2 grants nothing %s after server 1 ended", patience)
	}
	took := time.Since(began)
	<-process.exited
	return took
}

// saysNotLeading takes a dialer's log and tells when the one server that it watches has answered that it does not lead: from
// then on it will hear of a change.
type saysNotLeading chan struct{}

func (c saysNotLeading) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("state=TRANSIENT_FAILURE")) {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	return len(line), nil
}

func (f *failover) restart(b *testing.B) {
	b.Helper()
	args := append([]string{"--data-dir", filepath.Join(f.dir, "servers", "1")}, f.flags...)
	if _, err := f.start(b.Context(), "server", "server-1", args...); err != nil {
		b.Fatal(err)
	}
	f.settle(b)
}

// startWriters runs simulated miners that answer all the time, until the test ends, and counts their answers. One whose leader
// goes finds the next.
func startWriters(b testing.TB, c *cluster, miners int) *atomic.Int64 {
	b.Helper()
	var answers atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	b.Cleanup(func() { cancel(); work.Wait() })
	for n := range miners {
		work.Go(func() {
			for ctx.Err() == nil {
				m, err := newSimulated(ctx, c.env, "load-"+strconv.Itoa(n))
				if err != nil {
					continue
				}
				stop := context.AfterFunc(ctx, func() { m.conn.Close() })
				for {
					message, err := m.next()
					if err != nil {
						break
					}
					switch e := message.(type) {
					case miner.Process:
						m.conn.Send(searched(e))
					case miner.Acknowledgement:
						answers.Add(1)
					}
				}
				stop()
				m.close()
			}
		})
	}
	return &answers
}

// benchmarkFailover ends the leader again and again. Each b.N is one end: run it with -benchtime 50x.
func benchmarkFailover(b *testing.B, signal syscall.Signal, servers, miners int) {
	f := startFailover(b, servers)
	answers := startWriters(b, f.cluster, miners)
	began := time.Now()
	var took []float64
	for range b.N {
		took = append(took, f.until(b, signal).Seconds()*1000)
		f.restart(b)
	}
	report(b, took)
	if miners > 0 {
		b.ReportMetric(float64(answers.Load())/time.Since(began).Seconds(), "answers/s")
	}
}

func report(b *testing.B, ms []float64) {
	slices.Sort(ms)
	b.ReportMetric(0, "ns/op") // of no meaning here
	b.ReportMetric(ms[len(ms)/2], "p50-ms")
	b.ReportMetric(ms[len(ms)*99/100], "p99-ms")
	b.ReportMetric(ms[len(ms)-1], "max-ms")
}

// BenchmarkLeaderKilled measures kill -9 of the leader until a miner holds a grant of the lowest survivor.
func BenchmarkLeaderKilled(b *testing.B) {
	for _, c := range []struct{ servers, miners int }{{3, 0}, {5, 0}, {3, 16}} {
		b.Run(fmt.Sprintf("servers=%d/load=%d", c.servers, c.miners), func(b *testing.B) {
			benchmarkFailover(b, syscall.SIGKILL, c.servers, c.miners)
		})
	}
}

// BenchmarkLeaderStopped measures SIGTERM to the leader until a miner holds a grant of its successor: more than the time
// without a leader, because the old one leads on for a part of it.
func BenchmarkLeaderStopped(b *testing.B) {
	for _, c := range []struct{ servers, miners int }{{3, 0}, {3, 16}} {
		b.Run(fmt.Sprintf("servers=%d/load=%d", c.servers, c.miners), func(b *testing.B) {
			benchmarkFailover(b, syscall.SIGTERM, c.servers, c.miners)
		})
	}
}
