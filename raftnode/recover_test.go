package raftnode

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// diskCluster is a cluster on real disks, whose servers may go on alone. Acknowledged strikes are remembered.
type diskCluster struct {
	*testCluster
	disks []*testDisk
	acked map[string]bool
	next  int
}

// testDisk remembers the open stores of a server, so that a test that ends it by a panic can close them as the kernel does.
type testDisk struct {
	mu   sync.Mutex
	open *Stores
	logs lines
}

func (d *testDisk) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open != nil {
		_ = d.open.Close()
		d.open = nil
	}
}

// lines collects log lines.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newDiskCluster(t *testing.T, size int, change ...func(*Config)) *diskCluster {
	t.Helper()
	c := &diskCluster{testCluster: &testCluster{t: t, net: newTestNet()}, acked: make(map[string]bool)}
	dir := t.TempDir() // before Cleanup: it goes after the servers
	t.Cleanup(c.close)
	for i := range size {
		s, disk := newTestServer(t, c.net, filepath.Join(dir, fmt.Sprint("server-", i+1))), &testDisk{}
		s.adjust = func(config *Config) {
			config.SurviveAlone, config.Heartbeat = true, 500*time.Millisecond
			for _, f := range change {
				f(config)
			}
			config.Logger = slog.New(slog.NewTextHandler(&disk.logs, &slog.HandlerOptions{Level: slog.LevelInfo}))
			config.OpenStores = func(dir string, fresh bool, logger *slog.Logger) (*Stores, error) {
				stores, err := openUnsynced(dir, fresh, logger)
				disk.mu.Lock()
				defer disk.mu.Unlock()
				disk.open = stores
				return stores, err
			}
		}
		c.servers, c.disks = append(c.servers, s), append(c.disks, disk)
		if i == 0 {
			s.start()
		} else {
			s.start(c.servers[0].node.Address())
		}
	}
	c.whole(size)
	return c
}

// openUnsynced is OpenBoltStores without fsync: a process that ends loses nothing by that, and the tests gain minutes.
func openUnsynced(dir string, fresh bool, logger *slog.Logger) (*Stores, error) {
	path := filepath.Join(dir, logFile)
	if fresh {
		if err := errors.Join(os.RemoveAll(path), os.RemoveAll(filepath.Join(dir, snapshotFolder))); err != nil {
			return nil, err
		}
	}
	log, err := raftboltdb.New(raftboltdb.Options{Path: path, NoSync: true, BoltOptions: &bbolt.Options{Timeout: time.Second}})
	if err != nil {
		return nil, err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, retainedSnapshots, newRaftLogger(logger))
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return &Stores{Log: log, Stable: log, Snapshots: snapshots, Close: log.Close}, nil
}

// whole waits until all servers vote and are up, and server 1 leads.
func (c *diskCluster) whole(size int) {
	c.t.Helper()
	c.wait("all servers vote and are up", func() bool {
		if !c.leads(1) || len(c.leader().Status().Voters) != size {
			return false
		}
		up := 0
		c.leader().View(func(v fsm.View) {
			for _, row := range v.Servers() {
				if row.Up {
					up++
				}
			}
		})
		return up == size
	})
}

// strike has some commands acknowledged.
func (c *diskCluster) strike(count int) {
	c.t.Helper()
	c.wait("somebody leads", func() bool { return c.leader() != nil })
	for range count {
		c.next++
		name := fmt.Sprint("miner-", c.next)
		if _, err := c.leader().Propose(c.t.Context(), fsm.Strike{Miner: name, Reason: "test"}); err != nil {
			c.t.Fatal(err)
		}
		c.acked[name] = true
	}
}

// nothingLost checks that a server has everything that was acknowledged.
func (c *diskCluster) nothingLost(node *Node) {
	c.t.Helper()
	have := make(map[string]bool)
	node.View(func(v fsm.View) {
		for _, miner := range v.Miners() {
			have[miner.Name] = true
		}
	})
	for name := range maps.Keys(c.acked) {
		if !have[name] {
			c.t.Fatalf("server %d has %d of %d acknowledged commands, and not %s", node.ID(), len(have), len(c.acked), name)
		}
	}
}

func (c *diskCluster) server(id uint64) *testServer { return c.servers[id-1] }

// reopen starts a killed server again. Those that live help it to find them.
func (c *diskCluster) reopen(id uint64) {
	c.t.Helper()
	if err := c.open(id); err != nil {
		c.t.Fatal(err)
	}
}

