package raftnode

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// TestReturningServerDoesNotLeadOnTheFirstEntriesOfTheHistory: the first configuration names server 1 alone. A server 1
// that had its log archived, and then got these entries and nothing more, would elect itself.
func TestReturningServerDoesNotLeadOnTheFirstEntriesOfTheHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(20)
		c.server(1).kill()
		c.orphaned(2)
		c.reopen(2)
		c.strike(20)
		c.reopenKilledAt(1, "fence passed")
		c.server(2).kill()
		from, err := OpenBoltStores(c.server(2).dir, false, discard())
		if err != nil {
			t.Fatal(err)
		}
		to, err := OpenBoltStores(c.server(1).dir, false, discard())
		if err != nil {
			t.Fatal(err)
		}
		for index := uint64(1); index <= 3; index++ {
			entry := new(raft.Log)
			if err := errors.Join(from.Log.GetLog(index, entry), to.Log.StoreLog(entry)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(from.Close(), to.Close()); err != nil {
			t.Fatal(err)
		}
		c.reopen(1)
		node := c.server(1).node
		if !node.gated() || !node.onlyVoter() {
			t.Fatalf("gated %t, only voter %t: the test does not reach its case", node.gated(), node.onlyVoter())
		}
		for id := uint64(1); id <= 2; id++ { // nor when somebody tells it to
			_ = node.callElection(t.Context(), 1)
		}
		before := len(c.server(1).terms())
		time.Sleep(30 * time.Second)
		if len(c.server(1).terms()) != before || node.Status().LeaderID != 0 {
			t.Fatal("server 1 leads on the beginning of the history")
		}
		c.reopen(2)
		c.whole(2)
		c.nothingLost(node)
	})
}

// TestServerThatBeginsAgainHelpsNobodyOfBefore: an empty log would take every leader's entries and find every candidate's
// log good enough.
func TestServerThatBeginsAgainHelpsNobodyOfBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(20)
		term := c.leader().Status().Term
		c.server(1).kill()
		c.orphaned(2)
		c.reopen(2)
		c.strike(1)
		c.server(2).kill()
		c.reopen(1)
		node := c.server(1).node
		header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("3"), Addr: []byte("3@127.0.0.1:1")}
		self, address := raftID(1), raftAddress(1, node.Address())

		var appended raft.AppendEntriesResponse
		err := node.transport.AppendEntries(self, address, &raft.AppendEntriesRequest{RPCHeader: header, Term: term,
			Entries: []*raft.Log{{Index: 1, Term: 1, Type: raft.LogNoop}}, LeaderCommitIndex: 1}, &appended)
		if err != nil || appended.Success || node.Status().LastIndex != 0 {
			t.Errorf("a leader of before: %+v, %v", appended, err)
		}
		var vote raft.RequestVoteResponse
		err = node.transport.RequestVote(self, address, &raft.RequestVoteRequest{RPCHeader: header, Term: term + 100,
			LastLogIndex: 1000, LastLogTerm: term}, &vote)
		if err == nil || !strings.Contains(err.Error(), errGateClosed.Error()) || vote.Granted {
			t.Errorf("a candidate of before: %+v, %v", vote, err)
		}
		var preVote raft.RequestPreVoteResponse
		err = node.transport.RequestPreVote(self, address, &raft.RequestPreVoteRequest{RPCHeader: header, Term: term + 100,
			LastLogIndex: 1000, LastLogTerm: term}, &preVote)
		if err == nil || !strings.Contains(err.Error(), errGateClosed.Error()) || preVote.Granted {
			t.Errorf("a candidate of before, asking first: %+v, %v", preVote, err)
		}
		if err := node.gate.RequestVote(self, address, &raft.RequestVoteRequest{RPCHeader: header}, &vote); !errors.Is(err, errGateClosed) {
			t.Errorf("it asks for votes itself: %v", err)
		}
		if err := node.gate.RequestPreVote(self, address, &raft.RequestPreVoteRequest{RPCHeader: header}, &preVote); !errors.Is(err, errGateClosed) {
			t.Errorf("it asks for votes itself: %v", err)
		}
		c.reopen(2)
		c.whole(2)
		c.nothingLost(node)
	})
}
