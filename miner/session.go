package miner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"raftmine/miner/sha256d"
)

// What ends a stream from this side.
var (
	errSilent   = errors.New("no heartbeat from the leader")
	errProtocol = errors.New("the leader's message makes no sense")
)

// Tuning.
const (
	firstPause = 50 * time.Millisecond // before dialling again; it doubles
	maxPause   = 2 * time.Second
	// farewell is how long a leaving miner that has all its acknowledgements lets the leader end the stream.
	farewell = 250 * time.Millisecond
	// maxHeld is how many ranges a leader may make the miner hold, whatever it asked for: some more than MaxRanges,
	// because an interrupt and new work may cross.
	maxHeld = 4 * MaxRanges
	// maxOutbox is how many messages may wait to be sent: every answer, and some heartbeats.
	maxOutbox = maxHeld + 16
)

// session is what Run's goroutine owns: what is held, and the stream to the leader when there is one.
type session struct {
	miner  *Miner
	config *Config
	log    *slog.Logger
	search *search

	held []*holding   // oldest first
	job  *sha256d.Job // of the newest range; ranges of the same work share it

	dialing context.CancelFunc // nil: no dial under way
	dialed  chan dialed        // has room for one
	redial  *time.Timer
	pause   *backoff.ExponentialBackOff
	problem string // the last one that was reported; empty since a leader took this miner
	silence *time.Timer
	link    *link // nil: not connected

	leaving  bool
	deadline *time.Timer    // of leaving
	running  sync.WaitGroup // goroutines of dials and links
}

// holding is one grant, searched or answered.
type holding struct {
	grant  *grant
	answer Message // AnswerNo or AnswerYes; nil while it is searched
	nonce  uint64  // that the acknowledgement names
}

func newSession(m *Miner) *session {
	s := &session{
		miner: m, config: &m.config, search: m.search,
		log:      m.config.Logger.With("miner", m.config.Name),
		dialed:   make(chan dialed, 1),
		redial:   newStoppedTimer(),
		silence:  newStoppedTimer(),
		deadline: newStoppedTimer(),
		pause: &backoff.ExponentialBackOff{
			InitialInterval: firstPause, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: maxPause,
		},
	}
	s.pause.Reset()
	return s
}

func newStoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// run is the loop. It ends when the miner has left, or was refused.
func (s *session) run(ctx context.Context) error {
	measure := time.NewTicker(s.config.HashRateWindow / 10)
	defer measure.Stop()
	done := ctx.Done()
	s.dial(ctx)
	for !s.hasLeft() {
		var in <-chan received
		var out chan<- Message
		var next Message
		if s.link != nil {
			in = s.link.in
			if len(s.link.outbox) > 0 {
				out, next = s.link.out, s.link.outbox[0]
			}
		}
		var err error
		select {
		case <-done:
			done = nil
			err = s.leave()
		case <-s.deadline.C:
			s.hangUp()
		case result := <-s.dialed:
			err = s.connected(result)
		case <-s.redial.C:
			s.dial(ctx)
		case r := <-in:
			if err = r.err; err == nil {
				err = s.receive(r.message)
			}
		case out <- next:
			s.link.outbox = s.link.outbox[1:]
		case <-s.search.settled:
			err = s.collect()
		case <-s.silence.C:
			err = fmt.Errorf("%w for %s", errSilent, s.config.HeartbeatTimeout)
		case <-measure.C:
			s.miner.measure()
		}
		if err != nil {
			if err := s.lost(err); err != nil {
				return err
			}
		}
		s.publish()
	}
	if len(s.held) > 0 {
		s.log.Warn("left before the leader acknowledged every answer", "answers", len(s.held))
	}
	return nil
}

// publish makes what is so now visible in Stats.
func (s *session) publish() {
	unacknowledged := 0
	for _, h := range s.held {
		if h.answer != nil {
			unacknowledged++
		}
	}
	s.miner.publish(s.link != nil && s.link.greeted, len(s.held), unacknowledged)
}

