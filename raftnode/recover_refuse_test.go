package raftnode

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// TestNobodyGoesOnAloneWithoutProof: one lock, one log, one machine that is not certain, and the server waits.
func TestNobodyGoesOnAloneWithoutProof(t *testing.T) {
	for _, row := range []struct {
		name  string
		host  fsm.Host // of server 2; zero: that of server 1
		spoil func(t *testing.T, c *diskCluster) (undo func())
		says  string
	}{
		{"the other holds its lock", fsm.Host{}, func(t *testing.T, c *diskCluster) func() {
			lock, err := lockDirectory(c.server(1).dir)
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = lock.Release() }
		}, "in use by another raftmine server"},
		{"the other's lock file was removed", fsm.Host{}, func(t *testing.T, c *diskCluster) func() {
			if err := os.Remove(filepath.Join(c.server(1).dir, lockFileName)); err != nil {
				t.Fatal(err)
			}
			return func() {}
		}, "nothing proves that its server is dead"},
		{"another boot", fsm.Host{MachineID: "machine", BootID: "another"}, nil, "started again"},
		{"another machine", fsm.Host{MachineID: "another", BootID: "boot"}, nil, "another machine"},
		{"no boot id", fsm.Host{MachineID: "machine"}, nil, "no boot id"},
		{"the directory is gone", fsm.Host{}, func(t *testing.T, c *diskCluster) func() {
			moved := c.server(1).dir + ".moved"
			if err := os.Rename(c.server(1).dir, moved); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Rename(moved, c.server(1).dir) }
		}, "no such file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newDiskCluster(t, 2)
				if row.host != (fsm.Host{}) {
					c.server(2).kill()
					adjust := c.server(2).adjust
					c.server(2).adjust = func(config *Config) { adjust(config); config.Host = row.host }
					c.reopen(2)
					c.whole(2)
				}
				c.strike(5)
				node := c.server(2).node
				c.server(1).kill()
				undo := func() {}
				if row.spoil != nil {
					undo = row.spoil(t, c)
				}
				time.Sleep(time.Minute)
				if why := node.Alone(); !strings.Contains(why, row.says) || strings.Contains(why, "\n") {
					t.Errorf("says %q, want %q", why, row.says)
				}
				if record, err := readRecovery(c.server(2).dir); err != nil || record.Intent != nil {
					t.Errorf("record %+v, %v", record, err)
				}
				undo()
				c.reopen(1)
				c.strike(1)
				c.wait("the reason is gone", func() bool { return node.Alone() == "" })
			})
		})
	}
}

