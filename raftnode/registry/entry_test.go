package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPublishedEntriesAreListedServersFirstAndById(t *testing.T) {
	e := open(t)
	want := []Entry{
		{Role: RoleServer, ServerID: 2, ClusterID: "c", Address: "h:2", DataDir: "/d/2", PID: 12, StartedUnixMilli: 5},
		{Role: RoleServer, ServerID: 10, ClusterID: "c", Address: "h:10", DataDir: "/d/10", PID: 13, StartedUnixMilli: 4},
		{Role: RoleServer, Address: "h:0", DataDir: "/d/0", PID: 11, StartedUnixMilli: 9},
		{Role: RoleWebService, Address: "http://h:1", PID: 14, StartedUnixMilli: 1},
		{Role: RoleWebService, Address: "http://h:3", PID: 15, StartedUnixMilli: 2},
	}
	for _, i := range []int{3, 2, 1, 4, 0} {
		published, err := e.Publish(want[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := published.Remove(); err != nil {
				t.Error(err)
			}
		})
	}
	got, err := e.Entries()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("entries\n got %+v (%v)\nwant %+v", got, err, want)
	}
}

func TestPublishFillsInProcessAndTime(t *testing.T) {
	e := open(t)
	published, err := e.Publish(Entry{Role: RoleServer, Address: "h:1"})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := e.Entries()
	if err != nil || len(entries) != 1 || entries[0].PID != os.Getpid() || entries[0].StartedUnixMilli == 0 {
		t.Fatalf("entries %+v (%v)", entries, err)
	}
	first := entries[0]
	if err := published.Update(Entry{Role: RoleServer, Address: "h:1", ServerID: 7, ClusterID: "c"}); err != nil {
		t.Fatal(err)
	}
	first.ServerID, first.ClusterID = 7, "c"
	entries, err = e.Entries()
	if err != nil || len(entries) != 1 || entries[0] != first {
		t.Fatalf("after the update %+v (%v), want %+v", entries, err, first)
	}
	if err := published.Remove(); err != nil {
		t.Fatal(err)
	}
}

func TestRemovedEntryIsGoneAndStaysGone(t *testing.T) {
	e := open(t)
	published, err := e.Publish(serverEntry(1))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := published.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	mustBe(t, published.Update(serverEntry(1)), ErrRemoved)
	if entries, err := e.Entries(); err != nil || len(entries) != 0 {
		t.Errorf("entries %v (%v), want none", entries, err)
	}
	if files, err := os.ReadDir(e.entriesDir()); err != nil || len(files) != 0 {
		t.Errorf("files %v (%v) are left", files, err)
	}
}

func TestEntryThatNobodyCouldReadIsRefused(t *testing.T) {
	e := open(t)
	for _, entry := range []Entry{
		{},
		{Role: "miner", Address: "h:1"},
		{Role: RoleServer},
		{Role: RoleServer, Address: "h:1", PID: -1},
		{Role: RoleWebService, Address: "h:1", ServerID: 1},
		{Role: RoleServer, Address: strings.Repeat("a", maxEntryBytes)},
	} {
		if published, err := e.Publish(entry); err == nil {
			_ = published.Remove()
			t.Errorf("entry %.100v was published", entry)
		}
	}
	published, err := e.Publish(serverEntry(1))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = published.Remove() }()
	if err := published.Update(Entry{Role: RoleWebService, Address: "h:1"}); err == nil {
		t.Error("a server became a web service")
	}
	if entries, err := e.Entries(); err != nil || len(entries) != 1 || entries[0].ServerID != 1 {
		t.Errorf("a refused update changed the entries: %v (%v)", entries, err)
	}
}

func TestKilledProcessIsDeadAtOnceAndSwept(t *testing.T) {
	e := open(t)
	one := start(t, "publish", e.Dir(), 1).ready()
	two := start(t, "publish", e.Dir(), 2).ready()
	if entries, err := e.Entries(); err != nil || fmt.Sprint(ids(entries)) != "[1 2]" {
		t.Fatalf("entries %v (%v), want 1 and 2", entries, err)
	}
	if removed, err := e.Sweep(nil); err != nil || len(removed) != 0 {
		t.Fatalf("sweep removed %v (%v) of two running processes", removed, err)
	}
	one.kill()
	if entries, err := e.Entries(); err != nil || fmt.Sprint(ids(entries)) != "[2]" {
		t.Fatalf("entries %v (%v), want 2 alone", entries, err)
	}
	if removed, err := e.Sweep(nil); err != nil || fmt.Sprint(ids(removed)) != "[1]" {
		t.Fatalf("sweep removed %v (%v), want 1", removed, err)
	}
	if removed, err := e.Sweep(nil); err != nil || len(removed) != 0 {
		t.Fatalf("second sweep removed %v (%v)", removed, err)
	}
	two.finish()
	if files, err := os.ReadDir(e.entriesDir()); err != nil || len(files) != 0 {
		t.Errorf("files %v (%v) are left", files, err)
	}
}

