package raftnode

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// A data directory belongs to one server for good. Beside what Raft stores, it holds
//
//	lock          exclusively flocked while a server uses the directory
//	server.json   the server's identity, sealed (sealed.go), replaced atomically and synced
//
// A directory without server.json, or with one that has no server id yet, is one that no cluster knows: its server was
// killed before it bootstrapped or joined, and whoever takes the directory next goes on from there.
const (
	lockFileName     = "lock"
	identityFileName = "server.json"
	probeFileName    = ".probe"
	identityFormat   = sealedFormat
	maxIdentityBytes = 64 << 10
)

// A directory is called in use only after this many tries. Tuning: a look at the lock by another process holds it
// shared for microseconds, and a killed process keeps it until the kernel has ended it.
const (
	openTries    = 10
	openInterval = 10 * time.Millisecond
)

// Errors of data directories.
var (
	// ErrDataDirInUse: a running server has the directory.
	ErrDataDirInUse = errors.New("in use by another raftmine server")
	// ErrUnusableDataDir: the directory cannot be made, or not be written to.
	ErrUnusableDataDir = errors.New("cannot be used")
	// ErrForeignDataDir: the directory holds other things than a server's.
	ErrForeignDataDir = errors.New("not a raftmine data directory")
	// ErrDamagedDataDir: a file in the directory cannot be understood. The error that wraps it names the file.
	ErrDamagedDataDir = errors.New("damaged data directory")
)

// Identity is what a server keeps of itself.
type Identity struct {
	Format    int    // of server.json
	RequestID fsm.ID // made once for the directory: joining again with it gives the same id
	ClusterID string // empty: none yet
	ServerID  uint64 // 0: none yet
	Address   string // where it listened last; empty: never
	DataDir   string // where the directory was at the last start, absolute, and on which machine; empty: never started
	MachineID string
}

// identityFile is the body of server.json.
type identityFile struct {
	RequestID uuid.UUID `json:"request_id"`
	ClusterID string    `json:"cluster_id,omitempty"`
	ServerID  uint64    `json:"server_id,omitempty"`
	Address   string    `json:"address,omitempty"`
	DataDir   string    `json:"data_dir,omitempty"`
	MachineID string    `json:"machine_id,omitempty"`
}

// DataDir is a data directory that this process has locked. Its methods may be called concurrently.
type DataDir struct {
	path string // absolute
	lock *registry.FileLock

	mu       sync.Mutex
	identity Identity
	closed   bool
}

// OpenDataDir locks the directory for this process, making it if it is not there, and reads its identity, of which it
// makes and stores the RequestID the first time. A directory that is another's, in use, damaged, or cannot be written to
// is refused and left as it is.
func OpenDataDir(path string) (*DataDir, error) {
	for try := 1; ; try++ {
		dir, err := openDataDir(path)
		if err == nil || !errors.Is(err, ErrDataDirInUse) || try == openTries {
			return dir, err
		}
		time.Sleep(openInterval)
	}
}

