package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// runningPIDs returns those of the told processes that still exist.
func runningPIDs(p *process) []int {
	var alive []int
	for _, started := range p.events("process_started") {
		pid := int(started["pid"].(float64))
		// A zombie whose parent died is reaped by init; whatever answers here still runs.
		if syscall.Kill(pid, 0) == nil && !isZombie(pid) {
			alive = append(alive, pid)
		}
	}
	return alive
}

// isZombie reports whether a process has ended and only waits to be reaped, where the system can tell.
func isZombie(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(data), ") ")
	return strings.HasPrefix(after, "Z")
}

func TestRunLeavesNoProcessBehind(t *testing.T) {
	for _, row := range []struct {
		name   string
		signal syscall.Signal
		code   int
		paused bool // a server and a miner are
	}{
		{"Ctrl-C", syscall.SIGINT, exitDone, false},
		{"a closed terminal", syscall.SIGHUP, exitDone, false},
		{"SIGTERM", syscall.SIGTERM, exitDone, false},
		{"its own death by kill -9", syscall.SIGKILL, -1, false},
		{"its own death by kill -9 while some are paused", syscall.SIGKILL, -1, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := filepath.Join(keepOnFailure(t), "run")
			run := startProcess(t, "run", "--zeros", "16", "--block-time", "0s", "--data-dir", dir, "-o", "json")
			_, _ = run.waitEvent(0, "leader")
			eventually(t, "all six processes run", func() string {
				if alive := runningPIDs(run); len(alive) != 6 {
					return fmt.Sprintf("%d do", len(alive))
				}
				return ""
			})
			if row.paused {
				for _, pid := range []int{lastProcesses(run, "server")["1"], lastProcesses(run, "miner")["miner-1"]} {
					if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
						t.Fatal(err)
					}
				}
			}
			run.signal(row.signal)
			if code := run.waitExit(); code != row.code {
				t.Errorf("exit code %d, want %d", code, row.code)
			}
			eventually(t, "every process is gone", func() string {
				if alive := runningPIDs(run); len(alive) != 0 {
					return fmt.Sprintf("%v still run", alive)
				}
				return ""
			})
		})
	}
}

func TestRunThatCannotStartLeavesNoProcessBehind(t *testing.T) {
	dir := filepath.Join(keepOnFailure(t), "run")
	foreign := filepath.Join(dir, "servers", "2")
	if err := os.MkdirAll(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(foreign, "thesis.txt"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := startProcess(t, "run", "--data-dir", dir, "-o", "json")
	if code := run.waitExit(); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if said := run.errors(); !strings.Contains(said, foreign) || !strings.Contains(said, "thesis.txt") {
		t.Errorf("said %q, without the folder in the way", said)
	}
	if started := run.events("process_started"); len(started) != 2 {
		t.Errorf("told %v, want the web service and server 1", started)
	}
	eventually(t, "every process is gone", func() string {
		if alive := runningPIDs(run); len(alive) != 0 {
			return fmt.Sprintf("%v still run", alive)
		}
		return ""
	})
}

// TestRunGoesOnWhenItsLeaderIsKilled kills server 1 while blocks are mined: the others finish the run, and agree.
func TestRunGoesOnWhenItsLeaderIsKilled(t *testing.T) {
	service, base := startForeignService(t, 4)
	dir := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "--blocks", "20", "--web-service", base, "--data-dir", dir, "-o", "json")
	_, _ = run.waitEvent(0, "block")
	killProcess(t, run, "server", 1)
	_, _ = run.waitLine(0, "a leader other than server 1", func(line string) bool {
		return strings.Contains(line, `"event":"leader"`) && !strings.Contains(line, `"id":1,`)
	})
	if code := run.waitExit(); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
	checkChain(t, run, service, 20)
	if done := run.events("done"); len(done) != 1 || done[0]["servers_agreeing"] != float64(2) {
		t.Errorf("done event is %v", done)
	}
}

// TestRespawnStartsAKilledProcessAgain: with --respawn the killed leader is back after a while, under its id, and leads.
func TestRespawnStartsAKilledProcessAgain(t *testing.T) {
	dir := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "--zeros", "16", "--block-time", "0s", "--heartbeat", "500ms", "--respawn", "--data-dir", dir, "-o", "json")
	_, next := run.waitEvent(0, "leader")
	eventually(t, "all servers are up", func() string {
		view, problem := statusOf(t, filepath.Join(dir, "environment"))
		for _, server := range view.Servers {
			if !server.Up || !server.Voter {
				problem += fmt.Sprintf(" server %d is not up", server.ID)
			}
		}
		if len(view.Servers) != 3 {
			problem += " not three servers"
		}
		return problem
	})
	killProcess(t, run, "server", 1)
	again, next := run.waitLine(next, "server 1 again", func(line string) bool {
		return strings.Contains(line, `"event":"process_started","role":"server","id":1,`)
	})
	_, _ = run.waitLine(next, "server 1 leading again after "+again, func(line string) bool {
		return strings.Contains(line, `"event":"leader","id":1,`)
	})
	run.signal(syscall.SIGINT)
	if code := run.waitExit(); code != exitDone {
		t.Errorf("exit code %d", code)
	}
}

// killProcess kills -9 the process of a role and id that a run told.
func killProcess(t *testing.T, run *process, role string, id float64) {
	t.Helper()
	for _, started := range run.events("process_started") {
		if started["role"] == role && started["id"] == id {
			if err := syscall.Kill(int(started["pid"].(float64)), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no %s %v was told", role, id)
}

// checkChain compares what a run printed with what the service accepted: the same blocks in the same order, each height
// once.
func checkChain(t *testing.T, run *process, service *foreignService, want int) {
	t.Helper()
	_, accepted := service.report()
	var printed []string
	for _, block := range run.events("block") {
		checkPrintedProof(t, block)
		if block["verdict"] == "success" {
			printed = append(printed, block["hash"].(string))
		}
	}
	if len(printed) != want || len(accepted) < want {
		t.Fatalf("%d blocks printed, %d accepted, want %d", len(printed), len(accepted), want)
	}
	for i := range printed {
		if printed[i] != accepted[i] {
			t.Errorf("block %d was printed as %s, the service accepted %s", i+1, printed[i], accepted[i])
		}
	}
}
