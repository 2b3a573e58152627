package raftnode

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// soon is well before any of Raft's own timers would act.
const soon = DefaultRaftHeartbeat - 50*time.Millisecond

func TestKilledLeaderIsFollowedAtOnce(t *testing.T) {
	for _, size := range []int{3, 5} {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t, size)
			c.settled()
			term := c.servers[1].node.raft.CurrentTerm()
			began := time.Now()
			c.killAtOnce(0)
			c.wait("server 2 leads", func() bool { return c.leads(2) })
			if took := time.Since(began); took > heirPause {
				t.Errorf("%d servers: server 2 led after %v", size, took)
			}
			if now := c.servers[1].node.raft.CurrentTerm(); now != term+1 {
				t.Errorf("%d servers: term %d after term %d: more than one election", size, now, term)
			}
			c.wait("server 1 is down in the table", func() bool { return len(c.upIDs()) == size-1 })
			if took := time.Since(began); took > soon {
				t.Errorf("%d servers: down in the table after %v", size, took)
			}
		})
	}
}

func TestNextInRankCallsWhenTheLowestDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		c.servers[1].node.stopping.Store(true)
		c.net.setMute(c.servers[1].node.Address(), true) // so nobody hears of it
		began := time.Now()
		c.killAtOnce(0)
		c.wait("server 3 leads", func() bool { return c.servers[2].node.raft.State() == raft.Leader })
		if took := time.Since(began); took < heirPause || took > soon {
			t.Errorf("server 3 led after %v", took)
		}
	})
}

func TestSlowElectionOfAnHeirIsNotDisturbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 5)
		c.settled()
		term := c.leader().raft.CurrentTerm()
		for _, s := range c.servers {
			s.voteTime.Store(int64(heirPause * 2 / 3)) // a vote takes three of these
		}
		c.killAtOnce(0)
		c.wait("server 2 leads", func() bool { return c.leads(2) })
		if now := c.leader().raft.CurrentTerm(); now != term+1 {
			t.Errorf("term %d after term %d: more than one election", now, term)
		}
	})
}

// TestHeirThatGotItsLastEntryAtTheLastMomentIsNotDisturbed: it says with what log it calls before it has written what the dead
// leader sent last, so it seems to lag. A second election while its votes are written would end its term.
func TestHeirThatGotItsLastEntryAtTheLastMomentIsNotDisturbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		heir, third := c.servers[1], c.servers[2]
		term, last := c.leader().raft.CurrentTerm(), heir.node.raft.LastIndex()
		heir.stall.on()
		c.servers[0].propose()
		c.wait("server 3 has one entry more", func() bool { return third.node.raft.LastIndex() > last })
		third.voteTime.Store(int64(heirPause / 3))
		c.killAtOnce(0)
		time.Sleep(heirPause / 3)
		heir.stall.off()
		c.wait("server 2 leads", func() bool { return c.leads(2) })
		if now := heir.node.raft.CurrentTerm(); now != term+1 {
			t.Errorf("term %d after term %d: more than one election", now, term)
		}
	})
}

func TestHeirThatLagsIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		heir := c.servers[1].node.Address()
		c.net.setPaused(heir, true)
		for range 10 {
			c.commits()
		}
		c.net.hangUp(heir) // else what was being read when the pause began may still arrive, with all entries
		synctest.Wait()
		if heirHas, all := c.servers[1].node.raft.LastIndex(), c.servers[2].node.raft.LastIndex(); heirHas >= all {
			t.Fatalf("server 2 has entry %d of %d, so this is no test", heirHas, all)
		}
		began := time.Now()
		c.killAtOnce(0)
		c.net.setPaused(heir, false)
		c.wait("server 3 leads", func() bool { return len(c.servers[2].terms()) > 0 })
		if took := time.Since(began); took > heirPause {
			t.Errorf("server 3 led after %v", took)
		}
		c.wait("server 2 leads, with everything", func() bool { return c.leads(2) && c.same() })
		if took := time.Since(began); took > soon {
			t.Errorf("server 2 led after %v", took)
		}
	})
}

func TestHeirsThatDieTogetherAreSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 5)
		c.settled()
		began := time.Now()
		c.killAtOnce(0, 1)
		c.wait("server 3 leads", func() bool { return c.leads(3) })
		if took := time.Since(began); took > 2*heirPause {
			t.Errorf("server 3 led after %v", took)
		}
	})
}

func TestDeadFollowerIsDownAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		term := c.leader().raft.CurrentTerm()
		began := time.Now()
		c.killAtOnce(2)
		c.wait("server 3 is down", func() bool { return c.up(1, 2) })
		if took := time.Since(began); took > soon {
			t.Errorf("down after %v", took)
		}
		time.Sleep(time.Second)
		if now := c.leader().raft.CurrentTerm(); now != term {
			t.Errorf("term %d after the death of a follower in term %d", now, term)
		}
	})
}

