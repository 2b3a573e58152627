package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// stopRun interrupts a run and expects an orderly end.
func stopRun(t *testing.T, run *process) {
	t.Helper()
	run.signal(syscall.SIGINT)
	if code := run.waitExit(); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
}

// TestRunAgainWithMoreServersIsOneCluster: new servers join the ones that were there, whichever starts first.
func TestRunAgainWithMoreServersIsOneCluster(t *testing.T) {
	dir := filepath.Join(keepOnFailure(t), "run")
	args := []string{"run", "--miners", "0", "--data-dir", dir, "-o", "json"}
	first := startProcess(t, append(args, "--servers", "2")...)
	_, _ = first.waitEvent(0, "leader")
	stopRun(t, first)
	second := startProcess(t, append(args, "--servers", "4")...)
	_, _ = second.waitEvent(0, "leader")
	view, problem := statusOf(t, filepath.Join(dir, "environment"))
	if problem != "" || len(view.Servers) != 4 {
		t.Errorf("%d servers in one table, want 4; %s", len(view.Servers), problem)
	}
	ids := make(map[any]bool)
	for _, started := range second.events("process_started") {
		if started["role"] == "server" {
			ids[started["id"]] = true
		}
	}
	if len(ids) != 4 {
		t.Errorf("server ids are %v, want four", ids)
	}
	stopRun(t, second)

	code, _, stderr := command(t, append(args, "--servers", "3")...)
	if code != exitFailed || !strings.Contains(stderr, "--servers 4") {
		t.Errorf("with fewer servers than it has: exit code %d, said %q", code, stderr)
	}
}

// TestRunWithoutItsFirstServersFolderIsOneCluster: a lost folder comes back as a new server of the same cluster.
func TestRunWithoutItsFirstServersFolderIsOneCluster(t *testing.T) {
	dir := filepath.Join(keepOnFailure(t), "run")
	args := []string{"run", "--miners", "0", "--data-dir", dir, "-o", "json"}
	first := startProcess(t, args...)
	_, _ = first.waitEvent(0, "leader")
	eventually(t, "three voters", func() string {
		view, problem := statusOf(t, filepath.Join(dir, "environment"))
		if view.Voters != 3 {
			return fmt.Sprintf("%d voters; %s", view.Voters, problem)
		}
		return ""
	})
	stopRun(t, first)
	if err := os.RemoveAll(filepath.Join(dir, "servers", "1")); err != nil {
		t.Fatal(err)
	}
	second := startProcess(t, args...)
	_, _ = second.waitEvent(0, "leader")
	view, problem := statusOf(t, filepath.Join(dir, "environment"))
	if problem != "" || len(view.Servers) != 4 || view.Leader == 1 {
		t.Errorf("table %+v, leader %d, %s; want servers 1 to 4 in one table, and 1 gone", view.Servers, view.Leader, problem)
	}
	stopRun(t, second)
}

// TestSecondRunOnOneFolderIsRefused and disturbs nothing.
func TestSecondRunOnOneFolderIsRefused(t *testing.T) {
	dir := filepath.Join(keepOnFailure(t), "run")
	first := startProcess(t, "run", "--servers", "2", "--miners", "0", "--data-dir", dir, "-o", "json")
	_, _ = first.waitEvent(0, "leader")
	code, _, stderr := command(t, "run", "--servers", "4", "--data-dir", dir)
	if code != exitFailed || !strings.Contains(stderr, fmt.Sprintf("process %d", first.cmd.Process.Pid)) || !strings.Contains(stderr, "another run") {
		t.Errorf("exit code %d, said %q", code, stderr)
	}
	if view, problem := statusOf(t, filepath.Join(dir, "environment")); problem != "" || len(view.Servers) != 2 {
		t.Errorf("the first run has %d servers now; %s", len(view.Servers), problem)
	}
	stopRun(t, first)
}

// TestRespawnedWebServiceIsFoundAgain: it comes back at another port, and mining goes on.
func TestRespawnedWebServiceIsFoundAgain(t *testing.T) {
	dir := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "--zeros", "4", "--block-time", "0s", "--respawn", "--data-dir", dir, "-o", "json")
	_, _ = run.waitEvent(0, "block")
	for _, started := range run.events("process_started") {
		if started["role"] == "webservice" {
			if err := syscall.Kill(int(started["pid"].(float64)), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	ended, next := run.waitEvent(0, "process_ended")
	if ended["error"] != "signal: killed" {
		t.Errorf("its end is told as %v", ended)
	}
	_, next = run.waitEvent(next, "process_started")
	_, _ = run.waitEvent(next, "block")
	stopRun(t, run)
}

// TestRunEndsInOrderBesideAPausedServer: a frozen server, even the leader, has no say and holds nobody up.
func TestRunEndsInOrderBesideAPausedServer(t *testing.T) {
	for _, paused := range []float64{3, 1} {
		t.Run(fmt.Sprintf("server %v", paused), func(t *testing.T) {
			dir := filepath.Join(keepOnFailure(t), "run")
			run := startProcess(t, "run", "--zeros", "16", "--block-time", "0s", "--data-dir", dir, "-o", "json")
			_, next := run.waitEvent(0, "leader")
			eventually(t, "three voters", func() string {
				view, problem := statusOf(t, filepath.Join(dir, "environment"))
				if view.Voters != 3 {
					return fmt.Sprintf("%d voters; %s", view.Voters, problem)
				}
				return ""
			})
			for _, started := range run.events("process_started") {
				if started["role"] == "server" && started["id"] == paused {
					if err := syscall.Kill(int(started["pid"].(float64)), syscall.SIGSTOP); err != nil {
						t.Fatal(err)
					}
				}
			}
			if paused == 1 {
				_, _ = run.waitEvent(next, "leader")
			}
			stopRun(t, run)
			if done := run.events("done"); len(done) != 1 || done[0]["servers_agreeing"] != float64(2) {
				t.Errorf("done event is %v, want two servers that agree", done)
			}
		})
	}
}

// TestRunWhoseServersAllDiedEndsWithAnError, and with no process left: nobody will ever accept another block.
func TestRunWhoseServersAllDiedEndsWithAnError(t *testing.T) {
	dir := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "--servers", "2", "--miners", "1", "--zeros", "16", "--block-time", "0s", "--data-dir", dir, "-o", "json")
	for started, next := run.waitEvent(0, "process_started"); started["role"] != "miner"; { // the last to start
		started, next = run.waitEvent(next, "process_started")
	}
	for _, started := range run.events("process_started") {
		if started["role"] == "server" {
			if err := syscall.Kill(int(started["pid"].(float64)), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	if code := run.waitExit(); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	said := run.errors()
	if !strings.Contains(said, "raftmine: every server has ended") || !strings.Contains(said, "hint: see why in "+dir+"/logs") || strings.Count(said, "\n") != 2 {
		t.Errorf("said %q, want one line and a hint", said)
	}
	if ended := run.events("process_ended"); len(ended) != 2 {
		t.Errorf("told that %v ended, want two servers", ended)
	}
}
