package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// ErrRecover: Run found that the locks of all other voters are free. The owner closes the node and opens it again on the same
// data directory: the recovery is done there, before Raft starts, or refused when the others' files do not allow it.
var ErrRecover = errors.New("no leader, and the locks of all other voters are free: reading their logs to go on alone")

// When a server without a leader looks whether all others are dead. Tuning. The first is short, because whoever saw
// the leader die has nothing to wait for; the second leaves a person time to start the servers of a cluster one by one.
const (
	orphanedAfterLoss  = time.Second
	orphanedAfterStart = time.Minute
	orphanLook         = 100 * time.Millisecond
	orphanPauseFirst   = time.Second
	orphanPauseMost    = 15 * time.Second
	// refusedAgain is when a recovery that was refused is tried again though the others' files are as they were: it may have
	// been this server's own disk.
	refusedAgain = 10 * time.Minute
)

// refusal is a recovery that was begun and refused. To try it again the server is closed and opened, which is not done for
// nothing.
type refusal struct {
	why  string // empty: none was refused
	at   time.Time
	seen map[string]string // what the directories of the other voters looked like, by path
}

// stands reports whether it would be refused again, as far as is known.
func (r *refusal) stands() bool {
	if r.why == "" || time.Since(r.at) >= refusedAgain {
		return false
	}
	for dir, seen := range r.seen {
		if looksOf(dir) != seen {
			return false
		}
	}
	return true
}

// looksOf changes when a file of a server that does not run is repaired or replaced.
func looksOf(dir string) string {
	var looks strings.Builder
	for _, name := range []string{"", identityFileName, logFile, snapshotFolder, journalFolder, recoveryFileName, rejoinFileName} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil {
			fmt.Fprintln(&looks, name, err)
		} else if name == "" { // its time changes with every lock
			fmt.Fprintln(&looks, info.Mode())
		} else {
			fmt.Fprintln(&looks, name, info.Mode(), info.Size(), info.ModTime().UnixNano())
		}
	}
	return looks.String()
}

// watchOrphaned writes the intent to recover, and returns ErrRecover, once this server has been without a leader and the
// locks of all other voters are free. It returns nil when ctx ends.
func (n *Node) watchOrphaned(ctx context.Context) error {
	if !n.config.SurviveAlone {
		return nil
	}
	since, patience := time.Now(), orphanedAfterStart
	pause := orphanPauseFirst
	for sleep(ctx, orphanLook) {
		leader := n.leader()
		if leader == 0 && n.gated() {
			n.setAlone(fmt.Sprintf("it was left behind when server %d went on: start server %d", n.gate.survivor, n.gate.survivor))
			continue
		}
		if leader != 0 || n.raft.State() == raft.Leader || n.gated() || n.stopping.Load() {
			if leader != 0 {
				patience = orphanedAfterLoss
			}
			since, pause = time.Now(), orphanPauseFirst
			n.setAlone("")
			continue
		}
		if time.Since(since) < patience {
			continue
		}
		err := n.orphaned()
		if err == nil && n.refused.stands() {
			err = errors.New(n.refused.why)
		}
		if err == nil {
			if _, err = writeIntent(n.config.DataDir.Path(), false); err == nil {
				return ErrRecover
			}
		}
		n.setAlone(err.Error())
		if !sleep(ctx, pause) {
			break
		}
		pause = min(2*pause, orphanPauseMost)
	}
	return nil
}

// setAlone keeps why this server does not go on alone; empty: there is no need to.
func (n *Node) setAlone(why string) {
	if old, _ := n.alone.Swap(why).(string); old != why && why != "" {
		n.log.Info("no leader, and this server does not go on alone", "reason", why)
	}
}

// Alone says why this server, which has no leader, does not go on alone; empty: it has one, or has not looked yet.
func (n *Node) Alone() string {
	why, _ := n.alone.Load().(string)
	return why
}

// orphaned returns nil when the locks of all other voters are free. It looks at the whole log, not at the applied
// state: without a leader nobody says what of it is committed. The recovery itself checks all of it again, and more.
func (n *Node) orphaned() (err error) {
	dir := n.config.DataDir.Path()
	defer recoverDamage(filepath.Join(dir, logFile), &err)
	if err := localDisk(dir); err != nil {
		return err
	}
	h, err := replayStores(n.stores.Log, n.stores.Stable, n.stores.Snapshots, nil)
	if err != nil {
		return err
	}
	voters := h.voters()
	switch {
	case !slices.Contains(voters, n.id):
		return errors.New("this server is not a voter")
	case h.state.Stopped():
		return errors.New("the cluster was stopped on purpose: start all of its servers")
	}
	for _, id := range voters {
		if id == n.id {
			continue
		}
		row, known := h.state.Server(id)
		if !known {
			return fmt.Errorf("server %d is not in the server table", id)
		}
		if err := provablyDead(row, n.config.Host); err != nil {
			return fmt.Errorf("server %d: %w", id, err)
		}
	}
	return nil
}

