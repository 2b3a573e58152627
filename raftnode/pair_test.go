package raftnode

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
)

// pausable is a connection whose accepting side reads nothing while its server is paused.
type pausable struct {
	net.Conn
	net     *testNet
	address string
}

func (p *pausable) Read(b []byte) (int, error) {
	for p.net.isPaused(p.address) {
		time.Sleep(time.Millisecond)
	}
	return p.Conn.Read(b)
}

func (n *testNet) isPaused(address string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.paused[address]
}

// setPaused makes a server deaf to Raft and to the other servers' calls, as SIGSTOP does.
func (n *testNet) setPaused(address string, paused bool) {
	n.setMute(address, paused)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paused[address] = paused
}

func (c *testCluster) voters() string {
	if leader := c.leader(); leader != nil {
		return fmt.Sprint(leader.Status().Voters)
	}
	return ""
}

// commits fails the test if the leader cannot commit at once.
func (c *testCluster) commits() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), soon)
	defer cancel()
	leader := c.leader()
	if leader == nil {
		c.t.Fatal("nobody leads")
	}
	if _, err := leader.Propose(ctx, strike(1)); err != nil {
		c.t.Fatalf("server %d: %v", leader.ID(), err)
	}
}

func TestLeaderOfTwoGoesOnWhenItsFollowerIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		c.settled()
		leader := c.servers[0].node
		term := leader.raft.CurrentTerm()
		began := time.Now()
		c.killAtOnce(1)
		c.commits()
		if took := time.Since(began); took > pairPatience(DefaultRaftLease)/2 {
			t.Errorf("alone after %v: not told by the end of the process", took)
		}
		c.wait("server 2 is down", func() bool { return c.up(1) })
		if c.voters() != "[1]" {
			t.Errorf("voters %s", c.voters())
		}
		time.Sleep(time.Second)
		if now := leader.raft.CurrentTerm(); now != term || !c.leads(1) {
			t.Errorf("term %d after term %d: leadership was lost", now, term)
		}
		c.background.Wait()
		c.servers[1].start(leader.Address())
		c.wait("server 2 is up and votes again", func() bool { return c.up(1, 2) && c.voters() == "[1 2]" })
		if len(c.servers[0].terms()) != 1 {
			t.Errorf("server 1 led in %v", c.servers[0].terms())
		}
	})
}

func TestLeaderOfTwoGoesOnWhenItsFollowerIsPaused(t *testing.T) {
	for try := range 12 {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t, 2)
			c.settled()
			leader := c.servers[0].node
			term := leader.raft.CurrentTerm()
			time.Sleep(time.Duration(try) * 7 * time.Millisecond) // at any moment between two Raft heartbeats
			c.net.setPaused(c.servers[1].node.Address(), true)
			began := time.Now()
			c.wait("server 1 goes on alone", func() bool { return c.voters() == "[1]" })
			if took := time.Since(began); took > DefaultRaftLease {
				t.Errorf("removed after %v", took)
			}
			c.commits()
			time.Sleep(time.Second)
			if now := leader.raft.CurrentTerm(); now != term || !c.leads(1) {
				t.Errorf("term %d after term %d: leadership was lost", now, term)
			}
			c.net.setPaused(c.servers[1].node.Address(), false)
			c.wait("server 2 is up and votes again", func() bool { return c.up(1, 2) && c.voters() == "[1 2]" })
			c.wait("both have the same state", c.same)
		})
	}
}

// TestLeaderOfTwoIsVerifiedWhenItsFollowerIsGone: the question went to a follower that is removed before it answers.
func TestLeaderOfTwoIsVerifiedWhenItsFollowerIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		c.settled()
		leader := c.servers[0].node
		c.net.setPaused(c.servers[1].node.Address(), true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for c.voters() != "[1]" { // what was on its way is answered
			if err := leader.VerifyLeader(ctx); err != nil {
				t.Fatalf("server 1 leads on, and is told: %v", err)
			}
		}
		began := time.Now()
		c.servers[0].kill()
		if took := time.Since(began); took > 0 {
			t.Errorf("the close took %v: it waited for a question that Raft forgot", took)
		}
	})
}