// TestRecoveryThatCannotBeProvedIsDiscarded: what the quick look does not see, the recovery itself does.
func TestRecoveryThatCannotBeProvedIsDiscarded(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(t *testing.T, c *diskCluster) (undo func())
		says  string
	}{
		{"a lock that was taken meanwhile", func(t *testing.T, c *diskCluster) func() {
			lock, err := lockDirectory(c.server(1).dir)
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = lock.Release() }
		}, "in use by another raftmine server"},
		{"a lock file that was removed meanwhile", func(t *testing.T, c *diskCluster) func() {
			if err := os.Remove(filepath.Join(c.server(1).dir, lockFileName)); err != nil {
				t.Fatal(err)
			}
			return func() {}
		}, "nothing proves that its server is dead"},
		{"a log that is open", func(t *testing.T, c *diskCluster) func() {
			stores, err := openUnsynced(c.server(1).dir, false, discard())
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = stores.Close() }
		}, "in use by another process"},
		{"a log cut short", func(t *testing.T, c *diskCluster) func() {
			path := filepath.Join(c.server(1).dir, logFile)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, 3*4096); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.WriteFile(path, whole, 0o600) }
		}, logFile},
		{"a log full of rubbish", func(t *testing.T, c *diskCluster) func() {
			path := filepath.Join(c.server(1).dir, logFile)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, slices.Repeat([]byte("rubbish "), len(whole)/8), 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.WriteFile(path, whole, 0o600) }
		}, logFile},
		{"no log", func(t *testing.T, c *diskCluster) func() {
			path := filepath.Join(c.server(1).dir, logFile)
			if err := os.Rename(path, path+".moved"); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Rename(path+".moved", path) }
		}, "missing"},
		{"another server's directory", func(t *testing.T, c *diskCluster) func() {
			path := filepath.Join(c.server(1).dir, identityFileName)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			changeIdentity(t, c.server(1).dir, func(identity *identityFile) { identity.ServerID = 7 })
			return func() { _ = os.WriteFile(path, whole, 0o600) }
		}, "that of server 7"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newDiskCluster(t, 2)
				c.strike(5)
				c.server(1).kill()
				c.orphaned(2)
				undo := row.spoil(t, c)
				c.reopen(2)
				said := c.disks[1].logs.String()
				if !strings.Contains(said, "recovery discarded") || !strings.Contains(said, row.says) {
					t.Errorf("said %q, want %q", said, row.says)
				}
				record, err := readRecovery(c.server(2).dir)
				if err != nil || record.Intent != nil || len(record.Done) != 0 {
					t.Errorf("record %+v, %v", record, err)
				}
				if why := c.server(2).node.Alone(); !strings.Contains(why, row.says) {
					t.Errorf("the server says %q, want %q", why, row.says)
				}
				if left, _ := filepath.Glob(filepath.Join(c.server(2).dir, recoveryFolder)); left != nil {
					t.Errorf("left %v", left)
				}
				if _, err := os.Stat(filepath.Join(c.server(1).dir, fenceFileName)); err == nil {
					t.Error("server 1 was fenced")
				}
				undo()
				c.reopen(1)
				c.whole(2)
				c.strike(1)
				c.nothingLost(c.leader())
			})
		})
	}
}

// TestRefusedRecoveryIsRepeatedWhenSomethingChanged: to try it the server is closed and opened again, which it is not each
// minute while the damage is what it was.
func TestRefusedRecoveryIsRepeatedWhenSomethingChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(5)
		c.server(1).kill()
		c.orphaned(2)
		path := filepath.Join(c.server(1).dir, logFile)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 3*4096); err != nil {
			t.Fatal(err)
		}
		c.reopen(2)
		time.Sleep(5 * time.Minute)
		select {
		case err := <-c.server(2).ran:
			t.Fatalf("server 2 ended with %v", err)
		default:
		}
		if why := c.server(2).node.Alone(); !strings.Contains(why, path) || strings.Contains(why, joinAnew) || strings.Contains(why, "runtime error") || strings.Contains(why, "\n") {
			t.Errorf("says %q", why)
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		repaired := time.Now()
		c.orphaned(2)
		if took := time.Since(repaired); took > orphanPauseMost+time.Second {
			t.Errorf("tried again only after %v", took)
		}
		c.reopen(2)
		c.strike(1)
		c.nothingLost(c.server(2).node)
	})
}

func TestStoppedClusterIsNotRecovered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(5)
		if err := c.leader().StopCluster(t.Context(), "test"); err != nil {
			t.Fatal(err)
		}
		c.server(1).kill()
		time.Sleep(time.Minute)
		if why := c.server(2).node.Alone(); !strings.Contains(why, "stopped on purpose") {
			t.Errorf("says %q", why)
		}
		c.server(2).kill()
		if _, err := writeIntent(c.server(2).dir, false); err != nil {
			t.Fatal(err)
		}
		c.reopen(2)
		if said := c.disks[1].logs.String(); !strings.Contains(said, "recovery discarded") {
			t.Errorf("said %q", said)
		}
		c.reopen(1)
		c.whole(2)
	})
}

