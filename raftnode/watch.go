package raftnode

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// What the watched side of a stream says. Protocol. The watching side says only its hello.
const (
	watchServed  = 0x06 // the hello was right, and this server lives
	watchLeaving = 0x04 // a planned stop has begun: the end of this stream is no crash
	watchCalling = 0x05 // this server calls an election; the index of its last entry follows, 8 bytes big endian
)

// Tuning of the watch streams.
const (
	watchTimeout    = time.Second           // of a dial, and of the greeting
	watchPauseFirst = time.Millisecond      // a dying process closes its port within some of these
	watchPauseMost  = time.Second           // between tries to reach a server that is not there
	watchDoubt      = 2 * time.Second       // how long the end of a stream may take to be confirmed
	heirPause       = 60 * time.Millisecond // between the elections that the heirs of a dead leader call
	heirLook        = 2 * time.Millisecond
)

// watchers are the streams of those who watch this server.
type watchers struct {
	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	leaving bool
}

// watchListener returns nil when there are no watch streams.
func (n *Node) watchListener() net.Listener {
	if n.door != nil {
		return n.door
	}
	if n.config.WatchListener == nil && n.config.Stream == nil {
		return n.config.Listener.Watch()
	}
	return n.config.WatchListener
}

// serveWatches answers those who watch this server, until ctx ends.
func (n *Node) serveWatches(ctx context.Context, listener net.Listener) {
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	var work sync.WaitGroup
	defer work.Wait()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			if !sleep(ctx, watchPauseFirst) {
				return
			}
			continue
		}
		work.Go(func() { n.serveWatch(ctx, conn) })
	}
}

// findSelf says when the advertised address does not lead here. That may be so behind a translated address alone, and the first
// server has nobody who would find out.
func (n *Node) findSelf(ctx context.Context) {
	conn, err := n.openWatch(ctx, newHello(n.clusterID, n.id), n.config.Advertise)
	if err == nil {
		conn.Close()
	} else if ctx.Err() == nil {
		n.log.Warn("this server is not found at the address that it advertises: if the others do not find it there either, start it with another",
			"advertise", n.config.Advertise, "error", err)
	}
}

// serveWatch holds one stream: its end is what tells the other side that this process died.
func (n *Node) serveWatch(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(watchTimeout))
	var got hello
	if _, err := io.ReadFull(conn, got[:]); err != nil || got != newHello(n.clusterID, n.id) {
		return
	}
	if !n.watchers.add(conn) {
		return
	}
	defer n.watchers.remove(conn)
	conn.SetDeadline(time.Time{})
	var more [1]byte
	conn.Read(more[:]) // nothing more is said: it returns when the stream ends
}

// add greets a stream, and reports whether that worked.
func (w *watchers) add(conn net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	greeting := []byte{watchServed}
	if w.leaving {
		greeting = append(greeting, watchLeaving)
	}
	if _, err := conn.Write(greeting); err != nil {
		return false
	}
	if w.conns == nil {
		w.conns = make(map[net.Conn]struct{})
	}
	w.conns[conn] = struct{}{}
	return true
}

func (w *watchers) remove(conn net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, conn)
}

// leave tells all who watch that a planned stop has begun.
func (w *watchers) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.leaving {
		w.leaving = true
		w.say([]byte{watchLeaving})
	}
}

// calling tells all who watch that this server calls an election, with this last entry. They would hear of it from Raft
// only when the candidate has synced its vote.
func (w *watchers) calling(lastIndex uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say(binary.BigEndian.AppendUint64([]byte{watchCalling}, lastIndex))
}

// say writes to all streams; so few bytes always fit. The caller holds mu.
func (w *watchers) say(message []byte) {
	for conn := range w.conns {
		conn.SetWriteDeadline(time.Now().Add(watchTimeout))
		conn.Write(message) // a stream that broke tells its own
	}
}