// TestLeaderOfTwoThatStoodStillBlamesNoFollower: on a busy machine the leader itself gets no CPU for a while, and finds all
// answers late. Its own ticks tell it so.
func TestLeaderOfTwoThatStoodStillBlamesNoFollower(t *testing.T) {
	for try := range 8 {
		synctest.Test(t, func(t *testing.T) {
			ticks := make(chan time.Time)
			c := newTestCluster(t, 2, func(config *Config) { config.pairTicks = ticks })
			c.settled()
			tick := func(length time.Duration) {
				for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(DefaultRaftLease / pairTicks) {
					select {
					case ticks <- time.Now(): // to either server
					case <-t.Context().Done():
					}
					select {
					case ticks <- time.Now():
					case <-t.Context().Done():
					}
				}
			}
			leader := c.servers[0].node
			term := leader.raft.CurrentTerm()
			tick(time.Second + time.Duration(try)*7*time.Millisecond)
			c.net.setPaused(c.servers[1].node.Address(), true) // nothing reaches the leader, and it does not tick
			time.Sleep(DefaultRaftLease * 9 / 10)              // the answer to a Raft heartbeat on its way still comes
			c.net.setPaused(c.servers[1].node.Address(), false)
			tick(time.Second)
			if c.voters() != "[1 2]" {
				t.Errorf("voters %s: a healthy follower was removed", c.voters())
			}
			if now := leader.raft.CurrentTerm(); now != term || !c.leads(1) {
				t.Errorf("term %d after term %d: leadership was lost", now, term)
			}
		})
	}
}

func TestOwnPausesAreCountedOnce(t *testing.T) {
	const period = 20 * time.Millisecond
	began := time.Now()
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	p := ownPauses{period: period, keep: time.Second, last: began}
	for _, ms := range []int{20, 40, 160, 180, 215, 400} { // late: from 60 to 160 and from 235 to 400
		p.tick(at(ms))
	}
	for _, row := range []struct{ since, now, want int }{
		{0, 400, 265}, {100, 400, 225}, {160, 400, 165}, {300, 410, 100}, {400, 430, 0}, {400, 500, 80}, {450, 500, 50}, {0, 500, 345},
	} {
		if got := p.since(at(row.since), at(row.now)); got != time.Duration(row.want)*time.Millisecond {
			t.Errorf("from %d to %d ms: %v, want %d ms", row.since, row.now, got, row.want)
		}
	}
	p.tick(at(1500))
	if got := p.since(began, at(1500)); got != 1080*time.Millisecond {
		t.Errorf("%v after an old pause was forgotten, want 1.08s", got)
	}
}

func TestSilentServersLeaveTheVotersOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const grace = 3 * DefaultHeartbeat
		c := newTestCluster(t, 5, func(config *Config) { config.Grace = grace })
		c.settled()
		for i, voters := range []string{"[2 3 4 5]", "[3 4 5]", "[4 5]"} {
			c.killAtOnce(i)
			c.wait("the next one leads", func() bool { return c.leads(uint64(i + 2)) })
			c.commits()
			began := time.Now()
			time.Sleep(grace - DefaultHeartbeat)
			if len(c.leader().Status().Voters) != 5-i {
				t.Errorf("voters %s before the grace is over", c.voters())
			}
			c.wait("the dead one is no voter", func() bool { return c.voters() == voters })
			if took := time.Since(began); took > grace+2*DefaultHeartbeat {
				t.Errorf("voters %s after %v", voters, took)
			}
			c.wait("the table says so", func() (removed bool) {
				c.leader().View(func(v fsm.View) {
					row, _ := v.Server(uint64(i + 1))
					removed = !row.Member && !row.Up
				})
				return removed
			})
		}
		c.killAtOnce(4)
		c.commits()
		if c.voters() != "[4]" || !c.leads(4) {
			t.Fatalf("voters %s", c.voters())
		}
		c.background.Wait()
		for _, i := range []int{4, 2, 1, 0} {
			c.servers[i].start(c.servers[3].node.Address())
		}
		c.wait("all vote, all are up under their own ids, server 1 leads", func() bool {
			return c.voters() == "[1 2 3 4 5]" && c.leads(1) && slices.Equal(c.upIDs(), []uint64{1, 2, 3, 4, 5})
		})
	})
}

