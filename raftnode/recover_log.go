package raftnode

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"raftmine/fsm"
)

// history is what one server's stores hold, replayed to their end: committed or not.
type history struct {
	first, last uint64 // entries of the log without holes, perhaps from before the snapshot; first > last: none
	lastTerm    uint64 // of the last entry or snapshot
	term        uint64 // the highest that was ever seen
	snapshot    *raft.SnapshotMeta
	servers     []raft.Server // the latest configuration
	state       *fsm.State
	committed   fsm.Head            // of the snapshot: committed for certain
	journal     fsm.Head            // the end of the journal: committed as well
	heads       map[uint64]fsm.Head // after each replayed entry, by its index
	// begun says that the server began anew behind a fence and its log does not reach beyond the recovery yet: it stands
	// for nothing, and its configuration may be one of long ago.
	begun    bool
	survivor uint64 // of that fence
}

// readHistory reads the stores in the data directory of a server that does not run; the caller holds its lock. Nothing is
// changed. Everything is read and checked: a log that cannot be read to its end is an error.
func readHistory(dir string) (h *history, err error) {
	path := filepath.Join(dir, logFile)
	defer recoverDamage(path, &err)
	// A file that was cut shorter than it says is mapped beyond its end: a fault, which else ends the process.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if info, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrLogMissing)
	} else if err == nil && info.Size() == 0 {
		return nil, fmt.Errorf("%s: %w: the file is empty", path, ErrLogMissing)
	}
	record, err := readRecovery(dir)
	if err != nil {
		return nil, err
	}
	if last := record.last(); last != nil && !last.Installed {
		return nil, fmt.Errorf("%s: a recovery is not finished: start that server first", dir)
	}
	rejoin, err := readFence(dir, rejoinFileName)
	if err != nil {
		return nil, err
	}
	if err := checkLogFile(path); err != nil {
		return nil, err
	}
	log, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: readOnlyBolt()})
	if err != nil {
		return nil, unopened(path, err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if _, ok, err := hasTerm(log); err != nil {
		return nil, fmt.Errorf("%s: read term: %w", path, err)
	} else if !ok {
		return nil, fmt.Errorf("%s: %w: it has no term", path, ErrLogMissing)
	}
	snapshots, err := openSnapshots(dir)
	if err != nil {
		return nil, err
	}
	h, err = replayStores(log, log, snapshots, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if rejoin != nil {
		h.begun, h.survivor = h.lastTerm < rejoin.NewTerm, rejoin.Survivor
	}
	if identity, err := readIdentity(dir); err == nil {
		h.journal = journalEnd(dir, identity.ClusterID)
	}
	return h, nil
}

func readOnlyBolt() *bbolt.Options { return &bbolt.Options{ReadOnly: true, Timeout: time.Second} }

// openSnapshots does not make the folder, as the library would.
func openSnapshots(dir string) (raft.SnapshotStore, error) {
	if _, err := os.Stat(filepath.Join(dir, snapshotFolder)); errors.Is(err, fs.ErrNotExist) {
		return raft.NewDiscardSnapshotStore(), nil
	} else if err != nil {
		return nil, err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, retainedSnapshots, newRaftLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, fmt.Errorf("open snapshots in %s: %w", dir, err)
	}
	return snapshots, nil
}

// replayStores replays the newest snapshot and what follows it. With enough it ends at the first state that is, and of the
// history only that state is right.
func replayStores(log raft.LogStore, stable raft.StableStore, snapshots raft.SnapshotStore, enough func(*fsm.State) bool) (*history, error) {
	h := &history{state: fsm.New(), heads: make(map[uint64]fsm.Head)}
	var err error
	if h.term, err = stable.GetUint64(keyCurrentTerm); err != nil && err.Error() != raftboltdb.ErrKeyNotFound.Error() {
		return nil, fmt.Errorf("read term: %w", err)
	}
	metas, err := snapshots.List()
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	if len(metas) > 0 {
		if err := h.restore(snapshots, metas[0]); err != nil {
			return nil, err
		}
	}
	if enough != nil && enough(h.state) {
		return h, nil
	}
	first, err := log.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := log.LastIndex()
	if err != nil {
		return nil, err
	}
	h.first, h.last = h.replayedTo()+1, max(last, h.replayedTo())
	if h.first > 1 && first > 0 { // keep what lies before the snapshot, as far as it has no hole
		for entry := (raft.Log{}); h.first > first && log.GetLog(h.first-1, &entry) == nil; {
			h.first--
		}
	}
	for index := h.replayedTo() + 1; index <= last; index++ {
		var entry raft.Log
		if err := log.GetLog(index, &entry); err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrLogDamaged, index, err)
		}
		if entry.Index != index || entry.Term < h.lastTerm {
			return nil, fmt.Errorf("%w: entry %d says that it is entry %d of term %d, after term %d",
				ErrLogDamaged, index, entry.Index, entry.Term, h.lastTerm)
		}
		if err := h.replay(&entry); err != nil {
			return nil, err
		}
		if enough != nil && enough(h.state) {
			return h, nil
		}
	}
	h.term = max(h.term, h.lastTerm)
	return h, nil
}

func (h *history) replayedTo() uint64 {
	if h.snapshot == nil {
		return 0
	}
	return h.snapshot.Index
}

func (h *history) restore(snapshots raft.SnapshotStore, meta *raft.SnapshotMeta) error {
	_, source, err := snapshots.Open(meta.ID)
	if err != nil {
		return fmt.Errorf("%w: snapshot %s: %w", ErrLogDamaged, meta.ID, err)
	}
	state, err := fsm.ReadSnapshot(source)
	if err := errors.Join(err, source.Close()); err != nil {
		return fmt.Errorf("%w: snapshot %s: %w", ErrLogDamaged, meta.ID, err)
	}
	h.snapshot, h.state, h.servers = meta, state, meta.Configuration.Servers
	h.committed, h.lastTerm = state.Head(), meta.Term
	h.heads[h.committed.Index] = h.committed
	return nil
}

func (h *history) replay(entry *raft.Log) error {
	h.lastTerm = entry.Term
	switch entry.Type {
	case raft.LogCommand:
		if _, err := h.state.Apply(entry.Index, entry.Term, entry.Data); err != nil {
			return fmt.Errorf("%w: %w", ErrLogDamaged, err)
		}
		h.heads[entry.Index] = h.state.Head()
	case raft.LogConfiguration:
		h.servers = raft.DecodeConfiguration(entry.Data).Servers // panics over damage, as the library does
	}
	return nil
}

// voters returns the ids that vote in the latest configuration.
func (h *history) voters() []uint64 {
	var ids []uint64
	for _, server := range h.servers {
		if server.Suffrage == raft.Voter {
			ids = append(ids, serverID(server.ID))
		}
	}
	slices.Sort(ids)
	return ids
}

// compare says which of two logs has everything that was committed: Raft dissertation §3.6.1.
func (h *history) compare(other *history) int {
	return cmp.Or(cmp.Compare(h.lastTerm, other.lastTerm), cmp.Compare(h.last, other.last))
}

// agrees checks what Raft promises: what another server has committed for certain is in this log, and entries of one index
// and term have one past. A log that breaks it was damaged in a way that no checksum found.
func (h *history) agrees(other *history) error {
	if err := h.contains(other.committed); err != nil {
		return err
	}
	for index, theirs := range other.heads {
		if own, ok := h.heads[index]; ok && own.Term == theirs.Term && own != theirs {
			return fmt.Errorf("entry %d of term %d is not the same in the best log", index, own.Term)
		}
	}
	return nil
}
