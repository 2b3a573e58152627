package main

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"sync"
	"time"

	"raftmine/fsm/pow"
	"raftmine/miner"
	"raftmine/rpc"
)

// acknowledgePatience is how long a simulated miner waits for an acknowledgement before it looks for a leader again. Tuning.
const acknowledgePatience = 2 * time.Second

// acked is one answer that the cluster acknowledged as committed, now or before.
type acked struct {
	client    string
	solution  bool
	grant     uint64
	job       uint64
	timestamp uint64
	nonces    pow.Range // of a solution both ends are its nonce
	receipt   uint64    // of an answer without solution
	sent, at  time.Time
	term      uint64 // of the leader that acknowledged it
}

// ackBook records what was acknowledged to the simulated miners. It is safe for concurrent use.
type ackBook struct {
	mu      sync.Mutex
	acked   []acked
	late    int      // answers that came too late to count
	refused []string // answers called wrong, which none of them is
}

func (b *ackBook) add(a acked) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acked = append(b.acked, a)
}

// refuse notes what was held against a simulated miner.
func (b *ackBook) refuse(why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused = append(b.refused, why)
}

// all returns what was acknowledged so far, each client's in order.
func (b *ackBook) all() []acked {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.acked)
}

func (b *ackBook) wrong() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.refused)
}

type drillClientConfig struct {
	name  string
	chunk uint64        // nonces of an answer
	pace  time.Duration // between an acknowledgement and the next answer
	book  *ackBook
	seen  drillObserver // may be nil
	// sources say where servers are. For each there is a dialer; with apart a new one for each stream, which knows no other
	// servers than its source names.
	sources []func() []string
	apart   bool
}

// drillObserver is told what a simulated miner does, at once and from its own goroutine.
type drillObserver interface {
	leads(client string, term uint64)           // a new leader is about to be asked for work
	granted(client string, grant miner.Process) // each grant once
	answering(answer acked)                     // a new answer is about to be sent
	answered(answer acked, ack miner.Acknowledgement)
}

// drillClient is a simulated miner: it searches one chunk after the other at leisure, keeps each answer until it is
// acknowledged, and delivers it again to whoever leads next. One answer is on its way at a time.
//
// It has one goroutine for each dialer, which looks for a leader, one for each stream, which reads, and one that owns the
// rest. Of two streams the one of the higher term is used.
type drillClient struct {
	drillClientConfig
	instance [16]byte
	cancel   context.CancelFunc
	ended    sync.WaitGroup
	streams  chan *drillStream
	received chan drillReceived

	// Owned by run.
	stream  *drillStream // nil: no leader was heard
	held    []*drillGrant
	pending *drillAnswer // nil: nothing is on its way
	timer   *time.Timer  // of the next answer, or of patience with the pending one

	mu   sync.Mutex
	last acked // for those who wait for progress
}

// drillStream is a stream to a server that believes that it leads.
type drillStream struct {
	conn miner.Conn
	term uint64 // 0: it has not spoken yet
	over chan struct{}
}

type drillReceived struct {
	stream  *drillStream
	message miner.Message
	err     error
}

// drillGrant is a granted range, from next on not answered for.
type drillGrant struct {
	id, job uint64
	work    pow.Work
	next    uint64
	last    uint64
	dropped bool // by the leader, while an answer is on its way
}

type drillAnswer struct {
	grant   *drillGrant
	message miner.Message
	record  acked
}

func startDrillClient(config drillClientConfig) *drillClient {
	c := &drillClient{drillClientConfig: config,
		streams: make(chan *drillStream), received: make(chan drillReceived), timer: time.NewTimer(time.Hour)}
	_, _ = rand.Read(c.instance[:])
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	for _, source := range config.sources {
		c.ended.Go(func() { c.seek(ctx, source) })
	}
	c.ended.Go(func() { c.run(ctx) })
	return c
}

// stop ends the client. What it holds stays granted until its lease ends.
func (c *drillClient) stop() {
	c.cancel()
	c.ended.Wait()
}