// TestServerThatMovedFindsThoseThatItRemoved: they look for it where it was, and it alone knows where they are.
func TestServerThatMovedFindsThoseThatItRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2, func(config *Config) { config.Grace = 2 * DefaultHeartbeat })
		c.settled()
		removed := c.servers[1].node.Address()
		c.net.setPaused(removed, true)
		c.wait("server 2 is removed", func() bool {
			leader := c.leader()
			return leader != nil && len(leader.serverIDs()) == 1
		})
		before := c.servers[0].node.Address()
		c.servers[0].kill()
		c.servers[0].start()
		if after := c.servers[0].node.Address(); after == before {
			t.Fatalf("server 1 is at %s as before", after)
		}
		c.wait("server 1 leads alone", func() bool { return c.voters() == "[1]" })
		time.Sleep(time.Minute)
		c.net.setPaused(removed, false)
		c.wait("server 2 votes and is up again", func() bool { return c.voters() == "[1 2]" && c.up(1, 2) })
	})
}

// TestServerOfTwoThatIsStoppedDidNotFail: the other one goes on without its vote, and does not say that it failed.
func TestServerOfTwoThatIsStoppedDidNotFail(t *testing.T) {
	for _, id := range []uint64{1, 2} {
		t.Run(fmt.Sprint("server ", id), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newDiskCluster(t, 2)
				other := 3 - id
				before := len(c.disks[other-1].logs.String())
				if err := c.server(id).node.Stop(t.Context()); err != nil {
					t.Fatal(err)
				}
				c.server(id).kill()
				c.strike(1)
				if v := voters(c.server(other).node); !slices.Equal(v, []uint64{other}) {
					t.Errorf("voters %v", v)
				}
				said := c.disks[other-1].logs.String()[before:]
				if !strings.Contains(said, "only follower was stopped") || strings.Contains(said, "failed") || strings.Contains(said, "level=WARN") {
					t.Errorf("said %q", said)
				}
				c.reopen(id)
				c.whole(2)
				c.server(2).kill()
				c.strike(1)
				if said := c.disks[0].logs.String(); !strings.Contains(said, "only follower failed") {
					t.Errorf("after a kill, said %q", said)
				}
			})
		})
	}
}

func TestStoppedClusterKeepsItsVoters(t *testing.T) {
	for _, size := range []int{2, 3} {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t, size, func(config *Config) { config.Grace = 2 * DefaultHeartbeat })
			c.settled()
			leader := c.leader()
			if err := leader.StopCluster(t.Context(), "test"); err != nil {
				t.Fatal(err)
			}
			c.killAtOnce(size - 1)
			time.Sleep(6 * DefaultHeartbeat)
			if voters := leader.Status().Voters; len(voters) != size {
				t.Errorf("voters %v of %d servers", voters, size)
			}
		})
	}
}

func TestBothOfTwoServersStopAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		c.settled()
		stopped := make(chan error, 2)
		began := time.Now()
		for _, s := range c.servers {
			go func() {
				stopped <- s.node.Stop(t.Context())
				s.kill()
			}()
		}
		for range 2 {
			if err := <-stopped; err != nil {
				t.Errorf("stop: %v", err)
			}
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the stops took %v", took)
		}
		synctest.Wait()
		time.Sleep(5 * time.Second)
		c.servers[0].start()
		c.servers[1].start(c.servers[0].node.Address())
		c.wait("both are up again", func() bool { return c.leads(1) && c.up(1, 2) && c.voters() == "[1 2]" })
	})
}