func (c *diskCluster) open(id uint64) error {
	var others []string
	for _, s := range c.servers {
		if s.node != nil && s != c.server(id) {
			others = append(others, s.node.Address())
		}
	}
	return c.server(id).open(others...)
}

// orphaned waits until Run of a server ends with ErrRecover, and closes it.
func (c *diskCluster) orphaned(id uint64) {
	c.t.Helper()
	s := c.server(id)
	select {
	case err := <-s.ran:
		if !errors.Is(err, ErrRecover) {
			c.t.Fatalf("server %d ended with %v", id, err)
		}
	case <-time.After(10 * time.Minute):
		c.t.Fatalf("server %d does not go on alone: %s; %+v", id, s.node.Alone(), s.node.Status())
	}
	s.ran <- nil // kill waits for it
	s.kill()
}

// killed is what a failpoint ends the server with.
const killed = "killed by the test"

// reopenKilledAt starts a server that is killed after a step of its recovery.
func (c *diskCluster) reopenKilledAt(id uint64, step string) {
	c.t.Helper()
	old := recoveryStep
	defer func() {
		recoveryStep = old
		c.disks[id-1].close()
		if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), killed) {
			c.t.Fatalf("the server was not killed at step %q: %v", step, r)
		}
	}()
	recoveryStep = func(done string) {
		if done == step {
			panic(killed)
		}
	}
	if err := c.open(id); err != nil {
		c.t.Errorf("open until step %q: %v", step, err)
	}
}

// histories waits until every running server has the whole history in its journal.
func (c *diskCluster) histories() {
	c.t.Helper()
	c.wait("no journal has a gap", func() bool {
		for _, s := range c.servers {
			if s.node != nil && s.node.journal.missing() != 0 {
				return false
			}
		}
		return true
	})
}

func voters(node *Node) []uint64 { return node.Status().Voters }

func TestLastOfTwoVotersGoesOnAloneWhenTheLeaderDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(30)
		c.server(1).kill()
		died := time.Now()
		c.orphaned(2)
		c.reopen(2)
		c.strike(1)
		if took := time.Since(died); took > 3*time.Second {
			t.Errorf("a command was acknowledged only after %v", took)
		}
		survivor := c.server(2).node
		if v := voters(survivor); !slices.Equal(v, []uint64{2}) {
			t.Errorf("voters %v", v)
		}
		c.nothingLost(survivor)
		survivor.View(func(v fsm.View) {
			row, _ := v.Server(1)
			if row.Member || row.Up || v.LowestUp() != 2 {
				t.Errorf("server 1 is %+v, lowest id up is %d", row, v.LowestUp())
			}
		})
		survivor.replica.mu.RLock()
		recovery, ok := survivor.replica.state.Recovery()
		survivor.replica.mu.RUnlock()
		if !ok || recovery.Survivor != 2 || recovery.Index == 0 {
			t.Errorf("recovery %+v", recovery)
		}

		c.strike(30)
		c.reopen(1)
		if id := c.server(1).node.ID(); id != 1 {
			t.Errorf("server 1 came back as %d", id)
		}
		c.whole(2)
		c.strike(5)
		c.wait("both have the same state", c.same)
		c.nothingLost(c.server(1).node)
		if c.server(1).node.gated() {
			t.Error("server 1 leads behind a closed gate")
		}
		if archived, _ := filepath.Glob(filepath.Join(c.server(1).dir, archiveFolder, "*", logFile)); len(archived) != 1 {
			t.Errorf("archived logs: %v", archived)
		}

		// And once more, the other way round, after a restart of both.
		c.server(2).kill()
		c.server(1).kill()
		c.reopen(1)
		c.reopen(2)
		c.whole(2)
		c.server(1).kill() // the leader first: it would go on without server 2
		c.server(2).kill()
		c.reopen(2) // a restart, which remembers no leader
		c.orphaned(2)
		c.reopen(2)
		c.strike(1)
		c.nothingLost(c.server(2).node)
	})
}

