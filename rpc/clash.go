package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"raftmine/miner"
	"raftmine/raftnode/coordinator"
)

// Tuning.
const (
	// nameHeld is how long a name may be taken by a stream that nobody has any more: a miner that is started again after
	// its host or its network died finds its own old stream, until that one's lease of 15 s ends.
	nameHeld = 20 * time.Second
	// nameRetry is the pause before a miner whose name is taken asks again.
	nameRetry = time.Second
)

// nameClash remembers since when a miner's name is taken.
type nameClash struct {
	held, retry time.Duration

	mu    sync.Mutex
	since time.Time // zero: it is not, as far as is known
}

// judge makes an ErrRefused of the error of a stream whose name has been taken for too long to be the miner's own doing.
func (n *nameClash) judge(err error) error {
	if !errors.Is(err, coordinator.ErrNameTaken) {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if n.since.IsZero() {
		n.since = now
	}
	if now.Sub(n.since) < n.held {
		return err
	}
	return fmt.Errorf("%w: %w", miner.ErrRefused, err)
}

// accepted notes that the leader took the miner.
func (n *nameClash) accepted() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.since = time.Time{}
}

// wait is the pause between two tries while the name is taken. The miner's own pauses start anew with each leader that
// speaks, and a leader speaks before it has heard a name.
func (n *nameClash) wait(ctx context.Context) error {
	n.mu.Lock()
	clash := !n.since.IsZero()
	n.mu.Unlock()
	if !clash {
		return nil
	}
	timer := time.NewTimer(n.retry)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the name: %w", ctx.Err())
	}
}
