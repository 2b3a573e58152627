package raftnode

import (
	"cmp"
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// hello is what a Raft connection starts with, after the stream layer's own tag: 16 bytes of SHA256(cluster id), then
// the id of the server that is meant, 8 bytes big endian. Protocol.
//
// Ports are reused: without it the log of one cluster could reach a server of another, or the acknowledgements of
// server 2 could be counted as those of server 3. Raft itself checks neither.
type hello [24]byte

// A server sends its hello together with the tag, so it need not be waited for. Connections that say nothing cannot lock
// out others: when too many are waited for, the one that is oldest is closed. Tuning.
const (
	helloTimeout = 2 * time.Second
	maxUngreeted = 256
)

// Each connection that Raft reads may hold a message of maxRaftBytes, so they are few. A server has raftPool and two more to
// another at most; those of 15 servers fit. Tuning.
const (
	maxRaftConns = 96
	fairConns    = raftPool + 2     // of one host
	crowdedEach  = 10 * time.Second // how often it is said
)

func newHello(clusterID string, serverID uint64) (h hello) {
	sum := sha256.Sum256([]byte(clusterID))
	copy(h[:16], sum[:])
	binary.BigEndian.PutUint64(h[16:], serverID)
	return h
}

// raftAddress is how Raft's configuration and connection pool name a server: its id and where it listened then. The id
// goes into the hello, and makes the address unique even when a port passed from one server to another.
func raftAddress(id uint64, address string) raft.ServerAddress {
	return raft.ServerAddress(strconv.FormatUint(id, 10) + "@" + address)
}

func splitRaftAddress(address raft.ServerAddress) (id uint64, hostPort string, err error) {
	number, hostPort, ok := strings.Cut(string(address), "@")
	if id, err = strconv.ParseUint(number, 10, 64); !ok || err != nil {
		return 0, "", fmt.Errorf("raft address %q is not id@host:port", address)
	}
	return id, hostPort, nil
}

func raftID(id uint64) raft.ServerID { return raft.ServerID(strconv.FormatUint(id, 10)) }

// serverID reads an id of Raft's; 0: none.
func serverID(id raft.ServerID) uint64 {
	number, err := strconv.ParseUint(string(id), 10, 64)
	if err != nil {
		return 0
	}
	return number
}

// guardedStream puts the hello around a stream layer and ends all connections with itself. Raft's own transport leaves
// accepted connections open when it is closed.
type guardedStream struct {
	inner     raft.StreamLayer
	clusterID string
	own       hello
	accepted  chan net.Conn
	refused   func(address string) // a dial failed: the address may be old
	strange   func(from string)    // a connection meant for another server
	crowded   func(from string)    // a connection closed because there were too many, told each crowdedEach
	closing   chan struct{}
	closeOnce sync.Once
	work      sync.WaitGroup // the accept loop and the hellos

	mu        sync.Mutex // guards what follows
	conns     map[*guardedConn]struct{}
	ungreeted list.List // of *guardedConn, whose hello is awaited, oldest first
	halted    bool      // no traffic, in or out
	said      time.Time // when crowded was called

	turns atomic.Uint64 // counts what guardedConn.asked and since are compared by
}

func newGuardedStream(inner raft.StreamLayer, clusterID string, id uint64) *guardedStream {
	s := &guardedStream{
		inner:     inner,
		clusterID: clusterID,
		own:       newHello(clusterID, id),
		accepted:  make(chan net.Conn),
		refused:   func(string) {},
		strange:   func(string) {},
		crowded:   func(string) {},
		closing:   make(chan struct{}),
		conns:     make(map[*guardedConn]struct{}),
	}
	return s
}

// start begins to accept.
func (s *guardedStream) start() {
	s.work.Add(1)
	go s.acceptLoop()
}

func (s *guardedStream) acceptLoop() {
	defer s.work.Done()
	for {
		conn, err := s.inner.Accept()
		if err != nil {
			select {
			case <-s.closing:
				return
			case <-time.After(10 * time.Millisecond): // the inner layer backs off as well
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		tracked := s.track(conn)
		s.work.Add(1)
		go s.greet(tracked, s.await(tracked))
	}
}

// await lists a connection whose hello is awaited, and closes the oldest such one when there are too many.
func (s *guardedStream) await(conn *guardedConn) *list.Element {
	s.mu.Lock()
	var oldest *guardedConn
	if s.ungreeted.Len() >= maxUngreeted {
		oldest = s.ungreeted.Remove(s.ungreeted.Front()).(*guardedConn)
	}
	element := s.ungreeted.PushBack(conn)
	s.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return element
}

func (s *guardedStream) greet(conn *guardedConn, waiting *list.Element) {
	defer s.work.Done()
	var got hello
	conn.SetReadDeadline(time.Now().Add(helloTimeout))
	_, err := io.ReadFull(conn, got[:])
	s.mu.Lock()
	s.ungreeted.Remove(waiting) // nothing, when it was closed as the oldest
	s.mu.Unlock()
	if err != nil || got != s.own || s.isHalted() {
		if err == nil && got != s.own {
			s.strange(conn.RemoteAddr().String())
		}
		conn.Close()
		return
	}
	conn.SetReadDeadline(time.Time{})
	conn.messages = &raftMessages{}
	s.admit(conn)
	select {
	case s.accepted <- conn:
	case <-s.closing:
		conn.Close()
	}
}

// admit lets Raft read a connection, and closes another when there are too many. Who passed the hello need not be a server:
// of the host that has the most connections beyond what a server has, the one goes that asked nothing yet, else whose last
// request is the oldest. So connections that say nothing, or never end what they say, push out each other and no server, also
// when each has a host of its own.
func (s *guardedStream) admit(conn *guardedConn) {
	from := conn.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(from); err == nil {
		from = host
	}
	s.mu.Lock()
	all, ofHost := 1, map[string]int{from: 1}
	for other := range s.conns {
		if other.host != "" {
			all++
			ofHost[other.host]++
		}
	}
	conn.host, conn.since = from, s.turns.Add(1)
	var spare *guardedConn
	if all > maxRaftConns {
		for other := range s.conns {
			if other != conn && other.host != "" && (spare == nil || other.sparerThan(spare, ofHost)) {
				spare = other
			}
		}
		delete(s.conns, spare)
	}
	now := time.Now()
	say := spare != nil && (s.said.IsZero() || now.Sub(s.said) >= crowdedEach)
	if say {
		s.said = now
	}
	s.mu.Unlock()
	if spare != nil {
		spare.Close()
	}
	if say {
		s.crowded(spare.host)
	}
}

// sparerThan is called with the stream's mu held.
func (c *guardedConn) sparerThan(other *guardedConn, ofHost map[string]int) bool {
	return cmp.Or(
		cmp.Compare(max(ofHost[other.host], fairConns), max(ofHost[c.host], fairConns)), // more of them
		cmp.Compare(c.asked.Load(), other.asked.Load()),
		cmp.Compare(c.since, other.since),
	) < 0
}

// Accept implements raft.StreamLayer.
func (s *guardedStream) Accept() (net.Conn, error) {
	select {
	case conn := <-s.accepted:
		return conn, nil
	case <-s.closing:
		return nil, net.ErrClosed
	}
}

// Dial implements raft.StreamLayer. The address is a raftAddress.
func (s *guardedStream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, hostPort, err := splitRaftAddress(address)
	if err != nil {
		return nil, err
	}
	if s.isHalted() {
		return nil, errHalted
	}
	conn, err := s.inner.Dial(raft.ServerAddress(hostPort), timeout)
	if err != nil {
		s.refused(hostPort)
		return nil, err
	}
	tracked := s.track(conn)
	greeting := newHello(s.clusterID, id)
	if timeout > 0 {
		tracked.SetWriteDeadline(time.Now().Add(timeout))
	}
	if _, err := tracked.Write(greeting[:]); err != nil {
		tracked.Close()
		return nil, err
	}
	tracked.SetWriteDeadline(time.Time{})
	tracked.messages = &raftMessages{answers: true}
	return tracked, nil
}

// Addr implements raft.StreamLayer.
func (s *guardedStream) Addr() net.Addr { return s.inner.Addr() }

// Close ends the stream layer and every connection of it.
func (s *guardedStream) Close() error {
	err := error(nil)
	s.closeOnce.Do(func() {
		close(s.closing)
		err = s.inner.Close()
		s.mu.Lock()
		open := make([]*guardedConn, 0, len(s.conns))
		for conn := range s.conns {
			open = append(open, conn)
		}
		s.mu.Unlock()
		for _, conn := range open {
			conn.Close()
		}
		s.work.Wait()
	})
	return err
}

var errHalted = errors.New("raft traffic is halted")

// halt ends all connections and lets no new ones through, until it is called with false.
func (s *guardedStream) halt(halted bool) {
	s.mu.Lock()
	s.halted = halted
	var open []*guardedConn
	if halted {
		for conn := range s.conns {
			open = append(open, conn)
		}
	}
	s.mu.Unlock()
	for _, conn := range open {
		conn.Close()
	}
}

func (s *guardedStream) isHalted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.halted
}

func (s *guardedStream) track(conn net.Conn) *guardedConn {
	tracked := &guardedConn{Conn: conn, stream: s}
	s.mu.Lock()
	s.conns[tracked] = struct{}{}
	halted := s.halted
	s.mu.Unlock()
	if halted { // since it was dialled
		tracked.Close()
	}
	select {
	case <-s.closing: // Close may have looked at conns before
		tracked.Close()
	default:
	}
	return tracked
}

// guardedConn lets Raft read only what is within the limits of its messages.
type guardedConn struct {
	net.Conn
	stream   *guardedStream
	messages *raftMessages // nil: the hello is not over
	asked    atomic.Uint64 // the turn of its last whole request; 0: none yet

	host  string // that Raft reads from; empty: the hello is not over, or this server dialled. Guarded by stream.mu, as is since
	since uint64 // the turn of its hello
}

func (c *guardedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.messages == nil {
		return n, err
	}
	before := c.messages.requests
	if bad := c.messages.see(p[:n]); bad != nil {
		c.Close()
		return 0, bad
	}
	if c.messages.requests > before {
		c.asked.Store(c.stream.turns.Add(1))
	}
	return n, err
}

func (c *guardedConn) Close() error {
	c.stream.mu.Lock()
	delete(c.stream.conns, c)
	c.stream.mu.Unlock()
	return c.Conn.Close()
}
