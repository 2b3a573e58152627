package registry

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrDamaged: an entry file cannot be read or understood. The error that wraps it names the file.
	ErrDamaged = errors.New("damaged environment entry")
	// ErrRemoved: the entry was removed before.
	ErrRemoved = errors.New("environment entry was removed")
)

const (
	maxEntryBytes = 64 << 10
	entrySuffix   = ".json"
	tempSuffix    = ".tmp"
	// attempts bounds the retries of races that one retry nearly always settles. Tuning.
	attempts = 100
)

// Role is what a process is.
type Role string

const (
	RoleServer     Role = "server"
	RoleWebService Role = "webservice"
)

// Entry is what a running process says of itself.
type Entry struct {
	Role             Role   `json:"role"`
	ServerID         uint64 `json:"server_id,omitempty"` // 0: a server that has no id yet, or a web service
	ClusterID        string `json:"cluster_id,omitempty"`
	Address          string `json:"address"` // host:port of a server, base URL of a web service
	DataDir          string `json:"data_dir,omitempty"`
	PID              int    `json:"pid"`
	StartedUnixMilli uint64 `json:"started_unix_milli"`
}

func (e Entry) validate() error {
	switch {
	case e.Role != RoleServer && e.Role != RoleWebService:
		return fmt.Errorf("role %q is neither %q nor %q", e.Role, RoleServer, RoleWebService)
	case e.Role == RoleWebService && e.ServerID != 0:
		return errors.New("a web service has no server id")
	case e.Address == "":
		return errors.New("address is empty")
	case e.PID < 0:
		return fmt.Errorf("pid %d is negative", e.PID)
	}
	return nil
}

// Published is an entry that stands in the environment until Remove, or until this process dies.
type Published struct {
	environment *Environment
	role        Role
	name        string // of the file, in the entries folder

	mu      sync.Mutex
	file    *os.File // open and flocked; nil after Remove
	started uint64
	pid     int
}

// Publish stores the entry. A PID of 0 means this process, and a StartedUnixMilli of 0 means now.
func (e *Environment) Publish(entry Entry) (*Published, error) {
	if entry.PID == 0 {
		entry.PID = os.Getpid()
	}
	if entry.StartedUnixMilli == 0 {
		entry.StartedUnixMilli = uint64(time.Now().UnixMilli())
	}
	name := fmt.Sprintf("%s-%d-%s%s", entry.Role, os.Getpid(), random(), entrySuffix)
	file, err := e.write(name, entry)
	if err != nil {
		return nil, fmt.Errorf("publish in environment %s: %w", e.dir, err)
	}
	return &Published{
		environment: e, role: entry.Role, name: name,
		file: file, started: entry.StartedUnixMilli, pid: entry.PID,
	}, nil
}

// Update replaces the entry. Readers see the old one or the new one. PID and StartedUnixMilli of 0 stay as they were; the
// role cannot change.
func (p *Published) Update(entry Entry) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return ErrRemoved
	}
	if entry.Role != p.role {
		return fmt.Errorf("update environment entry: role %q cannot become %q", p.role, entry.Role)
	}
	entry.PID = cmp.Or(entry.PID, p.pid)
	entry.StartedUnixMilli = cmp.Or(entry.StartedUnixMilli, p.started)
	file, err := p.environment.write(p.name, entry)
	if err != nil {
		return fmt.Errorf("update environment entry: %w", err)
	}
	old := p.file
	p.file, p.pid, p.started = file, entry.PID, entry.StartedUnixMilli
	unpin(old) // only now: its name leads to the new file
	return nil
}

// Remove takes the entry away. More calls do nothing.
func (p *Published) Remove() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return nil
	}
	err := os.Remove(filepath.Join(p.environment.entriesDir(), p.name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove environment entry: %w", err)
	}
	unpin(p.file)
	p.file = nil
	return nil
}

