package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"raftmine/fsm"
	"raftmine/raftnode"
)

// lockedBuffer takes a log that several goroutines write.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(data)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// realServer is a node on a real disk and a real socket, served to the others.
func realServer(t *testing.T, dir string, out io.Writer, join ...string) *raftnode.Node {
	t.Helper()
	data, err := raftnode.OpenDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := raftnode.ListenConfig{}.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	peers := NewPeerClient()
	node, err := raftnode.Open(testContext(t), raftnode.Config{
		DataDir: data, Listener: listener, Bootstrap: len(join) == 0, Join: join, Peers: peers, Version: "test",
		Logger:    slog.New(slog.NewTextHandler(out, nil)),
		Heartbeat: 500 * time.Millisecond, Host: fsm.Host{MachineID: "m", BootID: "b"},
		SnapshotInterval: 20 * time.Millisecond, SnapshotThreshold: 50, TrailingLogs: 5, JournalSegment: 4 << 10,
	})
	if err != nil {
		t.Fatal(errors.Join(err, listener.Close(), data.Close()))
	}
	server, err := NewServer(Config{Node: node, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	served, ran := make(chan error, 1), make(chan error, 1)
	go func() { served <- server.Serve(listener.GRPC()) }()
	go func() {
		ran <- node.Run(context.Background(), func(ctx context.Context, _ uint64) error {
			<-ctx.Done()
			return nil
		})
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		server.Stop(ctx)
		if err := errors.Join(<-served, node.Close(), <-ran, peers.Close()); err != nil {
			t.Error(err)
		}
	})
	return node
}

// TestServerThatJoinsLateFetchesTheHistoryFromItsPeers is the whole way: a snapshot of the log, the records over gRPC.
func TestServerThatJoinsLateFetchesTheHistoryFromItsPeers(t *testing.T) {
	first := realServer(t, filepath.Join(t.TempDir(), "1"), io.Discard)
	eventually(t, "it leads", func() bool { return first.Status().Leading })
	for i := range 300 {
		if _, err := first.Propose(testContext(t), fsm.Strike{Miner: fmt.Sprint("miner-", i%7), Reason: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	var said lockedBuffer
	second := realServer(t, filepath.Join(t.TempDir(), "2"), &said, first.Address())
	filled := func() bool { return strings.Contains(said.String(), "gap in the history filled") }
	head := func(node *raftnode.Node) (head fsm.Head) {
		node.View(func(v fsm.View) { head = v.Head() })
		return head
	}
	eventually(t, "it has state and history", func() bool {
		return head(second).Records >= 300 && filled() && second.Status().HistoryMissing == 0
	})
	reader, err := raftnode.ReadJournal(second.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	client := NewPeerClient()
	defer client.Close()
	want := make(map[uint64][32]byte)
	for record, err := range reader.Records() {
		if err != nil {
			t.Fatal(err)
		}
		want[record.Index] = record.Chain
	}
	// And it gives to others what it fetched.
	until := head(second).Index
	got := 0
	for record, err := range client.History(testContext(t), second.Address(), raftnode.HistoryRequest{
		ClusterID: first.ClusterID(), LastIndex: until,
	}) {
		if err != nil {
			t.Fatal(err)
		}
		if chain, ok := want[record.Index]; ok && chain != record.Chain {
			t.Errorf("index %d has another chain over the network", record.Index)
		}
		got++
	}
	if len(want) < 300 || got < len(want) {
		t.Errorf("%d records on the disk, %d over the network", len(want), got)
	}
	for _, err := range client.History(testContext(t), second.Address(), raftnode.HistoryRequest{ClusterID: "another"}) {
		if !errors.Is(err, raftnode.ErrForeignCluster) {
			t.Errorf("history of another cluster: %v", err)
		}
	}
}
