package raftnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"raftmine/fsm"
)

// When a server counts as silent. Tuning.
const (
	missedHeartbeats = 3 // in a row
	refusedDials     = 2 // in a row
	stableHeartbeats = 2 // answered in a row, before a server counts as up
)

// removedRounds is after how many heartbeats a removed server is asked whether it is there. Tuning.
const removedRounds = 12

// peerSet is what this server knows of the others by its own heartbeats. Every server keeps it, so a new leader need not
// begin at nothing.
type peerSet struct {
	mu   sync.Mutex
	byID map[uint64]*peer
}

// peer is one other server. Its fields are guarded by peerSet.mu; kick and end are constant.
type peer struct {
	id   uint64
	kick chan struct{} // cap 1: send a heartbeat at once
	back chan struct{} // cap 1: it answers again
	end  context.CancelFunc

	present  bool      // the last exchange worked, heartbeat or question
	answered int       // heartbeats in a row
	missed   int       // heartbeats in a row
	lastMiss time.Time // when the last of them was sent
	refused  int       // dials in a row; 0 as soon as anything else happens
	silent   time.Time // when present became false, or when this server began to ask
	since    time.Time // of the first answer of the run
	last     time.Time // of the last answer, of a heartbeat or of a question in between
	report   ServerReport
	called   time.Time // when it last said that it calls an election
	callWith uint64    // its last index then
	left     bool      // it announced a stop, and has not answered otherwise since
}

func (s *peerSet) init() { s.byID = make(map[uint64]*peer) }

// get returns a copy of what is known of a server.
func (s *peerSet) get(id uint64) (peer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.byID[id]
	if !ok {
		return peer{}, false
	}
	return *p, true
}

func (s *peerSet) leaving(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.byID[id]; ok {
		p.left, p.answered = true, 0
	}
}

func (s *peerSet) calling(id, lastIndex uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.byID[id]; ok {
		p.called, p.callWith = time.Now(), lastIndex
	}
}

// callers says when a server last called an election since a time, with what last index, and how many of those that did
// have lower ids than id.
func (s *peerSet) callers(id uint64, since time.Time) (called time.Time, lastIndex uint64, lower int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.byID {
		// It may have noticed the death before us, and be dead by now.
		if p.called.Before(since.Add(-heirPause)) || p.refused >= refusedDials || p.left {
			continue
		}
		if p.called.After(called) {
			called, lastIndex = p.called, p.callWith
		}
		if p.id < id {
			lower++
		}
	}
	return called, lastIndex, lower
}

func (s *peerSet) kick(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.byID[id]; ok {
		poke(p.kick)
	}
}

// stable reports whether the server answered for two heartbeats and means to stay.
func (p *peer) stable(heartbeat time.Duration) bool {
	return p.answered >= stableHeartbeats && !p.left && p.last.Sub(p.since) >= heartbeat*9/10
}

// silence says why the server counts as down; empty: it does not.
func (p *peer) silence(heartbeat time.Duration) string {
	switch {
	case p.refused >= refusedDials:
		return "its port refuses"
	case p.missed >= missedHeartbeats,
		// The answer to the last of them is due now, and was never sent by a process that was silent since the first.
		p.missed == missedHeartbeats-1 && !p.last.IsZero() && time.Since(p.last) >= missedHeartbeats*heartbeat*9/10:
		return fmt.Sprintf("silent for %v", missedHeartbeats*heartbeat)
	}
	return ""
}

// serverIDs returns the members, by id.
func (n *Node) serverIDs() []uint64 {
	var ids []uint64
	n.View(func(v fsm.View) {
		for _, row := range v.Servers() {
			if row.Member {
				ids = append(ids, row.ID)
			}
		}
	})
	return ids
}

// othersWanted are the servers that get heartbeats: members, those in Raft's configuration (the table is empty until
// the log is replayed), and whoever was heard of lately, perhaps after a removal.
func (n *Node) othersWanted() []uint64 {
	ids := append(n.serverIDs(), n.book.known()...)
	for _, server := range n.configuration() {
		ids = append(ids, serverID(server.ID))
	}
	slices.Sort(ids)
	return slices.DeleteFunc(slices.Compact(ids), func(id uint64) bool { return id == n.id || id == 0 })
}

