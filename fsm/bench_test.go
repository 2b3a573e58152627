package fsm

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"testing"

	"raftmine/fsm/pow"
)

// manyMiners returns a state with that many miners, each of which holds two grants.
func manyMiners(b *testing.B, miners int) *State {
	b.Helper()
	state := New()
	commands := []Command{changed(hardJob, func(j *OpenJob) { j.Nonces.Last, j.ChunkSize = 2_000_000_000_000, 100_000 })}
	for i := range 2 * miners {
		name := fmt.Sprintf("miner-%06d", i/2)
		commands = append(commands, GrantWork{JobID: 1, Miner: name, RequestID: uint64(i%2) + 1, Chunks: 10})
	}
	if _, err := state.Apply(1, 1, encode(b, commands...)); err != nil {
		b.Fatal(err)
	}
	return state
}

// BenchmarkApply applies entries of 256 commands, half of them answers and half the grants that follow, of 5,000 miners.
func BenchmarkApply(b *testing.B) {
	state := manyMiners(b, 5000)
	const chunks = 1
	grants := state.work.grants
	next, request, index := 0, uint64(3), uint64(1)
	for b.Loop() {
		b.StopTimer()
		commands := make([]Command, 0, 256)
		held := slices.Clone(grants[:128])
		for _, g := range held {
			request++
			commands = append(commands,
				Finish{JobID: 1, GrantID: g.ID, Miner: g.Miner, Timestamp: 1000, Nonces: g.Nonces, Receipt: g.Nonces.First},
				GrantWork{JobID: 1, Miner: g.Miner, RequestID: request, Chunks: chunks})
		}
		index++
		data := encode(b, commands...)
		if state.Counts().Pending < 256*chunks {
			b.Fatal("the job is too small")
		}
		b.StartTimer()
		result, err := state.Apply(index, 1, data)
		if err != nil || result.Outcomes[0].Code != Done || result.Outcomes[255].Code != Done {
			b.Fatalf("%s, %s: %v", result.Outcomes[0].Code, result.Outcomes[255].Code, err)
		}
		grants = state.work.grants
		next += 256
	}
	b.ReportMetric(float64(next)/b.Elapsed().Seconds(), "commands/s")
}

func BenchmarkEncodeEntry(b *testing.B) {
	commands := make([]Command, 256)
	for i := range commands {
		commands[i] = Finish{JobID: 1, GrantID: uint64(i), Miner: "miner-000001", Timestamp: 1_790_000_000_000,
			Nonces: pow.Range{First: 1_000_001, Last: 2_000_000}, Receipt: 1_234_567}
	}
	for b.Loop() {
		encode(b, commands...)
	}
}

func BenchmarkDigest(b *testing.B) {
	state := manyMiners(b, 5000)
	for b.Loop() {
		state.Digest()
	}
}

// BenchmarkSnapshot is what Apply waits for.
func BenchmarkSnapshot(b *testing.B) {
	state := manyMiners(b, 5000)
	b.ReportAllocs()
	for b.Loop() {
		state.Snapshot()
	}
}

func BenchmarkSnapshotWrite(b *testing.B) {
	snapshot := manyMiners(b, 5000).Snapshot()
	for b.Loop() {
		n, err := snapshot.WriteTo(io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(n)
	}
}

func BenchmarkReadSnapshot(b *testing.B) {
	file := write(b, manyMiners(b, 5000).Snapshot())
	b.SetBytes(int64(len(file)))
	for b.Loop() {
		if _, err := ReadSnapshot(bytes.NewReader(file)); err != nil {
			b.Fatal(err)
		}
	}
}
