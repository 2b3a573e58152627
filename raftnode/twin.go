package raftnode

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// Two processes on copies of one data directory are one server to Raft: both vote, and both acknowledge what the other does not
// have. They are told apart by their Instance, which is in each heartbeat and in the hello of each Raft connection.
//
// A server that meets a second instance of another one dials the first. Only when that one answers, so that both are alive, is
// the second refused, with ErrTwin, and ends. A server that was killed and started again is never met with: its port refuses, or
// is its own again. Before Raft starts, a server tells the others, and whoever listens where it did last, that it is there
// (introduce), so a copy ends before it votes. Start looks at the local environment and at the directory's own record of where
// it lies as well (refuseCopy).

// Instance names one start of a server: 16 random bytes.
type Instance [16]byte

func newInstance() (i Instance) {
	_, _ = rand.Read(i[:]) // never fails
	return i
}

// Tuning.
const (
	twinTimeout = time.Second // for the first instance to answer, and for an introduction
	twinsKept   = 8           // instances that were replaced, for each server

	maxSpeakers = maxServers + maxStrangers
)

// errUndecided: the first instance does not answer, and is not silent for long enough to be called dead.
var errUndecided = errors.New("it is not known yet whether the process that was this server before is dead")

// twinError is the one line that a person gets to read.
func twinError(id uint64, address string, since time.Time, more string) error {
	return fmt.Errorf("another process%s has been server %d at %s since %s: %w; start a new server on an empty directory instead",
		more, id, address, since.Format("2006-01-02 15:04:05"), ErrTwin)
}

// speakers are the processes that speak as the other servers.
type speakers struct {
	mu   sync.Mutex // not held while anybody is asked
	byID map[uint64]*speaker
}

// speaker is the process that is taken for one other server. Turn is constant, the rest is guarded by speakers.mu.
type speaker struct {
	turn     turn // one at a time finds out
	instance Instance
	address  string // where it listens; empty: it has not said so yet
	since    time.Time
	last     time.Time // when it last spoke
	replaced []Instance
}

// of returns what is known of a server; the first instance that is heard of is taken for it.
func (s *speakers) of(id uint64, instance Instance, address string) *speaker {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.byID[id]
	if !ok {
		if s.byID == nil {
			s.byID = make(map[uint64]*speaker)
		}
		if len(s.byID) >= maxSpeakers {
			s.forgetQuietest()
		}
		now := time.Now()
		known = &speaker{turn: make(turn, 1), instance: instance, address: address, since: now, last: now}
		s.byID[id] = known
	}
	return known
}

// forgetQuietest makes room. Members are heard each heartbeat. The caller holds mu.
func (s *speakers) forgetQuietest() {
	var quietest uint64
	for id, p := range s.byID {
		if quietest == 0 || p.last.Before(s.byID[quietest].last) {
			quietest = id
		}
	}
	delete(s.byID, quietest)
}

// judge returns a copy of what is known, and whether that settles it: the instance is the known one, or one that another replaced.
func (s *speakers) judge(p *speaker, instance Instance, address string) (known speaker, settled, admitted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if instance == p.instance {
		p.last, p.address = time.Now(), cmp.Or(address, p.address)
		return *p, true, true
	}
	return *p, slices.Contains(p.replaced, instance), false
}

func (s *speakers) replace(p *speaker, instance Instance, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.replaced = append(p.replaced, p.instance)
	p.replaced = p.replaced[max(0, len(p.replaced)-twinsKept):]
	p.instance, p.address, p.since, p.last = instance, address, time.Now(), time.Now()
}

// admit returns nil when a process may speak as a server. Address is where it listens, empty when it did not say. The error
// wraps ErrTwin when another process is that server, alive.
func (n *Node) admit(ctx context.Context, id uint64, instance Instance, address string) error {
	p := n.speakers.of(id, instance, address)
	for locked := false; ; locked = true {
		known, settled, admitted := n.speakers.judge(p, instance, address)
		switch {
		case admitted:
			return nil
		case settled:
			return twinError(id, known.address, known.since, "")
		case locked:
			return n.succession(ctx, id, p, known, instance, address)
		}
		if err := p.turn.take(ctx); err != nil {
			return err
		}
		defer p.turn.pass() // once: the second round returns
	}
}

// succession finds out whether the known process is alive, and replaces it if it is not.
func (n *Node) succession(ctx context.Context, id uint64, p *speaker, known speaker, instance Instance, address string) error {
	at := cmp.Or(known.address, n.book.address(id))
	dead := at == n.config.Advertise || at != "" && at == address // one process listens at an address, and it is not the known one
	if !dead {
		asked, cancel := context.WithTimeout(ctx, min(twinTimeout, n.config.Heartbeat/2))
		defer cancel()
		report, err := n.inquire(asked, at)
		switch {
		case err == nil && report.ClusterID == n.clusterID && report.ServerID == id:
			if report.Instance != instance {
				n.log.Warn("a second process says that it is a server which is alive, and is refused", "peer", id,
					"alive_at", at, "refused_at", address)
				return twinError(id, at, known.since, "")
			}
			dead, address = true, at
		case err == nil:
			dead = true // its port is another server's now
		case n.probe(ctx, at, err) >= refusedDials:
			dead = true
		case time.Since(known.last) < missedHeartbeats*n.config.Heartbeat:
			return fmt.Errorf("server %d: %w", id, errUndecided)
		}
	}
	n.log.Debug("server was started again", "peer", id, "address", address, "dead", dead)
	n.speakers.replace(p, instance, address)
	if !dead { // perhaps paused: what it acknowledges when it goes on must not count
		n.stream.closeOf(id)
	}
	return nil
}

