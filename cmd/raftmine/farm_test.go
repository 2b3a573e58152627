package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raftmine/miner"
	"raftmine/raftnode/registry"
	"raftmine/rpc"
)

// asFarm makes this test binary a process of simulated miners: real gRPC streams, next to no hashing. Its arguments are
// the environment, the first number, how many, and whether they answer.
const asFarm = "TEST_BINARY_IS_FARM"

func newSimulated(ctx context.Context, env *registry.Environment, name string) (*simulated, error) {
	dialer, err := rpc.NewMinerDialer(rpc.MinerDialerConfig{Addresses: func() []string {
		addresses, _ := serversIn(env) // none: the dialer asks again
		return addresses
	}})
	if err != nil {
		return nil, err
	}
	conn, err := dialer.Dial(ctx)
	if err != nil {
		dialer.Close()
		return nil, err
	}
	return &simulated{name: name, dialer: dialer, conn: conn}, nil
}

// next returns the next message; heartbeats it answers itself, the first one with a wish for two ranges.
func (m *simulated) next() (miner.Message, error) {
	for {
		message, err := m.conn.Receive()
		if err != nil {
			return nil, err
		}
		if _, ok := message.(miner.HeartbeatRequest); !ok {
			return message, nil
		}
		wanted := 2
		reply := miner.HeartbeatReply{Name: m.name, Threads: 1, Kernel: "none", SoftwareVersion: version, Wanted: &wanted, HashRate: 1}
		copy(reply.Instance[:], fmt.Sprintf("%016s", m.name))
		if err := m.conn.Send(reply); err != nil {
			return nil, err
		}
	}
}

// fewHashes are the flags of servers that grant a few nonces at a time, so that simulated miners can search them all.
func fewHashes() []string {
	return []string{"--nonce-last", "1000000000000", "--chunk", "16", "--grant-time", "1ms"}
}

// searched is the answer for a range of a job that nobody solves.
func searched(p miner.Process) miner.AnswerNo {
	best, _ := searchPlainly(p.Work, p.Nonces)
	return miner.AnswerNo{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonces: p.Nonces, Receipt: best}
}

func (m *simulated) close() {
	m.conn.Close()
	m.dialer.Close()
}

// farmCounts is what one farm has seen so far.
type farmCounts struct{ Connected, Grants, Answers, Failed int64 }

// runFarm is the main function of a farm process: it prints its counts as JSON lines until standard input ends.
func runFarm(args []string) error {
	env, err := registry.Open(args[0])
	if err != nil {
		return err
	}
	first, _ := strconv.Atoi(args[1])
	count, _ := strconv.Atoi(args[2])
	answering := args[3] == "true"
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	var counts struct{ connected, grants, answers, failed atomic.Int64 }
	fail := func(format string, args ...any) {
		if counts.failed.Add(1) == 1 {
			fmt.Fprintf(os.Stderr, "farm: first failure: "+format+"\n", args...)
		}
	}
	// mine is one miner on one stream, until that ends.
	mine := func(m *simulated) {
		defer m.close()
		defer context.AfterFunc(ctx, func() { m.conn.Close() })()
		connected := false
		for {
			message, err := m.next()
			if err != nil {
				break
			}
			switch e := message.(type) {
			case miner.Process:
				if !connected {
					connected = true
					counts.connected.Add(1)
				}
				counts.grants.Add(1)
				if answering {
					err = m.conn.Send(searched(e))
				}
			case miner.Acknowledgement:
				if e.Result == "committed" {
					counts.answers.Add(1)
				} else {
					fail("answer %s: %s", e.Result, e.Message)
				}
			}
			if err != nil {
				break
			}
		}
		if connected {
			counts.connected.Add(-1)
		}
	}
	slots := make(chan struct{}, 16) // connections under way
	var miners sync.WaitGroup
	for n := first; n < first+count; n++ {
		miners.Go(func() {
			for ctx.Err() == nil { // on a busy machine a stream may break, and a miner comes back
				slots <- struct{}{}
				m, err := newSimulated(ctx, env, fmt.Sprintf("sim-%d-%s", n, rand.Text()[:4]))
				<-slots
				if err == nil {
					mine(m)
				}
			}
		})
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			miners.Wait()
			return nil
		case <-ticker.C:
			err := json.NewEncoder(os.Stdout).Encode(farmCounts{counts.connected.Load(), counts.grants.Load(), counts.answers.Load(), counts.failed.Load()})
			if err != nil {
				return err
			}
		}
	}
}

// farms are processes of simulated miners.
type farms struct {
	miners int64
	mu     sync.Mutex
	latest []farmCounts
}

func startFarms(b *testing.B, c *cluster, processes, each int, answering bool) *farms {
	b.Helper()
	f := &farms{miners: int64(processes * each), latest: make([]farmCounts, processes)}
	for i := range processes {
		startHelper(b, asFarm, func(line []byte) {
			var counts farmCounts
			if json.Unmarshal(line, &counts) == nil {
				f.mu.Lock()
				f.latest[i] = counts
				f.mu.Unlock()
			}
		}, c.env.Dir(), strconv.Itoa(i*each), strconv.Itoa(each), strconv.FormatBool(answering))
	}
	return f
}

// startHelper runs this test binary as something that loads a cluster, until the test ends: then its standard input does. It
// returns the process's pid. read is given each line that it prints.
func startHelper(b testing.TB, as string, read func(line []byte), args ...string) (pid int) {
	b.Helper()
	executable, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(executable, args...)
	cmd.Env = append(childEnvironment(), as+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // as the processes of a run
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			read(lines.Bytes())
		}
	})
	b.Cleanup(func() {
		stdin.Close()
		_ = cmd.Process.Signal(syscall.SIGCONT) // if it was paused
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		reading.Wait()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

func (f *farms) counts() farmCounts {
	f.mu.Lock()
	defer f.mu.Unlock()
	var sum farmCounts
	for _, c := range f.latest {
		sum.Connected += c.Connected
		sum.Grants += c.Grants
		sum.Answers += c.Answers
		sum.Failed += c.Failed
	}
	return sum
}

// waitConnected waits until every simulated miner holds work. An answer that was refused ends the benchmark.
func (f *farms) waitConnected(b *testing.B) {
	b.Helper()
	eventuallyWithin(b, 3*time.Minute, "all simulated miners hold work", func() string {
		counts := f.counts()
		if counts.Failed > 0 {
			b.Fatalf("%d of %d simulated miners hold work, %d failed", counts.Connected, f.miners, counts.Failed)
		}
		if counts.Connected < f.miners {
			return fmt.Sprintf("%d of %d do", counts.Connected, f.miners)
		}
		return ""
	})
}