func TestPausedProcessIsNotSwept(t *testing.T) {
	e := open(t)
	p := start(t, "publish", e.Dir(), 1).ready()
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if removed, err := e.Sweep(nil); err != nil || len(removed) != 0 {
		t.Errorf("sweep removed %v (%v)", removed, err)
	}
	if entries, err := e.Entries(); err != nil || len(entries) != 1 {
		t.Errorf("entries %v (%v), want the paused one", entries, err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.finish()
}

func TestEntryLivesWhenItsHandleIsForgotten(t *testing.T) {
	e := open(t)
	if _, err := e.Publish(serverEntry(1)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		runtime.GC() // closes files that nothing refers to
	}
	if entries, err := e.Entries(); err != nil || len(entries) != 1 {
		t.Fatalf("entries %v (%v), want the published one", entries, err)
	}
}

// A reader and a sweeper of this process work against publishers in others that replace their entries all the time.
func TestEntryIsNeverSeenHalfWrittenOrMissingOrSweptWhileItIsUpdated(t *testing.T) {
	e := open(t)
	var updaters []*process
	for id := uint64(1); id <= 2; id++ {
		updaters = append(updaters, start(t, "update", e.Dir(), id))
	}
	eventually(t, "first updates", func() bool {
		entries, err := e.Entries()
		return err == nil && len(entries) == 2 && entries[0].ClusterID != "c" && entries[1].ClusterID != "c"
	})
	var sweeper sync.WaitGroup
	stop := make(chan struct{})
	sweeper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			unlock, err := e.Lock(context.Background())
			if err != nil {
				t.Error(err)
				return
			}
			if removed, err := e.Sweep(nil); err != nil || len(removed) != 0 {
				t.Errorf("sweep removed %.200v (%v)", removed, err)
			}
			unlock()
		}
	})
	seen := map[string]bool{}
	for range 400 {
		entries, err := e.Entries()
		if err != nil || fmt.Sprint(ids(entries)) != "[1 2]" {
			t.Fatalf("entries %.300v (%v), want 1 and 2", entries, err)
		}
		for _, entry := range entries {
			if entry.DataDir != strings.Repeat(entry.ClusterID+" ", 500) {
				t.Fatalf("entry is of two minds: %.300v", entry)
			}
			seen[entry.ClusterID] = true
		}
	}
	close(stop)
	sweeper.Wait()
	for _, p := range updaters {
		p.finish()
	}
	if len(seen) < 10 {
		t.Errorf("only %d different entries were seen; the test did not test", len(seen))
	}
}

