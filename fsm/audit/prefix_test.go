package audit

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

func TestOlderHeadIsProvedToBeABeginning(t *testing.T) {
	w := history(t, 8, 3, 1)
	open := func() (Records, error) { return recordsOf(w.records), nil }
	for _, n := range []int{1, 2, len(w.records) / 2, len(w.records) - 1, len(w.records)} {
		older := replay(t, w.records[:n], Options{}).Head
		proof, err := ProveOlder(open, older)
		if err != nil {
			t.Fatalf("%d records: %v", n, err)
		}
		var file bytes.Buffer
		if _, err := proof.WriteTo(&file); err != nil {
			t.Fatal(err)
		}
		read, err := VerifyPrefixProof(bytes.NewReader(file.Bytes()))
		if err != nil || read.Older.Tree != older.Tree || read.Head.Records != uint64(len(w.records)) || !StartsPrefixProof(file.Bytes()[:50]) {
			t.Fatalf("%d records: %+v, %v", n, read, err)
		}
		for what, bad := range map[string][]byte{
			"another number": bytes.Replace(file.Bytes(), fmt.Appendf(nil, `"records": %d`, n), []byte(`"records": 999999`), 1),
			"another tree":   bytes.Replace(file.Bytes(), []byte(older.Tree.String()), []byte(w.previous.String()), 1),
			"more behind it": append(bytes.Clone(file.Bytes()), file.Bytes()...),
			"cut off":        file.Bytes()[:file.Len()/2],
			"version 2":      bytes.Replace(file.Bytes(), []byte(`"version": 1`), []byte(`"version": 2`), 1),
			"a block proof":  []byte(`{"format":"raftmine block proof","version":1}`),
		} {
			if _, err := VerifyPrefixProof(bytes.NewReader(bad)); !errors.Is(err, ErrBadProof) {
				t.Errorf("%d records, %s: %v", n, what, err)
			}
		}
	}
	other := replay(t, history(t, 9, 3, 1).records[:20], Options{}).Head
	if _, err := ProveOlder(open, other); !errors.Is(err, ErrBroken) {
		t.Errorf("the beginning of another history is proved: %v", err)
	}
	if _, err := ProveOlder(open, Head{Records: uint64(len(w.records)) + 1, Tree: other.Tree}); !errors.Is(err, ErrBroken) {
		t.Errorf("a longer history is proved to be its beginning: %v", err)
	}
}
