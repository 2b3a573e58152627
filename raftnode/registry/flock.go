package registry

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrHeld: another holder has the lock, in this process or in another. It comes as a *HeldError.
var ErrHeld = errors.New("lock is held")

// HeldError says who has the lock.
type HeldError struct {
	Path string
	PID  int // 0: not known, because the holder has just begun or has just ended
}

func (e *HeldError) Error() string {
	if e.PID == 0 {
		return "held by another process"
	}
	return fmt.Sprintf("held by process %d", e.PID)
}

// Is makes errors.Is(err, ErrHeld) hold.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// FileLock is an exclusive flock on a lock file, held until Release or until the process dies. The file itself stays:
// removing it would let two processes lock two files of the same name.
type FileLock struct {
	once sync.Once
	file *os.File
}

// pinned keeps locked files reachable: the runtime closes an *os.File that nothing refers to, which would free the lock.
var pinned sync.Map // *os.File -> struct{}

// LockFile locks the file, which it makes if need be, without waiting. The holder's pid is written into it.
// When another has the lock the error is a *HeldError.
func LockFile(path string) (*FileLock, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, err
		}
		locked, err := tryFlock(file, unix.LOCK_EX)
		if err != nil {
			_ = file.Close()
			return nil, fmt.Errorf("flock %s: %w", path, err)
		}
		if !locked {
			held := &HeldError{Path: path, PID: readPID(file)}
			_ = file.Close()
			return nil, held
		}
		if !sameFile(file, path) { // somebody removed the file between open and flock
			_ = file.Close()
			continue
		}
		writePID(file)
		pinned.Store(file, struct{}{})
		return &FileLock{file: file}, nil
	}
}

// Release gives the lock up. More calls do nothing.
func (l *FileLock) Release() error {
	var err error
	l.once.Do(func() {
		_ = l.file.Truncate(0) // the pid is for messages only
		pinned.Delete(l.file)
		err = l.file.Close()
	})
	return err
}

// tryFlock takes a lock on the open file, exclusive (LOCK_EX) or shared (LOCK_SH), without waiting.
// It returns false when another open file description has one that excludes it.
func tryFlock(file *os.File, how int) (bool, error) {
	for {
		err := unix.Flock(int(file.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, err
		}
	}
}

// sameFile reports whether path still leads to the open file.
func sameFile(file *os.File, path string) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(opened, named)
}

func writePID(file *os.File) {
	// Errors are passed over: on a full disk the lock holds all the same, and only the pid in others' messages is missing.
	if file.Truncate(0) == nil {
		_, _ = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
}

func readPID(file *os.File) int {
	content, err := io.ReadAll(io.NewSectionReader(file, 0, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// LockHolder reports whether somebody holds the lock file now, and who. It changes nothing, but takes a shared lock for
// a moment, so a LockFile in the same moment may see the lock held. A file that does not exist is not held.
func LockHolder(path string) (held bool, pid int, err error) {
	file, err := os.OpenFile(filepath.Clean(path), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, 0, nil
	}
	if err != nil {
		return false, 0, err
	}
	defer func() { _ = file.Close() }()
	free, err := tryFlock(file, unix.LOCK_SH)
	if err != nil {
		return false, 0, fmt.Errorf("flock %s: %w", path, err)
	}
	if free {
		return false, 0, nil
	}
	return true, readPID(file), nil
}
