package rpc

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"raftmine/miner"
	"raftmine/raftnode/coordinator"
)

// cluster is some servers of which the test says who leads.
type cluster struct {
	servers   []*Server
	addresses []string
}

func startCluster(t *testing.T, size uint64) *cluster {
	t.Helper()
	c := &cluster{}
	for id := range size {
		server, address := start(t, newFakeNode(id+1))
		c.servers, c.addresses = append(c.servers, server), append(c.addresses, address)
	}
	return c
}

// lead makes server i lead; it names up as the servers that are up.
func (c *cluster) lead(i int, up ...string) *fakeLeader {
	leader := &fakeLeader{address: c.addresses[i], servers: up}
	c.servers[i].Lead(leader)
	return leader
}

func newDialer(t *testing.T, rotate time.Duration, addresses ...string) *MinerDialer {
	t.Helper()
	d, err := NewMinerDialer(MinerDialerConfig{Addresses: func() []string { return addresses }, RotateAfter: rotate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// dialMiner dials and returns the stream and its first message.
func dialMiner(t *testing.T, d *MinerDialer) (miner.Conn, miner.HeartbeatRequest) {
	t.Helper()
	conn, err := d.Dial(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	message, err := conn.Receive()
	if err != nil {
		t.Fatal(err)
	}
	return conn, message.(miner.HeartbeatRequest)
}

func TestMinerFollowsTheLeader(t *testing.T) {
	c := startCluster(t, 3)
	d := newDialer(t, 0, c.addresses...)
	for turn, leading := range []int{2, 0, 1, 2} {
		leader := c.lead(leading, c.addresses...)
		conn, hello := dialMiner(t, d)
		if !slices.Equal(hello.ServerAddresses, c.addresses) || len(leader.opened()) != 1 {
			t.Fatalf("turn %d: hello %+v, %d sessions at the leader", turn, hello, len(leader.opened()))
		}
		if err := conn.Send(miner.AnswerYes{GrantID: 1, JobID: 2, Timestamp: 3, Nonce: 4}); err != nil {
			t.Fatal(err)
		}
		message, err := conn.Receive()
		want := miner.Acknowledgement{GrantID: 1, Solution: true, Nonce: 4, Result: miner.ResultCommitted}
		if err != nil || message != want {
			t.Fatalf("turn %d: got %+v, %v, want %+v", turn, message, err, want)
		}
		c.servers[leading].Unlead()
		if _, err := conn.Receive(); !errors.Is(err, ErrUnavailable) && !errors.Is(err, coordinator.ErrNotLeader) {
			t.Fatalf("turn %d: the stream of a leader that was ended with %v", turn, err)
		}
	}
}

func TestDialWaitsForALeader(t *testing.T) {
	c := startCluster(t, 3)
	d := newDialer(t, 0, c.addresses...)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("without a leader: %v, want deadline exceeded", err)
	}
	dialed := make(chan error, 1)
	go func() {
		conn, err := d.Dial(testContext(t))
		if err == nil {
			err = conn.Close()
		}
		dialed <- err
	}()
	c.lead(1)
	if err := <-dialed; err != nil {
		t.Errorf("with a leader: %v", err)
	}
}

// TestMinerFindsTheLeaderAmongMany: more servers than are watched at a time, some of them dead.
func TestMinerFindsTheLeaderAmongMany(t *testing.T) {
	c := startCluster(t, 8)
	addresses := append([]string{closedAddress(t), closedAddress(t), closedAddress(t)}, c.addresses...)
	d := newDialer(t, 30*time.Millisecond, addresses...)
	c.lead(7)
	dialMiner(t, d)
}

// TestMinerLearnsServersFromTheLeader: it knows one of four at first, and is led to the one that only the leader named.
func TestMinerLearnsServersFromTheLeader(t *testing.T) {
	c := startCluster(t, 4)
	d := newDialer(t, 30*time.Millisecond, c.addresses[0])
	c.lead(0, c.addresses...)
	dialMiner(t, d)
	d.mu.Lock()
	window := slices.Clone(d.window)
	d.mu.Unlock()
	if !slices.Equal(window, c.addresses[:watchedServers]) {
		t.Errorf("watching %v, want the leader and the next two of %v", window, c.addresses)
	}
	c.servers[0].Unlead()
	leader := c.lead(3, c.addresses...)
	dialMiner(t, d)
	if len(leader.opened()) != 1 {
		t.Error("the new leader has no session")
	}
}

func TestMinerReadsTheLocalEnvironmentAnew(t *testing.T) {
	c := startCluster(t, 1)
	c.lead(0)
	var mu sync.Mutex
	var known []string
	d, err := NewMinerDialer(MinerDialerConfig{RotateAfter: 10 * time.Millisecond, Addresses: func() []string {
		mu.Lock()
		defer mu.Unlock()
		return known
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Dial(ctx); err == nil {
		t.Fatal("dialled without an address")
	}
	mu.Lock()
	known = []string{"not an address", c.addresses[0]}
	mu.Unlock()
	dialMiner(t, d)
}

func TestRefusedMinerIsTold(t *testing.T) {
	c := startCluster(t, 1)
	d := newDialer(t, 0, c.addresses...)
	d.clash.retry = time.Millisecond
	for _, test := range []struct {
		refuse    error
		permanent bool
	}{
		{coordinator.ErrMinerRefused, true}, {coordinator.ErrNameTaken, false}, // yet
		{coordinator.ErrTooManyMiners, false}, {coordinator.ErrNotLeader, false}, // after some patience
	} {
		c.servers[0].Lead(&fakeLeader{refuse: test.refuse})
		_, err := d.Dial(testContext(t))
		if !errors.Is(err, test.refuse) || errors.Is(err, miner.ErrRefused) != test.permanent {
			t.Errorf("%v: got %v, want it, refused: %t", test.refuse, err, test.permanent)
		}
	}
}

// TestCloseDeliversWhatWasSent: a miner that leaves says so and closes.
func TestCloseDeliversWhatWasSent(t *testing.T) {
	c := startCluster(t, 1)
	leader := c.lead(0)
	d := newDialer(t, 0, c.addresses...)
	const turns, messages = 10, 200 // so many that some are still on their way out
	for turn := range turns {
		conn, _ := dialMiner(t, d)
		for range messages {
			if err := conn.Send(miner.HeartbeatReply{Name: "m", Wanted: pointer(0), Leaving: true}); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(conn.Close(), conn.Close()); err != nil {
			t.Fatal(err)
		}
		if err := conn.Send(miner.HeartbeatReply{Name: "m"}); err == nil {
			t.Error("sent on a closed stream")
		}
		if _, err := conn.Receive(); err == nil {
			t.Error("received on a closed stream")
		}
		eventually(t, "all messages arrived", func() bool { return leader.received() == (turn+1)*messages })
	}
}

// TestCloseEndsReceive with a leader that is deaf: the leader's session never ends by itself.
func TestCloseEndsReceive(t *testing.T) {
	c := startCluster(t, 1)
	stuck := make(chan struct{})
	defer close(stuck)
	c.servers[0].Lead(&fakeLeader{address: c.addresses[0], answer: func(*fakeSession, coordinator.Message) error {
		<-stuck
		return nil
	}})
	d := newDialer(t, 0, c.addresses...)
	conn, _ := dialMiner(t, d)
	if err := conn.Send(miner.AnswerYes{GrantID: 1, JobID: 1, Timestamp: 1}); err != nil {
		t.Fatal(err)
	}
	received := make(chan error, 1)
	go func() { _, err := conn.Receive(); received <- err }()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-received; err == nil {
		t.Error("received from a closed stream")
	}
}

// TestPausedServerDoesNotHoldUpTheMiner: a process that is stopped keeps its connections and its good health.
func TestPausedServerDoesNotHoldUpTheMiner(t *testing.T) {
	c := startCluster(t, 2)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// It serves health as a leader does and never opens a session.
	server := serve(t, newFakeNode(3), listener)
	held := make(chan struct{})
	defer close(held)
	server.Lead(deafLeader{held})
	addresses := []string{listener.Addr().String(), c.addresses[0], c.addresses[1]}
	d, err := NewMinerDialer(MinerDialerConfig{
		Addresses: func() []string { return addresses }, HelloTimeout: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Dial(testContext(t)); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	c.lead(1)
	eventually(t, "the other leader is found", func() bool {
		conn, err := d.Dial(testContext(t))
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
}

type deafLeader struct{ held chan struct{} }

func (l deafLeader) Open() (Session, error)     { <-l.held; return nil, coordinator.ErrNotLeader }
func (l deafLeader) Status() coordinator.Status { return coordinator.Status{} }

func TestClosedDialerSaysSo(t *testing.T) {
	d := newDialer(t, 0, closedAddress(t))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Dial(testContext(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

func TestConfigsAreChecked(t *testing.T) {
	if _, err := NewMinerDialer(MinerDialerConfig{}); err == nil {
		t.Error("a dialer without addresses was made")
	}
	if _, err := NewMinerDialer(MinerDialerConfig{Addresses: func() []string { return nil }, RotateAfter: -1}); err == nil {
		t.Error("a dialer with a negative time was made")
	}
	for _, config := range []Config{
		{}, {Node: newFakeNode(1), KeepaliveTime: 1}, {Node: newFakeNode(1), KeepaliveTimeout: -1},
	} {
		if _, err := NewServer(config); err == nil {
			t.Errorf("a server was made of %+v", config)
		}
	}
}
