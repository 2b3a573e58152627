package raftnode

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"raftmine/fsm"
)

// ErrLogBehind: the Raft log is older than what its server did already. It forgot entries that it acknowledged, or votes.
var ErrLogBehind = errors.New("raft log is older than what this server already did")

// ErrSnapshotDamaged: a snapshot cannot be read, and the log has not everything that it held.
var ErrSnapshotDamaged = errors.New("raft snapshot is damaged or missing")

// joinAnew ends the errors of a log that must not be used. To put an older copy in its place would be just as wrong: a server
// that forgot what it acknowledged can elect one that never had it.
const joinAnew = "start on another data directory to join as a new server, and never put an older copy in its place"

// hasTerm reports whether a term was ever stored. Each server stores one before its id is on the disk (openStores).
func hasTerm(stable raft.StableStore) (uint64, bool, error) {
	term, err := stable.GetUint64(keyCurrentTerm)
	if err != nil && err.Error() == raftboltdb.ErrKeyNotFound.Error() {
		return 0, false, nil
	}
	return term, err == nil, err
}

// openStores opens the stores, and makes new ones tell that they are: a log without a term is one that lost it.
func (n *Node) openStores(fresh bool, rejoin *fence) (err error) {
	dir := n.config.DataDir.Path()
	if n.stores, err = n.config.OpenStores(dir, fresh || rejoin != nil, n.log); err != nil {
		return fmt.Errorf("open raft log: %w", err)
	}
	switch {
	case rejoin != nil:
		return rejoin.beginAgain(dir, n.stores)
	case fresh:
		if err := n.stores.Stable.SetUint64(keyCurrentTerm, 0); err != nil {
			return fmt.Errorf("begin a new log: %w", err)
		}
	}
	return nil
}

// checkLog refuses stores that are not all that this server ever wrote, before it votes on them. What is in the journal was
// applied, so it was in the log, and synced there, before.
func (n *Node) checkLog() error {
	dir := n.config.DataDir.Path()
	rejoin, err := readFence(dir, rejoinFileName)
	if err != nil {
		return err
	}
	record, err := readRecovery(dir)
	if err != nil {
		return err
	}
	if err := n.checkSnapshots(); err != nil {
		return fmt.Errorf("open raft log: %w", err)
	}
	n.journal.mu.Lock()
	end := n.journal.end()
	if end.Records < n.journal.written.Records { // it lost its end, and the log did not
		end = n.journal.written
	}
	n.journal.mu.Unlock()
	path := filepath.Join(dir, logFile)
	err = checkStores(path, n.stores, record.Copied.own(end), rejoin)
	switch {
	case errors.Is(err, ErrLogMissing), errors.Is(err, ErrLogBehind):
		return fmt.Errorf("open raft log: %s: %w; %s", path, err, joinAnew)
	case err != nil:
		return fmt.Errorf("open raft log: %w", err)
	}
	if err := n.checkOwner(path); err != nil {
		return err
	}
	return n.checkTable(path)
}

// keyOwner is where the stable store has the request id of the server whose log and votes these are. Protocol with the disk.
var keyOwner = []byte("raftmine request id")

// checkOwner refuses another server's log of the same cluster, and marks one that nobody owns yet. Nothing else in a log says
// whose it is: with the server.json of two servers exchanged, each would vote again on what the other voted for.
func (n *Node) checkOwner(path string) error {
	owner, err := n.stores.Stable.Get(keyOwner)
	if err != nil && err.Error() != raftboltdb.ErrKeyNotFound.Error() {
		return fmt.Errorf("%s: read its owner: %w", path, err)
	}
	switch {
	case len(owner) == 0:
		if err := n.stores.Stable.Set(keyOwner, n.requestID[:]); err != nil {
			return fmt.Errorf("%s: write its owner: %w", path, err)
		}
	case !bytes.Equal(owner, n.requestID[:]):
		return fmt.Errorf("%w: %s is the log of another server than %s says: put each server's files back into its own directory",
			ErrDamagedDataDir, path, identityFileName)
	}
	return nil
}

// checkSnapshots refuses stores that lost a snapshot and have not everything that it held. The library passes over one that
// it cannot read: it then finds a hole in a log that is whole, or goes on with less than it had.
func (n *Node) checkSnapshots() (err error) {
	defer recoverDamage(filepath.Join(n.config.DataDir.Path(), logFile), &err)
	first, err := n.stores.Log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := n.stores.Log.LastIndex()
	if err != nil {
		return err
	}
	snapshots, err := n.stores.Snapshots.List()
	if err != nil {
		return err
	}
	folder := filepath.Join(n.config.DataDir.Path(), snapshotFolder)
	lost, unread := unlisted(folder, snapshots)
	readable := uint64(0)
	for _, snapshot := range snapshots {
		_, source, err := n.stores.Snapshots.Open(snapshot.ID)
		if err == nil {
			readable = snapshot.Index
			_ = source.Close() // it was only read
			break
		}
		if path := (*fs.PathError)(nil); errors.As(err, &path) {
			err = path.Err
		}
		lost = max(lost, snapshot.Index)
		unread = cmp.Or(unread, fmt.Errorf("%s: %w: %w", filepath.Join(folder, snapshot.ID, "state.bin"), ErrSnapshotDamaged, err))
	}
	switch {
	case unread == nil && readable+1 < first:
		unread = fmt.Errorf("%s: %w: none reaches to entry %d, where the log begins", folder, ErrSnapshotDamaged, first)
	case unread == nil:
		return nil
	case readable+1 >= first && lost <= max(readable, last):
		n.log.Warn("going on without a snapshot, of which the log has everything", "error", unread)
		return nil
	}
	return fmt.Errorf("%w; %s", unread, joinAnew)
}

