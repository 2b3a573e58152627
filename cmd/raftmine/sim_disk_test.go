package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/raftnode"
)

// simDisk is one process's view of a server's disk: Raft's log, votes and snapshots in memory, and the journal's files in
// a real folder. Writes take time. A crash takes a copy for the next process, which has what was synced, and of what was
// under way some; the dying process goes on with its own, which nobody will read again.
type simDisk struct {
	net  *simNet
	host string
	dir  string // the data directory

	mu        sync.Mutex
	dice      *rand.Rand
	logs      map[uint64]*raft.Log
	low, high uint64
	values    map[string][]byte
	snapshot  *simSnapshot // the last one; nil: none
	underway  map[int]func(*simDisk)
	next      int
	files     map[string]*simFile // of the journal, by the name it was opened with

	failing bool          // writes return errors
	stalled chan struct{} // not nil: writes wait until it is closed
	dead    chan struct{} // closed by crash
}

// simSync is how long a write takes.
const simSync = time.Millisecond

var errSimDisk = errors.New("simulated disk error: no space left on device")

func newSimDisk(n *simNet, host, dir string, dice *rand.Rand) *simDisk {
	return &simDisk{net: n, host: host, dir: dir, dice: dice, logs: make(map[uint64]*raft.Log), values: make(map[string][]byte),
		underway: make(map[int]func(*simDisk)), files: make(map[string]*simFile), dead: make(chan struct{})}
}

// write does a write that is on the disk when it returns without an error. It may be there before, and without.
func (d *simDisk) write(apply func(*simDisk)) error {
	d.mu.Lock()
	if d.failing {
		d.mu.Unlock()
		return errSimDisk
	}
	id := d.next
	d.next++
	d.underway[id] = apply
	stalled := d.stalled
	d.mu.Unlock()
	if stalled != nil {
		select {
		case <-stalled:
		case <-d.dead:
		}
	}
	select {
	case <-d.dead:
	case <-time.After(simSync):
		_ = d.net.await(context.Background(), func() bool { return d.net.frozen[d.host] == 0 || d.isDead() })
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.underway, id)
	if d.failing { // it began to fail meanwhile
		return errSimDisk
	}
	apply(d)
	return nil
}

func (d *simDisk) isDead() bool {
	select {
	case <-d.dead:
		return true
	default:
		return false
	}
}

// change lets f change the faults.
func (d *simDisk) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *simDisk) setStalled(stalled bool) {
	d.change(func() {
		if stalled && d.stalled == nil {
			d.stalled = make(chan struct{})
		} else if !stalled && d.stalled != nil {
			close(d.stalled)
			d.stalled = nil
		}
	})
}

// crash returns what the next process finds, in another folder.
func (d *simDisk) crash(dir string) (*simDisk, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := newSimDisk(d.net, d.host, dir, d.dice)
	after.logs, after.values = maps.Clone(d.logs), maps.Clone(d.values)
	after.low, after.high, after.snapshot = d.low, d.high, d.snapshot
	for _, id := range slices.Sorted(maps.Keys(d.underway)) {
		if d.dice.IntN(2) == 0 {
			break // writes of one file reach the disk in their order
		}
		d.underway[id](after)
	}
	err := d.copyFiles(dir)
	d.net.change(func() { close(d.dead) })
	return after, err
}

