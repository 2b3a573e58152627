package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/audit"
	"raftmine/fsm/pow"
)

// auditJSON runs an audit and returns its last object, the report.
func auditJSON(t *testing.T, args ...string) (code int, report map[string]any, stderr string) {
	t.Helper()
	code, stdout, stderr := command(t, append([]string{"audit", "-o", "json"}, args...)...)
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	for _, line := range slices.Backward(lines) {
		var object map[string]any
		if json.Unmarshal([]byte(line), &object) == nil && object["event"] == "audit" {
			return code, object, stderr
		}
	}
	return code, nil, stderr
}

// TestEndToEndHistoryAudits mines with real processes, kills the leader on the way, and audits what is left from every
// server's directory: all of it holds, and damage to any of it is found.
func TestEndToEndHistoryAudits(t *testing.T) {
	dir := keepOnFailure(t)
	data := filepath.Join(dir, "run")
	run := startProcess(t, "run", "-o", "json", "--blocks", "4", "--zeros", "4", "--block-time", "500ms", "--chunk", "2000",
		"--respawn", "--data-dir", data)
	server, _ := run.waitEvent(0, "process_started")
	for next := 0; server["role"] != "server" || server["id"] != 1.0; {
		server, next = run.waitEvent(next, "process_started")
	}
	_, next := run.waitEvent(0, "block")
	if err := syscall.Kill(int(server["pid"].(float64)), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	done, _ := run.waitEvent(next, "done")
	if code := run.waitExit(); code != exitDone {
		t.Fatalf("run ended with %d", code)
	}

	code, report, stderr := auditJSON(t, data)
	if code != exitDone || report["holds"] != true {
		t.Fatalf("exit code %d: %s\n%v", code, stderr, report)
	}
	if report["takeovers"].(float64) < 1 || report["blocks"].(map[string]any)["success"].(float64) < 4 {
		t.Errorf("the report: %v", report)
	}
	head := report["head"].(map[string]any)
	if done["servers_agreeing"].(float64) < 1 || head["state_digest"] != done["state_digest"] || head["index"] != done["applied_index"] {
		t.Errorf("the audit comes to %v, the servers to %v", head, done)
	}
	heads := map[any]bool{head["tree"]: true}
	for _, other := range report["others"].([]any) {
		o := other.(map[string]any)
		if o["holds"] != true || o["parts"] != false {
			t.Errorf("another server: %v", o)
		}
		if o["records_behind"] == 0.0 {
			heads[o["head"].(map[string]any)["tree"]] = true
		}
	}
	if len(heads) != 1 {
		t.Errorf("servers at the same record have the trees %v", heads)
	}

	auditFiles(t, dir, filepath.Join(data, "servers", "2"), head)
	damage(t, data)
}

// auditFiles checks what an audit writes: the export, the proof, the known head, the state.
func auditFiles(t *testing.T, dir, source string, head map[string]any) {
	export := filepath.Join(dir, "export.jsonl")
	code, report, stderr := auditJSON(t, source, "--export", export, "--recheck", "1")
	if code != exitDone {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if recheck := report["recheck"].(map[string]any); recheck["ranges"] != report["ranges"] {
		t.Errorf("searched again: %v of %v ranges", recheck["ranges"], report["ranges"])
	}
	code, again, stderr := auditJSON(t, export)
	if code != exitDone || fmt.Sprint(again["head"]) != fmt.Sprint(report["head"]) {
		t.Errorf("the export gives %d, %v, not %v: %s", code, again["head"], report["head"], stderr)
	}
	known := fmt.Sprintf("%.0f:%s", report["head"].(map[string]any)["records"], report["head"].(map[string]any)["tree"])
	if code, _, stderr := auditJSON(t, export, "--known", known); code != exitDone {
		t.Errorf("its own head is not known: %s", stderr)
	}
	other := fmt.Sprintf("5:%s", strings.Repeat("0", 64))
	if code, _, stderr := auditJSON(t, export, "--known", other); code != exitFailed || !strings.Contains(stderr, "head") {
		t.Errorf("exit code %d for another history: %s", code, stderr)
	}
	proof := filepath.Join(dir, "proof.json")
	if code, _, stderr := command(t, "proof", "2", "--data-dir", source, "--file", proof); code != exitDone {
		t.Fatalf("proof: %s", stderr)
	}
	if code, stdout, stderr := command(t, "proof", "--verify", proof, "--known", known); code != exitDone || !strings.Contains(stdout, "block 2 holds") {
		t.Errorf("verify: %d, %s%s", code, stdout, stderr)
	}
	if code, stdout, stderr := command(t, "proof", "--verify", proof, "--known", other); code != exitFailed || stdout != "" ||
		!strings.Contains(stderr, "not the known head\nhint: ") {
		t.Errorf("a proof of another head than the known one: %d, %s%s", code, stdout, stderr)
	}
	file, err := os.ReadFile(proof)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(proof, bytes.Replace(file, []byte(`"miner": "miner`), []byte(`"miner": "niner`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := command(t, "proof", "--verify", proof); code != exitFailed || !strings.Contains(stderr, "does not hold") {
		t.Errorf("a changed proof: %d, %s", code, stderr)
	}
	prefix := filepath.Join(dir, "prefix.json")
	if code, _, stderr := command(t, "proof", "--older", known, "--data-dir", source, "--file", prefix); code != exitDone {
		t.Errorf("proof of the older head: %s", stderr)
	}
	if code, stdout, stderr := command(t, "proof", "--verify", prefix); code != exitDone || !strings.Contains(stdout, known) {
		t.Errorf("verify: %d, %s%s", code, stdout, stderr)
	}
	if code, _, stderr := command(t, "proof", "--older", other, "--data-dir", source); code != exitFailed || !strings.Contains(stderr, "head") {
		t.Errorf("exit code %d for another history's head: %s", code, stderr)
	}
	index := fmt.Sprintf("%.0f", head["index"])
	record := filepath.Join(dir, "record.json")
	if code, _, stderr := command(t, "proof", "--record", index, "--data-dir", source, "--file", record); code != exitDone {
		t.Errorf("proof of record %s: %s", index, stderr)
	}
	if code, stdout, stderr := command(t, "proof", "--verify", record); code != exitDone ||
		!strings.Contains(stdout, "the proof of record "+index+" holds") {
		t.Errorf("verify: %d, %s%s", code, stdout, stderr)
	}
	if file, err = os.ReadFile(record); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, bytes.Replace(file, []byte(`"leader": `), []byte(`"leader": 1`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := command(t, "proof", "--verify", record); code != exitFailed || !strings.Contains(stderr, "does not hold") {
		t.Errorf("a changed proof of a record: %d, %s", code, stderr)
	}
	if code, _, stderr := command(t, "proof", "--record", index+"0", "--data-dir", source); code != exitFailed || !strings.Contains(stderr, "not in the history") {
		t.Errorf("proof of a record that is not there: %d, %s", code, stderr)
	}
	code, stdout, stderr := command(t, "audit", source, "--at", index, "-o", "json")
	if code != exitDone || !strings.Contains(stdout, head["state_digest"].(string)) && report["head"].(map[string]any)["index"] == head["index"] {
		t.Errorf("the state at %s: %d, %s%s", index, code, stdout, stderr)
	}
	var early struct { // a head to keep, which the history must begin with for ever
		Records uint64
		Tree    string
	}
	first := fmt.Sprintf("%.0f", report["first_index"])
	code, stdout, stderr = command(t, "audit", source, "--at", first, "-o", "json")
	if err := json.Unmarshal([]byte(stdout), &early); code != exitDone || err != nil || early.Records != 1 {
		t.Fatalf("the state at %s: %d, %s%s", first, code, stdout, stderr)
	}
	if code, _, stderr := command(t, "audit", source, "--known", fmt.Sprintf("%d:%s", early.Records, early.Tree)); code != exitDone {
		t.Errorf("the head of the first record: %s", stderr)
	}
	if code, stdout, _ := command(t, "audit", source); code != exitDone || !strings.Contains(stdout, "everything holds") ||
		!strings.Contains(stdout, "timeline") {
		t.Errorf("for people: %d\n%s", code, stdout)
	}
}

// damage flips a byte in the middle of a journal.
func damage(t *testing.T, data string) {
	segments, err := filepath.Glob(filepath.Join(data, "servers", "3", "journal", "*.journal"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no journal: %v", err)
	}
	file, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	file[len(file)/2] ^= 4
	if err := os.WriteFile(segments[0], file, 0o600); err != nil {
		t.Fatal(err)
	}
	code, report, stderr := auditJSON(t, data)
	if code != exitFailed || report["holds"] != false || !strings.Contains(stderr, "server 3's history does not hold: record ") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestWrongAuditsSayWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	file, empty, zeros := filepath.Join(dir, "file"), filepath.Join(dir, "empty"), filepath.Join(dir, "zeros")
	for path, content := range map[string][]byte{file: []byte("hello\n"), empty: nil, zeros: make([]byte, 100)} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"audit"}, exitUsage, "say which history"},
		{[]string{"audit", "--servers", "127.0.0.1:1"}, exitFailed, "server at 127.0.0.1:1"},
		{[]string{"audit", "--servers", " , "}, exitUsage, `--servers " , ": it names no address`},
		{[]string{"audit", goldenExport, "--servers", ","}, exitUsage, `--servers ",": it names no address`},
		{[]string{"audit", goldenExport, "--servers", "nowhere"}, exitUsage, `--servers "nowhere": want HOST:PORT`},
		{[]string{"audit", goldenExport, "--export", ""}, exitUsage, "--export is given without a value"},
		{[]string{"audit", goldenExport, "--known", ""}, exitUsage, "--known is given without a value"},
		{[]string{"audit", dir, "--recheck", "0"}, exitUsage, "--recheck 0"},
		{[]string{"audit", dir, "--recheck", "1.5"}, exitUsage, "--recheck 1.5"},
		{[]string{"audit", dir, "--recheck", "NaN"}, exitUsage, "--recheck NaN"},
		{[]string{"audit", dir, "--known", "5"}, exitUsage, `--known "5"`},
		{[]string{"audit", dir, "--threads", "0"}, exitUsage, "--threads 0"},
		{[]string{"audit", goldenExport, "--at", "10", "--export", filepath.Join(dir, "out")}, exitUsage, "without --export"},
		{[]string{"audit", dir, "--at", "10", "--recheck", "0"}, exitUsage, "--recheck 0"},
		{[]string{"audit", goldenExport, "--at", "10", "--known", "5:" + strings.Repeat("0", 64)}, exitUsage, "without --export"},
		{[]string{"audit", goldenExport, "--at", "10", "--ranges"}, exitUsage, "without --export"},
		{[]string{"audit", dir}, exitFailed, "holds no history"},
		{[]string{"audit", filepath.Join(dir, "none")}, exitFailed, "no such file"},
		{[]string{"audit", file}, exitFailed, "not a readable export"},
		{[]string{"audit", empty}, exitFailed, "not a readable export: it is empty"},
		{[]string{"audit", zeros}, exitFailed, "not a readable export: the line is cut off"},
		{[]string{"proof"}, exitUsage, "one of HEIGHT, --record INDEX, --older"},
		{[]string{"proof", "1", "--older", "5:x", "--data-dir", dir}, exitUsage, "one of HEIGHT, --record INDEX, --older"},
		{[]string{"proof", "1", "--record", "5", "--data-dir", dir}, exitUsage, "one of HEIGHT, --record INDEX, --older"},
		{[]string{"proof", "--record", "5", "--verify", file}, exitUsage, "one of HEIGHT, --record INDEX, --older"},
		{[]string{"proof", "--record", "5"}, exitUsage, "--data-dir"},
		{[]string{"proof", "--older", "5:x", "--data-dir", dir}, exitUsage, `--older "5:x"`},
		{[]string{"proof", "1"}, exitUsage, "--data-dir"},
		{[]string{"proof", "x", "--data-dir", dir}, exitUsage, `height "x"`},
		{[]string{"proof", "1", "--data-dir", dir}, exitFailed, "holds no history"},
		{[]string{"proof", "--verify", file}, exitFailed, "it is no proof"},
		{[]string{"proof", "--verify", file, "--known", "5:x"}, exitUsage, `--known "5:x"`},
		{[]string{"proof", "1", "--data-dir", dir, "--known", "5:" + strings.Repeat("0", 64)}, exitUsage, "with --verify"},
		{[]string{"proof", "--verify", empty}, exitFailed, "it is no proof: it is empty"},
		{[]string{"proof", "--verify", zeros}, exitFailed, "it is no proof"},
		{[]string{"proof", "--verify", file, "--data-dir", dir}, exitUsage, "without --data-dir and --file"},
		{[]string{"proof", "--verify", file, "--file", filepath.Join(dir, "out")}, exitUsage, "without --data-dir and --file"},
		{[]string{"proof", "--verify", filepath.Join(dir, "none")}, exitFailed, "no such file"},
	} {
		code, stdout, stderr := command(t, row.args...)
		if code != row.code || !strings.HasPrefix(stderr, "raftmine: ") || !strings.Contains(stderr, row.says) || stdout != "" ||
			strings.Count(stderr, "\n") > 2 {
			t.Errorf("%v: exit code %d, said %q, printed %q", row.args, code, stderr, stdout)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Errorf("%s holds %v, %v", dir, left, err)
	}
}

// TestPipesAndDevicesAreNoFiles: a history or proof that is none is refused, and not waited for.
func TestPipesAndDevicesAreNoFiles(t *testing.T) {
	dir := t.TempDir()
	pipe, journal := filepath.Join(dir, "pipe"), filepath.Join(dir, "server", "journal")
	for _, err := range []error{syscall.Mkfifo(pipe, 0o600), os.MkdirAll(journal, 0o700), syscall.Mkfifo(filepath.Join(journal, "synced"), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		args []string
		says string
	}{
		{[]string{"audit", pipe}, pipe + ": it is no regular file\nhint: "},
		{[]string{"audit", goldenExport, pipe}, pipe + ": it is no regular file\nhint: "},
		{[]string{"audit", os.DevNull}, os.DevNull + ": it is no regular file\nhint: "},
		{[]string{"proof", "1", "--data-dir", pipe}, pipe + ": it is no regular file\nhint: "},
		{[]string{"proof", "--verify", pipe}, pipe + ": it is no regular file\nhint: "},
		{[]string{"proof", "--verify", os.DevNull}, os.DevNull + ": it is no regular file\nhint: "},
		{[]string{"proof", "--verify", dir}, dir + ": it is a folder\nhint: "},
		{[]string{"proof", "1", "--data-dir", goldenExport, "--file", pipe}, pipe + ": it is no regular file\nhint: "},
		{[]string{"proof", "1", "--data-dir", goldenExport, "--file", goldenExport}, goldenExport + ": the file exists, and is no proof\nhint: "},
	} {
		said := make(chan [2]string, 1)
		go func() {
			code, stdout, stderr := command(t, row.args...)
			said <- [2]string{fmt.Sprint(code, stdout), stderr}
		}()
		select {
		case got := <-said:
			if got[0] != fmt.Sprint(exitFailed, "") || !strings.Contains(got[1], row.says) || strings.Count(got[1], "\n") > 2 {
				t.Errorf("%v: exit code and output %q, said %q, want %q", row.args, got[0], got[1], row.says)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%v is still waiting", row.args)
		}
	}
	if _, report, stderr := auditJSON(t, filepath.Dir(journal)); report["holds"] != false || !strings.Contains(stderr, "synced: journal is damaged: not a regular file") {
		t.Errorf("a journal whose file \"synced\" is a pipe: %s", stderr)
	}
}

// TestExportTakesThePlaceOfNothingElse: a mistyped name must not cost a server its log, nor a machine its device.
func TestExportTakesThePlaceOfNothingElse(t *testing.T) {
	dir := t.TempDir()
	log, pipe, empty := filepath.Join(dir, "raft.db"), filepath.Join(dir, "pipe"), filepath.Join(dir, "empty")
	for _, err := range []error{os.WriteFile(log, []byte("a log"), 0o600), syscall.Mkfifo(pipe, 0o600), os.WriteFile(empty, nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, says := range map[string]string{log: "is no export", pipe: "no regular file"} {
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		code, _, stderr := command(t, "audit", goldenExport, "--export", path)
		if code != exitFailed || !strings.Contains(stderr, path) || !strings.Contains(stderr, says) || !strings.Contains(stderr, "hint: ") {
			t.Errorf("%s: exit code %d, said %q", path, code, stderr)
		}
		if after, err := os.Lstat(path); err != nil || after.Mode() != before.Mode() || after.Size() != before.Size() {
			t.Errorf("%s was changed: %v, %v", path, after, err)
		}
	}
	for _, path := range []string{filepath.Join(dir, "missing", "x"), filepath.Join(log, "x")} {
		for _, args := range [][]string{{"audit", goldenExport, "--export", path}, {"proof", "1", "--data-dir", goldenExport, "--file", path}} {
			code, stdout, stderr := command(t, args...)
			if code != exitFailed || stdout != "" || !strings.Contains(stderr, path+": the folder "+filepath.Dir(path)+": ") || !strings.Contains(stderr, "\nhint: ") {
				t.Errorf("%v: exit code %d, said %q, printed %q", args, code, stderr, stdout)
			}
		}
	}
	if err := mayExport(empty); err != nil {
		t.Errorf("an empty file, as mktemp makes it: %v", err)
	}
}

// goldenExport is a small history with blocks, faults and finished ranges.
var goldenExport = filepath.Join("..", "..", "testdata", "audit", "v1.export.jsonl")

// longExport writes a history of so many records in which little happens.
func longExport(t *testing.T, records uint64) (path string) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "long.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	_, err = audit.Export(file, func(yield func(audit.Record, error) bool) {
		var head fsm.Head
		for index := uint64(1); index <= records; index++ {
			commands := []fsm.Command{fsm.Strike{Miner: "miner", Reason: "test"}}
			if index == 1 {
				commands = []fsm.Command{fsm.OpenCluster{ClusterID: "long"}, fsm.TakeOffice{ServerID: 1}}
			}
			data, err := fsm.EncodeEntry(fsm.Entry{LeaderID: 1, UnixMilli: 1_790_000_000_000 + index, Version: version, Commands: commands})
			if err != nil {
				t.Fatal(err)
			}
			head = head.Next(index, 1, data)
			if !yield(audit.Record{Index: index, Term: 1, Data: data, Chain: head.Hash}, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return file.Name()
}

// interruptingWriter is a standard output whose reader presses Ctrl-C at the first line.
type interruptingWriter struct {
	bytes.Buffer
	interrupt context.CancelFunc
}

func (w *interruptingWriter) Write(data []byte) (int, error) {
	w.interrupt()
	return w.Buffer.Write(data)
}

// wantInterrupted runs a command that is interrupted when it first prints.
func wantInterrupted(t *testing.T, args ...string) {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	stdout, stderr := &interruptingWriter{interrupt: interrupt}, new(bytes.Buffer)
	code := execute(ctx, args, stdout, stderr)
	if code != exitFailed || stderr.String() != "raftmine: interrupted\n" || stdout.Len() == 0 {
		t.Errorf("%v: exit code %d, said %q, printed %d bytes", args, code, stderr, stdout.Len())
	}
	if strings.Contains(stdout.String(), "holds") {
		t.Errorf("%v: a verdict, although it was interrupted", args)
	}
}

func TestInterruptedAuditSaysThatAndNoVerdict(t *testing.T) {
	long := longExport(t, 5_000)
	wantInterrupted(t, "audit", long)
	wantInterrupted(t, "audit", "-o", "json", long)
	wantInterrupted(t, "audit", long, "--recheck", "1")
	wantInterrupted(t, "audit", goldenExport, "--recheck", "1") // its replay is over before it is asked whether to go on
	export := filepath.Join(t.TempDir(), "export.jsonl")
	wantInterrupted(t, "audit", long, "--export", export)
	if _, err := os.Stat(export); err == nil {
		t.Error("the export of an interrupted audit is there")
	}

	ended, end := context.WithCancel(t.Context())
	end()
	for _, args := range [][]string{
		{"audit", long},
		{"audit", long, "--at", "4000"},
		{"audit", long, goldenExport},
		{"audit", "--servers", "127.0.0.1:1"},
		{"proof", "1", "--data-dir", long},
	} {
		var stdout, stderr bytes.Buffer
		code := execute(ended, args, &stdout, &stderr)
		if code != exitFailed || stderr.String() != "raftmine: interrupted\n" || strings.Contains(stdout.String(), "holds") {
			t.Errorf("%v: exit code %d, said %q", args, code, &stderr)
		}
	}
}

// TestWhatDoesNotHoldIsSaidOnce: the report says in full what is wrong, and standard error in which record.
func TestWhatDoesNotHoldIsSaidOnce(t *testing.T) {
	whole, err := os.ReadFile(goldenExport)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	write := func(name string, lines ...[]byte) (path string) {
		path = filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, slices.Concat(lines...), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	removed := write("history", slices.Delete(slices.Clone(lines), 20, 21)...)
	other := write("history", slices.Delete(slices.Clone(lines), 10, 11)...)

	once := func(said, text string) {
		t.Helper()
		if n := strings.Count(said, text); n != 1 {
			t.Errorf("%q is said %d times in\n%s", text, n, said)
		}
	}
	code, report, full := auditJSON(t, removed)
	first := report["findings"].([]any)[0].(map[string]any)
	if code != exitFailed || full != fmt.Sprintf("raftmine: %s\n", report["error"]) || !strings.Contains(full, first["what"].(string)) {
		t.Fatalf("JSON: exit code %d, said %q, the report %v", code, full, report)
	}
	exported := filepath.Join(t.TempDir(), "exported")
	if code, _, stderr := command(t, "audit", removed, "--export", exported); code != exitFailed || !strings.Contains(stderr, "nothing was written") {
		t.Errorf("exported: exit code %d, said %q", code, stderr)
	}
	if _, err := os.Stat(exported); !os.IsNotExist(err) {
		t.Errorf("a history that is broken off was exported, as one that holds: %v", err)
	}
	code, stdout, stderr := command(t, "audit", removed)
	if want := fmt.Sprintf("raftmine: history's history does not hold: see record %v in the report\n", first["index"]); code != exitFailed || stderr != want {
		t.Errorf("exit code %d, said %q, want %q", code, stderr, want)
	}
	once(stdout+stderr, first["what"].(string))
	once(stdout+stderr, fmt.Sprintf("BROKEN at record %v (chain)", first["index"]))

	// Of more histories each is named so that it can be told from the others, and what is wrong with it is said.
	_, report, _ = auditJSON(t, other)
	second := report["findings"].([]any)[0].(map[string]any)
	code, stdout, stderr = command(t, "audit", goldenExport, removed, other)
	if code != exitFailed || !strings.HasPrefix(stderr, "raftmine: history (/") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit code %d, said %q", code, stderr)
	}
	for path, finding := range map[string]map[string]any{removed: first, other: second} {
		once(stdout+stderr, finding["what"].(string))
		once(stdout, fmt.Sprintf("history (%s): DOES NOT HOLD at record %v", path, finding["index"]))
		once(stdout, fmt.Sprintf("history (%s)'s history does not hold: record %v: ", path, finding["index"]))
	}
}

// TestHelpOfProofsNamesWhatTheyDoNotProve: package audit tests that all else in a proof is compared.
func TestHelpOfProofsNamesWhatTheyDoNotProve(t *testing.T) {
	_, help, _ := command(t, "proof", "--help")
	_, unproved, _ := strings.Cut(help, "It cannot verify:")
	for _, name := range []string{"head ", "number of records", "grant_first, grant_last", "(the grant's record and command)"} {
		if !strings.Contains(unproved, name) {
			t.Errorf("no %q in\n%s", name, help)
		}
	}
}

// TestWhatIsNoProofIsNamed: an error from inside of another file helps nobody.
func TestWhatIsNoProofIsNamed(t *testing.T) {
	proof, err := os.ReadFile(filepath.Join("..", "..", "testdata", "audit", "v1.proof.json"))
	if err != nil {
		t.Fatal(err)
	}
	export, err := os.ReadFile(goldenExport)
	if err != nil {
		t.Fatal(err)
	}
	const none = "it is no proof\nhint: "
	for name, row := range map[string]struct {
		content []byte
		says    string
	}{
		"an export":         {export, "it is no proof, but an export of a history\nhint: "},
		"empty":             {nil, "it is no proof: it is empty\nhint: "},
		"a server.json":     {[]byte(`{"format":1,"request_id":"x"}`), none},
		"another text":      {[]byte("hello\n"), none},
		"a list":            {[]byte("[1]"), none},
		"no role":           {bytes.Replace(proof, []byte(`"role": "grant"`), []byte(`"role": ""`), 1), `has the role "", want "grant"` + "\n"},
		"a cut proof":       {proof[:len(proof)/2], "proof does not hold: unexpected EOF\n"},
		"more after it":     {append(slices.Clone(proof), "{}"...), "proof does not hold: there is more after it\n"},
		"of a newer format": {bytes.Replace(proof, []byte(`"version": 1`), []byte(`"version": 2`), 1), "this software reads \"raftmine block proof\" of version 1\n"},
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, row.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if code, stdout, stderr := command(t, "proof", "--verify", path); code != exitFailed || stdout != "" || !strings.Contains(stderr, row.says) {
			t.Errorf("%s: exit code %d, said %q, want %q", name, code, stderr, row.says)
		}
	}
}

func TestRowsOfServersReadWell(t *testing.T) {
	yes, no := true, false
	for want, s := range map[string]serverEndView{
		"up":       {Up: true, Member: true, WasUp: &yes},
		"down":     {Member: true, WasUp: &yes},
		"never up": {Member: true, WasUp: &no},
		"not up":   {Member: true},
		"removed":  {WasUp: &no},
	} {
		if got := s.state(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestRowsOfMinersReadWell(t *testing.T) {
	p := -0.5
	for want, m := range map[string]minerAuditView{
		"m: 1 range of 100 nonces, 1 solution, 1 strike; its receipts are too few to say what it searched (p = 1)": {Name: "m", Ranges: 1, Nonces: 100, Solutions: 1,
			Strikes: 1, workShareView: &workShareView{1, 0, 6.5}},
		"m: 20 ranges of 100 nonces, 0 solutions, 2 strikes; its receipts fit an honest miner's (p = 0.1), and say at least 54 % of the work (95 times of 100) if it searched the same share of each range": {Name: "m",
			Ranges: 20, Nonces: 100, Strikes: 2, LogPValue: -1, workShareView: &workShareView{0.8, 0.549, 1.1}},
		"m: 0 ranges of 0 nonces, 0 solutions": {Name: "m"},
		"m: 3 ranges of 9 nonces, 0 solutions; 3 ranges cannot have been searched: IMPLAUSIBLE since record 7, after 1 range": {Name: "m", Ranges: 3,
			Nonces: 9, Impossible: 3, LogPValue: -99, Implausible: true, FlaggedIndex: 7, FlaggedAfter: 1},
		"m: 8 ranges of 9 nonces, 0 solutions; 1 range cannot have been searched; its other receipts fit an honest miner's (p = 0.32), and say at least 40 % of the work (95 times of 100) if it searched the same share of each range: IMPLAUSIBLE since record 7, after 5 ranges": {Name: "m",
			Ranges: 8, Nonces: 9, Impossible: 1, LogPValue: -99, OthersPValue: &p, workShareView: &workShareView{1, 0.4, 2},
			Implausible: true, FlaggedIndex: 7, FlaggedAfter: 5},
		"m: 99 ranges of 9 nonces, 0 solutions; its receipts say 50 % of the work (40 to 60 %) if it searched the same share of each range, an honest miner's are this bad or worse with p = 10^-12": {Name: "m",
			Ranges: 99, Nonces: 9, LogPValue: -12, workShareView: &workShareView{0.5, 0.4, 0.6}},
	} {
		if got := m.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestBoundsOfWorkAreRoundedOutwards: one range is no ground for any lower bound, and not for one of 10^-18 either.
func TestBoundsOfWorkAreRoundedOutwards(t *testing.T) {
	one := audit.Miner{Name: "m"}
	one.Receipts.Add(pow.Range{First: 1, Last: 100}, 0.56, audit.Place{})
	if v := viewMiner(one); v.WorkLow != 0 || v.WorkHigh < 1 || !strings.Contains(v.String(), "too few to say") {
		t.Errorf("of one range it says %v to %v: %s", v.WorkLow, v.WorkHigh, v)
	}
	for range 99 {
		one.Receipts.Add(pow.Range{First: 1, Last: 100}, 1.01, audit.Place{})
	}
	share, low, high, _ := one.Receipts.Share()
	v := viewMiner(one)
	if v.WorkLow > low || v.WorkLow < low-1e-4 || v.WorkHigh < high || v.WorkHigh > high+1e-4 || math.Abs(v.WorkShare-share) > 1e-4 ||
		!strings.Contains(v.String(), "fit an honest miner's") {
		t.Errorf("of %v, %v to %v, it says %v, %v to %v: %s", share, low, high, v.WorkShare, v.WorkLow, v.WorkHigh, v)
	}
}

// fullDisk is a standard output that takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestReportThatNobodyCanReadIsNoSuccess: exit code 0 says that everything holds, and that this was written down.
func TestReportThatNobodyCanReadIsNoSuccess(t *testing.T) {
	proof := filepath.Join("..", "..", "testdata", "audit", "v1.proof.json")
	for _, args := range [][]string{
		{"audit", goldenExport},
		{"audit", goldenExport, "-o", "json"},
		{"audit", goldenExport, "--at", "10"},
		{"proof", "1", "--data-dir", goldenExport},
		{"proof", "1", "--data-dir", goldenExport, "--file", filepath.Join(t.TempDir(), "proof")},
		{"proof", "--verify", proof},
	} {
		var stderr bytes.Buffer
		code := execute(t.Context(), args, fullDisk{}, &stderr)
		if code != exitFailed || !strings.Contains(stderr.String(), "no space left on device") || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%v: exit code %d, said %q", args, code, &stderr)
		}
	}
}

var updateTranscripts = flag.Bool("update", false, "write again what an audit says of the golden export")

var longFraction = regexp.MustCompile(`([0-9]\.[0-9]{6})[0-9]+`)

// TestWhatAnAuditSays compares all that is said of the golden export with transcripts: who searched what and when, leaders and
// takeovers, servers up and down, re-grants with their reason, time and hashes of each block, the timeline, the heads.
func TestWhatAnAuditSays(t *testing.T) {
	defer func(zone *time.Location) { time.Local = zone }(time.Local)
	time.Local = time.UTC
	for name, args := range map[string][]string{
		"v1.audit.txt":  {"audit", goldenExport, "--all", "--ranges"},
		"v1.audit.json": {"audit", goldenExport, "--ranges", "-o", "json"},
	} {
		code, stdout, stderr := command(t, args...)
		if code != exitDone || stderr != "" {
			t.Fatalf("%s: exit code %d: %s", name, code, stderr)
		}
		stdout = longFraction.ReplaceAllString(stdout, "$1") // the last digits are the processor's
		path := filepath.Join("..", "..", "testdata", "audit", name)
		if *updateTranscripts {
			if err := os.WriteFile(path, []byte(stdout), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, lines := strings.Split(stdout, "\n"), strings.Split(string(want), "\n")
		for i := range max(len(got), len(lines)) {
			if i >= len(got) || i >= len(lines) || got[i] != lines[i] {
				t.Errorf("%s: line %d is %q, want %q; -update writes it again", name, i+1, got[min(i, len(got)-1)], lines[min(i, len(lines)-1)])
				break
			}
		}
	}
}
