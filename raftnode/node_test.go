package raftnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
)

func strike(i int) fsm.Command { return fsm.Strike{Miner: fmt.Sprint("miner-", i), Reason: "test"} }

func TestServersJoinInOrderAndVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := newTestCluster(t, 3)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("three voters only after %v", took)
		}
		c.wait("all are up on every server", func() bool { return c.up(1, 2, 3) })
		if took := time.Since(began); took < DefaultHeartbeat {
			t.Errorf("up after %v: that is not stable for two heartbeats", took)
		}
		c.wait("all have the same state", c.same)
		for _, s := range c.servers {
			status := s.node.Status()
			if status.LeaderID != 1 || status.ComputedLeaderID != 1 || status.LeaderAddress != c.servers[0].node.Address() {
				t.Errorf("status of server %d: %+v", s.node.ID(), status)
			}
			if s.node.ClusterID() != c.servers[0].node.ClusterID() {
				t.Errorf("server %d is in another cluster", s.node.ID())
			}
		}
		c.servers[1].node.View(func(v fsm.View) {
			if v.Office().ServerID != 1 || v.ClusterID() != c.servers[0].node.ClusterID() {
				t.Errorf("office %+v of cluster %q", v.Office(), v.ClusterID())
			}
			for _, row := range v.Servers() {
				s := c.servers[row.ID-1]
				if row.Address != s.node.Address() || row.DataDir != s.dir || row.Host.MachineID != "machine" || !row.Member {
					t.Errorf("row of server %d: %+v", row.ID, row)
				}
			}
		})
		o := c.servers[1].observer
		o.mu.Lock()
		defer o.mu.Unlock()
		if !slices.IsSorted(o.indexes) {
			t.Errorf("events out of order: %v", o.indexes)
		}
		for _, pair := range [][2]uint64{{1, 2}, {2, 1}, {2, 3}, {3, 2}} {
			if o.beats[pair] < 2 {
				t.Errorf("%d heartbeats from %d to %d seen", o.beats[pair], pair[0], pair[1])
			}
		}
	})
}

func TestJoinRequestSentAgainGetsTheSameID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		leader := c.servers[0].node
		request := JoinRequest{RequestID: fsm.ID{7}, Address: c.asking(fsm.ID{7}), DataDir: "/d"}
		for range 3 {
			reply, err := leader.HandleJoin(t.Context(), request)
			if err != nil || reply.ServerID != 2 || reply.ClusterID != leader.ClusterID() {
				t.Fatalf("reply %+v, %v", reply, err)
			}
			if len(reply.Servers) != 1 || reply.Servers[0] != (ServerAddress{1, leader.Address()}) {
				t.Errorf("servers %v", reply.Servers)
			}
		}
		request.RequestID, request.Address = fsm.ID{8}, c.asking(fsm.ID{8})
		if reply, err := leader.HandleJoin(t.Context(), request); err != nil || reply.ServerID != 3 {
			t.Errorf("another server: %+v, %v", reply, err)
		}
		// Both are dead: they are never made voters.
		time.Sleep(time.Minute)
		if voters := leader.Status().Voters; !slices.Equal(voters, []uint64{1}) {
			t.Errorf("voters %v", voters)
		}
		if !c.leads(1) {
			t.Error("the leader is gone")
		}
	})
}

func TestSenselessJoinIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		before := c.servers[0].node.Status().LastIndex
		for _, request := range []JoinRequest{
			{},
			{RequestID: fsm.ID{1}, Address: "127.0.0.1:1"},
			{RequestID: fsm.ID{1}, DataDir: "/d", Address: "nonsense"},
			{RequestID: fsm.ID{1}, DataDir: "/d", Address: "0.0.0.0:80"},
			{RequestID: fsm.ID{1}, DataDir: "/d", Address: strings.Repeat("a", 300) + ":1"},
		} {
			if _, err := c.servers[0].node.HandleJoin(t.Context(), request); !errors.Is(err, ErrJoinRefused) {
				t.Errorf("%+v: %v", request, err)
			}
		}
		if after := c.servers[0].node.Status().LastIndex; after != before {
			t.Errorf("the log grew from %d to %d", before, after)
		}
	})
}

// asking returns an address where a server answers who dials it back, and then never comes.
func (c *testCluster) asking(requestID fsm.ID) (address string) {
	listener := c.net.listen()
	n := &Node{config: Config{Stream: listener, WatchListener: c.net.watches[listener.address]}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	stop := n.vouch(requestID)
	c.t.Cleanup(func() {
		stop()
		n.cancel()
		if err := errors.Join(n.door.Close(), listener.Close()); err != nil {
			c.t.Error(err)
		}
	})
	return listener.address
}

// TestOnlyAServerThatIsWhereItSaysJoins: a request alone, however often it is sent, changes nothing.
func TestOnlyAServerThatIsWhereItSaysJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		c.settled()
		node := c.servers[0].node
		silent := c.net.listen() // accepts nothing
		defer silent.Close()
		before := node.Status().LastIndex
		for what, address := range map[string]string{
			"nobody listens":  "127.0.0.1:9",
			"another server":  c.servers[1].node.Address(),
			"the leader":      node.Address(),
			"another asks":    c.asking(fsm.ID{5}),
			"nothing answers": silent.address,
		} {
			began := time.Now()
			_, err := node.HandleJoin(t.Context(), JoinRequest{RequestID: fsm.ID{7}, Address: address, DataDir: "/d"})
			if !errors.Is(err, ErrNotThere) || errors.Is(err, ErrJoinRefused) || !strings.Contains(err.Error(), address) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v", what, err)
			}
			if took := time.Since(began); took > 2*watchTimeout {
				t.Errorf("%s: took %v", what, took)
			}
		}
		if after := node.Status().LastIndex; after != before || len(node.serverIDs()) != 2 {
			t.Errorf("the log grew from %d to %d, members %v", before, after, node.serverIDs())
		}
	})
}

// refusingPeers answer as a leader that does not find the server that asks, and as one that follows it.
type refusingPeers struct{ *testNet }

func (refusingPeers) Join(_ context.Context, address string, request JoinRequest) (JoinReply, error) {
	if address == "leader:1" {
		return JoinReply{}, fmt.Errorf("%w: nothing listens at %s", ErrNotThere, request.Address)
	}
	return JoinReply{}, &NotLeaderError{LeaderID: 1, Address: "leader:1"}
}

// TestJoinSaysThatTheLeaderDoesNotFindTheServer, in whatever order the servers are asked.
func TestJoinSaysThatTheLeaderDoesNotFindTheServer(t *testing.T) {
	for _, seeds := range [][]string{{"leader:1"}, {"follower:1"}, {"leader:1", "follower:1"}, {"follower:1", "leader:1"}} {
		synctest.Test(t, func(t *testing.T) {
			n := &Node{log: discard(), config: Config{
				Join: seeds, JoinTimeout: 5 * time.Second, Peers: refusingPeers{}, Advertise: "wrong:1", DataDir: &DataDir{path: "/d"},
			}}
			_, err := n.askToJoin(t.Context(), fsm.ID{7})
			if !errors.Is(err, ErrNoAnswer) || !errors.Is(err, ErrNotThere) || !strings.Contains(err.Error(), "wrong:1") {
				t.Errorf("%v: %v", seeds, err)
			}
		})
	}
}

// TestMembersThatNeverCameAreFew: who answers a call back and then never serves takes one of few places, and not for long.
func TestMembersThatNeverCameAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		c.settled()
		node := c.servers[0].node
		join := func(i byte) error {
			_, err := node.HandleJoin(t.Context(), JoinRequest{RequestID: fsm.ID{i, 1}, Address: c.asking(fsm.ID{i, 1}), DataDir: "/d"})
			return err
		}
		for i := range byte(maxComing) {
			if err := join(i); err != nil {
				t.Fatal(err)
			}
		}
		if err := join(maxComing); err == nil || errors.Is(err, ErrJoinRefused) {
			t.Errorf("one more: %v; want it to ask again", err)
		}
		if err := join(0); err != nil {
			t.Errorf("one that has an id asks again: %v", err)
		}
		if !c.leads(1) || len(node.Status().Voters) != 2 {
			t.Errorf("voters %v", node.Status().Voters)
		}
		c.wait("those who never came are removed", func() bool { return len(node.serverIDs()) == 2 })
		if err := join(maxComing); err != nil {
			t.Errorf("after that: %v", err)
		}
	})
}

func TestStrangersHeardOfAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		node := c.servers[0].node
		for round := range uint64(3) {
			for id := range uint64(10 * maxStrangers) {
				request := HeartbeatRequest{ClusterID: node.ClusterID(), ServerID: 1000*(round+1) + id, Address: "127.0.0.1:9"}
				if _, err := node.HandleHeartbeat(request); err != nil {
					t.Fatal(err)
				}
			}
			if known := node.book.known(); len(known) != maxStrangers || known[0] != 1000*(round+1) {
				t.Errorf("%d servers are heard of, the first is %d", len(known), known[0])
			}
			time.Sleep(node.book.fresh)
		}
	})
}

func TestServerTableDoesNotGrowWithoutBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		node := c.servers[0].node
		var commands []fsm.Command
		for i := 2; i <= maxServers; i++ { // members once, and removed
			commands = append(commands, fsm.AddServer{RequestID: fsm.ID{byte(i), byte(i >> 8), 1}, Address: "127.0.0.1:9", DataDir: "/d"},
				fsm.RemoveServer{ServerID: uint64(i), Reason: "test"})
		}
		if _, err := node.Propose(t.Context(), commands...); err != nil {
			t.Fatal(err)
		}
		last := fsm.ID{byte(maxServers & 0xff), byte(maxServers >> 8), 1}
		request := JoinRequest{RequestID: last, Address: c.asking(last), DataDir: "/d"}
		if reply, err := node.HandleJoin(t.Context(), request); err != nil || reply.ServerID != maxServers {
			t.Errorf("a request sent again: %+v, %v", reply, err)
		}
		request = JoinRequest{RequestID: fsm.ID{9, 9, 9}, Address: c.asking(fsm.ID{9, 9, 9}), DataDir: "/d"}
		if _, err := node.HandleJoin(t.Context(), request); !errors.Is(err, ErrJoinRefused) {
			t.Errorf("server %d: %v", maxServers+1, err)
		}
	})
}

func TestSilentServerIsDownAfterThreeHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		node := c.servers[0].node
		began := time.Now()
		c.net.setPaused(c.servers[2].node.Address(), true)
		c.wait("server 3 is down", func() bool { return !slices.Contains(node.upIDs(), 3) })
		// The last answer may be one heartbeat old when the silence begins.
		if took := time.Since(began); took < (missedHeartbeats-1)*node.config.Heartbeat || took > missedHeartbeats*node.config.Heartbeat+50*time.Millisecond {
			t.Errorf("down after %v, with a heartbeat each %v", took, node.config.Heartbeat)
		}
		c.net.setPaused(c.servers[2].node.Address(), false)
		time.Sleep(time.Second) // what was paused notices
	})
}

func TestJoinFollowsTheHintToTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		c.wait("the follower knows the leader", func() bool { return c.servers[1].node.Status().LeaderID == 1 })
		third := newTestServer(t, c.net, t.TempDir())
		c.servers = append(c.servers, third)
		third.start(c.servers[1].node.Address())
		if third.node.ID() != 3 {
			t.Errorf("id %d", third.node.ID())
		}
	})
}

func TestJoinWhereNobodyListensFailsWithOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, newTestNet(), t.TempDir())
		err := s.open("127.0.0.1:1")
		if !errors.Is(err, ErrNoAnswer) || !strings.HasPrefix(err.Error(), "join 127.0.0.1:1: gave up after 30s: ") ||
			!strings.Contains(err.Error(), "connection refused") {
			t.Fatalf("error %v", err)
		}
		dir, err := OpenDataDir(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if dir.Identity().ServerID != 0 {
			t.Error("the directory was given an id")
		}
	})
}

func TestProposalsOfManyCallersKeepOrderAndOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		leader := c.servers[0].node
		before := leader.Status().LastIndex
		const callers, each = 200, 5
		var work sync.WaitGroup
		for i := range callers {
			work.Go(func() {
				for j := range each {
					// The second command of a pair shows that they were applied in order, and whose outcome is whose.
					outcomes, err := leader.Propose(t.Context(), strike(i),
						fsm.GrantWork{JobID: uint64(1000 + i), Miner: fmt.Sprint("miner-", i), RequestID: uint64(j + 1), Chunks: 1})
					if err != nil || len(outcomes) != 2 || outcomes[0].Code != fsm.Done || outcomes[1].Code == fsm.Done {
						t.Errorf("caller %d: %v, %v", i, outcomes, err)
					}
				}
			})
		}
		work.Wait()
		leader.View(func(v fsm.View) {
			for i := range callers {
				if m, _ := v.Miner(fmt.Sprint("miner-", i)); m.Strikes != each {
					t.Errorf("miner %d has %d strikes", i, m.Strikes)
				}
			}
		})
		if entries := leader.Status().LastIndex - before; entries > callers*each/4 {
			t.Errorf("%d proposals made %d entries", callers*each, entries)
		}
		c.wait("all have the same state", c.same)
	})
}

func TestProposalThatCannotBeEncodedFailsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		leader := c.servers[0].node
		if err := leader.commits.pause(t.Context()); err != nil { // so that all go into one batch
			t.Fatal(err)
		}
		var work sync.WaitGroup
		for i := range 5 {
			work.Go(func() {
				_, err := leader.Propose(t.Context(), strike(i))
				if err != nil {
					t.Errorf("good proposal: %v", err)
				}
			})
		}
		work.Go(func() {
			_, err := leader.Propose(t.Context(), fsm.Strike{Miner: strings.Repeat("x", 1000)})
			if !errors.Is(err, fsm.ErrUnfitEntry) || errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("bad proposal: %v", err)
			}
		})
		synctest.Wait()
		leader.commits.resume()
		work.Wait()
	})
}

func TestFollowerRefusesAndNamesTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		follower := c.servers[1].node
		c.wait("the follower knows the leader", func() bool { return follower.Status().LeaderID == 1 })
		_, err := follower.Propose(t.Context(), strike(1))
		var other *NotLeaderError
		if !errors.As(err, &other) || other.LeaderID != 1 || other.Address != c.servers[0].node.Address() {
			t.Errorf("propose: %v", err)
		}
		if errors.Is(err, ErrOutcomeUnknown) {
			t.Error("a refusal must not look like an unknown outcome")
		}
		if err := follower.VerifyLeader(t.Context()); !errors.Is(err, ErrNotLeader) {
			t.Errorf("verify: %v", err)
		}
		if err := follower.barrier(t.Context()); !errors.Is(err, ErrNotLeader) {
			t.Errorf("barrier: %v", err)
		}
		if err := follower.StopCluster(t.Context(), "x"); !errors.Is(err, ErrNotLeader) {
			t.Errorf("stop cluster: %v", err)
		}
		if err := c.servers[0].node.VerifyLeader(t.Context()); err != nil {
			t.Errorf("verify on the leader: %v", err)
		}
		if err := c.servers[0].node.barrier(t.Context()); err != nil {
			t.Errorf("barrier on the leader: %v", err)
		}
	})
}

func TestOutcomeIsUnknownWhenTheMajorityIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		leader := c.servers[0].node
		c.servers[1].kill()
		c.servers[2].kill()
		_, err := leader.Propose(t.Context(), strike(1))
		if !errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, ErrNotLeader) {
			t.Errorf("propose without a majority: %v", err)
		}
		c.wait("it stops leading", func() bool { return !leader.Status().Leading })
		if _, err := leader.Propose(t.Context(), strike(1)); !errors.Is(err, ErrNotLeader) {
			t.Errorf("propose later: %v", err)
		}
	})
}

func TestLeaderIsVerifiedByAMajorityAndInItsOwnTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		leader := c.servers[0].node
		term := leader.term.Load()
		for _, other := range []uint64{0, term - 1, term + 1} { // before the first office, and after leadership was lost and won again
			leader.term.Store(other)
			if err := leader.VerifyLeader(t.Context()); !errors.Is(err, ErrNotLeader) {
				t.Errorf("verified term %d in term %d: %v", other, term, err)
			}
		}
		leader.term.Store(term)
		if err := leader.VerifyLeader(t.Context()); err != nil {
			t.Errorf("with a majority: %v", err)
		}
		c.servers[1].kill()
		c.servers[2].kill()
		if !leader.leadsIn(term) {
			t.Fatal("it knows already that it lost the majority")
		}
		if err := leader.VerifyLeader(t.Context()); !errors.Is(err, ErrNotLeader) {
			t.Errorf("without a majority: %v", err)
		}
	})
}

func TestEntryOfAnotherTermIsNotGivenToRaft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		leader := c.servers[0].node
		before, term := leader.Status().LastIndex, leader.term.Load()
		for _, other := range []uint64{term - 1, term + 1} {
			if _, err := leader.commits.propose(t.Context(), other, []fsm.Command{strike(1)}); !errors.Is(err, ErrNotLeader) {
				t.Errorf("proposal of term %d in term %d: %v", other, term, err)
			}
		}
		if after := leader.Status().LastIndex; after != before {
			t.Errorf("the log grew from %d to %d", before, after)
		}
	})
}

