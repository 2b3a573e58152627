package raftnode

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// ErrDiskFailed: Raft's log or votes could not be written or read. The server ends, and the others go on without it.
var ErrDiskFailed = errors.New("disk failed")

// diskGuard ends this server when Raft's log or votes cannot be written. The library panics when it cannot save a term or
// read an entry, and goes on after an entry that it cannot write: a leader would step down and be elected again for ever.
type diskGuard struct {
	path    string
	fail    func(error) error
	started atomic.Bool // Raft's goroutines run; before that, errors go to those who start it
	early   error       // of a write before that
}

// wrap puts the guard around the stores.
func (g *diskGuard) wrap(s *Stores) {
	s.Log = &guardedLog{LogStore: s.Log, guard: g}
	s.Stable = &guardedStable{StableStore: s.Stable, guard: g}
}

func (g *diskGuard) wrote(err error) error {
	switch {
	case err == nil:
	case g.started.Load():
		_ = g.fail(g.reason("written", err)) // Run returns it
	default:
		g.early = g.reason("written", err)
	}
	return err
}

func (g *diskGuard) reason(what string, err error) error {
	return fmt.Errorf("%w: %s could not be %s: %w; look after the disk, then start the server again", ErrDiskFailed, g.path, what, err)
}

// SetHeartbeatHandler is what the library calls last before it starts its goroutines.
func (t *raftTransport) SetHeartbeatHandler(handle func(raft.RPC)) {
	t.starting()
	t.NetworkTransport.SetHeartbeatHandler(func(rpc raft.RPC) {
		if t.intake == nil || !t.intake.ofNewTerm(rpc) {
			handle(rpc)
		}
	})
}

type guardedLog struct {
	raft.LogStore
	guard *diskGuard
}

func (l *guardedLog) StoreLog(log *raft.Log) error { return l.guard.wrote(l.LogStore.StoreLog(log)) }

func (l *guardedLog) StoreLogs(logs []*raft.Log) error {
	return l.guard.wrote(l.LogStore.StoreLogs(logs))
}

func (l *guardedLog) DeleteRange(from, to uint64) error {
	return l.guard.wrote(l.LogStore.DeleteRange(from, to))
}

// GetLog does not return to Raft with a read error, over which the library panics. An entry that is not there is none.
func (l *guardedLog) GetLog(index uint64, log *raft.Log) error {
	err := l.read(index, log)
	if err == nil || errors.Is(err, raft.ErrLogNotFound) || !l.guard.started.Load() {
		return err
	}
	_ = l.guard.fail(l.guard.reason(fmt.Sprintf("read at entry %d", index), err)) // Run returns it
	runtime.Goexit()
	return err
}

// read makes an error of what bbolt panics over.
func (l *guardedLog) read(index uint64, log *raft.Log) (err error) {
	if l.guard.started.Load() {
		defer recoverDamage(l.guard.path, &err)
	}
	return l.LogStore.GetLog(index, log)
}

// IsMonotonic implements raft.MonotonicLogStore for the store beneath.
func (l *guardedLog) IsMonotonic() bool {
	store, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && store.IsMonotonic()
}

// guardedStable ends Raft's goroutine rather than return an error to it: the library would panic. What it was about to
// answer, a vote or an append, is answered with no.
type guardedStable struct {
	raft.StableStore
	guard *diskGuard
}

func (s *guardedStable) Set(key, value []byte) error {
	return s.wrote(s.StableStore.Set(key, value))
}

func (s *guardedStable) SetUint64(key []byte, value uint64) error {
	return s.wrote(s.StableStore.SetUint64(key, value))
}

func (s *guardedStable) wrote(err error) error {
	if s.guard.wrote(err) != nil && s.guard.started.Load() {
		runtime.Goexit()
	}
	return err
}

// guardDisk is called with the stores, before Raft gets them.
func (n *Node) guardDisk() {
	n.diskGuard = diskGuard{path: filepath.Join(n.config.DataDir.Path(), logFile), fail: n.replica.fail}
	n.diskGuard.wrap(n.stores)
}
