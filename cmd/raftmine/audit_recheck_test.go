package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/audit"
	"raftmine/fsm/pow"
)

// madeUpExport writes a history of so many records in which one miner finishes ranges that it did not search: the receipt
// is the first nonce of each. A longer one begins with a shorter one.
func madeUpExport(t *testing.T, records uint64) (path string) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprintf("made-up-%d.jsonl", records)))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const chunk = 20
	_, err = audit.Export(file, func(yield func(audit.Record, error) bool) {
		var head fsm.Head
		for index := uint64(1); index <= records; index++ {
			grant := (index - 1) / 2 // two records each
			nonces := pow.Range{First: chunk*grant - chunk + 1, Last: chunk * grant}
			commands := []fsm.Command{fsm.GrantWork{JobID: 1, Miner: "liar", Instance: fsm.ID{1}, RequestID: index, Chunks: 1}}
			switch {
			case index == 1:
				commands = []fsm.Command{fsm.OpenCluster{ClusterID: "made up"}, fsm.TakeOffice{ServerID: 1}}
			case index == 2:
				commands = []fsm.Command{fsm.OpenJob{Height: 1, Previous: pow.Sum([]byte("made up")), Bits: 60, Timestamp: 1,
					Nonces: pow.Range{First: 1, Last: 2_000_000}, ChunkSize: chunk}}
			case index%2 == 0:
				commands = []fsm.Command{fsm.Finish{JobID: 1, GrantID: grant, Miner: "liar", Timestamp: 1, Nonces: nonces, Receipt: nonces.First}}
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

// recheckOf returns what a recheck came to without the time it took.
func recheckOf(t *testing.T, args ...string) map[string]any {
	t.Helper()
	_, report, stderr := auditJSON(t, args...)
	recheck, ok := report["recheck"].(map[string]any)
	if !ok {
		t.Fatalf("%v: no recheck: %s", args, stderr)
	}
	delete(recheck, "seconds")
	return recheck
}

// TestRecheckIsRepeatedOfAHistoryThatHasGrown: with the index of the record that was the last one then, the very same ranges
// are searched again, and no others.
func TestRecheckIsRepeatedOfAHistoryThatHasGrown(t *testing.T) {
	yesterday, today := madeUpExport(t, 100), madeUpExport(t, 300)
	then := recheckOf(t, yesterday, "--recheck", "0.5")
	if wrong := len(then["wrong"].([]any)); then["drawn_at"] != 100.0 || wrong < 10 || wrong > 40 {
		t.Fatalf("of 49 made-up ranges half is drawn, and nearly all of those are wrong: %v", then)
	}
	if again := recheckOf(t, today, "--recheck", "0.5", "--at", "100"); fmt.Sprint(again) != fmt.Sprint(then) {
		t.Errorf("drawn again at record 100:\n%v, want\n%v", again, then)
	}
	now := recheckOf(t, today, "--recheck", "0.5")
	if early := now["wrong"].([]any)[:10]; now["drawn_at"] != 300.0 || fmt.Sprint(early) == fmt.Sprint(then["wrong"].([]any)[:10]) {
		t.Errorf("drawn by the last record of today: %v", now)
	}
	if code, stdout, _ := command(t, "audit", today, "--recheck", "0.5", "--at", "100"); code != exitFailed ||
		!strings.Contains(stdout, "drawn by record 100: --recheck 0.5 --at 100 draws the same again\n") {
		t.Errorf("for people: exit code %d\n%s", code, stdout)
	}
}

// TestRecheckThatWasNotDoneIsSaid, with the reason, and is no success.
func TestRecheckThatWasNotDoneIsSaid(t *testing.T) {
	whole, err := os.ReadFile(goldenExport)
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		args             []string
		verdict, because string
	}{
		{[]string{broken, "--recheck", "1"}, "does_not_hold", "the history is broken off"},
		{[]string{broken, "--recheck", "1", "--at", "5"}, "does_not_hold", "the history is broken off"},
		{[]string{goldenExport, "--recheck", "1", "--at", "500"}, "not_verified", "record 500: the history ends with record 114: not in the history"},
		{[]string{goldenExport, "--recheck", "1", "--at", "0"}, "not_verified", "record 0: the history begins with record 1: not in the history"},
	} {
		code, report, stderr := auditJSON(t, row.args...)
		if code != exitFailed || report["holds"] != false || report["verdict"] != row.verdict || report["recheck_not_done"] != row.because ||
			report["recheck"] != nil || stderr != fmt.Sprintf("raftmine: %s\n", report["error"]) {
			t.Errorf("%v: exit code %d, said %q, the report %v", row.args, code, stderr, report)
		}
		code, stdout, stderr := command(t, append([]string{"audit"}, row.args...)...)
		if code != exitFailed || strings.Count(stderr, "\n") != 1 || !strings.Contains(stdout, "\nrecheck   not done: "+row.because+"\n") ||
			strings.Contains(stdout, "everything holds") {
			t.Errorf("%v: exit code %d, said %q, printed\n%s", row.args, code, stderr, stdout)
		}
	}
}

// interruptedAt is a standard output whose reader presses Ctrl-C when it reads a word.
type interruptedAt struct {
	bytes.Buffer
	word      string
	interrupt context.CancelFunc
}

func (w *interruptedAt) Write(data []byte) (int, error) {
	if bytes.Contains(data, []byte(w.word)) {
		w.interrupt()
	}
	return w.Buffer.Write(data)
}

// TestInterruptedAuditSaysWhatItHadFound: the first of two histories does not hold, and the second was never read to its end.
func TestInterruptedAuditSaysWhatItHadFound(t *testing.T) {
	history, long := madeUpExport(t, 30_000), longExport(t, 20_000)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	stdout, stderr := &interruptedAt{word: "BROKEN", interrupt: interrupt}, new(bytes.Buffer)
	code := execute(ctx, []string{"audit", history, long}, stdout, stderr)
	if code != exitFailed || !strings.HasPrefix(stderr.String(), "raftmine: made-up-30000.jsonl's history does not hold: record ") ||
		!strings.HasSuffix(stderr.String(), "; then it was interrupted\n") || strings.Contains(stdout.String(), "everything holds") {
		t.Errorf("exit code %d, said %q", code, stderr)
	}
}

// TestInterruptedExportDoesNotHideThatTheHistoryDoesNotHold: what is known is said, and then that there is no export.
func TestInterruptedExportDoesNotHideThatTheHistoryDoesNotHold(t *testing.T) {
	history, path := madeUpExport(t, 5_000), filepath.Join(t.TempDir(), "export")
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	stdout, stderr := &interruptedAt{word: "DOES NOT HOLD", interrupt: interrupt}, new(bytes.Buffer)
	code := execute(ctx, []string{"audit", history, "--export", path}, stdout, stderr)
	first, rest, _ := strings.Cut(stderr.String(), "; ")
	if code != exitFailed || !strings.HasPrefix(first, "raftmine: made-up-5000.jsonl's history does not hold: see record ") ||
		rest != "--export "+path+": interrupted\n" {
		t.Errorf("exit code %d, said %q", code, stderr)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the interrupted export is there")
	}
}
