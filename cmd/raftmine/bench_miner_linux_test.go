package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// processTime is how long a process has had a processor, all its threads together; false when that cannot be known.
func processTime(pid int) (time.Duration, bool) {
	var spent unix.Timespec
	const scheduler = 2 // CPUCLOCK_SCHED: what the scheduler counts, in nanoseconds
	if err := unix.ClockGettime(int32(^pid<<3|scheduler), &spent); err != nil {
		return 0, false
	}
	return time.Duration(spent.Nano()), true
}
