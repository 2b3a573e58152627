package audit

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// synthetic yields a long history without keeping it: one job that is never solved, and miners that answer for a range
// and get the next one, in one record each time.
func synthetic(t testing.TB, records, miners int) Records {
	return func(yield func(Record, error) bool) {
		var head fsm.Head
		index := uint64(0)
		put := func(commands ...fsm.Command) bool {
			index++
			data, err := fsm.EncodeEntry(fsm.Entry{LeaderID: 1, UnixMilli: 1_790_000_000_000 + index, Version: "0.1.0", Commands: commands})
			if err != nil {
				t.Fatal(err)
			}
			head = head.Next(index, 1, data)
			return yield(Record{Index: index, Term: 1, Data: data, Chain: head.Hash}, nil)
		}
		const chunk, chunks = 100_000, 5
		job := fsm.OpenJob{Height: 1, Previous: pow.Sum([]byte("synthetic")), Bits: 80, Timestamp: 1_790_000_000_000,
			Nonces: pow.Range{First: 1, Last: chunk << 34}, ChunkSize: chunk}
		if !put(fsm.OpenCluster{ClusterID: "synthetic"}, fsm.TakeOffice{ServerID: 1}) || !put(job) {
			return
		}
		nonces := make([]pow.Range, miners)
		next := uint64(1)
		for i := range records - 2 {
			m, round := i%miners, i/miners
			name := fmt.Sprintf("miner-%04d", m)
			grant := fsm.GrantWork{JobID: 1, Miner: name, Instance: fsm.ID{1}, RequestID: uint64(round) + 1, Chunks: chunks}
			commands := []fsm.Command{grant}
			if round > 0 {
				commands = []fsm.Command{fsm.Finish{JobID: 1, GrantID: uint64(i - miners + 1), Miner: name, Timestamp: job.Timestamp,
					Nonces: nonces[m], Receipt: nonces[m].First + 77}, grant}
			}
			nonces[m] = pow.Range{First: next, Last: next + chunks*chunk - 1}
			next += chunks * chunk
			if !put(commands...) {
				return
			}
		}
	}
}

// kept copies a history into memory, so that a benchmark does not measure how it is made.
func kept(records Records) (all []Record) {
	for r := range records {
		all = append(all, r)
	}
	return all
}

// BenchmarkReplay is what an audit costs. Nearly every record is a finished range and the grant that follows, 2 commands
// and 120 bytes: histories of real runs have 2 commands and 104 bytes in the mean. Want 200,000 records a second of
// processor time, garbage collection and all; what the clock says depends on what else the machine does.
func BenchmarkReplay(b *testing.B) {
	for _, miners := range []int{10, 1000} {
		b.Run(fmt.Sprintf("miners=%d", miners), func(b *testing.B) {
			records := kept(synthetic(b, 200_000, miners))
			runtime.GC()
			b.ReportAllocs()
			before := processorTime(b)
			for b.Loop() {
				replay(b, records, Options{})
			}
			done := float64(b.N * len(records))
			b.ReportMetric(done/(processorTime(b)-before).Seconds(), "records/cpu-s")
			b.ReportMetric(done/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// processorTime returns what this process has used so far, on all cores.
func processorTime(t testing.TB) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
