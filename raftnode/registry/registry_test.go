package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestEnvironmentIsMadeForItsUserAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	e, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if e.Dir() != dir || e.DataDir() != filepath.Join(dir, "data") {
		t.Errorf("dir %s, data dir %s", e.Dir(), e.DataDir())
	}
	for _, path := range []string{e.Dir(), e.DataDir(), e.entriesDir()} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v (%v), want mode 0700", path, info.Mode(), err)
		}
	}
	if _, err := Open(dir); err != nil {
		t.Errorf("second open: %v", err)
	}
}

func TestRelativeEnvironmentIsMadeAbsolute(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	e, err := Open("here")
	if err != nil {
		t.Fatal(err)
	}
	if !filepath.IsAbs(e.Dir()) || filepath.Base(e.Dir()) != "here" {
		t.Errorf("dir is %s", e.Dir())
	}
}

func TestUnusableEnvironmentIsRefusedWithItsReason(t *testing.T) {
	_, err := Open("")
	mustBe(t, err, ErrEnvironment, "no folder")

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(file)
	mustBe(t, err, ErrEnvironment, file, "not a directory")
	_, err = Open(filepath.Join(file, "below"))
	mustBe(t, err, ErrEnvironment, file, "not a directory")

	inTheWay := t.TempDir()
	if err := os.WriteFile(filepath.Join(inTheWay, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(inTheWay)
	mustBe(t, err, ErrEnvironment, "data is not a folder")

	open := filepath.Join(t.TempDir(), "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	_, err = Open(open)
	mustBe(t, err, ErrEnvironment, "every user")

	// Another user's: root can give a folder away, everybody else has root's.
	theirs := "/"
	if os.Geteuid() == 0 {
		theirs = filepath.Join(t.TempDir(), "theirs")
		if err := errors.Join(os.Mkdir(theirs, 0o700), os.Chown(theirs, 4321, 4321)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = Open(theirs)
	mustBe(t, err, ErrEnvironment, "owned by another user")

	if os.Geteuid() == 0 {
		link := filepath.Join(t.TempDir(), "link")
		if err := errors.Join(os.Symlink(t.TempDir(), link), os.Lchown(link, 4321, 4321)); err != nil {
			t.Fatal(err)
		}
		_, err = Open(link)
		mustBe(t, err, ErrEnvironment, "symbolic link of another user")
	}
}

func TestDefaultDirIsTheUsersOwn(t *testing.T) {
	runtime, temp := t.TempDir(), t.TempDir()
	perUser := filepath.Join(temp, "raftmine-"+strconv.Itoa(os.Geteuid()))
	t.Setenv("TMPDIR", temp)

	t.Setenv("XDG_RUNTIME_DIR", runtime)
	if got, want := DefaultDir(), filepath.Join(runtime, "raftmine"); got != want {
		t.Errorf("with a runtime directory: %s, want %s", got, want)
	}
	theirs := "/"
	if os.Geteuid() == 0 {
		theirs = t.TempDir()
		if err := os.Chown(theirs, 4321, 4321); err != nil {
			t.Fatal(err)
		}
	}
	for _, useless := range []string{"", "relative", filepath.Join(runtime, "missing"), theirs} {
		t.Setenv("XDG_RUNTIME_DIR", useless)
		if got := DefaultDir(); got != perUser {
			t.Errorf("with the runtime directory %q: %s, want %s", useless, got, perUser)
		}
	}
}

func TestLockWaitsAndSaysWhoHoldsIt(t *testing.T) {
	e := open(t)
	holder := start(t, "lock", e.Dir(), 0).ready()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err := e.Lock(ctx)
	mustBe(t, err, ErrHeld, e.Dir(), fmt.Sprintf("held by process %d", holder.cmd.Process.Pid))
	mustBe(t, err, context.DeadlineExceeded)

	got := make(chan func())
	go func() {
		unlock, err := e.Lock(context.Background())
		if err != nil {
			t.Error(err)
		}
		got <- unlock
	}()
	holder.finish()
	unlock := <-got
	unlock()
	unlock() // a second time does no harm
	again, err := e.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestLockOfAKilledProcessIsFree(t *testing.T) {
	e := open(t)
	for range 3 {
		start(t, "lock", e.Dir(), 0).ready().kill()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	unlock, err := e.Lock(ctx)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestSecondUnlockDoesNotFreeAnothersLock(t *testing.T) {
	e := open(t)
	first, err := e.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first()
	second, err := e.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer second()
	first()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = e.Lock(ctx)
	mustBe(t, err, ErrHeld)
}

func TestLockExcludesGoroutinesOfOneProcess(t *testing.T) {
	e := open(t)
	var inside, rounds atomic.Int32
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 20 {
				unlock, err := e.Lock(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if now := inside.Add(1); now != 1 {
					t.Errorf("%d hold the lock", now)
				}
				rounds.Add(1)
				inside.Add(-1)
				unlock()
			}
		})
	}
	group.Wait()
	if got := rounds.Load(); got != 160 {
		t.Errorf("%d rounds, want 160", got)
	}
}

func TestLockFileThatACleanerTookIsMadeAgain(t *testing.T) {
	e := open(t)
	if err := os.Remove(e.lockPath()); err != nil {
		t.Fatal(err)
	}
	unlock, err := e.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if held, pid, err := LockHolder(e.lockPath()); !held || pid != os.Getpid() || err != nil {
		t.Errorf("held %v by %d (%v), want this process", held, pid, err)
	}
	unlock()
	if held, _, err := LockHolder(e.lockPath()); held || err != nil {
		t.Errorf("held %v (%v) after unlock", held, err)
	}
}

// Many processes start at once, as servers do; some are killed where it hurts.
func TestProcessesThatStartAtOnceDoNotMeetUnderTheLock(t *testing.T) {
	e := open(t)
	var storm, doomed []*process
	for id := uint64(1); id <= 8; id++ {
		storm = append(storm, start(t, "storm", e.Dir(), id))
	}
	for id := uint64(101); id <= 103; id++ {
		doomed = append(doomed, start(t, "publish", e.Dir(), id))
	}
	for _, p := range doomed {
		p.ready().kill()
	}
	for _, p := range storm {
		p.finish()
	}
	if _, err := e.Sweep(nil); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(e.entriesDir())
	if err != nil || len(files) != 0 {
		var names []string
		for _, file := range files {
			names = append(names, file.Name())
		}
		t.Errorf("left in the environment: %s (%v)", strings.Join(names, ", "), err)
	}
}
