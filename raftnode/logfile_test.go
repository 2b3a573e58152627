package raftnode

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// TestLogFileThatIsNotWholeIsRefusedBeforeItIsOpened: opened as it is, each of these ends the process, by a fault or by a panic
// in a goroutine of bbolt.
func TestLogFileThatIsNotWholeIsRefusedBeforeItIsOpened(t *testing.T) {
	dir := t.TempDir()
	stores, err := openUnsynced(dir, true, discard())
	if err != nil {
		t.Fatal(err)
	}
	var entries []*raft.Log
	for index := uint64(1); index <= 2000; index++ {
		entries = append(entries, &raft.Log{Index: index, Term: 1, Data: make([]byte, index%900)})
	}
	if err := errors.Join(stores.Stable.SetUint64(keyCurrentTerm, 1), stores.Log.StoreLogs(entries), stores.Close()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, logFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkLogFile(path); err != nil {
		t.Fatalf("the whole file: %v", err)
	}
	used := 0 // the file may be longer
	db, err := bbolt.Open(path, 0o600, readOnlyBolt())
	if err == nil {
		err = errors.Join(db.View(func(tx *bbolt.Tx) error { used = int(tx.Size()); return nil }), db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	refused := func(what string, content []byte) {
		t.Helper()
		broken := filepath.Join(t.TempDir(), logFile)
		if err := os.WriteFile(broken, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenBoltStores(filepath.Dir(broken), false, discard())
		if !errors.Is(err, ErrLogDamaged) || !strings.Contains(err.Error(), broken) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
		if after, err := os.ReadFile(broken); err != nil || string(after) != string(content) {
			t.Errorf("%s: the file was changed (%v)", what, err)
		}
	}
	for size := page; size < used; size += used / 20 / page * page {
		refused("cut", whole[:size])
	}
	// A key that is out of order: no page of it looks wrong alone.
	swapped := []byte(string(whole))
	for _, index := range []uint64{700, 1400} {
		key := binary.BigEndian.AppendUint64(nil, index)
		at := strings.LastIndex(string(swapped), string(key))
		swapped[at+6] ^= 4
	}
	refused("keys out of order", swapped)
}