// end frees what run used. There is no stream any more: run ends after it hung up.
func (s *session) end() {
	s.search.close()
	if s.dialing != nil {
		s.dialing()
		if result := <-s.dialed; result.conn != nil {
			result.conn.Close()
		}
	}
	s.running.Wait()
	s.redial.Stop()
	s.silence.Stop()
	s.deadline.Stop()
	s.publish()
}

// dial starts looking for the leader. The dial's context is the stream's too, so it does not end with ctx.
func (s *session) dial(ctx context.Context) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.dialing = cancel
	s.running.Go(func() {
		conn, err := s.config.Dialer.Dial(ctx)
		s.dialed <- dialed{conn, cancel, err}
	})
}

// connected takes a dial's result.
func (s *session) connected(result dialed) error {
	s.dialing = nil
	if result.err != nil {
		result.cancel()
		return fmt.Errorf("find the leader: %w", result.err)
	}
	l := &link{
		conn: result.conn, cancel: result.cancel,
		in: make(chan received), out: make(chan Message), over: make(chan struct{}),
	}
	s.running.Go(l.receive)
	s.running.Go(l.send)
	s.link = l
	s.silence.Reset(s.config.HeartbeatTimeout)
	return nil
}

// lost gives the stream up, if there is one, and sees to it that the leader is looked for again. It returns an error when
// there is no point in that.
func (s *session) lost(err error) error {
	what := "no leader"
	if s.link != nil && s.link.greeted {
		what = "stream to the leader ended"
	}
	s.hangUp()
	if s.leaving {
		s.log.Debug("the stream ended while leaving", "error", err)
		return nil
	}
	if errors.Is(err, ErrRefused) {
		return fmt.Errorf("miner %s: %w", s.config.Name, err)
	}
	pause := min(s.pause.NextBackOff(), maxPause)
	level := slog.LevelWarn
	if err.Error() == s.problem {
		level = slog.LevelDebug
	}
	s.problem = err.Error()
	s.log.Log(context.Background(), level, what, "error", err, "ranges_held", len(s.held), "retry_in", pause)
	s.redial.Reset(pause)
	return nil
}

// hangUp ends the stream, if there is one.
func (s *session) hangUp() {
	if s.link == nil {
		return
	}
	close(s.link.over)
	s.link.conn.Close()
	s.link.cancel()
	s.link = nil
	s.silence.Stop()
}

// receive acts on one message of the leader. An error ends the stream.
func (s *session) receive(message Message) error {
	if s.link.greeted { // the leader's second message comes after it has heard, and taken, the name
		s.pause.Reset()
		s.problem = ""
	}
	switch m := message.(type) {
	case HeartbeatRequest:
		return s.heartbeat(m)
	case Process:
		return s.process(m)
	case Interrupt:
		s.interrupt(m)
		return nil
	case Acknowledgement:
		s.acknowledge(m)
		return nil
	}
	return fmt.Errorf("%w: %T is not for a miner", errProtocol, message)
}

// heartbeat answers a HeartbeatRequest. After the first one on a stream all answers that are kept are delivered again.
func (s *session) heartbeat(request HeartbeatRequest) error {
	s.silence.Reset(s.config.HeartbeatTimeout)
	s.miner.setLeader(request)
	s.log.Debug("heartbeat", "server_id", request.ServerID, "term", request.Term)
	if s.link.greeted {
		return s.send(s.report())
	}
	s.link.greeted = true
	report := s.report()
	report.Wanted = s.wanted()
	if err := s.send(report); err != nil {
		return err
	}
	again := 0
	for _, h := range s.held {
		if h.answer != nil {
			again++
			if err := s.send(h.answer); err != nil {
				return err
			}
		}
	}
	s.log.Info("leader found", "server_id", request.ServerID, "term", request.Term, "answers_delivered_again", again)
	if s.leaving {
		return s.sayGoodbye()
	}
	return nil
}

