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
	late    [][]fsm.Command // will be committed; at the latest before the next term begins
	queue   chan struct{}   // closed when the last Propose with latency is done
	trace   []string        // commands, VerifyLeader and requests to the web service, in order

	// Set by tests, before or while nothing runs.
	forgetful bool // no history, no trace
	latency   time.Duration
	fail      func(commands []fsm.Command) failure // called with mu held
	verify    error
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
	if cl.forgetful {
		return result.Outcomes
	}
	for i, command := range commands {
		cl.applied = append(cl.applied, applied{cl.index, command, result.Outcomes[i]})
		cl.trace = append(cl.trace, strings.TrimPrefix(fmt.Sprintf("%T", command), "fsm."))
	}
	return result.Outcomes
}

func (cl *cluster) Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Outcome, error) {
	if cl.latency > 0 {
		cl.mu.Lock()
		before, committed := cl.queue, make(chan struct{})
		cl.queue = committed
		cl.mu.Unlock()
		defer close(committed)
		<-time.After(cl.latency)
		if before != nil {
			<-before // in the order of the calls
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
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
			cl.late = append(cl.late, commands)
			time.AfterFunc(3*time.Second, func() {
				cl.mu.Lock()
				defer cl.mu.Unlock()
				if len(cl.late) > 0 {
					cl.apply(cl.late[0])
					cl.late = cl.late[1:]
				}
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
	if !cl.forgetful {
		cl.trace = append(cl.trace, what)
	}
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
	behave   func(accept func() Reply) (Reply, error)   // then what it does, if set
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
	if sv.behave != nil {
		return sv.behave(accept)
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

// start begins the next term and waits until nothing moves.
func (r *rig) start() {
	r.t.Helper()
	r.begin()
	synctest.Wait()
}

func (r *rig) begin() {
	r.t.Helper()
	r.cl.mu.Lock()
	for _, commands := range r.cl.late {
		r.cl.apply(commands)
	}
	r.cl.late = nil
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
}

// stop ends the term and waits for it.
func (r *rig) stop() {
	r.cancel()
	if err := <-r.done; err != nil {
		r.t.Errorf("Run: %v", err)
	}
	r.cancel = nil
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