// unlisted finds snapshots in folder that the library passes over, because it cannot read what they are of.
func unlisted(folder string, listed []*raft.SnapshotMeta) (lost uint64, err error) {
	entries, _ := os.ReadDir(folder) // in-memory stores have none
	for _, entry := range entries {
		known := slices.ContainsFunc(listed, func(s *raft.SnapshotMeta) bool { return s.ID == entry.Name() })
		var term, index uint64
		if _, scanErr := fmt.Sscanf(entry.Name(), "%d-%d-", &term, &index); scanErr != nil || known || strings.HasSuffix(entry.Name(), ".tmp") {
			continue
		}
		lost = max(lost, index)
		err = cmp.Or(err, fmt.Errorf("%s: %w", filepath.Join(folder, entry.Name(), "meta.json"), ErrSnapshotDamaged))
	}
	return lost, err
}

// checkTable replays the log until the table has this server, for the others may never send an entry to a server under
// another's id. Its own row was committed before it had a log, so that is soon; rows keep their ids and request ids, and both
// are given once, so nothing that follows can tell more. What cannot be replayed Raft meets again, and says better.
func (n *Node) checkTable(path string) (err error) {
	var h *history
	func() {
		defer recoverDamage(path, &err)
		h, err = replayStores(n.stores.Log, n.stores.Stable, n.stores.Snapshots, n.isIn)
	}()
	if err != nil {
		return nil
	}
	return n.belongs(h.state.Servers())
}

// isIn reports whether a row of the server table has this server's id or its request id.
func (n *Node) isIn(state *fsm.State) bool {
	return slices.ContainsFunc(state.Servers(), func(row fsm.Server) bool { return row.ID == n.id || row.RequestID == n.requestID })
}

// checkStores compares stores with the end of what their server applied, and with the fence behind which it began anew.
func checkStores(path string, stores *Stores, applied fsm.Head, rejoin *fence) (err error) {
	defer recoverDamage(path, &err)
	term, ok, err := hasTerm(stores.Stable)
	if err != nil {
		return fmt.Errorf("read term: %w", err)
	}
	if !ok {
		return fmt.Errorf("%w: it has no term", ErrLogMissing)
	}
	lastTerm, err := lastTermOf(stores)
	if err != nil {
		return fmt.Errorf("read last term: %w", err)
	}
	least := max(lastTerm, applied.Term)
	if rejoin != nil {
		least = max(least, rejoin.NewTerm)
	}
	if term < least {
		return fmt.Errorf("%w: it is in term %d, and the server was in term %d", ErrLogBehind, term, least)
	}
	if rejoin != nil && lastTerm < rejoin.NewTerm && applied.Term < rejoin.NewTerm {
		return nil // it began anew with an empty log, and does not vote (votegate.go)
	}
	last, err := stores.Log.LastIndex()
	if err != nil {
		return err
	}
	snapshots, err := stores.Snapshots.List()
	if err != nil {
		return err
	}
	restored := uint64(0)
	if len(snapshots) > 0 {
		restored = snapshots[0].Index
	}
	switch {
	case max(last, restored) < applied.Index:
		return fmt.Errorf("%w: it ends with entry %d, and the journal with entry %d", ErrLogBehind, max(last, restored), applied.Index)
	case applied.Index <= restored: // entries before a snapshot may be those that it replaced
		return nil
	}
	var entry raft.Log
	if err := stores.Log.GetLog(applied.Index, &entry); err != nil {
		return damaged(path, fmt.Errorf("entry %d: %w", applied.Index, err))
	}
	if entry.Index != applied.Index || entry.Term != applied.Term {
		return fmt.Errorf("%w: its entry %d is entry %d of term %d, and the journal's is of term %d", ErrLogBehind,
			applied.Index, entry.Index, entry.Term, applied.Term)
	}
	return nil
}

// copiedRecords are those at the end of the journal that a recovery copied from the others' journals: committed, but never in
// this server's log, when that recovery is not decided.
type copiedRecords struct {
	After     uint64 `json:"after"` // the last entry that this server applied itself
	AfterTerm uint64 `json:"after_term"`
	Until     uint64 `json:"until"`
}

// own returns the end of what this server applied itself, of a journal that ends at end.
func (c *copiedRecords) own(end fsm.Head) fsm.Head {
	if c == nil || end.Index <= c.After || end.Index > c.Until {
		return end
	}
	return fsm.Head{Index: c.After, Term: c.AfterTerm}
}

// noteCopied says, before it is done, that a recovery extends the journal beyond the log.
func (r *recovery) noteCopied(end fsm.Head) error {
	until := r.best.committed
	if until.Index <= end.Index {
		return nil
	}
	record, err := readRecovery(r.dir.Path())
	if err != nil {
		return err
	}
	own := record.Copied.own(end)
	record.Copied = &copiedRecords{After: own.Index, AfterTerm: own.Term, Until: until.Index}
	return writeRecovery(r.dir.Path(), record)
}
