package raftnode

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
)

// compacting makes servers take snapshots often and keep little of the log behind them.
func compacting(config *Config) {
	config.SnapshotInterval, config.SnapshotThreshold, config.TrailingLogs = 50*time.Millisecond, 20, 5
}

// compacted makes a cluster of three whose servers are all dead. Server 3 lacks entries that no log has any more.
func compacted(t *testing.T) *diskCluster {
	t.Helper()
	c := newDiskCluster(t, 3, compacting)
	c.strike(20)
	c.wait("server 3 has all that", c.same)
	c.server(3).kill()
	c.strike(60)
	c.wait("the log no longer has what server 3 lacks", func() bool {
		first, err := c.server(1).node.stores.Log.FirstIndex()
		return err == nil && first > 40
	})
	c.strike(10)
	c.server(2).kill()
	c.server(1).kill()
	return c
}

// TestSurvivorHasTheHistoryThatNoLogHasAnyMore: the records that it lacks are in the dead servers' journals alone, and their
// directories may be gone the moment after.
func TestSurvivorHasTheHistoryThatNoLogHasAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := compacted(t)
		// Server 1, whose log is taken, has a gap itself: what it lacks comes from server 2.
		if err := os.RemoveAll(filepath.Join(c.server(1).dir, journalFolder)); err != nil {
			t.Fatal(err)
		}
		c.reopen(3)
		c.orphaned(3)
		c.reopen(3)
		for id := range uint64(2) {
			if err := os.RemoveAll(c.server(id + 1).dir); err != nil {
				t.Fatal(err)
			}
		}
		c.strike(10)
		c.nothingLost(c.server(3).node)
		c.wantHistories()
	})
}

// TestSurvivorKilledWithTheOthersHistoryInItsJournal: its journal is ahead of its log, then, and the others go on without it.
func TestSurvivorKilledWithTheOthersHistoryInItsJournal(t *testing.T) {
	for _, step := range []string{"journal", "fenced 2", "decided"} {
		t.Run(step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := compacted(t)
				c.reopen(3)
				c.orphaned(3)
				c.reopenKilledAt(3, step)
				c.reopen(1)
				c.reopen(2)
				if step != "decided" {
					c.strike(50)
				}
				c.reopen(3)
				c.strike(10)
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

// TestSurvivorGoesOnWithAGapThatNobodyCanFill: the state is whole, and the history is as long as a journal is that has it.
func TestSurvivorGoesOnWithAGapThatNobodyCanFill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := compacted(t)
		away := c.server(1).dir + ".journal"
		if err := errors.Join(os.Rename(filepath.Join(c.server(1).dir, journalFolder), away),
			os.RemoveAll(filepath.Join(c.server(2).dir, journalFolder))); err != nil {
			t.Fatal(err)
		}
		c.reopen(3)
		c.orphaned(3)
		c.reopen(3)
		c.strike(10)
		c.nothingLost(c.server(3).node)
		if c.server(3).node.Status().HistoryMissing == 0 {
			t.Error("no gap is told of")
		}
		if err := os.Rename(away, filepath.Join(c.server(1).dir, journalFolder)); err != nil {
			t.Fatal(err)
		}
		c.reopen(1)
		c.reopen(2)
		c.whole(3)
		c.wait("all have the same state", c.same)
		c.histories()
		c.wantHistories()
	})
}

