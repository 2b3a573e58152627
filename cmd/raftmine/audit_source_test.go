package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHistoriesThatAgreeAreReplayedAndNotReadAgain: only where one parts from the longest are both read once more.
func TestHistoriesThatAgreeAreReplayedAndNotReadAgain(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	writeLongHistory(t, at("long"), 60, 2)
	writeLongHistory(t, at("same"), 60, 2)
	writeLongHistory(t, at("short"), 40, 2)
	writeLongHistory(t, at("other"), 50, 3)
	audited := func(dirs ...string) (opened map[string]int, report map[string]any, err error) {
		var text bytes.Buffer
		out := &printer{w: &text, json: true}
		sources, _, err := findSources(t.Context(), out, dirs, nil)
		if err != nil {
			t.Fatal(err)
		}
		opened = make(map[string]int)
		for i := range sources {
			s := &sources[i]
			open := s.open
			s.open = func(ctx context.Context) (pass, error) {
				opened[filepath.Base(s.path)]++
				return open(ctx)
			}
		}
		o := auditOptions{threads: 1}
		err = o.audit(t.Context(), out, sources, nil, nil)
		lines := strings.Split(strings.TrimSpace(text.String()), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &report); err != nil {
			t.Fatal(err)
		}
		return opened, report, err
	}
	opened, report, err := audited(at("short"), at("long"), at("same"))
	if err != nil || opened["long"] != 1 || opened["same"] != 1 || opened["short"] != 1 {
		t.Errorf("histories that agree were opened %v, %v", opened, err)
	}
	for _, row := range report["others"].([]any) {
		o := row.(map[string]any)
		if n := o["head"].(map[string]any)["records"].(float64); o["parts"] != false || o["same_records"] != n || o["records_behind"] != 60-n {
			t.Errorf("another history: %v", o)
		}
	}
	opened, report, err = audited(at("long"), at("other"), at("short"))
	if err == nil || !strings.Contains(err.Error(), "part after 4 records") || opened["long"] != 2 || opened["other"] != 2 || opened["short"] != 1 {
		t.Errorf("a history that parts: %v; opened %v", err, opened)
	}
	if others := report["others"].([]any); len(others) != 2 || others[0].(map[string]any)["parts"] != true {
		t.Errorf("a history that parts: %v", others)
	}
}

// TestDirectoryOfARunThatCannotBeReadIsNamedAndTheOthersAudited: a lost journal, one that has nothing yet, and a damaged
// server.json. That is no success, and no broken history either; what can be read is proved all the same.
func TestDirectoryOfARunThatCannotBeReadIsNamedAndTheOthersAudited(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"no journal":          func(dir string) error { return os.RemoveAll(filepath.Join(dir, "journal")) },
		"damaged server.json": func(dir string) error { return os.WriteFile(filepath.Join(dir, "server.json"), []byte("{"), 0o600) },
		"empty journal": func(dir string) error {
			journal := filepath.Join(dir, "journal")
			return errors.Join(os.RemoveAll(journal), os.Mkdir(journal, 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			run := t.TempDir()
			server := func(id string) string { return filepath.Join(run, "servers", id) }
			for _, id := range []string{"1", "2", "3"} {
				writeLongHistory(t, server(id), 40, 2)
			}
			if err := spoil(server("2")); err != nil {
				t.Fatal(err)
			}
			code, report, stderr := auditJSON(t, run)
			if code != exitFailed || report["verdict"] != "not_verified" || report["source"] != server("1") || len(report["others"].([]any)) != 1 ||
				stderr != "raftmine: "+report["error"].(string)+"\n" {
				t.Fatalf("exit code %d, said %q, the report %v", code, stderr, report)
			}
			unread := report["unread"].([]any)
			if len(unread) != 1 || unread[0].(map[string]any)["source"] != server("2") || unread[0].(map[string]any)["error"] == "" {
				t.Errorf("unread are %v", unread)
			}
			code, stdout, stderr := command(t, "audit", run)
			if code != exitFailed || stderr != "raftmine: 1 of 3 histories could not be read: see the report\n" ||
				!strings.Contains(stdout, "\nunread    servers/2: ") || !strings.Contains(stdout, "; what was read holds\n") {
				t.Errorf("exit code %d, said %q, printed\n%s", code, stderr, stdout)
			}
			if code, stdout, stderr := command(t, "proof", "--record", "3", "--data-dir", run); code != exitDone || !strings.Contains(stdout, "raftmine record proof") {
				t.Errorf("a proof: exit code %d, said %q", code, stderr)
			}
			if code, _, stderr := command(t, "proof", "7", "--data-dir", run); code != exitFailed || !strings.Contains(stderr, "block 7: not in the history; servers/2: ") {
				t.Errorf("a proof of what is not there: exit code %d, said %q", code, stderr)
			}
			if code, _, stderr := command(t, "audit", server("2")); code != exitFailed || strings.Contains(stderr, "does not hold") || strings.Count(stderr, "\n") > 2 {
				t.Errorf("named itself: exit code %d, said %q", code, stderr)
			}
			if err := errors.Join(spoil(server("1")), spoil(server("3"))); err != nil {
				t.Fatal(err)
			}
			if code, stdout, stderr := command(t, "audit", run); code != exitFailed || stdout != "" || strings.Contains(stderr, "folder of a") ||
				strings.Contains(stderr, "address") || !strings.Contains(stderr, "servers/1: ") || !strings.Contains(stderr, "servers/3: ") {
				t.Errorf("none can be read: exit code %d, said %q, printed %q", code, stderr, stdout)
			}
		})
	}
}
