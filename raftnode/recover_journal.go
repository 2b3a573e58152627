package raftnode

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"raftmine/fsm"
)

// What is in a journal was applied, so it was committed: no log that lacks it may be gone on with, and whoever keeps the
// journal may keep all of it.

// journalEnd returns the end of the journal in a data directory, as far as it can be read, and changes nothing. One that
// cannot be read proves nothing here; its own server says what is wrong with it.
func journalEnd(dataDir, clusterID string) fsm.Head {
	paths, err := segmentPaths(filepath.Join(dataDir, journalFolder))
	if err != nil || len(paths) == 0 {
		return fsm.Head{}
	}
	path := paths[len(paths)-1]
	file, err := os.Open(path)
	if err != nil {
		return fsm.Head{}
	}
	defer file.Close()
	r, err := newSegmentReader(path, file)
	if err != nil || r.header.clusterID != clusterID {
		return fsm.Head{}
	}
	for err == nil {
		_, err = r.next()
	}
	return r.head
}

// contains checks that the end of a committed history is in this log, as far as the log goes back.
func (h *history) contains(committed fsm.Head) error {
	switch own := h.heads[committed.Index]; {
	case committed.Index > h.state.Head().Index:
		return fmt.Errorf("it has entry %d committed, and the best log ends with entry %d", committed.Index, h.state.Head().Index)
	case committed.Index >= max(h.committed.Index, 1) && own != committed:
		return fmt.Errorf("what it has committed up to entry %d is not on the chain of the best log", committed.Index)
	}
	return nil
}

// completeJournal gives this server's journal the records that the staged log no longer has, so that it needs nobody to send
// them. They may stay when the recovery is not decided after all.
func (r *recovery) completeJournal() error {
	j, err := openJournal(journalConfig{dataDir: r.dir.Path(), clusterID: r.identity.ClusterID,
		segmentBytes: DefaultJournalSegment, logger: r.log})
	if err != nil {
		return err
	}
	j.mu.Lock()
	end := j.end()
	j.mu.Unlock()
	if err = r.noteCopied(end); err == nil {
		err = r.fillJournal(j)
	}
	return cmp.Or(err, j.close())
}

func (r *recovery) fillJournal(j *journal) error {
	for {
		from, to, ok := j.gap()
		if !ok {
			j.mu.Lock()
			from, to = j.end(), r.best.committed
			j.mu.Unlock()
		}
		if from.Records >= to.Records {
			return nil
		}
		f := j.fill(from, to)
		err := r.copyHistory(f)
		if f.head == to {
			err = f.install()
		}
		if err := errors.Join(err, f.discard()); errors.Is(err, ErrJournalMismatch) {
			return err
		} else if err != nil {
			// The state is whole without them, and the others' journals stay.
			r.log.Warn("history has a gap, which the others must fill when they are back",
				"after_index", from.Index, "until_index", to.Index, "error", err)
			return nil
		}
	}
}

// copyHistory takes the records from the best log's journal; what that lacks, from the others.
func (r *recovery) copyHistory(f *gapFill) error {
	voters := r.sorted()
	slices.SortStableFunc(voters, func(a, b *lockedVoter) int {
		if a == r.best {
			return -1
		} else if b == r.best {
			return 1
		}
		return 0
	})
	var first error
	for _, voter := range voters {
		if voter.lock == nil {
			continue // the own one
		}
		err := copyRecords(f, voter.path)
		if f.head == f.to {
			return nil
		}
		// That the chain does not lead there is worse than a record that is missing.
		if first == nil || errors.Is(err, ErrJournalMismatch) {
			first = fmt.Errorf("server %d: %w", voter.id, err)
		}
	}
	return cmp.Or(first, errNobodyToAsk)
}

func copyRecords(f *gapFill, dataDir string) error {
	reader, err := ReadJournal(dataDir)
	if err != nil {
		return err
	}
	for record, err := range reader.After(f.head.Index) {
		if err == nil {
			err = f.add(record)
		}
		if err != nil || f.head == f.to {
			return err
		}
	}
	return fmt.Errorf("the journal in %s ends with index %d of %d", dataDir, f.head.Index, f.to.Index)
}

// holdsJournal checks the journal of a fenced server. It stays, and so must be a beginning of the history that the survivor
// went on with. Where the survivor cannot tell, because it has a gap there, it is found out when the entries are applied
// again or the gap is filled.
func (f *fence) holdsJournal(end fsm.Head) error {
	head := f.head()
	if end.Index > head.Index || end.Index == head.Index && end != head {
		return fmt.Errorf("it ends with record %d of index %d, and that history with record %d of index %d",
			end.Records, end.Index, head.Records, head.Index)
	}
	if end == head || end.Index == 0 {
		return nil
	}
	reader, err := ReadJournal(f.SurvivorDir)
	if err != nil {
		return nil
	}
	for record, err := range reader.After(end.Index - 1) {
		if err == nil && (record.Index != end.Index || record.Term != end.Term || record.Chain != end.Hash) {
			return fmt.Errorf("its record %d of index %d is on another chain", end.Records, end.Index)
		}
		break
	}
	return nil
}
