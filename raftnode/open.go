package raftnode

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// Open makes a server of a data directory: it bootstraps a cluster, or joins one, or goes on where the server on that
// directory stopped. The server takes part in Raft when Open returns, and does its other duties while Run runs. Callers
// must serve HandleHeartbeat, HandleJoin and HandleLeave to the other servers from then on.
func Open(ctx context.Context, config Config) (*Node, error) {
	config = config.withDefaults()
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("open server: %w", err)
	}
	n := &Node{
		config: config,
		log:    config.Logger,
		govern: make(chan struct{}, 1),

		diskChanged: make(chan struct{}, 1),
		regroup:     make(chan struct{}, 1),

		configTurn:   make(turn, 1),
		transferTurn: make(turn, 1),
		joinTurn:     make(turn, joinsAtOnce),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.replica = newReplica(n.onApplied)
	if err := n.open(ctx); err != nil {
		n.cancel()
		n.release()
		return nil, err
	}
	return n, nil
}

func (n *Node) open(ctx context.Context) error {
	identity := n.config.DataDir.Identity()
	fresh := identity.ServerID == 0 // then no Raft instance ever ran here
	founding := fresh && n.config.Bootstrap
	switch {
	case founding:
		identity.ClusterID, identity.ServerID = uuid.NewString(), 1
	case fresh:
		stop := n.vouch(identity.RequestID)
		reply, err := n.askToJoin(ctx, identity.RequestID)
		stop()
		if err != nil {
			return err
		}
		identity.ClusterID, identity.ServerID = reply.ClusterID, reply.ServerID
		n.newBook(identity)
		for _, server := range reply.Servers {
			n.book.hear(server.ServerID, server.Address)
		}
	}
	if n.book == nil {
		n.newBook(identity)
	}
	n.id, n.clusterID, n.requestID = identity.ServerID, identity.ClusterID, identity.RequestID
	n.log = n.log.With("server_id", n.id)
	n.peers.init()

	rejoin, err := n.settle(ctx, identity)
	if err != nil {
		return err
	}
	if err := n.openStores(fresh, rejoin); err != nil {
		return err
	}
	if n.journal, err = openJournal(journalConfig{
		dataDir:      n.config.DataDir.Path(),
		clusterID:    n.clusterID,
		segmentBytes: n.config.JournalSegment,
		logger:       n.log,
		open:         n.config.OpenJournalFile,
	}); err != nil {
		return err
	}
	if err := n.checkLog(); err != nil {
		return err
	}
	n.replica.belongs = n.belongs
	if !n.config.WithoutJournal {
		n.replica.journal = n.journal
	}
	n.disk.limit, n.disk.alarm = n.config.StallLimit, n.diskAlarm
	n.guardDisk()
	n.disk.guard(n.stores)
	n.openTransport()
	if n.gate, err = n.closedGate(); err != nil {
		return err
	}
	raftConfig := n.raftConfig()
	if founding {
		self := raft.Server{ID: raftID(n.id), Address: raftAddress(n.id, n.config.Advertise)}
		err := raft.BootstrapCluster(raftConfig, n.stores.Log, n.stores.Stable, n.stores.Snapshots, n.transport,
			raft.Configuration{Servers: []raft.Server{self}})
		if err != nil {
			return fmt.Errorf("bootstrap cluster: %w", err)
		}
	}
	// From here on the directory belongs to this server: its log exists, and its id is on the disk before Raft starts.
	if n.config.Listener != nil {
		identity.Address = n.config.Listener.Addr().String()
	}
	identity.DataDir, identity.MachineID = n.config.DataDir.Path(), n.config.Host.MachineID
	if identity != n.config.DataDir.Identity() {
		if err := n.config.DataDir.SetIdentity(identity); err != nil {
			return fmt.Errorf("store identity: %w", err)
		}
	}
	if err := n.publish(); err != nil {
		return err
	}
	_ = n.book.refresh() // Run says what cannot be read
	n.openCommitter()
	return n.startRaft(raftConfig)
}

func (n *Node) newBook(identity Identity) {
	n.book = &addressBook{
		self:       identity.ServerID,
		advertise:  n.config.Advertise,
		clusterID:  identity.ClusterID,
		fresh:      3 * n.config.Heartbeat,
		env:        n.config.Environment,
		stale:      make(chan struct{}, 1),
		heard:      make(map[uint64]heard),
		configured: n.configuration,
		table: func(id uint64) (row fsm.Server, ok bool) {
			n.View(func(v fsm.View) { row, ok = v.Server(id) })
			return row, ok
		},
	}
}

