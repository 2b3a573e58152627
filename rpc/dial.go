package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// Tuning.
const (
	connectTimeout   = 3 * time.Second
	connectBase      = 50 * time.Millisecond // first wait before connecting again
	connectMax       = time.Second
	idleTimeout      = time.Minute // a connection without calls is closed
	maxReplySize     = 64 << 20    // bytes; status and lists of blocks of a large cluster
	poolForgetsAfter = 10 * idleTimeout
)

// dialOptions are what all clients have in common. dial opens the connections: a proxy of the environment has no place
// between the processes of a cluster.
func dialOptions(dial func(ctx context.Context, address string) (net.Conn, error)) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(dial),
		grpc.WithDisableServiceConfig(), // none from DNS
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: DefaultKeepaliveTime, Timeout: DefaultKeepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: connectBase, Multiplier: 1.6, Jitter: 0.2, MaxDelay: connectMax},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReplySize)),
	}
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: connectTimeout}
	return dialer.DialContext(ctx, "tcp", address)
}

// pool keeps one connection an address. A connection that could not be made is not kept: the next call tries for real,
// so a caller that asks twice has two answers of the address, and not the memory of one.
type pool struct {
	mu     sync.Mutex
	conns  map[string]*pooled
	closed bool
}

type pooled struct {
	*grpc.ClientConn
	used    time.Time                 // guarded by pool.mu
	dialErr atomic.Pointer[dialError] // of the last attempt; nil: it succeeded, or there was none
}

type dialError struct{ error }

func newPool() *pool { return &pool{conns: make(map[string]*pooled)} }

// get returns the connection to address, which the pool owns.
func (p *pool) get(address string) (*pooled, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	now := time.Now()
	for other, conn := range p.conns {
		if other != address && now.Sub(conn.used) > poolForgetsAfter && conn.GetState() == connectivity.Idle {
			delete(p.conns, other)
			_ = conn.Close() // it is idle: nothing is lost
		}
	}
	if conn, ok := p.conns[address]; ok {
		conn.used = now
		return conn, nil
	}
	conn := &pooled{used: now}
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		c, err := dialTCP(ctx, address)
		if err != nil {
			conn.dialErr.Store(&dialError{err})
			return nil, err
		}
		conn.dialErr.Store(nil)
		return c, nil
	}
	var err error
	conn.ClientConn, err = grpc.NewClient("passthrough:///"+address, append(dialOptions(dial),
		grpc.WithIdleTimeout(idleTimeout))...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	p.conns[address] = conn
	return conn, nil
}

// call runs one call to address and translates its error. What could not be delivered is an ErrUnavailable, or an
// ErrRefusedConnection when nothing listens at address.
func (p *pool) call(ctx context.Context, address string, do func(*grpc.ClientConn) error) error {
	conn, err := p.get(address)
	if err != nil {
		return err
	}
	return p.failed(ctx, address, conn, do(conn.ClientConn))
}

// failed translates the error of a call on conn, and drops conn when it could not be made.
func (p *pool) failed(ctx context.Context, address string, conn *pooled, err error) error {
	if err == nil {
		return nil
	}
	code := status.Code(err)
	if ctx.Err() == nil && (code == codes.Unavailable || code == codes.Canceled) {
		if dialErr := conn.dialErr.Load(); dialErr != nil {
			p.drop(address, conn)
			if errors.Is(dialErr.error, syscall.ECONNREFUSED) {
				return fmt.Errorf("%s: %w", address, ErrRefusedConnection)
			}
			return fmt.Errorf("%s: %w: %w", address, ErrUnavailable, dialErr.error)
		}
	}
	return fmt.Errorf("%s: %w", address, fromStatus(err))
}

func (p *pool) drop(address string, conn *pooled) {
	p.mu.Lock()
	if p.conns[address] == conn {
		delete(p.conns, address)
	}
	p.mu.Unlock()
	_ = conn.Close() // it has no connection; a second Close is harmless
}

func (p *pool) close() error {
	p.mu.Lock()
	conns := p.conns
	p.conns, p.closed = nil, true
	p.mu.Unlock()
	var errs []error
	for _, conn := range conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}
