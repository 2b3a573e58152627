package raftnode

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// keepLog copies the log of a server that does not run.
func keepLog(t *testing.T, s *testServer) (content []byte) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(s.dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func putLog(t *testing.T, s *testServer, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, logFile), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// changeStores opens the stores of a server that does not run.
func changeStores(t *testing.T, s *testServer, change func(*Stores) error) {
	t.Helper()
	stores, err := openUnsynced(s.dir, false, discard())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(change(stores), stores.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestVoterThatLostWhatItAcknowledgedDoesNotVote: it made up the majority of entries that the other voter never got. With its
// vote that one would lead, and overwrite them at the third.
func TestVoterThatLostWhatItAcknowledgedDoesNotVote(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(t *testing.T, s *testServer, old []byte)
		want  error
	}{
		{"new log", func(t *testing.T, s *testServer, _ []byte) {
			if err := os.Remove(filepath.Join(s.dir, logFile)); err != nil {
				t.Fatal(err)
			}
			changeStores(t, s, func(*Stores) error { return nil })
		}, ErrLogMissing},
		{"older log", func(t *testing.T, s *testServer, old []byte) { putLog(t, s, old) }, ErrLogBehind},
		{"older log, of the newest term", func(t *testing.T, s *testServer, old []byte) {
			putLog(t, s, old)
			changeStores(t, s, func(stores *Stores) error { return stores.Stable.SetUint64(keyCurrentTerm, 1000) })
		}, ErrLogBehind},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newDiskCluster(t, 3, func(config *Config) { config.Grace = 24 * time.Hour })
				c.strike(10)
				c.server(3).kill()
				old := keepLog(t, c.server(3))
				c.reopen(3)
				c.whole(3)
				c.server(2).kill()
				c.strike(20)
				c.wait("server 3 applied it", c.same)
				c.server(1).kill()
				c.server(3).kill()

				row.spoil(t, c.server(3), old)
				c.reopen(2)
				path := filepath.Join(c.server(3).dir, logFile)
				err := c.open(3)
				if !errors.Is(err, row.want) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), joinAnew) ||
					strings.Contains(err.Error(), "\n") {
					t.Fatalf("start: %v", err)
				}
				c.reopen(1)
				c.strike(5)
				c.wait("both have the same state", c.same)
				for id := range uint64(2) {
					c.nothingLost(c.server(id + 1).node)
				}
			})
		})
	}
}

// TestVotesBelongToTheNewestTermOfTheServer: a server whose term fell back may vote twice in one.
func TestVotesBelongToTheNewestTermOfTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 1)
		c.strike(5)
		c.server(1).kill()
		changeStores(t, c.server(1), func(stores *Stores) error { return stores.Stable.SetUint64(keyCurrentTerm, 1) })
		if err := c.open(1); !errors.Is(err, ErrLogBehind) || !strings.Contains(err.Error(), "it is in term 1") {
			t.Errorf("start: %v", err)
		}
	})
}

// TestServerThatBeganAgainAndFollowedNeedsItsLog: behind a fence an empty log is right, but only until entries followed it.
func TestServerThatBeganAgainAndFollowedNeedsItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(20)
		c.server(1).kill()
		c.orphaned(2)
		c.reopen(2)
		c.reopenKilledAt(1, "fence passed")
		empty := keepLog(t, c.server(1))
		c.reopen(1) // its log ends before its journal
		c.whole(2)
		c.strike(20)
		c.wait("both have the same state", c.same)
		c.server(1).kill()
		putLog(t, c.server(1), empty)
		if err := c.open(1); !errors.Is(err, ErrLogBehind) {
			t.Errorf("start: %v", err)
		}
	})
}

