package main

import (
	"bytes"
	"context"
	"encoding/json"
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
