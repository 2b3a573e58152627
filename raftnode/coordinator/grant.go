package coordinator

import (
	"fmt"
	"slices"
	"time"

	"raftmine/fsm"
)

// miner is what the coordinator remembers of a miner by name, connected or not. Guarded by Coordinator.mu.
type miner struct {
	name     string
	instance fsm.ID   // of the process that connected last
	session  *Session // nil: away
	ready    bool     // its ranges are reconciled, it may be granted work
	clashed  bool     // another process asked for the name during this session, which was told; it asks again and again

	wanted      int
	held        []held // its grants in the state, as far as known
	asking      int    // GrantWork commands of it that are being committed
	nextRequest uint64

	heard    time.Time // last message, or the start of the term
	progress time.Time // last finished chunk, or when it got something to do
	answered time.Time // last finished chunk on this session; zero: none
	mute     time.Time // until then it is granted nothing, because it finished nothing; zero: it is no such miner
	speed    float64   // nonces a second
	measured bool      // speed comes from answers
	seen     float64   // the same from answers alone, without the guess before them; 0: none yet

	threads         int
	kernel, version string
	hashRate        float64 // as it reports it

	belief  belief // in the process that connected last
	solved  bool   // so has that process
	proven  fsm.ID // the process that did good work under this name; zero: none did
	struck  fsm.ID // the process that the last strike of this term was for; zero: there was none
	refusal error  // why the name is refused; nil: see the state's strikes
}

// held is one grant.
type held struct {
	id    uint64
	sent  time.Time // on the current session; zero: the miner brought it along
	beats uint64    // HeartbeatRequests of the session that were sent before it: their replies may not name it
	again bool      // it was sent once more, because a reply did not name it
}

func (m *miner) find(id uint64) int {
	return slices.IndexFunc(m.held, func(h held) bool { return h.id == id })
}

func (m *miner) drop(id uint64) {
	if i := m.find(id); i >= 0 {
		m.held = slices.Delete(m.held, i, i+1)
	}
}

// eats reports whether it may be asked for work now. While some is being committed it may not.
func (m *miner) eats() bool {
	return m.session != nil && m.ready && m.asking == 0 && m.mute.IsZero()
}

// needs returns how many ranges it is to be granted.
func (m *miner) needs() int {
	if !m.eats() {
		return 0
	}
	return max(m.most()-len(m.held), 0)
}

// most returns how many ranges it may hold: what it wants, but few before it has answered for one. Who never answers
// must not keep a large part of the job from the others.
func (m *miner) most() int {
	if !m.measured {
		return min(m.wanted, firstRanges)
	}
	return m.wanted
}

// release is grants to be returned by the grant loop.
type release struct {
	miner  *miner
	ids    []uint64 // none: only forget
	reason fsm.ReleaseReason
	forget bool
}

// batch is one Propose of the grant loop or the job loop: other commands first, then the GrantWork commands of asks.
type batch struct {
	commands   []fsm.Command
	releases   []release // the first commands
	asks       []ask
	generation uint64
}

// ask is the GrantWork commands of one miner.
type ask struct {
	miner *miner
	count int
}

// Limits of one batch, so that it fits an entry and nobody waits long for its turn. Tuning.
const (
	maxBatchReleases = 256
	maxBatchAsks     = 1024
)

// feed puts m among the hungry, or takes it out when it needs nothing. Caller holds mu.
func (c *Coordinator) feed(m *miner) {
	delete(c.starved, m)
	if m.needs() == 0 {
		delete(c.hungry, m)
		return
	}
	c.hungry[m] = struct{}{}
	kick(c.grantKick)
}

// feedAll follows whatever may have made chunks pending: a release, a roll, a new job. Caller holds mu.
func (c *Coordinator) feedAll() {
	c.generation++
	for m := range c.starved {
		c.hungry[m] = struct{}{}
	}
	clear(c.starved)
	kick(c.grantKick)
}

// ask returns count GrantWork commands for m and lowers pending by what they take. Caller holds mu and has made sure that
// nothing else is being asked for m.
func (c *Coordinator) ask(m *miner, count int, jobID, chunkSize uint64, pending *uint64) []fsm.Command {
	commands := make([]fsm.Command, count)
	for i := range commands {
		chunks := sizing{
			speed:     m.speed,
			total:     c.totalSpeed,
			pending:   *pending,
			chunkSize: chunkSize,
			target:    c.cfg.GrantTime,
			limit:     c.cfg.MaxGrantChunks,
		}.chunks()
		*pending -= min(chunks, *pending)
		m.nextRequest++
		commands[i] = fsm.GrantWork{JobID: jobID, Miner: m.name, Instance: m.instance, RequestID: m.nextRequest, Chunks: chunks}
	}
	m.asking = count
	delete(c.hungry, m)
	delete(c.starved, m)
	return commands
}

