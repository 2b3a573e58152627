package coordinator

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"raftmine/fsm"
)

// Session is one miner's stream. One goroutine calls Receive; another sends what comes out of Outgoing.
type Session struct {
	c    *Coordinator
	out  chan Message
	done chan struct{} // closed by end

	// Guarded by c.mu.
	miner      *miner // nil until its first HeartbeatReply was accepted
	err        error  // why it is over; nil: it is not
	heard      time.Time
	nextBeat   time.Time
	unanswered bool // the last HeartbeatRequest
	// HeartbeatRequests sent, and how many of them the miner's replies, in order, have answered.
	beats, replies uint64
}

// Open starts a miner's session. Its first message, a HeartbeatRequest, waits in Outgoing at once.
func (c *Coordinator) Open() (*Session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.over || c.term.Err() != nil:
		return nil, ErrNotLeader
	case len(c.sessions) >= c.cfg.MaxMiners:
		return nil, fmt.Errorf("%w: %d are connected", ErrTooManyMiners, len(c.sessions))
	}
	now := c.cfg.Now()
	s := &Session{c: c, out: make(chan Message, outgoingBuffer), done: make(chan struct{}), heard: now, nextBeat: now}
	c.sessions[s] = struct{}{}
	c.beat(s, now, c.serversUp())
	return s, nil
}

// Outgoing is what is to be sent to the miner, in order. It is closed when the session is over; what is in it by then is
// still worth sending.
func (s *Session) Outgoing() <-chan Message { return s.out }

// Done is closed when the session is over, for one who is stuck sending and so cannot see the end of Outgoing.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns why the session is over, nil when it is not.
func (s *Session) Err() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.err
}

// Close ends the session because the stream is gone. The miner keeps its ranges for the rest of its lease.
func (s *Session) Close() { s.c.close(s, ErrDisconnected) }

func (c *Coordinator) close(s *Session, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end(s, why)
}

// end ends a session. Caller holds mu.
func (c *Coordinator) end(s *Session, why error) {
	if s.err != nil {
		return
	}
	s.err = why
	close(s.out)
	close(s.done)
	delete(c.sessions, s)
	m := s.miner
	if m == nil || m.session != s {
		return
	}
	introduced := m.ready
	m.session, m.ready = nil, false
	delete(c.hungry, m)
	delete(c.starved, m)
	c.totalSpeed = max(c.totalSpeed-m.speed, 0)
	if !introduced {
		return
	}
	c.log.Info("miner disconnected", "miner", m.name, "reason", why, "held", len(m.held))
	c.cfg.Observer.MinerDisconnected(m.name, why.Error())
}

// send hands a message to the miner, unless it reads too slowly: then its session is over. Caller holds mu.
func (c *Coordinator) send(s *Session, message Message) {
	if s == nil || s.err != nil {
		return
	}
	select {
	case s.out <- message:
	default:
		c.end(s, ErrTooSlow)
	}
}

// beat sends a heartbeat and sets the time of the next one. Caller holds mu.
func (c *Coordinator) beat(s *Session, now time.Time, servers []string) {
	if s.unanswered && s.miner != nil {
		c.cfg.Observer.Heartbeat(s.miner.name, false)
	}
	s.unanswered = true
	s.beats++
	if s.nextBeat = s.nextBeat.Add(c.cfg.Heartbeat); s.nextBeat.Before(now) {
		s.nextBeat = now.Add(c.cfg.Heartbeat)
	}
	c.send(s, HeartbeatRequest{
		ClusterID:       c.cfg.ClusterID,
		ServerID:        c.cfg.ServerID,
		Address:         c.cfg.Address,
		Term:            c.cfg.Term,
		SentUnixMilli:   uint64(max(now.UnixMilli(), 0)),
		ServerAddresses: servers,
	})
}

// serversUp returns the addresses of the servers that are up, lowest id first. Readers share it.
func (c *Coordinator) serversUp() (addresses []string) {
	c.view(func(v fsm.View) {
		for _, server := range v.Servers() {
			if server.Member && server.Up {
				addresses = append(addresses, server.Address)
			}
		}
	})
	return addresses
}

// Receive takes one message from the miner. It blocks while an answer is committed, which holds back a miner that sends
// faster; ctx is looked at only before that. After an error the session is over, and the error says why.
func (s *Session) Receive(ctx context.Context, message Message) error {
	c := s.c
	if err := ctx.Err(); err != nil {
		s.Close()
		return err
	}
	c.mu.Lock()
	if s.err != nil {
		c.mu.Unlock()
		return s.err
	}
	c.receiving.Add(1) // not after Run waits for it: by then s.err is set
	defer c.receiving.Done()
	now := c.cfg.Now()
	s.heard = now
	m := s.miner
	if m != nil {
		m.heard = now
	}
	c.mu.Unlock()

	err := s.receive(m, message)
	if err == nil {
		return nil
	}
	c.close(s, err)
	return err
}

