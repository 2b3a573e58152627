package raftnode

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"raftmine/fsm"
)

func wantTwin(t *testing.T, err error, parts ...string) {
	t.Helper()
	if !errors.Is(err, ErrTwin) {
		t.Fatalf("it ended with %v, want %v", err, ErrTwin)
	}
	for _, part := range append(parts, "another process", "start a new server on an empty directory instead") {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("it says %q, without %q", err, part)
		}
	}
}

// TestCopyOnThisHostDoesNotStart: neither beside the server that it is a copy of, nor in another environment, nor while that
// one does not run. Moved, it starts.
func TestCopyOnThisHostDoesNotStart(t *testing.T) {
	l, elsewhere := newLocal(t), newLocal(t)
	path := filepath.Join(t.TempDir(), "first")
	at := func(path string) func(*StartConfig) { return func(c *StartConfig) { c.DataDirPath = path } }
	_, stop, err := l.start(at(path))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	twin := path + "-copy"
	if err := os.CopyFS(twin, os.DirFS(path)); err != nil {
		t.Fatal(err)
	}
	_, _, err = l.start(at(twin))
	wantTwin(t, err, "pid", twin)
	_, _, err = elsewhere.start(at(twin))
	wantTwin(t, err, "pid", twin, path)
	stop()
	if _, _, err = elsewhere.start(at(twin)); !errors.Is(err, ErrTwin) || !strings.Contains(err.Error(), path) {
		t.Errorf("beside the directory that it was copied from it starts with %v", err)
	}
	// Two machines may have equal paths.
	_, stopOther, err := elsewhere.start(at(twin), func(c *StartConfig) { c.Host = fsm.Host{MachineID: "other", BootID: "b"} })
	if err != nil {
		t.Fatal(err)
	}
	stopOther()
	moved := path + "-moved"
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	_, stopMoved, err := elsewhere.start(at(moved))
	if err != nil {
		t.Fatalf("a directory that was moved: %v", err)
	}
	stopMoved()
}