// report is a HeartbeatReply of what is so now.
func (s *session) report() HeartbeatReply {
	held := make([]uint64, len(s.held))
	for i, h := range s.held {
		held[i] = h.grant.process.GrantID
	}
	slices.Sort(held)
	stats := s.miner.Stats()
	return HeartbeatReply{
		Name: s.config.Name, Instance: s.miner.instance, Threads: s.config.Threads, Kernel: s.config.Kernel.Name,
		SoftwareVersion: s.config.Version, HashRate: stats.HashRate, Hashes: stats.Hashes, Held: held,
	}
}

// wanted is how many ranges to ask for.
func (s *session) wanted() *int {
	ranges := s.config.Ranges
	if s.leaving {
		ranges = 0
	}
	return &ranges
}

// send hands a message to the goroutine that writes, in order. Without a stream that has been greeted on it does nothing.
func (s *session) send(message Message) error {
	if s.link == nil || !s.link.greeted {
		return nil
	}
	if len(s.link.outbox) >= maxOutbox {
		return fmt.Errorf("%w: %d messages wait because it does not read them", errProtocol, maxOutbox)
	}
	s.link.outbox = append(s.link.outbox, message)
	return nil
}

// find returns the place of a grant in held, or -1.
func (s *session) find(grantID uint64) int {
	return slices.IndexFunc(s.held, func(h *holding) bool { return h.grant.process.GrantID == grantID })
}

// process takes a granted range.
func (s *session) process(p Process) error {
	if err := p.validate(); err != nil {
		return err
	}
	if s.leaving || s.find(p.GrantID) >= 0 {
		return nil // sent again: what is held stands
	}
	if len(s.held) >= maxHeld {
		return fmt.Errorf("%w: more than %d ranges, %d were asked for", errProtocol, maxHeld, s.config.Ranges)
	}
	if s.job == nil || s.job.Work != p.Work {
		s.job = sha256d.NewJob(p.Work)
	}
	s.miner.startMeter()
	s.held = append(s.held, &holding{grant: s.search.add(p, s.job)})
	s.log.Debug("range taken", "grant_id", p.GrantID, "job", p.JobID, "nonces", p.Nonces.String(), "bits", p.Work.Bits)
	return nil
}

func (p Process) validate() error {
	if p.GrantID == 0 {
		return fmt.Errorf("%w: Process without a grant id", errProtocol)
	}
	if err := p.Nonces.Validate(); err != nil {
		return fmt.Errorf("%w: Process of grant %d: %w", errProtocol, p.GrantID, err)
	}
	if err := p.Work.Validate(); err != nil {
		return fmt.Errorf("%w: Process of grant %d: %w", errProtocol, p.GrantID, err)
	}
	if p.ChunkSize == 0 {
		return fmt.Errorf("%w: Process of grant %d: chunk size 0, want 1 or more", errProtocol, p.GrantID)
	}
	return nil
}

// interrupt drops ranges that are searched. Answers stay until they are acknowledged.
func (s *session) interrupt(i Interrupt) {
	dropped := 0
	s.held = slices.DeleteFunc(s.held, func(h *holding) bool {
		if h.answer != nil || !i.means(h.grant.process) {
			return false
		}
		s.search.stop(h.grant)
		dropped++
		return true
	})
	s.log.Debug("interrupted", "job", i.JobID, "reason", i.Reason, "ranges_dropped", dropped)
}

// means reports whether the interrupt is for a grant. Listed ids count alone: a miner that was away while the job changed
// is told the job of today, and ids of an older one.
func (i Interrupt) means(p Process) bool {
	if len(i.GrantIDs) > 0 {
		return slices.Contains(i.GrantIDs, p.GrantID)
	}
	return p.JobID == i.JobID
}

