package miner

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"raftmine/fsm/pow"
	"raftmine/miner/sha256d"
)

func TestMain(m *testing.M) {
	lowerPriorityInChild() // ends the process when it is that child
	goleak.VerifyTestMain(m)
}

var errGone = errors.New("connection reset")

// fakeDialer hands out what the test gives it, in order.
type fakeDialer struct {
	results chan dialResult

	mu      sync.Mutex
	dials   []time.Time
	context context.Context // of the last dial
}

type dialResult struct {
	conn Conn
	err  error
}

func newFakeDialer() *fakeDialer { return &fakeDialer{results: make(chan dialResult)} }

func (d *fakeDialer) Dial(ctx context.Context) (Conn, error) {
	d.mu.Lock()
	d.dials = append(d.dials, time.Now())
	d.context = ctx
	d.mu.Unlock()
	select {
	case r := <-d.results:
		return r.conn, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fakeConn is a stream in memory, and the leader's end of it.
type fakeConn struct {
	toMiner   chan Message
	fromMiner chan Message
	over      chan struct{}
	once      sync.Once
	err       error // what the miner's Receive returns at the end
}

func (c *fakeConn) Send(m Message) error {
	select {
	case <-c.over:
		return io.EOF
	default:
	}
	select {
	case c.fromMiner <- m:
		return nil
	case <-c.over:
		return io.EOF
	}
}

func (c *fakeConn) Receive() (Message, error) {
	select {
	case m := <-c.toMiner:
		return m, nil
	case <-c.over:
		return nil, c.err
	}
}

func (c *fakeConn) Close() error { c.fail(errors.New("closed by the miner")); return nil }

func (c *fakeConn) fail(err error) {
	c.once.Do(func() {
		c.err = err
		close(c.over)
	})
}

func (c *fakeConn) isOver() bool {
	select {
	case <-c.over:
		return true
	default:
		return false
	}
}

// rig is a miner that runs in a synctest bubble, and the leader it talks to.
type rig struct {
	t      *testing.T
	dialer *fakeDialer
	miner  *Miner
	log    *lockedBuffer
	stop   context.CancelFunc
	ended  chan error
}

func startRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, dialer: newFakeDialer(), log: new(lockedBuffer), ended: make(chan error, 1)}
	config := Config{
		Name: "m1", Dialer: r.dialer, Threads: 2, Version: "test",
		Logger: slog.New(slog.NewTextHandler(r.log, nil)),
	}
	if change != nil {
		change(&config)
	}
	m, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	r.miner = m
	ctx, cancel := context.WithCancel(t.Context())
	r.stop = cancel
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		r.ended <- m.Run(ctx)
	}()
	t.Cleanup(func() { // after a failure the bubble must be empty too
		cancel()
		<-gone
	})
	return r
}

// end stops the miner and wants Run to return nil.
func (r *rig) end() {
	r.t.Helper()
	r.stop()
	if err := r.wait(); err != nil {
		r.t.Errorf("Run = %v, want nil", err)
	}
}

func (r *rig) wait() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(time.Hour):
		r.t.Fatal("Run does not return")
		return nil
	}
}

// accept lets the miner connect.
func (r *rig) accept() *fakeConn {
	r.t.Helper()
	c := &fakeConn{toMiner: make(chan Message), fromMiner: make(chan Message, 4096), over: make(chan struct{})}
	r.answerDial(dialResult{conn: c})
	return c
}

func (r *rig) answerDial(result dialResult) {
	r.t.Helper()
	select {
	case r.dialer.results <- result:
	case <-time.After(time.Hour):
		r.t.Fatal("the miner does not dial")
	}
}

// connect lets the miner connect and exchanges the first heartbeat.
func (r *rig) connect() (*fakeConn, HeartbeatReply) {
	r.t.Helper()
	c := r.accept()
	return c, r.heartbeat(c)
}

func (r *rig) heartbeat(c *fakeConn) HeartbeatReply {
	r.t.Helper()
	r.tell(c, HeartbeatRequest{ServerID: 1, Term: 3})
	return expect[HeartbeatReply](r.t, c)
}

func (r *rig) tell(c *fakeConn, m Message) {
	r.t.Helper()
	select {
	case c.toMiner <- m:
	case <-c.over:
		r.t.Fatalf("the stream was over before %T", m)
	case <-time.After(time.Hour):
		r.t.Fatalf("the miner does not take %T", m)
	}
}