func (n *Node) openTransport() {
	inner := n.config.Stream
	if inner == nil {
		inner = newStreamLayer(n.config.Listener, n.config.Advertise)
	}
	n.stream = newGuardedStream(inner, n.clusterID, n.id)
	n.stream.refused = n.book.dialFailed
	n.stream.strange = func(from string) {
		n.log.Debug("raft connection meant for another server closed", "from", from)
	}
	n.stream.crowded = func(from string) {
		n.log.Warn("too many raft connections, closing those that ask nothing: find out what opens them", "from", from, "limit", maxRaftConns)
	}
	n.stream.start()
	n.transport = newRaftTransport(raft.NetworkTransportConfig{
		ServerAddressProvider: n.book,
		Logger:                newRaftLogger(n.log),
		Stream:                n.stream,
		MaxPool:               raftPool,
		Timeout:               n.config.TransportTimeout,
	}, n.config.RaftLease/2, func() bool { return n.onlyFollower() != 0 })
	n.transport.intake = newIntake(func() (uint64, bool) {
		if instance := n.started.Load(); instance != nil {
			return instance.CurrentTerm(), true
		}
		return 0, false
	})
	n.transport.starting = func() { n.diskGuard.started.Store(true) }
}

func (n *Node) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raftID(n.id)
	c.HeartbeatTimeout = n.config.RaftHeartbeat
	c.ElectionTimeout = n.config.RaftElection
	c.LeaderLeaseTimeout = n.config.RaftLease
	c.CommitTimeout = max(c.CommitTimeout, n.config.RaftHeartbeat/6) // an idle leader's news of what is committed
	c.ShutdownOnRemove = false
	c.MaxAppendEntries = maxRaftEntries
	c.SnapshotInterval = n.config.SnapshotInterval
	c.SnapshotThreshold = n.config.SnapshotThreshold
	c.TrailingLogs = n.config.TrailingLogs
	c.NoLegacyTelemetry = true
	c.LogOutput = io.Discard
	c.Logger = newRaftLogger(n.log)
	return c
}

// startRaft also turns what the library panics over, a log with holes, into an error.
func (n *Node) startRaft(config *raft.Config) (err error) {
	defer func() {
		if n.diskGuard.early != nil {
			err = n.diskGuard.early // and no damage
		}
	}()
	defer recoverDamage(filepath.Join(n.config.DataDir.Path(), logFile), &err)
	var transport raft.Transport = n.transport
	if n.gate != nil {
		transport = n.gate
		config.HeartbeatTimeout, config.ElectionTimeout = gateTimeout, gateTimeout
	}
	instance, err := raft.NewRaft(config, n.replica, n.stores.Log, n.stores.Stable, n.stores.Snapshots, transport)
	if failure := n.replica.failure(); failure != nil {
		return failure // the library only says that no snapshot could be restored
	}
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	n.raft = instance
	n.started.Store(instance)
	n.transport.intake.start(n.transport.NetworkTransport.Consumer(), n.answered)
	return nil
}

func (n *Node) openCommitter() {
	n.commits = committer{
		maxCommands: n.config.BatchCommands,
		maxBytes:    n.config.BatchBytes,
		maxInFlight: n.config.InFlight,
		encode: func(commands []fsm.Command) ([]byte, error) {
			return fsm.EncodeEntry(fsm.Entry{
				LeaderID:  n.id,
				UnixMilli: uint64(max(0, n.config.Now().UnixMilli())),
				Version:   n.config.Version,
				Commands:  commands,
			})
		},
		apply: func(term uint64, data []byte) (raft.ApplyFuture, error) {
			if !n.leadsIn(term) {
				return nil, n.notLeader()
			}
			return n.raft.Apply(data, n.config.TransportTimeout), nil
		},
		refused: n.notLeader,
	}
	n.commits.start()
}

func (n *Node) publish() error {
	if n.config.Environment == nil {
		return nil
	}
	entry, err := n.config.Environment.Publish(registry.Entry{
		Role:             registry.RoleServer,
		ServerID:         n.id,
		ClusterID:        n.clusterID,
		Address:          n.config.Advertise,
		DataDir:          n.config.DataDir.Path(),
		PID:              os.Getpid(),
		StartedUnixMilli: uint64(max(0, n.config.Now().UnixMilli())),
	})
	if err != nil {
		return fmt.Errorf("publish address: %w", err)
	}
	n.entry = entry
	return nil
}
