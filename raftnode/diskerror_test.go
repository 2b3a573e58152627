package raftnode

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

var errNoSpace = errors.New("no space left on device")

// failingStores are stores whose writes, or reads, can be made to fail.
type failingStores struct {
	raft.LogStore
	raft.StableStore
	log, votes, reads atomic.Bool
}

func (s *failingStores) StoreLogs(logs []*raft.Log) error {
	if s.log.Load() {
		return errNoSpace
	}
	return s.LogStore.StoreLogs(logs)
}

func (s *failingStores) SetUint64(key []byte, value uint64) error {
	if s.votes.Load() {
		return errNoSpace
	}
	return s.StableStore.SetUint64(key, value)
}

func (s *failingStores) GetLog(index uint64, log *raft.Log) error {
	if s.reads.Load() {
		panic("page 7: invalid page type") // as bbolt does
	}
	return s.LogStore.GetLog(index, log)
}

// failingCluster is three servers; the stores are those of the given one.
func failingCluster(t *testing.T, server int) (*testCluster, *failingStores) {
	stores := new(failingStores)
	count := 0
	c := newTestCluster(t, 3, func(config *Config) {
		if count++; count == server {
			config.OpenStores = func(string, bool, *slog.Logger) (*Stores, error) {
				if stores.LogStore == nil {
					memory := raft.NewInmemStore()
					stores.LogStore, stores.StableStore = memory, memory
				}
				return &Stores{Log: stores, Stable: stores, Snapshots: raft.NewInmemSnapshotStore(), Close: func() error { return nil }}, nil
			}
		}
	})
	return c, stores
}

// wantDiskFailed waits until the server's Run has ended with a line that says what to do, and kills it.
func wantDiskFailed(t *testing.T, s *testServer, said string) {
	t.Helper()
	err := <-s.ran
	s.ran <- nil
	if !errors.Is(err, ErrDiskFailed) {
		t.Fatalf("it ended with %v", err)
	}
	for _, want := range []string{filepath.Join(s.dir, logFile), said, "start the server again"} {
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q does not say %q in one line", err, want)
		}
	}
	s.kill()
}

func TestFullDiskEndsAServerAndTheOthersGoOn(t *testing.T) {
	for _, victim := range []int{1, 3} { // the leader, a follower
		synctest.Test(t, func(t *testing.T) {
			c, stores := failingCluster(t, victim)
			stores.log.Store(true)
			go c.leader().Propose(t.Context(), fsm.ServerDown{ServerID: 9}) // something to write
			wantDiskFailed(t, c.servers[victim-1], errNoSpace.Error())
			c.wait("another server leads and writes", func() bool {
				leader := c.leader()
				if leader == nil {
					return false
				}
				_, err := leader.Propose(t.Context(), fsm.ServerDown{ServerID: 9})
				return err == nil
			})
		})
	}
}

// The library panics when it cannot save a term: in an election of its own, and when it is asked for a vote.
func TestVotesThatCannotBeWrittenEndAServerWithoutAPanic(t *testing.T) {
	for _, name := range []string{"candidate", "voter"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, stores := failingCluster(t, 2)
				stores.votes.Store(true)
				caller := c.servers[1].node
				if name == "voter" {
					caller = c.servers[2].node
				}
				go caller.callElection(t.Context(), caller.ID())
				wantDiskFailed(t, c.servers[1], errNoSpace.Error())
				c.wait("one of the others leads", func() bool { return c.leader() != nil })
			})
		})
	}
}

func TestLogThatCannotBeReadEndsAServerWithoutAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stores := failingCluster(t, 2)
		stores.reads.Store(true)
		go c.leader().Propose(t.Context(), fsm.ServerDown{ServerID: 9})
		wantDiskFailed(t, c.servers[1], "invalid page type")
	})
}

func TestFullDiskAtTheStartIsNoDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stores := failingCluster(t, 3)
		c.servers[2].kill()
		stores.votes.Store(true)
		err := c.servers[2].open()
		if !errors.Is(err, ErrDiskFailed) || errors.Is(err, ErrLogDamaged) {
			t.Errorf("it starts with %v", err)
		}
	})
}
