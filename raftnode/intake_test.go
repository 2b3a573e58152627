package raftnode

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// takeSnapshot makes a server's snapshot, and the request that sends it.
func (s *testServer) takeSnapshot(t *testing.T) (*raft.InstallSnapshotRequest, []byte) {
	t.Helper()
	future := s.node.raft.Snapshot()
	if err := future.Error(); err != nil {
		t.Fatal(err)
	}
	meta, reader, err := future.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	content, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	return &raft.InstallSnapshotRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(raftID(s.node.id)),
			Addr: []byte(s.node.transport.LocalAddr())},
		SnapshotVersion: meta.Version, Term: s.node.raft.CurrentTerm(),
		LastLogIndex: meta.Index, LastLogTerm: meta.Term, Size: meta.Size,
		Configuration: raft.EncodeConfiguration(meta.Configuration), ConfigurationIndex: meta.ConfigurationIndex,
	}, content
}

// send sends a snapshot to a server as the library does.
func (s *testServer) send(to *testServer, request *raft.InstallSnapshotRequest, content []byte) (raft.InstallSnapshotResponse, error) {
	var response raft.InstallSnapshotResponse
	err := s.node.transport.InstallSnapshot(raftID(to.node.id), raftAddress(to.node.id, to.node.Address()), request, &response,
		bytes.NewReader(content))
	return response, err
}

// TestOldSnapshotTakesNoConfigurationBack: it is sent by a goroutine of the leader that slept since before the change.
func TestOldSnapshotTakesNoConfigurationBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		c.settled()
		request, content := c.servers[0].takeSnapshot(t)
		third := newTestServer(t, c.net, t.TempDir())
		c.servers = append(c.servers, third)
		third.start(c.servers[0].node.Address())
		c.wait("server 3 votes", func() bool { return c.up(1, 2, 3) && len(c.servers[1].node.Status().Voters) == 3 })
		c.commits()
		c.wait("all have it", c.same)
		applied := c.servers[1].node.raft.AppliedIndex()
		for range 2 { // and the connection is good for more
			response, err := c.servers[0].send(c.servers[1], request, content)
			if err != nil || !response.Success {
				t.Errorf("%+v, %v", response, err)
			}
		}
		if got := c.servers[1].node.Status().Voters; !slices.Equal(got, []uint64{1, 2, 3}) {
			t.Errorf("server 2 knows the voters %v", got)
		}
		if got := c.servers[1].node.raft.AppliedIndex(); got < applied {
			t.Errorf("server 2 went back from entry %d to %d", applied, got)
		}
		c.commits()
		c.wait("all have it", c.same)
	})
}

// TestSnapshotThatGrewOldOnItsWayIsNotRead: entries came after the first look, and the connection goes on.
func TestSnapshotThatGrewOldOnItsWayIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		c.settled()
		n := c.servers[0].node
		request, content := c.servers[0].takeSnapshot(t)
		request.LastLogIndex = n.raft.LastIndex() + 1
		source := bytes.NewReader(content)
		rpc := raft.RPC{Command: request, Reader: source}
		if n.answered(&rpc) {
			t.Fatal("a snapshot that is newer is not handed to Raft")
		}
		c.commits()
		if count, err := rpc.Reader.Read(make([]byte, 16)); count != 0 || !errors.Is(err, errOldSnapshot) {
			t.Errorf("%d bytes, %v", count, err)
		}
		if source.Len() != 0 {
			t.Errorf("%d bytes are left on the connection", source.Len())
		}
	})
}

func TestLogThatHasTheLastEntryHoldsTheSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		c.settled()
		s := c.servers[0]
		next := s.node.raft.LastIndex() + 1
		if err := s.log.StoreLog(&raft.Log{Index: next, Term: 7}); err != nil { // not applied
			t.Fatal(err)
		}
		for _, row := range []struct {
			index, term uint64
			want        bool
		}{{next, 7, true}, {next, 8, false}, {next + 1, 7, false}, {next - 1, 1, true}} {
			if got := s.node.holds(row.index, row.term); got != row.want {
				t.Errorf("index %d of term %d: %v", row.index, row.term, got)
			}
		}
	})
}

func TestServerWithoutAVoteCallsNoElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		third := c.servers[2]
		c.net.setMute(third.node.Address(), true)
		c.wait("server 3 is no voter any more", func() bool { return len(third.node.Status().Voters) == 2 })
		term := c.leader().raft.CurrentTerm()
		if err := c.leader().callElection(t.Context(), 3); err == nil || !strings.Contains(err.Error(), errNoVote.Error()) {
			t.Errorf("told to stand for election: %v", err)
		}
		time.Sleep(time.Second)
		if now := third.node.raft.CurrentTerm(); now != term || !c.leads(1) {
			t.Errorf("term %d after term %d", now, term)
		}
		c.commits()
	})
}

// TestLeaderWithoutAVoteHandsOver plants the configuration past the intake.
func TestLeaderWithoutAVoteHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		s := c.servers[0]
		request, content := s.takeSnapshot(t)
		request.Configuration = raft.EncodeConfiguration(raft.Configuration{Servers: slices.DeleteFunc(slices.Clone(s.node.configuration()),
			func(server raft.Server) bool { return serverID(server.ID) == 1 })})
		answer := make(chan raft.RPCResponse, 1)
		s.node.transport.intake.rpcs <- raft.RPC{Command: request, Reader: bytes.NewReader(content), RespChan: answer}
		if got := <-answer; got.Error != nil {
			t.Fatal(got.Error)
		}
		if isVoter(s.node.configuration(), 1) {
			t.Fatal("server 1 has a vote, so this is no test")
		}
		c.wait("another one leads", func() bool { return c.leads(2) || c.leads(3) })
		c.commits()
	})
}

// TestEntriesBehindACompactedOneAreTaken: the leader does not know how far this server is, after a snapshot that was old.
func TestEntriesBehindACompactedOneAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2, func(config *Config) { config.TrailingLogs = 2 })
		c.settled()
		for range 20 {
			c.commits()
		}
		c.wait("both have it", c.same)
		leader, follower := c.servers[0], c.servers[1]
		applied := follower.node.raft.AppliedIndex()
		var entries []*raft.Log
		for index := applied - 9; index <= applied; index++ {
			var entry raft.Log
			if err := leader.log.GetLog(index, &entry); err != nil {
				t.Fatal(err)
			}
			entries = append(entries, &entry)
		}
		follower.takeSnapshot(t)
		if err := follower.log.GetLog(applied-10, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatal("the log is not compacted", err)
		}
		term := leader.node.raft.CurrentTerm()
		for _, count := range []int{0, 1, len(entries)} {
			request := raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax,
				ID: []byte(raftID(1)), Addr: []byte(leader.node.transport.LocalAddr())}, Term: term, PrevLogEntry: applied - 10,
				PrevLogTerm: term, Entries: entries[:count]}
			var response raft.AppendEntriesResponse
			err := leader.node.transport.AppendEntries(raftID(2), raftAddress(2, follower.node.Address()), &request, &response)
			if err != nil || !response.Success || response.LastLog != applied {
				t.Errorf("%d entries: %+v, %v", count, response, err)
			}
		}
		// One more than it has: it is taken, and only that.
		more := raft.RPC{Command: &raft.AppendEntriesRequest{Term: term, PrevLogEntry: applied - 10, PrevLogTerm: term,
			Entries: append(entries, &raft.Log{Index: applied + 1, Term: term})}}
		if follower.node.answered(&more) {
			t.Fatal("what it does not have is answered")
		}
		rest := more.Command.(*raft.AppendEntriesRequest)
		if rest.PrevLogEntry != 0 || rest.PrevLogTerm != 0 || len(rest.Entries) != 1 || rest.Entries[0].Index != applied+1 {
			t.Errorf("Raft gets %+v", rest)
		}
		c.commits()
		c.wait("both have it", c.same)
	})
}

// promotionLost is a disk that fails when it is told that a server became a voter.
type promotionLost struct {
	raft.LogStore
	server uint64
}

func (l promotionLost) StoreLogs(logs []*raft.Log) error {
	for _, entry := range logs {
		if entry.Type == raft.LogConfiguration && isVoter(raft.DecodeConfiguration(entry.Data).Servers, l.server) {
			return errNoSpace
		}
	}
	return l.LogStore.StoreLogs(logs)
}

