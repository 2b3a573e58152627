package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/pow"
	"raftmine/raftnode"
)

// tampered is a server's directory whose journal is changed, audited and put back.
type tampered struct {
	t     *testing.T
	dir   string
	files map[string][]byte // the journal, by name
}

// tamper changes one server's journal in every way there is, and wants each found by "raftmine audit". Without secrets
// nothing keeps a forger from writing a whole journal anew: then another server's history shows it.
func tamper(t *testing.T, dir, honest string) {
	w := &tampered{t: t, dir: dir, files: make(map[string][]byte)}
	entries, err := os.ReadDir(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if w.files[entry.Name()], err = os.ReadFile(filepath.Join(dir, "journal", entry.Name())); err != nil {
			t.Fatal(err)
		}
	}
	names := slices.Sorted(maps.Keys(w.files))
	segments := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == "synced" })
	if len(segments) < 3 || len(names) != len(segments)+1 {
		t.Fatalf("the journal is %v, want several segments", names)
	}
	if found := w.audit(); found != "" {
		t.Fatalf("before anything was changed: %s", found)
	}
	seed := uint64(os.Getpid())
	t.Logf("seed %d, %d segments", seed, len(segments))
	random := rand.New(rand.NewPCG(seed, 4))
	for _, name := range names {
		for range 2 {
			at, bit := random.IntN(len(w.files[name])), byte(1)<<random.IntN(8)
			w.found(fmt.Sprintf("%s, byte %d, bit %08b", name, at, bit), name, func(files map[string][]byte) {
				files[name][at] ^= bit
			})
		}
	}
	// The middle segment, cut into its records.
	name := segments[len(segments)/2]
	pieces := splitSegment(w.files[name])
	k := 1 + random.IntN(len(pieces)-2) // not the header, nor the last record
	w.found("a removed record", indexOfRecord(pieces[k+1]), func(files map[string][]byte) {
		files[name] = slices.Concat(slices.Delete(slices.Clone(pieces), k, k+1)...)
	})
	w.found("a reordered pair", indexOfRecord(pieces[k+1]), func(files map[string][]byte) {
		swapped := slices.Clone(pieces)
		swapped[k], swapped[k+1] = swapped[k+1], swapped[k]
		files[name] = slices.Concat(swapped...)
	})
	last := binary.BigEndian.Uint64(pieces[0][88:]) // index, by the header
	if k > 1 {
		last = binary.BigEndian.Uint64(pieces[k-1][12:])
	}
	w.found("a truncated segment", fmt.Sprintf("record %d:", last+1), func(files map[string][]byte) {
		files[name] = slices.Concat(pieces[:k]...)
	})
	w.found("a segment that ends within a record", name, func(files map[string][]byte) {
		files[name] = files[name][:len(files[name])-3]
	})
	w.found("a removed segment", "record ", func(files map[string][]byte) { delete(files, name) })
	w.found("a removed last segment", "were on the disk", func(files map[string][]byte) {
		delete(files, segments[len(segments)-1])
	})
	w.forge(honest)
}

// splitSegment returns the header and the records.
func splitSegment(segment []byte) (pieces [][]byte) {
	const header, head, tail = 140, 32, 40
	pieces, segment = append(pieces, segment[:header]), segment[header:]
	for len(segment) > 0 {
		size := head + int(binary.BigEndian.Uint32(segment)) + tail
		pieces, segment = append(pieces, segment[:size]), segment[size:]
	}
	return pieces
}

func indexOfRecord(record []byte) string {
	return fmt.Sprintf("record %d:", binary.BigEndian.Uint64(record[12:]))
}

// audit returns the error of an audit; empty: everything holds.
func (w *tampered) audit(args ...string) string {
	w.t.Helper()
	code, report, stderr := auditJSON(w.t, append([]string{w.dir}, args...)...)
	if (code == exitDone) != (stderr == "") || code != exitDone && (code != exitFailed || report["holds"] != false) {
		w.t.Errorf("exit code %d, holds %v: %s", code, report["holds"], stderr)
	}
	return strings.TrimSpace(stderr)
}

