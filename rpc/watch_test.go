package rpc

import (
	"context"
	"errors"
	"iter"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
	"raftmine/raftnode/coordinator"
)

var _ coordinator.Observer = (*MinerObserver)(nil)

// watchFor starts a watch and returns how to take its next event. It ends with the test.
func watchFor(t *testing.T, client *ClusterClient, address string, from WatchFrom) func() (Watched, error) {
	t.Helper()
	next, stop := iter.Pull2(client.Watch(testContext(t), address, from))
	t.Cleanup(stop)
	return func() (Watched, error) {
		told, err, ok := next()
		if !ok {
			return told, errors.New("the watch ended without an error")
		}
		return told, err
	}
}

// nextOf skips events until one of kind E.
func nextOf[E Event](t *testing.T, next func() (Watched, error)) E {
	t.Helper()
	for {
		told, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if event, ok := told.Event.(E); ok {
			return event
		}
	}
}

func TestWatchTellsWhereItStartsAndWhoLeads(t *testing.T) {
	node := newFakeNode(2)
	node.open(t)
	node.block(t, 1, false)
	_, address := start(t, node)
	client := NewClusterClient()
	defer client.Close()
	next := watchFor(t, client, address, WatchFrom{})
	first, err1 := next()
	second, err2 := next()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if first.Event != (StartEvent{ServerID: 2, AfterBlock: 1}) || first.UnixMilli == 0 {
		t.Errorf("first event %+v, want the start", first)
	}
	if second.Event != (LeaderEvent{ID: 1, Term: 3}) {
		t.Errorf("second event %+v, want the leader", second)
	}
}

func TestWatchTellsWhatHappens(t *testing.T) {
	node := newFakeNode(1)
	node.open(t)
	_, address := start(t, node)
	client := NewClusterClient()
	defer client.Close()
	next := watchFor(t, client, address, WatchFrom{})
	nextOf[LeaderEvent](t, next)

	node.block(t, 1, false)
	node.apply(t, false, fsm.ServerUp{ServerID: 2})
	node.apply(t, false, fsm.ServerDown{ServerID: 2, Reason: "silent"})
	node.hub.Heartbeat(1, 2, true)
	miners := node.hub.MinerObserver(1)
	miners.MinerConnected("m")
	miners.Heartbeat("m", false)
	miners.MinerDisconnected("m", "gone")
	miners.MinerRefused("n", "three wrong answers")

	want := []Event{
		JobEvent{ID: 1, Height: 1, Previous: [32]byte{1}, Timestamp: 1_790_000_000_001, What: fsm.JobOpened},
		JobEvent{ID: 1, Height: 1, Previous: [32]byte{1}, Timestamp: 1_790_000_000_001, What: fsm.JobSolved},
		BlockEvent{},
		JobEvent{ID: 1, Height: 1, Previous: [32]byte{1}, Timestamp: 1_790_000_000_001, What: fsm.JobClosed},
		ServerEvent{ID: 2, Up: true, Reason: "up"},
		ServerEvent{ID: 2, Reason: "silent"},
		HeartbeatEvent{From: 1, To: 2, Answered: true},
		MinerEvent{Name: "m", What: "connected"},
		HeartbeatEvent{From: 1, ToMiner: "m"},
		MinerEvent{Name: "m", What: "disconnected", Message: "gone"},
		MinerEvent{Name: "n", What: "refused", Message: "three wrong answers"},
	}
	var blocks int
	for len(want) > 0 {
		told, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if block, ok := told.Event.(BlockEvent); ok { // its place among the steps of its own entry is not promised
			blocks++
			if b := block.Block; b.Sequence != 1 || b.Height != 1 || b.Nonce != 7 || b.Miner != "m" ||
				b.Verdict != fsm.VerdictSuccess || b.Detail != "success" || told.UnixMilli != 1_790_000_000_000 {
				t.Errorf("block %+v", told)
			}
			continue
		}
		if (want[0] == BlockEvent{}) {
			want = want[1:]
		}
		if told.Event != want[0] {
			t.Fatalf("got %+v, want %+v", told.Event, want[0])
		}
		want = want[1:]
	}
	if blocks != 1 {
		t.Errorf("%d blocks were told, want 1", blocks)
	}
}

