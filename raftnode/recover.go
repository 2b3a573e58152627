package raftnode

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// ErrNotRecovered: the group cannot go on with this server alone. Nothing was changed.
var ErrNotRecovered = errors.New("this server cannot go on alone")

// stageBatch is how many entries are copied in one transaction. Tuning.
const stageBatch = 512

// recovery makes one server, which does not run and whose directory is locked, the only voter of its group. It takes the
// best log of all voters whose locks prove that they are dead.
//
//	intent     into the own recovery.json
//	lock       every voter of every log that is found, until nothing new is named
//	stage      the best log and a configuration of this server alone, into the own recovery folder
//	journal    the records that this log no longer has, from the others' journals into the own one
//	fence      into every other voter's directory
//	decide     the own recovery.json, in one replacement, while all locks are held
//	install    moves the staged stores into their place
//
// Killed before it is decided, it never happened: the next start does all of it again, or, if a lock is not to be had,
// discards it, and fences find that out. Killed later, the next start installs.
type recovery struct {
	dir      *DataDir
	identity Identity
	host     fsm.Host
	env      *registry.Environment // may be nil
	log      *slog.Logger
	operator bool
	seen     map[string]string // what directories looked like when they were taken, by path; may be nil

	voters map[uint64]*lockedVoter // this server among them
	given  []LostVoter             // operator only
	doubts []doubt                 // operator only
	above  uint64                  // operator only: the highest term of a recovery in doubt
	facts  recoveryFacts
	best   *lockedVoter
}

// lockedVoter is a voter whose directory is locked and read.
type lockedVoter struct {
	id   uint64
	path string
	lock *registry.FileLock // nil for this server's own, which its owner holds
	*history
}

// LostVoter is a voter that an operator gives up: nobody looked into its data directory.
type LostVoter struct {
	ID      uint64
	Address string
	DataDir string
	Why     string
}

// refuse says why there is no recovery.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrNotRecovered}, args...)...)
}

// gather locks and reads all voters.
func (r *recovery) gather() error {
	r.voters = make(map[uint64]*lockedVoter)
	own := r.identity.ServerID
	if err := localDisk(r.dir.Path()); err != nil && !r.operator {
		return refuse("%w", err)
	}
	h, err := readHistory(r.dir.Path())
	if err != nil {
		return refuse("%w", err)
	}
	switch {
	case h.begun:
		return refuse("it was left behind when server %d went on, and has not got that log yet: start server %d, which sends it; "+
			"the log of before is in %s, and no command takes it", h.survivor, h.survivor, filepath.Join(r.dir.Path(), archiveFolder))
	case !slices.Contains(h.voters(), own):
		return refuse("it is not a voter")
	case h.state.ClusterID() != r.identity.ClusterID:
		return refuse("its log is of cluster %q", h.state.ClusterID())
	}
	r.voters[own] = &lockedVoter{id: own, path: r.dir.Path(), history: h}
	for id := r.unlocked(); id != 0; id = r.unlocked() {
		if err := r.take(id); err != nil {
			return err
		}
	}
	return r.choose()
}

// unlocked returns a voter of any log that is neither locked nor given up; 0: there is none.
func (r *recovery) unlocked() uint64 {
	for _, voter := range r.sorted() {
		if voter.begun {
			continue
		}
		for _, id := range voter.voters() {
			if r.voters[id] == nil && !slices.ContainsFunc(r.given, func(l LostVoter) bool { return l.ID == id }) {
				return id
			}
		}
	}
	return 0
}

func (r *recovery) sorted() []*lockedVoter {
	var all []*lockedVoter
	for _, voter := range r.voters {
		all = append(all, voter)
	}
	slices.SortFunc(all, func(a, b *lockedVoter) int { return cmp.Compare(a.id, b.id) })
	return all
}

// bestOf returns the voter with the best log; of equals the own one.
func (r *recovery) bestOf() *lockedVoter {
	best := r.voters[r.identity.ServerID]
	for _, voter := range r.sorted() {
		if !voter.begun && voter.compare(best.history) > 0 {
			best = voter
		}
	}
	return best
}

