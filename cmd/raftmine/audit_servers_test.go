package main

import (
	"path/filepath"
	"testing"
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
