package coordinator

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Status is what the leader knows beside the state.
type Status struct {
	WebService      string // its address
	WebServiceError string // empty when the last request succeeded; else since when and why
	Miners          []MinerStatus
	HashRate        float64 // of all connected miners
}

// MinerStatus is what the leader knows of one miner, connected or within its lease. Miners come by name.
type MinerStatus struct {
	Name            string
	Connected       bool
	Threads         int
	Kernel          string
	SoftwareVersion string
	HashRate        float64 // double SHA-256 a second, as far as it is believed; 0 when it is not connected
	Refused         string  // why it is refused work; empty: it is not
	Speed           float64 // nonces a second, as the leader measures it
	Held, Wanted    int     // ranges
	LastHeard       time.Time
}

// Status returns a snapshot.
func (c *Coordinator) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	status := Status{
		WebService:      c.cfg.Source.Address(),
		WebServiceError: c.service.String(),
		Miners:          make([]MinerStatus, 0, len(c.miners)),
	}
	for _, m := range c.miners {
		row := MinerStatus{
			Name:            m.name,
			Connected:       m.session != nil,
			Threads:         m.threads,
			Kernel:          m.kernel,
			SoftwareVersion: m.version,
			Speed:           m.speed,
			Held:            len(m.held),
			Wanted:          m.wanted,
			LastHeard:       m.heard,
		}
		if row.Connected {
			row.HashRate = m.rate()
			status.HashRate += row.HashRate
		}
		if refusal := c.refusal(m, m.name); refusal != nil {
			row.Refused = strings.TrimPrefix(refusal.Error(), ErrMinerRefused.Error()+": ")
		}
		status.Miners = append(status.Miners, row)
	}
	slices.SortFunc(status.Miners, func(a, b MinerStatus) int { return strings.Compare(a.Name, b.Name) })
	return status
}

// serviceState is whether the block web service does its work.
type serviceState struct {
	err   error // nil: it gave an answer that makes sense
	since time.Time
}

func (s serviceState) String() string {
	if s.err == nil {
		return ""
	}
	return fmt.Sprintf("failing since %s: %v", s.since.Format(time.RFC3339), s.err)
}

// serviceAnswered records the end of one request. It logs a change, once.
func (c *Coordinator) serviceAnswered(err error) {
	if err != nil && c.term.Err() != nil {
		return // it was given up, not refused
	}
	now := c.cfg.Now()
	c.mu.Lock()
	was := c.service
	if err == nil || was.err == nil {
		c.service.since = now
	}
	c.service.err = err
	c.mu.Unlock()
	address := c.cfg.Source.Address()
	switch {
	case err != nil && was.err == nil:
		c.log.Warn("block web service fails", "address", address, "error", err)
	case err == nil && was.err != nil:
		c.log.Info("block web service works again", "address", address, "down_for", now.Sub(was.since))
	}
}