// watch keeps a stream to one other server until ctx ends. When it ends although nobody said so, and the port where it
// went refuses twice, the process behind it is dead: a paused one keeps both.
func (n *Node) watch(ctx context.Context, p *peer) {
	pause := watchPauseFirst
	var doubt string // where a stream went that ended
	var since time.Time
	var leaving bool
	refused := 0
	for {
		address := doubt
		if doubt == "" {
			address = n.book.address(p.id)
		}
		conn, err := n.openWatch(ctx, newHello(n.clusterID, p.id), address)
		switch {
		case err == nil:
			began := time.Now()
			leaving = n.holdWatch(ctx, p, conn)
			if ctx.Err() != nil {
				return
			}
			doubt, since, refused = address, time.Now(), 0
			if since.Sub(began) > watchPauseMost {
				pause = watchPauseFirst
			}
			continue // the first dial at once
		case doubt == "":
		case errors.Is(err, syscall.ECONNREFUSED):
			if refused++; refused < refusedDials {
				continue
			}
			doubt = ""
			n.serverDied(ctx, p, leaving)
		default:
			if refused = 0; time.Since(since) > watchDoubt {
				doubt = "" // perhaps it moved
			}
		}
		timer := time.NewTimer(pause)
		pause = min(2*pause, watchPauseMost)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-p.back:
			pause = watchPauseFirst
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// openWatch returns a stream that the right server serves.
func (n *Node) openWatch(ctx context.Context, greeting hello, address string) (net.Conn, error) {
	if address == "" {
		return nil, errUnknownAddress
	}
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	conn, err := n.config.DialWatch(ctx, address)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	var answer [1]byte
	if _, err = conn.Write(greeting[:]); err == nil {
		_, err = io.ReadFull(conn, answer[:])
	}
	if err == nil && answer[0] != watchServed {
		err = errors.New("watch stream answered with an unknown byte")
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// holdWatch reads a stream until it ends, and reports whether the other side said that it is leaving.
func (n *Node) holdWatch(ctx context.Context, p *peer, conn net.Conn) (leaving bool) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	n.log.Debug("watching server", "peer", p.id)
	var said [1]byte
	for {
		if _, err := io.ReadFull(conn, said[:]); err != nil {
			n.log.Debug("watch stream ended", "peer", p.id, "leaving", leaving, "error", err)
			return leaving
		}
		switch said[0] {
		case watchLeaving:
			leaving = true
			n.peers.leaving(p.id)
		case watchCalling:
			var index [8]byte
			if _, err := io.ReadFull(conn, index[:]); err == nil {
				n.peers.calling(p.id, binary.BigEndian.Uint64(index[:]))
			}
		}
	}
}

// serverDied acts on the proof that the process of a server is gone.
func (n *Node) serverDied(ctx context.Context, p *peer, leaving bool) {
	n.log.Info("server died", "peer", p.id, "announced", leaving)
	n.peers.mu.Lock()
	p.fail(time.Now())
	p.refused = refusedDials
	n.peers.mu.Unlock()
	poke(n.govern)
	n.goOnWithout(ctx, p.id, "its process died")
	if !leaving {
		n.succeed(ctx, p.id)
	}
}

// succeed makes this server call an election when it is the lowest voter that survives a dead leader whom it followed,
// the next one heirPause later when there is still no leader, and so on. Raft's own timers go on beside it. This passes
// over pre-vote and leader stickiness, so a leader that only seemed dead may overlap with the next for one lease.
func (n *Node) succeed(ctx context.Context, dead uint64) {
	began, term := time.Now(), n.raft.CurrentTerm()
	if leader := n.leader(); leader != dead {
		var office fsm.Office
		n.View(func(v fsm.View) { office = v.Office() })
		if leader != 0 || office.ServerID != dead {
			return
		}
		term = office.Term // an heir was faster
	}
	var rose time.Time // when somebody's request for votes came
	for n.mayCallElection(dead) {
		if rose.IsZero() && n.raft.CurrentTerm() != term {
			rose = time.Now()
		}
		if wait := time.Until(n.turn(began, rose)); wait > 0 {
			if !sleep(ctx, min(wait, heirLook)) {
				return
			}
			continue
		}
		n.log.Info("leader died, calling an election", "leader", dead)
		n.watchers.calling(n.raft.LastIndex())
		if err := n.callElection(ctx, n.id); err != nil {
			n.log.Debug("immediate election failed, waiting for the timeout", "error", err)
		}
		return
	}
}

// turn returns when this server's turn to call an election comes. While an heir that called may win, it does not: a second
// election would end the term of the first, and on a busy disk a vote takes longer than heirPause. An heir whose log is
// shorter than ours cannot win, but only after its request for votes may the next one call, in a higher term.
func (n *Node) turn(began, rose time.Time) time.Time {
	called, index, callers := n.peers.callers(n.id, began)
	due := time.Duration(n.rank()-callers) * heirPause
	switch {
	case called.IsZero() && rose.IsZero():
		return began.Add(due)
	case called.IsZero():
		return rose.Add(due)
	case !rose.IsZero() && n.raft.LastIndex() > index && !n.raft.LastContact().After(called): // not voted for
		return rose.Add(due)
	}
	return called.Add(n.config.RaftElection)
}

// mayCallElection reports whether this server still waits for a successor of a dead leader. A non-voter must never
// call: Raft checks nothing there.
func (n *Node) mayCallElection(dead uint64) bool {
	leader := n.leader()
	var over bool
	n.View(func(v fsm.View) { over = v.Stopped() })
	return (leader == dead || leader == 0) && n.raft.State() == raft.Follower && isVoter(n.configuration(), n.id) &&
		!over && !n.stopping.Load()
}

// rank returns how many voters with lower ids are, as far as known, alive and staying.
func (n *Node) rank() (rank int) {
	for _, server := range n.configuration() {
		id := serverID(server.ID)
		if p, ok := n.peers.get(id); id < n.id && server.Suffrage == raft.Voter && ok && p.refused < refusedDials && !p.left {
			rank++
		}
	}
	return rank
}
