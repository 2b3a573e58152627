package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// TestTreeIsTlogs compares with golang.org/x/mod/sumdb/tlog at every size.
func TestTreeIsTlogs(t *testing.T) {
	w := history(t, 9, 4, 2)
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (hashes []tlog.Hash, err error) {
		for _, at := range indexes {
			hashes = append(hashes, stored[at])
		}
		return hashes, nil
	})
	var own tree
	for n, r := range w.records[:100] {
		more, err := tlog.StoredHashes(int64(n), appendLeaf(nil, r.Index, r.Term, r.Data), reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, more...)
		own.add(r.Index, r.Term, r.Data)
		if want, err := tlog.TreeHash(int64(n)+1, reader); err != nil || pow.Hash(want) != own.root() {
			t.Fatalf("%d records: %s, want %s (%v)", n+1, own.root(), pow.Hash(want), err)
		}
	}
}

func TestEveryRecordAndEveryBeginningIsProved(t *testing.T) {
	w := history(t, 10, 3, 2)
	records := w.records[:37]
	head := replay(t, records, Options{}).Head
	var older []Head
	for n := range records {
		older = append(older, replay(t, records[:n+1], Options{}).Head)
	}
	for n := range records {
		path, record, err := ProveInclusion(recordsOf(w.records), head, uint64(n)) // the history has grown meanwhile
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckInclusion(path, head, uint64(n), record); err != nil || record.Index != records[n].Index {
			t.Errorf("record %d: %v", n, err)
		}
		record.Term++
		said := fmt.Sprintf("record %d is not number %d, counted from 0, ", record.Index, n) // by its index, as an audit names it
		if err := CheckInclusion(path, head, uint64(n), record); err == nil || !strings.HasPrefix(err.Error(), said) ||
			CheckInclusion(path, head, uint64(n)+1, records[n]) == nil {
			t.Errorf("record %d: another one is proved, or %v", n, err)
		}
		prefix, err := ProvePrefix(recordsOf(w.records), head, uint64(n)+1)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckPrefix(prefix, head, older[n]); err != nil {
			t.Errorf("%d records: %v", n+1, err)
		}
		forged := older[n]
		forged.Tree[3] ^= 1
		if CheckPrefix(prefix, head, forged) == nil {
			t.Errorf("%d records: another beginning is proved", n+1)
		}
	}
	if _, _, err := ProveInclusion(recordsOf(records), head, 37); !errors.Is(err, ErrNotFound) {
		t.Errorf("a record after the end: %v", err)
	}
	if _, err := ProvePrefix(recordsOf(records[1:]), head, 3); !errors.Is(err, ErrBroken) {
		t.Errorf("another history: %v", err)
	}
}

