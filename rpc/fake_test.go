package rpc

import (
	"context"
	"iter"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"raftmine/fsm"
	"raftmine/fsm/pow"
	"raftmine/raftnode"
	"raftmine/raftnode/coordinator"
)

func TestMain(m *testing.M) {
	if address := os.Getenv(benchMinersAt); address != "" {
		benchMiners(address)
		return
	}
	goleak.VerifyTestMain(m)
}

// patience bounds waiting for what must happen; a test that needs it fails.
const patience = 10 * time.Second

// testContext ends with the test, or when patience does.
func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// fakeNode is one server whose log is applied by the test, to a real state.
type fakeNode struct {
	hub *Hub

	mu       sync.Mutex
	state    *fsm.State
	index    uint64
	status   raftnode.Status
	err      error // what the Handle methods return
	beats    []raftnode.HeartbeatRequest
	joins    []raftnode.JoinRequest
	leaves   []raftnode.LeaveRequest
	history  func(context.Context, raftnode.HistoryRequest, func(raftnode.JournalRecord, error) bool)
	reasons  []string
	removed  []uint64
	panicked bool // Status panics
}

func newFakeNode(id uint64) *fakeNode {
	return &fakeNode{
		hub: NewHub(), state: fsm.New(),
		status: raftnode.Status{ServerID: id, LeaderID: 1, LeaderAddress: "127.0.0.1:7001", Term: 3, Voters: []uint64{1}, VoterAddresses: []string{"127.0.0.1:7001"}},
	}
}

// apply commits commands and tells the hub, unless silently: then they came inside a snapshot.
func (n *fakeNode) apply(t testing.TB, silently bool, commands ...fsm.Command) {
	t.Helper()
	data, err := fsm.EncodeEntry(fsm.Entry{LeaderID: 1, UnixMilli: 1_790_000_000_000, Version: "test", Commands: commands})
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.index++
	index := n.index
	result, err := n.state.Apply(index, 3, data)
	n.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	for i, outcome := range result.Outcomes {
		if outcome.Code != fsm.Done {
			t.Fatalf("%T: %+v", commands[i], outcome)
		}
	}
	if !silently {
		n.hub.Applied(index, result.Events)
	}
}

// open makes the node's state one with two servers, a leader and nothing else.
func (n *fakeNode) open(t testing.TB) {
	t.Helper()
	n.apply(t, false,
		fsm.OpenCluster{ClusterID: "c"},
		fsm.TakeOffice{ServerID: 1},
		fsm.AddServer{RequestID: fsm.ID{1}, Address: "127.0.0.1:7001", DataDir: "/data/1"},
		fsm.AddServer{RequestID: fsm.ID{2}, Address: "127.0.0.1:7002", DataDir: "/data/2"},
		fsm.ServerUp{ServerID: 1},
	)
}

// block settles the block at height, in one entry.
func (n *fakeNode) block(t testing.TB, height uint64, silently bool) {
	t.Helper()
	job := height
	n.apply(t, silently,
		fsm.OpenJob{
			Height: height, Previous: pow.Hash{byte(height)}, Timestamp: 1_790_000_000_000 + height,
			Nonces: pow.Range{First: 1, Last: 1000}, ChunkSize: 100,
		},
		fsm.GrantWork{JobID: job, Miner: "m", Instance: fsm.ID{9}, RequestID: height, Chunks: 1},
		fsm.Solve{JobID: job, GrantID: height, Miner: "m", Timestamp: 1_790_000_000_000 + height, Nonce: 7},
		fsm.Submitting{JobID: job},
		fsm.Submitted{JobID: job, Verdict: fsm.VerdictSuccess, Detail: "success"},
	)
}

func (n *fakeNode) HandleHeartbeat(request raftnode.HeartbeatRequest) (raftnode.ServerReport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.beats = append(n.beats, request)
	return testReport, n.err
}

func (n *fakeNode) HandleJoin(_ context.Context, request raftnode.JoinRequest) (raftnode.JoinReply, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.joins = append(n.joins, request)
	return testJoinReply, n.err
}

func (n *fakeNode) HandleLeave(_ context.Context, request raftnode.LeaveRequest) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leaves = append(n.leaves, request)
	return n.err
}

