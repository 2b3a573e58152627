package raftnode

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The first byte of a connection says what it carries. Protocol.
const (
	tagRaft  = 0x01 // consumed; Raft's own stream follows
	tagWatch = 0x02 // consumed; a standing stream between servers follows
	tagHTTP2 = 'P'  // of "PRI * HTTP/2.0": kept, it is gRPC's
	tagTLS   = 0x16 // a TLS handshake record
)

// Limits of the shared listener. Tuning.
const (
	firstByteTimeout = 5 * time.Second
	maxUndecided     = 1024
	evictGrace       = 500 * time.Millisecond // more than one round trip
	acceptPauseFirst = 5 * time.Millisecond
	acceptPauseMost  = time.Second
)

// keepAlive finds a peer whose machine is gone within about 30 s, where no traffic of ours does so sooner.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// ListenConfig holds the options of a Listener. The zero value is usable.
type ListenConfig struct {
	Logger           *slog.Logger  // nil: silent
	FirstByteTimeout time.Duration // for a connection to say what it is, and to be taken; 0: 5 s
	MaxUndecided     int           // connections that have not said so yet, or are not taken yet; 0: 1024
}

// Listener is a server's one listening address, shared by Raft, gRPC and the streams between servers.
//
// A connection that is decided waits, within the same deadline, until its part accepts it. When MaxUndecided are on their
// way, the silent one that is oldest is closed for each new one once it has been silent for evictGrace, so that silent
// connections cannot lock others out, and a burst of honest ones loses none.
// A connection that was handed out belongs to who accepted it.
type Listener struct {
	inner   net.Listener
	logger  *slog.Logger
	timeout time.Duration
	raft    *part
	grpc    *part
	watch   *part
	watched atomic.Bool // Watch was called

	done  chan struct{} // closed by Close
	close sync.Once
	group sync.WaitGroup // the accept loop and one goroutine for each undecided connection
	slots chan struct{}  // one for each undecided connection

	mu        sync.Mutex
	closed    bool
	undecided list.List // of *undecided, oldest first
}

// undecided is a connection whose first byte is awaited.
type undecided struct {
	conn  net.Conn
	since time.Time
}

// Listen listens on host:port; port 0 means any free one. When the port is taken the error wraps syscall.EADDRINUSE.
func Listen(address string) (*Listener, error) { return ListenConfig{}.Listen(address) }

// Listen is Listen with the options of c.
func (c ListenConfig) Listen(address string) (*Listener, error) {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, fmt.Errorf("listen on %q: %w (want host:port)", address, listenReason(err))
	}
	config := net.ListenConfig{KeepAliveConfig: keepAlive}
	inner, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, listenReason(err))
	}
	return c.serve(inner), nil
}

// serve starts the accept loop on inner, which it owns from here on.
func (c ListenConfig) serve(inner net.Listener) *Listener {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.FirstByteTimeout <= 0 {
		c.FirstByteTimeout = firstByteTimeout
	}
	if c.MaxUndecided <= 0 {
		c.MaxUndecided = maxUndecided
	}
	l := &Listener{
		inner:   inner,
		logger:  c.Logger,
		timeout: c.FirstByteTimeout,
		done:    make(chan struct{}),
		slots:   make(chan struct{}, c.MaxUndecided),
	}
	l.raft, l.grpc, l.watch = l.newPart(), l.newPart(), l.newPart()
	l.group.Go(l.accept)
	return l
}

// Addr returns the address that is listened on, with the real port.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// GRPC returns the part that gets HTTP/2 connections. Closing it ends only this part.
func (l *Listener) GRPC() net.Listener { return l.grpc }

// Raft returns the part that gets Raft's connections, without their tag. Closing it ends only this part.
func (l *Listener) Raft() net.Listener { return l.raft }

// Watch returns the part that gets standing streams between servers, without their tag. Before it is first called such
// connections are closed at once, so that a peer sees that nobody serves them here.
func (l *Listener) Watch() net.Listener {
	l.watched.Store(true)
	return l.watch
}

// Close ends listening, every part, and every connection that no part has accepted yet, and waits for all goroutines.
func (l *Listener) Close() error {
	var err error
	l.close.Do(func() {
		close(l.done)
		err = l.inner.Close()
		l.mu.Lock()
		l.closed = true
		for e := l.undecided.Front(); e != nil; e = e.Next() {
			_ = e.Value.(*undecided).conn.Close()
		}
		l.mu.Unlock()
	})
	l.group.Wait()
	return err
}

// accept must outlive everything but Close: a server that runs out of file descriptors for a while is not a dead one.
func (l *Listener) accept() {
	pause := acceptPauseFirst
	for {
		conn, err := l.inner.Accept()
		switch {
		case err == nil:
			pause = acceptPauseFirst
			if l.takeSlot() {
				l.group.Go(func() { l.decide(conn) })
			} else {
				_ = conn.Close()
			}
			continue
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, syscall.ECONNABORTED): // the peer gave up while it waited
			continue
		}
		l.logger.Warn("accept failed, trying again", "error", err, "pause", pause)
		if !l.sleep(pause) {
			return
		}
		pause = min(2*pause, acceptPauseMost)
	}
}