// collect answers for the ranges that the search has settled.
func (s *session) collect() error {
	var err error
	for _, g := range s.search.collect() {
		i := slices.IndexFunc(s.held, func(h *holding) bool { return h.grant == g })
		if i < 0 {
			continue // interrupted in the meantime
		}
		h := s.held[i]
		if g.solution != 0 {
			p := g.process
			h.answer = AnswerYes{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonce: g.solution}
			h.nonce = g.solution
			s.log.Info("solution found", "job", p.JobID, "grant_id", p.GrantID, "nonce", g.solution)
		} else {
			s.answerNo(h)
		}
		err = errors.Join(err, s.send(h.answer))
	}
	return err
}

// answerNo makes the answer for the finished chunks at the head of a grant. It reports false when there are none.
func (s *session) answerNo(h *holding) bool {
	chunks, receipt, ok := s.search.answered(h.grant)
	if !ok {
		return false
	}
	p := h.grant.process
	h.answer = AnswerNo{
		GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonces: chunks, Receipt: receipt,
	}
	h.nonce = chunks.Last
	return true
}

// acknowledge forgets an answer.
func (s *session) acknowledge(ack Acknowledgement) {
	i := s.find(ack.GrantID)
	if i < 0 {
		return // of an answer that was delivered twice
	}
	h := s.held[i]
	_, solution := h.answer.(AnswerYes)
	if h.answer == nil || solution != ack.Solution || h.nonce != ack.Nonce {
		s.log.Warn("acknowledgement of an answer that was not given", "grant_id", ack.GrantID, "nonce", ack.Nonce)
		return
	}
	s.held = slices.Delete(s.held, i, i+1)
	s.waitFarewell()
	s.miner.countAnswer(h, ack.Result)
	attributes := []any{"grant_id", ack.GrantID, "job", h.grant.process.JobID, "solution", solution, "result", ack.Result}
	switch ack.Result {
	case ResultCommitted, ResultDuplicate:
		s.log.Debug("answer committed", attributes...)
	case ResultStale, ResultReleased:
		s.log.Info("answer came too late", append(attributes, "detail", ack.Message)...)
	default:
		s.log.Warn("answer refused", append(attributes, "detail", ack.Message)...)
	}
}

// leave ends the search, answers for what is finished of it, and says goodbye.
func (s *session) leave() error {
	s.leaving = true
	s.search.close()
	s.redial.Stop()
	err := s.collect() // what was settled is answered whole, the rest for its finished chunks
	s.held = slices.DeleteFunc(s.held, func(h *holding) bool {
		if h.answer != nil {
			return false
		}
		if !s.answerNo(h) {
			return true
		}
		err = errors.Join(err, s.send(h.answer))
		return false
	})
	s.log.Info("leaving", "answers_to_acknowledge", len(s.held))
	switch {
	case s.link == nil:
		return nil
	case s.link.greeted:
		s.deadline.Reset(s.config.LeaveTimeout)
		return errors.Join(err, s.sayGoodbye())
	case len(s.held) > 0: // after the first heartbeat the answers are delivered
		s.deadline.Reset(s.config.LeaveTimeout)
	default:
		s.hangUp()
	}
	return nil
}

// sayGoodbye tells the leader to take back what is not answered. It is sent after the answers.
func (s *session) sayGoodbye() error {
	report := s.report()
	report.Wanted = s.wanted()
	report.Leaving = true
	s.waitFarewell()
	return s.send(report)
}

// waitFarewell shortens the wait once there is no acknowledgement to come: what is left is that the leader, who has been
// told, ends the stream.
func (s *session) waitFarewell() {
	if s.leaving && len(s.held) == 0 {
		s.deadline.Reset(min(farewell, s.config.LeaveTimeout))
	}
}

// hasLeft reports whether there is nothing more to wait for.
func (s *session) hasLeft() bool { return s.leaving && s.link == nil }