// take locks and reads one voter. An operator may give up one that cannot be found or read, but never one that runs.
func (r *recovery) take(id uint64) error {
	row, known := r.bestOf().state.Server(id)
	if r.env != nil {
		entries, _ := r.env.Entries() // what cannot be read proves nothing; the locks do
		for _, entry := range entries {
			if entry.Role == registry.RoleServer && entry.ClusterID == r.identity.ClusterID && entry.ServerID == id {
				return refuse("server %d runs (pid %d)", id, entry.PID)
			}
		}
	}
	err := errors.New("it is not in the server table")
	if known {
		err = sameBoot(row.Host, r.host)
		// After a boot a free lock is no proof that a server does not run elsewhere by now; the operator knows.
		if err == nil || r.operator && row.Host.MachineID == r.host.MachineID && r.host.MachineID != "" {
			err = r.lock(row)
		}
	}
	switch {
	case err == nil:
		return nil
	case r.operator && !errors.Is(err, ErrDataDirInUse) && !errors.Is(err, errLogInUse):
		r.given = append(r.given, LostVoter{ID: id, Address: row.Address, DataDir: row.DataDir, Why: reasonOf(err)})
		return nil
	}
	return refuse("server %d: %w", id, err)
}

// ownDirectory checks that a directory is that of a server of this cluster, before anything in it is touched.
func (r *recovery) ownDirectory(path string, id uint64) error {
	identity, err := readIdentity(path)
	if err != nil {
		return fmt.Errorf("data directory %s: %w", path, err)
	}
	if identity.ClusterID != r.identity.ClusterID || identity.ServerID != id {
		return fmt.Errorf("data directory %s is that of server %d of cluster %s", path, identity.ServerID, identity.ClusterID)
	}
	return nil
}

func (r *recovery) lock(row fsm.Server) error {
	path := row.DataDir
	if r.seen != nil {
		r.seen[path] = looksOf(path)
	}
	if err := r.ownDirectory(path, row.ID); err != nil {
		return err
	}
	if err := localDisk(path); err != nil {
		return err
	}
	if err := hasLock(path); err != nil && !r.operator {
		return err
	}
	lock, err := lockDirectory(path)
	if err != nil {
		return err
	}
	voter := &lockedVoter{id: row.ID, path: path, lock: lock}
	err = r.ownDirectory(path, row.ID) // once more, under the lock
	if err == nil {
		err = r.fencesOff(path)
	}
	if err == nil {
		voter.history, err = readHistory(path)
	}
	if err == nil && voter.state.ClusterID() != "" && voter.state.ClusterID() != r.identity.ClusterID {
		err = fmt.Errorf("the log in %s is of cluster %s", path, voter.state.ClusterID())
	}
	if err != nil {
		return errors.Join(err, lock.Release())
	}
	r.voters[row.ID] = voter
	return nil
}

// lockDirectory locks a data directory that is not this process's own. A killed process keeps its lock until the kernel
// has ended it, and whoever looks at a lock holds it shared for a moment.
func lockDirectory(path string) (*registry.FileLock, error) {
	for try := 1; ; try++ {
		lock, err := registry.LockFile(filepath.Join(path, lockFileName))
		held := (*registry.HeldError)(nil)
		switch {
		case err == nil:
			return lock, nil
		case !errors.As(err, &held):
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case try == openTries:
			return nil, fmt.Errorf("data directory %s is %w%s", path, ErrDataDirInUse, pidText(held.PID))
		}
		time.Sleep(openInterval)
	}
}

