package main

import (
	"fmt"
	"path/filepath"
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
			yield(audit.Record{}, unread(fmt.Errorf("history of server: %w", cause), 7))
		}, audit.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if first, found := report.First(); !found || first.Index != 8 || first.Kind != audit.KindSource {
			t.Errorf("%v: found %v, want it at record 8", cause, first)
		}
	}
}
