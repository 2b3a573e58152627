package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"raftmine/raftnode"
)

// smallLogsVariable makes servers of this test binary take snapshots early and keep little log behind them, so that one
// that was away for a moment is restored from a snapshot; and their journals have many segments.
const smallLogsVariable = "TEST_SMALL_LOGS"

func useSmallLogs(value string) {
	if value == "" {
		return
	}
	tuneNode = func(config *raftnode.Config) {
		config.SnapshotInterval, config.SnapshotThreshold, config.TrailingLogs = 50*time.Millisecond, 20, 5
		config.JournalSegment = 2 << 10
	}
}

// lastProcesses returns the pids of a run's processes of a role, by id or name; of those that were started again the last
// one.
func lastProcesses(run *process, role string) map[string]int {
	pids := make(map[string]int)
	for _, started := range run.events("process_started") {
		if started["role"] == role {
			who := started["name"]
			if role == "server" {
				who = started["id"]
			}
			pids[fmt.Sprint(who)] = int(started["pid"].(float64))
		}
	}
	return pids
}

// TestHistoryWithEveryFaultAuditsCleanFromEveryServer: a leader is killed and comes back through a snapshot, miners are
// killed in the middle of their ranges. Every server's history holds, on the disk and over the network, while the servers
// run and after, and all have the same head. Then one of the directories is tampered with.
func TestHistoryWithEveryFaultAuditsCleanFromEveryServer(t *testing.T) {
	t.Setenv(smallLogsVariable, "1")
	data := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "-o", "json", "--zeros", "5", "--block-time", "0s", "--nonce-last", "200000", "--chunk",
		"2000", "--heartbeat", "500ms", "--respawn", "--data-dir", data) // several rounds a block, in many small ranges
	_, _ = run.waitEvent(0, "block")
	killed := 0
	eventually(t, "the killed leader comes back through a snapshot and fetches what it lacks", func() string {
		log, err := os.ReadFile(filepath.Join(data, "logs", "server-1.log"))
		if bytes.Contains(log, []byte("gap in the history filled")) {
			return ""
		}
		// Each time it leads again: on a busy machine it may be back before the others have left its log behind.
		view, _ := statusOf(t, filepath.Join(data, "environment"))
		if pid := lastProcesses(run, "server")["1"]; pid != killed && view.Leader == 1 {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			killed = pid
		}
		return fmt.Sprintf("no gap was filled; %v", err)
	})
	for regrants := 0.0; regrants == 0; {
		killed := lastProcesses(run, "miner")
		for _, pid := range killed {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		blocks := len(run.events("block"))
		eventually(t, "miners that are there again search what they left", func() string {
			for id, pid := range lastProcesses(run, "miner") {
				if killed[id] == pid {
					return fmt.Sprintf("%s is not there", id)
				}
			}
			_, report, stderr := auditJSON(t, filepath.Join(data, "servers", "2"))
			if report == nil {
				return stderr
			}
			if regrants = regrantsOf(report); regrants == 0 && blocks == len(run.events("block")) {
				return "nothing was granted again" // but when they held nothing: then they mine the next block
			}
			return ""
		})
	}
	auditRunning(t, data, data) // from the disk as well, beside the running servers
	run.signal(syscall.SIGINT)
	done, _ := run.waitEvent(0, "done")
	if code := run.waitExit(); code != exitDone {
		t.Fatalf("run ended with %d", code)
	}

	code, report, stderr := auditJSON(t, data)
	if code != exitDone || report["takeovers"].(float64) < 1 || regrantsOf(report) == 0 || len(report["others"].([]any)) != 2 {
		t.Fatalf("exit code %d: %s\n%v", code, stderr, report)
	}
	head := report["head"].(map[string]any)
	if head["state_digest"] != done["state_digest"] {
		t.Errorf("the audit comes to state %v, the servers to %v", head["state_digest"], done["state_digest"])
	}
	shortest := head
	for _, other := range report["others"].([]any) {
		own := other.(map[string]any)["head"].(map[string]any)
		if own["records"].(float64) < shortest["records"].(float64) {
			shortest = own
		}
	}
	known := fmt.Sprintf("%.0f:%s", shortest["records"], shortest["tree"])
	for id := 1; id <= 3; id++ {
		dir := filepath.Join(data, "servers", fmt.Sprint(id))
		code, own, stderr := auditJSON(t, dir, "--known", known)
		if code != exitDone || own["server"] != float64(id) || own["head"].(map[string]any)["tree"] != head["tree"] &&
			own["head"].(map[string]any)["records"] == head["records"] {
			t.Errorf("server %d: exit code %d: %s, %v", id, code, stderr, own["head"])
		}
	}
	tamper(t, filepath.Join(data, "servers", "2"), filepath.Join(data, "servers", "3"))
}

// auditRunning audits the running servers, and directories beside them, and returns the report.
func auditRunning(t *testing.T, data string, dirs ...string) (report map[string]any) {
	t.Helper()
	addresses, problem := addressesOf(t, filepath.Join(data, "environment"))
	if len(addresses) != 3 {
		t.Fatalf("servers at %v; %s", addresses, problem)
	}
	code, report, stderr := auditJSON(t, append(dirs, "--servers", strings.Join(addresses, ","))...)
	if code != exitDone || report["holds"] != true || len(report["others"].([]any)) != 2+3*len(dirs) {
		t.Fatalf("exit code %d: %s\n%v", code, stderr, report)
	}
	wantInterrupted(t, "audit", "--servers", strings.Join(addresses, ","))
	live := 0
	for _, audited := range append(report["others"].([]any), any(report)) {
		row := audited.(map[string]any)
		if own, ok := row["live"].(map[string]any); ok {
			live++
			if own["state_digest"] != row["head"].(map[string]any)["state_digest"] {
				t.Errorf("%v: its state is %v, and its history comes to %v", row["source"], own, row["head"])
			}
		}
	}
	if live != 3 {
		t.Errorf("%d histories were compared with a live state, want 3", live)
	}
	return report
}

func regrantsOf(report map[string]any) (ranges float64) {
	for _, row := range report["regrants"].([]any) {
		ranges += row.(map[string]any)["ranges"].(float64)
	}
	return ranges
}
