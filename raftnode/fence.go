package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// Files in the data directory of a voter that a recovery left behind. Protocol with the disk.
const (
	// fenceFileName: the log here may have been replaced by the survivor's. Raft must not start on it before it is known
	// what became of the recovery.
	fenceFileName = "fence.json"
	// rejoinFileName is what the fence becomes once the old log is archived: the log here began anew. It stays.
	rejoinFileName = "rejoin.json"
)

// fencePoll is how often a fenced server looks whether an unfinished recovery was decided. Tuning.
const fencePoll = 100 * time.Millisecond

// fence is fence.json and rejoin.json.
type fence struct {
	recoveryFacts
	ServerID uint64 `json:"server_id"` // in whose directory it lies
}

func (f *fence) check() error {
	if f.ServerID == 0 || f.ServerID == f.Survivor {
		return fmt.Errorf("server_id is %d, survivor is %d", f.ServerID, f.Survivor)
	}
	return f.recoveryFacts.check()
}

// readFence returns nil when there is no such file.
func readFence(dir, name string) (*fence, error) {
	var f fence
	if err := readSealed(filepath.Join(dir, name), &f); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return &f, nil
}

// A fence's fate is decided in the survivor's directory, by one atomic replacement of its recovery.json.
type fenceFate int

const (
	fencePending fenceFate = iota // the survivor has the recovery under way
	fenceDecided                  // the survivor went on alone
	fenceVoid                     // the recovery was ended before it was decided, and never will be
)

// fate looks into the survivor's directory. A recovery that was cut short, and whose survivor does not run, is ended: it
// never was decided, so nothing was acknowledged on its account, and the survivor meets its own end of it when it starts.
func (f *fence) fate() (fenceFate, error) {
	unknown := func(err error) (fenceFate, error) {
		return 0, fmt.Errorf("server %d may have gone on alone without this server, and %s cannot tell: %w; start server %d first, "+
			"in the same environment if its data directory was moved; if that is lost, \"raftmine server recover\" goes on without what it alone has",
			f.Survivor, f.SurvivorDir, err, f.Survivor)
	}
	fate, err := f.look()
	if err != nil {
		return unknown(err)
	} else if fate != fencePending {
		return fate, nil
	}
	lock, err := registry.LockFile(filepath.Join(f.SurvivorDir, lockFileName))
	if errors.Is(err, registry.ErrHeld) {
		return fencePending, nil
	} else if err != nil {
		return unknown(err)
	}
	defer lock.Release()
	if fate, err = f.look(); err != nil {
		return unknown(err)
	} else if fate != fencePending {
		return fate, nil
	}
	if err := discardIntent(f.SurvivorDir); err != nil {
		return unknown(err)
	}
	return fenceVoid, nil
}

// look reads what became of the recovery, and changes nothing. The intent is written before the first fence and the file
// stays, so one that is gone says nothing; neither does one that is damaged. The survivor's journal can still tell that the
// recovery was decided, and never that it was not.
func (f *fence) look() (fenceFate, error) {
	if err := f.survivorIsThere(); err != nil {
		return 0, err
	}
	record, err := readWrittenRecovery(f.SurvivorDir)
	switch {
	case err == nil && record.Intent != nil && record.Intent.RecoveryID == f.RecoveryID:
		return fencePending, nil
	case record.has(f.RecoveryID) || f.announced():
		return fenceDecided, nil
	case err != nil:
		return 0, err
	}
	return fenceVoid, nil
}

// announced reports whether the survivor's journal has the recovery: it begins the first entry that follows what was recovered.
func (f *fence) announced() bool {
	reader, err := ReadJournal(f.SurvivorDir)
	if err != nil {
		return false
	}
	for record, err := range reader.After(f.HeadIndex) {
		if err != nil {
			return false
		}
		entry, err := fsm.DecodeEntry(record.Data)
		return err == nil && slices.Contains(entry.Commands, fsm.Command(f.command()))
	}
	return false
}