// askHungry adds the commands of the hungry miners to b; with anew as if they held nothing. Caller holds mu.
func (c *Coordinator) askHungry(b *batch, anew bool, jobID, chunkSize, pending uint64) {
	b.generation = c.generation
	for m := range c.hungry {
		if len(b.asks) >= maxBatchAsks {
			return // the rest is for the grant loop's next batch
		}
		count := m.needs()
		if anew {
			count = m.most()
		}
		if count == 0 {
			delete(c.hungry, m)
			continue
		}
		b.commands = append(b.commands, c.ask(m, count, jobID, chunkSize, &pending)...)
		b.asks = append(b.asks, ask{m, count})
	}
}

// granted takes the outcomes of b's asks, which are its last commands, or the error of the whole batch. Caller holds mu.
func (c *Coordinator) granted(b *batch, outcomes []fsm.Outcome, err error) {
	if err != nil {
		for _, a := range b.asks {
			c.notGranted(a.miner, err)
		}
		return
	}
	count := 0
	for _, a := range b.asks {
		count += a.count
	}
	outcomes = outcomes[len(outcomes)-count:]
	for _, a := range b.asks {
		c.deliver(a.miner, outcomes[:a.count], b.generation)
		outcomes = outcomes[a.count:]
	}
}

// notGranted ends an ask that came to no outcome. When it may be committed yet, the miner starts over: what its next
// session finds in the state is sent then. Caller holds mu.
func (c *Coordinator) notGranted(m *miner, err error) {
	m.asking = 0
	if m.session != nil && !isNotLeader(err) {
		c.end(m.session, fmt.Errorf("grant work: %w", err))
		return
	}
	c.feed(m)
}

// deliver takes the outcomes of one miner's GrantWork commands, asked for in generation. Caller holds mu.
func (c *Coordinator) deliver(m *miner, outcomes []fsm.Outcome, generation uint64) {
	m.asking = 0
	served, again := true, false
	for _, outcome := range outcomes {
		switch outcome.Code {
		case fsm.Done, fsm.Duplicate:
			c.hand(m, outcome.Grant)
		case fsm.NoWork, fsm.Stale:
			served = false
		case fsm.Refused:
			if refusal := c.refusal(m, m.name); refusal != nil {
				if m.session != nil {
					c.end(m.session, refusal)
				}
				return
			}
			again = true // with a new request id
		default:
			served = false
			c.log.Error("grant is wrong", "miner", m.name, "detail", outcome.Detail)
		}
	}
	if served || again {
		c.feed(m)
		return
	}
	c.starve(m, generation)
}

// starve puts m aside because nothing was pending in generation, until something is. Caller holds mu.
func (c *Coordinator) starve(m *miner, generation uint64) {
	if generation != c.generation || m.needs() == 0 {
		c.feed(m)
		return
	}
	delete(c.hungry, m)
	c.starved[m] = struct{}{}
}

// hand gives a committed grant to its miner. Caller holds mu.
func (c *Coordinator) hand(m *miner, grant fsm.Grant) {
	if m.find(grant.ID) >= 0 {
		return
	}
	grant, ok := c.live(grant.ID)
	if !ok {
		return // over already
	}
	if grant.Instance != m.instance { // asked for by the process before this one
		c.queueRelease(release{miner: m, ids: []uint64{grant.ID}, reason: fsm.ReleaseRestarted})
		return
	}
	now := c.cfg.Now()
	if len(m.held) == 0 {
		m.progress = now
	}
	if m.session == nil || !m.ready {
		m.held = append(m.held, held{id: grant.ID}) // its next session is sent it, or its lease ends
		return
	}
	if m.wanted == 0 || !m.mute.IsZero() { // it changed its mind meanwhile, or we did
		c.queueRelease(release{miner: m, ids: []uint64{grant.ID}, reason: fsm.ReleaseLeft})
		return
	}
	m.held = append(m.held, held{id: grant.ID, sent: now, beats: m.session.beats})
	c.log.Debug("range granted", "job", grant.JobID, "grant_id", grant.ID, "miner", m.name, "nonces", grant.Nonces)
	c.sendProcess(m, grant)
}

// live returns a grant as the state has it, if it is of the job that the miners search. A live grant is always of the
// state's round, which the job loop may not have seen yet: then it is taken over, so that nobody searches the old
// timestamp. Caller holds mu.
func (c *Coordinator) live(id uint64) (grant fsm.Grant, ok bool) {
	var job fsm.Job
	c.view(func(v fsm.View) {
		job, _ = v.Job()
		grant, ok = v.Grant(id)
	})
	if !ok || job.Phase != fsm.PhaseOpen || c.job == nil || c.job.ID != job.ID {
		return fsm.Grant{}, false
	}
	if c.job.Round != job.Round {
		c.adopt(job)
	}
	return grant, true
}

