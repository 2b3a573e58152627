package raftnode

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// copyOf returns a server on a copy of the data directory and the log of one that runs, as it would be on another host.
func copyOf(t *testing.T, s *testServer) *testServer {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	twin := newTestServer(t, s.net, dir)
	twin.snaps = s.snaps
	first, err := s.log.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := s.log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for index := first; index <= last; index++ {
		var entry raft.Log
		if err := errors.Join(s.log.GetLog(index, &entry), twin.log.StoreLog(&entry)); err != nil {
			t.Fatal(err)
		}
	}
	term, err := s.log.GetUint64(keyCurrentTerm)
	if err := errors.Join(err, twin.log.SetUint64(keyCurrentTerm, term)); err != nil {
		t.Fatal(err)
	}
	return twin
}

func wantTwin(t *testing.T, err error, parts ...string) {
	t.Helper()
	if !errors.Is(err, ErrTwin) {
		t.Fatalf("it ended with %v, want %v", err, ErrTwin)
	}
	for _, part := range append(parts, "another process", "start a new server on an empty directory instead") {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("it says %q, without %q", err, part)
		}
	}
}

// TestCopyOfARunningServerDoesNotStart: whoever can be asked refuses it before its Raft starts, and the one that runs goes on.
func TestCopyOfARunningServerDoesNotStart(t *testing.T) {
	for id := range 3 {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t, 3)
			twin := copyOf(t, c.servers[id])
			wantTwin(t, twin.open(), c.servers[id].node.Address())
			time.Sleep(time.Minute)
			if !c.leads(1) || !c.up(1, 2, 3) {
				t.Errorf("beside a copy of server %d the others are not as they were", id+1)
			}
		})
	}
}

// deafPeers answers nothing to a server until it is told to.
type deafPeers struct {
	*testNet
	deaf bool
}

func (p *deafPeers) Heartbeat(ctx context.Context, address string, request HeartbeatRequest) (ServerReport, error) {
	if p.deaf {
		<-ctx.Done()
		return ServerReport{}, ctx.Err()
	}
	return p.testNet.Heartbeat(ctx, address, request)
}

// TestCopyThatStartedUnseenIsNotHeardAndEnds: its first heartbeats are lost, so it starts. It wins no vote and takes no office, and
// its first heartbeat that arrives ends it.
func TestCopyThatStartedUnseenIsNotHeardAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		term := c.leader().raft.CurrentTerm()
		twin := copyOf(t, c.servers[2])
		peers := &deafPeers{testNet: c.net, deaf: true}
		twin.peers = peers
		twin.start()
		defer twin.kill()
		if err := twin.node.callElection(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if now := c.leader().raft.CurrentTerm(); now != term {
			t.Errorf("the copy's election was heard: term %d after term %d", now, term)
		}
		peers.deaf = false
		err := <-twin.ran
		twin.ran <- nil
		wantTwin(t, err, c.servers[2].node.Address())
		if _, err := twin.node.Propose(t.Context(), strike(1)); !errors.Is(err, ErrTwin) {
			t.Errorf("after its end it answers with %v", err)
		}
		time.Sleep(time.Minute)
		if !c.leads(1) || !c.up(1, 2, 3) {
			t.Error("the others are not as they were")
		}
	})
}

// TestServerThatIsStartedAgainIsNoTwin: at another address each time, as quickly as can be, the leader and a follower.
func TestServerThatIsStartedAgainIsNoTwin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		for i := range 20 {
			s := c.servers[2*(i%2)]
			s.kill()
			s.start()
		}
		c.wait("all are up", func() bool { return c.leads(1) && c.up(1, 2, 3) })
	})
}

// TestPausedServerIsReplacedOnlyWhenItIsSilentForLong, and when it goes on, it is the one that ends.
func TestPausedServerIsReplacedOnlyWhenItIsSilentForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		first := c.servers[1]
		asked := c.servers[0].node
		c.wait("server 2 is known", func() bool {
			_, err := asked.HandleHeartbeat(first.node.heartbeatRequest())
			return err == nil
		})
		second := first.node.heartbeatRequest()
		second.Instance, second.Address = newInstance(), "127.0.0.1:9"
		c.net.setMute(first.node.Address(), true)
		if _, err := asked.HandleHeartbeat(second); !errors.Is(err, errUndecided) {
			t.Errorf("a second one was answered with %v", err)
		}
		first.node.cancel() // it says nothing either
		time.Sleep(missedHeartbeats * DefaultHeartbeat)
		if _, err := asked.HandleHeartbeat(second); err != nil {
			t.Errorf("after three heartbeats it was answered with %v", err)
		}
		third := second
		third.Instance, third.Address = first.node.instance, first.node.Address()
		_, err := asked.HandleHeartbeat(third)
		wantTwin(t, err, second.Address)
	})
}

// TestCopyOnThisHostDoesNotStart: neither beside the server that it is a copy of, nor in another environment, nor while that
// one does not run. Moved, it starts.
func TestCopyOnThisHostDoesNotStart(t *testing.T) {
	l, elsewhere := newLocal(t), newLocal(t)
	path := filepath.Join(t.TempDir(), "first")
	at := func(path string) func(*StartConfig) { return func(c *StartConfig) { c.DataDirPath = path } }
	_, stop, err := l.start(at(path))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	twin := path + "-copy"
	if err := os.CopyFS(twin, os.DirFS(path)); err != nil {
		t.Fatal(err)
	}
	_, _, err = l.start(at(twin))
	wantTwin(t, err, "pid", twin)
	_, _, err = elsewhere.start(at(twin))
	wantTwin(t, err, "pid", twin, path)
	stop()
	if _, _, err = elsewhere.start(at(twin)); !errors.Is(err, ErrTwin) || !strings.Contains(err.Error(), path) {
		t.Errorf("beside the directory that it was copied from it starts with %v", err)
	}
	// Two machines may have equal paths.
	_, stopOther, err := elsewhere.start(at(twin), func(c *StartConfig) { c.Host = fsm.Host{MachineID: "other", BootID: "b"} })
	if err != nil {
		t.Fatal(err)
	}
	stopOther()
	moved := path + "-moved"
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	_, stopMoved, err := elsewhere.start(at(moved))
	if err != nil {
		t.Fatalf("a directory that was moved: %v", err)
	}
	stopMoved()
}