func TestCallerThatGoesAwayInTheQueueProposedNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		leader := c.servers[0].node
		if err := leader.commits.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := leader.Propose(ctx, strike(1))
		if errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		leader.commits.resume()
		if _, err := leader.Propose(t.Context(), strike(2)); err != nil {
			t.Errorf("the next one: %v", err)
		}
		leader.View(func(v fsm.View) {
			if _, ok := v.Miner("miner-1"); ok {
				t.Error("what was given up in the queue was proposed")
			}
		})
	})
}

func TestRestartKeepsIDAndStateOnOtherPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		if _, err := c.servers[0].node.Propose(t.Context(), strike(1)); err != nil {
			t.Fatal(err)
		}
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		cluster := c.servers[0].node.ClusterID()
		c.close()
		// All ports are new, and only one address is told: the others are found from there.
		c.servers[0].start()
		for _, s := range c.servers[1:] {
			s.start(c.servers[0].node.Address())
		}
		c.wait("server 1 leads", func() bool { return c.leads(1) })
		c.wait("the table has the new addresses", func() bool {
			var found int
			c.leader().View(func(v fsm.View) {
				for _, row := range v.Servers() {
					if row.Address == c.servers[row.ID-1].node.Address() {
						found++
					}
				}
			})
			return found == 3
		})
		for i, s := range c.servers {
			if s.node.ID() != uint64(i+1) || s.node.ClusterID() != cluster {
				t.Errorf("server %d came back as %d of %s", i+1, s.node.ID(), s.node.ClusterID())
			}
		}
		c.wait("all have the state", func() bool {
			ok := c.same()
			c.servers[2].node.View(func(v fsm.View) {
				m, _ := v.Miner("miner-1")
				ok = ok && m.Strikes == 1
			})
			return ok
		})
		if voters := c.leader().Status().Voters; len(voters) != 3 {
			t.Errorf("voters %v", voters)
		}
	})
}

func TestHeartbeatOfAnotherClusterIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		node := c.servers[0].node
		_, err := node.HandleHeartbeat(HeartbeatRequest{ClusterID: "other", ServerID: 2, Address: "127.0.0.1:9"})
		if !errors.Is(err, ErrForeignCluster) || !strings.Contains(err.Error(), "other") {
			t.Errorf("heartbeat: %v", err)
		}
		if err := node.HandleLeave(t.Context(), LeaveRequest{ClusterID: "other", ServerID: 1}); !errors.Is(err, ErrForeignCluster) {
			t.Errorf("leave: %v", err)
		}
		if err := node.HandleLeave(t.Context(), LeaveRequest{ClusterID: node.ClusterID(), ServerID: 7}); err == nil ||
			!strings.Contains(err.Error(), "no server 7") {
			t.Errorf("leave of a server that never was: %v", err)
		}
		if address := node.book.address(2); address != "" {
			t.Errorf("its address %s was remembered", address)
		}
		if _, err := node.HandleHeartbeat(HeartbeatRequest{ClusterID: node.ClusterID(), ServerID: 1}); err == nil {
			t.Error("a heartbeat from another server 1 was answered")
		}
	})
}

func TestRaftStreamMeantForAnotherServerIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		node := c.servers[0].node
		for name, greeting := range map[string]hello{
			"another cluster": newHello("other", node.ID()),
			"another id":      newHello(node.ClusterID(), 2),
		} {
			conn, err := c.net.dial(node.Address(), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(greeting[:]); err != nil {
				t.Fatal(err)
			}
			conn.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) ||
				strings.Contains(err.Error(), "timeout") {
				t.Errorf("%s: the stream was kept: %v", name, err)
			}
			conn.Close()
		}
		if !c.leads(1) {
			t.Error("the leader is gone")
		}
	})
}

func TestClosedNodeRefusesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		node := c.servers[0].node
		c.servers[0].kill()
		if _, err := node.Propose(t.Context(), strike(1)); !errors.Is(err, ErrClosed) {
			t.Errorf("propose: %v", err)
		}
		if _, err := node.HandleHeartbeat(HeartbeatRequest{}); !errors.Is(err, ErrClosed) {
			t.Errorf("heartbeat: %v", err)
		}
		if err := node.VerifyLeader(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("verify: %v", err)
		}
		if err := node.Close(); err != nil {
			t.Errorf("close again: %v", err)
		}
	})
}