// write puts the entry under the name, complete and locked, and returns the open file that holds the lock.
func (e *Environment) write(name string, entry Entry) (*os.File, error) {
	if err := entry.validate(); err != nil {
		return nil, err
	}
	content, err := json.Marshal(entry)
	if err != nil {
		return nil, err
	}
	content = append(content, '\n')
	if len(content) > maxEntryBytes {
		return nil, fmt.Errorf("entry of %d bytes is longer than %d", len(content), maxEntryBytes)
	}
	for range attempts {
		file, err := e.tryWrite(name, content)
		if file != nil || err != nil {
			return file, err
		}
	}
	return nil, fmt.Errorf("write %s: the temporary file was swept away %d times", name, attempts)
}

// tryWrite returns no file and no error when Sweep met the temporary file before it was locked.
func (e *Environment) tryWrite(name string, content []byte) (*os.File, error) {
	temp := filepath.Join(e.entriesDir(), "."+name+"."+random()+tempSuffix)
	file, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	discard := func() {
		_ = os.Remove(temp)
		_ = file.Close()
	}
	locked, err := tryFlock(file, unix.LOCK_EX)
	if err != nil {
		discard()
		return nil, fmt.Errorf("flock %s: %w", temp, err)
	}
	if !locked { // Sweep is looking at it
		discard()
		return nil, nil
	}
	if _, err := file.Write(content); err != nil {
		discard()
		return nil, err
	}
	if err := os.Rename(temp, filepath.Join(e.entriesDir(), name)); err != nil {
		discard()
		if errors.Is(err, os.ErrNotExist) { // swept between creation and lock, or the folder itself is gone
			if _, err := os.Stat(e.entriesDir()); err != nil {
				return nil, err
			}
			return nil, nil
		}
		return nil, err
	}
	pinned.Store(file, struct{}{})
	return file, nil
}

func unpin(file *os.File) {
	pinned.Delete(file)
	_ = file.Close() // nothing is buffered, and close frees the lock whatever it returns
}

// Entries returns the entries of live processes: servers by id, those without one yet last, then web services by start.
// When the file of a live process cannot be understood, or one cannot be read at all, the others are returned all the same,
// together with an error that wraps ErrDamaged and names the file: that process may well be a server.
func (e *Environment) Entries() ([]Entry, error) {
	names, err := e.names()
	if err != nil {
		return nil, err
	}
	var live []Entry
	var damaged []error
	for _, name := range names {
		if strings.HasSuffix(name, tempSuffix) {
			continue
		}
		found, err := e.inspect(name, nil)
		switch {
		case err != nil:
			return nil, err
		case found.state != stateLive:
		case found.damage != nil:
			damaged = append(damaged, found.damage)
		default:
			live = append(live, found.entry)
		}
	}
	slices.SortFunc(live, compare)
	return live, errors.Join(damaged...)
}

// Sweep removes what dead processes left, damaged or not, and returns the entries among it that could be understood. An entry
// that keep wants stays; nil keeps none. The caller holds Lock.
func (e *Environment) Sweep(keep func(Entry) bool) (removed []Entry, err error) {
	names, err := e.names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		temp := strings.HasSuffix(name, tempSuffix)
		found, err := e.inspect(name, func(entry Entry) bool { return temp || keep == nil || !keep(entry) })
		if err != nil {
			return removed, err
		}
		if found.removed && found.damage == nil && !temp {
			removed = append(removed, found.entry)
		}
	}
	slices.SortFunc(removed, compare)
	return removed, nil
}

// names lists the files that are ours in the entries folder; others are never touched.
func (e *Environment) names() ([]string, error) {
	files, err := os.ReadDir(e.entriesDir())
	if err != nil {
		return nil, fmt.Errorf("list environment entries: %w", err)
	}
	var names []string
	for _, file := range files {
		name := file.Name()
		role, _, dashed := strings.Cut(strings.TrimPrefix(name, "."), "-")
		ours := dashed && (Role(role) == RoleServer || Role(role) == RoleWebService)
		hidden := strings.HasPrefix(name, ".")
		if ours && (!hidden && strings.HasSuffix(name, entrySuffix) || hidden && strings.HasSuffix(name, tempSuffix)) {
			names = append(names, name)
		}
	}
	return names, nil
}

type state int

const (
	stateGone state = iota // there is no such file any more
	stateLive
	stateDead
)