func openDataDir(path string) (*DataDir, error) {
	if path == "" {
		return nil, errors.New("data directory: no path is given")
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	if err := os.MkdirAll(absolute, 0o700); err != nil {
		return nil, fmt.Errorf("data directory %s %w: %w", absolute, ErrUnusableDataDir, err)
	}
	// Once before anything is written into it, and once when no other server can be writing.
	if err := refuseForeign(absolute); err != nil {
		return nil, err
	}
	lock, err := registry.LockFile(filepath.Join(absolute, lockFileName))
	if held := (*registry.HeldError)(nil); errors.As(err, &held) {
		return nil, fmt.Errorf("data directory %s is %w%s", absolute, ErrDataDirInUse, pidText(held.PID))
	} else if err != nil {
		return nil, fmt.Errorf("data directory %s %w: %w", absolute, ErrUnusableDataDir, err)
	}
	d := &DataDir{path: absolute, lock: lock}
	if err := d.load(); err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	return d, nil
}

// load runs under the lock.
func (d *DataDir) load() error {
	if err := refuseForeign(d.path); err != nil {
		return err
	}
	if err := probeWrite(d.path); err != nil {
		return fmt.Errorf("data directory %s %w: %w", d.path, ErrUnusableDataDir, err)
	}
	removeLeftovers(d.path)
	identity, err := readIdentity(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return d.create()
	}
	d.identity = identity
	return err
}

func (d *DataDir) create() error {
	id, err := uuid.NewRandom()
	if err != nil {
		return fmt.Errorf("make a request id: %w", err)
	}
	return d.store(Identity{RequestID: fsm.ID(id)})
}

// Path returns the directory, absolute.
func (d *DataDir) Path() string { return d.path }

// Identity returns what is stored.
func (d *DataDir) Identity() Identity {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.identity
}

// SetIdentity stores the identity; when it returns nil it is on the disk. Format and a zero RequestID are filled in. What
// was given once cannot change: the RequestID, and, from the moment there is a ServerID, that and the ClusterID.
func (d *DataDir) SetIdentity(identity Identity) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("data directory %s: %w", d.path, fs.ErrClosed)
	}
	old := d.identity
	if identity.RequestID == (fsm.ID{}) {
		identity.RequestID = old.RequestID
	}
	switch {
	case identity.RequestID != old.RequestID:
		return fmt.Errorf("data directory %s: its request id cannot change", d.path)
	case old.ServerID != 0 && (identity.ServerID != old.ServerID || identity.ClusterID != old.ClusterID):
		return fmt.Errorf("data directory %s is that of server %d of cluster %s, and cannot become server %d of cluster %s",
			d.path, old.ServerID, old.ClusterID, identity.ServerID, identity.ClusterID)
	case identity.ServerID != 0 && identity.ClusterID == "":
		return fmt.Errorf("data directory %s: server id %d without a cluster id", d.path, identity.ServerID)
	}
	return d.store(identity)
}

// store is called with mu held, or before d is shared.
func (d *DataDir) store(identity Identity) error {
	identity.Format = identityFormat
	err := writeSealed(filepath.Join(d.path, identityFileName), identityFile{
		RequestID: uuid.UUID(identity.RequestID),
		ClusterID: identity.ClusterID,
		ServerID:  identity.ServerID,
		Address:   identity.Address,
		DataDir:   identity.DataDir,
		MachineID: identity.MachineID,
	})
	if err != nil {
		return fmt.Errorf("store identity: %w", err)
	}
	d.identity = identity
	return nil
}

// Close frees the directory for another server. More calls do nothing.
func (d *DataDir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.lock.Release()
}

// DataDirInfo is what can be seen of a data directory from outside.
type DataDirInfo struct {
	Path     string
	Identity Identity // zero: it has none yet
	InUse    bool     // a running process has it locked
	PID      int      // of that process; 0: not known
}

// HasServer reports whether the directory belongs to a server that a cluster knows, or is just being given one. It is
// false for what a server left that was killed before it bootstrapped or joined.
func (i DataDirInfo) HasServer() bool { return i.Identity.ServerID != 0 || i.InUse }

// belongs compares this server's identity with the replicated table, which has the request id of each server. Under another
// id it would vote a second time.
func (n *Node) belongs(table []fsm.Server) error {
	for _, row := range table {
		if (row.ID == n.id) != (row.RequestID == n.requestID) {
			return fmt.Errorf("%w: %s says server %d with request id %s, and in the cluster server %d has request id %s; "+
				"move the directory away to join as a new server", ErrDamagedDataDir,
				filepath.Join(n.config.DataDir.Path(), identityFileName), n.id, uuid.UUID(n.requestID), row.ID, uuid.UUID(row.RequestID))
		}
	}
	return nil
}

