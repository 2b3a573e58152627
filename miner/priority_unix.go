//go:build unix && !linux

package miner

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// LowerPriority gives this process the lowest CPU priority, so that mining takes what nobody else wants.
func LowerPriority() error {
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 19); err != nil {
		return fmt.Errorf("lower the priority: %w", err)
	}
	return nil
}
