package rpc

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"raftmine/fsm"
	"raftmine/raftnode"
	"raftmine/raftnode/coordinator"
)

// Protocol and tuning of connections. The server's enforcement allows what our own clients do: gRPC lets no client ping
// more often than each 10 s.
const (
	// MaxMessageSize is the largest message a server takes, in bytes. Protocol: a server refuses larger ones.
	MaxMessageSize = 64 << 10
	// DefaultKeepaliveTime is how long a connection may be quiet before it is asked whether it lives.
	DefaultKeepaliveTime = 10 * time.Second
	// DefaultKeepaliveTimeout is how long the answer may take.
	DefaultKeepaliveTimeout = 5 * time.Second
	// DefaultMaxStreams is how many calls one connection may have open.
	DefaultMaxStreams = 128

	keepaliveMinTime  = 5 * time.Second
	connectionTimeout = 5 * time.Second
	maxHeaderBytes    = 16 << 10
)

// Node is what a Server serves: one server of the cluster.
type Node interface {
	HandleHeartbeat(request raftnode.HeartbeatRequest) (raftnode.ServerReport, error)
	HandleJoin(ctx context.Context, request raftnode.JoinRequest) (raftnode.JoinReply, error)
	HandleLeave(ctx context.Context, request raftnode.LeaveRequest) error
	HandleHistory(ctx context.Context, request raftnode.HistoryRequest) iter.Seq2[raftnode.JournalRecord, error]
	StopCluster(ctx context.Context, reason string) error
	RemoveServer(ctx context.Context, id uint64) error
	TransferLeadership(ctx context.Context, to uint64) (uint64, error)
	// View calls read with the applied state, which does not change until read returns.
	View(read func(fsm.View))
	Status() raftnode.Status
}

// Leader is what a server has only while it leads: the coordinator of one term. See LeaderOf.
type Leader interface {
	// Open begins a miner's session.
	Open() (Session, error)
	Status() coordinator.Status
}

// Session is one miner's session. Outgoing and Done are closed when the session is over, and Err says why. Receive is
// called by one goroutine, and may block until the message is committed. Close may be called at any time and more than
// once.
type Session interface {
	Outgoing() <-chan coordinator.Message
	Done() <-chan struct{}
	Receive(ctx context.Context, message coordinator.Message) error
	Err() error
	Close()
}

// LeaderOf makes a Leader of a coordinator.
func LeaderOf(c *coordinator.Coordinator) Leader { return coordinatorLeader{c} }

type coordinatorLeader struct{ *coordinator.Coordinator }

func (l coordinatorLeader) Open() (Session, error) {
	session, err := l.Coordinator.Open()
	if err != nil {
		return nil, err // not a nil session inside a Session that is not nil
	}
	return session, nil
}

// Config is what a Server is made of. Zero means the default.
type Config struct {
	Node    Node // required
	Hub     *Hub // fed by the node and the coordinator; nil: watchers see blocks and leaders alone
	Logger  *slog.Logger
	Version string // software version, for people

	KeepaliveTime    time.Duration
	KeepaliveTimeout time.Duration
	MaxStreams       uint32 // open calls of one connection
}

// Validate reports the first field that is wrong.
func (c Config) Validate() error {
	switch {
	case c.Node == nil:
		return errors.New("rpc config: node is missing")
	case c.KeepaliveTime != 0 && c.KeepaliveTime < time.Second:
		return fmt.Errorf("rpc config: keepalive time %v, want at least 1s", c.KeepaliveTime)
	case c.KeepaliveTimeout < 0:
		return fmt.Errorf("rpc config: keepalive timeout %v, want more than 0", c.KeepaliveTimeout)
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Hub == nil {
		c.Hub = NewHub()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.KeepaliveTime == 0 {
		c.KeepaliveTime = DefaultKeepaliveTime
	}
	if c.KeepaliveTimeout == 0 {
		c.KeepaliveTimeout = DefaultKeepaliveTimeout
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = DefaultMaxStreams
	}
	return c
}
