package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"raftmine/raftnode"
	"raftmine/raftnode/registry"
)

// TestProcessesAreStruckAtEachStepOfABlock kills the leader exactly at each step from a job to its logged verdict, pauses it there,
// and stops it, and so a follower and the miner when the leader is there. What was begun is ended: the web service accepts each
// height once, and no solution that was logged is lost. A leader that goes on after a pause may send the request that it was
// about to send, and changes nothing.
func TestProcessesAreStruckAtEachStepOfABlock(t *testing.T) {
	dir := keepOnFailure(t)
	t.Setenv(asRaftmine, "1") // for the children
	t.Setenv(failpointVariable, dir)
	o := &drillOptions{servers: 3, miners: 1, threads: 1, zeros: 5, serverFlags: serverTuning{
		heartbeat: 200 * time.Millisecond, grace: raftnode.DefaultGrace, nonceFirst: 1, nonceLast: 2_000_000_000, chunk: 2_000}}
	c, err := newCluster(filepath.Join(dir, "cluster"), &printer{w: io.Discard}, "info")
	if err != nil {
		t.Fatal(err)
	}
	d := &drill{cluster: c, o: o, book: &ackBook{}, started: time.Now()}
	t.Cleanup(func() {
		if err := d.end(); err != nil {
			t.Error(err)
		}
	})
	if d.service, err = startDrillService(filepath.Join(dir, "webservice"), o.zeros, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.startAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	points := []string{pointAfterOpen, pointAfterGrant, pointBeforeSolve, pointAfterSolve, pointBeforeSubmit, pointAfterSubmit, pointAfterVerdict}
	few := map[string][]string{ // in each run of the tests
		"leader killed": points, "leader stopped (signal)": {pointBeforeSubmit}, "leader terminated": {pointAfterSubmit},
		serverName(3) + " killed": {pointAfterSolve}, minerName(1) + " killed": {pointAfterGrant},
	}
	for _, who := range []string{"leader", serverName(3), minerName(1)} {
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGTERM} {
			at := points
			if !fullEndToEnd() {
				at = few[who+" "+signal.String()]
			}
			for _, point := range at {
				strikeAt(t, d, failpoints(dir), who, blow{Point: point, Signal: signal})
			}
		}
	}
	end, err := d.settle()
	if err != nil {
		t.Fatal(err)
	}
	report, err := d.judge(nil, end)
	if err != nil {
		t.Fatal(err)
	}
	for _, why := range report.Broken {
		t.Error(why)
	}
	if report.Answers == 0 || report.Blocks < 10 {
		t.Errorf("%d answers, %d blocks; want answers, 10 blocks or more", report.Answers, report.Blocks)
	}
}

