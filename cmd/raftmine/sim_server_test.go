package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"raftmine/fsm"
	"raftmine/raftnode"
	"raftmine/raftnode/coordinator"
)

// simServer is one server of a simulated cluster, up or down. Only the driver's goroutine and keep change what runs.
type simServer struct {
	sim   *sim
	id    int
	name  string
	moves int // how often it changed its address

	mu      sync.Mutex
	disk    *simDisk
	process *simProcess // nil: it is down
	crashes int
}

// simProcess is one life of a server.
type simProcess struct {
	server  *simServer
	disk    *simDisk
	address string
	node    *raftnode.Node
	leading atomic.Pointer[coordinator.Coordinator]
	life    context.Context // ends with a crash or a stop
	end     context.CancelFunc
	work    sync.WaitGroup // sessions of miners
	ran     chan struct{}  // closed when Run returned
	closing atomic.Bool
	closed  chan struct{} // closed when close is done

	raft, watch *simListener
}

func (p *simProcess) dead() bool { return p.life.Err() != nil }

func (s *simServer) running() *simProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// start starts the server on its disk; join is asked for an id when it has none. An error is the disk's fault, or fails the
// simulation.
func (s *simServer) start(join ...string) error {
	if s.running() != nil {
		return nil
	}
	sim := s.sim
	dir, err := raftnode.OpenDataDir(s.disk.dir)
	if err != nil {
		return err
	}
	p := &simProcess{server: s, disk: s.disk, address: simAddress(s.id, s.moves), ran: make(chan struct{}), closed: make(chan struct{})}
	p.life, p.end = context.WithCancel(context.Background())
	p.raft, p.watch = sim.net.listen(s.name, simRaft, p.address), sim.net.listen(s.name, simWatch, p.address)
	config := sim.serverConfig(p)
	config.DataDir = dir
	config.Bootstrap = len(join) == 0
	config.Join = join
	p.node, err = raftnode.Open(p.life, config)
	if err != nil {
		p.end()
		return errors.Join(err, p.raft.Close(), p.watch.Close(), dir.Close())
	}
	s.mu.Lock()
	s.process = p
	s.mu.Unlock()
	sim.served(p)
	go func() {
		err := p.node.Run(p.life, p.lead)
		close(p.ran)
		if err != nil && !p.dead() {
			s.exited(p, err)
		}
	}()
	return nil
}

// exited deals with a process that ends by itself, as it does when its disk fails.
func (s *simServer) exited(p *simProcess, err error) {
	if !errors.Is(err, raftnode.ErrDiskStalled) && !strings.Contains(err.Error(), errSimDisk.Error()) {
		s.sim.fail("server %d ended by itself: %v", s.id, err)
	}
	s.sim.note("server %d ended: %v", s.id, err)
	s.crash()
}

// crash ends the process as kill -9 does.
func (s *simServer) crash() {
	s.mu.Lock()
	p := s.process
	if p == nil {
		s.mu.Unlock()
		return
	}
	s.process = nil
	s.crashes++
	after, err := p.disk.crash(filepath.Join(s.sim.dir, fmt.Sprintf("%s-%d", s.name, s.crashes)))
	s.disk = after
	s.mu.Unlock()
	if err != nil {
		s.sim.fail("copy the data of server %d: %v", s.id, err)
	}
	p.end()
	p.vanish()
	s.sim.background.Go(p.close)
}

// stop is a planned stop.
func (s *simServer) stop() {
	p := s.running()
	if p == nil {
		return
	}
	if err := p.node.Stop(context.Background()); err != nil {
		s.sim.note("server %d stopped without telling the others: %v", s.id, err)
	}
	p.end()
	p.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != p { // it crashed meanwhile
		return
	}
	s.process = nil
	p.vanish()
	s.disk.change(func() { clear(s.disk.files) })
}

// vanish takes the process off the network.
func (p *simProcess) vanish() {
	p.server.sim.unserved(p)
	p.raft.Close()
	p.watch.Close()
	p.server.sim.net.resetConns(p.server.name)
}

// close waits until nothing of the process runs any more.
func (p *simProcess) close() {
	if p.closing.Swap(true) {
		<-p.closed // no sync.Once: virtual time stands still while anybody waits for a mutex
		return
	}
	defer close(p.closed)
	p.end()
	<-p.ran
	if err := p.node.Close(); err != nil && !p.disk.isDead() {
		p.server.sim.note("server %d closed: %v", p.server.id, err)
	}
	p.work.Wait()
}

// faultyDisk is the disk that a fault begins or ends on.
func (s *simServer) faultyDisk() *simDisk {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.disk
}

