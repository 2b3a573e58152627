package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// ErrEnvironment: the folder cannot be used as a local environment. The error that wraps it says why.
var ErrEnvironment = errors.New("unusable local environment")

// Polling of the environment's lock. Tuning: flock cannot wait under a context, and the lock is held for milliseconds.
const (
	lockPollFirst = time.Millisecond
	lockPollMost  = 20 * time.Millisecond
)

// Environment is a local environment that was opened. It holds no resources; all methods may be called concurrently.
type Environment struct {
	dir string // absolute
}

// DefaultDir returns the environment that processes share when none is named: $XDG_RUNTIME_DIR/raftmine if that runtime
// directory is this user's, else a per-user folder under the temporary directory. Open makes it and checks its owner.
func DefaultDir() string {
	if runtime := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(runtime) {
		// sudo and su may leave another user's variable, and outside a login session it may name nothing.
		if info, err := os.Stat(runtime); err == nil && info.IsDir() && owner(info) == os.Geteuid() {
			return filepath.Join(runtime, "raftmine")
		}
	}
	return filepath.Join(os.TempDir(), "raftmine-"+strconv.Itoa(os.Geteuid()))
}

// Open makes the folder if it is not there, for its user alone, and checks that it is this user's and can be written to.
func Open(dir string) (*Environment, error) { return openWith(dir, (*Environment).prepare) }

// Find opens an environment to read it, and makes and writes nothing. Without one there the error matches fs.ErrNotExist.
func Find(dir string) (*Environment, error) { return openWith(dir, (*Environment).check) }

func openWith(dir string, check func(*Environment) error) (*Environment, error) {
	if dir == "" {
		return nil, fmt.Errorf("%w: no folder is named", ErrEnvironment)
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrEnvironment, dir, err)
	}
	e := &Environment{dir: absolute}
	if err := check(e); err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrEnvironment, absolute, reason(err))
	}
	return e, nil
}

// Dir returns the folder, absolute.
func (e *Environment) Dir() string { return e.dir }

// DataDir returns the folder that holds the data directories of servers that were given none.
func (e *Environment) DataDir() string { return filepath.Join(e.dir, "data") }

func (e *Environment) entriesDir() string { return filepath.Join(e.dir, "entries") }

func (e *Environment) lockPath() string { return filepath.Join(e.dir, "lock") }

// prepare makes what is missing and checks everything.
func (e *Environment) prepare() error {
	if err := e.checkLink(); err != nil {
		return err
	}
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return err
	}
	if err := e.checkOwner(); err != nil {
		return err
	}
	for _, sub := range []string{e.entriesDir(), e.DataDir()} {
		if err := os.Mkdir(sub, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := checkFolder(sub); err != nil {
			return err
		}
	}
	// The folders may be old ones on a disk that has become read-only.
	file, err := os.OpenFile(e.lockPath(), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

// check is for who only reads.
func (e *Environment) check() error {
	if err := e.checkLink(); err != nil {
		return err
	}
	if err := e.checkOwner(); err != nil {
		return err
	}
	err := checkFolder(e.entriesDir())
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("no server or web service was ever started there: it has no folder \"entries\"")
	}
	return err
}

func (e *Environment) checkLink() error {
	// A folder under a shared temporary directory may have been laid there by somebody else, also as a symbolic link.
	if link, err := os.Lstat(e.dir); err == nil && link.Mode()&os.ModeSymlink != 0 && owner(link) != os.Geteuid() {
		return fmt.Errorf("is a symbolic link of another user (uid %d)", owner(link))
	}
	return nil
}

func (e *Environment) checkOwner() error {
	info, err := os.Stat(e.dir)
	if err != nil {
		return err
	}
	if uid := owner(info); uid != os.Geteuid() {
		return fmt.Errorf("is owned by another user (uid %d)", uid)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return errors.New("every user may write to it (chmod 0700 it, or choose another)")
	}
	return nil
}

func checkFolder(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", path)
	}
	return nil
}

// Lock takes the environment's one lock, under which bootstrap, discovery and sweeping happen. It waits until ctx ends;
// the error then says who holds it. Every call excludes every other, in this process and in all others, so a holder must
// not call it again. A holder that dies frees it. unlock may be called more than once.
func (e *Environment) Lock(ctx context.Context) (unlock func(), err error) {
	wait := lockPollFirst
	for {
		lock, err := LockFile(e.lockPath())
		if err == nil {
			return func() { _ = lock.Release() }, nil
		}
		if !errors.Is(err, ErrHeld) {
			return nil, fmt.Errorf("lock environment %s: %w", e.dir, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("lock environment %s: %w: %w", e.dir, err, ctx.Err())
		}
		wait = min(2*wait, lockPollMost)
	}
}

// owner returns the user id that owns the file.
func owner(info os.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}

// reason takes the path off an error whose context already names it, when it is about the folder or what is in it.
func reason(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return fmt.Errorf("%s %s: %w", path.Op, filepath.Base(path.Path), path.Err)
	}
	return err
}
