package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"raftmine/fsm/audit"
	"raftmine/raftnode"
)

// TestServersOfTheShellStayOutOfAnAuditOfAFile: "raftmine env" names them for other commands.
func TestServersOfTheShellStayOutOfAnAuditOfAFile(t *testing.T) {
	exports, err := filepath.Glob(filepath.Join("..", "..", "testdata", "audit", "*.jsonl"))
	if err != nil || len(exports) == 0 {
		t.Fatalf("no golden export: %v", err)
	}
	t.Setenv("RAFTMINE_SERVERS", "127.0.0.1:1")
	if code, report, stderr := auditJSON(t, exports[0]); code != exitDone || len(report["others"].([]any)) != 0 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if code, _, stderr := command(t, "audit"); code != exitFailed {
		t.Errorf("without a file they are audited: exit code %d: %s", code, stderr)
	}
}

// TestBrokenHistoryOfARunningServerIsNamedByIndex, as that of its directory is: the record behind the last one that came.
func TestBrokenHistoryOfARunningServerIsNamedByIndex(t *testing.T) {
	for _, cause := range []error{raftnode.ErrHistoryGap, raftnode.ErrJournalDamaged} {
		report, err := audit.Replay(func(yield func(audit.Record, error) bool) {
			yield(audit.Record{}, stopped(fmt.Errorf("history of server: %w", cause), 7))
		}, audit.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if first, found := report.First(); !found || first.Index != 8 || first.Kind != audit.KindSource {
			t.Errorf("%v: found %v, want it at record 8", cause, first)
		}
	}
}

// TestServersThatDoNotAnswerAreNamedAndTheOthersAudited: one that is gone and one that hangs. That is no success, and no
// broken history either, which is told before it.
func TestServersThatDoNotAnswerAreNamedAndTheOthersAudited(t *testing.T) {
	data := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "-o", "json", "--servers", "1", "--miners", "1", "--zeros", "3", "--blocks", "0", "--data-dir", data)
	_, _ = run.waitEvent(0, "block")
	addresses, problem := addressesOf(t, filepath.Join(data, "environment"))
	if len(addresses) != 1 {
		t.Fatalf("servers at %v; %s", addresses, problem)
	}
	hanging, err := net.Listen("tcp", "127.0.0.1:0") // what connects is never answered
	if err != nil {
		t.Fatal(err)
	}
	defer hanging.Close()
	const gone = "127.0.0.1:1"
	silent := []string{hanging.Addr().String(), gone}
	servers := strings.Join(append(silent, addresses...), ",")

	code, report, stderr := auditJSON(t, "--servers", servers)
	if code != exitFailed || report["source"] != addresses[0] || report["holds"] != false || report["verdict"] != "not_verified" ||
		report["findings_total"] != 0.0 || report["live"] == nil || stderr != fmt.Sprintf("raftmine: %s\n", report["error"]) {
		t.Fatalf("exit code %d, said %q, the report %v", code, stderr, report)
	}
	named := make(map[string]bool)
	for _, row := range report["unread"].([]any) {
		named[fmt.Sprint(row.(map[string]any)["source"])] = row.(map[string]any)["error"] != ""
	}
	if len(named) != 2 || !named[silent[0]] || !named[silent[1]] {
		t.Errorf("unread are %v, want %v", report["unread"], silent)
	}

	code, stdout, stderr := command(t, "audit", "--servers", servers)
	if code != exitFailed || stderr != "raftmine: 2 of 3 histories could not be read: see the report\n" ||
		!strings.Contains(stdout, "\nNOT EVERYTHING IS VERIFIED: 2 of 3 histories could not be read; what was read holds\n") {
		t.Errorf("exit code %d, said %q, printed\n%s", code, stderr, stdout)
	}
	if !strings.Contains(stdout, ", as the running server's own after record ") {
		t.Errorf("the state of what was read is not told:\n%s", stdout)
	}
	for _, address := range silent {
		lines := 0
		for line := range strings.Lines(stdout) {
			if strings.Contains(line, address) {
				lines++
			}
		}
		if lines != 1 || !strings.Contains(stdout, "server at "+address+": ") {
			t.Errorf("%d lines say of %s that it could not be read:\n%s", lines, address, stdout)
		}
	}

	whole, err := os.ReadFile(goldenExport)
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if code, report, stderr := auditJSON(t, broken, "--servers", gone); code != exitFailed || report["verdict"] != "does_not_hold" ||
		len(report["unread"].([]any)) != 1 || !strings.HasPrefix(stderr, "raftmine: broken's history does not hold: record ") {
		t.Errorf("a broken history and no server: exit code %d, said %q, the report %v", code, stderr, report)
	}
	if code, _, stderr := command(t, "audit", "--servers", strings.Join([]string{gone, "127.0.0.1:2"}, ",")); code != exitFailed ||
		strings.Count(stderr, "server at 127.0.0.1:1: ") != 1 || strings.Count(stderr, "server at 127.0.0.1:2: ") != 1 {
		t.Errorf("no server answers: exit code %d, said %q", code, stderr)
	}
	if code, stdout, stderr := command(t, "audit", "--at", "10", "--servers", gone+","+addresses[0]); code != exitFailed ||
		!strings.HasPrefix(stdout, "state as of record ") || !strings.Contains(stderr, "server at 127.0.0.1:1: ") {
		t.Errorf("--at: exit code %d, said %q, printed %s", code, stderr, stdout)
	}
	run.signal(syscall.SIGINT)
	if code := run.waitExit(); code != exitDone {
		t.Errorf("run ended with %d", code)
	}
}

