package fsm

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzApplyBytes applies any bytes as an entry, to states in each phase: an error leaves the state as it was, anything
// else a state that passes Check and comes back from a snapshot.
func FuzzApplyBytes(f *testing.F) {
	f.Add([]byte{EntryVersion})
	for _, command := range everyCommand() {
		f.Add(encode(f, command))
	}
	f.Add(encode(f, everyCommand()...))
	f.Add(encode(f, finish("a", 1, 1, 100), grantWork("c", 1, 3), Release{"b", []uint64{2}, ReleaseLeft, true}))
	solvedJob, solve := solved(f)
	f.Add(encode(f, solve, Submitting{1}, Submitted{1, VerdictSuccess, "ok"}))
	var starts [][]byte
	for _, r := range []*replica{newReplica(f), full(f), withGrants(f, easyJob), solvedJob, closed(f), rolled(f)} {
		starts = append(starts, write(f, r.State.Snapshot()))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, start := range starts {
			state, err := ReadSnapshot(bytes.NewReader(start))
			if err != nil {
				t.Fatal(err)
			}
			before := state.Digest()
			next := state.Head()
			if _, err := state.Apply(next.Index+1, next.Term+1, data); err != nil {
				if !errors.Is(err, ErrBadEntry) || state.Digest() != before {
					t.Fatalf("state changed: %t, %v", state.Digest() != before, err)
				}
				continue
			}
			if err := state.Check(); err != nil {
				t.Fatal(err)
			}
			if restore(t, state.Snapshot()).Digest() != state.Digest() {
				t.Fatal("the snapshot restores another state")
			}
			entry, err := DecodeEntry(data)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := EncodeEntry(entry); err != nil {
				t.Fatalf("what was decoded cannot be encoded: %v", err)
			}
		}
	})
}

// FuzzReadSnapshot restores any bytes, without asking for the right digest, which no fuzzer finds. What is restored must
// be a state like any other.
func FuzzReadSnapshot(f *testing.F) {
	solvedJob, _ := solved(f)
	for _, r := range []*replica{newReplica(f), full(f), hardGrants(f), solvedJob, closed(f), rolled(f)} {
		f.Add(write(f, r.State.Snapshot()))
	}
	golden, err := filepath.Glob(filepath.Join(goldenFolder, "*.snapshot"))
	if err != nil || len(golden) == 0 {
		f.Fatalf("no golden snapshots: %v", err)
	}
	for _, path := range golden {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := ReadSnapshot(bytes.NewReader(data)); err != nil && !errors.Is(err, ErrBadSnapshot) {
			t.Fatalf("it is not said to be bad: %v", err)
		}
		state, _, err := readState(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		if restore(t, state.Snapshot()).Digest() != state.Digest() {
			t.Fatal("its own snapshot restores another state")
		}
		job, ok := state.Job()
		if head := state.Head(); !ok || head.Index+1 == 0 {
			return
		}
		commands := []Command{GrantWork{JobID: job.ID, Miner: "z", RequestID: 1, Chunks: 2}, CloseJob{JobID: job.ID}}
		for grant := range state.Grants() {
			commands = append(commands, Finish{JobID: job.ID, GrantID: grant.ID, Miner: grant.Miner,
				Timestamp: job.Timestamp, Nonces: grant.Nonces, Receipt: grant.Nonces.First},
				Release{Miner: grant.Miner, Reason: ReleaseLeft, Forget: true})
		}
		head := state.Head()
		if _, err := state.Apply(head.Index+1, head.Term+1, encode(t, commands...)); err != nil {
			return // its head is the last one that can be
		}
		if err := state.Check(); err != nil {
			t.Fatal(err)
		}
	})
}