// keepHeartbeats runs one goroutine for each other server, until ctx ends.
func (n *Node) keepHeartbeats(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTicker(n.config.Heartbeat)
	defer timer.Stop()
	for {
		wanted := n.othersWanted()
		n.peers.mu.Lock()
		for id, p := range n.peers.byID {
			if !slices.Contains(wanted, id) {
				p.end()
				delete(n.peers.byID, id)
			}
		}
		for _, id := range wanted {
			if n.peers.byID[id] != nil {
				continue
			}
			peerCtx, end := context.WithCancel(ctx)
			p := &peer{id: id, kick: make(chan struct{}, 1), back: make(chan struct{}, 1), end: end, silent: time.Now()}
			n.peers.byID[id] = p
			work.Go(func() { n.heartbeats(peerCtx, p) })
			if n.watchListener() != nil {
				work.Go(func() { n.watch(peerCtx, p) })
			}
		}
		n.peers.mu.Unlock()
		select {
		case <-ctx.Done():
			n.peers.mu.Lock()
			n.peers.init()
			n.peers.mu.Unlock()
			return
		case <-timer.C:
			n.log.Debug("leader computed", "leader", n.computedLeader())
		case <-n.regroup:
		}
	}
}

func (n *Node) computedLeader() (id uint64) {
	n.View(func(v fsm.View) { id = v.LowestUp() })
	return id
}

