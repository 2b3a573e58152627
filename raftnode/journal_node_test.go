package raftnode

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// historyOf replays a server's journal, and returns the head and the digest of what it makes.
func historyOf(t *testing.T, dir string) (head fsm.Head, digest string) {
	t.Helper()
	reader, err := ReadJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	state := fsm.New()
	for record, err := range reader.Records() {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := state.Apply(record.Index, record.Term, record.Data); err != nil {
			t.Fatal(err)
		}
		if state.Head().Hash != record.Chain {
			t.Fatalf("the state is at %s after index %d, the journal at %x", state.Head().Hash, record.Index, record.Chain)
		}
	}
	return state.Head(), fmt.Sprint(state.Digest())
}

// wantHistories holds that each server's journal replays to its own state, and is whole.
func (c *testCluster) wantHistories() {
	c.t.Helper()
	synctest.Wait() // an entry is in the state before it is in the journal
	for i, s := range c.servers {
		if s.node == nil {
			continue
		}
		var live fsm.Head
		var liveDigest string
		s.node.View(func(v fsm.View) { live, liveDigest = v.Head(), fmt.Sprint(v.Digest()) })
		if missing := s.node.Status().HistoryMissing; missing != 0 {
			c.t.Errorf("server %d lacks %d records", i+1, missing)
		}
		if head, digest := historyOf(c.t, s.dir); head != live || digest != liveDigest {
			c.t.Errorf("server %d: the journal replays to %+v, the state is at %+v", i+1, head, live)
		}
	}
}

func (c *testCluster) strikes(from, to int) {
	c.t.Helper()
	for i := from; i < to; i++ {
		c.wait("a leader takes it", func() bool {
			leader := c.leader()
			if leader == nil {
				return false
			}
			_, err := leader.Propose(c.t.Context(), strike(i))
			return err == nil
		})
	}
}

// stopped waits until a server's replica has stopped, and returns why.
func (c *testCluster) stopped(s *testServer) error {
	c.t.Helper()
	c.wait("the replica stops", func() bool {
		select {
		case <-s.node.replica.failed:
			return true
		default:
			return false
		}
	})
	err := <-s.ran
	s.ran <- err
	return err
}

// restart kills all servers and starts them again.
func (c *testCluster) restart() {
	c.close()
	for i, s := range c.servers {
		if i == 0 {
			s.start()
		} else {
			s.start(c.servers[0].node.Address())
		}
	}
}

func smallLog(config *Config) {
	config.TrailingLogs = 5
	config.JournalSegment = smallestJournalSegment
}

// lagging makes a cluster whose third server needs a snapshot when it comes back.
func lagging(t *testing.T) *testCluster {
	c := newTestCluster(t, 3, smallLog)
	c.wait("all are up", func() bool { return c.up(1, 2, 3) })
	c.servers[2].kill()
	c.strikes(0, 60)
	for _, s := range c.servers[:2] {
		if err := s.node.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	c.strikes(60, 80)
	return c
}

func TestEveryServersJournalReplaysToItsState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, smallLog)
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		c.strikes(0, 50)
		c.wait("all have the same state", c.same)
		c.wantHistories()
		before := journalFiles(t, c.servers[1].dir)
		c.restart()
		c.wait("they are back", func() bool { return c.leader() != nil && c.same() && c.up(1, 2, 3) })
		c.wantHistories()
		for name, content := range journalFiles(t, c.servers[1].dir) {
			if name != syncedFileName && name != writtenFileName && !strings.HasPrefix(content, before[name]) {
				t.Errorf("%s was written again", name)
			}
		}
	})
}

func TestServerRestoredFromASnapshotFetchesItsHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := lagging(t)
		c.servers[2].start(c.servers[0].node.Address())
		c.wait("the history is whole", func() bool { return c.same() && c.servers[2].node.Status().HistoryMissing == 0 })
		if names := segments(t, c.servers[2].dir); len(names) < 3 {
			t.Errorf("the history is in %v", names)
		}
		c.wantHistories()
		c.restart()
		c.wait("they are back", func() bool { return c.leader() != nil && c.same() })
		c.wantHistories()
	})
}

// falsePeers answers history for one address with lies.
type falsePeers struct {
	*testNet
	mu    sync.Mutex
	lies  map[string]func(JournalRecord) (JournalRecord, error)
	asked map[string][]uint64 // after which index
}

// lieAt makes servers 1 and 2 lie to server 3.
func (c *testCluster) lieAt(first, second func(JournalRecord) (JournalRecord, error)) *falsePeers {
	peers := &falsePeers{testNet: c.net, asked: make(map[string][]uint64), lies: map[string]func(JournalRecord) (JournalRecord, error){
		c.servers[0].node.Address(): first, c.servers[1].node.Address(): second}}
	c.servers[2].peers = peers
	return peers
}

// askedOf returns after which indexes a server was asked for history.
func (p *falsePeers) askedOf(address string) []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked[address])
}

