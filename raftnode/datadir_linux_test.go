package raftnode

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"raftmine/raftnode/registry"
)

// asNobody runs do so that file permissions bind it even when the tests run as root: the file system user id is one
// thread's own, and a locked goroutine that ends takes its thread with it.
func asNobody(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 {
			runtime.LockOSThread()
			_ = unix.Setfsuid(65534)
		}
		do()
	}()
	<-done
}

func TestUnwritableFoldersAreRefusedAndNotTouched(t *testing.T) {
	parent := t.TempDir()
	made, empty, missing := filepath.Join(parent, "made"), filepath.Join(parent, "empty"), filepath.Join(parent, "new")
	if err := openDir(t, made).Close(); err != nil {
		t.Fatal(err)
	}
	// That the lock can be opened does not say that anything can be written.
	err := errors.Join(os.Chmod(filepath.Join(made, lockFileName), 0o666), os.Mkdir(empty, 0o700), os.Chmod(filepath.Dir(parent), 0o755))
	for _, path := range []string{made, empty, parent} { // all may look, nobody may write
		err = errors.Join(err, os.Chmod(path, 0o555))
		t.Cleanup(func() { _ = os.Chmod(path, 0o700) })
	}
	if err != nil {
		t.Fatal(err)
	}
	before := snapshotOf(t, parent)
	var madeErr, emptyErr, missingErr, environmentErr error
	asNobody(func() {
		_, madeErr = OpenDataDir(made)
		_, emptyErr = OpenDataDir(empty)
		_, missingErr = OpenDataDir(missing)
		_, environmentErr = registry.Open(missing)
	})
	wantError(t, madeErr, os.ErrPermission, "data directory "+made+" cannot be used")
	wantError(t, emptyErr, os.ErrPermission, "data directory "+empty+" cannot be used")
	wantError(t, missingErr, os.ErrPermission, "data directory "+missing+" cannot be used")
	wantError(t, environmentErr, registry.ErrEnvironment, missing, "permission denied")
	if after := snapshotOf(t, parent); !reflect.DeepEqual(before, after) {
		t.Errorf("files were %v and are %v", before, after)
	}
}
