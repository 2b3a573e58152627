package miner

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// childVariable makes this test binary a process that lowers its priority and prints that of all its threads.
const childVariable = "RAFTMINE_TEST_LOWER_PRIORITY"

func lowerPriorityInChild() {
	if os.Getenv(childVariable) == "" {
		return
	}
	if err := LowerPriority(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	// Threads that are made afterwards, with all of them alive at once.
	release := make(chan struct{})
	for range 4 {
		ready := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(ready)
			<-release
		}()
		<-ready
	}
	stats, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, path := range stats {
		if stat, err := os.ReadFile(path); err == nil {
			_, fields, _ := strings.Cut(string(stat), ") ") // after the name; nice is field 19 of proc_pid_stat(5)
			fmt.Println(strings.Fields(fields)[19-3])
		}
	}
	close(release)
	os.Exit(0)
}

func TestLowerPriorityReachesEveryThread(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(executable)
	command.Env = append(os.Environ(), childVariable+"=1")
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	threads := strings.Fields(string(out))
	if len(threads) < 5 {
		t.Errorf("saw %d threads, want 5 or more", len(threads))
	}
	for _, nice := range threads {
		if n, err := strconv.Atoi(nice); err != nil || n != 19 {
			t.Errorf("a thread has nice %s, want 19", nice)
		}
	}
}
