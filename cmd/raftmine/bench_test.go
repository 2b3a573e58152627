package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"raftmine/miner"
	"raftmine/rpc"
)

// These benchmarks run whole clusters of real processes. Each iteration is one experiment of fixed length: run them
// with -benchtime 1x, and quote the metrics, not the time an operation took.

// startBenchCluster starts three servers as "raftmine run" does, with our own web service.
func startBenchCluster(b *testing.B, zeros int, flags ...string) *cluster {
	b.Helper()
	return startBenchServers(b, 3, zeros, flags...)
}

// startBenchServers does so with any number of servers.
func startBenchServers(b testing.TB, servers, zeros int, flags ...string) *cluster {
	b.Helper()
	return startLoggingServers(b, "warn", servers, zeros, flags...)
}

// startLoggingServers does so with any log level.
func startLoggingServers(b testing.TB, level string, servers, zeros int, flags ...string) *cluster {
	b.Helper()
	dir, err := os.MkdirTemp("", "raftmine-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Setenv(asRaftmine, "1") // for the children
	c, err := newCluster(dir, &printer{w: new(strings.Builder)}, level)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.close(); err != nil {
			b.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	if err := c.startWebService(b.Context(), zeros, 0); err != nil {
		b.Fatal(err)
	}
	if err := c.startServers(b.Context(), servers, flags); err != nil {
		b.Fatal(err)
	}
	if _, err := c.settledBlocks(b.Context()); err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkSolutionToNextJob measures the time from the acknowledgement of a committed solution until the next job's work
// is at the miner: verdict, next block, job and grant, each committed, with a web service that syncs its disk.
func BenchmarkSolutionToNextJob(b *testing.B) {
	const blocks = 300
	for range b.N {
		c := startBenchCluster(b, 1)
		m := dialSimulated(b, c, "solver")
		var took []float64
		var acknowledged time.Time
		var lastJob uint64
		for len(took) < blocks {
			switch e := m.receive(b).(type) {
			case miner.Process:
				if e.JobID == lastJob {
					continue
				}
				if lastJob != 0 {
					took = append(took, time.Since(acknowledged).Seconds()*1000)
				}
				lastJob = e.JobID
				m.send(b, solve(e))
			case miner.Acknowledgement:
				if e.Solution {
					acknowledged = time.Now()
				}
			}
		}
		slices.Sort(took)
		b.ReportMetric(took[len(took)/2], "p50-ms")
		b.ReportMetric(took[len(took)*99/100], "p99-ms")
	}
}

// solve finds the lowest solution of a grant, on easy work.
func solve(p miner.Process) miner.AnswerYes {
	for nonce := p.Nonces.First; ; nonce++ {
		if _, ok := p.Work.Verify(nonce); ok {
			return miner.AnswerYes{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonce: nonce}
		}
	}
}

// BenchmarkThousandMiners counts grants and answers that 1,000 simulated miners, in two other processes, make in ten
// seconds on three servers.
func BenchmarkThousandMiners(b *testing.B) {
	const length = 10 * time.Second
	for range b.N {
		c := startBenchCluster(b, 16, fewHashes()...)
		farms := startFarms(b, c, 2, 500, true)
		farms.waitConnected(b)
		before := farms.counts()
		began := time.Now()
		time.Sleep(length) // what is measured
		after := farms.counts()
		seconds := time.Since(began).Seconds()
		grants, answers := float64(after.Grants-before.Grants)/seconds, float64(after.Answers-before.Answers)/seconds
		b.ReportMetric(grants, "grants/s")
		b.ReportMetric(answers, "answers/s")
		b.ReportMetric(grants+answers, "both/s")
	}
}

// BenchmarkMinerMemory measures what a connected miner costs the leader: 5,000 of them, in four other processes, each
// holding ranges and watching the health of three servers.
func BenchmarkMinerMemory(b *testing.B) {
	const farms, each = 4, 1250
	for range b.N {
		// With so many processes at work on a small machine a leader may be late. This is not about time.
		c := startBenchCluster(b, 16, append(fewHashes(), "--raft-timeout", "2s")...)
		leader := c.children["server-1"].pid()
		before := residentBytes(b, leader)
		f := startFarms(b, c, farms, each, false)
		f.waitConnected(b)
		var samples []float64
		for range 15 { // a sample each second, over three heartbeats
			time.Sleep(time.Second)
			samples = append(samples, float64(residentBytes(b, leader)-before)/(farms*each)/1024)
		}
		b.ReportMetric(median(samples), "KiB/miner")
		b.ReportMetric(slices.Max(samples), "max-KiB/miner")
	}
}

// residentBytes is the resident memory of a process. Linux.
func residentBytes(b *testing.B, pid int) int64 {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Skip("resident memory of another process is read from /proc, which this system lacks")
	}
	for line := range strings.Lines(string(data)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	b.Fatalf("no VmRSS in /proc/%d/status", pid)
	return 0
}

func median(values []float64) float64 {
	return slices.Sorted(slices.Values(values))[len(values)/2]
}

// simulated is a miner that hashes next to nothing.
type simulated struct {
	name   string
	dialer *rpc.MinerDialer
	conn   miner.Conn
}

// dialSimulated connects one simulated miner of this process.
func dialSimulated(b *testing.B, c *cluster, name string) *simulated {
	b.Helper()
	m, err := newSimulated(b.Context(), c.env, name)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.close() })
	return m
}

func (m *simulated) receive(b *testing.B) miner.Message {
	b.Helper()
	message, err := m.next()
	if err != nil {
		b.Fatal(err)
	}
	return message
}

func (m *simulated) send(b *testing.B, message miner.Message) {
	b.Helper()
	if err := m.conn.Send(message); err != nil {
		b.Fatal(err)
	}
}
