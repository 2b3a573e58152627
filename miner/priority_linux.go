package miner

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// lowest is the lowest scheduling priority there is.
const lowest = 19

// LowerPriority gives this process the lowest CPU priority, so that mining takes what nobody else wants.
//
// On Linux priority belongs to a thread, and a new thread has that of the one that made it. So every thread is lowered,
// again and again until a look at all of them finds none that is not. Where Linux shares CPU among sessions first
// (sched_autogroup), a miner that has a session of its own lowers that too; in one that it shares with others it must not.
func LowerPriority() error {
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(lowest)), 0)
	}
	for {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("lower the priority: %w", err)
		}
		lowered := 0
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil {
				return fmt.Errorf("lower the priority: thread %q: %w", thread.Name(), err)
			}
			switch changed, err := lowerThread(id); {
			case err == unix.ESRCH: // the thread has ended
			case err != nil:
				return fmt.Errorf("lower the priority of thread %d: %w", id, err)
			case changed:
				lowered++
			}
		}
		if lowered == 0 {
			return nil
		}
	}
}

// lowerThread reports whether the thread was not low before. The short time slice that a server asks for, and its companion
// miner inherits, is given back with its priority.
func lowerThread(id int) (changed bool, err error) {
	before, err := unix.SchedGetAttr(id, 0)
	if err != nil || before.Policy != unix.SCHED_NORMAL && before.Policy != unix.SCHED_BATCH && before.Policy != unix.SCHED_IDLE {
		// The system call returns 20 minus the priority, so that no priority looks like an error.
		if now, err := unix.Getpriority(unix.PRIO_PROCESS, id); err != nil || 20-now == lowest {
			return false, err
		}
		return true, unix.Setpriority(unix.PRIO_PROCESS, id, lowest)
	}
	low := *before
	low.Nice, low.Runtime = lowest, 0 // 0: as everybody's
	if err := unix.SchedSetAttr(id, &low, 0); err != nil {
		return false, err
	}
	after, err := unix.SchedGetAttr(id, 0)
	return err == nil && *after != *before, err
}
