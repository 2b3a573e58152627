package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"raftmine/fsm/pow"
)

var update = flag.Bool("update", false, "write golden files of a version that has none; existing ones are never rewritten")

const goldenFolder = "../testdata/fsm"

// goldenLog is a history that holds every command, with all fields set, and nearly every outcome. It is the log of entry
// version 1: what it holds may not change, because what was written then must stay readable. A new version gets another.
func goldenLog(t *testing.T) (entries []Entry, solvedAt int) {
	host := Host{MachineID: "0123456789abcdef", BootID: "fedcba9876543210"}
	first := OpenJob{Height: 7, Previous: pow.Sum([]byte("golden")), Bits: 10, Timestamp: 1_790_000_000_123,
		Nonces: pow.Range{First: 1, Last: 9_950}, ChunkSize: 1_000}
	last := first
	last.Height, last.Timestamp, last.Bits, last.Nonces.Last = 8, 1_790_000_000_500, 200, 1<<64-1
	last.ChunkSize = MaxChunkSize
	nonce, _ := search(pow.Work{Previous: first.Previous, Bits: 10, Timestamp: first.Timestamp}, first.Nonces)
	if nonce == 0 || nonce > 3_000 {
		t.Fatalf("the first solution is %d", nonce)
	}
	grant := func(job uint64, miner string, request, chunks uint64) GrantWork {
		return GrantWork{JobID: job, Miner: miner, Instance: ID{0xaa, byte(request)}, RequestID: request, Chunks: chunks}
	}
	for i, commands := range [][]Command{
		{OpenCluster{ClusterID: "3f0d2b1c-golden"}, TakeOffice{ServerID: 1},
			AddServer{RequestID: ID{1}, Address: "127.0.0.1:7001", DataDir: "/data/1", Host: host}, ServerUp{ServerID: 1}},
		{AddServer{RequestID: ID{2}, Address: "127.0.0.1:7002", DataDir: "/data/2", Host: host}, ServerUp{ServerID: 2},
			AddServer{RequestID: ID{3}, Address: "127.0.0.1:7003", DataDir: "/data/3", Host: host}},
		{UpdateServer{ServerID: 2, Address: "127.0.0.1:7012", DataDir: "/data/2", Host: host},
			ServerDown{ServerID: 1, Reason: "port refused"}, RemoveServer{ServerID: 3, Reason: "silent for 60 s"},
			ReadmitServer{ServerID: 3}, ServerUp{ServerID: 9}},
		{first, grant(1, "miner-a", 1, 4), grant(1, "miner-b", 1, 3), grant(1, "miner-c", 1, 1), grant(1, "miner-a", 1, 4)},
		{Finish{JobID: 1, GrantID: 2, Miner: "miner-b", Timestamp: first.Timestamp,
			Nonces: pow.Range{First: 4_001, Last: 5_000}, Receipt: 4_242},
			Finish{JobID: 1, GrantID: 2, Miner: "miner-c", Timestamp: first.Timestamp,
				Nonces: pow.Range{First: 5_001, Last: 6_000}, Receipt: 5_001},
			Strike{Miner: "miner-c", Reason: "another miner's grant"},
			Revoke{JobID: 1, Round: 0, Miner: "miner-b", Ranges: []pow.Range{{First: 4_001, Last: 5_000}}, Reason: "audit"}},
		{Release{Miner: "miner-c", GrantIDs: []uint64{3}, Reason: ReleaseRefused, Forget: true},
			Solve{JobID: 1, GrantID: 1, Miner: "miner-a", Timestamp: first.Timestamp, Nonce: nonce},
			Submitting{JobID: 1}},
		{Submitted{JobID: 1, Verdict: VerdictSuccess, Detail: "success"}, last},
		{grant(2, "miner-a", 2, 1<<33), grant(2, "miner-b", 2, 3), grant(2, "miner-a", 3, 2),
			Finish{JobID: 2, GrantID: 5, Miner: "miner-b", Timestamp: last.Timestamp,
				Nonces:  pow.Range{First: 1<<33*MaxChunkSize + 1, Last: 1<<33*MaxChunkSize + MaxChunkSize},
				Receipt: 1<<33*MaxChunkSize + 9},
			Roll{JobID: 2, Round: 1, Timestamp: last.Timestamp + 1},
			Release{Miner: "miner-b", Reason: ReleaseSilent}},
		{Strike{Miner: "miner-b", Reason: "wrong receipt"}, ClusterStop{Reason: "planned stop"},
			Recover{RecoveryID: ID{0xee}, Survivor: 2, Index: 24, Term: 3, Head: pow.Sum([]byte("head"))}},
		{CloseJob{JobID: 9, Reason: "never opened"}, CloseJob{JobID: 1, Reason: "closed long ago"}},
	} {
		if len(commands) == 3 && solvedAt == 0 {
			if _, ok := commands[2].(Submitting); ok {
				solvedAt = i
			}
		}
		entries = append(entries, Entry{LeaderID: 1, UnixMilli: 1_790_000_001_000 + uint64(i), Version: "v0.1.0-golden",
			Commands: commands})
	}
	return entries, solvedAt
}