// lastAcked returns the newest acknowledged answer.
func (c *drillClient) lastAcked() acked {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// seek opens one stream after the other.
func (c *drillClient) seek(ctx context.Context, source func() []string) {
	for ctx.Err() == nil {
		dialer, err := rpc.NewMinerDialer(rpc.MinerDialerConfig{Addresses: source})
		if err != nil {
			return // a source is all it needs
		}
		for again := true; again && ctx.Err() == nil; {
			again = c.open(ctx, dialer) && !c.apart
		}
		_ = dialer.Close() // its streams are over
	}
}

// open opens a stream and waits until it is over.
func (c *drillClient) open(ctx context.Context, dialer *rpc.MinerDialer) bool {
	conn, err := dialer.Dial(ctx)
	if err != nil {
		wait(ctx, 5*time.Millisecond)
		return false
	}
	s := &drillStream{conn: conn, over: make(chan struct{})}
	select {
	case c.streams <- s:
	case <-ctx.Done():
		conn.Close()
		return false
	}
	select {
	case <-s.over:
		wait(ctx, 5*time.Millisecond) // a leader that was may not know it yet
	case <-ctx.Done(): // run closes it
	}
	return true
}

// wait sleeps for d, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (c *drillClient) run(ctx context.Context) {
	open := make(map[*drillStream]bool)
	hangUp := func(s *drillStream) {
		if open[s] {
			delete(open, s)
			close(s.over)
			s.conn.Close()
		}
		if c.stream == s {
			c.stream = nil
		}
	}
	defer func() {
		for s := range open {
			hangUp(s)
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-c.streams:
			open[s] = true
			c.ended.Go(func() { c.read(ctx, s) })
		case r := <-c.received:
			switch {
			case !open[r.stream]:
			case errors.Is(r.err, miner.ErrRefused):
				c.book.refuse(c.name + ": " + r.err.Error())
				c.cancel()
			case r.err != nil || !c.receive(r.stream, r.message):
				hangUp(r.stream)
			default:
				for s := range open { // the newest leader is the one
					if c.stream != nil && s != c.stream && s.term != 0 && s.term <= c.stream.term {
						hangUp(s)
					}
				}
			}
		case <-c.timer.C:
			switch {
			case c.stream == nil:
			case c.pending != nil: // no answer: another leader may be known by now
				hangUp(c.stream)
			default:
				if !c.answer() {
					hangUp(c.stream)
				}
			}
		}
	}
}

