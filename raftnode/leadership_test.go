package raftnode

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

func TestLeaderIsTheLowestIDThatIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		c.servers[0].kill()
		c.wait("server 2 leads", func() bool { return c.leads(2) })
		c.wait("server 1 is down in the table", func() bool { return c.up(2, 3) })
		terms := len(c.servers[1].terms())

		c.servers[0].start()
		back := time.Now()
		c.wait("server 1 leads again", func() bool { return c.leads(1) })
		if took := time.Since(back); took < DefaultHeartbeat*9/10 {
			t.Errorf("leadership returned after %v: not stable for two heartbeats", took)
		}
		c.wait("all are up again", func() bool { return c.up(1, 2, 3) })
		before := []int{len(c.servers[0].terms()), len(c.servers[1].terms()), len(c.servers[2].terms())}
		time.Sleep(2 * time.Minute)
		after := []int{len(c.servers[0].terms()), len(c.servers[1].terms()), len(c.servers[2].terms())}
		if !slices.Equal(before, after) || !c.leads(1) {
			t.Errorf("leadership flapped: terms %v, then %v", before, after)
		}
		if len(c.servers[1].terms()) > terms+1 {
			t.Errorf("server 2 led %v", c.servers[1].terms())
		}
	})
}

func TestEachTermStartsWithItsOffice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		c.servers[0].kill()
		c.wait("another leads", func() bool { return c.leader() != nil })
		c.servers[0].start()
		c.wait("server 1 leads again", func() bool { return c.leads(1) })
		log := c.servers[2].log
		last, _ := log.LastIndex()
		terms := make(map[uint64]bool)
		for index := uint64(1); index <= last; index++ {
			var entry raft.Log
			if err := log.GetLog(index, &entry); err != nil || entry.Type != raft.LogCommand {
				continue
			}
			decoded, err := fsm.DecodeEntry(entry.Data)
			if err != nil {
				t.Fatal(err)
			}
			if terms[entry.Term] {
				continue
			}
			terms[entry.Term] = true
			if !slices.ContainsFunc(decoded.Commands, func(c fsm.Command) bool {
				_, ok := c.(fsm.TakeOffice)
				return ok
			}) {
				t.Errorf("term %d starts with %T at index %d", entry.Term, decoded.Commands[0], index)
			}
			if len(terms) == 1 && decoded.Commands[0] != (fsm.OpenCluster{ClusterID: c.servers[0].node.ClusterID()}) {
				t.Errorf("the history starts with %#v", decoded.Commands[0])
			}
		}
		if len(terms) < 3 {
			t.Errorf("only %d terms seen", len(terms))
		}
	})
}

func TestNewLeaderMarksDeadServersDownAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 5)
		c.wait("all are up", func() bool { return c.up(1, 2, 3, 4, 5) })
		c.servers[0].kill()
		c.servers[1].kill()
		c.wait("another leads", func() bool { return c.leader() != nil })
		began := time.Now()
		c.wait("the dead are down", func() bool { return c.up(3, 4, 5) })
		if took := time.Since(began); took > time.Second {
			t.Errorf("down only after %v", took)
		}
		c.wait("server 3 leads", func() bool { return c.leads(3) })
	})
}

func TestServerThatAnswersNothingIsDownAfterThreeHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		mute := c.servers[2].node.Address()
		c.net.setMute(mute, true)
		began := time.Now()
		c.wait("server 3 is down", func() bool { return c.up(1, 2) })
		if took := time.Since(began); took < 2*DefaultHeartbeat || took > 5*DefaultHeartbeat {
			t.Errorf("down after %v", took)
		}
		c.net.setMute(mute, false)
		began = time.Now()
		c.wait("server 3 is up", func() bool { return c.up(1, 2, 3) })
		if took := time.Since(began); took < DefaultHeartbeat*9/10 || took > 3*DefaultHeartbeat {
			t.Errorf("up after %v", took)
		}
	})
}

func TestProposalsWaitForATransferAndNoneIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		var done, refused atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		finished := make(chan struct{})
		go func() { // one proposal after the other, on whoever leads
			defer close(finished)
			for ctx.Err() == nil {
				time.Sleep(time.Millisecond) // virtual time must pass
				leader := c.leader()
				if leader == nil {
					continue
				}
				_, err := leader.Propose(context.Background(), strike(1))
				switch {
				case err == nil:
					done.Add(1)
				case errors.Is(err, ErrNotLeader):
					refused.Add(1)
				default:
					t.Errorf("propose: %v", err)
				}
			}
		}()
		time.Sleep(100 * time.Millisecond)
		if err := c.leader().transfer(t.Context(), 3); err != nil {
			t.Errorf("transfer: %v", err)
		}
		c.wait("leadership returns to server 1", func() bool { return c.leads(1) && len(c.servers[2].terms()) == 1 })
		cancel()
		<-finished
		c.wait("all have the same state", c.same)
		c.servers[1].node.View(func(v fsm.View) {
			if m, _ := v.Miner("miner-1"); int64(m.Strikes) != done.Load() {
				t.Errorf("%d acknowledged, %d applied", done.Load(), m.Strikes)
			}
		})
		if done.Load() < 100 {
			t.Errorf("only %d proposals went through", done.Load())
		}
	})
}

func TestTransferToADeadServerLetsTheLeaderGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		leader := c.servers[0].node
		c.servers[2].kill()
		if err := leader.transfer(t.Context(), 3); err == nil {
			t.Error("the transfer succeeded")
		}
		if _, err := leader.Propose(t.Context(), strike(1)); err != nil {
			t.Errorf("propose afterwards: %v", err)
		}
	})
}

// TestNobodyWaitsForATransferToAPausedServer: the proposals are not held for one that does not answer.
func TestNobodyWaitsForATransferToAPausedServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		leader := c.leader()
		c.net.setMute(c.servers[2].node.Address(), true)
		failed := make(chan error, 1)
		began := time.Now()
		go func() { failed <- leader.transfer(t.Context(), 3) }()
		synctest.Wait()
		if _, err := leader.Propose(t.Context(), strike(1)); err != nil {
			t.Errorf("propose: %v", err)
		}
		if took := time.Since(began); took > DefaultRaftElection/3 {
			t.Errorf("a proposal took %v", took)
		}
		if err := <-failed; err == nil {
			t.Error("the transfer succeeded")
		}
	})
}

func TestTransfersAreSpacedMoreAndMore(t *testing.T) {
	var pace transferPace
	now := time.Unix(1000, 0)
	var pauses []time.Duration
	for range 9 {
		if !pace.ready(now) {
			t.Fatal("not ready when it said")
		}
		pace.attempt(now)
		if pace.ready(pace.next.Add(-1)) {
			t.Fatal("ready too early")
		}
		pauses = append(pauses, pace.next.Sub(now))
		now = pace.next
	}
	if pauses[0] != transferPauseFirst || pauses[1] != 2*transferPauseFirst || pauses[8] != transferPauseMost {
		t.Errorf("pauses %v", pauses)
	}
	now = now.Add(transferPauseMost + 1)
	if pace.attempt(now); pace.next.Sub(now) != transferPauseFirst {
		t.Error("a quiet while did not forget the attempts")
	}
}

// TestServerThatNeverCatchesUpHoldsNothingUp: a new server whose disk takes nothing is caught up for ever. Meanwhile the lowest id
// leads again, and a dead server is taken from the voters.
func TestServerThatNeverCatchesUpHoldsNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		slow := newTestServer(t, c.net, t.TempDir())
		slow.adjust = func(config *Config) { config.StallLimit, config.StallExit = time.Hour, time.Hour }
		slow.stall.on()
		defer slow.stall.off()
		c.servers = append(c.servers, slow)
		slow.start(c.servers[0].node.Address())
		time.Sleep(time.Minute)
		c.servers[0].kill()
		c.wait("server 2 leads", func() bool { return c.leads(2) })
		c.servers[0].start(c.servers[1].node.Address())
		c.wait("server 1 leads again", func() bool { return c.leads(1) })
		if slow.node.raft.LastIndex() != 0 || isVoter(c.leader().configuration(), 4) {
			t.Error("the slow server caught up: the test does not reach its case")
		}
		c.servers[2].kill()
		c.wait("server 3 is no voter", func() bool { return !isVoter(c.leader().configuration(), 3) })
	})
}

func TestPlannedStopHandsLeadershipOverAndIsDownInTheTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		began := time.Now()
		if err := c.servers[0].node.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the stop took %v", took)
		}
		if !c.leads(2) {
			t.Error("server 2 does not lead when Stop returned")
		}
		// It answers until it is closed, and is not taken for up, or for the leader, again.
		time.Sleep(3 * DefaultHeartbeat)
		if !c.up(2, 3) || !c.leads(2) {
			t.Error("the stopping server counts as up")
		}
		c.servers[0].kill()
		if err := c.servers[2].node.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.wait("the follower that stopped is down in the table", func() bool { return c.up(2) })
		if voters := c.servers[1].node.Status().Voters; len(voters) != 3 {
			t.Errorf("voters %v: a planned stop removes none", voters)
		}
	})
}

func TestLastServerStopsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		if err := c.servers[0].node.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !c.up() {
			t.Error("it is up in its own table")
		}
		c.servers[0].kill()
		c.servers[0].start()
		c.wait("it leads again, and is up", func() bool { return c.leads(1) && c.up(1) })
	})
}

func TestAfterStopClusterNobodyAnnouncesAnything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		for range 2 { // it may be said twice
			if err := c.servers[0].node.StopCluster(t.Context(), "test\nis over"); err != nil {
				t.Fatal(err)
			}
		}
		stopped := func(s *testServer) (stopped bool) {
			s.node.View(func(v fsm.View) { stopped = v.Stopped() })
			return stopped
		}
		c.wait("all know", func() bool { return stopped(c.servers[0]) && stopped(c.servers[1]) && stopped(c.servers[2]) })
		for _, s := range c.servers {
			if err := s.node.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		}
		c.servers[0].kill()
		time.Sleep(3 * time.Second) // the others elect, but nobody who is stopping takes office
		if !stopped(c.servers[1]) || !stopped(c.servers[2]) {
			t.Error("the stop is over while the servers stop")
		}
		c.close()
		for i, s := range c.servers {
			if i == 0 {
				s.start()
			} else {
				s.start(c.servers[0].node.Address())
			}
		}
		c.wait("server 1 leads the cluster that was started again", func() bool { return c.leads(1) && !stopped(c.servers[0]) })
	})
}

func TestRemovedServerThatReportsIsReadmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		leader := c.servers[0].node
		c.servers[2].kill()
		c.wait("server 3 is down", func() bool { return c.up(1, 2) })
		if err := leader.raft.RemoveServer("3", 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
		if _, err := leader.Propose(t.Context(), fsm.RemoveServer{ServerID: 3, Reason: "test"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if voters := leader.Status().Voters; !slices.Equal(voters, []uint64{1, 2}) {
			t.Fatalf("voters %v", voters)
		}
		c.servers[2].start(leader.Address())
		c.wait("server 3 votes and is up under its own id", func() bool {
			return len(leader.Status().Voters) == 3 && c.up(1, 2, 3)
		})
	})
}

func TestLeadThatEndsEarlyIsCalledAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		c.servers[0].kill()
		s := c.servers[0]
		dir, err := OpenDataDir(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		listener := c.net.listen()
		store := &Stores{Log: s.log, Stable: s.log, Snapshots: s.snaps, Close: func() error { return nil }}
		node, err := Open(t.Context(), Config{
			DataDir: dir, Stream: listener, Advertise: listener.address, Peers: c.net, Probe: c.net.probe,
			OpenStores: func(string, bool, *slog.Logger) (*Stores, error) { return store, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer node.Close()
		var calls atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() {
			ran <- node.Run(ctx, func(ctx context.Context, term uint64) error {
				if calls.Add(1) < 3 {
					return errors.New("not now")
				}
				<-ctx.Done()
				return nil
			})
		}()
		waitFor(t, "lead is called three times", time.Minute, func() bool { return calls.Load() == 3 })
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// flickeringPeers answers each second question, as a server that catches up.
type flickeringPeers struct {
	*testNet
	asked atomic.Int64
}

func (p *flickeringPeers) Heartbeat(ctx context.Context, address string, request HeartbeatRequest) (ServerReport, error) {
	asked := p.asked.Add(1)
	if asked > 5000 { // virtual time would stand still
		<-ctx.Done()
		return ServerReport{}, ctx.Err()
	}
	if asked%2 == 0 {
		return ServerReport{}, io.ErrUnexpectedEOF
	}
	return ServerReport{ClusterID: request.ClusterID, ServerID: 2, Address: address, DataDir: "/2"}, nil
}

// TestServerThatAnswersNowAndThenIsAskedInPeace: what the leader finds out of it makes the leader look again.
func TestServerThatAnswersNowAndThenIsAskedInPeace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		c.servers[0].kill()
		peers := &flickeringPeers{testNet: c.net}
		c.servers[0].peers = peers
		c.servers[0].start()
		c.wait("server 1 leads", func() bool { return c.leads(1) })
		server2 := fsm.AddServer{RequestID: fsm.ID{2}, Address: "127.0.0.1:9", DataDir: "/2"}
		if _, err := c.servers[0].node.Propose(t.Context(), server2); err != nil {
			t.Fatal(err)
		}
		c.wait("server 2 is asked", func() bool { return peers.asked.Load() > 2 })
		before := peers.asked.Load()
		time.Sleep(time.Second)
		asked, most := peers.asked.Load()-before, 2*int64(time.Second/governPause)+2
		if asked < 2 || asked > most {
			t.Errorf("asked %d times in a second, want some, and at most %d", asked, most)
		}
	})
}
