package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// simNet is a network in memory, of hosts by name. What is on its way over a link that is cut, or to or from a paused host,
// arrives when that is over, as with TCP. A host that crashes resets its connections and then refuses.
type simNet struct {
	mu        sync.Mutex
	dice      *rand.Rand
	changed   chan struct{} // closed and replaced when a fault begins or ends
	cuts      map[simLink]int
	lossy     map[simLink]int
	delays    map[simLink]time.Duration
	frozen    map[string]int
	listeners map[string]*simListener // by address
	conns     map[*simConn]struct{}
}

// simLink is one direction between two hosts.
type simLink struct{ from, to string }

func newSimNet(seed uint64) *simNet {
	return &simNet{
		dice:      rand.New(rand.NewPCG(seed, 2)),
		changed:   make(chan struct{}),
		cuts:      make(map[simLink]int),
		lossy:     make(map[simLink]int),
		delays:    make(map[simLink]time.Duration),
		frozen:    make(map[string]int),
		listeners: make(map[string]*simListener),
		conns:     make(map[*simConn]struct{}),
	}
}

// change lets f change the faults and wakes all who wait.
func (n *simNet) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

// passes reports whether something arrives now. Caller holds mu.
func (n *simNet) passes(from, to string) bool {
	return n.cuts[simLink{from, to}] == 0 && n.frozen[from] == 0 && n.frozen[to] == 0
}

// await returns when condition holds, which is asked with mu held, or with an error when ctx ends.
func (n *simNet) await(ctx context.Context, condition func() bool) error {
	for {
		n.mu.Lock()
		met, changed := condition(), n.changed
		n.mu.Unlock()
		if met {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// running waits while a host is paused.
func (n *simNet) running(ctx context.Context, host string) error {
	return n.await(ctx, func() bool { return n.frozen[host] == 0 })
}

var errSimLost = errors.New("simulated loss")

// travel is the way of one message: it waits as long as that takes, and may lose it.
func (n *simNet) travel(ctx context.Context, from, to string) error {
	link := simLink{from, to}
	if err := n.await(ctx, func() bool { return n.passes(from, to) }); err != nil {
		return err
	}
	n.mu.Lock()
	lost := n.lossy[link] > 0 && n.dice.IntN(3) == 0
	delay := n.delays[link]
	n.mu.Unlock()
	if lost {
		return errSimLost
	}
	if delay == 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// simQueue is one direction of a connection. Everything in it is guarded by the net's mutex. One goroutine pops.
type simQueue[T any] struct {
	net   *simNet
	link  simLink
	items []simItem[T]
	ended bool // EOF after the items
	reset bool // an error, instead of the items
	wake  chan struct{}
}

type simItem[T any] struct {
	value T
	at    time.Time
}

func newSimQueue[T any](n *simNet, from, to string) *simQueue[T] {
	return &simQueue[T]{net: n, link: simLink{from, to}, wake: make(chan struct{}, 1)}
}

var errSimReset error = syscall.ECONNRESET

func (q *simQueue[T]) push(value T) error {
	q.net.mu.Lock()
	defer q.net.mu.Unlock()
	if q.reset || q.ended {
		return errSimReset
	}
	if q.net.lossy[q.link] > 0 && q.net.dice.IntN(40) == 0 {
		q.reset = true // TCP gives up
		simPoke(q.wake)
		return nil
	}
	at := time.Now().Add(q.net.delays[q.link])
	if last := len(q.items) - 1; last >= 0 && at.Before(q.items[last].at) {
		at = q.items[last].at
	}
	q.items = append(q.items, simItem[T]{value, at})
	simPoke(q.wake)
	return nil
}

// end lets the reader see the end after what was pushed, or at once an error.
func (q *simQueue[T]) end(reset bool) {
	q.net.mu.Lock()
	defer q.net.mu.Unlock()
	q.ended = true
	q.reset = q.reset || reset
	simPoke(q.wake)
}

func (q *simQueue[T]) pop(canceled <-chan struct{}) (value T, err error) {
	for {
		var due <-chan time.Time
		var timer *time.Timer
		wake, changed := q.wake, (chan struct{})(nil) // it waits for one of them: most reads wait, and each more costs
		q.net.mu.Lock()
		if !q.net.passes(q.link.from, q.link.to) {
			wake, changed = nil, q.net.changed
		} else {
			switch {
			case q.reset:
				err = errSimReset
			case len(q.items) > 0:
				if wait := time.Until(q.items[0].at); wait > 0 {
					timer = time.NewTimer(wait)
					due = timer.C
					break
				}
				value = q.items[0].value
				q.items = q.items[1:]
				q.net.mu.Unlock()
				return value, nil
			case q.ended:
				err = io.EOF
			}
		}
		q.net.mu.Unlock()
		if err != nil {
			return value, err
		}
		select {
		case <-wake:
		case <-changed:
		case <-due:
		case <-canceled:
			err = os.ErrDeadlineExceeded
		}
		if timer != nil {
			timer.Stop()
		}
		if err != nil {
			return value, err
		}
	}
}

func simPoke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// simConn is one end of a connection.
type simConn struct {
	net    *simNet
	in     *simQueue[[]byte]
	out    *simQueue[[]byte]
	peer   *simConn
	left   []byte // of the last item; of the reader alone
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	timer   *time.Timer
	expired chan struct{} // closed when the read deadline has passed
}

func (n *simNet) connect(from, to string) (near, far *simConn) {
	there, back := newSimQueue[[]byte](n, from, to), newSimQueue[[]byte](n, to, from)
	near = &simConn{net: n, in: back, out: there, closed: make(chan struct{}), expired: make(chan struct{})}
	far = &simConn{net: n, in: there, out: back, closed: make(chan struct{}), expired: make(chan struct{})}
	near.peer, far.peer = far, near
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[near], n.conns[far] = struct{}{}, struct{}{}
	return near, far
}

func (c *simConn) Read(b []byte) (int, error) {
	if len(c.left) == 0 {
		c.mu.Lock()
		expired := c.expired
		c.mu.Unlock()
		select {
		case <-c.closed:
			return 0, net.ErrClosed
		case <-expired:
			return 0, os.ErrDeadlineExceeded
		default:
		}
		data, err := c.in.pop(expired)
		select {
		case <-c.closed:
			return 0, net.ErrClosed
		default:
		}
		if err != nil {
			return 0, err
		}
		c.left = data
	}
	count := copy(b, c.left)
	c.left = c.left[count:]
	return count, nil
}

func (c *simConn) Write(b []byte) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	if err := c.out.push(append([]byte(nil), b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close ends both directions: what was written arrives, what was not read is lost.
func (c *simConn) Close() error {
	c.shut(false)
	return nil
}

func (c *simConn) shut(reset bool) {
	c.once.Do(func() {
		close(c.closed)
		c.out.end(reset)
		c.in.end(true) // wakes our own reader; the other side cannot write any more
		c.expire()
		c.net.mu.Lock()
		defer c.net.mu.Unlock()
		delete(c.net.conns, c)
	})
}

func (c *simConn) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
	select {
	case <-c.expired:
	default:
		close(c.expired)
	}
}

func (c *simConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	select {
	case <-c.closed:
		return net.ErrClosed
	case <-c.expired:
		c.expired = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return nil
	}
	expired := c.expired
	c.timer = time.AfterFunc(time.Until(t), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		select {
		case <-expired:
		default:
			if c.expired == expired {
				close(expired)
			}
		}
	})
	return nil
}

func (c *simConn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *simConn) SetWriteDeadline(time.Time) error { return nil } // a write never waits
func (c *simConn) LocalAddr() net.Addr              { return simAddr(c.out.link.from) }
func (c *simConn) RemoteAddr() net.Addr             { return simAddr(c.out.link.to) }

type simAddr string

func (a simAddr) Network() string { return "tcp" }
func (a simAddr) String() string  { return string(a) }

// resetConns breaks the connections of a host.
func (n *simNet) resetConns(host string) {
	n.mu.Lock()
	var broken []*simConn
	for c := range n.conns {
		if c.out.link.from == host {
			broken = append(broken, c)
		}
	}
	n.mu.Unlock()
	for _, c := range broken {
		c.shut(true)
	}
}

// simListener accepts connections of one kind at one address.
type simListener struct {
	net     *simNet
	host    string
	address string
	key     string // address and kind
	backlog chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

// The kinds of connections: the first byte of a real one.
const (
	simRaft  = "raft "
	simWatch = "watch "
)

func (n *simNet) listen(host, kind, address string) *simListener {
	l := &simListener{net: n, host: host, address: address, key: kind + address, backlog: make(chan net.Conn, 1024), closed: make(chan struct{})}
	n.change(func() { n.listeners[l.key] = l })
	return l
}

func (l *simListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.backlog:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *simListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.net.change(func() {
			if l.net.listeners[l.key] == l {
				delete(l.net.listeners, l.key)
			}
		})
	})
	return nil
}

func (l *simListener) Addr() net.Addr { return simAddr(l.address) }

// Dial implements raft.StreamLayer.
func (l *simListener) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), max(timeout, time.Millisecond))
	defer cancel()
	return l.net.dial(ctx, l.host, simRaft, string(address))
}

