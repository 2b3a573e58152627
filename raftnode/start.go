package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"raftmine/raftnode/registry"
)

// DefaultListen is where a server listens that was told nothing and listened nowhere before.
const DefaultListen = "127.0.0.1:0"

// StartConfig is what Start needs. The embedded Config is a template: Start fills in DataDir, Listener and Bootstrap.
type StartConfig struct {
	Config
	// DataDirPath is the data directory. Empty: the first one of the environment that no server uses, or a new one.
	DataDirPath string
	// Listen is where to listen, host:port. Empty: where this server listened last, if that is free, else DefaultListen.
	Listen string
}

// ErrNoClusterToJoin: the environment knows of servers, but none of them runs, and this data directory is none of theirs.
var ErrNoClusterToJoin = errors.New("no server of the environment's cluster is running")

// Start opens a server of the local environment. A server that has an id goes on. With addresses in Join a new server
// always joins. Else it joins the servers that live in the environment, and bootstraps a new cluster only when none
// lives and no data directory of another server lies there, nor where the entry of a dead one says. All that is decided under the environment's lock, so of
// servers that start at the same instant one bootstraps and the others join it.
//
// A first server that was killed before it had its id does not stand in the way: its lock and its entry died with it, its
// directory counts as empty, and the next server takes that directory and begins again.
func Start(ctx context.Context, config StartConfig) (*Node, error) {
	if config.Environment == nil {
		return nil, errors.New("start server: no local environment given")
	}
	if config.Logger == nil {
		config.Config = config.withDefaults()
	}
	unlock, err := config.Environment.Lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	locked := true
	release := func() {
		if locked {
			locked = false
			unlock()
		}
	}
	defer release()
	if config.DataDirPath != "" {
		config.DataDir, err = OpenDataDir(config.DataDirPath)
	} else {
		config.DataDir, err = claimDataDir(config.Environment)
	}
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	err = refuseCopy(config.DataDir, config.Config.withDefaults().Host, config.Environment)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start server: %w", err), config.DataDir.Close())
	}
	// After the directory was locked: then a dead entry of its own is no trace of another server.
	var left []string
	_, err = config.Environment.Sweep(func(entry registry.Entry) bool {
		if !isTrace(entry) {
			return false
		}
		left = append(left, entry.DataDir)
		return true
	})
	if err != nil {
		config.Logger.Warn("local environment was not swept", "environment", config.Environment.Dir(), "error", err)
	}
	node, err := start(ctx, config, left, release)
	if err != nil {
		return nil, errors.Join(err, config.DataDir.Close())
	}
	return node, nil
}

// isTrace reports whether the entry of a dead server is all that leads to its data directory, which may lie anywhere. It stays
// until that server runs again, or the directory is gone.
func isTrace(entry registry.Entry) bool {
	if entry.Role != registry.RoleServer || entry.ServerID == 0 || entry.DataDir == "" {
		return false
	}
	identity, err := readIdentity(entry.DataDir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && identity.ClusterID != entry.ClusterID {
		return false
	}
	held, _, err := registry.LockHolder(filepath.Join(entry.DataDir, lockFileName))
	return err != nil || !held
}

// start goes on with an open data directory. Left are those of dead servers that the environment knew. Unlock frees the
// environment; it is called before a wait for other servers.
func start(ctx context.Context, config StartConfig, left []string, unlock func()) (*Node, error) {
	identity := config.DataDir.Identity()
	config.Bootstrap = false
	if identity.ServerID == 0 && len(config.Join) == 0 {
		if err := decide(&config, left); err != nil {
			return nil, fmt.Errorf("start server: %w", err)
		}
	}
	if config.Listener == nil && config.Stream == nil {
		listener, err := listen(config, identity.Address)
		if err != nil {
			return nil, fmt.Errorf("start server: %w", err)
		}
		config.Listener = listener
	}
	fenced, err := readFence(config.DataDir.Path(), fenceFileName)
	if (identity.ServerID == 0 && !config.Bootstrap) || fenced != nil || err != nil {
		unlock()
	}
	node, err := Open(ctx, config.Config)
	if err != nil && config.Listener != nil {
		err = errors.Join(err, config.Listener.Close())
	}
	return node, err
}

// decide says whether a new server bootstraps or whom it joins.
func decide(config *StartConfig, left []string) error {
	entries, damage := config.Environment.Entries()
	for _, entry := range entries {
		if entry.Role == registry.RoleServer && entry.ServerID != 0 {
			config.Join = append(config.Join, entry.Address)
		}
	}
	if len(config.Join) > 0 {
		return nil
	}
	if damage != nil { // what cannot be read may be a server: two clusters would be worse than none
		return fmt.Errorf("no server to join is known, and a new cluster may not be made: %w", damage)
	}
	others, err := OtherDataDirs(config.Environment, config.DataDir)
	if err != nil {
		return err
	}
	known := left
	for _, other := range others {
		if other.HasServer() {
			known = append(known, other.Path)
		}
	}
	if len(known) > 0 {
		slices.SortFunc(known, naturalCompare)
		return fmt.Errorf("%w: start the servers of %s first; to make a new cluster, use another environment than %s, or move these folders away",
			ErrNoClusterToJoin, strings.Join(slices.Compact(known), ", "), config.Environment.Dir())
	}
	config.Bootstrap = true
	return nil
}

func listen(config StartConfig, last string) (*Listener, error) {
	options := ListenConfig{Logger: config.Logger}
	if config.Listen != "" {
		return options.Listen(config.Listen)
	}
	if last != "" {
		listener, err := options.Listen(last)
		if err == nil {
			return listener, nil
		}
		config.Logger.Info("last listening address is not free, taking another", "address", last, "error", err)
	}
	return options.Listen(DefaultListen)
}