// sameBoot returns nil when a server ran on this very host and boot, as far as its row says.
func sameBoot(row, host fsm.Host) error {
	switch {
	case host.MachineID == "" || host.BootID == "":
		return errors.New("this machine has no machine id or no boot id, so it cannot be told from another machine")
	case row.MachineID != host.MachineID:
		return errors.New("it is on another machine")
	case row.BootID != host.BootID:
		return errors.New("it ran before this machine was started again, or on another machine with the same machine id")
	}
	return nil
}

// provablyDead returns nil when the lock of a server's directory is free on this very host and boot.
func provablyDead(row fsm.Server, host fsm.Host) error {
	if err := sameBoot(row.Host, host); err != nil {
		return err
	}
	if err := localDisk(row.DataDir); err != nil {
		return err
	}
	if err := hasLock(row.DataDir); err != nil {
		return err
	}
	held, pid, err := registry.LockHolder(filepath.Join(row.DataDir, lockFileName))
	if err != nil {
		return err
	}
	if held {
		return fmt.Errorf("data directory %s is %w%s", row.DataDir, ErrDataDirInUse, pidText(pid))
	}
	return nil
}

// hasLock returns why a directory proves nothing: a server that runs may have locked a file that was removed since.
func hasLock(dir string) error {
	path := filepath.Join(dir, lockFileName)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is gone, so nothing proves that its server is dead: start that server", path)
	} else if err != nil {
		return err
	}
	return nil
}

// settle does what must be done before Raft starts: it passes a fence, or finishes a recovery. It returns the fence when
// this server begins again with an empty log.
func (n *Node) settle(ctx context.Context, identity Identity) (*fence, error) {
	f, err := passFence(ctx, n.config.DataDir, n.config.Environment, func(survivor uint64) {
		n.log.Warn("a recovery that left this server behind is not decided yet, waiting", "survivor", survivor)
	})
	if err != nil {
		return nil, err
	}
	if f != nil {
		n.log.Warn("left behind by a recovery, beginning again with an empty log",
			"survivor", f.Survivor, "archive", filepath.Join(n.config.DataDir.Path(), archiveFolder, f.RecoveryID.String()))
		if survivor, err := readIdentity(f.SurvivorDir); err == nil {
			n.book.hear(f.Survivor, survivor.Address)
		}
		return f, nil
	}
	if !n.config.SurviveAlone { // an intent of before is not gone on with
		if err := discardIntent(n.config.DataDir.Path()); err != nil {
			return nil, err
		}
	}
	var refused error
	n.refused.seen = make(map[string]string)
	n.recovered, refused, err = settleRecovery(recovery{dir: n.config.DataDir, identity: identity, host: n.config.Host,
		env: n.config.Environment, log: n.log, seen: n.refused.seen})
	if refused != nil {
		n.refused.why, n.refused.at = reasonOf(refused), time.Now()
		n.alone.Store(n.refused.why) // until there is a leader
	}
	return nil, err
}

// reasonOf is why there is no recovery. What joinAnew advises is for the start of the server whose log it is, and for when there
// is a leader.
func reasonOf(err error) string {
	return strings.ReplaceAll(strings.TrimPrefix(err.Error(), ErrNotRecovered.Error()+": "), "; "+joinAnew, "")
}

// announceRecovery returns what the first entry after a recovery here begins with: the recovery, that this server is a member,
// though the others may have removed it while it was away, and that the voters it left behind are none until they return. It
// is empty once anything follows the recovered history.
func (n *Node) announceRecovery() (commands []fsm.Command) {
	if n.recovered == nil {
		return nil
	}
	n.View(func(v fsm.View) {
		if v.Head() != n.recovered.head() {
			return
		}
		commands = append(commands, n.recovered.command())
		if row, ok := v.Server(n.id); ok && !row.Member {
			commands = append(commands, fsm.ReadmitServer{ServerID: n.id})
		}
		for _, id := range n.recovered.Left {
			if row, ok := v.Server(id); ok && row.Member {
				commands = append(commands, fsm.RemoveServer{ServerID: id, Reason: fmt.Sprintf("server %d went on alone", n.id)})
			}
		}
	})
	return commands
}
