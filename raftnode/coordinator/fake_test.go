package coordinator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// failure is what a fake cluster does to a Propose.
type failure int

const (
	commit      failure = iota
	notLeader           // nothing is proposed
	unknownLost         // outcome unknown, and nothing is committed
	unknownDone         // outcome unknown, but it is committed
	unknownLate         // outcome unknown, and it is committed three seconds later
)

// cluster is a Proposer around a real state machine: commits are applied at once, one entry for each Propose.
type cluster struct {
	mu      sync.RWMutex
	state   *fsm.State
	index   uint64
	term    uint64
	applied []applied
	trace   []string // commands, VerifyLeader and requests to the web service, in order

	// Set by tests, before or while nothing runs.
	latency time.Duration
	fail    func(commands []fsm.Command) failure // called with mu held
	verify  error
}

type applied struct {
	entry   uint64
	command fsm.Command
	outcome fsm.Outcome
}

func newCluster(t testing.TB) *cluster {
	cl := &cluster{state: fsm.New(), term: 1}
	host := fsm.Host{MachineID: "machine", BootID: "boot"}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	commands := []fsm.Command{fsm.OpenCluster{ClusterID: "test"}}
	for id := range 3 {
		address := fmt.Sprintf("127.0.0.1:700%d", id+1)
		commands = append(commands,
			fsm.AddServer{RequestID: fsm.ID{byte(id + 1)}, Address: address, DataDir: "/data", Host: host},
			fsm.ServerUp{ServerID: uint64(id + 1)})
	}
	for _, outcome := range cl.apply(commands) {
		if outcome.Code != fsm.Done {
			t.Fatalf("set up the state: %+v", outcome)
		}
	}
	return cl
}

// apply commits one entry. Caller holds mu.
func (cl *cluster) apply(commands []fsm.Command) []fsm.Outcome {
	data, err := fsm.EncodeEntry(fsm.Entry{
		LeaderID: 1, UnixMilli: uint64(time.Now().UnixMilli()), Version: "test", Commands: commands,
	})
	if err != nil {
		panic(err)
	}
	cl.index++
	result, err := cl.state.Apply(cl.index, cl.term, data)
	if err != nil {
		panic(err)
	}
	for i, command := range commands {
		cl.applied = append(cl.applied, applied{cl.index, command, result.Outcomes[i]})
		cl.trace = append(cl.trace, strings.TrimPrefix(fmt.Sprintf("%T", command), "fsm."))
	}
	return result.Outcomes
}

func (cl *cluster) Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Outcome, error) {
	if cl.latency > 0 {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
		case <-time.After(cl.latency):
		}
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if ctx.Err() != nil {
		return nil, ErrNotLeader
	}
	if cl.fail != nil {
		switch cl.fail(commands) {
		case notLeader:
			return nil, ErrNotLeader
		case unknownLost:
			return nil, ErrOutcomeUnknown
		case unknownDone:
			cl.apply(commands)
			return nil, ErrOutcomeUnknown
		case unknownLate:
			time.AfterFunc(3*time.Second, func() {
				cl.mu.Lock()
				defer cl.mu.Unlock()
				cl.apply(commands)
			})
			return nil, ErrOutcomeUnknown
		}
	}
	return cl.apply(commands), nil
}

func (cl *cluster) View(read func(fsm.View)) {
	cl.mu.RLock()
	defer cl.mu.RUnlock()
	read(cl.state)
}

func (cl *cluster) VerifyLeader(context.Context) error {
	cl.note("VerifyLeader")
	return cl.verify
}

func (cl *cluster) note(what string) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.trace = append(cl.trace, what)
}

// must proposes as another part of the leader would.
func (cl *cluster) must(t testing.TB, commands ...fsm.Command) []fsm.Outcome {
	t.Helper()
	cl.mu.Lock()
	defer cl.mu.Unlock()
	outcomes := cl.apply(commands)
	for i, outcome := range outcomes {
		if outcome.Code != fsm.Done {
			t.Fatalf("%+v came to %+v", commands[i], outcome)
		}
	}
	return outcomes
}

func (cl *cluster) job() fsm.Job {
	cl.mu.RLock()
	defer cl.mu.RUnlock()
	job, _ := cl.state.Job()
	return job
}

func (cl *cluster) counts() fsm.Counts {
	cl.mu.RLock()
	defer cl.mu.RUnlock()
	return cl.state.Counts()
}

func (cl *cluster) blocks() []fsm.Block {
	cl.mu.RLock()
	defer cl.mu.RUnlock()
	return cl.state.Blocks(0, 0)
}

func (cl *cluster) miner(name string) fsm.Miner {
	cl.mu.RLock()
	defer cl.mu.RUnlock()
	m, _ := cl.state.Miner(name)
	return m
}

func (cl *cluster) history() []applied {
	cl.mu.RLock()
	defer cl.mu.RUnlock()
	return slices.Clone(cl.applied)
}

// traced returns what happened since the last call, and forgets it.
func (cl *cluster) traced() []string {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	trace := cl.trace
	cl.trace = nil
	return trace
}

