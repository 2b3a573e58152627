package webservice

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"raftmine/fsm/pow"
	"raftmine/raftnode/coordinator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testBits is a difficulty that a test solves in about a millisecond.
const testBits = 8

// openServer opens a server that the test's end closes.
func openServer(t *testing.T, config ServerConfig) *Server {
	t.Helper()
	server, err := OpenServer(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return server
}

// serve runs handler on a loopback port until the test ends and returns its base address.
func serve(t *testing.T, server *Server) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "http://" + listener.Addr().String()
}

func newClient(t *testing.T, base string) *Client {
	t.Helper()
	client, err := NewClient(base, ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// solve returns the first nonce from start whose proof holds.
func solve(block coordinator.Block, timestamp, start uint64) (nonce uint64, digest pow.Hash) {
	work := pow.Work{Previous: block.Previous, Timestamp: timestamp, Bits: block.Bits}
	for nonce := start; ; nonce++ {
		if digest, ok := work.Verify(nonce); ok {
			return nonce, digest
		}
	}
}

// unsolved returns a nonce whose proof does not hold.
func unsolved(block coordinator.Block, timestamp uint64) uint64 {
	work := pow.Work{Previous: block.Previous, Timestamp: timestamp, Bits: block.Bits}
	for nonce := uint64(1); ; nonce++ {
		if _, ok := work.Verify(nonce); !ok {
			return nonce
		}
	}
}

// mineBlock solves what the server asks for at the server's own difficulty and has it accepted.
func mineBlock(t *testing.T, server *Server, timestamp uint64) pow.Hash {
	t.Helper()
	block := serverBlock(server)
	nonce, digest := solve(block, timestamp, 1)
	v, err := server.judge(strconv.FormatUint(nonce, 10), strconv.FormatUint(timestamp, 10), "test")
	if err != nil || v != verdictSuccess {
		t.Fatalf("block %d: verdict %q, error %v", block.Height, v, err)
	}
	return digest
}

// serverBlock is what request.php would say, without asking.
func serverBlock(server *Server) coordinator.Block {
	server.mu.Lock()
	defer server.mu.Unlock()
	return coordinator.Block{Previous: server.tip.hash, Bits: server.tip.bits, Height: server.tip.height + 1}
}

// pipes is a listener and its dialler on in-memory connections, for virtual time.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "pipe"} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pipeClient is a client whose connections go through p.
func pipeClient(t *testing.T, p *pipes) *Client {
	t.Helper()
	client := newClient(t, "http://pipes.test")
	client.http.Transport.(*http.Transport).DialContext = p.dial
	return client
}

// testClock is a clock that stands still until it is moved.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *testClock { return &testClock{now: time.Unix(1_790_000_000, 0)} }

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