// follow finds a survivor that runs on another directory than the fence says: its own, moved.
func (f *fence) follow(env *registry.Environment) {
	if env == nil || f.survivorIsThere() == nil {
		return
	}
	entries, _ := env.Entries() // one that cannot be read tells nothing
	for _, entry := range entries {
		if entry.Role != registry.RoleServer || entry.ServerID != f.Survivor || entry.ClusterID != f.ClusterID {
			continue
		}
		moved := *f
		if moved.SurvivorDir = entry.DataDir; moved.survivorIsThere() == nil {
			f.SurvivorDir = entry.DataDir
		}
	}
}

// survivorIsThere returns why the directory that the fence names is not the survivor's: nothing is known of its fate, then.
func (f *fence) survivorIsThere() error {
	identity, err := readIdentity(f.SurvivorDir)
	if err == nil && (identity.ClusterID != f.ClusterID || identity.ServerID != f.Survivor) {
		err = fmt.Errorf("it is that of server %d of cluster %s", identity.ServerID, identity.ClusterID)
	}
	return err
}

// passFence waits until the fence's fate is known, and lifts it or archives the log. It returns the fence when the log
// was archived: then the server begins with an empty one, and beginAgain follows.
func passFence(ctx context.Context, dir *DataDir, env *registry.Environment, waiting func(survivor uint64)) (*fence, error) {
	f, err := readFence(dir.Path(), fenceFileName)
	if err != nil || f == nil {
		return nil, err
	}
	identity := dir.Identity()
	if f.ServerID != identity.ServerID || f.ClusterID != identity.ClusterID {
		return nil, fmt.Errorf("%w: %s is meant for server %d of cluster %s, and this is server %d of cluster %s: move the file away",
			ErrDamagedDataDir, filepath.Join(dir.Path(), fenceFileName), f.ServerID, f.ClusterID, identity.ServerID, identity.ClusterID)
	}
	for told := false; ; told = true {
		f.follow(env)
		fate, err := f.fate()
		switch {
		case err != nil:
			return nil, err
		case fate == fenceDecided:
			return f, f.archive(dir.Path())
		case fate == fenceVoid:
			return nil, liftFence(dir.Path())
		}
		if !told {
			waiting(f.Survivor)
		}
		if !sleep(ctx, fencePoll) {
			return nil, fmt.Errorf("wait for the end of the recovery that server %d began: %w", f.Survivor, ctx.Err())
		}
	}
}