// admitStream is admit for a Raft connection, of whose sender only the hello is known.
func (n *Node) admitStream(id uint64, instance Instance) error {
	switch {
	case id == n.id && instance == n.instance: // a call for an election is sent to oneself
		return nil
	case id == n.id:
		return twinError(id, n.config.Advertise, n.opened, "")
	case id == 0:
		return errors.New("it does not say whose it is")
	}
	ctx, cancel := context.WithTimeout(n.ctx, helloTimeout)
	defer cancel()
	return n.admit(ctx, id, instance, "")
}

// endAsTwin stops this server: another one is told to be alive.
func (n *Node) endAsTwin(err error) {
	n.stream.halt(true)
	_ = n.replica.fail(fmt.Errorf("data directory %s: %w", n.config.DataDir.Path(), err)) // Run returns it
}

// introduce tells the others, before Raft starts, that this process is the server now, and asks those who listen where it did
// last. Nobody who does not answer is waited for longer than twinTimeout.
func (n *Node) introduce(ctx context.Context, last string, table []fsm.Server) error {
	if err := n.book.refresh(); err != nil {
		n.log.Warn("local environment has damaged entries", "error", err)
	}
	var ask []string
	for _, id := range n.book.known() {
		ask = append(ask, n.book.address(id))
	}
	for _, row := range table {
		switch {
		case row.ID == n.id:
			ask = append(ask, row.Address)
		case row.Member:
			ask = append(ask, cmp.Or(n.book.address(row.ID), row.Address))
		}
	}
	if len(ask) == 0 {
		ask = append(ask, n.config.Join...)
	}
	ask = append(ask, last)
	slices.Sort(ask)
	ask = slices.DeleteFunc(slices.Compact(ask), func(address string) bool {
		return checkAdvertised(address) != nil || address == n.config.Advertise
	})
	ctx, cancel := context.WithTimeout(ctx, min(twinTimeout, n.config.Heartbeat/2))
	defer cancel()
	request := HeartbeatRequest{ClusterID: n.clusterID, ServerID: n.id, Address: n.config.Advertise, Instance: n.instance,
		SentUnixMilli: uint64(max(0, n.config.Now().UnixMilli()))}
	answers := make(chan error, len(ask))
	for _, address := range ask {
		go func() {
			_, err := n.config.Peers.Heartbeat(ctx, address, request)
			answers <- err
		}()
	}
	var twin error
	for range ask {
		if err := <-answers; errors.Is(err, ErrTwin) {
			twin = err
			cancel()
		}
	}
	if twin != nil {
		return fmt.Errorf("data directory %s: %w", n.config.DataDir.Path(), twin)
	}
	return nil
}

// refuseCopy returns ErrTwin when another process of this host is the same server, or when the directory is a copy of one that
// is still there. A directory that was moved is none.
func refuseCopy(dir *DataDir, host fsm.Host, env *registry.Environment) (err error) {
	identity := dir.Identity()
	if identity.ServerID == 0 {
		return nil
	}
	for try := 1; ; try++ { // a process that was killed holds its locks until the kernel has ended it
		err = refuseLive(dir.Path(), identity, env)
		if err == nil || try == openTries {
			break
		}
		time.Sleep(openInterval)
	}
	if err != nil {
		return err
	}
	original := identity.DataDir
	if original == "" || host.MachineID == "" || identity.MachineID != host.MachineID || sameDir(original, dir.Path()) {
		return nil
	}
	first, err := readIdentity(original)
	if err != nil || first.RequestID != identity.RequestID || first.ServerID != identity.ServerID {
		return nil // moved; or nothing is known
	}
	held, pid, err := registry.LockHolder(filepath.Join(original, lockFileName))
	if err == nil && held {
		return fmt.Errorf("data directory %s: another process%s is server %d on data directory %s: %w; "+
			"start a new server on an empty directory instead", dir.Path(), pidText(pid), identity.ServerID, original, ErrTwin)
	}
	return fmt.Errorf("data directory %s is that of server %d, and so is %s, from which it was copied: %w; start the server there, "+
		"or move that one away for good if this one is to take its place", dir.Path(), identity.ServerID, original, ErrTwin)
}

// refuseLive returns ErrTwin when a live process of the environment is the same server.
func refuseLive(dir string, identity Identity, env *registry.Environment) error {
	if env == nil {
		return nil
	}
	entries, _ := env.Entries() // what cannot be read proves nothing
	for _, entry := range entries {
		if entry.Role == registry.RoleServer && entry.ClusterID == identity.ClusterID && entry.ServerID == identity.ServerID {
			return fmt.Errorf("data directory %s: %w", dir, twinError(entry.ServerID, entry.Address,
				time.UnixMilli(int64(entry.StartedUnixMilli)), pidText(entry.PID)))
		}
	}
	return nil
}
