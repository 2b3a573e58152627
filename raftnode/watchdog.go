package raftnode

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A Raft leader whose disk stalls goes on sending Raft heartbeats, which need no disk, so nobody replaces it
// (hashicorp/raft issues 503, 612, 614). The watchdog times every write of log and votes. While one takes too long, this
// server refuses all Raft traffic and ends its term; in the end Run returns ErrDiskStalled.

// ErrDiskStalled: a write of the Raft log did not return. The disk must be looked after before the server starts again.
var ErrDiskStalled = errors.New("disk does not answer")

// watchdog knows which writes are under way.
type watchdog struct {
	limit time.Duration // after which a write counts as stalled

	mu      sync.Mutex
	writes  map[uint64]time.Time // when each began
	next    uint64
	stalled bool
	alarm   func(stalled bool)
	timer   *time.Timer // nil: no write is under way
}

// begin is called before a write, and what it returns after it.
func (w *watchdog) begin() (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writes == nil {
		w.writes = make(map[uint64]time.Time)
	}
	w.next++
	id := w.next
	w.writes[id] = time.Now()
	if w.timer == nil {
		w.timer = time.AfterFunc(w.limit, w.look)
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.writes, id)
		if len(w.writes) > 0 {
			return
		}
		if w.timer != nil {
			w.timer.Stop()
			w.timer = nil
		}
		if w.stalled {
			w.stalled = false
			w.alarm(false)
		}
	}
}

// look runs when the oldest write may have been under way for the limit.
func (w *watchdog) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.writes) == 0 || w.stalled {
		return
	}
	if left := w.limit - w.oldest(); left > 0 {
		w.timer = time.AfterFunc(left, w.look)
		return
	}
	w.stalled = true
	w.alarm(true)
}

// oldest returns how long the oldest write is under way. The caller holds mu.
func (w *watchdog) oldest() (age time.Duration) {
	for _, began := range w.writes {
		age = max(age, time.Since(began))
	}
	return age
}

// oldestWrite returns the number of the write that began first, 0: none is under way.
func (w *watchdog) oldestWrite() (oldest uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.writes {
		if oldest == 0 || id < oldest {
			oldest = id
		}
	}
	return oldest
}

// isStalled reports whether a write takes too long now.
func (w *watchdog) isStalled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stalled
}

// guard puts the watchdog around the stores' writes.
func (w *watchdog) guard(s *Stores) {
	s.Log = &timedLog{LogStore: s.Log, dog: w}
	s.Stable = &timedStable{StableStore: s.Stable, dog: w}
}

type timedLog struct {
	raft.LogStore
	dog *watchdog
}

func (l *timedLog) StoreLog(log *raft.Log) error {
	defer l.dog.begin()()
	return l.LogStore.StoreLog(log)
}

func (l *timedLog) StoreLogs(logs []*raft.Log) error {
	defer l.dog.begin()()
	return l.LogStore.StoreLogs(logs)
}

func (l *timedLog) DeleteRange(from, to uint64) error {
	defer l.dog.begin()()
	return l.LogStore.DeleteRange(from, to)
}

// IsMonotonic implements raft.MonotonicLogStore for the store beneath.
func (l *timedLog) IsMonotonic() bool {
	store, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && store.IsMonotonic()
}

type timedStable struct {
	raft.StableStore
	dog *watchdog
}

func (s *timedStable) Set(key, value []byte) error {
	defer s.dog.begin()()
	return s.StableStore.Set(key, value)
}

func (s *timedStable) SetUint64(key []byte, value uint64) error {
	defer s.dog.begin()()
	return s.StableStore.SetUint64(key, value)
}

// diskAlarm is told by the watchdog, which holds its lock.
func (n *Node) diskAlarm(stalled bool) {
	if stalled {
		n.log.Warn("disk stalls, refusing raft traffic", "data_dir", n.config.DataDir.Path(), "limit", n.disk.limit)
	} else {
		n.log.Warn("disk answers again")
	}
	n.stream.halt(stalled)
	poke(n.diskChanged)
}

// watchDisk returns an error when a stall lasts, and nil when ctx ends.
func (n *Node) watchDisk(ctx context.Context) error {
	period := max(time.Millisecond, n.config.StallLimit/2)
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	return n.watchWrites(ctx, ticker.C, period)
}

// watchWrites counts the ticks at which one write is under way, and not its time: while this process is paused there is
// time, and no tick.
func (n *Node) watchWrites(ctx context.Context, ticks <-chan time.Time, period time.Duration) error {
	limit := (n.config.StallExit + period - 1) / period
	var write uint64 // seen at the tick before
	var count time.Duration
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks:
		}
		count++
		if now := n.disk.oldestWrite(); now != write || now == 0 {
			write, count = now, 0
		}
		if count >= limit {
			return fmt.Errorf("%w: a write below %s has taken more than %v; check the disk, then start the server again",
				ErrDiskStalled, n.config.DataDir.Path(), n.config.StallExit)
		}
	}
}

// unlessStalled calls a function that waits for the disk, and gives up on it when the disk stalls.
func (n *Node) unlessStalled(call func() error) error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	ticker := time.NewTicker(landing)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
			if n.disk.isStalled() {
				return fmt.Errorf("closed without %s: %w", n.config.DataDir.Path(), ErrDiskStalled)
			}
		}
	}
}
