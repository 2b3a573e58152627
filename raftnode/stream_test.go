package raftnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// listenLoopback opens a listener on loopback that is closed, without leaving a goroutine, at the end of the test.
func listenLoopback(t *testing.T, config ListenConfig) *Listener {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	l, err := config.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t, ignore)
	})
	return l
}

func dialAndWrite(t *testing.T, address, text string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn
}

func acceptAndRead(t *testing.T, from net.Listener, want string) {
	t.Helper()
	conn, err := from.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Errorf("read %q (%v), want %q", got, err, want)
	}
}

func mustBeClosedByPeer(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(make([]byte, 1))
	if n != 0 || err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("read %d bytes (%v) from a connection that should be closed", n, err)
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestFirstByteDecidesWhoGetsTheConnection(t *testing.T) {
	l := listenLoopback(t, ListenConfig{})
	address, watch := l.Addr().String(), l.Watch()
	for range 3 {
		dialAndWrite(t, address, "PRI * HTTP/2.0")
		dialAndWrite(t, address, "\x01raft")
		dialAndWrite(t, address, "\x02watch")
		acceptAndRead(t, watch, "watch")
		acceptAndRead(t, l.Raft(), "raft")
		acceptAndRead(t, l.GRPC(), "PRI * HTTP/2.0")
	}
}

func TestConnectionsThatNobodyServesAreClosedAndLogged(t *testing.T) {
	for name, c := range map[string]struct{ sent, logged string }{
		"tls":               {"\x16\x03\x01", "tls connection refused"},
		"unknown":           {"GET / HTTP/1.1\r\n", "unknown first byte"},
		"zero":              {"\x00", "unknown first byte"},
		"watch, not served": {"\x02", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var logs logBuffer
			l := listenLoopback(t, ListenConfig{Logger: logs.logger(slog.LevelDebug)})
			begun := time.Now()
			mustBeClosedByPeer(t, dialAndWrite(t, l.Addr().String(), c.sent))
			if took := time.Since(begun); took > firstByteTimeout/2 {
				t.Errorf("closed only after %v", took)
			}
			if !strings.Contains(logs.String(), c.logged) {
				t.Errorf("log %q does not say %q", logs.String(), c.logged)
			}
			// Others are served all the same.
			dialAndWrite(t, l.Addr().String(), "\x01raft")
			acceptAndRead(t, l.Raft(), "raft")
		})
	}
}

func TestAddressThatCannotBeListenedOnIsRefusedWithItsReason(t *testing.T) {
	l := listenLoopback(t, ListenConfig{})
	_, err := Listen(l.Addr().String())
	if want := "listen on " + l.Addr().String() + ": address already in use"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("error %v is not EADDRINUSE", err)
	}
	for address, want := range map[string]string{
		"":                "missing port",
		"7001":            "missing port",
		"127.0.0.1":       "missing port",
		"127.0.0.1:99999": "invalid port",
		"127.0.0.1:seven": "unknown port",
		"[::1:7001":       "missing ']'",
		"192.0.2.1:0":     "assign requested address",
		"1:2:3":           "too many colons",
	} {
		l, err := Listen(address)
		if err == nil {
			_ = l.Close()
			t.Errorf("listening on %q", address)
			continue
		}
		if !strings.HasPrefix(err.Error(), "listen on ") || !strings.Contains(err.Error(), want) {
			t.Errorf("listen on %q: error %q does not say %q", address, err, want)
		}
	}
}

