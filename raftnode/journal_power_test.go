package raftnode

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// losingDisk forgets at a power cut what was not synced.
type losingDisk struct{ files []*losingFile }

type losingFile struct {
	*os.File
	path    string
	written int64
	synced  int64
}

func (d *losingDisk) open(path string, flag int, mode fs.FileMode) (JournalFile, error) {
	file, err := os.OpenFile(path, flag, mode)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	// A segment has a name with a dot in front until it has its header.
	f := &losingFile{File: file, path: filepath.Join(filepath.Dir(path), strings.TrimPrefix(filepath.Base(path), ".")),
		written: info.Size(), synced: info.Size()}
	d.files = append(d.files, f)
	return f, nil
}

func (f *losingFile) Write(data []byte) (int, error) {
	n, err := f.File.Write(data)
	f.written += int64(n)
	return n, err
}

func (f *losingFile) Sync() error {
	f.synced = f.written
	return nil
}

func (d *losingDisk) cutPower() error {
	var errs []error
	for _, f := range d.files {
		errs = append(errs, os.Truncate(f.path, f.synced))
	}
	return errors.Join(errs...)
}

// TestPowerCutTakesNothingThatTheJournalCallsSynced: over the ends of many segments, whatever was synced by name or not.
func TestPowerCutTakesNothingThatTheJournalCallsSynced(t *testing.T) {
	const n = 40
	h := newTestHistory(n)
	for syncAt := 1; syncAt <= n; syncAt += 3 {
		dir := quickDir(t)
		disk := &losingDisk{}
		j := mustOpenJournal(t, dir, func(c *journalConfig) { c.open = disk.open })
		h.mustApply(t, j, 0, syncAt)
		if err := j.sync(); err != nil {
			t.Fatal(err)
		}
		h.mustApply(t, j, syncAt, n)
		if len(segments(t, dir)) < 3 {
			t.Fatalf("%d segments: the history is too short", len(segments(t, dir)))
		}
		if err := disk.cutPower(); err != nil {
			t.Fatal(err)
		}
		j = mustOpenJournal(t, dir)
		if kept := int(j.end().Records); kept < syncAt {
			t.Fatalf("%d of %d synced records are left", kept, syncAt)
		}
		h.mustApply(t, j, 0, n) // again, as after a restart
		h.wantWhole(t, dir, n)
	}
}