// lead is one term, as serverOptions.lead is.
func (p *simProcess) lead(ctx context.Context, term uint64) error {
	s := p.server.sim
	s.leads(p, term)
	config := s.coordinatorConfig(p, term)
	c, err := coordinator.New(config)
	if err != nil {
		return err
	}
	p.leading.Store(c)
	defer p.leading.Store(nil)
	return c.Run(ctx)
}

// simPeers is raftnode.PeerClient over the simulated network.
type simPeers struct{ p *simProcess }

func simCall[R any](ctx context.Context, from *simProcess, address string, handle func(*raftnode.Node) (R, error)) (reply R, err error) {
	sim := from.server.sim
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(from.life, cancel)()
	to := simHostOf(address)
	if err := sim.net.travel(ctx, from.server.name, to); err != nil {
		return reply, fmt.Errorf("call %s: %w", address, err)
	}
	if err := sim.net.probe(ctx, from.server.name, address); err != nil {
		return reply, err
	}
	callee := sim.serving(address)
	if callee == nil {
		return reply, fmt.Errorf("call %s: not served yet", address)
	}
	if reply, err = handle(callee.node); err != nil {
		return reply, err
	}
	if callee.dead() {
		return reply, fmt.Errorf("call %s: %w", address, errSimReset)
	}
	if err := sim.net.travel(ctx, to, from.server.name); err != nil {
		return reply, fmt.Errorf("call %s: %w", address, err)
	}
	return reply, nil
}

func (c simPeers) Heartbeat(ctx context.Context, address string, request raftnode.HeartbeatRequest) (raftnode.ServerReport, error) {
	return simCall(ctx, c.p, address, func(n *raftnode.Node) (raftnode.ServerReport, error) { return n.HandleHeartbeat(request) })
}

func (c simPeers) Join(ctx context.Context, address string, request raftnode.JoinRequest) (raftnode.JoinReply, error) {
	return simCall(ctx, c.p, address, func(n *raftnode.Node) (raftnode.JoinReply, error) { return n.HandleJoin(ctx, request) })
}

func (c simPeers) Leave(ctx context.Context, address string, request raftnode.LeaveRequest) error {
	_, err := simCall(ctx, c.p, address, func(n *raftnode.Node) (struct{}, error) { return struct{}{}, n.HandleLeave(ctx, request) })
	return err
}

func (c simPeers) History(ctx context.Context, address string, request raftnode.HistoryRequest) iter.Seq2[raftnode.JournalRecord, error] {
	return func(yield func(raftnode.JournalRecord, error) bool) {
		node, err := simCall(ctx, c.p, address, func(n *raftnode.Node) (*raftnode.Node, error) { return n, nil })
		if err != nil {
			yield(raftnode.JournalRecord{}, err)
			return
		}
		for record, err := range node.HandleHistory(ctx, request) {
			if !yield(record, err) {
				return
			}
		}
	}
}

// serverConfig is what all servers have in common. The times keep the proportions of the real ones, roughly, with fewer
// Raft heartbeats, which are what a simulation spends its time on.
func (s *sim) serverConfig(p *simProcess) raftnode.Config {
	config := raftnode.Config{
		Stream: p.raft, WatchListener: p.watch, Advertise: p.address, Peers: simPeers{p},
		DialWatch: dialFrom(s.net, p.server.name),
		Probe: func(ctx context.Context, address string) error {
			return s.net.probe(ctx, p.server.name, address)
		},
		OpenStores: p.disk.stores, OpenJournalFile: p.disk.openFile,
		Heartbeat: simHeartbeat, Grace: 2 * time.Second, JoinTimeout: time.Minute,
		RaftHeartbeat: time.Second, RaftElection: time.Second, RaftLease: 800 * time.Millisecond,
		TransportTimeout: 3 * time.Second, StallLimit: 2 * time.Second, StallExit: 6 * time.Second,
		Host: fsm.Host{MachineID: "machine", BootID: "boot"}, Version: "simulation", Logger: s.logger(p.server.name),
		JournalSegment: 8 << 10,
	}
	if s.schedule.graceful {
		config.Grace = 15 * time.Second
	}
	if s.schedule.snapshots {
		config.SnapshotInterval, config.SnapshotThreshold, config.TrailingLogs = 2*time.Second, 20, 5
	}
	return config
}

func (s *sim) coordinatorConfig(p *simProcess, term uint64) coordinator.Config {
	return coordinator.Config{
		Proposer: s.proposer(p), Source: simSource{p, s.web}, Logger: s.logger(p.server.name),
		ServerID: p.node.ID(), ClusterID: p.node.ClusterID(), Address: p.address, Term: term,
		Heartbeat: simHeartbeat, LeaseHeartbeats: 3, GrantTime: 2 * time.Second, AnswerTimeout: 20 * time.Second,
		ForgetAfter: time.Minute, Nonces: simNonces, ChunkSize: simChunk, MaxGrantChunks: 4,
	}
}
