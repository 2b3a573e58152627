package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// What a zero field of Config means. All of them are tuning: servers of one cluster may differ.
const (
	DefaultHeartbeat         = 5 * time.Second
	DefaultGrace             = 60 * time.Second
	DefaultRaftHeartbeat     = 300 * time.Millisecond
	DefaultRaftElection      = 300 * time.Millisecond
	DefaultRaftLease         = 250 * time.Millisecond
	DefaultStallLimit        = 2 * time.Second
	DefaultStallExit         = 10 * time.Second
	DefaultTransportTimeout  = 3 * time.Second
	DefaultJoinTimeout       = 30 * time.Second
	DefaultBatchCommands     = 4096
	DefaultBatchBytes        = 1 << 20
	DefaultInFlight          = 4
	DefaultSnapshotInterval  = 30 * time.Second
	DefaultSnapshotThreshold = 8192
	DefaultTrailingLogs      = 10240
)

// smallestJournalSegment is a bound that a test may set.
const smallestJournalSegment = 1 << 10

// Config is what Open needs. Only DataDir, Listener (or Stream and Advertise) and Peers have no default.
type Config struct {
	// DataDir is open and locked. The node owns it, and Listener, from the moment Open succeeds.
	DataDir *DataDir
	// Listener carries Raft beside gRPC.
	Listener *Listener
	// Advertise is where the other servers reach this one, host:port. Empty: the address of Listener.
	Advertise string
	// Bootstrap makes a new cluster of this server alone. It is ignored on a data directory that has an id.
	Bootstrap bool
	// Join lists servers to ask for an id. On a data directory that has an id they are only places where the others
	// may be found.
	Join []string
	// Environment, when not nil, is told this server's address while it runs, and asked for those of the others.
	Environment *registry.Environment
	Peers       PeerClient

	// SurviveAlone lets this server go on as the only voter when the locks of all other voters, on this host, prove that
	// they are dead. It needs the stores of OpenBoltStores.
	SurviveAlone bool

	Heartbeat     time.Duration // between servers; silent is three of these
	Grace         time.Duration // how long a server that is down stays a voter
	RaftHeartbeat time.Duration
	RaftElection  time.Duration
	RaftLease     time.Duration
	// A write of the Raft log that takes StallLimit makes this server refuse Raft traffic until it is done; one that takes
	// StallExit ends Run.
	StallLimit, StallExit time.Duration
	// TransportTimeout bounds one Raft request.
	TransportTimeout time.Duration
	// JoinTimeout bounds the wait for an id; ctx of Open bounds it too.
	JoinTimeout time.Duration

	Host     fsm.Host // zero: LocalHost
	Version  string   // of the software, written into each entry
	Logger   *slog.Logger
	Observer Observer // may be nil

	// Group commit: the bounds of one entry, and how many entries may be on their way at once. More than 4 in flight made
	// entries smaller and not more of them, measured with fsync and 1,000 callers.
	BatchCommands int
	BatchBytes    int // estimated
	InFlight      int

	// A snapshot is taken when this many entries came since the last one, looked at each SnapshotInterval; TrailingLogs
	// entries are kept behind it for servers that lag.
	SnapshotInterval  time.Duration
	SnapshotThreshold uint64
	TrailingLogs      uint64

	// JournalSegment bounds a file of the journal, in bytes.
	JournalSegment int64

	// The edges to disk, network and clock, replaced by tests and simulations.

	// Stream, when not nil, carries Raft in place of Listener.
	Stream raft.StreamLayer
	// WatchListener and DialWatch, when not nil, carry the watch streams in place of Listener. With Stream and without
	// them there are no watch streams.
	WatchListener net.Listener
	DialWatch     func(ctx context.Context, address string) (net.Conn, error)
	// OpenStores opens the Raft log and snapshots under a directory: OpenBoltStores.
	OpenStores func(dir string, fresh bool, logger *slog.Logger) (*Stores, error)
	// Probe dials an address and hangs up. It returns an error matching syscall.ECONNREFUSED when the port refuses.
	Probe func(ctx context.Context, address string) error
	// OpenJournalFile, when not nil, opens the files that the journal is written to.
	OpenJournalFile func(path string, flag int, mode fs.FileMode) (JournalFile, error)
	// WithoutJournal is for measuring what the journal costs. Such a server has no history to audit.
	WithoutJournal bool
	// Now is the wall clock.
	Now func() time.Time
	// pairTicks, when not nil, are the ticks by which a leader of two knows that it stood still (pair.go).
	pairTicks <-chan time.Time
}

