package webservice

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
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

func TestUnwritableFolderIsRefusedAndNotTouched(t *testing.T) {
	parent := t.TempDir()
	folder := filepath.Join(parent, "folder")
	if err := errors.Join(os.Mkdir(folder, 0o700), os.Chmod(filepath.Dir(parent), 0o755), os.Chmod(parent, 0o555), os.Chmod(folder, 0o555)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(parent, 0o700) })
	for _, path := range []string{folder, filepath.Join(parent, "new")} {
		var err error
		asNobody(func() { _, err = OpenServer(ServerConfig{DataDir: path}) })
		if !errors.Is(err, os.ErrPermission) {
			t.Fatalf("%s: error %v, want permission denied", path, err)
		}
		checkLine(t, err, path)
	}
	for path, want := range map[string]int{parent: 1, folder: 0} {
		if left, err := os.ReadDir(path); err != nil || len(left) != want {
			t.Errorf("%s holds %v, %v", path, left, err)
		}
	}
}