// Raft's own entries leave gaps between indexes, and terms grow.
func goldenIndex(i int) (index, term uint64) { return 3*uint64(i) + 2, 1 + uint64(i)/4 }

// writeGolden writes a file that is not there yet.
func writeGolden(t *testing.T, name string, data []byte) {
	t.Helper()
	path := filepath.Join(goldenFolder, name)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		t.Logf("%s is there and stays as it is: a new version adds a file", path)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

func readGolden(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(goldenFolder, name))
	if err != nil {
		t.Fatalf("%v: go test -update writes what is not there", err)
	}
	return data
}

// goldenLine is one entry of a golden log: index, term, state digest after it, outcomes, bytes.
func goldenLine(index, term uint64, digest pow.Hash, result Result, data []byte) string {
	codes := make([]byte, len(result.Outcomes))
	for i, outcome := range result.Outcomes {
		codes[i] = '0' + byte(outcome.Code)
	}
	return fmt.Sprintf("%d %d %s %s %x\n", index, term, digest, codes, data)
}

func TestHistoryOfVersion1GivesTheSameStatesForever(t *testing.T) {
	entries, solvedAt := goldenLog(t)
	if *update {
		state, log := New(), bytes.Buffer{}
		for i, entry := range entries {
			data, err := EncodeEntry(entry)
			if err != nil {
				t.Fatal(err)
			}
			index, term := goldenIndex(i)
			result, err := state.Apply(index, term, data)
			if err != nil {
				t.Fatal(err)
			}
			log.WriteString(goldenLine(index, term, state.Digest(), result, data))
			if i == solvedAt {
				writeGolden(t, "v1-solved.snapshot", write(t, state.Snapshot()))
			}
		}
		writeGolden(t, "v1.log", log.Bytes())
		writeGolden(t, "v1.snapshot", write(t, state.Snapshot()))
	}

	state := New()
	scanner := bufio.NewScanner(bytes.NewReader(readGolden(t, "v1.log")))
	scanner.Buffer(nil, MaxEntrySize)
	count := 0
	kinds := make(map[reflect.Type]bool)
	for ; scanner.Scan(); count++ {
		var index, term uint64
		var digest, codes, text string
		if _, err := fmt.Sscan(scanner.Text(), &index, &term, &digest, &codes, &text); err != nil {
			t.Fatalf("line %d: %v", count+1, err)
		}
		data, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		entry, err := DecodeEntry(data)
		if err != nil || !reflect.DeepEqual(entry, entries[count]) {
			t.Fatalf("line %d is decoded as\n%+v, want\n%+v: %v", count+1, entry, entries[count], err)
		}
		for _, command := range entry.Commands {
			kinds[reflect.TypeOf(command)] = true
		}
		result, err := state.Apply(index, term, data)
		if err != nil {
			t.Fatal(err)
		}
		if got := goldenLine(index, term, state.Digest(), result, data); got != scanner.Text()+"\n" {
			t.Fatalf("line %d gives %s, want %s", count+1, got, scanner.Text())
		}
		if err := state.Check(); err != nil {
			t.Fatal(err)
		}
		if count == solvedAt {
			checkGoldenSnapshot(t, "v1-solved.snapshot", state)
		}
	}
	if count != len(entries) || len(kinds) != len(everyCommand()) {
		t.Errorf("%d entries with %d kinds of commands, want %d with %d", count, len(kinds), len(entries), len(everyCommand()))
	}
	checkGoldenSnapshot(t, "v1.snapshot", state)
}

func checkGoldenSnapshot(t *testing.T, name string, want *State) {
	t.Helper()
	restored, err := ReadSnapshot(bytes.NewReader(readGolden(t, name)))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if restored.Digest() != want.Digest() {
		t.Errorf("%s has digest %s, want %s", name, restored.Digest(), want.Digest())
	}
}

// The formula is protocol: journals are chained with it.
func TestHeadChainsTheHistory(t *testing.T) {
	head := Head{}.Next(3, 2, []byte("abc")).Next(5, 2, nil)
	message := append(make([]byte, 32), 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 'a', 'b', 'c')
	hash := sha256.Sum256(message)
	message = append(hash[:], 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0)
	if want := (Head{Records: 2, Index: 5, Term: 2, Hash: sha256.Sum256(message)}); head != want {
		t.Errorf("it is %+v, want %+v", head, want)
	}
	r := withGrants(t, hardJob)
	before := r.Head()
	data := encode(t, Strike{"a", "x"})
	if _, err := r.State.Apply(9, 4, data); err != nil || r.Head() != before.Next(9, 4, data) {
		t.Errorf("after an entry it is %+v, want %+v: %v", r.Head(), before.Next(9, 4, data), err)
	}
}
