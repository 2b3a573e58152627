package raftnode

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
)

func TestRemoveServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		leader := c.leader()
		for _, row := range []struct {
			id   uint64
			says string
		}{{1, "stop it"}, {3, "stop it"}, {4, "no server 4"}} {
			err := leader.RemoveServer(t.Context(), row.id)
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), row.says) {
				t.Errorf("remove %d: %v, want %q", row.id, err, row.says)
			}
		}
		if err := c.servers[1].node.RemoveServer(t.Context(), 3); !errors.Is(err, ErrNotLeader) {
			t.Errorf("on a follower: %v", err)
		}
		c.killAtOnce(2)
		if err := leader.RemoveServer(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		leader.View(func(v fsm.View) {
			if row, _ := v.Server(3); row.Member || row.Up {
				t.Errorf("the table has %+v", row)
			}
		})
		if c.voters() != "[1 2]" {
			t.Errorf("voters %s", c.voters())
		}
		if err := leader.RemoveServer(t.Context(), 3); !errors.Is(err, ErrRefused) {
			t.Errorf("once more: %v", err)
		}
		c.background.Wait()
		c.servers[2].start(leader.Address())
		c.wait("it is back under its id", func() bool { return c.up(1, 2, 3) && c.voters() == "[1 2 3]" })
	})
}

func TestTransferLeadershipIsUndoneByTheRule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		for to, want := range map[uint64]uint64{0: 2, 3: 3} {
			terms := len(c.servers[want-1].terms())
			if chosen, err := c.leader().TransferLeadership(t.Context(), to); err != nil || chosen != want {
				t.Fatalf("transfer to %d chose %d, %v", to, chosen, err)
			}
			c.wait("it led", func() bool { return len(c.servers[want-1].terms()) > terms })
			c.wait("server 1 leads again", func() bool { return c.leads(1) })
			time.Sleep(2 * transferPauseFirst)
		}
		if _, err := c.leader().TransferLeadership(t.Context(), 9); !errors.Is(err, ErrRefused) {
			t.Errorf("to nobody: %v", err)
		}
		if chosen, err := c.leader().TransferLeadership(t.Context(), 1); err != nil || chosen != 1 {
			t.Errorf("to itself: %d, %v", chosen, err)
		}
		if _, err := c.servers[1].node.TransferLeadership(t.Context(), 3); !errors.Is(err, ErrNotLeader) {
			t.Errorf("on a follower: %v", err)
		}
		c.killAtOnce(2)
		c.wait("server 3 is down", func() bool { return c.up(1, 2) })
		if _, err := c.leader().TransferLeadership(t.Context(), 3); !errors.Is(err, ErrRefused) {
			t.Errorf("to a dead server: %v", err)
		}
		if err := c.leader().RemoveServer(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		if _, err := c.leader().TransferLeadership(t.Context(), 3); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "server 3 was removed") {
			t.Errorf("to a server that was removed: %v", err)
		}
		c.commits()
	})
}