// expect returns the miner's next message, which must be a T.
func expect[T Message](t *testing.T, c *fakeConn) T {
	t.Helper()
	select {
	case m := <-c.fromMiner:
		message, ok := m.(T)
		if !ok {
			t.Fatalf("the miner sent %T %+v, want %T", m, m, message)
		}
		return message
	case <-time.After(time.Hour):
		t.Fatalf("the miner does not send %T", *new(T))
		panic("unreachable")
	}
}

// expectNothing wants the miner to have sent nothing. Every goroutine must be idle: call synctest.Wait before.
func expectNothing(t *testing.T, c *fakeConn) {
	t.Helper()
	select {
	case m := <-c.fromMiner:
		t.Fatalf("the miner sent %T %+v, want nothing", m, m)
	default:
	}
}

// Work that no nonce solves, and work that one in 256 does.
var (
	hardWork = pow.Work{Previous: pow.Sum([]byte("previous")), Timestamp: 1_790_000_000_000, Bits: pow.MaxBits}
	easyWork = pow.Work{Previous: pow.Sum([]byte("previous")), Timestamp: 1_790_000_000_000, Bits: 8}
)

// hardRange is a Process of three chunks of a thousand nonces without a solution.
func hardRange(grantID uint64) Process {
	first := 1 + 3000*(grantID-1)
	return Process{
		GrantID: grantID, JobID: 7, Work: hardWork, ChunkSize: 1000, Nonces: pow.Range{First: first, Last: first + 2999},
	}
}

// smallest is the receipt as the contract defines it, computed as plainly as possible.
func smallest(work pow.Work, r pow.Range) uint64 {
	best, bestDigest := r.First, work.Digest(r.First)
	for n := r.First; n < r.Last; {
		n++
		if d := work.Digest(n); d.Compare(bestDigest) < 0 {
			best, bestDigest = n, d
		}
	}
	return best
}

// checkNo wants a to answer for nonces of p.
func checkNo(t *testing.T, a AnswerNo, p Process, nonces pow.Range) {
	t.Helper()
	want := AnswerNo{
		GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonces: nonces, Receipt: smallest(p.Work, nonces),
	}
	if a != want {
		t.Errorf("got %+v, want %+v", a, want)
	}
}

// checkYes wants a to answer for the nonce of p's smallest digest, as a gate finds it.
func checkYes(t *testing.T, a AnswerYes, p Process) {
	t.Helper()
	want := AnswerYes{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonce: smallest(p.Work, p.Nonces)}
	if a != want {
		t.Errorf("got %+v, want %+v", a, want)
	}
}

func acknowledgement(answer Message, result string) Acknowledgement {
	switch a := answer.(type) {
	case AnswerNo:
		return Acknowledgement{GrantID: a.GrantID, Nonce: a.Nonces.Last, Result: result}
	case AnswerYes:
		return Acknowledgement{GrantID: a.GrantID, Nonce: a.Nonce, Solution: true, Result: result}
	}
	panic("not an answer")
}

// gate is a kernel whose every call waits for a token, tries a thousand nonces and reports the one of the smallest digest:
// it never ends early because of many hits, so that a test can count on how far a call gets. Closing tokens opens it for
// good.
type gate struct {
	tokens chan struct{}
	mu     sync.Mutex
	calls  []pow.Range // what was tried, in the order of the tokens
}

func newGate() *gate { return &gate{tokens: make(chan struct{})} }

func (g *gate) kernel() sha256d.Kernel {
	return sha256d.Kernel{Name: "gate", New: func() sha256d.Searcher { return g }}
}

// pass lets n calls through.
func (g *gate) pass(n int) {
	for range n {
		g.tokens <- struct{}{}
	}
}

// tried returns the nonces of all calls.
func (g *gate) tried() []pow.Range {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.calls)
}

func (g *gate) Search(job *sha256d.Job, nonces pow.Range, threshold uint32, hits []uint64) (int, uint64) {
	<-g.tokens
	nonces.Last = nonces.First + min(nonces.Last-nonces.First, 999)
	g.mu.Lock()
	g.calls = append(g.calls, nonces)
	g.mu.Unlock()
	hits[0] = smallest(job.Work, nonces)
	return 1, nonces.Len()
}

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
