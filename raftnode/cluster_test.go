package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// testNet is a network of addresses in memory: it carries Raft streams and calls the nodes' handlers.
type testNet struct {
	mu        sync.Mutex
	listeners map[string]*testListener
	watches   map[string]*testListener // of the watch streams
	nodes     map[string]*Node
	mute      map[string]bool // accepts and answers nothing
	paused    map[string]bool // reads nothing
	accepted  map[string][]net.Conn
	next      int
}

func newTestNet() *testNet {
	return &testNet{
		listeners: make(map[string]*testListener),
		watches:   make(map[string]*testListener),
		nodes:     make(map[string]*Node),
		mute:      make(map[string]bool),
		paused:    make(map[string]bool),
		accepted:  make(map[string][]net.Conn),
		next:      7000,
	}
}

type testListener struct {
	net     *testNet
	address string
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (n *testNet) listen() *testListener {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next++
	l := &testListener{
		net:     n,
		address: fmt.Sprintf("127.0.0.1:%d", n.next),
		conns:   make(chan net.Conn),
		closed:  make(chan struct{}),
	}
	n.listeners[l.address] = l
	n.watches[l.address] = &testListener{net: n, address: l.address, conns: make(chan net.Conn), closed: make(chan struct{})}
	return l
}

func (l *testListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *testListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.net.mu.Lock()
		defer l.net.mu.Unlock()
		if l.net.watches[l.address] == l {
			return // the address lives on
		}
		delete(l.net.listeners, l.address)
		delete(l.net.nodes, l.address)
	})
	return nil
}

func (l *testListener) Addr() net.Addr { return advertised(l.address) }

func (l *testListener) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return l.net.dial(string(address), timeout)
}

func (n *testNet) dial(address string, timeout time.Duration) (net.Conn, error) {
	n.mu.Lock()
	to := n.listeners[address]
	n.mu.Unlock()
	return n.connect(to, address, timeout)
}

func (n *testNet) dialWatch(_ context.Context, address string) (net.Conn, error) {
	n.mu.Lock()
	to := n.watches[address]
	if n.listeners[address] == nil {
		to = nil
	}
	n.mu.Unlock()
	return n.connect(to, address, watchTimeout)
}

func (n *testNet) connect(to *testListener, address string, timeout time.Duration) (net.Conn, error) {
	if to == nil {
		return nil, fmt.Errorf("dial %s: %w", address, syscall.ECONNREFUSED)
	}
	near, far := net.Pipe()
	select {
	case to.conns <- &pausable{Conn: far, net: n, address: address}:
		n.mu.Lock()
		n.accepted[address] = append(n.accepted[address], far)
		n.mu.Unlock()
		return near, nil
	case <-to.closed:
	case <-time.After(timeout):
	}
	return nil, errors.Join(fmt.Errorf("dial %s: %w", address, syscall.ECONNREFUSED), near.Close(), far.Close())
}

func (n *testNet) serve(node *Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[node.Address()] = node
}

// call finds the node at an address, or blocks like one that answers nothing.
func (n *testNet) call(ctx context.Context, address string) (*Node, error) {
	n.mu.Lock()
	node, listening, mute := n.nodes[address], n.listeners[address] != nil, n.mute[address]
	n.mu.Unlock()
	switch {
	case !listening:
		return nil, fmt.Errorf("call %s: %w", address, syscall.ECONNREFUSED)
	case mute:
		<-ctx.Done()
		return nil, ctx.Err()
	case node == nil:
		return nil, fmt.Errorf("call %s: not served yet", address)
	}
	return node, nil
}

// hangUp ends the connections that an address accepted. It goes on listening.
func (n *testNet) hangUp(address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, conn := range n.accepted[address] {
		conn.Close()
	}
	delete(n.accepted, address)
}

// cut makes an address refuse.
func (n *testNet) cut(address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.listeners, address)
	delete(n.nodes, address)
}

func (n *testNet) setMute(address string, mute bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mute[address] = mute
}

