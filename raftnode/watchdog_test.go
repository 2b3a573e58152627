package raftnode

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// stall holds the writes of a log while it is on.
type stall struct {
	mu   sync.Mutex
	gate chan struct{} // nil: off
}

func (s *stall) on() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gate = make(chan struct{})
}

func (s *stall) off() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate != nil {
		close(s.gate)
		s.gate = nil
	}
}

type stallingLog struct {
	raft.LogStore
	stall *stall
}

func (l *stallingLog) StoreLogs(logs []*raft.Log) error {
	l.stall.mu.Lock()
	gate := l.stall.gate
	l.stall.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return l.LogStore.StoreLogs(logs)
}

type slowStable struct {
	raft.StableStore
	time *atomic.Int64
}

func (s *slowStable) Set(key, value []byte) error {
	time.Sleep(time.Duration(s.time.Load()))
	return s.StableStore.Set(key, value)
}

func (s *slowStable) SetUint64(key []byte, value uint64) error {
	time.Sleep(time.Duration(s.time.Load()))
	return s.StableStore.SetUint64(key, value)
}

// propose writes to a leader's log without waiting for what comes of it.
func (s *testServer) propose() {
	go s.node.Propose(context.Background(), strike(1))
}

func TestLeaderWhoseDiskStallsIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		s := c.servers[0]
		s.stall.on()
		began := time.Now()
		s.propose()
		c.wait("another one leads", func() bool { return c.leads(2) || c.leads(3) })
		if took := time.Since(began); took < DefaultStallLimit || took > DefaultStallLimit+2*time.Second {
			t.Errorf("replaced after %v", took)
		}
		c.commits()
		if _, err := s.node.Propose(t.Context(), strike(1)); !errors.Is(err, ErrNotLeader) {
			t.Errorf("the stalled one proposes: %v", err)
		}
		if _, err := s.node.HandleHeartbeat(HeartbeatRequest{ClusterID: s.node.ClusterID(), ServerID: 2}); !errors.Is(err, ErrDiskStalled) {
			t.Errorf("it answers heartbeats: %v", err)
		}
		s.stall.off()
		c.wait("server 1 leads again with everybody's state", func() bool { return c.leads(1) && c.up(1, 2, 3) && c.same() })
		c.commits()
	})
}

func TestShortStallChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		s := c.servers[0]
		term := s.node.raft.CurrentTerm()
		for range 3 {
			s.stall.on()
			s.propose()
			time.Sleep(DefaultStallLimit * 9 / 10)
			s.stall.off()
			time.Sleep(time.Second)
		}
		c.commits()
		if now := s.node.raft.CurrentTerm(); now != term || !c.leads(1) || len(s.terms()) != 1 {
			t.Errorf("term %d after term %d", now, term)
		}
	})
}

func TestOnlyServerGoesOnAfterAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		s := c.servers[0]
		s.stall.on()
		s.propose()
		c.wait("it leads no more", func() bool { return c.leader() == nil })
		s.stall.off()
		c.wait("it leads again", func() bool { return c.leads(1) })
		c.commits()
	})
}

func TestFollowerWhoseDiskStallsIsInNobodysWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		term := c.leader().raft.CurrentTerm()
		c.servers[2].stall.on()
		for range 50 {
			c.commits()
			time.Sleep(100 * time.Millisecond)
		}
		c.servers[2].stall.off()
		c.wait("server 3 has caught up", func() bool { return c.up(1, 2, 3) && c.same() })
		if now := c.leader().raft.CurrentTerm(); now != term || !c.leads(1) {
			t.Errorf("term %d after term %d", now, term)
		}
	})
}

// TestPauseOfTheProcessIsNoStall: a write is under way when the process is paused, and its own ticks are what it counts.
func TestPauseOfTheProcessIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const period = time.Second
		n := &Node{config: Config{DataDir: new(DataDir), StallExit: 10 * period}, disk: watchdog{limit: 2 * period, alarm: func(bool) {}}}
		ticks, ended := make(chan time.Time), make(chan error, 1)
		go func() { ended <- n.watchWrites(t.Context(), ticks, period) }()
		tick := func(times int) {
			for range times {
				time.Sleep(period)
				select {
				case ticks <- time.Now():
				case err := <-ended:
					t.Fatal(err)
				}
				synctest.Wait()
			}
		}
		for range 3 {
			end := n.disk.begin()
			tick(5)
			time.Sleep(time.Hour) // paused
			tick(4)
			end()
		}
		end := n.disk.begin()
		defer end()
		began := time.Now()
		tick(11)
		if err := <-ended; !errors.Is(err, ErrDiskStalled) {
			t.Error(err)
		}
		if took := time.Since(began); took < n.config.StallExit {
			t.Errorf("it ended after %v", took)
		}
	})
}

func TestStallThatLastsEndsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		s := c.servers[0]
		s.stall.on()
		began := time.Now()
		s.propose()
		err := <-s.ran
		if took := time.Since(began); took < DefaultStallExit || took > DefaultStallExit+2*time.Second {
			t.Errorf("it ended after %v", took)
		}
		if !errors.Is(err, ErrDiskStalled) || !strings.Contains(err.Error(), s.node.DataDir()) {
			t.Errorf("it ended with %v", err)
		}
		began = time.Now()
		if err := s.node.Close(); !errors.Is(err, ErrDiskStalled) {
			t.Errorf("closed: %v", err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("close took %v", took)
		}
		if other, err := OpenDataDir(s.dir); !errors.Is(err, ErrDataDirInUse) {
			t.Errorf("its directory can be opened while a write may land: %v, %v", other, err)
		}
		s.stall.off()
		synctest.Wait()
		if err := s.node.config.DataDir.Close(); err != nil { // as the end of the process does
			t.Error(err)
		}
		s.cancel()
		s.node = nil
		c.wait("server 2 leads", func() bool { return c.leads(2) })
	})
}