func (p *falsePeers) History(ctx context.Context, address string, request HistoryRequest) iter.Seq2[JournalRecord, error] {
	p.mu.Lock()
	lie := p.lies[address]
	p.asked[address] = append(p.asked[address], request.AfterIndex)
	p.mu.Unlock()
	return func(yield func(JournalRecord, error) bool) {
		for record, err := range p.testNet.History(ctx, address, request) {
			if lie != nil && err == nil {
				record, err = lie(record)
			}
			if !yield(record, err) || err != nil {
				return
			}
		}
	}
}

func TestHistoryIsFetchedFromWhoeverHasItAndVerified(t *testing.T) {
	for name, lie := range map[string]func(JournalRecord) (JournalRecord, error){
		"false data": func(r JournalRecord) (JournalRecord, error) {
			if r.Index > 40 {
				r.Data = append([]byte(nil), r.Data...)
				r.Data[len(r.Data)-1]++
			}
			return r, nil
		},
		"breaks off": func(r JournalRecord) (JournalRecord, error) {
			if r.Index > 40 {
				return JournalRecord{}, syscall.ECONNRESET
			}
			return r, nil
		},
		"has none": func(JournalRecord) (JournalRecord, error) { return JournalRecord{}, &HistoryGapError{Until: 100} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := lagging(t)
				peers := c.lieAt(lie, lie)
				first, second := c.servers[0].node.Address(), c.servers[1].node.Address()
				c.servers[2].start(first)
				c.wait("all have the same state", c.same)
				c.wait("both were asked in vain", func() bool { return len(peers.askedOf(first)) >= 1 && len(peers.askedOf(second)) >= 1 })
				if c.servers[2].node.Status().HistoryMissing == 0 {
					t.Error("the gap was filled with lies")
				}
				c.strikes(80, 83) // it serves and keeps its history meanwhile
				peers.mu.Lock()
				delete(peers.lies, second)
				peers.mu.Unlock()
				c.wait("the history is whole", func() bool { return c.same() && c.servers[2].node.Status().HistoryMissing == 0 })
				c.wantHistories()
			})
		})
	}
}

// TestHistoryThatBreaksOffIsGoneOnWith: what came is not asked for again, of nobody and in no later attempt.
func TestHistoryThatBreaksOffIsGoneOnWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := lagging(t)
		from, _ := historyOf(t, c.servers[2].dir)
		left := 0
		fewRecords := func(r JournalRecord) (JournalRecord, error) {
			if left++; left%8 == 0 {
				return JournalRecord{}, syscall.ECONNRESET
			}
			return r, nil
		}
		peers := c.lieAt(fewRecords, fewRecords)
		first, second := c.servers[0].node.Address(), c.servers[1].node.Address()
		c.servers[2].start(first)
		c.wait("the history is whole", func() bool { return c.same() && c.servers[2].node.Status().HistoryMissing == 0 })
		c.wantHistories()
		all := append(peers.askedOf(first), peers.askedOf(second)...)
		slices.Sort(all)
		if len(all) < 5 || all[0] != from.Index || len(slices.Compact(slices.Clone(all))) != len(all) {
			t.Errorf("servers were asked for what follows the indexes %d, each time for what was still missing after index %d?", all, from.Index)
		}
	})
}

// TestFalseBeginningKeepsNoHonestHistoryOut: a server whose records have a chain of their own breaks off before that shows.
func TestFalseBeginningKeepsNoHonestHistoryOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := lagging(t)
		from, _ := historyOf(t, c.servers[2].dir)
		head := from
		peers := c.lieAt(func(r JournalRecord) (JournalRecord, error) {
			if r.Index <= head.Index { // asked once more
				head = from
			}
			if head.Records >= from.Records+8 {
				return JournalRecord{}, syscall.ECONNRESET
			}
			r.Data = []byte("another")
			head = head.Next(r.Index, r.Term, r.Data)
			r.Chain = head.Hash
			return r, nil
		}, nil)
		second := c.servers[1].node.Address()
		c.servers[2].start(c.servers[0].node.Address())
		c.wait("the history is whole", func() bool { return c.same() && c.servers[2].node.Status().HistoryMissing == 0 })
		c.wantHistories()
		if asked := peers.askedOf(second); len(asked) != 2 || asked[0] <= from.Index || asked[1] != from.Index {
			t.Errorf("the honest server was asked for what follows the indexes %d, the gap begins after %d", asked, from.Index)
		}
	})
}