func (n *testNet) Heartbeat(ctx context.Context, address string, request HeartbeatRequest) (ServerReport, error) {
	node, err := n.call(ctx, address)
	if err != nil {
		return ServerReport{}, err
	}
	return node.HandleHeartbeat(request)
}

func (n *testNet) Join(ctx context.Context, address string, request JoinRequest) (JoinReply, error) {
	node, err := n.call(ctx, address)
	if err != nil {
		return JoinReply{}, err
	}
	return node.HandleJoin(ctx, request)
}

func (n *testNet) Leave(ctx context.Context, address string, request LeaveRequest) error {
	node, err := n.call(ctx, address)
	if err != nil {
		return err
	}
	return node.HandleLeave(ctx, request)
}

func (n *testNet) History(ctx context.Context, address string, request HistoryRequest) iter.Seq2[JournalRecord, error] {
	return func(yield func(JournalRecord, error) bool) {
		node, err := n.call(ctx, address)
		if err != nil {
			yield(JournalRecord{}, err)
			return
		}
		for record, err := range node.HandleHistory(ctx, request) {
			if !yield(record, err) {
				return
			}
		}
	}
}

func (n *testNet) probe(_ context.Context, address string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] == nil {
		return fmt.Errorf("probe %s: %w", address, syscall.ECONNREFUSED)
	}
	return nil
}

// testServer is a server that can be killed and started again on its disk.
type testServer struct {
	t        *testing.T
	net      *testNet
	dir      string
	log      *raft.InmemStore // survives a kill, as a disk does
	snaps    raft.SnapshotStore
	peers    PeerClient // nil: net
	template Config
	adjust   func(*Config) // after everything else; may be nil
	observer *testObserver
	stall    stall        // of the disk
	voteTime atomic.Int64 // nanoseconds of a write of term or vote

	node   *Node
	cancel context.CancelFunc
	ran    chan error

	mu  sync.Mutex
	led []uint64 // terms in which lead was called
}

type testObserver struct {
	mu      sync.Mutex
	indexes []uint64
	events  []fsm.Event
	beats   map[[2]uint64]int // answered heartbeats from, to
}

func (o *testObserver) Applied(index uint64, events []fsm.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.indexes = append(o.indexes, index)
	o.events = append(o.events, events...)
}

func (o *testObserver) Heartbeat(from, to uint64, answered bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if answered {
		o.beats[[2]uint64{from, to}]++
	}
}

func newTestServer(t *testing.T, network *testNet, dir string) *testServer {
	return &testServer{
		t:        t,
		net:      network,
		dir:      dir,
		log:      raft.NewInmemStore(),
		snaps:    raft.NewInmemSnapshotStore(),
		observer: &testObserver{beats: make(map[[2]uint64]int)},
	}
}

// open starts the server: alone when join is empty and it is new.
func (s *testServer) open(join ...string) error {
	s.t.Helper()
	dir, err := OpenDataDir(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	listener := s.net.listen()
	config := s.template
	config.DataDir = dir
	config.Stream = listener
	config.WatchListener, config.DialWatch = s.net.watches[listener.address], s.net.dialWatch
	config.Advertise = listener.address
	config.Bootstrap = len(join) == 0
	config.Join = join
	config.Peers = s.net
	if s.peers != nil {
		config.Peers = s.peers
	}
	config.Probe = s.net.probe
	config.Version = "test"
	config.Host = fsm.Host{MachineID: "machine", BootID: "boot"}
	config.Observer = s.observer
	if config.OpenStores == nil {
		config.OpenStores = func(string, bool, *slog.Logger) (*Stores, error) {
			return &Stores{Log: &stallingLog{s.log, &s.stall}, Stable: &slowStable{s.log, &s.voteTime}, Snapshots: s.snaps, Close: func() error { return nil }}, nil
		}
	}
	if s.adjust != nil {
		s.adjust(&config)
	}
	defer func() { // a test may end Open by a panic, as a kill would
		if r := recover(); r != nil {
			s.node = nil
			panic(errors.Join(fmt.Errorf("%v", r), listener.Close(), dir.Close()))
		}
	}()
	s.node, err = Open(context.Background(), config)
	if err != nil {
		return errors.Join(err, listener.Close(), dir.Close())
	}
	s.net.serve(s.node)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.ran = make(chan error, 1)
	go func() { s.ran <- s.node.Run(ctx, s.lead) }()
	return nil
}

func (s *testServer) start(join ...string) {
	s.t.Helper()
	if err := s.open(join...); err != nil {
		s.t.Fatal(err)
	}
}

func (s *testServer) lead(ctx context.Context, term uint64) error {
	s.mu.Lock()
	s.led = append(s.led, term)
	s.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (s *testServer) terms() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]uint64(nil), s.led...)
}

