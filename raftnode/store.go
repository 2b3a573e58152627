package raftnode

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// Where Raft's part of a data directory lies. Protocol with the disk.
const (
	logFile        = "raft.db"
	snapshotFolder = "snapshots"
)

const (
	logCacheEntries   = 512
	retainedSnapshots = 2
)

// ErrLogDamaged: the Raft log cannot be read.
var ErrLogDamaged = errors.New("raft log is damaged")

// ErrLogMissing: a server that has an id finds no Raft log. It must not go on: it forgot what it voted for.
var ErrLogMissing = errors.New("raft log is missing")

// Stores are Raft's log, votes and snapshots.
type Stores struct {
	Log       raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	Close     func() error
}

// OpenBoltStores opens the stores under dir. Fresh says that no Raft instance ever ran on it: what lies there is left
// from a start that was cut short, and goes. The log is on the disk when an append returns.
func OpenBoltStores(dir string, fresh bool, logger *slog.Logger) (_ *Stores, err error) {
	path := filepath.Join(dir, logFile)
	if fresh {
		if err := errors.Join(os.RemoveAll(path), os.RemoveAll(filepath.Join(dir, snapshotFolder))); err != nil {
			return nil, fmt.Errorf("clear unfinished start in %s: %w", dir, err)
		}
	} else if info, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; %s", path, ErrLogMissing, joinAnew)
	} else if err == nil && info.Size() == 0 { // bbolt would make a new one of it
		return nil, fmt.Errorf("%s: %w: the file is empty; %s", path, ErrLogMissing, joinAnew)
	} else if err := checkLogFile(path); err != nil {
		return nil, err
	}
	defer recoverDamage(path, &err) // bbolt panics on some damaged files that checkLogFile finds nothing wrong with
	log, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
			Timeout:        time.Second,
		},
	})
	if err != nil {
		return nil, unopened(path, err)
	}
	cached, err := raft.NewLogCache(logCacheEntries, log)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if err := readableFolder(filepath.Join(dir, snapshotFolder)); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, retainedSnapshots, newRaftLogger(logger))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots in %s: %w", dir, err), log.Close())
	}
	return &Stores{Log: cached, Stable: log, Snapshots: snapshots, Close: log.Close}, nil
}

// readableFolder says of snapshots what the library says without a cause.
func readableFolder(path string) error {
	_, err := os.ReadDir(path)
	switch {
	case err == nil, errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("open snapshots: %w", err)
	}
	return fmt.Errorf("%w: %w; %s", ErrSnapshotDamaged, err, joinAnew)
}

// recoverDamage turns a panic over what is on the disk into an error.
func recoverDamage(path string, err *error) {
	if r := recover(); r != nil {
		cause := fmt.Errorf("%v", r)
		if _, ok := r.(runtime.Error); ok { // of the code that read it: its text tells a user nothing
			cause = errors.New("what it holds makes no sense")
		}
		*err = damaged(path, cause)
	}
}

func damaged(path string, cause error) error {
	return fmt.Errorf("%s: %w: %w; %s", path, ErrLogDamaged, cause, joinAnew)
}
