package audit

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/fsmpb"
	"raftmine/fsm/pow"
)

// everyWord has an entry for each command, code, reason and verdict that version 1 of an export names.
func everyWord() (entries []fsm.Entry, results []fsm.Result) {
	add := func(command fsm.Command, outcome fsm.Outcome) {
		entries = append(entries, fsm.Entry{LeaderID: 2, UnixMilli: 1_790_000_000_000, Version: "0.1.0", Commands: []fsm.Command{command}})
		results = append(results, fsm.Result{Outcomes: []fsm.Outcome{outcome}})
	}
	host, nonces := fsm.Host{MachineID: "machine", BootID: "boot"}, pow.Range{First: 1, Last: 1<<64 - 1}
	done := fsm.Outcome{Code: fsm.Done}
	add(fsm.OpenCluster{ClusterID: "cluster"}, done)
	add(fsm.AddServer{RequestID: fsm.ID{1, 0xab}, Address: "127.0.0.1:1", DataDir: "/data", Host: host}, fsm.Outcome{Code: fsm.Done, ServerID: 3})
	add(fsm.UpdateServer{ServerID: 3, Address: "127.0.0.1:2", DataDir: "/<\u2028\"", Host: host}, done)
	add(fsm.ReadmitServer{ServerID: 3}, done)
	add(fsm.RemoveServer{ServerID: 3, Reason: "gone"}, done)
	add(fsm.ServerUp{ServerID: 3}, done)
	add(fsm.ServerDown{ServerID: 3, Reason: "silent"}, done)
	add(fsm.TakeOffice{ServerID: 2}, done)
	add(fsm.OpenJob{Height: 4, Previous: pow.Hash{0xcd}, Bits: 24, Timestamp: 5, Nonces: nonces, ChunkSize: 6}, fsm.Outcome{Code: fsm.Done, JobID: 7})
	add(fsm.GrantWork{JobID: 7, Miner: "a", Instance: fsm.ID{8}, RequestID: 9, Chunks: 10},
		fsm.Outcome{Code: fsm.Done, Grant: fsm.Grant{ID: 11, JobID: 7, Miner: "a", Instance: fsm.ID{8}, Nonces: nonces, Index: 12}})
	add(fsm.Finish{JobID: 7, GrantID: 11, Miner: "a", Timestamp: 5, Nonces: nonces, Receipt: 13}, done)
	add(fsm.Solve{JobID: 7, GrantID: 11, Miner: "a", Timestamp: 5, Nonce: 14}, done)
	for reason := fsm.ReleaseSilent; reason <= fsm.ReleaseRefused; reason++ {
		add(fsm.Release{Miner: "a", GrantIDs: []uint64{11, 15}, Reason: reason, Forget: reason == fsm.ReleaseLeft}, done)
	}
	add(fsm.Release{Miner: "a", Reason: fsm.ReleaseSilent}, done)
	add(fsm.Strike{Miner: "a", Reason: "wrong receipt"}, done)
	add(fsm.Roll{JobID: 7, Round: 1, Timestamp: 6}, done)
	add(fsm.Submitting{JobID: 7}, done)
	for verdict := fsm.VerdictSuccess; verdict <= fsm.VerdictUnknown; verdict++ {
		add(fsm.Submitted{JobID: 7, Verdict: verdict, Detail: "timeout"}, done)
	}
	add(fsm.Submitted{JobID: 7, Verdict: fsm.VerdictWrong, Detail: "no"}, fsm.Outcome{Code: fsm.Stale, Detail: "job 7 is settled: success"})
	add(fsm.CloseJob{JobID: 7, Reason: "moved"}, done)
	add(fsm.Revoke{JobID: 7, Round: 1, Miner: "a", Ranges: []pow.Range{{First: 1, Last: 2}, {First: 5, Last: 6}}, Reason: "receipts"}, done)
	add(fsm.ClusterStop{Reason: "planned"}, done)
	add(fsm.Recover{RecoveryID: fsm.ID{16}, Survivor: 1, Index: 2, Term: 3, Head: pow.Hash{17}}, done)
	for code := fsm.Done; code <= fsm.Refused; code++ {
		outcome := fsm.Outcome{Code: code}
		if code > fsm.Duplicate {
			outcome.Detail = "one line"
		}
		add(fsm.Submitting{JobID: 7}, outcome)
	}
	return entries, results
}

// TestWordsOfExportsStayWhatTheyAre: a check of an export compares what it says of each record letter by letter, so every
// name in it is a promise. What outcomes say in detail is pinned in package fsm.
func TestWordsOfExportsStayWhatTheyAre(t *testing.T) {
	entries, results := everyWord()
	var words bytes.Buffer
	commands := make(map[reflect.Type]bool)
	for i, entry := range entries {
		words.Write(Readable(Record{}, entry, results[i]))
		words.WriteByte('\n')
		commands[reflect.TypeOf(entry.Commands[0])] = true
	}
	if all := new(fsmpb.Command).ProtoReflect().Descriptor().Oneofs().ByName("command").Fields().Len(); len(commands) != all {
		t.Errorf("%d commands are tested, of %d", len(commands), all)
	}
	path := filepath.Join(goldenFolder, "v1.words.jsonl")
	want, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && *update {
		want, err = words.Bytes(), os.WriteFile(path, words.Bytes(), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	got, lines := bytes.Split(words.Bytes(), []byte("\n")), bytes.Split(want, []byte("\n"))
	for i := range max(len(got), len(lines)) {
		if i >= len(got) || i >= len(lines) || !bytes.Equal(got[i], lines[i]) {
			t.Fatalf("line %d of %s is another now; got\n%s", i+1, path, words.Bytes())
		}
	}
}
