package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
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
	w := newTampered(t, dir)
	names := slices.Sorted(maps.Keys(w.files))
	segments := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !strings.HasSuffix(name, ".journal") })
	if len(segments) < 3 || len(names) != len(segments)+2 {
		t.Fatalf("the journal is %v, want several segments", names)
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
	before := headAt(pieces, k-1)
	w.found("a truncated segment", fmt.Sprintf("record %d:", before.Index+1), func(files map[string][]byte) {
		files[name] = slices.Concat(pieces[:k]...)
	})
	// With right checksums, so that only the chain is in the way: at the record itself, or, when it is chained anew, at the next.
	entry, err := fsm.DecodeEntry(dataOf(pieces[k]))
	if err != nil {
		t.Fatal(err)
	}
	entry.UnixMilli++
	data, err := fsm.EncodeEntry(entry)
	if err != nil {
		t.Fatal(err)
	}
	head := headAt(pieces, k)
	w.found("a replaced record", indexOfRecord(pieces[k]), func(files map[string][]byte) {
		files[name] = slices.Concat(slices.Concat(pieces[:k]...), recordBytes(head, data), slices.Concat(pieces[k+1:]...))
	})
	head = before.Next(head.Index, head.Term, data)
	w.found("a replaced record with a chain hash of its own", indexOfRecord(pieces[k+1]), func(files map[string][]byte) {
		files[name] = slices.Concat(slices.Concat(pieces[:k]...), recordBytes(head, data), slices.Concat(pieces[k+1:]...))
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

func newTampered(t *testing.T, dir string) *tampered {
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
	if found := w.audit(); found != "" {
		t.Fatalf("before anything was changed: %s", found)
	}
	return w
}

// TestEndToEndEndThatIsCutOffAfterAKillIsFound kills all servers at work, so that nobody syncs a journal's end, and cuts it off.
func TestEndToEndEndThatIsCutOffAfterAKillIsFound(t *testing.T) {
	data := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "-o", "json", "--servers", "2", "--zeros", "4", "--block-time", "500ms", "--chunk", "2000",
		"--data-dir", data)
	_, _ = run.waitEvent(0, "block")
	for _, started := range run.events("process_started") {
		if started["role"] == "server" {
			if err := syscall.Kill(int(started["pid"].(float64)), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	run.signal(syscall.SIGINT)
	_ = run.waitExit()
	seed := uint64(os.Getpid())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 5))
	for _, server := range []string{"1", "2"} {
		w := newTampered(t, filepath.Join(data, "servers", server))
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(w.files)), func(name string) bool { return !strings.HasSuffix(name, ".journal") })
		last := names[len(names)-1]
		pieces := splitSegment(w.files[last])
		end := len(w.files[last])
		if binary.BigEndian.Uint64(w.files["written"][80:]) < binary.BigEndian.Uint64(pieces[len(pieces)-1][4:]) {
			end -= len(pieces[len(pieces)-1]) // killed between the last record and its note
		}
		for range 8 {
			cut := len(pieces[0]) + random.IntN(end-len(pieces[0]))
			w.found(fmt.Sprintf("server %s's %s cut at %d of %d bytes", server, last, cut, end), "it ends here, and ",
				func(files map[string][]byte) { files[last] = files[last][:cut] })
		}
		w.found("no file that says where it ended", "written: journal is damaged: it is missing",
			func(files map[string][]byte) { delete(files, "written") })
	}
}

// TestJournalOfAnotherClusterIsNoServersHistory, also when its files say that they are of this one.
func TestJournalOfAnotherClusterIsNoServersHistory(t *testing.T) {
	for cluster, holds := range map[string]bool{"benched": true, "other": false} {
		data, err := raftnode.OpenDataDir(filepath.Join(t.TempDir(), "server"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(data.SetIdentity(raftnode.Identity{ClusterID: cluster, ServerID: 2}), data.Close()); err != nil {
			t.Fatal(err)
		}
		writeLongHistory(t, data.Path(), 10, 2)
		files, err := filepath.Glob(filepath.Join(data.Path(), "journal", "*"))
		if err != nil || len(files) != 3 {
			t.Fatalf("the journal is %v: %v", files, err)
		}
		for _, path := range files {
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var id [64]byte
			copy(id[:], cluster)
			content = slices.Concat(withSum(slices.Concat(content[:16], id[:], content[80:136])), content[140:])
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		code, report, stderr := auditJSON(t, data.Path())
		if (code == exitDone) != holds || report["holds"] != holds ||
			!holds && !strings.Contains(stderr, "record 1: cluster: it opens cluster benched, and the history should be of cluster other") {
			t.Errorf("in a directory of cluster %s: exit code %d: %s", cluster, code, stderr)
		}
	}
}

// TestDamagedHeaderNamesTheFirstRecordOfItsFile, and a file that holds no record names none.
func TestDamagedHeaderNamesTheFirstRecordOfItsFile(t *testing.T) {
	for name, at := range map[string]string{"00000000000000000001.journal": "record 1", "synced": "", "written": ""} {
		dir := t.TempDir()
		writeLongHistory(t, dir, 10, 2)
		path := filepath.Join(dir, "journal", name)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		content[90] ^= 4
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, stdout, stderr := command(t, "audit", dir)
		short, long := "does not hold: see the report\n", "does not hold: source: "
		broken := "BROKEN (source)"
		if at != "" {
			short, long = "does not hold: see "+at+" in the report\n", "does not hold: "+at+": source: "
			broken = "BROKEN at " + at + " (source)"
		}
		if !strings.HasSuffix(stderr, short) || !strings.Contains(stdout, long) || !strings.Contains(stdout, broken) ||
			strings.Contains(stdout, "record 0") || !strings.Contains(stdout, "\ncluster   not opened\n") || strings.Contains(stdout, "server 0") {
			t.Errorf("%s: standard error is %q, want %q; the report, which should hold %q and %q:\n%s", name, stderr, short, broken, long, stdout)
		}
		// Beside a history that holds it has one row.
		whole := t.TempDir()
		writeLongHistory(t, whole, 10, 2)
		if _, stdout, _ := command(t, "audit", whole, dir); !strings.Contains(stdout, ": DOES NOT HOLD"+choose(at == "", "\n", " at "+at+"\n")) {
			t.Errorf("%s, beside another history:\n%s", name, stdout)
		}
	}
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

// headAt returns the head of the history after the k-th record of a segment, or before its first one: by its header.
func headAt(pieces [][]byte, k int) (head fsm.Head) {
	numbers, chain := pieces[k][4:28], pieces[k][len(pieces[k])-40:]
	if k == 0 {
		numbers, chain = pieces[0][80:104], pieces[0][104:]
	}
	head = fsm.Head{Records: binary.BigEndian.Uint64(numbers), Index: binary.BigEndian.Uint64(numbers[8:]),
		Term: binary.BigEndian.Uint64(numbers[16:])}
	copy(head.Hash[:], chain)
	return head
}

func dataOf(record []byte) []byte { return record[32 : len(record)-40] }

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

// found wants a change to be found, said on one line that holds says and, but for a file that holds none, names a record.
func (w *tampered) found(what, says string, change func(files map[string][]byte)) {
	w.t.Helper()
	files := make(map[string][]byte)
	for name, content := range w.files {
		files[name] = slices.Clone(content)
	}
	change(files)
	w.write(w.files, files)
	defer w.write(files, w.files)
	where := "'s history does not hold: record "
	if strings.Contains(says, "synced") || strings.Contains(says, "written") {
		where = "'s history does not hold: source: "
	}
	if said := w.audit(); !strings.Contains(said, says) || !strings.Contains(said, where) || strings.Contains(said, "\n") {
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
	forged := uint64(0) // index of the receipt
	var previous pow.Hash
	journal := newJournalWriter(reader.Identity().ClusterID)
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
		journal.add(r.Index, r.Term, data)
	}
	if forged == 0 {
		w.t.Fatal("the history has no receipt")
	}
	_, report, _ := auditJSON(w.t, honest)
	known := fmt.Sprintf("%.0f:%s", report["head"].(map[string]any)["records"], report["head"].(map[string]any)["tree"])

	files := journal.files()
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

// journalWriter writes a journal of one segment, as the byte layout describes it.
type journalWriter struct {
	cluster string
	head    fsm.Head
	segment []byte
}

func newJournalWriter(cluster string) *journalWriter {
	w := &journalWriter{cluster: cluster}
	w.segment = w.header("RAFTMJNL", 1)
	return w
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func withSum(b []byte) []byte { return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)) }

func (w *journalWriter) header(magic string, flags uint32) []byte {
	b := binary.BigEndian.AppendUint32([]byte(magic), 2)
	var cluster [64]byte
	copy(cluster[:], w.cluster)
	b = append(binary.BigEndian.AppendUint32(b, flags), cluster[:]...)
	for _, n := range []uint64{w.head.Records, w.head.Index, w.head.Term} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return withSum(append(b, w.head.Hash[:]...))
}

func (w *journalWriter) add(index, term uint64, data []byte) {
	w.head = w.head.Next(index, term, data)
	w.segment = append(w.segment, recordBytes(w.head, data)...)
}

// recordBytes is the record that makes head, or says that it does.
func recordBytes(head fsm.Head, data []byte) []byte {
	record := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	for _, n := range []uint64{head.Records, head.Index, head.Term} {
		record = binary.BigEndian.AppendUint64(record, n)
	}
	record = append(withSum(record), withSum(slices.Concat(data, head.Hash[:]))...)
	return binary.BigEndian.AppendUint32(record, uint32(len(data)))
}

// files returns the journal, by name.
func (w *journalWriter) files() map[string][]byte {
	return map[string][]byte{fmt.Sprintf("%020d.journal", 1): w.segment, "synced": w.header("RAFTMSYN", 0),
		"written": w.header("RAFTMWRT", 0)}
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