// copyFiles copies the data directory as a crash leaves it. What says how far a file was synced is copied before it, because
// the dying process goes on meanwhile.
func (d *simDisk) copyFiles(to string) error {
	var segments []string
	err := filepath.WalkDir(d.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a temporary file
			}
			return err
		}
		name, err := filepath.Rel(d.dir, path)
		if err != nil {
			return err
		}
		switch {
		case entry.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		case strings.HasPrefix(entry.Name(), "."):
			return nil
		case d.files[path] != nil:
			segments = append(segments, name)
			return nil
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return errors.Join(err, os.WriteFile(filepath.Join(to, name), data, 0o600))
	})
	if err != nil {
		return err
	}
	for _, name := range segments {
		data, err := os.ReadFile(filepath.Join(d.dir, name))
		if err != nil {
			return err
		}
		synced, written := d.files[filepath.Join(d.dir, name)].sizes()
		if written > synced && int64(len(data)) > synced {
			data = data[:synced+d.dice.Int64N(min(written, int64(len(data)))-synced+1)]
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// simFile is a file of the journal that knows how much of it a crash must keep.
type simFile struct {
	*os.File
	disk *simDisk

	mu              sync.Mutex
	synced, written int64
}

func (d *simDisk) openFile(path string, flag int, mode fs.FileMode) (raftnode.JournalFile, error) {
	file, err := os.OpenFile(path, flag, mode)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	f := &simFile{File: file, disk: d, synced: info.Size(), written: info.Size()}
	// It is made with a temporary name, a dot before its own.
	name := filepath.Join(filepath.Dir(path), strings.TrimPrefix(filepath.Base(path), "."))
	d.change(func() { d.files[name] = f })
	return f, nil
}

func (f *simFile) sizes() (synced, written int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced, f.written
}

// Write fails as a full disk does: after a part.
func (f *simFile) Write(b []byte) (int, error) {
	var failing bool
	f.disk.change(func() { failing = f.disk.failing })
	if failing {
		b = b[:len(b)/2]
	}
	n, err := f.File.Write(b)
	f.mu.Lock()
	f.written += int64(n)
	f.mu.Unlock()
	if err == nil && failing {
		err = errSimDisk
	}
	return n, err
}

// Sync takes no time: the journal holds a mutex meanwhile, and the clock of a bubble stands still while a goroutine waits for a
// mutex.
func (f *simFile) Sync() error {
	var failing bool
	f.disk.change(func() { failing = f.disk.failing })
	if failing {
		return errSimDisk
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.synced = f.written
	return nil
}

// stores gives a node its disk.
func (d *simDisk) stores(string, bool, *slog.Logger) (*raftnode.Stores, error) {
	cached, err := raft.NewLogCache(64, simLog{d})
	if err != nil {
		return nil, err
	}
	return &raftnode.Stores{Log: cached, Stable: simStable{d}, Snapshots: simSnapshots{d}, Close: func() error { return nil }}, nil
}

type simLog struct{ *simDisk }

func (l simLog) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.low, nil
}

func (l simLog) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.high, nil
}

func (l simLog) GetLog(index uint64, log *raft.Log) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	found, ok := l.logs[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	*log = *found
	return nil
}

func (l simLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

func (l simLog) StoreLogs(logs []*raft.Log) error {
	return l.write(func(d *simDisk) {
		for _, log := range logs {
			kept := *log
			d.logs[log.Index] = &kept
			if d.low == 0 || log.Index < d.low {
				d.low = log.Index
			}
			d.high = max(d.high, log.Index)
		}
	})
}

func (l simLog) DeleteRange(from, to uint64) error {
	return l.write(func(d *simDisk) {
		for i := from; i <= to; i++ {
			delete(d.logs, i)
		}
		if from <= d.low {
			d.low = to + 1
		}
		if to >= d.high {
			d.high = from - 1
		}
		if d.low > d.high {
			d.low, d.high = 0, 0
		}
	})
}

type simStable struct{ *simDisk }

var errSimNotFound = errors.New("not found") // the text that the library looks for

func (s simStable) Set(key, value []byte) error {
	value = bytes.Clone(value)
	return s.write(func(d *simDisk) { d.values[string(key)] = value })
}

func (s simStable) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.values[string(key)]
	if !ok {
		return nil, errSimNotFound
	}
	return value, nil
}

func (s simStable) SetUint64(key []byte, value uint64) error {
	return s.Set(key, fmt.Append(nil, value))
}

func (s simStable) GetUint64(key []byte) (value uint64, err error) {
	text, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(string(text), &value)
	return value, err
}

type simSnapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

type simSnapshots struct{ *simDisk }

func (s simSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &simSink{disk: s.simDisk, snapshot: simSnapshot{meta: raft.SnapshotMeta{Version: version, ID: fmt.Sprintf("%d-%d", term, index),
		Index: index, Term: term, Configuration: configuration, ConfigurationIndex: configurationIndex}}}, nil
}

func (s simSnapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshot == nil {
		return nil, nil
	}
	meta := s.snapshot.meta
	return []*raft.SnapshotMeta{&meta}, nil
}

func (s simSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshot == nil || s.snapshot.meta.ID != id {
		return nil, nil, fmt.Errorf("snapshot %s is gone", id)
	}
	meta := s.snapshot.meta
	return &meta, io.NopCloser(bytes.NewReader(s.snapshot.data)), nil
}

// simSink is a snapshot that is being written: it is there when it is closed.
type simSink struct {
	disk     *simDisk
	snapshot simSnapshot
	canceled bool
}

func (s *simSink) Write(b []byte) (int, error) {
	s.snapshot.data = append(s.snapshot.data, b...)
	return len(b), nil
}

func (s *simSink) ID() string { return s.snapshot.meta.ID }

func (s *simSink) Cancel() error {
	s.canceled = true
	return nil
}

func (s *simSink) Close() error {
	if s.canceled {
		return nil
	}
	s.snapshot.meta.Size = int64(len(s.snapshot.data))
	return s.disk.write(func(d *simDisk) {
		if d.snapshot == nil || d.snapshot.meta.Index <= s.snapshot.meta.Index {
			d.snapshot = &s.snapshot
		}
	})
}
