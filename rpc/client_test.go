package rpc

import (
	"context"
	"errors"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/connectivity"

	"raftmine/fsm"
	"raftmine/raftnode"
)

func TestPeerClientCarriesCallsAndErrors(t *testing.T) {
	node := newFakeNode(1)
	_, address := start(t, node)
	client := NewPeerClient()
	defer client.Close()
	ctx := testContext(t)

	report, err := client.Heartbeat(ctx, address, testBeat)
	if err != nil || report != testReport {
		t.Errorf("heartbeat: %+v, %v", report, err)
	}
	reply, err := client.Join(ctx, address, testJoin)
	if err != nil || !reflect.DeepEqual(reply, testJoinReply) {
		t.Errorf("join: %+v, %v", reply, err)
	}
	if err := client.Leave(ctx, address, testLeave); err != nil {
		t.Errorf("leave: %v", err)
	}
	if !reflect.DeepEqual(node.beats, []raftnode.HeartbeatRequest{testBeat}) ||
		!slices.Equal(node.joins, []raftnode.JoinRequest{testJoin}) ||
		!slices.Equal(node.leaves, []raftnode.LeaveRequest{testLeave}) {
		t.Errorf("the node got %+v %+v %+v", node.beats, node.joins, node.leaves)
	}

	node.fail(&raftnode.NotLeaderError{LeaderID: 2, Address: "127.0.0.1:7002"})
	_, err = client.Join(ctx, address, testJoin)
	if hint, ok := errors.AsType[*raftnode.NotLeaderError](err); !ok || hint.LeaderID != 2 {
		t.Errorf("join at a follower: %v, want the leader", err)
	}
	if errors.Is(err, ErrUnavailable) || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a follower's %v counts as unreachable", err)
	}
	node.fail(raftnode.ErrOutcomeUnknown)
	if err := client.Leave(ctx, address, testLeave); !errors.Is(err, raftnode.ErrOutcomeUnknown) {
		t.Errorf("leave: %v, want outcome unknown", err)
	}
	node.fail(raftnode.ErrForeignCluster)
	if _, err := client.Heartbeat(ctx, address, testBeat); !errors.Is(err, raftnode.ErrForeignCluster) {
		t.Errorf("heartbeat: %v, want foreign cluster", err)
	}
}

// TestRefusedPortIsKnownAtOnce also holds that each call asks the port itself: raftnode counts refusals.
func TestRefusedPortIsKnownAtOnce(t *testing.T) {
	client := NewPeerClient()
	defer client.Close()
	address := closedAddress(t)
	begun := time.Now()
	const calls = 20
	for range calls {
		_, err := client.Heartbeat(testContext(t), address, testBeat)
		if !errors.Is(err, ErrRefusedConnection) || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("got %v, want a refused connection", err)
		}
		if !strings.Contains(err.Error(), address) || strings.Contains(err.Error(), "rpc error") {
			t.Errorf("%q does not read well", err)
		}
	}
	took := time.Since(begun) / calls
	t.Logf("%v a refusal", took)
	if took > connectBase { // any waiting between attempts would show
		t.Errorf("a refusal took %v, want milliseconds", took)
	}

	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, newFakeNode(1), listener)
	if _, err := client.Heartbeat(testContext(t), address, testBeat); err != nil {
		t.Errorf("first call after the server came: %v", err)
	}
}