func (c Config) withDefaults() Config {
	setDefault(&c.Heartbeat, DefaultHeartbeat)
	setDefault(&c.Grace, DefaultGrace)
	setDefault(&c.RaftHeartbeat, DefaultRaftHeartbeat)
	setDefault(&c.RaftElection, DefaultRaftElection)
	setDefault(&c.RaftLease, DefaultRaftLease)
	setDefault(&c.StallLimit, DefaultStallLimit)
	setDefault(&c.StallExit, max(DefaultStallExit, c.StallLimit))
	setDefault(&c.TransportTimeout, DefaultTransportTimeout)
	setDefault(&c.JoinTimeout, DefaultJoinTimeout)
	setDefault(&c.BatchCommands, DefaultBatchCommands)
	setDefault(&c.BatchBytes, DefaultBatchBytes)
	setDefault(&c.InFlight, DefaultInFlight)
	setDefault(&c.SnapshotInterval, DefaultSnapshotInterval)
	setDefault(&c.SnapshotThreshold, DefaultSnapshotThreshold)
	setDefault(&c.TrailingLogs, DefaultTrailingLogs)
	setDefault(&c.JournalSegment, DefaultJournalSegment)
	setDefault(&c.Version, "unknown")
	if c.Host == (fsm.Host{}) {
		c.Host = LocalHost()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Advertise == "" && c.Listener != nil {
		c.Advertise = c.Listener.Addr().String()
	}
	if c.OpenStores == nil {
		c.OpenStores = OpenBoltStores
	}
	if c.Probe == nil {
		c.Probe = probeTCP
	}
	if c.DialWatch == nil {
		c.DialWatch = func(ctx context.Context, address string) (net.Conn, error) {
			return dialTagged(ctx, address, tagWatch)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate says what is wrong with a configuration; zero fields are defaults and right.
func (c Config) Validate() error {
	c = c.withDefaults()
	switch {
	case c.DataDir == nil:
		return errors.New("no data directory given")
	case c.Listener == nil && c.Stream == nil:
		return errors.New("no listener given")
	case c.Peers == nil:
		return errors.New("no client for the other servers given")
	case c.Heartbeat < 0 || c.Grace < 0 || c.JoinTimeout < 0 || c.TransportTimeout < 0 || c.SnapshotInterval < 0:
		return errors.New("a duration is negative")
	case c.StallLimit < c.RaftLease || c.StallExit < c.StallLimit:
		return fmt.Errorf("limits of a stalled disk must hold raft lease <= limit <= exit, not %v, %v, %v",
			c.RaftLease, c.StallLimit, c.StallExit)
	case c.RaftLease > c.RaftHeartbeat || c.RaftHeartbeat > c.RaftElection || c.RaftLease < 5*time.Millisecond:
		return fmt.Errorf("raft timeouts must hold 5ms <= lease <= heartbeat <= election, not %v, %v, %v",
			c.RaftLease, c.RaftHeartbeat, c.RaftElection)
	case c.BatchCommands < 1 || c.BatchBytes < 1 || c.InFlight < 1:
		return errors.New("a bound of group commit is not positive")
	case c.JournalSegment < smallestJournalSegment:
		return fmt.Errorf("a journal segment of %d bytes, want at least %d", c.JournalSegment, smallestJournalSegment)
	case len(c.Version) > fsm.MaxVersion:
		return fmt.Errorf("software version %q is longer than %d bytes", c.Version, fsm.MaxVersion)
	case c.BatchCommands > fsm.MaxCommands:
		return fmt.Errorf("%d commands do not fit into one entry, %d do", c.BatchCommands, fsm.MaxCommands)
	}
	return checkAdvertised(c.Advertise)
}

// checkAdvertised refuses what no other server can dial.
func checkAdvertised(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("advertised address %q is not host:port", address)
	}
	if ip := net.ParseIP(host); host == "" || port == "0" || (ip != nil && ip.IsUnspecified()) {
		return fmt.Errorf("advertised address %q cannot be dialled by others: advertise a host and port that can", address)
	}
	return nil
}

func probeTCP(ctx context.Context, address string) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}
