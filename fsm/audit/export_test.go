package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"raftmine/fsm"
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
	Index   uint64 `json:"index"`
	What    string `json:"what"`
	Records uint64 `json:"records"`
	Chain   string `json:"chain"`
	Tree    string `json:"tree"`
	Ranges  uint64 `json:"ranges"`
	Nonces  uint64 `json:"nonces"`
	Blocks  []struct {
		Height                                uint64
		Hash, Miner, Verdict                  string
		Nonce                                 uint64
		Finished, Returned, Gaps, Interrupted uint64
	} `json:"blocks"`
}

func python(t *testing.T, export []byte) (v pythonVerdict) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "export.jsonl")
	if err := os.WriteFile(file, export, 0o600); err != nil {
		t.Fatal(err)
	}
	output, err := exec.Command("python3", filepath.Join(goldenFolder, "verify.py"), file).Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err := json.Unmarshal(output, &v); err != nil {
		t.Fatalf("verify.py said %q: %v", output, err)
	}
	if v.Holds != (exit == nil) {
		t.Fatalf("verify.py said %t and exited with %v", v.Holds, exit)
	}
	return v
}

// requirePython makes it a failure that there is no python3: without it a machine that lacks one would test less and not
// say so.
const requirePython = "RAFTMINE_REQUIRE_PYTHON"

// TestIndependentVerifierAgrees runs a verifier that shares no code with us.
func TestIndependentVerifierAgrees(t *testing.T) {
	if err := exec.Command("python3", "--version").Run(); err != nil {
		if os.Getenv(requirePython) != "" {
			t.Fatalf("python3: %v, and %s is set", err, requirePython)
		}
		t.Skip("there is no python3")
	}
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
		v := python(t, file)
		if !v.Holds || !report.Holds() || v.Chain != report.Head.Chain.String() || v.Tree != report.Head.Tree.String() ||
			v.Records != report.Head.Records || v.Ranges != report.Ranges || v.Nonces != report.Nonces || len(v.Blocks) != len(jobs) {
			t.Fatalf("seed %d: it says %+v; the audit says %s, %v", seed, v, report.Head, report.Findings)
		}
		for i, b := range v.Blocks {
			j := jobs[i]
			if b.Height != j.Height || b.Hash != j.Solution.Hash.String() || b.Nonce != j.Solution.Nonce || b.Miner != j.Solution.Miner ||
				b.Verdict != j.Verdict.String() || (Coverage{b.Finished, b.Interrupted, b.Returned, b.Gaps}) != j.Below {
				t.Errorf("seed %d: block %d: it says %+v, the audit %+v of %+v", seed, i, b, j.Below, j)
			}
		}
		// Tampered, both name the same record.
		at := bytes.LastIndex(file[:len(file)/2], []byte(`"data":"`)) + 20
		file[at] ^= 1 // a base64 digit becomes another one, or none
		first, found := auditExport(t, file).First()
		if v := python(t, file); v.Holds || !found || v.Index != first.Index {
			t.Errorf("seed %d: tampered: it says %+v, the audit %v", seed, v, first)
		}
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