func liftFence(dir string) error {
	if err := os.Remove(filepath.Join(dir, fenceFileName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lift fence: %w", err)
	}
	return syncDir(dir)
}

// archive moves the old log away, after it was compared with what the survivor went on with. Done again it does nothing:
// with the log in the archive, what stands in its place is a beginning that was cut short.
func (f *fence) archive(dir string) error {
	if err := discardIntent(dir); err != nil {
		return err
	}
	archive := filepath.Join(dir, archiveFolder, f.RecoveryID.String())
	if _, err := os.Stat(filepath.Join(archive, logFile)); err == nil {
		return nil
	}
	if err := f.holdsJournal(journalEnd(dir, f.ClusterID)); err != nil {
		return f.foreign(filepath.Join(dir, journalFolder), err)
	}
	if h, err := readHistory(dir); err == nil { // one that cannot be read is archived as it is: it is needed no more
		if err := f.holds(h); err != nil {
			return f.foreign(filepath.Join(dir, logFile), err)
		}
	}
	if err := makeArchive(dir, archive); err != nil {
		return fmt.Errorf("archive log: %w", err)
	}
	// The log goes last: that it is there says that all is.
	for _, name := range []string{snapshotFolder, logFile} {
		err := os.Rename(filepath.Join(dir, name), filepath.Join(archive, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("archive log: %w", err)
		}
		recoveryStep("fenced log archived: " + name)
	}
	if err := errors.Join(syncDir(archive), syncDir(dir)); err != nil {
		return fmt.Errorf("archive log: %w", err)
	}
	return nil
}

// foreign is the end of a start: nothing was moved, and what the cluster lacks is kept for a person to look at.
func (f *fence) foreign(path string, err error) error {
	return fmt.Errorf("%s is no beginning of what server %d went on with: %w; keep this data directory for an audit, "+
		"and start on another one to join as a new server", path, f.Survivor, err)
}

// holds compares the old log with the recovered one as far as the log alone allows. Entries that were never committed may
// differ; nothing may go beyond it, and what is committed for certain, the snapshot, must be on its chain.
func (f *fence) holds(h *history) error {
	head := f.head()
	switch {
	case h.lastTerm > f.Term || (h.lastTerm == f.Term && h.last > f.Index):
		return fmt.Errorf("it ends with entry %d of term %d, behind entry %d of term %d", h.last, h.lastTerm, f.Index, f.Term)
	case h.committed.Index > head.Index:
		return fmt.Errorf("its snapshot is of entry %d, behind entry %d", h.committed.Index, head.Index)
	}
	if own, ok := h.heads[head.Index]; ok && own.Term == head.Term && own != head {
		return fmt.Errorf("its history up to entry %d is another one", head.Index)
	}
	return nil
}

// beginAgain makes the new stores those of a server that follows. Its term keeps out every leader from before the
// recovery; voteGate keeps this server from giving or asking for votes while its log may still be one of before.
func (f *fence) beginAgain(dir string, stores *Stores) error {
	if err := stores.Stable.SetUint64(keyCurrentTerm, f.NewTerm); err != nil {
		return fmt.Errorf("begin a new log: %w", err)
	}
	recoveryStep("new log begun")
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("begin a new log: %w", err)
	}
	if err := os.Rename(filepath.Join(dir, fenceFileName), filepath.Join(dir, rejoinFileName)); err != nil {
		return fmt.Errorf("begin a new log: %w", err)
	}
	recoveryStep("fence passed")
	return syncDir(dir)
}

// keyCurrentTerm is where the Raft library keeps its term in the stable store.
var keyCurrentTerm = []byte("CurrentTerm")

// lastTermOf returns the term of the last entry or snapshot.
func lastTermOf(stores *Stores) (uint64, error) {
	var term uint64
	last, err := stores.Log.LastIndex()
	if err != nil {
		return 0, err
	}
	if last > 0 {
		var entry raft.Log
		if err := stores.Log.GetLog(last, &entry); err != nil {
			return 0, err
		}
		term = entry.Term
	}
	snapshots, err := stores.Snapshots.List()
	if err != nil {
		return 0, err
	}
	if len(snapshots) > 0 {
		term = max(term, snapshots[0].Term)
	}
	return term, nil
}

// doubt is a fence whose fate cannot be known.
type doubt struct {
	survivor uint64
	why      string
}

// fencesOff refuses to go on with a log whose server must not use it any more, or to overwrite its fence: that of a recovery
// that was decided, or may have been. A person may do the latter, and the new term is above that recovery's then.
func (r *recovery) fencesOff(dir string) error {
	f, err := readFence(dir, fenceFileName)
	if err != nil || f == nil || f.RecoveryID == r.facts.RecoveryID {
		return err
	}
	f.follow(r.env)
	fate, err := f.look()
	switch {
	case err != nil:
		err = fmt.Errorf("server %d may have gone on alone without server %d, and %s cannot tell: %w", f.Survivor, f.ServerID, f.SurvivorDir, err)
		if r.operator {
			r.doubts, r.above = append(r.doubts, doubt{f.Survivor, err.Error()}), max(r.above, f.NewTerm)
			return nil
		}
		return err
	case fate == fenceDecided:
		return fmt.Errorf("it was left behind when server %d went on alone: start server %d", f.Survivor, f.Survivor)
	}
	return nil
}