// service is a BlockSource that keeps a chain.
type service struct {
	cl *cluster // for its trace

	mu       sync.Mutex
	block    Block
	delay    time.Duration
	down     error
	submit   []func(accept func() Reply) (Reply, error) // scripted answers; then it behaves
	requests int
	accepted []pow.Hash
}

var errDown = errors.New("connection refused")

func (sv *service) Address() string { return "http://127.0.0.1:9" }

func (sv *service) Block(ctx context.Context) (Block, error) {
	sv.cl.note("Block")
	if err := sv.wait(ctx); err != nil {
		return Block{}, err
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.requests++
	return sv.block, sv.down
}

func (sv *service) wait(ctx context.Context) error {
	sv.mu.Lock()
	delay := sv.delay
	sv.mu.Unlock()
	if delay == 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(delay):
		return nil
	}
}

func (sv *service) Submit(ctx context.Context, nonce, timestamp uint64) (Reply, error) {
	sv.cl.note("Submit")
	if err := sv.wait(ctx); err != nil {
		return Reply{}, err
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	accept := func() Reply {
		work := pow.Work{Previous: sv.block.Previous, Timestamp: timestamp, Bits: sv.block.Bits}
		hash, valid := work.Verify(nonce)
		if !valid {
			return Reply{Detail: "wrong"}
		}
		sv.block.Previous = hash
		if sv.block.Height > 0 {
			sv.block.Height++
		}
		sv.accepted = append(sv.accepted, hash)
		return Reply{Accepted: true, Detail: "success"}
	}
	if len(sv.submit) > 0 {
		next := sv.submit[0]
		sv.submit = sv.submit[1:]
		return next(accept)
	}
	if sv.down != nil {
		return Reply{}, sv.down
	}
	return accept(), nil
}

func (sv *service) set(change func(*service)) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	change(sv)
}

// observer records what watchers are told.
type observer struct {
	mu     sync.Mutex
	events []string
}

func (o *observer) add(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, fmt.Sprintf(format, args...))
}

func (o *observer) MinerConnected(name string)         { o.add("connected %s", name) }
func (o *observer) MinerDisconnected(name, why string) { o.add("disconnected %s: %s", name, why) }
func (o *observer) MinerRefused(name, why string)      { o.add("refused %s: %s", name, why) }
func (o *observer) Heartbeat(name string, answered bool) {
	o.add("heartbeat %s %v", name, answered)
}

func (o *observer) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	events := o.events
	o.events = nil
	return events
}

// rig is a coordinator over a cluster and a service, in a synctest bubble.
type rig struct {
	t        *testing.T
	cl       *cluster
	service  *service
	observer *observer
	cfg      Config
	logs     *logBuffer

	c      *Coordinator
	cancel context.CancelFunc
	done   chan error
}

// hard is a difficulty that no test's range has a solution for.
const hard = 200

// newRig makes a rig with ten chunks of 100 nonces, one chunk a grant, and starts term 1. change may be nil.
func newRig(t *testing.T, change func(*rig)) *rig {
	t.Helper()
	cl := newCluster(t)
	r := &rig{t: t, cl: cl, observer: &observer{}, logs: &logBuffer{}}
	r.service = &service{cl: cl, block: Block{Previous: pow.Sum([]byte("genesis")), Bits: hard}}
	r.cfg = Config{
		Proposer:       cl,
		Source:         r.service,
		Observer:       r.observer,
		Logger:         slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		ServerID:       1,
		ClusterID:      "test",
		Address:        "127.0.0.1:7001",
		Nonces:         pow.Range{First: 1, Last: 1000},
		ChunkSize:      100,
		MaxGrantChunks: 1,
	}
	if change != nil {
		change(r)
	}
	r.start()
	t.Cleanup(func() {
		if r.cancel != nil {
			r.stop()
		}
		cl.mu.RLock()
		defer cl.mu.RUnlock()
		if err := cl.state.Check(); err != nil {
			t.Errorf("state is broken: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", r.logs)
		}
	})
	return r
}

// start begins the next term.
func (r *rig) start() {
	r.t.Helper()
	r.cl.mu.Lock()
	r.cl.term++
	r.cfg.Term = r.cl.term
	r.cl.apply([]fsm.Command{fsm.TakeOffice{ServerID: 1}})
	r.cl.mu.Unlock()
	c, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.c, r.cancel, r.done = c, cancel, make(chan error, 1)
	done := r.done
	go func() { done <- c.Run(ctx) }()
	synctest.Wait()
}

// stop ends the term and waits for it.
func (r *rig) stop() {
	r.cancel()
	if err := <-r.done; err != nil {
		r.t.Errorf("Run: %v", err)
	}
	r.cancel = nil
}

// testMiner is a miner that does what the test says.
type testMiner struct {
	r        *rig
	name     string
	instance fsm.ID
	s        *Session

	held       []Process // as a real miner would hold them
	received   []Message // all but heartbeats
	acks       []Acknowledgement
	interrupts []Interrupt
	beats      []HeartbeatRequest
	over       bool // Outgoing is closed
}