// write makes the journal what files is, where it differs from what it was.
func (w *tampered) write(was, files map[string][]byte) {
	w.t.Helper()
	journal := filepath.Join(w.dir, "journal")
	for name := range was {
		if _, stays := files[name]; !stays {
			if err := os.Remove(filepath.Join(journal, name)); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	for name, content := range files {
		if before, ok := was[name]; ok && bytes.Equal(before, content) {
			continue
		}
		if err := os.WriteFile(filepath.Join(journal, name), content, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
}

// found wants a change to be found, said on one line that names a record and holds says.
func (w *tampered) found(what, says string, change func(files map[string][]byte)) {
	w.t.Helper()
	files := make(map[string][]byte)
	for name, content := range w.files {
		files[name] = slices.Clone(content)
	}
	change(files)
	w.write(w.files, files)
	defer w.write(files, w.files)
	if said := w.audit(); !strings.Contains(said, says) || !strings.Contains(said, "'s history does not hold: record ") ||
		strings.Contains(said, "\n") {
		w.t.Errorf("%s: the audit says %q, want %q", what, said, says)
	}
}

// forge replaces a receipt and writes the whole journal anew, in one segment, with chain and checksums as the byte layout
// describes them. The new receipt is the second best of its range, so its statistics are fine and the history holds in
// itself. It does not when the range is searched again, beside an honest server's history, and with a known head.
func (w *tampered) forge(honest string) {
	reader, err := raftnode.ReadJournal(honest)
	if err != nil {
		w.t.Fatal(err)
	}
	defer reader.Close()
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := func(b []byte) []byte { return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, table)) }
	var head fsm.Head
	forged := uint64(0) // index of the receipt
	var previous pow.Hash
	var cluster [64]byte
	copy(cluster[:], reader.Identity().ClusterID)
	header := func(magic string, flags uint32) []byte {
		b := binary.BigEndian.AppendUint32([]byte(magic), 1)
		b = append(binary.BigEndian.AppendUint32(b, flags), cluster[:]...)
		for _, n := range []uint64{head.Records, head.Index, head.Term} {
			b = binary.BigEndian.AppendUint64(b, n)
		}
		return sum(append(b, head.Hash[:]...))
	}
	segment := header("RAFTMJNL", 1)
	for r, err := range reader.Records() {
		if err != nil {
			w.t.Fatal(err)
		}
		data := r.Data
		entry, err := fsm.DecodeEntry(data)
		if err != nil {
			w.t.Fatal(err)
		}
		for i, command := range entry.Commands {
			if c, ok := command.(fsm.OpenJob); ok {
				previous = c.Previous
			}
			if c, ok := command.(fsm.Finish); ok && forged == 0 {
				forged = r.Index
				c.Receipt = secondBest(pow.Work{Previous: previous, Timestamp: c.Timestamp}, c.Nonces, c.Receipt)
				entry.Commands[i] = c
				if data, err = fsm.EncodeEntry(entry); err != nil {
					w.t.Fatal(err)
				}
			}
		}
		head = head.Next(r.Index, r.Term, data)
		record := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
		for _, n := range []uint64{head.Records, head.Index, head.Term} {
			record = binary.BigEndian.AppendUint64(record, n)
		}
		body := sum(slices.Concat(data, head.Hash[:]))
		segment = append(segment, slices.Concat(sum(record), binary.BigEndian.AppendUint32(body, uint32(len(data))))...)
	}
	if forged == 0 {
		w.t.Fatal("the history has no receipt")
	}
	_, report, _ := auditJSON(w.t, honest)
	known := fmt.Sprintf("%.0f:%s", report["head"].(map[string]any)["records"], report["head"].(map[string]any)["tree"])

	files := map[string][]byte{fmt.Sprintf("%020d.journal", 1): segment, "synced": header("RAFTMSYN", 0)}
	w.write(w.files, files)
	defer w.write(files, w.files)
	if said := w.audit(); said != "" {
		w.t.Errorf("a history of one other receipt, whole in itself: %s", said)
	}
	if said := w.audit("--recheck", "1"); !strings.Contains(said, fmt.Sprintf("record %d:", forged)) {
		w.t.Errorf("a replaced receipt at index %d, and every range searched again: %s", forged, said)
	}
	if said := w.audit(honest); !strings.Contains(said, "part after") || !strings.Contains(said, fmt.Sprintf("at index %d", forged)) {
		w.t.Errorf("a replaced receipt at index %d, beside an honest server's history: %s", forged, said)
	}
	if said := w.audit("--known", known); !strings.Contains(said, "is another history") {
		w.t.Errorf("a replaced receipt, with a known head: %s", said)
	}
}

// secondBest returns the nonce with the smallest digest but that of best.
func secondBest(work pow.Work, nonces pow.Range, best uint64) (second uint64) {
	var smallest pow.Hash
	for nonce := nonces.First; nonce <= nonces.Last; nonce++ {
		if digest := work.Digest(nonce); nonce != best && (second == 0 || digest.Compare(smallest) < 0) {
			second, smallest = nonce, digest
		}
	}
	return second
}