func (c *drillClient) read(ctx context.Context, s *drillStream) {
	for {
		message, err := s.conn.Receive()
		select {
		case c.received <- drillReceived{s, message, err}:
		case <-s.over:
			return
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// receive acts on one message. False ends the stream.
func (c *drillClient) receive(s *drillStream, message miner.Message) bool {
	if request, ok := message.(miner.HeartbeatRequest); ok {
		return c.heartbeat(s, request)
	}
	if s != c.stream {
		return true // the leader before this one
	}
	switch m := message.(type) {
	case miner.Process:
		if !slices.ContainsFunc(c.held, func(g *drillGrant) bool { return g.id == m.GrantID }) {
			if c.seen != nil {
				c.seen.granted(c.name, m)
			}
			c.held = append(c.held, &drillGrant{id: m.GrantID, job: m.JobID, work: m.Work, next: m.Nonces.First, last: m.Nonces.Last})
		}
		if c.pending == nil {
			c.timer.Reset(c.pace)
		}
	case miner.Interrupt:
		c.held = slices.DeleteFunc(c.held, func(g *drillGrant) bool {
			if g.job != m.JobID || len(m.GrantIDs) > 0 && !slices.Contains(m.GrantIDs, g.id) {
				return false
			}
			g.dropped = true
			return c.pending == nil || c.pending.grant != g
		})
	case miner.Acknowledgement:
		c.acknowledge(s, m)
	}
	return true
}

// heartbeat answers. The first one of a newer leader makes its stream the one that is used.
func (c *drillClient) heartbeat(s *drillStream, request miner.HeartbeatRequest) bool {
	reply := miner.HeartbeatReply{Name: c.name, Instance: c.instance, Threads: 1, Kernel: "none", SoftwareVersion: version,
		HashRate: float64(c.chunk) / (c.pace + time.Millisecond).Seconds()}
	for _, g := range c.held {
		reply.Held = append(reply.Held, g.id)
	}
	slices.Sort(reply.Held)
	if s.term != 0 {
		return s.conn.Send(reply) == nil
	}
	s.term = request.Term
	if c.stream != nil && s.term <= c.stream.term {
		return false
	}
	c.stream = s
	if c.seen != nil {
		c.seen.leads(c.name, s.term)
	}
	wanted := 2
	reply.Wanted = &wanted
	if s.conn.Send(reply) != nil {
		return false
	}
	if c.pending == nil {
		c.timer.Reset(0)
		return true
	}
	c.pending.record.sent = time.Now()
	c.timer.Reset(acknowledgePatience)
	return s.conn.Send(c.pending.message) == nil
}

// answer searches the next chunk and answers for it. False ends the stream.
func (c *drillClient) answer() bool {
	if len(c.held) == 0 {
		return true // a Process sets the timer
	}
	g := c.held[0]
	nonces := pow.Range{First: g.next, Last: min(g.next+c.chunk-1, g.last)}
	best, solved := searchPlainly(g.work, nonces)
	a := &drillAnswer{grant: g, record: acked{client: c.name, grant: g.id, job: g.job, timestamp: g.work.Timestamp,
		nonces: nonces, receipt: best, sent: time.Now()}}
	a.message = miner.AnswerNo{GrantID: g.id, JobID: g.job, Timestamp: g.work.Timestamp, Nonces: nonces, Receipt: best}
	if solved {
		a.record.solution, a.record.nonces = true, pow.Range{First: best, Last: best}
		a.message = miner.AnswerYes{GrantID: g.id, JobID: g.job, Timestamp: g.work.Timestamp, Nonce: best}
	}
	c.pending = a
	if c.seen != nil {
		c.seen.answering(a.record)
	}
	c.timer.Reset(acknowledgePatience)
	return c.stream.conn.Send(a.message) == nil
}

// searchPlainly searches nonces as plainly as can be, and returns the one of the smallest digest and whether it is a solution.
func searchPlainly(work pow.Work, nonces pow.Range) (best uint64, solved bool) {
	var smallest pow.Hash
	for nonce := nonces.First; nonce <= nonces.Last; nonce++ {
		if digest, solves := work.Verify(nonce); best == 0 || digest.Compare(smallest) < 0 {
			best, smallest, solved = nonce, digest, solves
		}
	}
	return best, solved
}

// acknowledge takes the acknowledgement of the pending answer. Another one is of an answer that was delivered twice.
func (c *drillClient) acknowledge(s *drillStream, ack miner.Acknowledgement) {
	a := c.pending
	if a == nil || ack.GrantID != a.grant.id || ack.Solution != a.record.solution || ack.Nonce != a.record.nonces.Last {
		return
	}
	c.pending = nil
	if c.seen != nil {
		c.seen.answered(a.record, ack)
	}
	c.timer.Reset(c.pace)
	g := a.grant
	switch ack.Result {
	case miner.ResultCommitted, miner.ResultDuplicate:
		a.record.at, a.record.term = time.Now(), s.term
		c.book.add(a.record)
		c.mu.Lock()
		c.last = a.record
		c.mu.Unlock()
		g.next = a.record.nonces.Last + 1
		g.dropped = g.dropped || a.record.solution || g.next > g.last
	case miner.ResultWrong:
		c.book.refuse(c.name + ": " + ack.Message)
		g.dropped = true
	default:
		c.book.mu.Lock()
		c.book.late++
		c.book.mu.Unlock()
		g.dropped = true
	}
	if g.dropped {
		c.held = slices.DeleteFunc(c.held, func(held *drillGrant) bool { return held == g })
	}
}
