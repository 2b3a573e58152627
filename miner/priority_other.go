//go:build !unix

package miner

import (
	"errors"
	"fmt"
)

// LowerPriority is not implemented on this system, and says so.
func LowerPriority() error { return fmt.Errorf("lower the priority: %w", errors.ErrUnsupported) }