// TestServerThatEndsDuringItsAuditIsNamedAndTheOthersAudited: in whichever pass over its history it ends.
func TestServerThatEndsDuringItsAuditIsNamedAndTheOthersAudited(t *testing.T) {
	golden, err := exportSource(goldenExport)
	if err != nil {
		t.Fatal(err)
	}
	for last, row := range map[int]struct{ unread, tells string }{
		0: {"history could not be read: it ended", "server 1's history could not be read to its end, so another one is told\n"},
		1: {"compare with v1.export.jsonl: history could not be read: it ended", "server 1: holds in itself, and could not be compared\n"},
	} {
		ending, passes := golden, 0
		ending.name, ending.path, ending.id = "server 1", "127.0.0.1:7001", 1
		ending.open = func(ctx context.Context) (pass, error) {
			p, err := golden.open(ctx)
			if passes++; passes > last {
				p.records, p.endsAt = endsAfter(p.records, 50), nil
			}
			return p, err
		}
		sources := []source{ending, golden}
		if last == 1 { // the first of equal ones is the longest
			sources = []source{golden, ending}
		}
		var text, lines bytes.Buffer
		o := auditOptions{threads: 1}
		const want = "1 of 2 histories could not be read: see the report"
		if err := o.audit(t.Context(), &printer{w: &text}, sources, nil, nil); err == nil || err.Error() != want {
			t.Errorf("pass %d: it ends with %v, want %s", last, err, want)
		}
		if !strings.Contains(text.String(), "server 1: "+row.unread+"\n") || !strings.Contains(text.String(), row.tells) ||
			strings.Contains(text.String(), "everything holds") || !strings.Contains(text.String(), "what was read holds\n") {
			t.Errorf("pass %d: it prints\n%s", last, &text)
		}
		passes = 0
		if err := o.audit(t.Context(), &printer{w: &lines, json: true}, sources, nil, nil); err == nil || !strings.HasPrefix(err.Error(), "server 1 could not be read: ") {
			t.Errorf("pass %d: JSON ends with %v", last, err)
		}
		if !strings.Contains(lines.String(), `"unread":[{"source":"127.0.0.1:7001","server":1,"error":"`+row.unread+`"}]`) {
			t.Errorf("pass %d: JSON is\n%s", last, &lines)
		}
	}
}

// endsAfter yields the first records, and then says that the source is gone.
func endsAfter(records audit.Records, n int) audit.Records {
	return func(yield func(audit.Record, error) bool) {
		for record, err := range audit.Beginning(records, uint64(n)) {
			if !yield(record, err) {
				return
			}
		}
		yield(audit.Record{}, fmt.Errorf("%w: %w", audit.ErrInterrupted, errors.New("it ended")))
	}
}
