package rpc

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"raftmine/miner"
)

// benchMinersAt makes the test binary a process of miners: the server's address and how many.
const benchMinersAt = "RAFTMINE_TEST_MINERS_AT"

// benchMiners connects miners, says so in a line, and waits until its input ends.
func benchMiners(where string) {
	address, count, _ := strings.Cut(where, " ")
	n, err := strconv.Atoi(count)
	if err != nil {
		fmt.Println(err)
		return
	}
	for i := range n {
		d, err := NewMinerDialer(MinerDialerConfig{Addresses: func() []string { return []string{address} }})
		if err != nil {
			fmt.Println(err)
			return
		}
		conn, err := d.Dial(context.Background())
		if err == nil {
			err = conn.Send(miner.HeartbeatReply{Name: fmt.Sprintf("m%d", i), Wanted: pointer(2), Kernel: "generic"})
		}
		if err != nil {
			fmt.Println(err)
			return
		}
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the benchmark closes it
}

// BenchmarkConnectionMemory reports what one connected miner, with its health watch, costs a server: heap and stacks. The
// miners are in another process. What a coordinator keeps of a miner is not in it.
func BenchmarkConnectionMemory(b *testing.B) {
	const miners = 500
	for b.Loop() {
		node := newFakeNode(1)
		server, address := start(b, node)
		leader := &fakeLeader{address: address}
		server.Lead(leader)
		before := memoryInUse()

		process := exec.Command(os.Args[0], "-test.run=^$")
		process.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", benchMinersAt, address, miners))
		stdin, err := process.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		stdout, err := process.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := process.Start(); err != nil {
			b.Fatal(err)
		}
		line, err := bufio.NewReader(stdout).ReadString('\n')
		if err != nil || line != "ready\n" {
			b.Fatalf("miners: %q, %v", line, err)
		}
		eventually(b, "all miners reported", func() bool { return leader.received() == miners })
		after := memoryInUse()
		b.ReportMetric(float64(after-before)/miners/1024, "KiB/miner")
		b.ReportMetric(float64(runtime.NumGoroutine())/miners, "goroutines/miner")
		if err := stdin.Close(); err != nil {
			b.Fatal(err)
		}
		if err := process.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

// memoryInUse is what the process holds: live heap and stacks.
func memoryInUse() uint64 {
	for range 4 { // each also halves stacks that are mostly empty
		runtime.GC()
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapInuse + stats.StackInuse
}

// BenchmarkAnswers reports answers that are taken and acknowledged, on one stream one after the other. The coordinator
// behind it does nothing.
func BenchmarkAnswers(b *testing.B) {
	server, address := start(b, newFakeNode(1))
	server.Lead(&fakeLeader{address: address})
	d, err := NewMinerDialer(MinerDialerConfig{Addresses: func() []string { return []string{address} }})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	conn, err := d.Dial(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Receive(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := conn.Send(miner.AnswerYes{GrantID: 1, JobID: 1, Timestamp: 1, Nonce: 1}); err != nil {
			b.Fatal(err)
		}
		if _, err := conn.Receive(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "answers/s")
}