// takeSlot waits until there is room for one more undecided connection, and makes some if need be. It returns false
// when the listener is closed.
func (l *Listener) takeSlot() bool {
	for {
		select {
		case l.slots <- struct{}{}:
			return true
		default:
		}
		timer := time.NewTimer(l.evict())
		select {
		case l.slots <- struct{}{}:
			timer.Stop()
			return true
		case <-l.done:
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// evict closes the connection whose first byte is awaited longest, if it has had its grace; its goroutine then gives the
// slot back. It returns after what time it is worth calling again.
func (l *Listener) evict() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := l.undecided.Front()
	if oldest == nil {
		return evictGrace
	}
	waiting := oldest.Value.(*undecided)
	if left := evictGrace - time.Since(waiting.since); left > 0 {
		return left
	}
	_ = waiting.conn.Close()
	l.undecided.Remove(oldest)
	return evictGrace
}

func (l *Listener) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.done:
		return false
	}
}

// decide runs in its own goroutine, holds a slot, and owns conn until a part takes it.
func (l *Listener) decide(conn net.Conn) {
	defer func() { <-l.slots }()
	deadline := time.Now().Add(l.timeout)
	first, err := l.firstByte(conn, deadline)
	if err != nil {
		l.logger.Debug("connection closed before its first byte", "remote", conn.RemoteAddr(), "error", err)
		_ = conn.Close()
		return
	}
	if !l.deliver(conn, first, deadline) {
		_ = conn.Close()
	}
}

// firstByte reads the byte while conn is listed as undecided, so that Close and takeSlot can end the wait. They must not
// see it any longer: a part may own it then.
func (l *Listener) firstByte(conn net.Conn, deadline time.Time) (byte, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return 0, net.ErrClosed
	}
	element := l.undecided.PushBack(&undecided{conn: conn, since: time.Now()})
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.undecided.Remove(element)
		l.mu.Unlock()
	}()
	if err := conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	var first [1]byte
	if n, err := conn.Read(first[:]); n == 0 {
		return 0, err
	}
	return first[0], conn.SetReadDeadline(time.Time{})
}

// deliver returns false when nobody took conn.
func (l *Listener) deliver(conn net.Conn, first byte, deadline time.Time) bool {
	switch first {
	case tagRaft:
		return l.raft.give(conn, deadline)
	case tagWatch:
		return l.watched.Load() && l.watch.give(conn, deadline)
	case tagHTTP2:
		return l.grpc.give(&prefixConn{Conn: conn, first: first}, deadline)
	case tagTLS:
		l.logger.Debug("tls connection refused: this address speaks plain text", "remote", conn.RemoteAddr())
	default:
		l.logger.Debug("connection refused: unknown first byte", "remote", conn.RemoteAddr(), "first_byte", first)
	}
	return false
}

// part is one of the listeners behind the shared one.
type part struct {
	address net.Addr
	conns   chan net.Conn // not buffered: who takes a connection owns it
	done    chan struct{} // closed by Close
	close   sync.Once
	parent  chan struct{}
}

func (l *Listener) newPart() *part {
	return &part{address: l.inner.Addr(), conns: make(chan net.Conn), done: make(chan struct{}), parent: l.done}
}

// give waits until the part accepts conn. It returns false when the part is closed or the deadline passes first.
func (p *part) give(conn net.Conn, deadline time.Time) bool {
	select { // the usual case, without a timer
	case p.conns <- conn:
		return true
	default:
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case p.conns <- conn:
		return true
	case <-p.done:
	case <-p.parent:
	case <-timer.C:
	}
	return false
}

func (p *part) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
	case <-p.parent:
	}
	return nil, &net.OpError{Op: "accept", Net: p.address.Network(), Addr: p.address, Err: net.ErrClosed}
}

func (p *part) Close() error {
	p.close.Do(func() { close(p.done) })
	return nil
}

func (p *part) Addr() net.Addr { return p.address }

// prefixConn gives its first byte back to the first reader.
type prefixConn struct {
	net.Conn
	first byte
	given atomic.Bool
}

func (c *prefixConn) Read(b []byte) (int, error) {
	if len(b) > 0 && !c.given.Load() && c.given.CompareAndSwap(false, true) {
		b[0] = c.first
		return 1, nil
	}
	return c.Conn.Read(b)
}

// listenReason keeps the cause of a listen error, whose context already names the address.
func listenReason(err error) error {
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call.Err
	}
	var address *net.AddrError
	if errors.As(err, &address) {
		return errors.New(address.Err)
	}
	var operation *net.OpError
	if errors.As(err, &operation) {
		return operation.Err
	}
	return err
}
