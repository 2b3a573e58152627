package raftnode

import (
	"errors"
	"log/slog"
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

// heldStore keeps entries behind an index waiting until it is let go.
type heldStore struct {
	raft.LogStore
	after uint64
	letGo chan struct{}
}

func (h *heldStore) StoreLogs(logs []*raft.Log) error {
	if logs[0].Index > h.after {
		<-h.letGo
	}
	return h.LogStore.StoreLogs(logs)
}

// TestServerIsNoVoterBeforeItHasTheRecovery: until then it gives no vote. Were it a voter, and the survivor dead for a moment, the
// survivor would need that vote to lead, and nobody else has the entries that allow it.
func TestServerIsNoVoterBeforeItHasTheRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(caughtUpEntries)
		c.server(1).kill()
		c.orphaned(2)
		c.reopen(2)
		c.strike(10)
		survivor, letGo := c.server(2).node, make(chan struct{})
		adjust := c.server(1).adjust
		c.server(1).adjust = func(config *Config) {
			adjust(config)
			config.StallLimit, config.StallExit = time.Hour, time.Hour
			open := config.OpenStores
			config.OpenStores = func(dir string, fresh bool, logger *slog.Logger) (*Stores, error) {
				stores, err := open(dir, fresh, logger)
				if err == nil {
					stores.Log = &heldStore{stores.Log, 1, letGo}
				}
				return stores, err
			}
		}
		c.reopen(1)
		returning := c.server(1).node
		c.wait("server 1 has the beginning of the log", func() bool { return returning.raft.LastIndex() > 0 })
		time.Sleep(time.Minute)
		if last := returning.raft.LastIndex(); !returning.gated() || last+caughtUpEntries < survivor.raft.LastIndex() {
			t.Fatalf("gated %t, %d of %d entries: the test does not reach its case", returning.gated(), last, survivor.raft.LastIndex())
		}
		if isVoter(survivor.configuration(), 1) {
			t.Error("server 1 is a voter, and gives no vote")
		}
		c.server(2).kill()
		close(letGo)
		c.wait("server 1 says whom it waits for", func() bool {
			return returning.gated() && returning.Status().LeaderID == 0 && strings.HasSuffix(returning.Alone(), "start server 2")
		})
		c.reopen(2)
		c.whole(2)
		c.nothingLost(returning)
	})
}