func TestPublishingIsNotDisturbedBySweeping(t *testing.T) {
	e := open(t)
	stop := make(chan struct{})
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if removed, err := e.Sweep(nil); err != nil || len(removed) != 0 {
					t.Errorf("sweep removed %v (%v)", removed, err)
				}
			}
		}
	})
	var publishers sync.WaitGroup
	for id := uint64(1); id <= 8; id++ {
		publishers.Go(func() {
			for range 50 {
				published, err := e.Publish(serverEntry(id))
				if err != nil {
					t.Error(err)
					return
				}
				entries, err := e.Entries()
				if err != nil || !strings.Contains(fmt.Sprint(ids(entries)), fmt.Sprint(id)) {
					t.Errorf("entries %v (%v) do not hold %d", ids(entries), err, id)
				}
				if err := published.Remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	publishers.Wait()
	close(stop)
	sweeper.Wait()
	if files, err := os.ReadDir(e.entriesDir()); err != nil || len(files) != 0 {
		t.Errorf("files %v (%v) are left", files, err)
	}
}

func TestDamagedEntryIsNamedWhileItLivesAndSweptAfter(t *testing.T) {
	for name, content := range map[string]string{
		"empty":       "",
		"no json":     "hello",
		"cut":         `{"role":"server","server_id":1,"addr`,
		"other type":  `[1,2]`,
		"bad number":  `{"role":"server","server_id":-1,"address":"h:1","pid":1}`,
		"bad role":    `{"role":"king","address":"h:1","pid":1}`,
		"no address":  `{"role":"server","pid":1}`,
		"binary":      "\x00\xff\xfe",
		"huge":        strings.Repeat("x", maxEntryBytes+1),
		"deep":        strings.Repeat("[", 20000),
		"two objects": `{"role":"server","address":"h:1","pid":1}{}`,
	} {
		t.Run(name, func(t *testing.T) {
			e := open(t)
			good, err := e.Publish(serverEntry(1))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = good.Remove() }()
			path := filepath.Join(e.entriesDir(), "server-99-damaged.json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			file, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = file.Close() }()
			if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
				t.Fatal(err)
			}
			entries, err := e.Entries()
			mustBe(t, err, ErrDamaged, path)
			if fmt.Sprint(ids(entries)) != "[1]" {
				t.Errorf("entries %v, want the good one", entries)
			}
			if removed, err := e.Sweep(nil); err != nil || len(removed) != 0 {
				t.Errorf("sweep removed %v (%v) of live processes", removed, err)
			}
			_ = file.Close() // the process dies
			if entries, err := e.Entries(); err != nil || fmt.Sprint(ids(entries)) != "[1]" {
				t.Errorf("entries %v (%v), want the good one", entries, err)
			}
			if removed, err := e.Sweep(nil); err != nil || len(removed) != 0 {
				t.Errorf("sweep returned %v (%v), which nobody can have understood", removed, err)
			}
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the damaged file is still there (%v)", err)
			}
		})
	}
}

func TestThingsThatAreNoFilesAreNamedAndLeftAlone(t *testing.T) {
	e := open(t)
	secret := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.WriteFile(secret, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(e.entriesDir(), "server-1-link.json")
	pipe := filepath.Join(e.entriesDir(), "server-2-pipe.json")
	folder := filepath.Join(e.entriesDir(), "server-3-folder.json")
	if err := errors.Join(os.Symlink(secret, link), unix.Mkfifo(pipe, 0o600), os.Mkdir(folder, 0o700)); err != nil {
		t.Fatal(err)
	}
	_, err := e.Entries()
	mustBe(t, err, ErrDamaged, link, pipe, folder)
	if removed, err := e.Sweep(nil); err != nil || len(removed) != 0 {
		t.Errorf("sweep removed %v (%v)", removed, err)
	}
	for _, path := range []string{link, pipe, folder, secret} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}

// TestUnreadableEntryChangesNothingForTheOthers: whatever keeps it from being read. It is named with what to do, and left alone.
func TestUnreadableEntryChangesNothingForTheOthers(t *testing.T) {
	for _, cause := range []error{unix.EACCES, unix.EIO, unix.ESTALE} {
		e := open(t)
		good, err := e.Publish(serverEntry(1))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(e.entriesDir(), "server-99-secret.json")
		if err := os.WriteFile(path, []byte("{}"), 0o000); err != nil {
			t.Fatal(err)
		}
		really := openEntry
		openEntry = func(wanted string) (*os.File, error) {
			if wanted == path {
				return nil, &os.PathError{Op: "open", Path: path, Err: cause}
			}
			return really(wanted)
		}
		entries, err := e.Entries()
		mustBe(t, err, ErrDamaged, path, cause.Error(), "pid 99")
		if fmt.Sprint(ids(entries)) != "[1]" || !errors.Is(err, cause) || strings.Count(err.Error(), path) != 1 {
			t.Errorf("entries %v (%v), want the good one", entries, err)
		}
		if removed, err := e.Sweep(nil); err != nil || len(removed) != 0 {
			t.Errorf("sweep removed %v (%v)", removed, err)
		}
		openEntry = really
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
		_ = good.Remove()
	}
}

func TestSweepLeavesForeignFilesAlone(t *testing.T) {
	e := open(t)
	foreign := []string{"notes.txt", "server.json", ".profile", "miner-1-a.json", ".other.tmp", "server-1.yaml"}
	leftover := []string{".server-1-a.json.b.tmp", ".webservice-2-a.json.b.tmp", "server-3-a.json"}
	for _, name := range append(foreign, leftover...) {
		if err := os.WriteFile(filepath.Join(e.entriesDir(), name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := e.Entries(); err != nil || len(entries) != 0 {
		t.Errorf("entries %v (%v), want none", entries, err)
	}
	if _, err := e.Sweep(nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range foreign {
		if _, err := os.Stat(filepath.Join(e.entriesDir(), name)); err != nil {
			t.Error(err)
		}
	}
	for _, name := range leftover {
		if _, err := os.Stat(filepath.Join(e.entriesDir(), name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there (%v)", name, err)
		}
	}
}
