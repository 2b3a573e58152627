package audit

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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
		if CheckInclusion(path, head, uint64(n), record) == nil || CheckInclusion(path, head, uint64(n)+1, records[n]) == nil {
			t.Errorf("record %d: another one is proved", n)
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

// TestEveryValueOfAProofCounts changes each digit and letter of each value, one at a time. Only the number of records of the
// head is not covered by the paths: whoever trusts a head knows both of it.
func TestEveryValueOfAProofCounts(t *testing.T) {
	file := proofOf(t, golden(t), 1)
	if _, err := VerifyProof(bytes.NewReader(file)); err != nil {
		t.Fatal(err)
	}
	values := regexp.MustCompile(`: ?"?([^",{}\[\]]+)"?|^ *"([0-9a-f]{64})"`)
	changed := 0
	for _, line := range bytes.Split(file, []byte("\n")) {
		span := values.FindSubmatchIndex(line)
		if span == nil || bytes.Contains(line, []byte(`"records": `)) {
			continue
		}
		from, to := max(span[2], span[4]), max(span[3], span[5])
		start := bytes.Index(file, line)
		for at := start + from; at < start+to; at += 1 + (to-from)/16 {
			bad := bytes.Clone(file)
			if bad[at] ^= 1; bad[at] == '"' || bad[at] == '\\' {
				bad[at] = 'x'
			}
			changed++
			if _, err := VerifyProof(bytes.NewReader(bad)); !errors.Is(err, ErrBadProof) {
				t.Errorf("%q at byte %d of %q: %v", bad[at], at-start, line, err)
			}
		}
	}
	if changed < 300 {
		t.Errorf("only %d changes were tried", changed)
	}
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