func TestPartsCloseByThemselvesAndTheListenerClosesAll(t *testing.T) {
	l := listenLoopback(t, ListenConfig{})
	address := l.Addr().String()
	if err := l.Raft().Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Raft().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept on a closed part: %v", err)
	}
	mustBeClosedByPeer(t, dialAndWrite(t, address, "\x01raft"))
	dialAndWrite(t, address, "PRI")
	acceptAndRead(t, l.GRPC(), "PRI")

	handedOut := dialAndWrite(t, address, "PRI")
	kept, err := l.GRPC().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = kept.Close() }()
	silent, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	waiting := dialAndWrite(t, address, "P")
	accepting := make(chan error)
	go func() {
		_, err := l.Watch().Accept()
		accepting <- err
	}()
	begun := time.Now()
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > firstByteTimeout/2 {
		t.Errorf("close took %v: it waited for a silent connection", took)
	}
	if err := <-accepting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept that waited: %v", err)
	}
	mustBeClosedByPeer(t, silent)
	mustBeClosedByPeer(t, waiting)
	if _, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after close: %v", err)
	}
	// What was handed out is its owner's.
	if _, err := io.WriteString(kept, "still here"); err != nil {
		t.Error(err)
	}
	got := make([]byte, 10)
	if _, err := io.ReadFull(handedOut, got); err != nil || string(got) != "still here" {
		t.Errorf("read %q (%v) from a connection that was handed out before", got, err)
	}
}

// Honest connections in a number far above the limit are all served, however many come at once.
func TestBurstOfHonestConnectionsLosesNone(t *testing.T) {
	const dialers, each = 32, 40
	l := listenLoopback(t, ListenConfig{MaxUndecided: 4})
	var served atomic.Int32
	var group, server sync.WaitGroup
	server.Go(func() {
		for range dialers * each {
			conn, err := l.Raft().Accept()
			if err != nil {
				t.Error(err)
				return
			}
			served.Add(1)
			_, _ = conn.Write([]byte("k"))
			_ = conn.Close()
		}
	})
	for range dialers {
		group.Go(func() {
			for range each {
				conn, err := dialTagged(t.Context(), l.Addr().String(), tagRaft)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
					t.Error(err)
				}
				_ = conn.Close()
			}
		})
	}
	group.Wait()
	if got := served.Load(); got != dialers*each {
		t.Errorf("%d of %d connections were served", got, dialers*each)
	}
	_ = l.Raft().Close() // ends the server if some were lost
	server.Wait()
}

func TestPrefixIsReadOnceAndFirst(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() {
		_, _ = io.WriteString(theirs, "RI")
		_ = theirs.Close()
	}()
	conn := &prefixConn{Conn: ours, first: 'P'}
	if n, err := conn.Read(nil); n != 0 || err != nil {
		t.Errorf("empty read: %d, %v", n, err)
	}
	if got, err := io.ReadAll(conn); string(got) != "PRI" || err != nil {
		t.Errorf("read %q (%v)", got, err)
	}
	_ = ours.Close()
}

// In virtual time, over pipes.

func TestSilentConnectionIsClosedAfterItsDeadlineAndDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := ListenConfig{}.serve(inner)
		defer func() { _ = l.Close() }()
		begun := time.Now()
		silent := inner.dial()
		honest := inner.dial()
		go func() { _, _ = io.WriteString(honest, "\x01raft") }()
		acceptAndRead(t, l.Raft(), "raft")
		if took := time.Since(begun); took != 0 {
			t.Errorf("an honest connection waited %v", took)
		}
		if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("silent connection: %v", err)
		}
		if took := time.Since(begun); took != firstByteTimeout {
			t.Errorf("closed after %v, want %v", took, firstByteTimeout)
		}
	})
}

func TestDecidedConnectionMayStaySilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := ListenConfig{}.serve(inner)
		defer func() { _ = l.Close() }()
		peer := inner.dial()
		go func() {
			_, _ = io.WriteString(peer, "P")
			time.Sleep(time.Hour)
			_, _ = io.WriteString(peer, "RI")
		}()
		acceptAndRead(t, l.GRPC(), "PRI")
	})
}

func TestConnectionThatNoPartAcceptsIsClosedAtItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := ListenConfig{}.serve(inner)
		defer func() { _ = l.Close() }()
		begun := time.Now()
		peer := inner.dial()
		go func() { _, _ = io.WriteString(peer, "P") }()
		if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("connection that waits for a part: %v", err)
		}
		if took := time.Since(begun); took != firstByteTimeout {
			t.Errorf("closed after %v, want %v", took, firstByteTimeout)
		}
	})
}

func TestSilentConnectionsCannotLockOthersOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 3
		inner := newPipeListener()
		l := ListenConfig{MaxUndecided: limit}.serve(inner)
		defer func() { _ = l.Close() }()
		begun := time.Now()
		var silent []net.Conn
		for range limit {
			silent = append(silent, inner.dial())
			synctest.Wait() // they are undecided in this order
		}
		for i := range 3 * limit {
			synctest.Wait() // the one before gave its place back
			honest := inner.dial()
			go func() { _, _ = io.WriteString(honest, "\x01raft") }()
			if i == 0 {
				if _, err := silent[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("the oldest silent connection: %v", err)
				}
			}
			acceptAndRead(t, l.Raft(), "raft")
			if took := time.Since(begun); took != evictGrace {
				t.Fatalf("honest connection %d was served after %v, want %v", i, took, evictGrace)
			}
		}
		// One had to go, not more: the honest ones gave their place back.
		for i, conn := range silent[1:] {
			if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, 1)); !isTimeout(err) {
				t.Errorf("silent connection %d: %v, want it open", i+1, err)
			}
		}
	})
}

func TestAcceptErrorsAreWaitedOutWithGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs logBuffer
		inner := newPipeListener()
		l := ListenConfig{Logger: logs.logger(slog.LevelWarn)}.serve(inner)
		defer func() { _ = l.Close() }()
		begun := time.Now()
		const failures = 12
		go func() {
			inner.accepted <- accepted{err: &net.OpError{Op: "accept", Err: syscall.ECONNABORTED}} // no reason to pause
			for range failures {
				inner.accepted <- accepted{err: &net.OpError{Op: "accept", Err: syscall.EMFILE}}
			}
			peer := inner.dial()
			_, _ = io.WriteString(peer, "\x01raft")
		}()
		acceptAndRead(t, l.Raft(), "raft")
		var want time.Duration
		for i, pause := 0, acceptPauseFirst; i < failures; i, pause = i+1, min(2*pause, acceptPauseMost) {
			want += pause
		}
		if took := time.Since(begun); took != want {
			t.Errorf("the connection after %d failures was served after %v, want %v", failures, took, want)
		}
		if got := strings.Count(logs.String(), "too many open files"); got != failures {
			t.Errorf("%d failures were logged, want %d", got, failures)
		}
	})
}

func TestCloseDoesNotWaitForSilentConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := ListenConfig{}.serve(inner)
		silent := inner.dial()
		synctest.Wait() // its first byte is awaited
		begun := time.Now()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("silent connection: %v", err)
		}
		// One that was accepted in the last moment is not waited for either.
		late, peer := net.Pipe()
		if _, err := l.firstByte(late, time.Now().Add(firstByteTimeout)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("connection after close: %v", err)
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("close waited %v", took)
		}
		_, _ = late.Close(), peer.Close()
	})
}

func TestCloseEndsAnAcceptPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := ListenConfig{}.serve(inner)
		for range 10 {
			inner.accepted <- accepted{err: syscall.EMFILE}
		}
		synctest.Wait()
		begun := time.Now()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("close waited %v", took)
		}
	})
}

// pipeListener hands out one end of a pipe for each dial.
type pipeListener struct {
	accepted chan accepted
	done     chan struct{}
	once     sync.Once
}

type accepted struct {
	conn net.Conn
	err  error
}

func newPipeListener() *pipeListener {
	return &pipeListener{accepted: make(chan accepted), done: make(chan struct{})}
}

func (p *pipeListener) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.accepted <- accepted{conn: ours}
	return theirs
}

func (p *pipeListener) Accept() (net.Conn, error) {
	select {
	case a := <-p.accepted:
		return a.conn, a.err
	case <-p.done:
		return nil, fmt.Errorf("accept: %w", net.ErrClosed)
	}
}

func (p *pipeListener) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipeListener) Addr() net.Addr { return advertised("pipe") }

// logBuffer collects log lines of several goroutines.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *logBuffer) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: level}))
}
