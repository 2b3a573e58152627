package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// writeLongHistory writes the journal of a history in which miners answer for a range and get the next one, in one record each
// time. The ranges are small, so that honest receipts are made quickly.
func writeLongHistory(b testing.TB, dir string, records, miners int) {
	const chunks = 5
	journal := newJournalWriter("benched")
	index := uint64(0)
	put := func(commands ...fsm.Command) {
		index++
		data, err := fsm.EncodeEntry(fsm.Entry{LeaderID: 1, UnixMilli: 1_790_000_000_000 + index, Version: version, Commands: commands})
		if err != nil {
			b.Fatal(err)
		}
		journal.add(index, 1, data)
	}
	job := fsm.OpenJob{Height: 1, Previous: pow.Sum([]byte("long history")), Bits: 80, Timestamp: 1_790_000_000_000,
		Nonces: pow.Range{First: 1, Last: 1 << 31}, ChunkSize: 1}
	work := pow.Work{Previous: job.Previous, Timestamp: job.Timestamp, Bits: job.Bits}
	put(fsm.OpenCluster{ClusterID: "benched"}, fsm.TakeOffice{ServerID: 1})
	put(job)
	nonces := make([]pow.Range, miners)
	next := uint64(1)
	for i := range records - 2 {
		m, round := i%miners, i/miners
		name := fmt.Sprintf("miner-%04d", m)
		grant := fsm.GrantWork{JobID: 1, Miner: name, Instance: fsm.ID{1}, RequestID: uint64(round) + 1, Chunks: chunks}
		commands := []fsm.Command{grant}
		if round > 0 {
			best := nonces[m].First
			for nonce := best + 1; nonce <= nonces[m].Last; nonce++ {
				if work.Digest(nonce).Compare(work.Digest(best)) < 0 {
					best = nonce
				}
			}
			commands = []fsm.Command{fsm.Finish{JobID: 1, GrantID: uint64(i - miners + 1), Miner: name, Timestamp: job.Timestamp,
				Nonces: nonces[m], Receipt: best}, grant}
		}
		nonces[m] = pow.Range{First: next, Last: next + chunks - 1}
		next += chunks
		put(commands...)
	}
	if err := os.MkdirAll(filepath.Join(dir, "journal"), 0o700); err != nil {
		b.Fatal(err)
	}
	for name, content := range journal.files() {
		if err := os.WriteFile(filepath.Join(dir, "journal", name), content, 0o600); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAudit is "raftmine audit" of a server's data directory, and of a run's folder with three. Want 200,000 records a
// second of processor time of one directory.
func BenchmarkAudit(b *testing.B) {
	const records = 200_000
	for _, servers := range []int{1, 3} {
		b.Run(fmt.Sprintf("servers=%d", servers), func(b *testing.B) {
			run := b.TempDir()
			dirs := make([]string, servers)
			for i := range dirs {
				dirs[i] = filepath.Join(run, fmt.Sprint(i+1))
				writeLongHistory(b, dirs[i], records, 100)
			}
			before := ownProcessorTime(b)
			for b.Loop() {
				if code := execute(context.Background(), append([]string{"audit"}, dirs...), io.Discard, os.Stderr); code != exitDone {
					b.Fatalf("exit code %d", code)
				}
			}
			done := float64(b.N * servers * records)
			b.ReportMetric(done/(ownProcessorTime(b)-before).Seconds(), "records/cpu-s")
			b.ReportMetric(done/b.Elapsed().Seconds(), "records/s")
		})
	}
}