func TestElectionIsNotCalled(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, c *testCluster){
		"after the cluster was stopped": func(t *testing.T, c *testCluster) {
			if err := c.servers[0].node.StopCluster(t.Context(), "test"); err != nil {
				t.Fatal(err)
			}
			c.wait("all know", c.same)
		},
		"by a server that stops": func(t *testing.T, c *testCluster) {
			c.servers[1].node.stopping.Store(true)
			c.servers[2].node.stopping.Store(true)
		},
		"by a non-voter": func(t *testing.T, c *testCluster) {
			for _, id := range []raft.ServerID{"2", "3"} { // 4 and 5 still vote, and are made not to call
				if err := c.servers[0].node.raft.DemoteVoter(id, 0, 0).Error(); err != nil {
					t.Fatal(err)
				}
			}
			c.servers[3].node.stopping.Store(true)
			c.servers[4].node.stopping.Store(true)
		},
		"after an announced stop": func(t *testing.T, c *testCluster) {
			c.servers[0].node.watchers.leave()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				size := 3
				if name == "by a non-voter" {
					size = 5
				}
				c := newTestCluster(t, size)
				c.settled()
				time.Sleep(2 * governPause) // the leader has looked at that
				prepare(t, c)
				synctest.Wait()
				term := c.servers[1].node.raft.CurrentTerm()
				c.killAtOnce(0)
				for began := time.Now(); time.Since(began) < soon; time.Sleep(time.Millisecond) {
					for _, s := range c.servers[1:] {
						if now := s.node.raft.CurrentTerm(); now != term {
							t.Fatalf("server %d is in term %d, after term %d", s.node.ID(), now, term)
						}
					}
				}
			})
		})
	}
}

func TestBrokenStreamToALivingLeaderChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		leader := c.leader()
		term := leader.raft.CurrentTerm()
		for range 10 {
			leader.watchers.mu.Lock()
			for conn := range leader.watchers.conns {
				conn.Close()
			}
			leader.watchers.mu.Unlock()
			time.Sleep(50 * time.Millisecond)
			c.wait("the streams are back", c.watching)
		}
		time.Sleep(watchDoubt)
		if now := leader.raft.CurrentTerm(); now != term || !c.up(1, 2, 3) {
			t.Errorf("term %d after term %d, up %v", now, term, c.upIDs())
		}
	})
}

func TestWatchStreamOfAnotherClusterOrServerIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		n := c.servers[0].node
		for name, greeting := range map[string]hello{
			"another cluster": newHello("other", 1),
			"another server":  newHello(n.ClusterID(), 2),
		} {
			conn, err := c.net.dialWatch(t.Context(), n.Address())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(greeting[:]); err != nil {
				t.Fatal(err)
			}
			if said, err := io.ReadAll(conn); err != nil || len(said) != 0 {
				t.Errorf("%s: answered with %v, %v", name, said, err)
			}
		}
		silent, err := c.net.dialWatch(t.Context(), n.Address())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if said, _ := io.ReadAll(silent); len(said) != 0 || time.Since(began) > watchTimeout {
			t.Errorf("a silent stream was told %v after %v", said, time.Since(began))
		}
	})
}

func TestWatchStreamOverTheSharedListener(t *testing.T) {
	listener, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	watched := &Node{clusterID: "cluster", id: 1, config: Config{Listener: listener}}
	served := make(chan struct{})
	go func() {
		defer close(served)
		watched.serveWatches(t.Context(), watched.watchListener())
	}()
	watching := &Node{clusterID: "cluster", id: 2, config: Config{}.withDefaults()}
	var conn net.Conn
	waitFor(t, "the stream is served", time.Minute, func() bool {
		conn, err = watching.openWatch(t.Context(), newHello(watching.clusterID, 1), listener.Addr().String())
		return err == nil
	})
	defer conn.Close()
	watched.watchers.leave()
	var said [1]byte
	if _, err := io.ReadFull(conn, said[:]); err != nil || said[0] != watchLeaving {
		t.Errorf("told %v, %v", said, err)
	}
	listener.Close()
	conn.Close()
	<-served
}

// watching reports whether every running server has a stream to every other.
func (c *testCluster) watching() bool {
	running, streams := 0, 0
	for _, s := range c.servers {
		if s.node != nil {
			running++
			s.node.watchers.mu.Lock()
			streams += len(s.node.watchers.conns)
			s.node.watchers.mu.Unlock()
		}
	}
	return streams == running*(running-1)
}

// settled waits until all servers are up and watch each other.
func (c *testCluster) settled() {
	c.t.Helper()
	c.wait("all are up and watch each other", func() bool { return c.watching() && len(c.upIDs()) == len(c.servers) })
}

// upIDs are the servers that are up in the leader's table.
func (c *testCluster) upIDs() []uint64 {
	leader := c.leader()
	if leader == nil {
		return nil
	}
	return leader.upIDs()
}

// killAtOnce makes servers unreachable in one instant of virtual time, and closes them in the background: a close waits.
func (c *testCluster) killAtOnce(indexes ...int) {
	c.t.Helper()
	for _, i := range indexes {
		s := c.servers[i]
		node := s.node
		s.net.cut(node.Address())
		node.stream.Close()
		s.cancel() // ends the streams of those who watch
		s.node = nil
		ran := s.ran
		c.background.Go(func() {
			<-ran
			if err := node.Close(); err != nil {
				c.t.Error(err)
			}
		})
	}
}
