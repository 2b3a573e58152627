package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

var update = flag.Bool("update", false, "write golden files of a version that has none; existing ones are never rewritten")

const goldenFolder = "../../testdata/audit"

func exportOf(t testing.TB, records []Record) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := Export(&out, recordsOf(records)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// auditExport gives the verdict on an export.
func auditExport(t testing.TB, file []byte) *Report {
	t.Helper()
	in, err := NewImport(bytes.NewReader(file))
	if err != nil {
		return &Report{FindingCount: 1, Findings: []Finding{{0, KindSource, err.Error()}}}
	}
	report, err := Replay(in.Records(), Options{EndsAt: in.End})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestExportGivesTheSameVerdict(t *testing.T) {
	w := history(t, 7, 6, 8)
	file := exportOf(t, w.records)
	direct, again := replay(t, w.records, Options{}), auditExport(t, file)
	if !again.Holds() || again.Head != direct.Head || again.Ranges != direct.Ranges || again.Verdicts != direct.Verdicts {
		t.Errorf("%v: it ends with %s, not %s", again.Findings, again.Head, direct.Head)
	}
}

// TestTamperedExportIsFound changes every 29th byte, others in each run, and cuts the file at every line: nothing of it is not looked at.
func TestTamperedExportIsFound(t *testing.T) {
	w := history(t, 8, 3, 1)
	w.records = w.records[:min(len(w.records), 15)]
	file := exportOf(t, w.records)
	for at := os.Getpid() % 29; at < len(file); at += 29 {
		bad := bytes.Clone(file)
		bad[at] ^= 1
		if auditExport(t, bad).Holds() {
			t.Errorf("byte %d: %q instead of %q was not found", at, bad[at], file[at])
		}
	}
	lines := bytes.SplitAfter(file, []byte("\n"))
	for n := range len(lines) - 2 {
		first, found := auditExport(t, bytes.Join(lines[:n+1], nil)).First()
		if !found || n > 0 && first.Index != w.records[n-1].Index {
			t.Errorf("cut off after line %d: %v", n+1, first)
		}
	}
	for name, bad := range map[string][]byte{
		"a line removed":   bytes.Join(append(append([][]byte{}, lines[:4]...), lines[5:]...), nil),
		"lines swapped":    bytes.Join([][]byte{lines[0], lines[2], lines[1]}, nil),
		"more after it":    append(bytes.Clone(file), lines[1]...),
		"another version":  bytes.Replace(file, []byte(`"version":1`), []byte(`"version":2`), 1),
		"empty":            nil,
		"a field too many": bytes.Replace(file, []byte(`{"index"`), []byte(`{"x":1,"index"`), 1),
		"not JSON":         []byte("hello\n"),
	} {
		if auditExport(t, bad).Holds() {
			t.Errorf("%s: not found", name)
		}
	}
	// The readable part is compared with the data.
	lie := bytes.Replace(file, []byte(`"miner":"miner-0"`), []byte(`"miner":"miner-9"`), 1)
	if first, _ := auditExport(t, lie).First(); first.Kind != KindReadable {
		t.Errorf("a readable part that lies: found %v", first)
	}
}

func TestExportStopsAtABrokenHistory(t *testing.T) {
	w := history(t, 8, 3, 1)
	w.records[9].Chain[0] ^= 1
	if _, err := Export(&bytes.Buffer{}, recordsOf(w.records)); !errors.Is(err, ErrBroken) {
		t.Errorf("it says %v", err)
	}
}

// pythonVerdict is what testdata/audit/verify.py says.
type pythonVerdict struct {
	Holds   bool   `json:"holds"`
	Line    int    `json:"line"`
	Index   uint64 `json:"index"`
	What    string `json:"what"`
	Records uint64 `json:"records"`
	Chain   string `json:"chain"`
	Tree    string `json:"tree"`
	State   string `json:"state"`
	Ranges  uint64 `json:"ranges"`
	Nonces  uint64 `json:"nonces"`
	Blocks  []struct {
		Height                                uint64
		Hash, Miner, Verdict                  string
		Nonce                                 uint64
		Finished, Returned, Gaps, Interrupted uint64
	} `json:"blocks"`
}

// python runs it once for all exports: to start it takes longer than all else that it does.
func python(t *testing.T, exports ...[]byte) (verdicts []pythonVerdict) {
	t.Helper()
	needPython(t)
	dir, args := t.TempDir(), []string{filepath.Join(goldenFolder, "verify.py")}
	for i, export := range exports {
		file := filepath.Join(dir, fmt.Sprintf("%d.jsonl", i))
		if err := os.WriteFile(file, export, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	cmd := exec.Command("python3", args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	output, err := cmd.Output()
	want := 0
	for line := range bytes.Lines(output) {
		var v pythonVerdict
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatalf("verify.py printed %q: %v", line, err)
		}
		if !v.Holds {
			want = 1
		}
		verdicts = append(verdicts, v)
	}
	if code := cmd.ProcessState.ExitCode(); code != want || len(verdicts) != len(exports) || said.Len() > 0 {
		t.Fatalf("verify.py printed %d lines for %d files, exited with %d, want %d, and said %q: %v", len(verdicts), len(exports), code, want, said.Bytes(), err)
	}
	return verdicts
}

// requirePython makes it a failure that there is no python3: without it a machine that lacks one would test less and not
// say so.
const requirePython = "RAFTMINE_REQUIRE_PYTHON"

func needPython(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("python3"); err != nil {
		if os.Getenv(requirePython) != "" {
			t.Fatalf("%v, and %s is set", err, requirePython)
		}
		t.Skip("there is no python3")
	}
}

// TestIndependentVerifierAgrees runs a verifier that shares no code with us.
func TestIndependentVerifierAgrees(t *testing.T) {
	for seed := range uint64(2) {
		w := history(t, 20+seed, 6, 5)
		file := exportOf(t, w.records)
		var jobs []*Job
		report := replay(t, w.records, Options{Visit: func(e Event) error {
			if e, ok := e.(JobEnded); ok && e.Job.Solution != nil {
				jobs = append(jobs, e.Job)
			}
			return nil
		}})
		v := python(t, file)[0]
		if !v.Holds || !report.Holds() || v.Chain != report.Head.Chain.String() || v.Tree != report.Head.Tree.String() ||
			v.State != report.Head.State.String() || v.Records != report.Head.Records || v.Ranges != report.Ranges || v.Nonces != report.Nonces || len(v.Blocks) != len(jobs) {
			t.Fatalf("seed %d: it says %+v; the audit says %s, %v", seed, v, report.Head, report.Findings)
		}
		for i, b := range v.Blocks {
			j := jobs[i]
			if b.Height != j.Height || b.Hash != j.Solution.Hash.String() || b.Nonce != j.Solution.Nonce || b.Miner != j.Solution.Miner ||
				b.Verdict != j.Verdict.String() || (Coverage{b.Finished, b.Interrupted, b.Returned, b.Gaps}) != j.Below {
				t.Errorf("seed %d: block %d: it says %+v, the audit %+v of %+v", seed, i, b, j.Below, j)
			}
		}
	}
}

// turmoil makes a history of commands that are right or nearly right, until every outcome of testdata/fsm/v1.outcomes has
// come of one. Servers, miners and the coordinator make no such history; the state machine must know what to do all the same.
func turmoil(t *testing.T, seed uint64) *world {
	file, err := os.ReadFile(filepath.Join(goldenFolder, "..", "fsm", "v1.outcomes"))
	if err != nil {
		t.Fatal(err)
	}
	values := regexp.MustCompile(`[0-9]+|miner [abc]|settled: \w+|cluster is \S+`)
	missing := make(map[string]bool)
	for line := range strings.Lines(string(file)) {
		missing[values.ReplaceAllString(strings.TrimSpace(line), "*")] = true
	}
	delete(missing, "wrong: the cluster id is empty") // the history begins with one that is not
	w := newWorld(t, seed)
	w.bits = 12
	w.open(95, 10)
	roughly := func(n uint64) uint64 {
		switch w.rng.IntN(16) {
		case 0:
			return n + 1
		case 1:
			return n - min(n, 1)
		case 2:
			return 0
		}
		return n
	}
	for len(missing) > 0 {
		if len(w.records) == 20_000 {
			t.Fatalf("no command came to %q", slices.Sorted(maps.Keys(missing)))
		}
		if w.rng.IntN(100) == 0 {
			w.term++
			w.commit(fsm.TakeOffice{ServerID: 1}) // the auditor's rule, which a verifier has too: who leads takes office
		}
		command := w.any(roughly)
		for _, outcome := range w.commit(command) {
			delete(missing, values.ReplaceAllString(outcome.Code.String()+": "+outcome.Detail, "*"))
		}
	}
	return w
}

// any returns a command whose values are roughly those that the state allows.
func (w *world) any(roughly func(uint64) uint64) fsm.Command {
	job, miner := w.current(), string(rune('a'+w.rng.IntN(3)))
	grant := fsm.Grant{ID: roughly(w.state.LastGrantID()), Miner: miner, Nonces: pow.Range{First: 1 + 10*w.rng.Uint64N(10), Last: 10 + 10*w.rng.Uint64N(10)}}
	for g := range w.state.Grants() {
		if w.rng.IntN(2) == 0 {
			grant = g
		}
	}
	if w.rng.IntN(8) > 0 {
		miner = grant.Miner
	}
	nonces := pow.Range{First: roughly(grant.Nonces.First), Last: roughly(grant.Nonces.Last)}
	nonce := roughly(grant.Nonces.First + w.rng.Uint64N(20))
	id, timestamp := roughly(job.ID), roughly(job.Timestamp)
	server := fsm.UpdateServer{ServerID: w.rng.Uint64N(6), Address: "127.0.0.1:1", DataDir: "/d<&\u2028"}
	switch w.rng.IntN(5) {
	case 0:
		server.Address = ""
	case 1:
		server.DataDir = ""
	}
	switch w.rng.IntN(60) {
	case 0:
		return fsm.OpenCluster{ClusterID: []string{"", "other", w.state.ClusterID()}[w.rng.IntN(3)]}
	case 1:
		return fsm.AddServer{RequestID: fsm.ID{byte(w.rng.IntN(9))}, Address: server.Address, DataDir: server.DataDir}
	case 2:
		return server
	case 3:
		return fsm.ReadmitServer{ServerID: server.ServerID}
	case 4:
		return fsm.RemoveServer{ServerID: server.ServerID, Reason: "\ttext \"é\""}
	case 5:
		return fsm.ServerUp{ServerID: server.ServerID}
	case 6:
		return fsm.ServerDown{ServerID: server.ServerID}
	case 7:
		return fsm.TakeOffice{ServerID: w.rng.Uint64N(3)}
	case 8:
		return fsm.ClusterStop{Reason: "planned"}
	case 9:
		return fsm.Recover{RecoveryID: fsm.ID{byte(w.rng.IntN(3))}, Survivor: w.rng.Uint64N(3), Index: w.index - 1 + w.rng.Uint64N(3), Term: roughly(w.term)}
	case 10, 11, 12:
		last, _ := w.state.LastAccepted()
		c := fsm.OpenJob{Height: roughly(last.Height + 1), Previous: pow.Hash{byte(w.rng.IntN(9))}, Bits: 3 + 9*w.rng.IntN(2), Timestamp: roughly(1000),
			Nonces: pow.Range{First: roughly(1), Last: 95}, ChunkSize: roughly(10)}
		switch w.rng.IntN(12) {
		case 0:
			c.Nonces.Last = 0
		case 1:
			c.Bits = 257
		case 2:
			c.ChunkSize = fsm.MaxChunkSize + 1
		case 3:
			c.Nonces.Last, c.ChunkSize = 1<<63, 1
		case 4, 5, 6:
			c = w.job
		}
		if c.Nonces.Last == 95 && c.Timestamp > 0 {
			w.job = c
		}
		return c
	case 13, 14:
		return fsm.Release{Miner: miner, GrantIDs: []uint64{grant.ID}, Reason: fsm.ReleaseReason(1 + w.rng.IntN(4))}
	case 15:
		return fsm.Release{Miner: miner, Reason: fsm.ReleaseSilent, Forget: w.rng.IntN(2) == 0}
	case 16:
		return fsm.Strike{Miner: miner, Reason: "wrong"}
	case 17, 18:
		return fsm.Roll{JobID: id, Round: uint32(roughly(uint64(job.Round) + 1)), Timestamp: roughly(job.Timestamp + 1)}
	case 19, 20:
		return fsm.Submitting{JobID: id}
	case 21, 22:
		return fsm.Submitted{JobID: id, Verdict: fsm.Verdict(1 + w.rng.IntN(4)), Detail: "said"}
	case 23:
		if job.Phase != fsm.PhaseOpen || w.rng.IntN(4) == 0 {
			return fsm.CloseJob{JobID: id, Reason: "moved"}
		}
	case 24, 25, 26:
		ranges := []pow.Range{nonces}
		for range 2 {
			first := 1 + 10*w.rng.Uint64N(10)
			ranges = append(ranges, pow.Range{First: first, Last: min(first+9, 95)})
		}
		from, to := w.rng.IntN(2), 1+w.rng.IntN(3)
		return fsm.Revoke{JobID: id, Round: uint32(roughly(uint64(job.Round))), Miner: miner, Ranges: ranges[from:max(from, to)], Reason: "not believed"}
	case 27, 28, 29, 30, 31:
		return fsm.Solve{JobID: id, GrantID: grant.ID, Miner: miner, Timestamp: timestamp, Nonce: nonce}
	}
	if w.rng.IntN(2) == 0 {
		row, _ := w.state.Miner(miner)
		return fsm.GrantWork{JobID: id, Miner: miner, Instance: fsm.ID{1}, RequestID: roughly(row.LastRequestID + w.rng.Uint64N(3)/2), Chunks: w.rng.Uint64N(4)}
	}
	return fsm.Finish{JobID: id, GrantID: grant.ID, Miner: miner, Timestamp: timestamp, Nonces: nonces, Receipt: nonce}
}

// TestIndependentVerifierKnowsEveryOutcome, and the digest of the state that they leave.
func TestIndependentVerifierKnowsEveryOutcome(t *testing.T) {
	needPython(t)
	if v := python(t, exportOf(t, turmoil(t, 100).records))[0]; !v.Holds { // a seed that comes to all of them soon
		t.Errorf("it says %+v", v)
	}
}

// TestBothVerifiersGiveTheSameVerdict on exports that are damaged: they name the same record, and the independent one the
// line as well.
func TestBothVerifiersGiveTheSameVerdict(t *testing.T) {
	needPython(t)
	w := history(t, 8, 3, 1)
	w.records = w.records[:min(len(w.records), 15)]
	file := exportOf(t, w.records)
	lines := bytes.SplitAfter(file, []byte("\n"))
	lines = lines[:len(lines)-1] // what comes after the last line's end
	n := len(lines)
	in := func(at int, old, with string) []byte { // in a line, counted from 1
		t.Helper()
		changed := bytes.Replace(lines[at-1], []byte(old), []byte(with), 1)
		if bytes.Equal(changed, lines[at-1]) {
			t.Fatalf("line %d has no %s: %s", at, old, lines[at-1])
		}
		return bytes.Join(slices.Concat(lines[:at-1], [][]byte{changed}, lines[at:]), nil)
	}
	join := func(parts ...[][]byte) []byte { return bytes.Join(slices.Concat(parts...), nil) }
	crlf := func(line []byte) []byte { return append(bytes.TrimSuffix(bytes.Clone(line), []byte("\n")), "\r\n"...) }
	padded := 2 + slices.IndexFunc(w.records, func(r Record) bool { return len(r.Data)%3 != 0 })
	end := strictBase64.EncodeToString(w.records[padded-2].Data)
	end = end[strings.Index(end, "=")-1:]
	type row struct {
		name string
		bad  []byte
		line int // where the first thing is wrong
	}
	rows := []row{
		{"empty", nil, 1},
		{"garbage", []byte("hello\n"), 1},
		{"garbage without an end", []byte("hello"), 1},
		{"NULs", make([]byte, 100), 1},
		{"no UTF-8", []byte("\xff\xfe{}\n"), 1},
		{"another version", in(1, `"version":1`, `"version":2`), 1},
		{"header with a space", in(1, `:1`, `: 1`), 1},
		{"header is missing", join(lines[1:]), 1},
		{"only the header", lines[0], 2},
		{"no record", join(lines[:1], lines[n-1:]), 2},
		{"NULs at the end", append(bytes.Clone(file), 0, 0, 0), n + 1},
		{"a NUL in a line", in(4, `"term"`, "\x00\"term\""), 4},
		{"cut off in a line", file[:len(file)-len(lines[n-1])-10], n - 1},
		{"cut off in the last line", file[:len(file)-1], n},
		{"cut off after a line", join(lines[:n-1]), n},
		{"a line removed", join(lines[:4], lines[5:]), 5},
		{"lines swapped", join(lines[:4], lines[5:6], lines[4:5], lines[6:]), 5},
		{"a line twice", join(lines[:5], lines[4:]), 6},
		{"an empty line", join(lines[:5], [][]byte{{'\n'}}, lines[5:]), 6},
		{"a record after the end", join(lines, lines[1:2]), n + 1},
		{"the end twice", join(lines, lines[n-1:]), n + 1},
		{"an empty line after the end", join(lines, [][]byte{{'\n'}}), n + 1},
		{"CRLF in the header", join([][]byte{crlf(lines[0])}, lines[1:]), 1},
		{"CRLF in a record", join(lines[:4], [][]byte{crlf(lines[4])}, lines[5:]), 5},
		{"another end than a line feed", append(bytes.Clone(file[:len(file)-1]), '\r'), n},
		{"CRLF at the end", join(lines[:n-1], [][]byte{crlf(lines[n-1])}), n},
		{"a key twice, the same", in(3, `{"index":2,`, `{"index":2,"index":2,`), 3},
		{"a key twice, another first", in(3, `{"index":2,`, `{"index":7,"index":2,`), 3},
		{"a key twice in the entry", in(3, `"entry":{`, `"entry":{"leader":9,`), 3},
		{"a key twice in the end", in(n, `{"end":{`, `{"end":{"records":1,`), n},
		{"a key of other case", in(3, `"term"`, `"Term"`), 3},
		{"a key too many", in(3, `{"index"`, `{"x":1,"index"`), 3},
		{"a key too few", in(3, `"term":1,`, ``), 3},
		{"keys in another order", in(3, `"index":2,"term":1`, `"term":1,"index":2`), 3},
		{"a number as a text", in(3, `"index":2`, `"index":"2"`), 3},
		{"a number with an exponent", in(3, `"index":2`, `"index":2e0`), 3},
		{"a number below 0", in(3, `"index":2`, `"index":-2`), 3},
		{"a number above 64 bits", in(3, `"index":2`, `"index":18446744073709551618`), 3},
		{"a number of 5000 digits", in(3, `"index":2`, `"index":`+strings.Repeat("9", 5000)), 3},
		{"null", in(3, `"index":2`, `"index":null`), 3},
		{"nothing but brackets", join(lines[:2], [][]byte{[]byte(strings.Repeat("[", 200_000) + "\n")}, lines[2:]), 3},
		{"an array", join(lines[:2], [][]byte{[]byte("[1,2]\n")}, lines[2:]), 3},
		{"another index", in(3, `"index":2`, `"index":3`), 3},
		{"another term", in(3, `"term":1`, `"term":2`), 3},
		{"other data", in(3, `"data":"AQ`, `"data":"AR`), 3},
		{"data without padding", in(padded, end+`"`, end[:1]+`"`), padded},
		{"data with bits that say nothing", in(padded, end+`"`, string(end[0]+1)+end[1:]+`"`), padded},
		{"data of other letters", in(3, `"data":"A`, `"data":"*`), 3},
		{"another chain", in(3, `"chain":"`+w.records[1].Chain.String()[:1], `"chain":"g`), 3},
		{"chain in capitals", in(3, w.records[1].Chain.String(), strings.ToUpper(w.records[1].Chain.String())), 3},
		{"another leader in the entry", in(3, `"leader":1`, `"leader":2`), 3},
		{"another time in the entry", in(3, `"unix_ms":1`, `"unix_ms":2`), 3},
		{"another version in the entry", in(3, `"version":"0.1.0"`, `"version":"0.1.1"`), 3},
		{"another command in the entry", in(3, `"command":"open_job"`, `"command":"close_job"`), 3},
		{"another outcome in the entry", in(3, `"outcome":"done"`, `"outcome":"stale"`), 3},
		{"another server in the entry", in(2, `"new_server_id":3`, `"new_server_id":2`), 2},
		{"another letter for the same in the entry", in(3, `"open_job"`, `"\u006fpen_job"`), 3},
		{"no UTF-8 in the entry", in(3, `"open_job"`, "\"open\xffjob\""), 3},
		{"white space in the entry", in(3, `"commands":[`, `"commands": [`), 3},
		{"no entry", in(3, `"entry":{`, `"nothing":{`), 3},
		{"another number of records", in(n, `"records":15`, `"records":16`), n},
		{"another state", in(n, `"state":"`, `"state":"0`), n},
	}
	// And single bits, others in each run.
	for range 64 {
		at := rand.IntN(len(file))
		bad := bytes.Clone(file)
		bad[at] ^= 1 << rand.IntN(8)
		rows = append(rows, row{fmt.Sprintf("byte %d is %q instead of %q", at, bad[at], file[at]), bad, 1 + bytes.Count(file[:at], []byte("\n"))})
	}
	// And histories that were chained anew.
	for name, forged := range withoutBeginnings(t) {
		rows = append(rows, row{name, exportOf(t, rechain(forged.records)), 2 + forged.found})
	}
	exports := make([][]byte, len(rows))
	for i, row := range rows {
		exports[i] = row.bad
	}
	for i, v := range python(t, exports...) {
		first, found := auditExport(t, rows[i].bad).First()
		if v.Holds || !found {
			t.Errorf("%s: found by the independent verifier: %t, by the audit: %t", rows[i].name, !v.Holds, found)
			continue
		}
		if v.Index != first.Index || v.Line != rows[i].line {
			t.Errorf("%s: want line %d; the independent verifier says line %d, record %d: %s; the audit says %v", rows[i].name, rows[i].line, v.Line,
				v.Index, v.What, first)
		}
		if strings.Contains(v.What+first.What, "\n") || v.What == "" {
			t.Errorf("%s: want one line each: %q, %q", rows[i].name, v.What, first.What)
		}
	}
}

// withoutBeginnings are histories that begin, or whose terms begin, without the record that begins them, by what is missing.
func withoutBeginnings(t *testing.T) map[string]struct {
	records []Record
	found   int // at this record, counted from 0
} {
	type forged = struct {
		records []Record
		found   int
	}
	ledBy := func(servers int) *world { // one after the other, each with two records of its own
		w := newWorld(t, 9)
		for range servers - 1 {
			w.takeover(true)
			w.commit(fsm.Strike{Miner: "a", Reason: "test"})
		}
		return w
	}
	without := func(w *world, at, found int) forged { return forged{slices.Delete(w.records, at, at+1), found} }
	begun := func(commands ...fsm.Command) forged {
		w := newWorld(t, 9)
		w.records, w.state = nil, fsm.New()
		w.commit(commands...)
		return forged{w.records, 0}
	}
	open, office := fsm.OpenCluster{ClusterID: "world"}, fsm.TakeOffice{ServerID: 1}
	return map[string]forged{
		"the first record":                      without(ledBy(2), 0, 0),
		"who led at first":                      begun(open),
		"that the cluster is opened first":      begun(office, open),
		"that another server took office":       without(ledBy(2), 1, 1),
		"that one which led before took office": without(ledBy(4), 7, 8),
	}
}

// TestRecordOfALeaderThatWinsAgainMayComeBeforeItsOffice: it was on its way to Raft's log while the office was lost.
func TestRecordOfALeaderThatWinsAgainMayComeBeforeItsOffice(t *testing.T) {
	w := newWorld(t, 9)
	w.term++
	w.commit(fsm.Strike{Miner: "a", Reason: "test"})
	w.commit(fsm.TakeOffice{ServerID: 1})
	if r := replay(t, w.records, Options{}); !r.Holds() {
		t.Errorf("the audit says %v", r.Findings)
	}
	if v := python(t, exportOf(t, w.records))[0]; !v.Holds {
		t.Errorf("the independent verifier says %+v", v)
	}
}

// golden is the history of the golden export: that of export version 1, which is never made again.
func golden(t *testing.T) *world {
	w := newWorld(t, 41)
	w.bits = 8
	for _, name := range []string{"a", "b", "c"} {
		w.miner(name, 1)
	}
	return w.mine(5)
}

func TestGoldenExportStaysReadable(t *testing.T) {
	path := filepath.Join(goldenFolder, "v1.export.jsonl")
	file, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && *update {
		file = exportOf(t, golden(t).records)
		err = os.WriteFile(path, file, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	report := auditExport(t, file)
	const (
		chain = "44c42c09d2e2b0e5e18beadbf79d4d9dcf1181a12fc17fea9fcaf29916ea3978"
		tree  = "5df28a68855a04abb341aa4318d7c49c960b62bd4cdcb1d6bd318bed06d772e8"
		state = "630b8d82d7cd8419ec87928c76f68472764848e809b63edc2934614f12515b54"
	)
	if h := report.Head; !report.Holds() || h.Chain.String() != chain || h.Tree.String() != tree || h.State.String() != state ||
		report.Verdicts[fsm.VerdictSuccess] == 0 {
		t.Errorf("%v: %s", report.Findings, h)
	}
}