// HasServer reports whether path is the data directory of a server that has an id. One that does not exist has none.
func HasServer(path string) (bool, error) {
	identity, err := readIdentity(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return identity.ServerID != 0, err
}

// claimDataDir locks the first directory under the environment's data folder that no server uses, in natural order
// (server-2 before server-10), or makes the next one. What is not a data directory is passed over; a damaged one is an
// error, for a new identity must not take its place unnoticed. The caller holds the environment's lock.
func claimDataDir(env *registry.Environment) (*DataDir, error) {
	paths, err := dataDirPaths(env)
	if err != nil {
		return nil, err
	}
	number := 0
	for _, path := range paths {
		number = max(number, dirNumber(filepath.Base(path)))
		dir, err := openDataDir(path)
		if errors.Is(err, ErrDataDirInUse) || errors.Is(err, ErrForeignDataDir) {
			continue
		}
		return dir, err
	}
	return OpenDataDir(filepath.Join(env.DataDir(), fmt.Sprintf("server-%d", number+1)))
}

// OtherDataDirs lists the data directories in the environment, in natural order, without own, which may be nil or lie
// elsewhere. The caller holds the environment's lock. A new cluster may be made only if none of them HasServer.
func OtherDataDirs(env *registry.Environment, own *DataDir) ([]DataDirInfo, error) {
	paths, err := dataDirPaths(env)
	if err != nil {
		return nil, err
	}
	var infos []DataDirInfo
	for _, path := range paths {
		if own != nil && sameDir(path, own.Path()) {
			continue
		}
		err := refuseForeign(path)
		if errors.Is(err, ErrForeignDataDir) {
			continue
		}
		if err != nil {
			return nil, err
		}
		info := DataDirInfo{Path: path}
		if info.Identity, err = readIdentity(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if info.InUse, info.PID, err = registry.LockHolder(filepath.Join(path, lockFileName)); err != nil {
			return nil, fmt.Errorf("data directory %s: %w", path, err)
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func dataDirPaths(env *registry.Environment) ([]string, error) {
	entries, err := os.ReadDir(env.DataDir())
	if err != nil {
		return nil, fmt.Errorf("list data directories: %w", err)
	}
	var paths []string
	for _, entry := range entries {
		if entry.IsDir() && !strings.HasPrefix(entry.Name(), ".") {
			paths = append(paths, filepath.Join(env.DataDir(), entry.Name()))
		}
	}
	slices.SortFunc(paths, func(a, b string) int { return naturalCompare(filepath.Base(a), filepath.Base(b)) })
	return paths, nil
}

// readIdentity returns fs.ErrNotExist when there is no server.json yet.
func readIdentity(dir string) (Identity, error) {
	path := filepath.Join(dir, identityFileName)
	damaged := func(err error) (Identity, error) {
		return Identity{}, damagedFile(path, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return Identity{}, fmt.Errorf("read identity: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxIdentityBytes {
		return damaged(fmt.Errorf("not a regular file of at most %d bytes", maxIdentityBytes))
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return Identity{}, fmt.Errorf("read identity: %w", err)
	}
	var outer struct {
		Format int `json:"format"`
	}
	if json.Unmarshal(content, &outer) == nil && outer.Format > identityFormat {
		return Identity{}, fmt.Errorf("%s has format %d, and this raftmine knows %d: use the newer version that wrote it",
			path, outer.Format, identityFormat)
	}
	var file identityFile
	if err := decodeSealed(content, &file); err != nil {
		return damaged(err)
	}
	switch {
	case file.RequestID == uuid.Nil:
		return damaged(errors.New("request_id is missing"))
	case file.ServerID != 0 && file.ClusterID == "":
		return damaged(errors.New("server_id is given without cluster_id"))
	}
	return Identity{
		Format:    identityFormat,
		RequestID: fsm.ID(file.RequestID),
		ClusterID: file.ClusterID,
		ServerID:  file.ServerID,
		Address:   file.Address,
		DataDir:   file.DataDir,
		MachineID: file.MachineID,
	}, nil
}

// refuseForeign refuses a directory that holds something, but no server.json.
func refuseForeign(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	var foreign []string
	for _, entry := range entries {
		switch name := entry.Name(); {
		case name == identityFileName:
			return nil
		case name == lockFileName, name == "lost+found", isLeftover(name):
		default:
			foreign = append(foreign, name)
		}
	}
	if len(foreign) == 0 {
		return nil
	}
	names := strings.Join(foreign[:min(3, len(foreign))], ", ")
	if more := len(foreign) - 3; more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Errorf("%s is %w: it holds %s, and no %s", dir, ErrForeignDataDir, names, identityFileName)
}

// isLeftover recognises the temporary files of a server that was killed while it wrote them.
func isLeftover(name string) bool {
	return name == probeFileName || strings.HasPrefix(name, "."+identityFileName) ||
		strings.HasPrefix(name, "."+fenceFileName) || strings.HasPrefix(name, "."+recoveryFileName)
}

func removeLeftovers(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // they do no harm
	}
	for _, entry := range entries {
		if isLeftover(entry.Name()) {
			_ = os.Remove(filepath.Join(dir, entry.Name()))
		}
	}
}

// probeWrite finds a full or read-only disk before Raft does, which would then say it less clearly.
func probeWrite(dir string) error {
	path := filepath.Join(dir, probeFileName)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(make([]byte, 4096))
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close(), os.Remove(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func sameDir(a, b string) bool {
	if a == b {
		return true
	}
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

func pidText(pid int) string {
	if pid == 0 {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", pid)
}