// TestServersThatKnowDifferentVotersElect: server 1 made server 3 a voter, server 2 was not told, and server 1 died. Server
// 2 needs one more vote, by what it knows, and has the shorter log; server 3 is no voter, by what server 2 knows.
func TestServersThatKnowDifferentVotersElect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		c.settled()
		second := c.servers[1]
		second.kill()
		disk := func(log raft.LogStore) func(*Config) {
			return func(config *Config) {
				config.OpenStores = func(string, bool, *slog.Logger) (*Stores, error) {
					return &Stores{Log: log, Stable: second.log, Snapshots: second.snaps, Close: func() error { return nil }}, nil
				}
			}
		}
		second.adjust = disk(promotionLost{second.log, 3})
		second.start(c.servers[0].node.Address())
		c.settled()
		third := newTestServer(t, c.net, t.TempDir())
		c.servers = append(c.servers, third)
		third.start(c.servers[0].node.Address())
		c.wait("server 3 knows that it is a voter", func() bool { return isVoter(third.node.configuration(), 3) })
		c.servers[0].kill()
		second.kill()
		second.adjust = disk(second.log)
		second.start(third.node.Address())
		if isVoter(second.node.configuration(), 3) {
			t.Fatal("server 2 knows it as well, so this is no test")
		}
		c.wait("server 3 is elected, and server 2 leads", func() bool { return c.leads(2) })
		c.commits()
		c.wait("both have it", c.same)
	})
}

// TestSavedTermNeverGoesBack: a new leader's first heartbeat and the request for votes of the next candidate come together,
// and the disk is slow with the older term.
func TestSavedTermNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		first, second, third := c.servers[0].node, c.servers[1].node, c.servers[2]
		term := first.raft.CurrentTerm()
		id, address := raftID(3), raftAddress(3, third.node.Address())
		header := func(n *Node) raft.RPCHeader {
			return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(raftID(n.id)), Addr: []byte(n.transport.LocalAddr())}
		}
		third.voteTime.Store(int64(40 * time.Millisecond))
		beaten := make(chan error, 1)
		go func() {
			beaten <- first.transport.AppendEntries(id, address, &raft.AppendEntriesRequest{RPCHeader: header(first), Term: term + 1},
				new(raft.AppendEntriesResponse))
		}()
		time.Sleep(5 * time.Millisecond)
		third.voteTime.Store(int64(time.Millisecond))
		request := &raft.RequestVoteRequest{RPCHeader: header(second), Term: term + 2, LastLogIndex: 1 << 40, LastLogTerm: term, LeadershipTransfer: true}
		if err := second.transport.RequestVote(id, address, request, new(raft.RequestVoteResponse)); err != nil {
			t.Fatal(err)
		}
		if err := <-beaten; err != nil {
			t.Fatal(err)
		}
		if saved, err := third.log.GetUint64(keyCurrentTerm); err != nil || saved < term+2 {
			t.Errorf("saved is term %d, after term %d (%v)", saved, term+2, err)
		}
	})
}

// TestEntriesOfALaterTermThanTheirLeaderAreRefused: a goroutine of a leader that was replaced sends what its log got since.
func TestEntriesOfALaterTermThanTheirLeaderAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		c.wait("all have the same", c.same)
		first, third := c.servers[0].node, c.servers[2].node
		last, term := third.raft.LastIndex(), third.raft.CurrentTerm()
		request := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(raftID(1)),
			Addr: []byte(first.transport.LocalAddr())}, Term: term, PrevLogEntry: last, PrevLogTerm: term,
			Entries: []*raft.Log{{Index: last + 1, Term: term + 1, Type: raft.LogNoop}}}
		err := first.transport.AppendEntries(raftID(3), raftAddress(3, third.Address()), request, new(raft.AppendEntriesResponse))
		if err == nil || !strings.Contains(err.Error(), errLateLeader.Error()) || third.raft.LastIndex() != last {
			t.Errorf("%v; the log ends with entry %d, was %d", err, third.raft.LastIndex(), last)
		}
		c.commits()
		c.wait("all have it", c.same)
	})
}
