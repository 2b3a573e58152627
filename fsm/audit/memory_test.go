package audit

import (
	"fmt"
	"runtime"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// liveHeap returns what is in use at the end of a replay, with all that the replay holds.
func liveHeap(t *testing.T, records Records, count int) (bytes int) {
	report, err := Replay(records, Options{
		Visit:    func(Event) error { return nil },
		Searched: func(Searched) error { return nil },
		EndsAt: func() (Head, bool) {
			bytes = heapInUse()
			return Head{}, false
		},
	})
	if err != nil || report.Head.Records != uint64(count) {
		t.Fatalf("%d records: %v", report.Head.Records, err)
	}
	for _, f := range report.Findings {
		if f.Kind != KindWork { // receipts are made up
			t.Fatal(f)
		}
	}
	return bytes
}

func heapInUse() int {
	runtime.GC()
	runtime.GC() // what finalizers and pools held
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc)
}

// TestMemoryDoesNotGrowWithTheHistory compares a history with one of the same miners that is fifty times as long.
func TestMemoryDoesNotGrowWithTheHistory(t *testing.T) {
	const short, long = 200, 10_000
	before := liveHeap(t, synthetic(t, short, 20), short)
	after := liveHeap(t, synthetic(t, long, 20), long)
	// A word for each record would be 8 bytes; what is left is the runtime's own.
	each := float64(after-before) / (long - short)
	t.Logf("%.2f bytes for each record", each)
	if each > 3 {
		t.Errorf("the heap has %d KiB after %d records and %d KiB after %d: %.1f bytes for each", before>>10, short, after>>10,
			long, each)
	}
}

// solvedAtOnce yields jobs that each end with a block, in one record. Each block has another miner of a few.
func solvedAtOnce(t testing.TB, blocks int) Records {
	return func(yield func(Record, error) bool) {
		state, previous := fsm.New(), pow.Sum([]byte("solved at once"))
		for i := range blocks {
			n := uint64(i) + 1
			miner := fmt.Sprintf("miner-%d", i%20)
			job := fsm.OpenJob{Height: n, Previous: previous, Bits: 0, Timestamp: n, Nonces: pow.Range{First: 1, Last: 1000}, ChunkSize: 10}
			commands := []fsm.Command{job, fsm.GrantWork{JobID: n, Miner: miner, Instance: fsm.ID{1}, RequestID: n, Chunks: 3},
				fsm.Solve{JobID: n, GrantID: n, Miner: miner, Timestamp: n, Nonce: 7}, fsm.Submitting{JobID: n},
				fsm.Submitted{JobID: n, Verdict: fsm.VerdictSuccess, Detail: "success"}}
			if i == 0 {
				commands = append([]fsm.Command{fsm.OpenCluster{ClusterID: "blocks"}, fsm.TakeOffice{ServerID: 1}}, commands...)
			}
			data, err := fsm.EncodeEntry(fsm.Entry{LeaderID: 1, UnixMilli: 1_790_000_000_000 + n, Version: "0.1.0", Commands: commands})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := state.Apply(n, 1, data); err != nil {
				t.Fatal(err)
			}
			previous = pow.Work{Previous: previous, Timestamp: n}.Digest(7)
			if !yield(Record{Index: n, Term: 1, Data: data, Chain: state.Head().Hash}, nil) {
				return
			}
		}
	}
}

// TestMemoryOfBlocksIsThatOfTheState: the state keeps a row for every block. Their stories are gone when they were told.
func TestMemoryOfBlocksIsThatOfTheState(t *testing.T) {
	const short, long = 20, 1_000
	before := liveHeap(t, solvedAtOnce(t, short), short)
	after := liveHeap(t, solvedAtOnce(t, long), long)
	const row = 240 // of fsm.State; slices have up to twice the room
	each := float64(after-before) / (long - short)
	t.Logf("%.0f bytes for each block", each)
	if each > 2*row {
		t.Errorf("the heap has %d KiB after %d blocks and %d KiB after %d: %.0f bytes for each", before>>10, short, after>>10,
			long, each)
	}
}
