package raftnode

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// poison commits an entry that no replica understands.
func poison(t *testing.T, leader *Node) (index uint64) {
	t.Helper()
	future := leader.raft.Apply([]byte{99, 1, 2, 3}, time.Second)
	if err := future.Error(); err != nil {
		t.Fatal(err)
	}
	if err, ok := future.Response().(error); !ok || !errors.Is(err, ErrReplicaStopped) {
		t.Fatalf("response %v", future.Response())
	}
	return future.Index()
}

func TestUndecodableEntryStopsTheReplicaAndAgainAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		s := c.servers[0]
		if _, err := s.node.Propose(t.Context(), strike(1)); err != nil {
			t.Fatal(err)
		}
		var before fsm.Head
		s.node.View(func(v fsm.View) { before = v.Head() })
		index := poison(t, s.node)
		for round := range 2 {
			err := <-s.ran
			s.ran <- err
			if !errors.Is(err, ErrReplicaStopped) || !strings.Contains(err.Error(), fmt.Sprintf("index %d", index)) ||
				!strings.Contains(err.Error(), "99") {
				t.Fatalf("round %d: run returned %v; want index %d and version 99", round, err, index)
			}
			if _, err := s.node.Propose(t.Context(), strike(1)); !errors.Is(err, ErrReplicaStopped) {
				t.Errorf("propose: %v", err)
			}
			if _, err := s.node.HandleHeartbeat(HeartbeatRequest{}); !errors.Is(err, ErrReplicaStopped) {
				t.Errorf("heartbeat: %v", err)
			}
			if _, err := s.node.HandleJoin(t.Context(), JoinRequest{}); !errors.Is(err, ErrReplicaStopped) {
				t.Errorf("join: %v", err)
			}
			// Raft goes on; what follows is not applied, and no snapshot may pass over the entry.
			good, err := fsm.EncodeEntry(fsm.Entry{LeaderID: 1, Commands: []fsm.Command{strike(2)}})
			if err != nil {
				t.Fatal(err)
			}
			if future := s.node.raft.Apply(good, time.Second); future.Error() == nil {
				if err, ok := future.Response().(error); !ok || !errors.Is(err, ErrReplicaStopped) {
					t.Errorf("the next entry was applied: %v", future.Response())
				}
			}
			if err := s.node.raft.Snapshot().Error(); err == nil {
				t.Error("a snapshot was taken")
			}
			s.node.View(func(v fsm.View) {
				if v.Head() != before {
					t.Errorf("the state moved from %+v to %+v", before, v.Head())
				}
			})
			s.kill()
			if round == 0 {
				s.start()
			}
		}
	})
}

func TestServerThatLagsBehindTheLogIsSentASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(config *Config) { config.TrailingLogs = 5 })
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		c.servers[2].kill()
		leader := c.servers[0].node
		for i := range 100 {
			if _, err := leader.Propose(t.Context(), strike(i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := leader.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		if first, _ := c.servers[0].log.FirstIndex(); first < 50 {
			t.Fatalf("the log still starts at %d", first)
		}
		c.servers[2].start(leader.Address())
		c.wait("all have the same state", func() bool { return c.same() && c.up(1, 2, 3) })
		c.close()
		// And from the snapshot after a restart.
		for i, s := range c.servers {
			if i == 0 {
				s.start()
			} else {
				s.start(c.servers[0].node.Address())
			}
		}
		c.wait("the state is back", func() bool {
			var miners int
			c.servers[2].node.View(func(v fsm.View) { miners = len(v.Miners()) })
			return c.same() && miners == 100
		})
	})
}

func TestSnapshotThatIsNoStateStopsTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		s := c.servers[0]
		if err := s.node.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		s.kill()
		damaged := raft.NewInmemSnapshotStore()
		_, trans := raft.NewInmemTransport("")
		sink, err := damaged.Create(1, 3, 1, raft.Configuration{}, 1, trans)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sink.Write([]byte("not a snapshot")); err != nil {
			t.Fatal(err)
		}
		s.snaps = damaged
		if err := s.open(); !errors.Is(err, ErrReplicaStopped) || !errors.Is(err, fsm.ErrBadSnapshot) {
			t.Errorf("open: %v", err)
		}
	})
}

func TestLogOfAnotherClusterStopsTheReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		s := c.servers[0]
		s.kill()
		changeIdentity(t, s.dir, func(identity *identityFile) { identity.ClusterID = "other" })
		if err := s.open(); !errors.Is(err, ErrForeignCluster) || !strings.Contains(err.Error(), journalFolder) {
			t.Errorf("open on the journal of another cluster: %v", err)
		}
		if err := os.RemoveAll(filepath.Join(s.dir, journalFolder)); err != nil {
			t.Fatal(err)
		}
		s.start()
		err := <-s.ran
		s.ran <- err
		if !errors.Is(err, ErrForeignCluster) || !errors.Is(err, ErrReplicaStopped) {
			t.Errorf("run: %v", err)
		}
	})
}