// TestBestLogIsTakenNotTheSurvivorsOwn: two of three acknowledged what the third never got, and then died.
func TestBestLogIsTakenNotTheSurvivorsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 3)
		c.strike(20)
		c.server(3).kill()
		c.strike(50)
		c.server(2).kill()
		c.server(1).kill()
		own, err := readHistory(c.server(3).dir)
		if err != nil {
			t.Fatal(err)
		}
		if miners := len(own.state.Miners()); miners >= len(c.acked) {
			t.Fatalf("the survivor's own log has all %d acknowledged commands", miners)
		}
		c.reopen(3)
		c.orphaned(3)
		c.reopen(3)
		c.strike(10)
		c.nothingLost(c.server(3).node)
		c.reopen(1)
		c.reopen(2)
		c.whole(3)
		c.wait("all have the same state", c.same)
		for _, s := range c.servers {
			c.nothingLost(s.node)
		}
	})
}

// TestServerThatTheBestLogRemovedGoesOnAlone: it was away for longer than the grace period, and knows nothing of its removal.
func TestServerThatTheBestLogRemovedGoesOnAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 3, func(config *Config) { config.Grace = 5 * time.Second })
		c.strike(20)
		c.server(3).kill()
		c.wait("server 3 is removed", func() bool { return slices.Equal(voters(c.leader()), []uint64{1, 2}) })
		c.strike(5)
		c.server(2).kill()
		c.server(1).kill()
		c.reopen(3)
		c.orphaned(3)
		c.reopen(3)
		c.strike(5)
		c.nothingLost(c.server(3).node)
		c.reopen(1)
		c.reopen(2)
		c.whole(3)
		c.wait("all have the same state", c.same)
	})
}

// TestBestLogBehindASnapshotIsTaken: the survivor lags so far that the best log no longer has what it lacks.
func TestBestLogBehindASnapshotIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 3, func(config *Config) {
			config.SnapshotInterval, config.SnapshotThreshold, config.TrailingLogs = 50*time.Millisecond, 20, 5
		})
		c.strike(20)
		c.server(3).kill()
		c.strike(60)
		time.Sleep(time.Second) // a snapshot is taken
		c.strike(10)
		c.server(2).kill()
		c.server(1).kill()
		own, err := readHistory(c.server(3).dir)
		if err != nil {
			t.Fatal(err)
		}
		best, err := readHistory(c.server(1).dir)
		if err != nil || best.snapshot == nil || best.first <= own.last {
			t.Fatalf("the best log still has what the survivor lacks: %+v, %v", best, err)
		}
		c.reopen(3)
		c.orphaned(3)
		c.reopen(3)
		c.strike(10)
		c.nothingLost(c.server(3).node)
		c.reopen(1)
		c.reopen(2)
		c.whole(3)
		c.wait("all have the same state", c.same)
		c.histories()
		c.wantHistories()
		c.server(2).kill()
		c.server(1).kill()
		c.orphaned(3)
		c.reopen(3)
		c.strike(1)
		c.nothingLost(c.server(3).node)
	})
}

// TestRecoveryHoldsTheLocksOfTheDeadUntilItIsDecided: a server that could start again meanwhile would not be fenced off.
func TestRecoveryHoldsTheLocksOfTheDeadUntilItIsDecided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 3)
		c.strike(5)
		c.server(1).kill()
		c.server(2).kill()
		c.orphaned(3)
		old := recoveryStep
		defer func() { recoveryStep = old }()
		var locked []string
		recoveryStep = func(step string) {
			for id := uint64(1); id <= 2; id++ {
				held, _, err := registry.LockHolder(filepath.Join(c.server(id).dir, lockFileName))
				if err != nil {
					t.Error(err)
				}
				if held {
					locked = append(locked, fmt.Sprint(step, " ", id))
				}
			}
		}
		c.reopen(3)
		if want := "[locked 1 locked 2 staged 1 staged 2 journal 1 journal 2 fenced 1 1 fenced 1 2 fenced 2 1 fenced 2 2 decided 1 decided 2]"; fmt.Sprint(locked) != want {
			t.Errorf("locked at %v, want %s", locked, want)
		}
	})
}

// TestRecoveryBeginsATermThatNobodyHasSeen: a dead server may have voted in a term later than any entry.
func TestRecoveryBeginsATermThatNobodyHasSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(5)
		c.server(1).kill()
		const seen = 1000
		stores, err := openUnsynced(c.server(1).dir, false, discard())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(stores.Stable.SetUint64(keyCurrentTerm, seen), stores.Close()); err != nil {
			t.Fatal(err)
		}
		c.orphaned(2)
		c.reopen(2)
		c.strike(1)
		if term := c.leader().Status().Term; term <= seen {
			t.Errorf("it leads in term %d, and server 1 voted in term %d", term, seen)
		}
	})
}