func TestRestartedServerIsReachedByTheNextCall(t *testing.T) {
	client := NewPeerClient()
	defer client.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	server := serve(t, newFakeNode(1), listener)
	if _, err := client.Heartbeat(testContext(t), address, testBeat); err != nil {
		t.Fatal(err)
	}
	server.Stop(testContext(t))
	eventually(t, "the port refuses", func() bool {
		_, err := client.Heartbeat(testContext(t), address, testBeat)
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	if listener, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	serve(t, newFakeNode(1), listener)
	if _, err := client.Heartbeat(testContext(t), address, testBeat); err != nil {
		t.Errorf("first call after the restart: %v", err)
	}
}

func TestSilentServerEndsWithTheCallersContext(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // never accepts
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client := NewPeerClient()
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = client.Heartbeat(ctx, listener.Addr().String(), testBeat)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want deadline exceeded", err)
	}
}

func TestClosedClientSaysSo(t *testing.T) {
	client := NewPeerClient()
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := client.Leave(t.Context(), "127.0.0.1:1", testLeave); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

func TestUnusedConnectionsAreForgotten(t *testing.T) {
	p := newPool()
	defer p.close()
	old, err := p.get("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	old.used = time.Now().Add(-2 * poolForgetsAfter)
	if _, err := p.get("127.0.0.1:2"); err != nil {
		t.Fatal(err)
	}
	if _, kept := p.conns["127.0.0.1:1"]; kept || old.GetState() != connectivity.Shutdown {
		t.Error("a connection that nobody uses is kept")
	}
}

func TestBlocksComeInPagesWithoutGap(t *testing.T) {
	node := newFakeNode(1)
	node.open(t)
	const total = maxBlocks + 1
	for height := range uint64(total) {
		node.block(t, height+1, false)
	}
	_, address := start(t, node)
	client := NewClusterClient()
	defer client.Close()
	for _, after := range []uint64{0, 5, total - 1, total, total + 10} {
		blocks, err := client.Blocks(testContext(t), address, after)
		if err != nil {
			t.Fatal(err)
		}
		if want := total - min(after, total); uint64(len(blocks)) != want {
			t.Fatalf("after %d: %d blocks, want %d", after, len(blocks), want)
		}
		for i, block := range blocks {
			if block.Sequence != after+uint64(i)+1 {
				t.Fatalf("after %d: block %d has sequence number %d", after, i, block.Sequence)
			}
		}
	}
}

func TestStopClusterFollowsTheHint(t *testing.T) {
	leader, follower, lost := newFakeNode(1), newFakeNode(2), newFakeNode(3)
	_, leaderAddress := start(t, leader)
	_, followerAddress := start(t, follower)
	_, lostAddress := start(t, lost)
	follower.fail(&raftnode.NotLeaderError{LeaderID: 1, Address: leaderAddress})
	lost.fail(&raftnode.NotLeaderError{LeaderID: 2, Address: followerAddress}) // a hint that is out of date
	client := NewClusterClient()
	defer client.Close()
	ctx := testContext(t)

	if err := client.StopCluster(ctx, []string{closedAddress(t), lostAddress}, "done"); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(leader.reasons, []string{"done"}) {
		t.Errorf("the leader was told %q, want once", leader.reasons)
	}
	leader.fail(&raftnode.NotLeaderError{LeaderID: 2, Address: followerAddress}) // in a circle
	if err := client.StopCluster(ctx, []string{lostAddress}, "done"); !errors.Is(err, raftnode.ErrNotLeader) {
		t.Errorf("without a leader: %v, want ErrNotLeader", err)
	}
	if err := client.StopCluster(ctx, nil, "done"); err == nil {
		t.Error("without an address: no error")
	}
}

func TestWatchEndsWithOneError(t *testing.T) {
	node := newFakeNode(1)
	node.open(t)
	server, address := start(t, node)
	client := NewClusterClient()
	defer client.Close()
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	var events, failures int
	var last error
	for told, err := range client.Watch(ctx, address, WatchFrom{}) {
		if err != nil {
			failures, last = failures+1, err
			continue
		}
		if events++; told.Event == (LeaderEvent{ID: 1, Term: 3}) {
			server.Stop(ctx)
		}
	}
	if events < 2 || failures != 1 || !errors.Is(last, ErrUnavailable) {
		t.Errorf("%d events, %d errors, the last %v; want one ErrUnavailable", events, failures, last)
	}
}

func TestConnectionsAreShared(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	counting := &countingListener{Listener: listener}
	serve(t, newFakeNode(1), counting)
	client := NewPeerClient()
	defer client.Close()
	for range 50 {
		if _, err := client.Heartbeat(testContext(t), listener.Addr().String(), testBeat); err != nil {
			t.Fatal(err)
		}
	}
	if n := counting.accepted.Load(); n != 1 {
		t.Errorf("%d connections for 50 calls, want 1", n)
	}
}

type countingListener struct {
	net.Listener
	accepted atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.accepted.Add(1)
	}
	return conn, err
}

var _ raftnode.Observer = (*Hub)(nil)

func TestHubCostsNothingWithoutWatchers(t *testing.T) {
	hub := NewHub()
	events := []fsm.Event{fsm.LeaderChanged{ServerID: 1, Term: 1}}
	if n := testing.AllocsPerRun(100, func() { hub.Applied(1, events); hub.Heartbeat(1, 2, true) }); n > 1 {
		t.Errorf("%v allocations without a watcher", n)
	}
}
