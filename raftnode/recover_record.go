package raftnode

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// What a recovery keeps in the survivor's data directory. Protocol with the disk.
const (
	recoveryFileName = "recovery.json" // the intent, and the recoveries that were done
	recoveryFolder   = "recovery"      // the stores being made; moved into place once the recovery is done
	archiveFolder    = "archive"       // one folder for each recovery: the stores that it replaced or left behind
)

// recoveryFacts are what everybody must know of a recovery.
type recoveryFacts struct {
	RecoveryID  uuid.UUID `json:"recovery_id"`
	ClusterID   string    `json:"cluster_id"`
	Survivor    uint64    `json:"survivor"`
	SurvivorDir string    `json:"survivor_dir"` // absolute
	// The last entry of the log that was recovered, and the end of the history there.
	Index       uint64 `json:"index"`
	Term        uint64 `json:"term"`
	HeadRecords uint64 `json:"head_records"`
	HeadIndex   uint64 `json:"head_index"`
	HeadTerm    uint64 `json:"head_term"`
	HeadHash    string `json:"head_hash"`
	// NewTerm is above every term that any of the voters ever saw. What follows in the log is of this term or later.
	NewTerm uint64 `json:"new_term"`
	// Left are the other voters.
	Left []uint64 `json:"left"`
}

func (f *recoveryFacts) check() error {
	switch {
	case f.RecoveryID == uuid.Nil:
		return errors.New("recovery_id is missing")
	case f.ClusterID == "":
		return errors.New("cluster_id is missing")
	case f.Survivor == 0:
		return errors.New("survivor is missing")
	case !filepath.IsAbs(f.SurvivorDir):
		return fmt.Errorf("survivor_dir %q is no absolute path", f.SurvivorDir)
	case f.Index == 0 || f.Term == 0 || f.NewTerm <= f.Term:
		return fmt.Errorf("index %d, term %d and new term %d make no sense", f.Index, f.Term, f.NewTerm)
	case f.HeadIndex > f.Index || f.HeadTerm > f.Term:
		return fmt.Errorf("the history's end %d of term %d is behind entry %d of term %d", f.HeadIndex, f.HeadTerm, f.Index, f.Term)
	case slices.Contains(f.Left, f.Survivor) || slices.Contains(f.Left, 0):
		return errors.New("left names the survivor or server 0")
	}
	_, err := pow.ParseHash(f.HeadHash)
	return err
}

func (f *recoveryFacts) head() fsm.Head {
	hash, _ := pow.ParseHash(f.HeadHash) // checked
	return fsm.Head{Records: f.HeadRecords, Index: f.HeadIndex, Term: f.HeadTerm, Hash: hash}
}

func (f *recoveryFacts) command() fsm.Recover {
	return fsm.Recover{RecoveryID: fsm.ID(f.RecoveryID), Survivor: f.Survivor, Index: f.Index, Term: f.Term, Head: f.head().Hash}
}

// recoveryRecord is recovery.json. An intent is undecided: whoever holds the directory's lock may end it. What is in
// Done is decided for good, and stays, because a fence may ask for it at any time later.
type recoveryRecord struct {
	Intent *recoveryIntent `json:"intent,omitempty"`
	Done   []doneRecovery  `json:"done,omitempty"`
	Copied *copiedRecords  `json:"copied,omitempty"`
}

type recoveryIntent struct {
	RecoveryID uuid.UUID `json:"recovery_id"`
	// Operator: it was asked for by a person, who must ask again when it was cut short.
	Operator bool `json:"operator,omitempty"`
}

type doneRecovery struct {
	recoveryFacts
	// Installed: the new stores are in their place, and the old ones in the archive.
	Installed bool `json:"installed"`
}

func (r *recoveryRecord) check() error {
	if r.Intent != nil && r.Intent.RecoveryID == uuid.Nil {
		return errors.New("the intent has no recovery_id")
	}
	for i := range r.Done {
		if err := r.Done[i].check(); err != nil {
			return err
		}
	}
	return nil
}

func (r *recoveryRecord) has(id uuid.UUID) bool {
	return slices.ContainsFunc(r.Done, func(d doneRecovery) bool { return d.RecoveryID == id })
}

// last returns the last recovery that was done here; nil: none was.
func (r *recoveryRecord) last() *doneRecovery {
	if len(r.Done) == 0 {
		return nil
	}
	return &r.Done[len(r.Done)-1]
}

// readRecovery returns the zero record when there never was a recovery.
func readRecovery(dir string) (recoveryRecord, error) {
	record, err := readWrittenRecovery(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return record, err
}

// readWrittenRecovery is for who knows that there was one: it returns fs.ErrNotExist when the file is gone.
func readWrittenRecovery(dir string) (recoveryRecord, error) {
	var record recoveryRecord
	if err := readSealed(filepath.Join(dir, recoveryFileName), &record); err != nil {
		return recoveryRecord{}, err
	}
	return record, nil
}

func writeRecovery(dir string, record recoveryRecord) error {
	return writeSealed(filepath.Join(dir, recoveryFileName), record)
}

// discardIntent ends a recovery that was not decided; the stores it was making go. The caller holds the directory's lock.
func discardIntent(dir string) error {
	record, err := readRecovery(dir)
	if err != nil || record.Intent == nil {
		return err
	}
	record.Intent = nil
	if err := writeRecovery(dir, record); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, recoveryFolder))
}

// installRecovery moves the stores of a decided recovery into their place. It can be cut short anywhere and done again:
// what is still in the recovery folder is new, and what stands in its place then is old.
func installRecovery(dir string, record recoveryRecord) error {
	last := record.last()
	if last == nil || last.Installed {
		return nil
	}
	archive := filepath.Join(dir, archiveFolder, last.RecoveryID.String())
	if err := makeArchive(dir, archive); err != nil {
		return fmt.Errorf("install recovered log: %w", err)
	}
	for _, name := range []string{snapshotFolder, logFile} {
		made, place := filepath.Join(dir, recoveryFolder, name), filepath.Join(dir, name)
		if _, err := os.Stat(made); errors.Is(err, fs.ErrNotExist) {
			continue // done before
		} else if err != nil {
			return fmt.Errorf("install recovered log: %w", err)
		}
		err := os.Rename(place, filepath.Join(archive, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // not there: archived before
			return fmt.Errorf("install recovered log: %w", err)
		}
		recoveryStep("archived " + name)
		if err := os.Rename(made, place); err != nil {
			return fmt.Errorf("install recovered log: %w", err)
		}
		recoveryStep("placed " + name)
	}
	if err := errors.Join(syncDir(archive), syncDir(filepath.Join(dir, recoveryFolder)), syncDir(dir)); err != nil {
		return fmt.Errorf("install recovered log: %w", err)
	}
	record.Done = slices.Clone(record.Done)
	record.last().Installed = true
	if err := writeRecovery(dir, record); err != nil {
		return err
	}
	recoveryStep("installed")
	return os.RemoveAll(filepath.Join(dir, recoveryFolder))
}

// makeArchive makes dir/archive/ID so that it survives a loss of power.
func makeArchive(dir, archive string) error {
	if err := os.MkdirAll(archive, 0o700); err != nil {
		return err
	}
	return errors.Join(syncDir(filepath.Dir(archive)), syncDir(dir))
}

// recoveryStep is called after each step of a recovery. Tests kill the server there.
var recoveryStep = func(string) {}