// sendAgain sends m.held[i] once more on the session, if the state still has it. Caller holds mu.
func (c *Coordinator) sendAgain(m *miner, i int) {
	grant, ok := c.live(m.held[i].id)
	if !ok || m.session == nil {
		return
	}
	m.held[i].sent, m.held[i].beats = c.cfg.Now(), m.session.beats
	c.sendProcess(m, grant)
}

// missing compares what m was sent before the heartbeat that it answers now with what it says it holds. What it does not
// name is sent once more; when it is not named again either, it returns, or nobody would ever search it. Caller holds mu.
func (c *Coordinator) missing(m *miner, reported []uint64) {
	var lost []uint64
	answered := m.session.replies
	for i := range m.held {
		h := &m.held[i]
		switch {
		case slices.Contains(reported, h.id):
			h.again = false
		case h.beats >= answered: // that reply could not name it
		case h.again:
			lost = append(lost, h.id)
		default:
			h.again = true
			c.sendAgain(m, i)
		}
	}
	if len(lost) == 0 {
		return
	}
	c.log.Warn("miner does not hold what it was sent", "miner", m.name, "ranges", len(lost))
	c.queueRelease(release{miner: m, ids: lost, reason: fsm.ReleaseSilent})
	if c.job != nil {
		c.send(m.session, Interrupt{JobID: c.job.ID, Reason: InterruptReleased, GrantIDs: lost})
	}
}

func (c *Coordinator) sendProcess(m *miner, grant fsm.Grant) {
	c.send(m.session, Process{
		GrantID:   grant.ID,
		JobID:     grant.JobID,
		Work:      c.job.Work(),
		Nonces:    grant.Nonces,
		ChunkSize: c.job.ChunkSize,
	})
}

// queueRelease hands grants to the grant loop to be returned. The miner holds them no longer. Caller holds mu.
func (c *Coordinator) queueRelease(r release) {
	for _, id := range r.ids {
		c.releasing[id] = struct{}{}
		r.miner.drop(id)
	}
	c.releases = append(c.releases, r)
	kick(c.grantKick)
}

// grantLoop returns and grants ranges, one batch at a time: what comes up meanwhile goes into the next one.
func (c *Coordinator) grantLoop() {
	retry := newBackoff(c.cfg.Heartbeat/100, c.cfg.Heartbeat/5)
	for {
		select {
		case <-c.term.Done():
			return
		case <-c.grantKick:
		}
		for c.term.Err() == nil {
			b := c.nextBatch()
			if len(b.commands) == 0 {
				break
			}
			outcomes, err := c.propose(b.commands...)
			c.endBatch(b, outcomes, err)
			if err == nil {
				retry.Reset()
				continue
			}
			c.log.Debug("grants and releases not committed", "error", err)
			if !c.sleep(retry.NextBackOff()) {
				return
			}
		}
	}
}

// nextBatch returns what is to be proposed now; a batch without commands: nothing.
func (c *Coordinator) nextBatch() *batch {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := &batch{}
	c.releases = slices.DeleteFunc(c.releases, func(r release) bool {
		return r.forget && r.miner.session != nil // it came back
	})
	n := min(len(c.releases), maxBatchReleases)
	b.releases = slices.Clone(c.releases[:n])
	c.releases = slices.Delete(c.releases, 0, n)
	for _, r := range b.releases {
		b.commands = append(b.commands, fsm.Release{
			Miner: r.miner.name, GrantIDs: r.ids, Reason: r.reason, Forget: r.forget,
		})
	}
	if n > 0 {
		c.feedAll() // what is released in this batch is granted in it
	}
	if c.job == nil {
		return b // the hungry are fed together with the next OpenJob
	}
	var pending uint64
	c.view(func(v fsm.View) { pending = v.Counts().Pending })
	c.askHungry(b, false, c.job.ID, c.job.ChunkSize, pending)
	return b
}

// endBatch takes the outcomes of a batch of the grant loop.
func (c *Coordinator) endBatch(b *batch, outcomes []fsm.Outcome, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.granted(b, outcomes, err)
	for i, r := range b.releases {
		switch {
		case err != nil:
			c.releases = append(c.releases, r) // idempotent: again
			continue
		case outcomes[i].Code == fsm.Wrong || outcomes[i].Code == fsm.Refused:
			c.log.Error("release refused", "miner", r.miner.name, "detail", outcomes[i].Detail)
		}
		for _, id := range r.ids {
			delete(c.releasing, id)
		}
		if r.forget && r.miner.session == nil && len(r.miner.held) == 0 && c.miners[r.miner.name] == r.miner {
			delete(c.miners, r.miner.name)
		}
	}
	if err == nil && len(b.releases) > 0 {
		c.feedAll() // for those who asked while it was being committed
	}
	kick(c.jobKick) // perhaps the last range of the round was returned, or everything is finished
}

// strikes returns how many wrong answers a miner has.
func (c *Coordinator) strikes(name string) (strikes uint32) {
	c.view(func(v fsm.View) {
		row, _ := v.Miner(name)
		strikes = row.Strikes
	})
	return strikes
}
