package main

import (
	"context"
	"sync"
	"time"

	"raftmine/miner"
)

// tellAfter is how long a miner looks for a leader before it says so.
const tellAfter = 2 * time.Second

// tellingDialer says where a miner's stream leads to, and when there is no leader to be found.
type tellingDialer struct {
	miner.Dialer
	out   *printer
	where string // which servers it asks

	mu           sync.Mutex
	leader, term uint64 // told last; 0: none
}

type minerWaitingView struct {
	Event string `json:"event"`
	Asked string `json:"asked"`
}

func (d *tellingDialer) Dial(ctx context.Context) (miner.Conn, error) {
	silent := time.AfterFunc(tellAfter, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.leader, d.term = 0, 0
		d.out.print(minerWaitingView{"waiting", d.where}, "no leader: waiting until one of the servers %s leads", d.where)
	})
	defer silent.Stop()
	conn, err := d.Dialer.Dial(ctx)
	if err != nil {
		return nil, err
	}
	return &tellingConn{conn, d}, nil
}

type tellingConn struct {
	miner.Conn
	dialer *tellingDialer
}

func (c *tellingConn) Receive() (miner.Message, error) {
	message, err := c.Conn.Receive()
	if m, ok := message.(miner.HeartbeatRequest); ok {
		c.dialer.tell(m)
	}
	return message, err
}

func (d *tellingDialer) tell(m miner.HeartbeatRequest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m.ServerID != d.leader || m.Term != d.term {
		d.leader, d.term = m.ServerID, m.Term
		d.out.print(leaderView{"leader", m.ServerID, m.Term}, "mining for server %d (term %d)", m.ServerID, m.Term)
	}
}
