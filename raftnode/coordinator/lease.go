package coordinator

import (
	"slices"
	"time"

	"raftmine/fsm"
)

// sweepsPerHeartbeat is how precise heartbeats and leases are. Tuning.
const sweepsPerHeartbeat = 20

// rebuild makes the memory of a new term from the state. Every miner that holds ranges has a full lease to resume.
func (c *Coordinator) rebuild() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view(func(v fsm.View) {
		for _, row := range v.Miners() {
			m := c.newMiner(row.Name)
			m.nextRequest = max(m.nextRequest, row.LastRequestID)
		}
		job, ok := v.Job()
		if !ok {
			return
		}
		switch job.Phase {
		case fsm.PhaseSubmitting:
			c.doubt = job.ID // the leader before may have handed it in
		case fsm.PhaseOpen:
			c.job = &job
			for grant := range v.Grants() {
				m := c.miners[grant.Miner]
				if m == nil {
					m = c.newMiner(grant.Miner)
				}
				m.instance = grant.Instance
				m.held = append(m.held, held{id: grant.ID})
			}
		}
	})
	c.nextAudit = c.cfg.Now().Add(c.cfg.Heartbeat)
}

// sweepLoop sends heartbeats and ends leases.
func (c *Coordinator) sweepLoop() {
	ticker := time.NewTicker(max(c.cfg.Heartbeat/sweepsPerHeartbeat, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-c.term.Done():
			return
		case <-ticker.C:
			c.sweep()
		}
	}
}

func (c *Coordinator) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Now()
	servers := c.serversUp()
	for s := range c.sessions {
		switch {
		case now.Sub(s.heard) >= c.cfg.lease():
			c.end(s, ErrSilent)
		case !now.Before(s.nextBeat):
			c.beat(s, now, servers)
		}
	}
	c.totalSpeed = 0 // a sum that is added to for ever drifts
	for _, m := range c.miners {
		if m.session != nil {
			c.totalSpeed += m.speed
		}
		if !m.mute.IsZero() && !now.Before(m.mute) {
			m.mute = time.Time{}
			c.feed(m)
		}
		if len(m.held) == 0 {
			continue
		}
		switch {
		case now.Sub(m.heard) >= c.cfg.lease():
			c.log.Info("lease expired", "miner", m.name, "ranges", len(m.held), "silent_for", now.Sub(m.heard))
			c.queueRelease(release{miner: m, ids: m.heldIDs(), reason: fsm.ReleaseSilent})
		case now.Sub(m.progress) >= c.cfg.AnswerTimeout && m.session != nil:
			c.log.Warn("miner finishes nothing of what it holds", "miner", m.name, "ranges", len(m.held),
				"since", now.Sub(m.progress))
			ids := m.heldIDs()
			c.queueRelease(release{miner: m, ids: ids, reason: fsm.ReleaseSilent})
			if c.job != nil {
				c.send(m.session, Interrupt{JobID: c.job.ID, Reason: InterruptReleased, GrantIDs: ids})
			}
			c.setSpeed(m, m.speed/speedStep)
			m.mute = now.Add(c.cfg.lease()) // others first: it would be granted the same ranges at once
			c.feed(m)
		}
	}
	if !now.Before(c.nextAudit) {
		c.nextAudit = now.Add(c.cfg.Heartbeat)
		c.compare()
		c.forget(now)
	}
}

// compare finds grants in the state that memory does not know, and the other way round: what is left of commits whose
// outcome stayed unknown. Miners with a commit under way are left for the next time. Caller holds mu.
func (c *Coordinator) compare() {
	if c.job == nil {
		return
	}
	var unknown []fsm.Grant
	c.view(func(v fsm.View) {
		job, _ := v.Job()
		if job.ID != c.job.ID || job.Phase != fsm.PhaseOpen {
			return // the job loop is about to see it
		}
		for grant := range v.Grants() {
			m := c.miners[grant.Miner]
			if m == nil {
				m = c.newMiner(grant.Miner)
				m.instance = grant.Instance
			}
			if _, returning := c.releasing[grant.ID]; !returning && m.asking == 0 && m.find(grant.ID) < 0 {
				unknown = append(unknown, grant)
			}
		}
		for _, m := range c.miners {
			before := len(m.held)
			m.held = slices.DeleteFunc(m.held, func(h held) bool {
				_, ok := v.Grant(h.id)
				return !ok
			})
			if len(m.held) != before {
				c.feed(m)
			}
		}
	})
	for _, grant := range unknown {
		c.hand(c.miners[grant.Miner], grant)
	}
	kick(c.jobKick)
}

// forget lets go of miners that are away for long and hold nothing, and of their strikes with them. A refusal for ever
// would keep nobody out, because names are free, and whoever answers wrongly under another's name would end that name.
// Caller holds mu.
func (c *Coordinator) forget(now time.Time) {
	for _, m := range c.miners {
		if m.session == nil && len(m.held) == 0 && now.Sub(m.heard) >= c.cfg.ForgetAfter {
			c.queueForget(m)
		}
	}
}

func (c *Coordinator) queueForget(m *miner) {
	if slices.ContainsFunc(c.releases, func(r release) bool { return r.forget && r.miner == m }) {
		return
	}
	c.log.Debug("miner forgotten", "miner", m.name)
	c.queueRelease(release{miner: m, reason: fsm.ReleaseSilent, forget: true})
}