// TestNewServerThatNeverMetTheLeaderStartsAgain: its log is empty, and has to be.
func TestNewServerThatNeverMetTheLeaderStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 1)
		dir, err := OpenDataDir(filepath.Join(t.TempDir(), "new"))
		if err != nil {
			t.Fatal(err)
		}
		n := &Node{config: Config{DataDir: dir, OpenStores: openUnsynced}.withDefaults()}
		if err := n.openStores(true, nil); err != nil {
			t.Fatal(err)
		}
		row := Identity{ClusterID: c.leader().ClusterID(), ServerID: 2}
		if err := errors.Join(n.stores.Close(), dir.SetIdentity(row), dir.Close()); err != nil { // and it is killed
			t.Fatal(err)
		}
		s := newTestServer(t, c.net, dir.Path())
		s.adjust = func(config *Config) { config.OpenStores = openUnsynced }
		if err := s.open(c.leader().Address()); err != nil {
			t.Fatal(err)
		}
		s.kill()
	})
}

func TestStoresAreComparedWithWhatWasApplied(t *testing.T) {
	applied := fsm.Head{Records: 9, Index: 10, Term: 3}
	for _, row := range []struct {
		name        string
		term        uint64 // stored
		first, last uint64 // of the log; 0: it is empty
		lastTerm    uint64
		snapshot    uint64 // 0: none
		rejoin      *fence
		want        error
	}{
		{name: "the log ends there", term: 3, first: 1, last: 10, lastTerm: 3},
		{name: "the log goes beyond", term: 4, first: 1, last: 20, lastTerm: 3},
		{name: "the log ends before", term: 3, first: 1, last: 9, lastTerm: 3, want: ErrLogBehind},
		{name: "the log is empty", term: 3, want: ErrLogBehind},
		{name: "another term there", term: 4, first: 1, last: 10, lastTerm: 4, want: ErrLogBehind},
		{name: "an older term there", term: 4, first: 1, last: 10, lastTerm: 2, want: ErrLogBehind},
		{name: "a term of before", term: 2, first: 1, last: 10, lastTerm: 2, want: ErrLogBehind},
		{name: "a hole there", term: 3, first: 11, last: 12, lastTerm: 3, want: ErrLogDamaged},
		{name: "a snapshot took its place", term: 3, first: 11, last: 12, lastTerm: 3, snapshot: 10},
		{name: "a snapshot was installed", term: 3, first: 1, last: 5, lastTerm: 2, snapshot: 10},
		{name: "a snapshot, and all was compacted", term: 3, snapshot: 12},
		{name: "a snapshot of before", term: 3, first: 1, last: 9, lastTerm: 3, snapshot: 8, want: ErrLogBehind},
		{name: "it begins anew", term: 5, rejoin: &fence{recoveryFacts: recoveryFacts{NewTerm: 5}}},
		{name: "it begins anew, in a term of before", term: 4, rejoin: &fence{recoveryFacts: recoveryFacts{NewTerm: 5}}, want: ErrLogBehind},
		{name: "it began anew long ago", term: 3, rejoin: &fence{recoveryFacts: recoveryFacts{NewTerm: 3}}, want: ErrLogBehind},
	} {
		t.Run(row.name, func(t *testing.T) {
			log, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
			stores := &Stores{Log: log, Stable: log, Snapshots: snapshots}
			err := log.SetUint64(keyCurrentTerm, row.term)
			for index := row.first; index <= row.last && index > 0; index++ {
				err = errors.Join(err, log.StoreLog(&raft.Log{Index: index, Term: row.lastTerm}))
			}
			if row.snapshot > 0 {
				_, encoder := raft.NewInmemTransport("")
				sink, createErr := snapshots.Create(1, row.snapshot, 3, raft.Configuration{}, 1, encoder)
				err = errors.Join(err, createErr, sink.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := checkStores("raft.db", stores, applied, row.rejoin); !errors.Is(err, row.want) || (err != nil) != (row.want != nil) {
				t.Errorf("%v, want %v", err, row.want)
			}
		})
	}
}

// TestServerUnderAnotherServersIDStops: its seal may fit, and yet it would vote a second time.
func TestServerUnderAnotherServersIDStops(t *testing.T) {
	for name, row := range map[string]struct {
		compacted bool // the table is in a snapshot
		change    func(*identityFile)
	}{
		"the id of another":                 {false, func(i *identityFile) { i.ServerID = 2 }},
		"the id of nobody":                  {false, func(i *identityFile) { i.ServerID = 7 }},
		"another request id":                {false, func(i *identityFile) { i.RequestID[0] ^= 1 }},
		"the id of another, and a snapshot": {true, func(i *identityFile) { i.ServerID = 2 }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newDiskCluster(t, 3, func(config *Config) {
					config.SurviveAlone = false
					if row.compacted {
						compacting(config)
					}
				})
				c.strike(50)
				if row.compacted {
					c.wait("server 3 has a snapshot", func() bool {
						snapshots, err := c.server(3).node.stores.Snapshots.List()
						return err == nil && len(snapshots) > 0
					})
				}
				c.server(3).kill()
				changeIdentity(t, c.server(3).dir, row.change)
				err := c.open(3)
				if !errors.Is(err, ErrDamagedDataDir) || !strings.Contains(err.Error(), identityFileName) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v", err)
				}
			})
		})
	}
}