func proofOf(t *testing.T, w *world, height uint64) []byte {
	t.Helper()
	proof, err := ProveBlock(func() (Records, error) { return recordsOf(w.records), nil }, height)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if _, err := proof.WriteTo(&file); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func TestBlockProofsHold(t *testing.T) {
	w := history(t, 11, 6, 12)
	rolled := 0
	head := replay(t, w.records, Options{}).Head
	for _, block := range w.state.Blocks(0, 0) {
		if block.Verdict != fsm.VerdictSuccess {
			continue
		}
		proof, err := VerifyProof(bytes.NewReader(proofOf(t, w, block.Height)))
		if err != nil {
			t.Fatalf("block %d: %v", block.Height, err)
		}
		b := proof.Block
		if b.Hash != block.Hash || b.Nonce != block.Nonce || b.Timestamp != block.Timestamp || b.Miner != block.Miner ||
			b.Verdict != block.Verdict || proof.ClusterID != "world-11" || proof.Head.Tree != head.Tree {
			t.Errorf("block %d: proved is %+v", block.Height, proof)
		}
		if b.Round > 0 {
			rolled++
		}
	}
	if rolled == 0 {
		t.Error("no block with a rolled timestamp was proved")
	}
	if _, err := ProveBlock(func() (Records, error) { return recordsOf(w.records), nil }, 999); !errors.Is(err, ErrNotFound) {
		t.Errorf("a block that is not there: %v", err)
	}
	w.records[5].Chain[0] ^= 1
	if _, err := ProveBlock(func() (Records, error) { return recordsOf(w.records), nil }, 1); !errors.Is(err, ErrBroken) {
		t.Errorf("a broken history: %v", err)
	}
}

// unproved are the values of a proof that no record says, see BlockProof. "raftmine proof --help" names them.
var unproved = map[string]string{
	"head.records":          "paths lead to the tree from histories of some other lengths too",
	"block.grant_first":     "the range follows from all records before",
	"block.grant_last":      "the range follows from all records before",
	"records.grant.command": "which of a miner's requests it was follows from all records before",
}

// TestEveryValueOfAProofCounts changes each value of each proof in many ways, one at a time. Each change is refused, but for
// those values that are known to be unproved; and they really are.
func TestEveryValueOfAProofCounts(t *testing.T) {
	changed, accepted := 0, make(map[string]bool)
	for _, file := range manyProofs(t) {
		var whole map[string]any
		in := json.NewDecoder(bytes.NewReader(file))
		in.UseNumber()
		if err := in.Decode(&whole); err != nil {
			t.Fatal(err)
		}
		changeEach(whole, "", func(any) {}, func(where string) {
			bad, err := json.Marshal(whole)
			if err != nil {
				t.Fatal(err)
			}
			changed++
			switch _, err := VerifyProof(bytes.NewReader(bad)); {
			case errors.Is(err, ErrBadProof):
			case err == nil && unproved[where] != "":
				accepted[where] = true
			default:
				t.Errorf("%s is changed: %v\n%s", where, err, bad)
			}
		})
	}
	t.Logf("%d changes", changed)
	for where := range unproved {
		if !accepted[where] {
			t.Errorf("%s is proved after all", where)
		}
	}
}

// manyProofs returns proofs of all kinds of blocks: with a rolled timestamp and without, and of a miner that asked for two
// grants in one record.
func manyProofs(t *testing.T) (files [][]byte) {
	w := history(t, 11, 6, 12)
	kinds := make(map[string]bool)
	for _, block := range w.state.Blocks(0, 0) {
		file := proofOf(t, w, block.Height)
		proof, err := VerifyProof(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		if kind := fmt.Sprint(proof.Block.Verdict, proof.Block.Round > 0); !kinds[kind] {
			kinds[kind] = true
			files = append(files, file)
		}
	}
	if !kinds["success true"] || !kinds["success false"] {
		t.Fatalf("there are proofs of %v, want one with a rolled timestamp, and one without", kinds)
	}
	twice := newWorld(t, 3)
	twice.bits = 2 // one of the first nonces is a solution
	m := twice.miner("a", 1)
	twice.open(1_990, 20)
	twice.commit(twice.grantCommand(m, 1), twice.grantCommand(m, 1))
	if !twice.answer(m) {
		t.Fatal("no solution")
	}
	twice.settle(fsm.VerdictSuccess)
	return append(files, proofOf(t, twice, 1), proofOf(t, golden(t), 1))
}

// changeEach changes every value below value, one at a time, calls changed and puts it back. put replaces value itself.
func changeEach(value any, where string, put func(any), changed func(where string)) {
	try := func(others ...any) {
		for _, other := range others {
			if other != value {
				put(other)
				changed(where)
			}
		}
		put(value)
	}
	switch v := value.(type) {
	case map[string]any:
		for name, field := range v {
			below := name
			if where != "" {
				below = where + "." + name
			}
			changeEach(field, below, func(other any) { v[name] = other }, changed)
		}
	case []any:
		for i := range v {
			below := where
			if record, ok := v[i].(map[string]any); ok {
				below += "." + record["role"].(string)
			}
			changeEach(v[i], below, func(other any) { v[i] = other }, changed)
			for _, other := range [][]any{slices.Delete(slices.Clone(v), i, i+1), slices.Insert(slices.Clone(v), i, v[i])} {
				put(other)
				changed(where)
				put(v) // else what is changed next is changed beside it
			}
		}
	case json.Number:
		n, _ := strconv.ParseUint(string(v), 10, 64)
		for _, other := range []uint64{0, 1, 2, 3, 4, 5, n + 1, n + 2, n - 1, n + 20, n - 20, n + 40, n - 40, 2 * n} {
			if other != n && other < 1<<62 {
				try(json.Number(strconv.FormatUint(other, 10)))
			}
		}
	case string:
		try("", v+"x", strings.ToUpper(v)+"X")
		for i := 0; i < len(v); i += 1 + len(v)/5 {
			other := []byte(v)
			if other[i] ^= 1; other[i] == '"' || other[i] == '\\' || other[i] == '~'+1 {
				other[i] = 'x'
			}
			try(string(other))
		}
		for _, verdict := range []string{"success", "wrong", "stale", "unknown", "cluster", "job", "timestamp", "grant", "solution", "verdict"} {
			try(verdict)
		}
	}
}

func TestFilesThatAreNoProofAreRefused(t *testing.T) {
	file := proofOf(t, golden(t), 1)
	for name, bad := range map[string][]byte{"empty": nil, "twice": append(bytes.Clone(file), file...), "cut off": file[:len(file)/2],
		"another thing": []byte(`{"format":"raftmine history","version":1}`)} {
		if _, err := VerifyProof(bytes.NewReader(bad)); !errors.Is(err, ErrBadProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGoldenProofStaysValid(t *testing.T) {
	path := filepath.Join(goldenFolder, "v1.proof.json")
	file, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && *update {
		file = proofOf(t, golden(t), 1)
		err = os.WriteFile(path, file, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if proof, err := VerifyProof(bytes.NewReader(file)); err != nil || proof.Block.Height != 1 {
		t.Errorf("%+v: %v", proof, err)
	}
}
