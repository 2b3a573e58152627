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
// again and again until a look at all of them finds none that is not.
func LowerPriority() error {
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
			// The system call returns 20 minus the priority, so that no priority looks like an error.
			if now, err := unix.Getpriority(unix.PRIO_PROCESS, id); err == unix.ESRCH || err == nil && 20-now == lowest {
				continue
			}
			if err := unix.Setpriority(unix.PRIO_PROCESS, id, lowest); err == unix.ESRCH {
				continue // the thread has ended
			} else if err != nil {
				return fmt.Errorf("lower the priority of thread %d: %w", id, err)
			}
			lowered++
		}
		if lowered == 0 {
			return nil
		}
	}
}