func TestFenceWaitsWhileItsRecoveryIsUndecided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(5)
		c.server(1).kill()
		c.orphaned(2)
		c.reopenKilledAt(2, "fenced 1")
		lock, err := lockDirectory(c.server(2).dir) // the survivor runs
		if err != nil {
			t.Fatal(err)
		}
		dir, err := OpenDataDir(c.server(1).dir)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		told := 0
		_, err = passFence(ctx, dir, nil, func(uint64) { told++ })
		if !errors.Is(err, context.DeadlineExceeded) || told != 1 {
			t.Errorf("passed the fence with %v, told %d times", err, told)
		}
		if _, err := os.Stat(filepath.Join(c.server(1).dir, archiveFolder)); err == nil {
			t.Error("the log was archived")
		}
		if err := lock.Release(); err != nil {
			t.Fatal(err)
		}
		if f, err := passFence(t.Context(), dir, nil, func(uint64) {}); f != nil || err != nil {
			t.Errorf("the fence was not lifted: %+v, %v", f, err)
		}
	})
}

func TestReplicaWithAnotherHistoryThanTheRecoveredStops(t *testing.T) {
	r := newReplica(func(uint64, []fsm.Event) {})
	apply := func(index uint64, commands ...fsm.Command) any {
		data, err := fsm.EncodeEntry(fsm.Entry{LeaderID: 1, Version: "test", Commands: commands})
		if err != nil {
			t.Fatal(err)
		}
		return r.Apply(&raft.Log{Index: index, Term: 1, Data: data})
	}
	apply(1, fsm.OpenCluster{ClusterID: "c"})
	head := r.state.Head()
	if err, _ := apply(2, fsm.Recover{RecoveryID: fsm.ID{1}, Survivor: 2, Index: 1, Term: 1, Head: head.Hash}).(error); err != nil {
		t.Fatalf("its own history: %v", err)
	}
	err, _ := apply(3, fsm.Recover{RecoveryID: fsm.ID{2}, Survivor: 2, Index: 2, Term: 1, Head: head.Hash}).(error)
	if !errors.Is(err, ErrReplicaStopped) || !strings.Contains(err.Error(), "another history") {
		t.Errorf("another history: %v", err)
	}
	if r.failure() == nil {
		t.Error("the replica goes on")
	}
}

// TestServersThatAreMerelyStartedAgainElectAsEver: both died, and both come back, within a minute or after a boot. Nobody goes
// on alone, whoever comes first.
func TestServersThatAreMerelyStartedAgainElectAsEver(t *testing.T) {
	for _, row := range []struct {
		name   string
		apart  time.Duration
		booted bool
		first  uint64
	}{
		{"in one instant", 0, false, 1},
		{"the leader later", 50 * time.Second, false, 2},
		{"the follower later", 50 * time.Second, false, 1},
		{"the leader long after a boot", 10 * time.Minute, true, 2},
		{"the follower long after a boot", 10 * time.Minute, true, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newDiskCluster(t, 2)
				c.strike(10)
				// As a power cut does it: the one that dies later has no time to notice.
				c.server(1).kill()
				c.server(2).kill()
				if row.booted {
					for _, s := range c.servers {
						adjust := s.adjust
						s.adjust = func(config *Config) {
							adjust(config)
							config.Host.BootID = "next boot"
						}
					}
				}
				c.reopen(row.first)
				time.Sleep(row.apart)
				if row.booted {
					if why := c.server(row.first).node.Alone(); !strings.Contains(why, "started again") {
						t.Errorf("the first one says %q", why)
					}
				}
				c.reopen(3 - row.first)
				c.whole(2)
				for _, s := range c.servers {
					c.nothingLost(s.node)
					record, err := readRecovery(s.dir)
					if err != nil || record.Intent != nil || len(record.Done) != 0 {
						t.Errorf("server %d has %+v, %v", s.node.ID(), record, err)
					}
					if len(s.ran) != 0 {
						t.Errorf("server %d ended", s.node.ID())
					}
				}
				c.wait("both have the same state", c.same)
				c.wantHistories()
			})
		})
	}
}