// choose takes the best log and checks the others against it.
func (r *recovery) choose() error {
	r.best = r.bestOf()
	if r.best.state.Stopped() && !r.operator {
		return refuse("the cluster was stopped on purpose: start all of its servers")
	}
	term := r.above
	r.facts.Left = nil
	for _, voter := range r.sorted() {
		term = max(term, voter.term)
		if voter.id != r.identity.ServerID {
			r.facts.Left = append(r.facts.Left, voter.id)
		}
		if err := r.best.contains(voter.journal); err != nil {
			return refuse("the journal of server %d, in %s, does not fit: %w", voter.id, voter.path, err)
		}
		if voter == r.best || voter.begun {
			continue
		}
		if err := r.best.agrees(voter.history); err != nil {
			return refuse("the log of server %d, in %s, does not fit: %w", voter.id, voter.path, err)
		}
	}
	// A table that is newer than the one by which a directory was found may name another one.
	for _, voter := range r.sorted() {
		row, known := r.best.state.Server(voter.id)
		if voter.lock != nil && (!known || !sameDir(row.DataDir, voter.path)) {
			return refuse("server %d moved to %s, and %s is a copy", voter.id, row.DataDir, voter.path)
		}
	}
	for _, lost := range r.given {
		r.facts.Left = append(r.facts.Left, lost.ID)
	}
	slices.Sort(r.facts.Left)
	head := r.best.state.Head()
	r.facts.ClusterID, r.facts.Survivor, r.facts.SurvivorDir = r.identity.ClusterID, r.identity.ServerID, r.dir.Path()
	r.facts.Index, r.facts.Term, r.facts.NewTerm = r.best.last, r.best.lastTerm, term+1
	r.facts.HeadRecords, r.facts.HeadIndex, r.facts.HeadTerm = head.Records, head.Index, head.Term
	r.facts.HeadHash = head.Hash.String()
	if err := r.facts.check(); err != nil {
		return refuse("%w", err)
	}
	return nil
}

// stage makes the new stores beside the old ones: the best log as it is, and behind it the configuration of this server
// alone, of a term that nobody has seen. The log is copied, not compacted: a journal may still need its entries, and
// raft.RecoverCluster, which replaces it by a snapshot, changes the stores in place.
func (r *recovery) stage() (err error) {
	folder := filepath.Join(r.dir.Path(), recoveryFolder)
	if err := errors.Join(os.RemoveAll(folder), os.Mkdir(folder, 0o700)); err != nil {
		return err
	}
	if err := r.stageLog(filepath.Join(folder, logFile)); err != nil {
		return err
	}
	if err := r.stageSnapshot(folder); err != nil {
		return err
	}
	if err := errors.Join(syncDir(folder), syncDir(r.dir.Path())); err != nil {
		return err
	}
	// What cannot be read back must not replace anything.
	h, err := readHistory(folder)
	if err != nil {
		return err
	}
	if voters := h.voters(); h.last != r.facts.Index+1 || h.lastTerm != r.facts.NewTerm || h.state.Head() != r.facts.head() ||
		!slices.Equal(voters, []uint64{r.identity.ServerID}) {
		return fmt.Errorf("the log in %s ends with entry %d of term %d and voters %v", folder, h.last, h.lastTerm, voters)
	}
	return nil
}