// heartbeats sends one server a heartbeat at once, and then each interval or when it is kicked.
func (n *Node) heartbeats(ctx context.Context, p *peer) {
	defer p.end()
	for {
		next := time.NewTimer(n.config.Heartbeat)
		n.beat(ctx, p)
		select {
		case <-ctx.Done():
		case <-next.C:
		case <-p.kick:
		}
		next.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// beat sends one heartbeat. Those in between, after a kick, do not make the missed ones come faster.
func (n *Node) beat(ctx context.Context, p *peer) {
	sent := time.Now()
	address := n.book.address(p.id)
	report, err := n.ask(ctx, p.id, address)
	if ctx.Err() != nil {
		return
	}
	n.log.Debug("heartbeat sent", "to", p.id, "address", address, "answered", err == nil, "error", err)
	if n.config.Observer != nil {
		n.config.Observer.Heartbeat(n.id, p.id, err == nil)
	}
	refused := 0
	if err != nil {
		n.book.dialFailed(address)
		refused = n.probe(ctx, address, err)
	}
	n.peers.mu.Lock()
	if p.refused = refused; err != nil {
		p.fail(time.Now())
		if sent.Sub(p.lastMiss) >= n.config.Heartbeat*9/10 {
			p.missed++
			p.lastMiss = sent
		}
	} else {
		if p.answered == 0 {
			p.since = sent
		}
		p.answered++
		p.take(report)
	}
	n.peers.mu.Unlock()
	poke(n.govern)
}

// fail records that the server did not answer.
func (p *peer) fail(now time.Time) {
	if p.present {
		p.silent = now
	}
	p.present, p.answered = false, 0
}

// take records an answer.
func (p *peer) take(report ServerReport) {
	if !p.present {
		poke(p.back)
	}
	p.present, p.missed, p.refused = true, 0, 0
	p.last = time.Now()
	p.report = report
	if p.left = report.Stopping; p.left {
		p.answered = 0
	}
}

// ask sends one heartbeat and checks that the right server answered.
func (n *Node) ask(ctx context.Context, id uint64, address string) (ServerReport, error) {
	if address == "" {
		return ServerReport{}, errUnknownAddress
	}
	ctx, cancel := context.WithTimeout(ctx, n.config.Heartbeat)
	defer cancel()
	report, err := n.config.Peers.Heartbeat(ctx, address, n.heartbeatRequest())
	switch {
	case err != nil:
		return ServerReport{}, err
	case report.ClusterID != n.clusterID:
		return ServerReport{}, fmt.Errorf("server at %s: %w", address, ErrForeignCluster)
	case id != 0 && report.ServerID != id:
		return ServerReport{}, fmt.Errorf("server %d answered at the address of server %d, %s", report.ServerID, id, address)
	}
	return report, nil
}

// probe counts how often the port of a server that did not answer refuses: twice means that no process listens there.
func (n *Node) probe(ctx context.Context, address string, cause error) int {
	if address == "" {
		return 0
	}
	refused := 0
	if errors.Is(cause, syscall.ECONNREFUSED) {
		refused++
	}
	for refused < refusedDials {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		err := n.config.Probe(ctx, address)
		cancel()
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return 0
		}
		refused++
	}
	return refused
}

func (n *Node) heartbeatRequest() HeartbeatRequest {
	request := HeartbeatRequest{
		ClusterID:     n.clusterID,
		ServerID:      n.id,
		Address:       n.config.Advertise,
		Term:          n.raft.CurrentTerm(),
		LeaderID:      n.leader(),
		SentUnixMilli: uint64(max(0, n.config.Now().UnixMilli())),
	}
	for _, id := range n.upIDs() {
		request.ServerAddresses = append(request.ServerAddresses, n.book.address(id))
	}
	return request
}

// upIDs returns the servers that are up, by id.
func (n *Node) upIDs() (up []uint64) {
	n.View(func(v fsm.View) {
		for _, row := range v.Servers() {
			if row.Up {
				up = append(up, row.ID)
			}
		}
	})
	return up
}

// HandleHeartbeat answers another server's heartbeat, and remembers where it came from.
func (n *Node) HandleHeartbeat(request HeartbeatRequest) (ServerReport, error) {
	if err := n.alive(); err != nil {
		return ServerReport{}, err
	}
	switch {
	case n.disk.isStalled():
		return ServerReport{}, ErrDiskStalled
	case request.ClusterID != n.clusterID:
		return ServerReport{}, fmt.Errorf("heartbeat of server %d refused: it belongs to cluster %s, this is %s: %w",
			request.ServerID, request.ClusterID, n.clusterID, ErrForeignCluster)
	case request.ServerID == 0:
		return ServerReport{}, errors.New("heartbeat refused: it has no server id")
	case request.ServerID == n.id:
		return ServerReport{}, fmt.Errorf("heartbeat refused: it says server %d, which is this one", n.id)
	}
	n.log.Debug("heartbeat received", "from", request.ServerID, "address", request.Address)
	n.book.hear(request.ServerID, request.Address)
	n.passedOn.Store(&request.ServerAddresses)
	if n.config.Observer != nil {
		n.config.Observer.Heartbeat(request.ServerID, n.id, true)
	}
	// One that was silent, or that nobody here knows, is asked back at once: it has just come.
	if p, ok := n.peers.get(request.ServerID); !ok {
		poke(n.regroup)
	} else if !p.present {
		n.peers.kick(request.ServerID)
	}
	return n.report(), nil
}

func (n *Node) report() ServerReport {
	return ServerReport{
		ClusterID:        n.clusterID,
		ServerID:         n.id,
		Address:          n.config.Advertise,
		Term:             n.raft.CurrentTerm(),
		LeaderID:         n.leader(),
		ComputedLeaderID: n.computedLeader(),
		LastIndex:        n.raft.LastIndex(),
		AppliedIndex:     n.raft.AppliedIndex(),
		DataDir:          n.config.DataDir.Path(),
		Host:             n.config.Host,
		Stopping:         n.stopping.Load(),
	}
}

// findOthers asks the addresses that were given to join, those that others passed on in their heartbeats, and those of removed
// servers, while no leader is known: after a restart the others may be elsewhere, and this server as well, so that those who moved
// meanwhile do not find each other. Removed servers are asked now and then in any case: those who removed them may have moved
// since, and they get no heartbeats.
func (n *Node) findOthers(ctx context.Context) {
	for round, ok := 0, true; ok; round, ok = round+1, sleep(ctx, n.config.Heartbeat) {
		var addresses []string
		// Once in any case: an only voter is its own leader at once, and knows nobody who moved.
		if round == 0 || n.leader() == 0 {
			addresses = slices.Clone(n.config.Join)
			if passedOn := n.passedOn.Load(); passedOn != nil {
				addresses = append(addresses, *passedOn...)
			}
		} else if round%removedRounds != 0 {
			continue
		}
		addresses = append(addresses, n.removedAddresses()...)
		slices.Sort(addresses)
		for _, address := range slices.Compact(addresses) {
			if address == n.config.Advertise {
				continue
			}
			if report, err := n.ask(ctx, 0, address); err == nil {
				n.book.hear(report.ServerID, report.Address)
				poke(n.regroup)
			}
		}
	}
}

// removedAddresses returns where the servers that are no members were last.
func (n *Node) removedAddresses() (addresses []string) {
	n.View(func(v fsm.View) {
		for _, row := range v.Servers() {
			if !row.Member && row.ID != n.id {
				addresses = append(addresses, row.Address)
			}
		}
	})
	return addresses
}
