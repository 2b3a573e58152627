package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestRunMinesBlocksForAForeignWebService(t *testing.T) {
	service, base := startForeignService(t, 4)
	dir := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "--servers", "3", "--miners", "2", "--blocks", "5", "--web-service", base, "--data-dir", dir, "-o", "json")
	if code := run.waitExit(); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
	verdicts, _ := service.report()
	for i, verdict := range verdicts {
		if verdict != "success" {
			t.Errorf("submission %d was judged %q", i+1, verdict)
		}
	}
	checkChain(t, run, service, 5)
	for i, block := range run.events("block") {
		if block["height"] != float64(i+1) {
			t.Errorf("block %d has height %v", i+1, block["height"])
		}
	}
	done := run.events("done")
	if len(done) != 1 || done[0]["blocks"] != float64(5) || done[0]["data_dir"] != dir || done[0]["servers_agreeing"] != float64(3) {
		t.Errorf("done event is %v", done)
	}
	if started := run.events("process_started"); len(started) != 5 {
		t.Errorf("%d processes told, want 3 servers and 2 miners: %v", len(started), started)
	}
}

// checkPrintedProof recomputes the proof of a printed block from the definition of the exercise.
func checkPrintedProof(t *testing.T, block map[string]any) {
	t.Helper()
	decimal := func(name string) string { return strconv.FormatUint(uint64(block[name].(float64)), 10) }
	inner := sha256.Sum256([]byte(block["previous_hash"].(string) + decimal("nonce") + decimal("timestamp")))
	outer := sha256.Sum256(inner[:])
	if hex.EncodeToString(outer[:]) != block["hash"] {
		t.Errorf("block %v: the printed hash is not that of its nonce and timestamp", block)
	}
}

func TestRunIsTheSameInTextAndEndsWithWhereTheDataIs(t *testing.T) {
	dir := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "--blocks", "2", "--zeros", "3", "--block-time", "0s", "--data-dir", dir)
	if code := run.waitExit(); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
	output := run.output()
	blocks := 0
	for _, line := range output {
		if strings.HasPrefix(line, "block ") && strings.HasSuffix(line, "success") {
			blocks++
		}
	}
	last := output[len(output)-1]
	if blocks != 2 || !strings.Contains(last, "3 servers agree on state") || !strings.HasSuffix(last, "data in "+dir) {
		t.Errorf("%d blocks told, last line %q", blocks, last)
	}
}

// TestStoppedClusterGoesOnWhereItWas stops a run in the middle of a job and starts it again on its data: finished
// chunks stay finished.
func TestStoppedClusterGoesOnWhereItWas(t *testing.T) {
	dir := filepath.Join(keepOnFailure(t), "run")
	args := []string{"run", "--zeros", "16", "--block-time", "0s", "--data-dir", dir, "-o", "json"}
	first := startProcess(t, args...)
	environment := filepath.Join(dir, "environment")
	var before statusView
	eventually(t, "chunks are finished", func() string {
		before, _ = statusOf(t, environment)
		if before.Job == nil || before.Job.Chunks.Finished == 0 {
			return "none yet"
		}
		return ""
	})
	first.signal(syscall.SIGINT)
	if code := first.waitExit(); code != exitDone {
		t.Fatalf("exit code %d after Ctrl-C", code)
	}
	if done := first.events("done"); len(done) != 1 || done[0]["servers_agreeing"] != float64(3) {
		t.Errorf("done event is %v", done)
	}

	second := startProcess(t, args...)
	_, _ = second.waitEvent(0, "leader")
	eventually(t, "the job goes on", func() string {
		after, problem := statusOf(t, environment)
		switch {
		case problem != "":
			return problem
		case after.Job == nil || after.Leader == 0:
			return "no leader or no job"
		case after.Job.ID != before.Job.ID || after.Job.Timestamp != before.Job.Timestamp:
			t.Fatalf("job %d with timestamp %d became job %d with timestamp %d", before.Job.ID, before.Job.Timestamp, after.Job.ID, after.Job.Timestamp)
		case after.Job.Chunks.Finished < before.Job.Chunks.Finished:
			t.Fatalf("%d chunks were finished, now only %d are", before.Job.Chunks.Finished, after.Job.Chunks.Finished)
		case after.Job.Chunks.Finished == before.Job.Chunks.Finished:
			return "no chunk finished since the restart"
		case after.Leader != 1:
			return fmt.Sprintf("server %d leads", after.Leader)
		}
		return ""
	})
	second.signal(syscall.SIGINT)
	if code := second.waitExit(); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
}

// statusOf returns what "raftmine status" says in an environment, or why it says nothing.
func statusOf(t *testing.T, environment string, more ...string) (statusView, string) {
	t.Helper()
	code, stdout, stderr := command(t, append([]string{"status", "--environment", environment, "-o", "json"}, more...)...)
	if code != exitDone {
		return statusView{}, strings.TrimSpace(stderr)
	}
	var view statusView
	if err := json.Unmarshal([]byte(stdout), &view); err != nil {
		t.Fatalf("status printed %q: %v", stdout, err)
	}
	return view, ""
}

// TestEveryServerShowsTheSameStateAtTheSameIndex compares digests while blocks are mined.
func TestEveryServerShowsTheSameStateAtTheSameIndex(t *testing.T) {
	dir := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "--zeros", "4", "--block-time", "0s", "--blocks", "8", "--data-dir", dir, "-o", "json")
	environment := filepath.Join(dir, "environment")
	_, _ = run.waitEvent(0, "block")
	type seen struct{ digest, address string }
	digests := make(map[uint64]seen) // by index
	compared := 0                    // one index, two servers
	eventually(t, "digests of one index are seen on several servers", func() string {
		addresses, problem := addressesOf(t, environment)
		if problem != "" {
			return problem
		}
		for _, address := range addresses {
			view, problem := statusOf(t, environment, "--servers", address)
			if problem != "" {
				return problem
			}
			if known, ok := digests[view.AppliedIndex]; !ok {
				digests[view.AppliedIndex] = seen{view.StateDigest, address}
			} else if known.digest != view.StateDigest {
				t.Fatalf("two states at index %d", view.AppliedIndex)
			} else if known.address != address {
				compared++
			}
		}
		if compared < 5 {
			return fmt.Sprintf("only %d compared", compared)
		}
		return ""
	})
	if code := run.waitExit(); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
}

func addressesOf(t *testing.T, environment string) ([]string, string) {
	t.Helper()
	code, stdout, stderr := command(t, "env", "--environment", environment)
	if code != exitDone {
		return nil, strings.TrimSpace(stderr)
	}
	list := strings.TrimPrefix(strings.TrimSpace(stdout), "export RAFTMINE_SERVERS=")
	return strings.Split(list, ","), ""
}