// TestSurvivorKilledAfterEachStep starts the old servers without the survivor: as long as nothing was decided they go on
// as ever, and afterwards they never lead without it.
func TestSurvivorKilledAfterEachStep(t *testing.T) {
	for _, row := range []struct {
		step    string
		decided bool
	}{
		{"locked", false},
		{"staged", false},
		{"journal", false},
		{"fenced 1", false},
		{"fenced 2", false},
		{"decided", true},
		{"archived " + snapshotFolder, true},
		{"placed " + snapshotFolder, true},
		{"archived " + logFile, true},
		{"placed " + logFile, true},
		{"installed", true},
	} {
		t.Run(row.step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newDiskCluster(t, 3)
				c.server(3).kill()
				c.strike(20)
				c.server(2).kill()
				c.server(1).kill()
				c.reopen(3)
				c.orphaned(3)
				c.reopenKilledAt(3, row.step)

				c.reopen(1)
				c.reopen(2)
				if row.decided {
					before := len(c.server(1).terms()) + len(c.server(2).terms())
					time.Sleep(30 * time.Second)
					if after := len(c.server(1).terms()) + len(c.server(2).terms()); after != before || c.leader() != nil {
						t.Fatalf("servers 1 and 2 led %d terms without the survivor", after-before)
					}
				} else {
					c.strike(20)
					c.nothingLost(c.leader())
				}
				c.reopen(3)
				c.strike(10)
				c.nothingLost(c.leader())
				c.whole(3)
				c.wait("all have the same state", c.same)
				c.histories()
				c.wantHistories()
				for _, s := range c.servers {
					c.nothingLost(s.node)
				}
			})
		})
	}
}

// TestSurvivorKilledAfterEachStepGoesOnAlone: nobody but the survivor comes back, and it ends what it began at once.
func TestSurvivorKilledAfterEachStepGoesOnAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(20)
		c.server(1).kill()
		c.orphaned(2)
		for _, step := range []string{"locked", "staged", "fenced 1", "fenced 1", "decided", "archived " + logFile, "placed " + logFile} {
			c.reopenKilledAt(2, step)
		}
		began := time.Now()
		c.reopen(2)
		c.strike(1)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the recovery was ended only after %v", took)
		}
		c.nothingLost(c.server(2).node)
		c.reopen(1)
		c.whole(2)
		c.nothingLost(c.server(1).node)
	})
}

// TestRetryTakesWhatTheOthersDidMeanwhile: what was staged before the survivor was killed is old, and must not be used.
func TestRetryTakesWhatTheOthersDidMeanwhile(t *testing.T) {
	for _, step := range []string{"staged", "fenced 2"} {
		t.Run(step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newDiskCluster(t, 3)
				c.strike(20)
				c.server(2).kill()
				c.server(1).kill()
				c.orphaned(3)
				c.reopenKilledAt(3, step)
				c.reopen(1)
				c.reopen(2)
				c.strike(30)
				c.server(2).kill()
				c.server(1).kill()
				c.reopen(3)
				if c.leader() == nil { // the intent was discarded by those who found the fence
					c.wait("server 3 leads or goes on", func() bool { return c.leads(3) || len(c.server(3).ran) > 0 })
					if !c.leads(3) {
						c.orphaned(3)
						c.reopen(3)
					}
				}
				c.strike(5)
				c.nothingLost(c.server(3).node)
			})
		})
	}
}

// TestFencedServerKilledAfterEachStep: it archives its log once, and never uses it again.
func TestFencedServerKilledAfterEachStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(20)
		c.server(1).kill()
		c.orphaned(2)
		c.reopen(2)
		c.strike(20)
		for _, step := range []string{"fenced log archived: " + snapshotFolder, "fenced log archived: " + logFile, "new log begun",
			"new log begun", "fence passed"} {
			c.reopenKilledAt(1, step)
		}
		c.reopen(1)
		c.whole(2)
		c.wait("both have the same state", c.same)
		c.nothingLost(c.server(1).node)
		archived, _ := filepath.Glob(filepath.Join(c.server(1).dir, archiveFolder, "*"))
		if len(archived) != 1 {
			t.Fatalf("archives: %v", archived)
		}
		old, err := readHistory(archived[0])
		if err != nil || len(old.state.Miners()) != 20 {
			t.Errorf("the archived log is %+v, %v", old, err)
		}
	})
}
