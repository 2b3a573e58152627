package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// urgentSlice is the time slice that a server's threads ask for, in nanoseconds: the shortest that Linux grants. A short
	// slice comes early and gets no more CPU than others do. Linux before 6.12 does not know it.
	urgentSlice = 100_000
	urgentNice  = -10
)

// raisePriority asks that the threads of this process run soon after they become ready. A Raft heartbeat needs little CPU, but
// a leader or a follower whose threads wait for more than a lease behind busy ones loses its term. It takes what it gets: a
// short time slice for everybody, and a higher priority for who may have one.
//
// Both belong to a thread, and a new thread has those of the one that made it; so has a child process, and miner.LowerPriority
// gives them back. So every thread is raised, until a look at all of them finds none that is not.
//
// Linux may group processes by session (sched_autogroup). Then CPU is shared among sessions first, and what the niceness of
// a thread is worth ends at its session: a server that shares one with builds or miners waits as long as they do. So "run"
// starts every process in a session of its own (startDetached), and the niceness of that is set as well.
func raisePriority() {
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(urgentNice)), 0)
	}
	for raised := true; raised; {
		raised = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return
		}
		for _, thread := range threads {
			if id, err := strconv.Atoi(thread.Name()); err == nil && raiseThread(id) {
				raised = true
			}
		}
	}
}

// raiseThread reports whether it changed anything.
func raiseThread(id int) (raised bool) {
	before, err := unix.SchedGetAttr(id, 0)
	if err != nil || before.Policy != unix.SCHED_NORMAL { // somebody else chose how it runs
		return false
	}
	for _, change := range []func(*unix.SchedAttr){
		func(a *unix.SchedAttr) { a.Runtime = urgentSlice },
		func(a *unix.SchedAttr) { a.Nice = min(a.Nice, urgentNice) },
	} {
		wanted := *before
		if change(&wanted); wanted == *before || unix.SchedSetAttr(id, &wanted, 0) != nil {
			continue
		}
		if after, err := unix.SchedGetAttr(id, 0); err == nil && *after != *before {
			before, raised = after, true
		}
	}
	return raised
}