// strikeAt strikes a process when the leader is at a point, waits until the others go on, and brings it back.
func strikeAt(t *testing.T, d *drill, points failpoints, who string, b blow) {
	t.Helper()
	name := fmt.Sprintf("%s %v %s", who, b.Signal, b.Point)
	if who != "leader" {
		b.PID = d.process(who).pid()
	}
	if err := points.arm(b); err != nil {
		t.Fatal(err)
	}
	var mark failpointMark
	eventually(t, "the leader comes to "+b.Point, func() string {
		data, err := os.ReadFile(points.struck())
		if err == nil {
			err = json.Unmarshal(data, &mark)
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
	for id := 1; who == "leader" && id <= d.o.servers; id++ {
		if d.server(id).pid() == mark.PID {
			who = serverName(id)
		}
	}
	struck := d.process(who)
	if struck == nil {
		t.Fatalf("%s: no server has pid %d", name, mark.PID)
	}
	if b.Signal != syscall.SIGSTOP {
		select {
		case <-struck.exited:
		case <-time.After(patience):
			t.Fatalf("%s: %s does not end: see %s", name, who, struck.log)
		}
		status, ok := struck.cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !ok || b.Signal == syscall.SIGKILL && status.Signal() != b.Signal || b.Signal == syscall.SIGTERM && status.ExitStatus() != exitDone {
			t.Fatalf("%s: %s ended with %v: see %s", name, who, struck.waitErr, struck.log)
		}
	}
	back := func() {
		var err error
		switch id := 0; {
		case b.Signal == syscall.SIGSTOP:
			err = syscall.Kill(mark.PID, syscall.SIGCONT)
		case who == minerName(1):
			err = d.startMiner(t.Context(), 1)
		default:
			if _, err = fmt.Sscanf(who, "server-%d", &id); err == nil {
				err = d.startServer(t.Context(), id)
			}
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if who == minerName(1) { // nobody else finds blocks
		eventually(t, name+": the leader has taken its ranges back", func() string {
			view, problem := statusOf(t, d.env.Dir())
			for _, miner := range view.Miners {
				if miner.Name == who && miner.Connected {
					problem += "it is connected"
				}
			}
			return problem
		})
		back()
	}
	before := len(chainOf(d.service.report()))
	eventually(t, name+": that block is settled, and one more", func() string {
		if now := len(chainOf(d.service.report())); now < before+2 {
			return fmt.Sprintf("%d blocks, were %d", now, before)
		}
		return ""
	})
	if who != minerName(1) {
		back()
	}
	eventually(t, name+": all servers are up", func() string {
		view, problem := statusOf(t, d.env.Dir())
		for _, server := range view.Servers {
			if !server.Up || !server.Voter {
				problem += fmt.Sprintf(" server %d is not", server.ID)
			}
		}
		return problem
	})
	if mark.Nonce == 0 {
		return
	}
	var verdicts []string
	for _, s := range d.service.report() {
		if s.nonce == strconv.FormatUint(mark.Nonce, 10) && s.timestamp == strconv.FormatUint(mark.Timestamp, 10) {
			verdicts = append(verdicts, s.verdict)
		}
	}
	// A solution that nobody logged is the miner's to tell again, and it may find another one meanwhile.
	switch {
	case len(verdicts) == 0 && b.Point == pointBeforeSolve:
	case len(verdicts) == 0 || verdicts[0] != "success":
		t.Errorf("%s: the solution was called %q, want success", name, verdicts)
	case len(verdicts) > 1 && (b.Signal != syscall.SIGSTOP || b.Point != pointBeforeSubmit): // there the last check was before the pause
		t.Errorf("%s: the solution was submitted %d times, want once", name, len(verdicts))
	}
}

// TestDrillHoldsEveryPromise runs the command: a short drill in make test, and a hundred faults in make e2e.
func TestDrillHoldsEveryPromise(t *testing.T) {
	faults, seed, heartbeat := 5, "170", "300ms" // a leader killed, paused and stopped, a miner killed
	if fullEndToEnd() {
		faults, seed, heartbeat = 100, "0", "1s"
	}
	dir := filepath.Join(keepOnFailure(t), "drill")
	run := startProcess(t, "drill", "--faults", strconv.Itoa(faults), "--seed", seed, "--heartbeat", heartbeat, "--zeros", "5",
		"--block-time", "500ms", "--data-dir", dir, "-o", "json")
	select {
	case <-run.exited:
	case <-time.After(time.Duration(faults) * patience):
		t.Fatal("the drill does not end")
	}
	if code := run.waitExit(); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
	if told, reports := len(run.events("fault")), len(run.events("fault_report")); told != faults || reports != faults {
		t.Errorf("%d faults told, %d reported, want %d", told, reports, faults)
	}
	for _, f := range run.events("fault_report") {
		_, stayed := f["next_answer_ms"] // else the leader was hit, or leadership moved
		if f["answers_lost"] != 0.0 || (f["no_leader_ms"].(float64) > 0) == stayed || f["ranges_in_flight"].(float64) <= 0 || f["role"] == "leader" && stayed {
			t.Errorf("fault %v", f)
		}
	}
	kinds := make(map[string]bool)
	for _, f := range run.events("fault") {
		kinds[fmt.Sprint(f["kind"], " ", f["role"])] = true
	}
	for _, kind := range []string{"kill leader", "pause leader", "stop leader", "kill miner"} {
		if !kinds[kind] {
			t.Errorf("no %s among the faults: choose another seed", kind)
		}
	}
	done := run.events("drill_done")
	if len(done) != 1 || done[0]["survived"] != float64(faults) || done[0]["answers_lost"] != 0.0 || done[0]["heights_accepted_twice"] != 0.0 ||
		done[0]["servers_agreeing"] != 3.0 || done[0]["answers_acknowledged"].(float64) < float64(faults) || done[0]["blocks"].(float64) < 1 {
		t.Errorf("done: %v", done)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the data of a drill that held is still there: %v", err)
	}
	t.Logf("%v", done)
}

// TestDrillEndsInOrderWhenInterrupted: Ctrl-C ends it after the fault under way, or before the first one, with all checks,
// and leaves nothing behind.
func TestDrillEndsInOrderWhenInterrupted(t *testing.T) {
	for _, when := range []string{"drill", "fault"} {
		t.Run("after event "+when, func(t *testing.T) {
			dir := filepath.Join(keepOnFailure(t), "drill")
			run := startProcess(t, "drill", "--faults", "1000", "--heartbeat", "300ms", "--zeros", "5", "--data-dir", dir, "--keep", "-o", "json")
			_, _ = run.waitEvent(0, when)
			run.signal(syscall.SIGINT)
			if code := run.waitExit(); code != exitDone {
				t.Errorf("exit code %d", code)
			}
			done := run.events("drill_done")
			if len(done) != 1 || done[0]["survived"] != float64(len(run.events("fault"))) || done[0]["servers_agreeing"] != 3.0 {
				t.Errorf("done: %v", done)
			}
			if left := drillPIDs(t, dir); len(left) != 0 {
				t.Errorf("processes %v are left", left)
			}
			if _, err := os.Stat(filepath.Join(dir, "servers", "1", "raft.db")); err != nil {
				t.Errorf("the data was not kept: %v", err)
			}
		})
	}
}

// TestDrillFailsWhenAProcessDiesByItself: one that no fault meant ends the drill with exit code 1, and with all that it
// takes to look for the reason.
func TestDrillFailsWhenAProcessDiesByItself(t *testing.T) {
	dir := filepath.Join(keepOnFailure(t), "drill")
	run := startProcess(t, "drill", "--faults", "1000", "--seed", "77", "--heartbeat", "300ms", "--zeros", "5", "--data-dir", dir, "-o", "json")
	_, _ = run.waitEvent(0, "fault")
	for _, pid := range drillPIDs(t, dir) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if code := run.waitExit(); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	wantSaid(t, run.errors(), "ended by itself", "--faults 1000 --seed 77 --servers 3 --miners 2 --heartbeat 300ms", dir)
	if left := drillPIDs(t, dir); len(left) != 0 {
		t.Errorf("processes %v are left", left)
	}
	if _, err := os.Stat(filepath.Join(dir, "logs", "server-1.log")); err != nil {
		t.Errorf("the logs were not kept: %v", err)
	}
}

// drillPIDs returns the servers of a drill that run, as its local environment knows them.
func drillPIDs(t *testing.T, dir string) (pids []int) {
	t.Helper()
	env, err := registry.Open(filepath.Join(dir, "environment"))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := env.Entries()
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		pids = append(pids, entry.PID)
	}
	return pids
}
