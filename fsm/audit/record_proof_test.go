package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func recordProofOf(t *testing.T, w *world, index uint64) []byte {
	t.Helper()
	proof, err := ProveRecord(func() (Records, error) { return recordsOf(w.records), nil }, index)
	if err != nil {
		t.Fatalf("record %d: %v", index, err)
	}
	var file bytes.Buffer
	if _, err := proof.WriteTo(&file); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func TestRecordIsProvedByItsIndex(t *testing.T) {
	w := history(t, 12, 3, 2)
	head := replay(t, w.records, Options{}).Head
	open := func() (Records, error) { return recordsOf(w.records), nil }
	for n, record := range w.records {
		if n%7 > 0 && n < len(w.records)-1 {
			continue
		}
		file := recordProofOf(t, w, record.Index)
		proof, err := VerifyRecordProof(bytes.NewReader(file))
		if err != nil || proof.Number != uint64(n) || proof.Record.Index != record.Index || proof.Record.Term != record.Term ||
			!bytes.Equal(proof.Record.Data, record.Data) || proof.Head.Tree != head.Tree || !StartsRecordProof(file[:60]) {
			t.Fatalf("record %d: %+v, %v", record.Index, proof, err)
		}
		// What is written with right hashes, and is another record, has another head.
		other := *proof
		other.Record = w.records[(n+1)%len(w.records)]
		if err := other.Verify(); !errors.Is(err, ErrBadProof) {
			t.Errorf("record %d is proved to be record %d: %v", other.Record.Index, record.Index, err)
		}
	}
	for _, index := range []uint64{0, head.Index + 1} {
		if _, err := ProveRecord(open, index); !errors.Is(err, ErrNotFound) {
			t.Errorf("record %d is proved: %v", index, err)
		}
	}
	broken := *w
	broken.records = append([]Record(nil), w.records...)
	broken.records[len(broken.records)-1].Chain[0]++
	if _, err := ProveRecord(func() (Records, error) { return recordsOf(broken.records), nil }, w.records[0].Index); !errors.Is(err, ErrBroken) {
		t.Errorf("a history that does not hold proves a record: %v", err)
	}
}

// TestEveryValueOfARecordProofCounts changes every value, each to another one that can be read.
func TestEveryValueOfARecordProofCounts(t *testing.T) {
	w := golden(t)
	file := recordProofOf(t, w, w.records[len(w.records)/2].Index)
	changed := 0
	spoil := func(what string, change func(*recordProofJSON)) {
		t.Helper()
		var object recordProofJSON
		if err := json.Unmarshal(file, &object); err != nil {
			t.Fatal(err)
		}
		change(&object)
		bad, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		changed++
		if _, err := VerifyRecordProof(bytes.NewReader(bad)); !errors.Is(err, ErrBadProof) {
			t.Errorf("%s: %v", what, err)
		}
	}
	spoil("format", func(p *recordProofJSON) { p.Format = prefixFormat })
	spoil("version", func(p *recordProofJSON) { p.Version++ })
	spoil("fewer records", func(p *recordProofJSON) { p.Head.Records = p.Number })
	spoil("number", func(p *recordProofJSON) { p.Number++ })
	spoil("index", func(p *recordProofJSON) { p.Index++ })
	spoil("term", func(p *recordProofJSON) { p.Term++ })
	spoil("a longer path", func(p *recordProofJSON) { p.Path = append(p.Path, p.Path[0]) })
	spoil("a shorter path", func(p *recordProofJSON) { p.Path = p.Path[1:] })
	for i := range 32 {
		spoil("tree", func(p *recordProofJSON) { p.Head.Tree[i] ^= 1 })
		spoil("path", func(p *recordProofJSON) { p.Path[i%len(p.Path)][i] ^= 1 })
	}
	for i := range w.records[len(w.records)/2].Data {
		spoil("data", func(p *recordProofJSON) {
			data, err := strictBase64.DecodeString(p.Data)
			if err != nil {
				t.Fatal(err)
			}
			data[i] ^= 1
			p.Data = strictBase64.EncodeToString(data)
		})
	}
	var object recordProofJSON
	if err := json.Unmarshal(file, &object); err != nil {
		t.Fatal(err)
	}
	for at, b := range object.Entry {
		if b < '0' || b > '9' && b < 'a' || b > 'z' {
			continue
		}
		spoil("entry", func(p *recordProofJSON) {
			p.Entry = bytes.Clone(p.Entry)
			if p.Entry[at] ^= 1; !json.Valid(p.Entry) {
				p.Entry = []byte("{}")
			}
		})
	}
	for name, bad := range map[string][]byte{"empty": nil, "twice": append(bytes.Clone(file), file...), "cut off": file[:len(file)/2],
		"a block proof": []byte(`{"format":"raftmine block proof","version":1}`), "too large": bytes.Repeat([]byte{' '}, maxRecordProof+1)} {
		changed++
		if _, err := VerifyRecordProof(bytes.NewReader(bad)); !errors.Is(err, ErrBadProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if changed < 300 {
		t.Errorf("only %d changes were tried", changed)
	}
}

func TestGoldenRecordProofStaysValid(t *testing.T) {
	path := filepath.Join(goldenFolder, "v1.record.json")
	file, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && *update {
		file = recordProofOf(t, golden(t), golden(t).records[5].Index)
		err = os.WriteFile(path, file, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	proof, err := VerifyRecordProof(bytes.NewReader(file))
	if err != nil || proof.Number != 5 {
		t.Fatalf("%+v: %v", proof, err)
	}
	var again bytes.Buffer
	if _, err := proof.WriteTo(&again); err != nil || !bytes.Equal(again.Bytes(), file) {
		t.Errorf("it is written another way now: %v\n%s", err, again.Bytes())
	}
}