// miner connects a miner that wants so many ranges.
func (r *rig) miner(name string, wanted int) *testMiner {
	r.t.Helper()
	m := &testMiner{r: r, name: name, instance: fsm.ID([]byte(fmt.Sprintf("%-16.16s", name)))}
	if err := m.connect(wanted); err != nil {
		r.t.Fatalf("connect %s: %v", name, err)
	}
	return m
}

func (m *testMiner) heldIDs() (ids []uint64) {
	for _, p := range m.held {
		ids = append(ids, p.GrantID)
	}
	return ids
}

func (m *testMiner) hello(wanted int) HeartbeatReply {
	return HeartbeatReply{Name: m.name, Instance: m.instance, Threads: 1, Kernel: "test", Held: m.heldIDs(), Wanted: &wanted}
}

// connect opens a stream and introduces the miner.
func (m *testMiner) connect(wanted int) error {
	m.r.t.Helper()
	return m.connectAs(m.hello(wanted))
}

func (m *testMiner) connectAs(reply HeartbeatReply) error {
	m.r.t.Helper()
	s, err := m.r.c.Open()
	if err != nil {
		return err
	}
	m.s, m.over = s, false
	first := <-s.Outgoing()
	if _, ok := first.(HeartbeatRequest); !ok {
		m.r.t.Fatalf("first message is %T, want HeartbeatRequest", first)
	}
	err = s.Receive(m.r.t.Context(), reply)
	m.pump()
	return err
}

// pump reads what has arrived, as a real miner takes it.
func (m *testMiner) pump() {
	synctest.Wait()
	for {
		select {
		case message, ok := <-m.s.Outgoing():
			if !ok {
				m.over = true
				return
			}
			m.take(message)
		default:
			return
		}
	}
}

func (m *testMiner) take(message Message) {
	switch message := message.(type) {
	case HeartbeatRequest:
		m.beats = append(m.beats, message)
		return
	case Process:
		if !slices.ContainsFunc(m.held, func(p Process) bool { return p.GrantID == message.GrantID }) {
			m.held = append(m.held, message)
		}
	case Interrupt:
		m.interrupts = append(m.interrupts, message)
		m.held = slices.DeleteFunc(m.held, func(p Process) bool {
			if len(message.GrantIDs) > 0 {
				return slices.Contains(message.GrantIDs, p.GrantID)
			}
			return p.JobID == message.JobID
		})
	case Acknowledgement:
		m.acks = append(m.acks, message)
	}
	m.received = append(m.received, message)
}

// answer answers heartbeats until d has passed, once a second.
func (m *testMiner) answerFor(d time.Duration) {
	m.r.t.Helper()
	stayFor(d, m)
}

// stayFor lets d pass while the miners answer heartbeats.
func stayFor(d time.Duration, miners ...*testMiner) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(time.Second, time.Until(end)))
		for _, m := range miners {
			m.pump()
			for range m.beats {
				if !m.over {
					_ = m.s.Receive(m.r.t.Context(), HeartbeatReply{Name: m.name, Instance: m.instance, Threads: 1})
				}
			}
			m.beats = nil
			m.pump()
		}
	}
}

// lastAck returns the newest acknowledgement.
func (m *testMiner) lastAck() Acknowledgement {
	m.r.t.Helper()
	if len(m.acks) == 0 {
		m.r.t.Fatalf("%s has no acknowledgement", m.name)
	}
	return m.acks[len(m.acks)-1]
}

// no answers that p holds no solution.
func (m *testMiner) no(p Process) error {
	m.held = slices.DeleteFunc(m.held, func(h Process) bool { return h.GrantID == p.GrantID })
	err := m.s.Receive(m.r.t.Context(), honest(p))
	m.pump()
	return err
}

func (m *testMiner) yes(p Process, nonce uint64) error {
	m.held = slices.DeleteFunc(m.held, func(h Process) bool { return h.GrantID == p.GrantID })
	err := m.s.Receive(m.r.t.Context(), AnswerYes{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonce: nonce})
	m.pump()
	return err
}

// honest is the AnswerNo of a miner that searched p.
func honest(p Process) AnswerNo {
	best, _ := search(p)
	return AnswerNo{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonces: p.Nonces, Receipt: best}
}

// search returns the nonce of the smallest digest, and whether it is a solution.
func search(p Process) (best uint64, solution bool) {
	var smallest pow.Hash
	for nonce := p.Nonces.First; nonce <= p.Nonces.Last; nonce++ {
		if digest := p.Work.Digest(nonce); best == 0 || digest.Compare(smallest) < 0 {
			best, smallest = nonce, digest
		}
	}
	return best, smallest.LeadingZeroBits() >= p.Work.Bits
}

func (m *testMiner) process() Process {
	m.r.t.Helper()
	if len(m.held) == 0 {
		m.r.t.Fatalf("%s holds nothing", m.name)
	}
	return m.held[0]
}

// logBuffer keeps log lines for a failing test.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(line)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *logBuffer) count(text string) int { return strings.Count(b.String(), text) }