// TestWatchLosesNoBlock breaks the watch off again and again, changes the server, floods it, and lets blocks come inside
// snapshots, which nobody announces.
func TestWatchLosesNoBlock(t *testing.T) {
	var addresses []string
	var nodes []*fakeNode
	for id := range uint64(2) {
		node := newFakeNode(id + 1)
		node.open(t)
		_, address := start(t, node)
		nodes, addresses = append(nodes, node), append(addresses, address)
	}
	client := NewClusterClient()
	defer client.Close()
	const total = 100
	var feeding sync.WaitGroup
	defer feeding.Wait()
	feeding.Go(func() {
		for height := uint64(1); height <= total; height++ {
			for _, node := range nodes {
				node.block(t, height, height%7 == 0)
				for range watchBuffer / 8 {
					node.hub.Heartbeat(1, 2, true)
				}
			}
		}
	})
	var seen uint64
	for turn := 0; seen < total; turn++ {
		got := 0
		ctx, cancel := context.WithCancel(testContext(t))
		for told, err := range client.Watch(ctx, addresses[turn%2], WatchFrom{Past: true, AfterBlock: seen}) {
			if err != nil {
				t.Fatal(err)
			}
			if start, ok := told.Event.(StartEvent); ok && start.AfterBlock != seen {
				t.Fatalf("the watch starts after block %d, want %d", start.AfterBlock, seen)
			}
			if block, ok := told.Event.(BlockEvent); ok {
				if block.Block.Sequence != seen+1 {
					t.Fatalf("block %d came after %d", block.Block.Sequence, seen)
				}
				seen++
				if got++; got == 20 || seen == total {
					break
				}
			}
		}
		cancel()
	}
}

// TestSlowWatcherIsToldThatItLagged runs the stream's work against a reader that stands still.
func TestSlowWatcherIsToldThatItLagged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node := newFakeNode(1)
		node.open(t)
		var told []Event
		reading := make(chan struct{})
		w := &watching{
			node: node, queue: node.hub.watch(), recheck: watchRecheck,
			send: func(told1 Watched) error {
				<-reading
				told = append(told, told1.Event)
				return nil
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.run(ctx) }()
		synctest.Wait() // it stands in its first send, of the leader
		const beats = 3 * watchBuffer
		for range beats {
			node.hub.Heartbeat(1, 2, true)
		}
		node.apply(t, false, fsm.ServerUp{ServerID: 2}) // there is room: heartbeats gave way
		for height := range uint64(watchBuffer) {
			node.block(t, height+1, false)
		}
		close(reading)
		synctest.Wait()
		node.hub.unwatch(w.queue)
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}

		var heartbeats, dropped, blocks uint64
		var servers int
		for _, event := range told {
			switch e := event.(type) {
			case HeartbeatEvent:
				heartbeats++
			case LaggedEvent:
				dropped += e.Dropped
			case ServerEvent:
				servers++
			case BlockEvent:
				blocks++
				if e.Block.Sequence != blocks {
					t.Fatalf("block %d came as number %d", e.Block.Sequence, blocks)
				}
			}
		}
		if blocks != watchBuffer {
			t.Errorf("%d blocks, want %d", blocks, watchBuffer)
		}
		if heartbeats != watchChatter || dropped < beats-watchChatter {
			t.Errorf("%d heartbeats told, %d events dropped, want %d and at least %d",
				heartbeats, dropped, watchChatter, beats-watchChatter)
		}
		if servers != 1 {
			t.Errorf("%d server events, want 1: heartbeats pushed it out", servers)
		}
	})
}

// TestWatchNoticesWhatASnapshotBrought: such entries cause no events.
func TestWatchNoticesWhatASnapshotBrought(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node := newFakeNode(1)
		var told []Event
		w := &watching{
			node: node, queue: node.hub.watch(), recheck: watchRecheck,
			send: func(event Watched) error { told = append(told, event.Event); return nil },
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.run(ctx) }()
		synctest.Wait()
		node.apply(t, true, fsm.OpenCluster{ClusterID: "c"}, fsm.TakeOffice{ServerID: 1})
		node.block(t, 1, true)
		time.Sleep(2 * watchRecheck) // virtual
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if len(told) != 2 {
			t.Fatalf("told %+v, want a block and a leader", told)
		}
		if block, ok := told[0].(BlockEvent); !ok || block.Block.Sequence != 1 {
			t.Errorf("told %+v, want block 1", told[0])
		}
		if told[1] != (LeaderEvent{ID: 1, Term: 3}) {
			t.Errorf("told %+v, want the leader", told[1])
		}
	})
}

func TestHubForgetsWatchersThatLeft(t *testing.T) {
	node := newFakeNode(1)
	node.open(t)
	_, address := start(t, node)
	client := NewClusterClient()
	defer client.Close()
	for range 5 {
		for _, err := range client.Watch(testContext(t), address, WatchFrom{}) {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	eventually(t, "no watcher is left", func() bool { return !node.hub.watched() })
}
