package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/miner"
	"raftmine/raftnode/coordinator"
)

func TestTakenNameIsARefusalOnlyAfterTheLeaseOfAnOldStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := nameClash{held: nameHeld, retry: nameRetry}
		taken := minerError(toStatus(fmt.Errorf("%w: m is connected already", coordinator.ErrNameTaken)))
		refusedAfter := func() time.Duration {
			t.Helper()
			for began := time.Now(); ; {
				if err := n.wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				err := n.judge(taken)
				if !errors.Is(err, coordinator.ErrNameTaken) {
					t.Fatalf("judged %v", err)
				}
				if errors.Is(err, miner.ErrRefused) {
					return time.Since(began)
				}
			}
		}
		if other := errors.New("other"); n.judge(other) != other {
			t.Error("another error was changed")
		}
		if took := refusedAfter(); took != nameHeld {
			t.Errorf("refused after %v, want %v: the lease is %v", took, nameHeld,
				coordinator.DefaultLeaseHeartbeats*coordinator.DefaultHeartbeat)
		}
		n.accepted()
		began := time.Now()
		if err := n.wait(t.Context()); err != nil || time.Since(began) != 0 {
			t.Errorf("waited %v after it was accepted, %v", time.Since(began), err)
		}
		if took := refusedAfter(); took != nameHeld {
			t.Errorf("refused after %v the second time, want %v", took, nameHeld)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := n.wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("wait that was cancelled: %v", err)
		}
	})
}

// TestMinerStartedAgainWaitsForItsOldStreamToEnd: the leader refuses the name a few times after it heard it, then no more.
func TestMinerStartedAgainWaitsForItsOldStreamToEnd(t *testing.T) {
	c := startCluster(t, 1)
	var refusals atomic.Int32
	refusals.Store(3)
	leader := &fakeLeader{address: c.addresses[0], answer: func(s *fakeSession, _ coordinator.Message) error {
		if refusals.Add(-1) >= 0 {
			return fmt.Errorf("%w: m is connected already", coordinator.ErrNameTaken)
		}
		s.reply(coordinator.HeartbeatRequest{ClusterID: "c", ServerID: 1, Address: s.leader.address, Term: 3, SentUnixMilli: 1})
		return nil
	}}
	c.servers[0].Lead(leader)
	d := newDialer(t, 0, c.addresses...)
	d.clash.retry = time.Millisecond
	for try := 1; ; try++ {
		conn, _ := dialMiner(t, d)
		if err := conn.Send(miner.HeartbeatReply{Name: "m"}); err != nil {
			t.Fatal(err)
		}
		_, err := conn.Receive()
		if err == nil {
			if try != 4 {
				t.Errorf("accepted at try %d", try)
			}
			break
		}
		if !errors.Is(err, coordinator.ErrNameTaken) || errors.Is(err, miner.ErrRefused) {
			t.Fatalf("try %d: %v, want %v and no refusal", try, err, coordinator.ErrNameTaken)
		}
	}
	if !d.clash.since.IsZero() {
		t.Error("the old clash still counts against the next")
	}
	d.clash.held = 0
	refusals.Store(1)
	conn, _ := dialMiner(t, d)
	if err := conn.Send(miner.HeartbeatReply{Name: "m"}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Receive(); !errors.Is(err, miner.ErrRefused) {
		t.Errorf("a name that stays taken: %v, want %v", err, miner.ErrRefused)
	}
}