func (n *fakeNode) HandleHistory(
	ctx context.Context, request raftnode.HistoryRequest,
) iter.Seq2[raftnode.JournalRecord, error] {
	return func(yield func(raftnode.JournalRecord, error) bool) { n.history(ctx, request, yield) }
}

func (n *fakeNode) StopCluster(_ context.Context, reason string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reasons = append(n.reasons, reason)
	return n.err
}

func (n *fakeNode) RemoveServer(_ context.Context, id uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.removed = append(n.removed, id)
	return n.err
}

func (n *fakeNode) TransferLeadership(_ context.Context, to uint64) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if to == 0 {
		to = 2
	}
	return to, n.err
}

func (n *fakeNode) View(read func(fsm.View)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	read(n.state)
}

func (n *fakeNode) Status() raftnode.Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.panicked {
		panic("status of nothing")
	}
	return n.status
}

func (n *fakeNode) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = err
}

// calls counts what reached the node.
func (n *fakeNode) calls() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.beats) + len(n.joins) + len(n.leaves) + len(n.reasons)
}

// fakeLeader opens sessions that say hello, record what they receive and acknowledge answers.
type fakeLeader struct {
	address string
	servers []string
	refuse  error                                         // of Open
	answer  func(*fakeSession, coordinator.Message) error // nil: acknowledge

	mu       sync.Mutex
	sessions []*fakeSession
	status   coordinator.Status
}

type fakeSession struct {
	leader   *fakeLeader
	outgoing chan coordinator.Message
	done     chan struct{}

	mu       sync.Mutex
	received []coordinator.Message
	err      error
	closed   bool
}

func (l *fakeLeader) Open() (Session, error) {
	if l.refuse != nil {
		return nil, l.refuse
	}
	s := &fakeSession{leader: l, outgoing: make(chan coordinator.Message, 64), done: make(chan struct{})}
	s.outgoing <- coordinator.HeartbeatRequest{
		ClusterID: "c", ServerID: 1, Address: l.address, Term: 3, SentUnixMilli: 1_790_000_000_000,
		ServerAddresses: l.servers,
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions = append(l.sessions, s)
	return s, nil
}

func (l *fakeLeader) Status() coordinator.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

func (l *fakeLeader) opened() []*fakeSession {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*fakeSession(nil), l.sessions...)
}

// received counts messages over all sessions.
func (l *fakeLeader) received() int {
	n := 0
	for _, s := range l.opened() {
		s.mu.Lock()
		n += len(s.received)
		s.mu.Unlock()
	}
	return n
}

func (s *fakeSession) Outgoing() <-chan coordinator.Message { return s.outgoing }

func (s *fakeSession) Receive(_ context.Context, message coordinator.Message) error {
	s.mu.Lock()
	s.received = append(s.received, message)
	s.mu.Unlock()
	if s.leader.answer != nil {
		return s.leader.answer(s, message)
	}
	if m, ok := message.(coordinator.AnswerYes); ok {
		s.reply(coordinator.Acknowledgement{
			GrantID: m.GrantID, Solution: true, Nonce: m.Nonce, Result: coordinator.Committed,
		})
	}
	return nil
}

func (s *fakeSession) reply(message coordinator.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.outgoing <- message
	}
}

func (s *fakeSession) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed, s.err = true, err
		close(s.outgoing)
		close(s.done)
	}
}

func (s *fakeSession) Done() <-chan struct{} { return s.done }

func (s *fakeSession) Close() { s.end(coordinator.ErrDisconnected) }

func (s *fakeSession) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *fakeSession) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// start serves node on loopback until the test ends. It returns the server and its address.
func start(t testing.TB, node *fakeNode, change ...func(*Config)) (*Server, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, node, listener, change...), listener.Addr().String()
}

func serve(t testing.TB, node *fakeNode, listener net.Listener, change ...func(*Config)) *Server {
	t.Helper()
	config := Config{Node: node, Hub: node.hub, Version: "test"}
	for _, f := range change {
		f(&config)
	}
	server, err := NewServer(config)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		server.Stop(ctx)
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return server
}

// dialPlain is any gRPC client: it knows nothing of raftmine.
func dialPlain(t testing.TB, target string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline.C:
			t.Fatalf("%s: not within %v", what, patience)
		case <-tick.C:
		}
	}
}

// closedAddress returns an address of this host that nothing listens at.
func closedAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	return listener.Addr().String()
}