// rewrite gives a server that does not run a journal of another history, of so many records, from the record that differs on.
func rewriteJournal(t *testing.T, dir, clusterID string, differs, records uint64) {
	t.Helper()
	reader, err := ReadJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	var old []JournalRecord
	for record, err := range reader.Records() {
		if err != nil {
			t.Fatal(err)
		}
		record.Data = slices.Clone(record.Data)
		old = append(old, record)
	}
	if err := os.RemoveAll(filepath.Join(dir, journalFolder)); err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(journalConfig{dataDir: dir, clusterID: clusterID, segmentBytes: DefaultJournalSegment, logger: discard()})
	if err != nil {
		t.Fatal(err)
	}
	var head fsm.Head
	for _, record := range old[:records] {
		data := record.Data
		if head.Records+1 >= differs {
			data = []byte("another entry")
		}
		head = head.Next(record.Index, record.Term, data)
		if err := j.append(head, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
}

// TestRecoveryIsRefusedWhenAJournalHasWhatNoLogHas: what was applied was committed, so these logs were put back to an old state.
func TestRecoveryIsRefusedWhenAJournalHasWhatNoLogHas(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(t *testing.T, c *diskCluster)
		says  string
		start error // of the server itself
	}{
		{"logs from a backup", func(t *testing.T, c *diskCluster) {
			for _, s := range c.servers {
				log := filepath.Join(s.dir, logFile)
				if err := os.Rename(log+".backup", log); err != nil {
					t.Fatal(err)
				}
			}
		}, "has entry", ErrLogBehind},
		{"another history", func(t *testing.T, c *diskCluster) {
			rewriteJournal(t, c.server(1).dir, c.clusterID(), 20, 25)
		}, "not on the chain", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newDiskCluster(t, 2)
				c.strike(10)
				c.server(1).kill() // first: it would remove the other from the voters
				c.server(2).kill()
				for _, s := range c.servers {
					content, err := os.ReadFile(filepath.Join(s.dir, logFile))
					if err == nil {
						err = os.WriteFile(filepath.Join(s.dir, logFile+".backup"), content, 0o600)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				c.reopen(1)
				c.reopen(2)
				c.whole(2)
				c.strike(20)
				c.wait("server 1 leads", func() bool { return c.leader() == c.server(1).node })
				c.server(1).kill()
				c.orphaned(2)
				row.spoil(t, c)
				before := snapshotOf(t, c.server(1).dir)
				if err := c.open(2); !errors.Is(err, row.start) {
					t.Errorf("start: %v", err)
				}
				said := c.disks[1].logs.String()
				if !strings.Contains(said, "recovery discarded") || !strings.Contains(said, "the journal of server") || !strings.Contains(said, row.says) {
					t.Errorf("the server says %q", said)
				}
				after := snapshotOf(t, c.server(1).dir)
				for path, content := range before {
					if filepath.Base(path) != lockFileName && after[path] != content {
						t.Errorf("%s was changed", path)
					}
				}
			})
		})
	}
}

func (c *diskCluster) clusterID() string {
	identity, err := readIdentity(c.servers[0].dir)
	if err != nil {
		c.t.Fatal(err)
	}
	return identity.ClusterID
}

// TestSurvivorWhoseJournalIsOfAnotherHistoryDoesNotGoOn: its chain does not lead to the log that it would take.
func TestSurvivorWhoseJournalIsOfAnotherHistoryDoesNotGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := compacted(t)
		c.reopen(3)
		c.orphaned(3)
		rewriteJournal(t, c.server(3).dir, c.clusterID(), 5, 15)
		_ = c.open(3) // it may start: its own log shows it when it is applied
		if said := c.disks[2].logs.String(); !strings.Contains(said, "complete the journal") || !strings.Contains(said, ErrJournalMismatch.Error()) {
			t.Errorf("said %q", said)
		}
		record, err := readRecovery(c.server(3).dir)
		if err != nil || len(record.Done) != 0 {
			t.Errorf("record %+v, %v", record, err)
		}
	})
}

// TestFencedServerWithAJournalOfAnotherHistoryDoesNotStart: it may be what was acknowledged and is lost, so nothing is moved.
func TestFencedServerWithAJournalOfAnotherHistoryDoesNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(30)
		c.server(1).kill()
		c.orphaned(2)
		c.reopen(2)
		c.strike(5)
		kept := filepath.Join(c.server(1).dir, journalFolder)
		if err := os.CopyFS(kept+".good", os.DirFS(kept)); err != nil {
			t.Fatal(err)
		}
		rewriteJournal(t, c.server(1).dir, c.clusterID(), 20, 25)
		before := snapshotOf(t, c.server(1).dir)
		err := c.open(1)
		if err == nil || !strings.Contains(err.Error(), kept+" is no beginning of what server 2 went on with") ||
			!strings.Contains(err.Error(), "record 25") || strings.Contains(err.Error(), "\n") {
			t.Errorf("another history: %v", err)
		}
		if after := snapshotOf(t, c.server(1).dir); !maps.Equal(after, before) {
			t.Error("something was changed")
		}
		if err := errors.Join(os.RemoveAll(kept), os.Rename(kept+".good", kept)); err != nil {
			t.Fatal(err)
		}
		c.reopen(1)
		c.whole(2)
		c.wait("both have the same state", c.same)
		c.wantHistories()
	})
}