type found struct {
	state   state
	entry   Entry
	damage  error // the file cannot be read or understood; entry is zero
	removed bool
}

// inspect finds out whether the file's process lives, and removes the file if it is dead and remove says so. Remove is not
// asked about what cannot be understood; nil removes nothing. A file that cannot be read may be that of a live process.
func (e *Environment) inspect(name string, remove func(Entry) bool) (found, error) {
	path := filepath.Join(e.entriesDir(), name)
	for range attempts {
		file, err := openEntry(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return found{state: stateGone}, nil
		case errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EOPNOTSUPP):
			// A symbolic link or a socket: no process of ours made it.
			return found{state: stateLive, damage: damage(path, errNotAFile)}, nil
		case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE): // it says nothing about the file
			return found{}, fmt.Errorf("read environment entry: %w", err)
		case err != nil:
			return unreadable(path, err), nil
		}
		result, again, err := inspectOpen(file, path, remove)
		_ = file.Close()
		if err != nil || !again {
			return result, err
		}
	}
	return found{}, fmt.Errorf("read environment entry %s: it was replaced %d times meanwhile", path, attempts)
}

// openEntry is replaced by tests: whom a file's permissions stop is not root.
var openEntry = func(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

func unreadable(path string, err error) found {
	return found{state: stateLive, damage: fmt.Errorf("%w %s: %w; make it readable, or remove it when its process (pid %s) is gone", ErrDamaged,
		path, reason(err), pidOf(path))}
}

// inspectOpen wants to be called again when the file was replaced by its publisher.
func inspectOpen(file *os.File, path string, remove func(Entry) bool) (result found, again bool, err error) {
	if info, err := file.Stat(); err != nil {
		return unreadable(path, err), false, nil
	} else if !info.Mode().IsRegular() {
		return found{state: stateLive, damage: damage(path, errNotAFile)}, false, nil
	}
	free, err := tryFlock(file, unix.LOCK_SH)
	if err != nil {
		return unreadable(path, fmt.Errorf("flock: %w", err)), false, nil
	}
	result.state = stateLive
	if free {
		if !sameFile(file, path) {
			return found{}, true, nil
		}
		result.state = stateDead
	}
	result.entry, err = read(file)
	if err != nil {
		result.damage = damage(path, err)
	}
	if result.state == stateDead && remove != nil && (err != nil || remove(result.entry)) {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return found{}, false, fmt.Errorf("sweep environment entry: %w", err)
		}
		result.removed = true
	}
	return result, false, nil
}

var errNotAFile = errors.New("not a regular file")

// damage says what to do as well: only the process itself writes its entry anew.
func damage(path string, err error) error {
	advice := "remove it" // no process of ours made it
	if !errors.Is(err, errNotAFile) {
		advice = fmt.Sprintf("start its process (pid %s) again, so that others find it", pidOf(path))
	}
	return fmt.Errorf("%w %s: %w; %s", ErrDamaged, path, err, advice)
}

// pidOf returns the process id in an entry's name.
func pidOf(path string) string {
	_, pid, _ := strings.Cut(filepath.Base(path), "-")
	pid, _, _ = strings.Cut(pid, "-")
	return pid
}

func read(file *os.File) (Entry, error) {
	content, err := io.ReadAll(io.LimitReader(file, maxEntryBytes+1))
	if err != nil {
		return Entry{}, err
	}
	if len(content) > maxEntryBytes {
		return Entry{}, fmt.Errorf("longer than %d bytes", maxEntryBytes)
	}
	var entry Entry
	if err := json.Unmarshal(content, &entry); err != nil {
		return Entry{}, err
	}
	if err := entry.validate(); err != nil {
		return Entry{}, err
	}
	return entry, nil
}

func compare(a, b Entry) int {
	return cmp.Or(
		cmp.Compare(a.Role, b.Role),
		cmp.Compare(a.ServerID-1, b.ServerID-1), // 0 wraps around and comes last
		cmp.Compare(a.StartedUnixMilli, b.StartedUnixMilli),
		cmp.Compare(a.PID, b.PID),
		cmp.Compare(a.Address, b.Address),
	)
}

func random() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