// dial connects as a kernel does: that of a paused process accepts, that of a dead one refuses.
func (n *simNet) dial(ctx context.Context, from, kind, address string) (net.Conn, error) {
	to := simHostOf(address)
	err := n.await(ctx, func() bool {
		return n.frozen[from] == 0 && n.cuts[simLink{from, to}] == 0 && n.cuts[simLink{to, from}] == 0
	})
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	n.mu.Lock()
	l := n.listeners[kind+address]
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("dial %s: %w", address, syscall.ECONNREFUSED)
	}
	near, far := n.connect(from, to)
	select {
	case l.backlog <- far:
		return near, nil
	case <-l.closed:
		near.shut(true)
		far.shut(true)
		return nil, fmt.Errorf("dial %s: %w", address, syscall.ECONNREFUSED)
	}
}

// probe dials and hangs up.
func (n *simNet) probe(ctx context.Context, from, address string) error {
	to := simHostOf(address)
	err := n.await(ctx, func() bool {
		return n.frozen[from] == 0 && n.cuts[simLink{from, to}] == 0 && n.cuts[simLink{to, from}] == 0
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[simRaft+address] == nil {
		return fmt.Errorf("probe %s: %w", address, syscall.ECONNREFUSED)
	}
	return nil
}

// simAddress gives server id an address; move makes it another one.
func simAddress(id, move int) string { return fmt.Sprintf("127.0.0.1:%d", 10000+100*id+move%100) }

// simHostOf returns the name of the host that an address belongs to, whether or not anybody listens there.
func simHostOf(address string) string {
	_, text, _ := strings.Cut(address, ":")
	port, err := strconv.Atoi(text) // of each message: fmt would be slow
	if err != nil {
		return address
	}
	return simHost((port - 10000) / 100)
}

func simHost(id int) string { return "s" + strconv.Itoa(id) }