func (s *Session) receive(m *miner, message Message) error {
	reply, isReply := message.(HeartbeatReply)
	switch {
	case m == nil && isReply:
		return s.introduce(reply)
	case m == nil:
		return s.refuse("", fmt.Sprintf("its first message is %T, want HeartbeatReply", message))
	case isReply:
		return s.report(m, reply)
	}
	switch answer := message.(type) {
	case AnswerNo:
		return s.answerNo(m, answer)
	case AnswerYes:
		return s.answerYes(m, answer)
	}
	return s.refuse(m.name, fmt.Sprintf("a miner does not send %T", message))
}

// refuse reports a refusal to those who watch, and returns it for the miner.
func (s *Session) refuse(name, why string) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refused(name, fmt.Errorf("%w: %s", ErrMinerRefused, why))
}

// refused is refuse for any error. Caller holds mu.
func (c *Coordinator) refused(name string, err error) error {
	name = fsm.Line(name)
	c.log.Warn("miner refused", "miner", name, "reason", err)
	c.cfg.Observer.MinerRefused(name, err.Error())
	return err
}

// checkReport returns why a report makes no sense.
func checkReport(r HeartbeatReply) error {
	if err := fsm.CheckMinerName(r.Name); err != nil {
		return err
	}
	switch {
	case r.Instance == fsm.ID{}:
		return errors.New("instance id is zero")
	case r.Threads < 0 || r.Threads > maxThreads:
		return fmt.Errorf("%d threads, want 0 to %d", r.Threads, maxThreads)
	case math.IsNaN(r.HashRate) || math.IsInf(r.HashRate, 0) || r.HashRate < 0:
		return fmt.Errorf("hash rate %v is no rate", r.HashRate)
	case r.Wanted != nil && *r.Wanted < 0:
		return fmt.Errorf("%d ranges wanted", *r.Wanted)
	case len(r.Held) > maxHeld:
		return fmt.Errorf("%d ranges held, want at most %d", len(r.Held), maxHeld)
	}
	return nil
}

