package coordinator

import (
	"fmt"

	"raftmine/fsm"
)

// strike counts a wrong answer, then says so. The last strike refuses the miner. A strike whose outcome stayed unknown is
// counted again when the miner sends the same wrong answer again.
func (s *Session) strike(m *miner, ack Acknowledgement, why string) error {
	return s.count(m, ack, why, false)
}

// disbelieve refuses a miner at once, because its receipts as a whole are not believed. The state is told by as many
// strikes as that takes, so that the next leader refuses it too.
func (s *Session) disbelieve(m *miner, ack Acknowledgement, why string) error {
	return s.count(m, ack, why, true)
}

// count does both. A miner that is refused loses what it holds, and what it finished since the last good check, in one
// entry with its last strike: so no round can end meanwhile.
func (s *Session) count(m *miner, ack Acknowledgement, why string, out bool) error {
	c := s.c
	why = fsm.Line(why)
	c.mu.Lock()
	instance := m.instance // by the time of the commit another process may have the name
	strikes := c.strikes(m.name) + 1
	commands := []fsm.Command{fsm.Strike{Miner: m.name, Reason: why}}
	for ; out && strikes < fsm.MaxStrikes; strikes++ {
		commands = append(commands, fsm.Strike{Miner: m.name, Reason: why})
	}
	out = strikes >= fsm.MaxStrikes
	revoked := 0
	if out {
		commands = append(commands, fsm.Release{Miner: m.name, Reason: fsm.ReleaseRefused})
		var job fsm.Job
		c.view(func(v fsm.View) { job, _ = v.Job() })
		if revoke, ok := m.belief.takeBack(job, m.name, why); ok {
			commands = append(commands, revoke)
			revoked = len(revoke.Ranges)
		}
	}
	c.mu.Unlock()

	outcomes, err := c.propose(commands...)
	if err != nil {
		return fmt.Errorf("count a wrong answer: %w", err)
	}
	ack.Result, ack.Message = Wrong, why
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log.Warn("wrong answer", "miner", m.name, "grant_id", ack.GrantID, "reason", why, "strikes", strikes)
	m.struck = instance
	c.send(s, ack)
	if !out {
		// A miner that was told forgets the range with its answer.
		if i := m.find(ack.GrantID); i >= 0 && m.session == s {
			c.sendAgain(m, i)
		}
		return nil
	}
	if revoked > 0 {
		last := outcomes[len(outcomes)-1]
		c.log.Warn("finished ranges are searched again", "miner", m.name, "ranges", revoked, "outcome", last.Code, "detail", last.Detail)
	}
	m.held, m.belief = nil, belief{}
	m.refusal = fmt.Errorf("%w: %d strikes, the last one because %s; until it was away for %v", ErrMinerRefused, strikes, why,
		c.cfg.ForgetAfter)
	c.feedAll()
	return c.refused(m.name, m.refusal)
}
