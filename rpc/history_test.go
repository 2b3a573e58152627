package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"raftmine/fsm"
	"raftmine/raftnode"
	pb "raftmine/rpc/raftminepb"
)

// testRecord has data of its own size; a few are as large as an entry may be.
func testRecord(index uint64) raftnode.JournalRecord {
	size := int(index % 300)
	if index%97 == 0 {
		size = fsm.MaxEntrySize
	}
	return raftnode.JournalRecord{
		Index: index, Term: index/10 + 1, Data: bytes.Repeat([]byte{byte(index)}, max(size, 1)), Chain: [32]byte{byte(index), 31: 1},
	}
}

func sameRecord(a, b raftnode.JournalRecord) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Chain == b.Chain && bytes.Equal(a.Data, b.Data)
}

// TestHistoryCarriesRecordsAndTheErrorBehindThem also holds that the reader's buffer may be used again.
func TestHistoryCarriesRecordsAndTheErrorBehindThem(t *testing.T) {
	node := newFakeNode(1)
	asked := raftnode.HistoryRequest{ClusterID: "c", AfterIndex: 4, LastIndex: 1000}
	node.history = func(_ context.Context, request raftnode.HistoryRequest, yield func(raftnode.JournalRecord, error) bool) {
		if request != asked {
			t.Errorf("asked for %+v, want %+v", request, asked)
		}
		buffer := make([]byte, fsm.MaxEntrySize)
		for index := uint64(5); index <= 500; index++ {
			record := testRecord(index)
			record.Data = buffer[:copy(buffer, record.Data)]
			if !yield(record, nil) {
				return
			}
			clear(record.Data)
		}
		yield(raftnode.JournalRecord{}, fmt.Errorf("history: %w", &raftnode.HistoryGapError{After: 500, Until: 700}))
	}
	_, address := start(t, node)
	client := NewPeerClient()
	defer client.Close()
	next := uint64(5)
	var end error
	for record, err := range client.History(testContext(t), address, asked) {
		if err != nil {
			end = err
			continue
		}
		if want := testRecord(next); !sameRecord(record, want) {
			t.Fatalf("record %d came as index %d, term %d, %d bytes", next, record.Index, record.Term, len(record.Data))
		}
		next++
	}
	if next != 501 || !errors.Is(end, raftnode.ErrHistoryGap) || !strings.Contains(end.Error(), "501 to 700") {
		t.Errorf("%d records, then %v", next-5, end)
	}
}

func TestReceiverOfHistoryMayStop(t *testing.T) {
	node := newFakeNode(1)
	ended := make(chan struct{})
	node.history = func(ctx context.Context, _ raftnode.HistoryRequest, yield func(raftnode.JournalRecord, error) bool) {
		defer close(ended)
		for index := uint64(1); ctx.Err() == nil; index++ {
			if !yield(testRecord(index), nil) {
				return
			}
		}
	}
	_, address := start(t, node)
	client := NewPeerClient()
	defer client.Close()
	for record, err := range client.History(testContext(t), address, raftnode.HistoryRequest{}) {
		if err != nil {
			t.Fatal(err)
		}
		if record.Index == 3 {
			break
		}
	}
	<-ended
}

func TestHistoryMessagesThatMakeNoSenseAreRefused(t *testing.T) {
	node := newFakeNode(1)
	node.history = func(context.Context, raftnode.HistoryRequest, func(raftnode.JournalRecord, error) bool) {
		t.Error("a malformed request reached the node")
	}
	_, address := start(t, node)
	for says, request := range map[string]*pb.HistoryRequest{
		"last_index":        {AfterIndex: 5, LastIndex: 5},
		"cluster_id has":    {ClusterId: strings.Repeat("c", 1000)},
		"control character": {ClusterId: "a\nb"},
	} {
		stream, err := pb.NewPeerServiceClient(dialPlain(t, address)).History(testContext(t), request)
		if err == nil {
			_, err = stream.Recv()
		}
		checkRefusal(t, err, codes.InvalidArgument, says)
	}
	good := func() *pb.HistoryRecord { return historyRecordTo(testRecord(1)) }
	for says, change := range map[string]func(*pb.HistoryRecord){
		"index is 0":  func(r *pb.HistoryRecord) { r.Index = 0 },
		"term is 0":   func(r *pb.HistoryRecord) { r.Term = 0 },
		"chain has 5": func(r *pb.HistoryRecord) { r.Chain = r.Chain[:5] },
		"data has":    func(r *pb.HistoryRecord) { r.Data = make([]byte, fsm.MaxEntrySize+1) },
	} {
		bad := good()
		change(bad)
		_, err := historyResponseFrom(&pb.HistoryResponse{Records: []*pb.HistoryRecord{good(), bad}})
		if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
	if _, err := historyResponseFrom(&pb.HistoryResponse{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("an empty message: %v", err)
	}
}
