package raftnode

import (
	"fmt"
	"path/filepath"
	"time"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// Two processes on copies of one data directory are one server to Raft: both vote, and both acknowledge what the other does not
// have. On one host that can be seen before the second one votes: the local environment lists who lives, and server.json says where the
// directory was at its last start.
//
// Between hosts the servers could tell each other which process speaks for an id. That was tried, and is not here: whoever is
// believed wrongly ends a healthy server, and a process that is started again cannot be told from a copy while the one before
// it neither answers nor refuses.

// refuseCopy returns ErrTwin when another process of this host is the same server, or when the directory is a copy of one that
// is still there. A directory that was moved is none.
func refuseCopy(dir *DataDir, host fsm.Host, env *registry.Environment) (err error) {
	identity := dir.Identity()
	if identity.ServerID == 0 {
		return nil
	}
	for try := 1; ; try++ { // a process that was killed holds its locks until the kernel has ended it
		err = refuseLive(dir.Path(), identity, env)
		if err == nil || try == openTries {
			break
		}
		time.Sleep(openInterval)
	}
	if err != nil {
		return err
	}
	original := identity.DataDir
	if original == "" || host.MachineID == "" || identity.MachineID != host.MachineID || sameDir(original, dir.Path()) {
		return nil
	}
	first, err := readIdentity(original)
	if err != nil || first.RequestID != identity.RequestID || first.ServerID != identity.ServerID {
		return nil // moved; or nothing is known
	}
	held, pid, err := registry.LockHolder(filepath.Join(original, lockFileName))
	if err == nil && held {
		return fmt.Errorf("data directory %s: another process%s is server %d on data directory %s: %w; "+
			"start a new server on an empty directory instead", dir.Path(), pidText(pid), identity.ServerID, original, ErrTwin)
	}
	return fmt.Errorf("data directory %s is that of server %d, and so is %s, from which it was copied: %w; start the server there, "+
		"or move that one away for good if this one is to take its place", dir.Path(), identity.ServerID, original, ErrTwin)
}

// refuseLive returns ErrTwin when a live process of the environment is the same server.
func refuseLive(dir string, identity Identity, env *registry.Environment) error {
	if env == nil {
		return nil
	}
	entries, _ := env.Entries() // what cannot be read proves nothing
	for _, entry := range entries {
		if entry.Role == registry.RoleServer && entry.ClusterID == identity.ClusterID && entry.ServerID == identity.ServerID {
			return fmt.Errorf("data directory %s: another process%s has been server %d at %s since %s: %w; "+
				"start a new server on an empty directory instead", dir, pidText(entry.PID), entry.ServerID, entry.Address,
				time.UnixMilli(int64(entry.StartedUnixMilli)).Format(time.DateTime), ErrTwin)
		}
	}
	return nil
}