func TestDirectoryFromBeforeTheJournalGetsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, smallLog)
		c.wait("all are up", func() bool { return c.up(1, 2, 3) })
		forget := func(s *testServer) {
			if err := os.RemoveAll(filepath.Join(s.dir, journalFolder)); err != nil {
				t.Fatal(err)
			}
		}
		// The whole log is there: the journal is made of it.
		c.strikes(0, 20)
		c.close()
		for _, s := range c.servers {
			forget(s)
		}
		c.restart()
		c.wait("they are back", func() bool { return c.leader() != nil && c.same() })
		c.wantHistories()
		// The log was compacted: one that has the history gives it to the others.
		c.strikes(20, 60)
		c.wait("all have the same state", c.same)
		for _, s := range c.servers {
			if err := s.node.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		c.close()
		forget(c.servers[0])
		forget(c.servers[2])
		c.restart()
		c.wait("they are back and whole", func() bool {
			return c.leader() != nil && c.same() && c.servers[0].node.Status().HistoryMissing == 0 &&
				c.servers[2].node.Status().HistoryMissing == 0
		})
		c.wantHistories()
		// Nobody has it: the cluster works, and says what is missing.
		c.close()
		for _, s := range c.servers {
			forget(s)
		}
		c.restart()
		c.strikes(60, 65)
		c.wait("all have the same state", c.same)
		for i, s := range c.servers {
			if s.node.Status().HistoryMissing < 40 {
				t.Errorf("server %d says that %d records are missing", i+1, s.node.Status().HistoryMissing)
			}
			for _, err := range s.node.HandleHistory(t.Context(), HistoryRequest{}) {
				if !errors.Is(err, ErrHistoryGap) {
					t.Errorf("server %d: history: %v", i+1, err)
				}
			}
		}
	})
}

func TestDamagedJournalStopsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1, smallLog)
		s := c.servers[0]
		c.strikes(0, 50)
		s.kill()
		names := segments(t, s.dir)
		if len(names) < 4 {
			t.Fatalf("segments %v", names)
		}
		for i, name := range names {
			content, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			changed := append([]byte(nil), content...)
			changed[segmentHeaderSize+recordHeadSize+3] ^= 1
			if err := os.WriteFile(name, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			err = s.open()
			if err == nil { // found while it runs, or when the entry was applied again
				err = c.stopped(s)
				s.kill()
				if !errors.Is(err, ErrReplicaStopped) {
					t.Errorf("segment %d: run: %v", i, err)
				}
			}
			if !errors.Is(err, ErrJournalDamaged) || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "\n") {
				t.Errorf("segment %d: %v", i, err)
			}
			if now, err := os.ReadFile(name); err != nil || string(now) != string(changed) {
				t.Errorf("segment %d was overwritten (%v)", i, err)
			}
			if err := os.WriteFile(name, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s.start()
		c.wait("it leads again", func() bool { return c.leads(1) })
		c.wantHistories()
	})
}

func TestServerWhoseDiskIsFullStopsAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &brokenDisk{space: 2500}
		c := newTestCluster(t, 1, smallLog, func(config *Config) { config.OpenJournalFile = disk.open })
		s := c.servers[0]
		acknowledged := 0
		for i := range 200 {
			if _, err := s.node.Propose(t.Context(), strike(i)); err != nil {
				if !errors.Is(err, ErrReplicaStopped) {
					t.Errorf("propose: %v", err)
				}
				break
			}
			acknowledged++
		}
		err := c.stopped(s)
		if !errors.Is(err, ErrReplicaStopped) || !errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "\n") {
			t.Errorf("run: %v", err)
		}
		if err := s.node.raft.Snapshot().Error(); err == nil {
			t.Error("a snapshot was taken")
		}
		s.kill()
		disk.space = 1 << 20
		s.start()
		c.wait("it leads again", func() bool { return c.leads(1) })
		c.wantHistories()
		s.node.View(func(v fsm.View) {
			if len(v.Miners()) < acknowledged || acknowledged == 0 {
				t.Errorf("%d of %d acknowledged commands are there", len(v.Miners()), acknowledged)
			}
		})
	})
}

// watchedSnapshots calls closing before a snapshot is closed.
type watchedSnapshots struct {
	raft.SnapshotStore
	closing func()
}

func (s watchedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, transport raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, transport)
	return watchedSink{sink, s.closing}, err
}

type watchedSink struct {
	raft.SnapshotSink
	closing func()
}

func (s watchedSink) Close() error {
	s.closing()
	return s.SnapshotSink.Close()
}

func TestJournalIsSyncedBeforeASnapshotIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &brokenDisk{space: 1 << 20}
		c := newTestCluster(t, 1, func(config *Config) { config.OpenJournalFile = disk.open })
		s := c.servers[0]
		s.kill()
		var last fsm.Head
		var closed int
		s.snaps = watchedSnapshots{s.snaps, func() {
			closed++
			if marks, err := readMarks(filepath.Join(s.dir, journalFolder)); err != nil || marks.synced.Records < last.Records || disk.syncs == 0 {
				t.Errorf("the snapshot of record %d is closed when %d are synced, with %d syncs (%v)", last.Records, marks.synced.Records,
					disk.syncs, err)
			}
		}}
		s.start()
		c.wait("it leads", func() bool { return c.leads(1) })
		for round := range 3 {
			c.strikes(10*round, 10*round+10)
			s.node.View(func(v fsm.View) { last = v.Head() })
			disk.syncs = 0
			if err := s.node.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		if closed != 3 {
			t.Errorf("%d snapshots", closed)
		}
		disk.broken = syscall.EIO
		c.strikes(30, 31)
		if err := s.node.raft.Snapshot().Error(); err == nil || closed != 3 {
			t.Errorf("a snapshot was taken without the journal on the disk: %v", err)
		}
		err := c.stopped(s)
		if !errors.Is(err, syscall.EIO) || !errors.Is(err, ErrReplicaStopped) {
			t.Errorf("run: %v", err)
		}
	})
}