// introduce takes the first report of a session: it gives the miner its name, and back what it held.
func (s *Session) introduce(r HeartbeatReply) error {
	if err := checkReport(r); err != nil {
		return s.refuse(r.Name, err.Error())
	}
	m, restarted, forged, err := s.claim(r)
	if err != nil {
		return err
	}
	c := s.c
	if restarted || forged {
		// With Forget the strikes go as well. The miner's totals go with them, into the sum of all that were forgotten.
		outcomes, err := c.propose(fsm.Release{Miner: m.name, Reason: fsm.ReleaseRestarted, Forget: forged})
		if err != nil {
			return fmt.Errorf("release ranges of restarted miner %s: %w", m.name, err)
		}
		c.log.Info("miner restarted, its ranges return", "miner", m.name, "outcome", outcomes[0].Code, "strikes_forged", forged)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.err != nil { // meanwhile
		return s.err
	}
	if forged {
		m.struck, m.refusal = fsm.ID{}, nil
	}
	if restarted || forged {
		m.held = nil
		c.feedAll()
	}
	m.threads, m.kernel, m.version, m.hashRate = r.Threads, fsm.Line(r.Kernel), fsm.Line(r.SoftwareVersion), r.HashRate
	if !m.measured {
		c.setSpeed(m, firstSpeed(m.threads, m.hashRate, c.cfg.GrantTime))
	}
	m.wanted = 0
	if r.Wanted != nil && !r.Leaving {
		m.wanted = min(*r.Wanted, maxWanted)
	}
	c.log.Info("miner connected", "miner", m.name, "threads", m.threads, "kernel", m.kernel, "held", len(r.Held))
	m.ready = true
	c.cfg.Observer.MinerConnected(m.name)
	c.answeredBeat(s)
	c.reconcile(m, r.Held)
	if r.Leaving {
		c.leave(m)
	}
	c.feed(m)
	return nil
}

// claim gives the session its miner. It reports whether the state holds grants of another process of that name, and whether
// it holds strikes that another process earned under it.
func (s *Session) claim(r HeartbeatReply) (m *miner, restarted, forged bool, err error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.err != nil {
		return nil, false, false, s.err
	}
	m = c.miners[r.Name]
	if m != nil && m.session != nil && m.instance != r.Instance {
		err := fmt.Errorf("%w: %s is connected already", ErrNameTaken, r.Name)
		if m.clashed {
			return nil, false, false, err
		}
		m.clashed = true
		return nil, false, false, c.refused(r.Name, err)
	}
	if forged = m != nil && m.forged(r.Instance); !forged {
		if refusal := c.refusal(m, r.Name); refusal != nil {
			return nil, false, false, c.refused(r.Name, refusal)
		}
	}
	if m == nil {
		if len(c.miners) >= knownPerMiner*c.cfg.MaxMiners {
			return nil, false, false, c.refused(r.Name, fmt.Errorf("%w: %d names are known", ErrTooManyMiners, len(c.miners)))
		}
		m = c.newMiner(r.Name)
	}
	if m.session != nil {
		c.end(m.session, ErrReplaced)
	}
	if m.instance != r.Instance {
		m.speed, m.measured, m.mute = 0, false, time.Time{}
		m.belief, m.seen, m.solved = belief{}, 0, false
	}
	m.instance, m.session, m.ready, m.clashed = r.Instance, s, false, false
	m.heard, m.answered = s.heard, time.Time{}
	s.miner = m
	c.totalSpeed += m.speed
	c.view(func(v fsm.View) {
		for _, h := range m.held {
			if grant, ok := v.Grant(h.id); ok && grant.Instance != r.Instance {
				restarted = true
			}
		}
		row, _ := v.Miner(m.name)
		m.nextRequest = max(m.nextRequest, row.LastRequestID)
	})
	return m, restarted, forged, nil
}

// newMiner remembers a miner. Request ids are never used twice for one miner: they start from the term's own share of
// them, 1<<32 for each term, or from the last one in the state if that is larger. Caller holds mu.
func (c *Coordinator) newMiner(name string) *miner {
	now := c.cfg.Now()
	m := &miner{name: name, heard: now, progress: now, nextRequest: c.cfg.Term << 32}
	c.miners[name] = m
	return m
}

// reconcile compares what the state grants a miner with what it says it holds. Caller holds mu.
func (c *Coordinator) reconcile(m *miner, reported []uint64) {
	var again []uint64
	gone := InterruptReleased
	var jobID uint64
	c.view(func(v fsm.View) {
		job, ok := v.Job()
		jobID = job.ID
		open := ok && job.Phase == fsm.PhaseOpen && c.job != nil && c.job.ID == job.ID
		if !open {
			gone = InterruptStale
			if job.Solution != nil {
				gone = InterruptSolved
			}
		}
		m.held = slices.DeleteFunc(m.held, func(h held) bool {
			_, ok := v.Grant(h.id)
			if ok && open && !slices.Contains(reported, h.id) {
				again = append(again, h.id)
			}
			return !ok || !open
		})
	})
	m.progress = c.cfg.Now()
	for i := range m.held {
		m.held[i] = held{id: m.held[i].id}
	}
	for _, id := range again {
		c.sendAgain(m, m.find(id))
	}
	var lost []uint64
	for _, id := range reported {
		if m.find(id) < 0 {
			lost = append(lost, id)
		}
	}
	if len(lost) > 0 {
		c.send(m.session, Interrupt{JobID: jobID, Reason: gone, GrantIDs: lost})
	}
}

// report takes every later HeartbeatReply.
func (s *Session) report(m *miner, r HeartbeatReply) error {
	if err := checkReport(r); err != nil {
		return s.refuse(m.name, err.Error())
	}
	if r.Name != m.name || r.Instance != m.instance {
		return s.refuse(m.name, fmt.Sprintf("it calls itself %s now, or has another instance id", r.Name))
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	c.answeredBeat(s)
	m.threads, m.hashRate = r.Threads, r.HashRate
	if !m.measured && r.HashRate > 0 {
		c.setSpeed(m, firstSpeed(m.threads, m.hashRate, c.cfg.GrantTime))
	}
	if r.Wanted != nil {
		m.wanted = min(*r.Wanted, maxWanted)
	}
	if r.Leaving {
		c.leave(m)
	}
	c.missing(m, r.Held)
	c.feed(m)
	return nil
}

// answeredBeat notes that a heartbeat was answered. Caller holds mu.
func (c *Coordinator) answeredBeat(s *Session) {
	s.replies = min(s.replies+1, s.beats) // a miner may report unasked
	if s.unanswered {
		s.unanswered = false
		c.cfg.Observer.Heartbeat(s.miner.name, true)
		c.log.Debug("heartbeat answered", "miner", s.miner.name, "hash_rate", s.miner.hashRate)
	}
}

// leave returns all ranges of a miner that stops. Caller holds mu.
func (c *Coordinator) leave(m *miner) {
	m.wanted = 0
	if len(m.held) > 0 {
		c.log.Info("miner leaves, its ranges return", "miner", m.name, "ranges", len(m.held))
		c.queueRelease(release{miner: m, ids: m.heldIDs(), reason: fsm.ReleaseLeft})
	}
}

func (m *miner) heldIDs() []uint64 {
	ids := make([]uint64, len(m.held))
	for i, h := range m.held {
		ids[i] = h.id
	}
	return ids
}

// setSpeed keeps the sum of the connected miners' speeds. Caller holds mu.
func (c *Coordinator) setSpeed(m *miner, speed float64) {
	if m.session != nil {
		c.totalSpeed = max(c.totalSpeed-m.speed, 0) + speed
	}
	m.speed = speed
}