func (r *recovery) stageLog(path string) (err error) {
	defer recoverDamage(r.best.path, &err)
	from, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(r.best.path, logFile), BoltOptions: readOnlyBolt()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := raftboltdb.New(raftboltdb.Options{Path: path, NoSync: true}) // synced once, at the end
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	var batch []*raft.Log
	for index := r.best.first; index <= r.best.last; index++ {
		entry := new(raft.Log)
		if err := from.GetLog(index, entry); err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
		if batch = append(batch, entry); len(batch) == stageBatch {
			if err := to.StoreLogs(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	address := ""
	if row, known := r.best.state.Server(r.identity.ServerID); known {
		address = row.Address
	}
	alone := raft.Configuration{Servers: []raft.Server{{ID: raftID(r.identity.ServerID),
		Address: raftAddress(r.identity.ServerID, cmp.Or(address, r.identity.Address))}}}
	batch = append(batch, &raft.Log{Index: r.facts.Index + 1, Term: r.facts.NewTerm, Type: raft.LogConfiguration,
		Data: raft.EncodeConfiguration(alone)})
	if err := to.StoreLogs(batch); err != nil {
		return err
	}
	if err := to.Set(keyOwner, r.identity.RequestID[:]); err != nil {
		return err
	}
	// No vote is stored: none was given in this term.
	if err := to.SetUint64(keyCurrentTerm, r.facts.NewTerm); err != nil {
		return err
	}
	return to.Sync()
}

// stageSnapshot copies the newest snapshot; the store syncs and checks it.
func (r *recovery) stageSnapshot(folder string) error {
	store := func(dir string) (*raft.FileSnapshotStore, error) {
		return raft.NewFileSnapshotStoreWithLogger(dir, retainedSnapshots, newRaftLogger(slog.New(slog.DiscardHandler)))
	}
	to, err := store(folder)
	if err != nil || r.best.snapshot == nil {
		return err
	}
	from, err := store(r.best.path)
	if err != nil {
		return err
	}
	meta, source, err := from.Open(r.best.snapshot.ID)
	if err != nil {
		return err
	}
	defer source.Close()
	_, encoder := raft.NewInmemTransport("") // writes the addresses into a field that snapshots of version 0 read
	sink, err := to.Create(meta.Version, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, encoder)
	if err != nil {
		return err
	}
	if _, err := io.Copy(sink, source); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// run does all steps; the caller wrote the intent. It returns ErrNotRecovered when nothing was decided.
func (r *recovery) run(id uuid.UUID) error {
	defer r.release()
	r.facts.RecoveryID = id
	if err := r.gather(); err != nil {
		return err
	}
	return r.goOn()
}

// goOn follows gather.
func (r *recovery) goOn() error {
	recoveryStep("locked")
	if err := r.stage(); err != nil {
		return refuse("copy the log of server %d: %w", r.best.id, err)
	}
	recoveryStep("staged")
	if err := r.completeJournal(); err != nil {
		return refuse("complete the journal: %w", err)
	}
	recoveryStep("journal")
	for _, voter := range r.sorted() {
		if voter.lock == nil {
			continue
		}
		f := fence{recoveryFacts: r.facts, ServerID: voter.id}
		if err := writeSealed(filepath.Join(voter.path, fenceFileName), &f); err != nil {
			return refuse("fence server %d: %w", voter.id, err)
		}
		recoveryStep(fmt.Sprint("fenced ", voter.id))
	}
	record, err := readRecovery(r.dir.Path())
	if err != nil {
		return refuse("%w", err)
	}
	record.Intent, record.Copied = nil, nil // the log that is put in place reaches as far as the journal
	record.Done = append(record.Done, doneRecovery{recoveryFacts: r.facts})
	if err := writeRecovery(r.dir.Path(), record); err != nil {
		return fmt.Errorf("decide recovery: %w", err) // it may be decided: only the next start can tell
	}
	recoveryStep("decided")
	r.release()
	r.log.Warn("going on as the only voter", "recovery", r.facts.RecoveryID.String(),
		"index", r.facts.Index, "term", r.facts.Term, "log_of", r.best.id, "left", r.facts.Left)
	return installRecovery(r.dir.Path(), record)
}

// release frees the other voters' directories.
func (r *recovery) release() {
	for _, voter := range r.voters {
		if voter.lock != nil {
			_ = voter.lock.Release()
		}
	}
}

// writeIntent is the first step. An intent that is there already goes on.
func writeIntent(dir string, operator bool) (uuid.UUID, error) {
	record, err := readRecovery(dir)
	if err != nil {
		return uuid.Nil, err
	}
	if record.Intent == nil || record.Intent.Operator != operator {
		id, err := uuid.NewRandom()
		if err != nil {
			return uuid.Nil, err
		}
		record.Intent = &recoveryIntent{RecoveryID: id, Operator: operator}
		if err := writeRecovery(dir, record); err != nil {
			return uuid.Nil, err
		}
	}
	recoveryStep("intent")
	return record.Intent.RecoveryID, nil
}

// settleRecovery finishes what a recovery left in the directory of a server that is about to start, before Raft does.
// It returns the last recovery that was done here, for the leader to announce; nil: none. Refused says why one that was
// intended did not come about.
func settleRecovery(r recovery) (last *recoveryFacts, refused, err error) {
	record, err := readRecovery(r.dir.Path())
	if err != nil {
		return nil, nil, err
	}
	if err := installRecovery(r.dir.Path(), record); err != nil {
		return nil, nil, err
	}
	if record.Intent != nil {
		refused = refuse("the operator's recovery was cut short: repeat it")
		if !record.Intent.Operator {
			refused = r.run(record.Intent.RecoveryID)
		}
		if refused != nil && !errors.Is(refused, ErrNotRecovered) {
			return nil, nil, refused // decided, and not installed: the disk
		}
		if refused != nil {
			r.log.Warn("recovery discarded", "reason", reasonOf(refused))
			if err := discardIntent(r.dir.Path()); err != nil {
				return nil, nil, err
			}
		}
		if record, err = readRecovery(r.dir.Path()); err != nil {
			return nil, nil, err
		}
	}
	if done := record.last(); done != nil {
		last = &done.recoveryFacts
	}
	return last, refused, nil
}
