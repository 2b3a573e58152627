package rpc

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"raftmine/raftnode"
)

func TestMembershipCommandsReachTheLeaderThroughAnyServer(t *testing.T) {
	leader, follower := newFakeNode(1), newFakeNode(2)
	_, leaderAddress := start(t, leader)
	_, followerAddress := start(t, follower)
	follower.fail(&raftnode.NotLeaderError{LeaderID: 1, Address: leaderAddress})
	client := NewClusterClient()
	defer client.Close()
	ctx := testContext(t)
	if err := client.RemoveServer(ctx, []string{closedAddress(t), followerAddress}, 3); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(leader.removed, []uint64{3}) {
		t.Errorf("the leader removed %v", leader.removed)
	}
	for to, want := range map[uint64]uint64{0: 2, 5: 5} {
		if chosen, err := client.TransferLeadership(ctx, []string{followerAddress}, to); err != nil || chosen != want {
			t.Errorf("transfer to %d chose %d, %v", to, chosen, err)
		}
	}
	if err := client.RemoveServer(ctx, []string{leaderAddress}, 0); !errors.Is(err, ErrMalformed) {
		t.Errorf("without an id: %v", err)
	}
}

func TestWhatTheLeaderRefusesIsNotAskedAgain(t *testing.T) {
	leader, follower := newFakeNode(1), newFakeNode(2)
	_, leaderAddress := start(t, leader)
	_, followerAddress := start(t, follower)
	leader.fail(fmt.Errorf("%w: server 3 runs", raftnode.ErrRefused))
	client := NewClusterClient()
	defer client.Close()
	err := client.RemoveServer(testContext(t), []string{leaderAddress, followerAddress}, 3)
	if !errors.Is(err, raftnode.ErrRefused) {
		t.Errorf("refused as %v", err)
	}
	if len(follower.removed) != 0 {
		t.Error("another server was asked after the refusal")
	}
}
