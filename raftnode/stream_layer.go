package raftnode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// streamLayer is Raft's view of a shared listener.
type streamLayer struct {
	net.Listener
	address advertised
}

// advertised is an address as the others dial it: it may name a host, which is not looked up here.
type advertised string

func (a advertised) Network() string { return "tcp" }
func (a advertised) String() string  { return string(a) }

// newStreamLayer makes Raft's stream layer: it accepts what the listener decides to be Raft's, and tags what it dials.
// advertise is where the other servers reach this one; empty means the listener's own address. Closing the layer ends
// Raft's part alone.
func newStreamLayer(l *Listener, advertise string) raft.StreamLayer {
	if advertise == "" {
		advertise = l.Addr().String()
	}
	return &streamLayer{Listener: l.Raft(), address: advertised(advertise)}
}

// Addr returns the advertised address, which Raft tells the other servers.
func (s *streamLayer) Addr() net.Addr { return s.address }

// Dial opens a Raft stream to another server.
func (s *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()
	conn, err := dialTagged(ctx, string(address), tagRaft)
	if err != nil {
		return nil, fmt.Errorf("dial raft stream: %w", err)
	}
	return conn, nil
}

// dialTagged opens a connection to another server's shared listener and says what it carries. Nagle's algorithm is off,
// as is Go's default.
func dialTagged(ctx context.Context, address string, tag byte) (net.Conn, error) {
	dialer := net.Dialer{KeepAliveConfig: keepAlive}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if err := writeTag(ctx, conn, tag); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func writeTag(ctx context.Context, conn net.Conn, tag byte) error {
	deadline, _ := ctx.Deadline() // the zero time means none
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{tag}); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}
