package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"raftmine/miner"
)

// asUrgent makes this test binary a process that raises its priority, and lowers it when its argument says so, and prints
// slice and niceness of all its threads.
const asUrgent = "TEST_BINARY_IS_URGENT"

func init() { roles[asUrgent] = runUrgent }

func runUrgent(args []string) error {
	raisePriority()
	if args[0] == "lower" {
		if err := miner.LowerPriority(); err != nil {
			return err
		}
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
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, thread := range threads {
		id, _ := strconv.Atoi(thread.Name())
		if attr, err := unix.SchedGetAttr(id, 0); err == nil {
			fmt.Println(attr.Runtime, attr.Nice)
		}
	}
	if group, err := os.ReadFile("/proc/self/autogroup"); err == nil {
		_, nice, _ := strings.Cut(strings.TrimSpace(string(group)), " nice ")
		fmt.Println("session", nice)
	}
	close(release)
	return nil
}

func TestEveryThreadOfAServerRunsSoon(t *testing.T) {
	runtime.LockOSThread() // its priority is changed, and the thread ends with the test
	own, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	own.Runtime = 0 // other tests serve in this process, and raised it
	if err := unix.SchedSetAttr(0, own, 0); err != nil {
		t.Fatal(err)
	}
	if own, err = unix.SchedGetAttr(0, 0); err != nil {
		t.Fatal(err)
	}
	slice, nice := own.Runtime, int(own.Nice) // of a process that asks for nothing
	wantSlice, wantNice := uint64(0), nice
	if slice != 0 { // Linux 6.12
		wantSlice = urgentSlice
	}
	if allowed := *own; allowed.Nice > urgentNice {
		allowed.Nice = urgentNice
		if unix.SchedSetAttr(0, &allowed, 0) == nil {
			wantNice = urgentNice
		}
	}
	for how, want := range map[string]string{
		"raise": fmt.Sprint(wantSlice, " ", wantNice),
		"lower": fmt.Sprint(slice, " ", 19),
	} {
		executable, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		command := exec.Command(executable, how)
		command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		command.Env = append(os.Environ(), asUrgent+"=1")
		out, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		threads := strings.Split(strings.TrimSpace(string(out)), "\n")
		if len(threads) < 5 {
			t.Errorf("%s: saw %d threads, want 5 or more", how, len(threads))
		}
		last := threads[len(threads)-1]
		if nice, ok := strings.CutPrefix(last, "session "); ok { // CPU is shared among sessions here
			threads = threads[:len(threads)-1]
			if wanted := map[string]int{"raise": min(0, wantNice), "lower": 19}[how]; nice != strconv.Itoa(wanted) {
				t.Errorf("%s: the session has niceness %s, want %d", how, nice, wanted)
			}
		}
		for _, thread := range threads {
			if thread != want {
				t.Errorf("%s: a thread has slice and niceness %q, want %q", how, thread, want)
			}
		}
	}
}