// countedLog counts the entries that are read.
type countedLog struct {
	raft.LogStore
	read int
}

func (l *countedLog) GetLog(index uint64, entry *raft.Log) error {
	l.read++
	return l.LogStore.GetLog(index, entry)
}

// TestLongLogIsReadAsFarAsItHasItsServer: Raft reads it all once more, and a start must not take twice as long.
func TestLongLogIsReadAsFarAsItHasItsServer(t *testing.T) {
	const row, entries = 3, 5000
	stored := raft.NewInmemStore()
	log := &countedLog{LogStore: stored}
	for index := uint64(1); index <= entries; index++ {
		command := fsm.Command(fsm.ServerUp{ServerID: 1})
		if index <= row {
			command = fsm.AddServer{RequestID: fsm.ID{byte(index)}, Address: "127.0.0.1:9", DataDir: "/d"}
		}
		data, err := fsm.EncodeEntry(fsm.Entry{LeaderID: 1, UnixMilli: 1, Version: "test", Commands: []fsm.Command{command}})
		if err == nil {
			err = stored.StoreLog(&raft.Log{Index: index, Term: 1, Data: data})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	n := &Node{id: row, requestID: fsm.ID{row}, stores: &Stores{Log: log, Stable: stored, Snapshots: raft.NewInmemSnapshotStore()}}
	if err := n.checkTable("raft.db"); err != nil {
		t.Error(err)
	}
	if log.read != row {
		t.Errorf("%d entries were read, want %d", log.read, row)
	}
}

// TestExchangedIdentitiesAreFound: both are in the server table, so only the logs can tell that they are the other's.
func TestExchangedIdentitiesAreFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(5)
		c.server(2).kill()
		c.server(1).kill()
		one, two := filepath.Join(c.server(1).dir, identityFileName), filepath.Join(c.server(2).dir, identityFileName)
		exchange := func() {
			if err := errors.Join(os.Rename(one, one+".x"), os.Rename(two, one), os.Rename(one+".x", two)); err != nil {
				t.Fatal(err)
			}
		}
		exchange()
		for _, id := range []uint64{1, 2} {
			err := c.open(id)
			if !errors.Is(err, ErrDamagedDataDir) || !strings.Contains(err.Error(), filepath.Join(c.server(id).dir, logFile)) || strings.Contains(err.Error(), "\n") {
				t.Errorf("server %d: %v", id, err)
			}
		}
		exchange()
		c.reopen(1)
		c.reopen(2)
		c.whole(2)
		// Also the log that a recovery made is its server's own.
		c.server(1).kill()
		c.orphaned(2)
		c.reopen(2)
		c.reopen(1)
		c.whole(2)
		c.nothingLost(c.leader())
	})
}