// kill ends the server without a word.
func (s *testServer) kill() {
	if s.node == nil {
		return
	}
	s.node.stream.halt(true) // who is dead does not vote for its heir
	s.net.cut(s.node.Address())
	if err := s.node.Close(); err != nil {
		s.t.Error(err)
	}
	s.cancel()
	<-s.ran
	s.node = nil
}

// testCluster is a number of servers; the first one bootstrapped.
type testCluster struct {
	t       *testing.T
	net     *testNet
	servers []*testServer // server i+1

	background sync.WaitGroup
}

func newTestCluster(t *testing.T, size int, change ...func(*Config)) *testCluster {
	t.Helper()
	c := &testCluster{t: t, net: newTestNet()}
	dir := t.TempDir() // it goes after the servers have ended
	t.Cleanup(c.close)
	for i := range size {
		s := newTestServer(t, c.net, filepath.Join(dir, fmt.Sprint("server-", i+1)))
		for _, f := range change {
			f(&s.template)
		}
		c.servers = append(c.servers, s)
		if i == 0 {
			s.start()
			continue
		}
		s.start(c.servers[0].node.Address())
		if s.node.ID() != uint64(i+1) {
			t.Fatalf("server %d was given id %d", i+1, s.node.ID())
		}
	}
	c.wait("all servers vote", func() bool { return c.leader() != nil && len(c.leader().Status().Voters) == size })
	return c
}

func (c *testCluster) close() {
	c.net.mu.Lock()
	clear(c.net.paused) // a paused server cannot be closed
	c.net.mu.Unlock()
	for _, s := range c.servers {
		s.kill()
	}
	c.background.Wait()
}

func (c *testCluster) wait(what string, done func() bool) {
	c.t.Helper()
	waitFor(c.t, what, 3*time.Minute, done)
}

// waitFor looks for a condition until it holds. In a synctest bubble the time is virtual.
func waitFor(t *testing.T, what string, limit time.Duration, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// leader returns the node that is in office, if there is exactly one.
func (c *testCluster) leader() (leader *Node) {
	for _, s := range c.servers {
		if s.node != nil && s.node.Status().Leading {
			if leader != nil {
				return nil
			}
			leader = s.node
		}
	}
	return leader
}

func (c *testCluster) leads(id uint64) bool {
	leader := c.leader()
	return leader != nil && leader.ID() == id
}

func (c *testCluster) up(ids ...uint64) bool {
	for _, s := range c.servers {
		if s.node == nil {
			continue
		}
		var up []uint64
		s.node.View(func(v fsm.View) {
			for _, row := range v.Servers() {
				if row.Up {
					up = append(up, row.ID)
				}
			}
		})
		if fmt.Sprint(up) != fmt.Sprint(ids) {
			return false
		}
	}
	return true
}

// same reports whether all running servers have applied the same history.
func (c *testCluster) same() bool {
	heads := make(map[fsm.Head]bool)
	digests := make(map[string]bool)
	for _, s := range c.servers {
		if s.node != nil {
			s.node.View(func(v fsm.View) {
				heads[v.Head()] = true
				digests[fmt.Sprint(v.Digest())] = true
			})
		}
	}
	return len(heads) == 1 && len(digests) == 1
}

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }
