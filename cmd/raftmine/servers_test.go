package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fullEndToEnd reports whether the long rounds were asked for: make e2e.
func fullEndToEnd() bool { return os.Getenv("RAFTMINE_E2E") == "full" }

// TestTwoServersStartedAtOnceBecomeOneCluster starts two servers in the same instant on an empty environment.
func TestTwoServersStartedAtOnceBecomeOneCluster(t *testing.T) {
	tries := 10
	if fullEndToEnd() {
		tries = 100
	}
	for try := range tries {
		t.Run(fmt.Sprint(try+1), func(t *testing.T) {
			environment := filepath.Join(keepOnFailure(t), "environment")
			a := startProcess(t, "server", "--environment", environment, "-o", "json")
			b := startProcess(t, "server", "--environment", environment, "-o", "json")
			first, _ := a.waitEvent(0, "process_started")
			second, _ := b.waitEvent(0, "process_started")
			if sum := first["id"].(float64) + second["id"].(float64); sum != 3 || first["id"] == second["id"] {
				t.Fatalf("ids %v and %v, want 1 and 2", first["id"], second["id"])
			}
			leaderA, _ := a.waitEvent(0, "leader")
			leaderB, _ := b.waitEvent(0, "leader")
			if leaderA["id"] != float64(1) || leaderB["id"] != float64(1) {
				t.Fatalf("leaders %v and %v, want 1", leaderA, leaderB)
			}
			eventually(t, "both are in one table", func() string {
				views := make([]statusView, 2)
				for i, address := range []string{first["address"].(string), second["address"].(string)} {
					var problem string
					if views[i], problem = statusOf(t, environment, "--servers", address); problem != "" {
						return problem
					}
				}
				if len(views[0].Servers) != 2 || len(views[1].Servers) != 2 || views[0].ClusterID != views[1].ClusterID {
					return fmt.Sprintf("%+v", views)
				}
				return ""
			})
		})
	}
}

// TestTwoTerminalsMineTogether is the exercise with servers alone: ids 1 and 2, leader 1, heartbeats in both directions,
// addresses in the local environment while they run and gone after.
func TestTwoTerminalsMineTogether(t *testing.T) {
	environment := filepath.Join(keepOnFailure(t), "environment")
	in := []string{"--environment", environment, "-o", "json"}
	service := startProcess(t, append([]string{"webservice", "--zeros", "4"}, in...)...)
	_, _ = service.waitEvent(0, "process_started")
	// A shorter heartbeat than 5 s makes the test short; nothing else depends on it.
	args := append([]string{"server", "--mine", "1", "--heartbeat", "500ms"}, in...)
	one := startProcess(t, args...)
	_, _ = one.waitEvent(0, "miner_waits") // it leads
	two := startProcess(t, args...)
	started, _ := two.waitEvent(0, "process_started")
	if started["id"] != float64(2) {
		t.Fatalf("the second terminal has id %v", started["id"])
	}
	watch := startProcess(t, append([]string{"watch"}, in...)...)
	block, _ := watch.waitEvent(0, "block")
	if block["miner"] != "server-2" || block["verdict"] != "success" {
		t.Errorf("block %v: want it mined by the companion of the server that does not lead", block)
	}
	checkPrintedProof(t, block)
	for _, direction := range [][2]float64{{1, 2}, {2, 1}} {
		watch.waitLine(0, fmt.Sprintf("two heartbeats from %v to %v", direction[0], direction[1]), func(string) bool {
			seen := 0
			for _, beat := range watch.events("heartbeat") {
				if beat["from"] == direction[0] && beat["to"] == direction[1] && beat["answered"] == true {
					seen++
				}
			}
			return seen >= 2
		})
	}
	if first, second := len(one.events("miner_waits")), len(two.events("miner_waits")); first != 1 || second != 0 {
		t.Errorf("told %d and %d times that the miner waits, want once, by the server that leads", first, second)
	}
	addresses, problem := addressesOf(t, environment)
	if problem != "" || len(addresses) != 2 {
		t.Errorf("local environment lists %v, %s; want two servers", addresses, problem)
	}
	for _, p := range []*process{two, one, service} {
		p.signal(syscall.SIGTERM)
		if code := p.waitExit(); code != exitDone {
			t.Errorf("exit code %d", code)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(environment, "entries", "*.json")); len(left) != 0 {
		t.Errorf("the local environment still holds %v", left)
	}
}

// TestTwoServersOnOneDataDirectory: the second one is refused and disturbs nothing.
func TestTwoServersOnOneDataDirectory(t *testing.T) {
	dir := keepOnFailure(t)
	environment, data := filepath.Join(dir, "environment"), filepath.Join(dir, "data")
	first := startProcess(t, "server", "--environment", environment, "--data-dir", data, "-o", "json")
	_, _ = first.waitEvent(0, "leader")
	code, _, stderr := command(t, "server", "--environment", environment, "--data-dir", data)
	want := fmt.Sprintf("in use by another raftmine server (pid %d)", first.cmd.Process.Pid)
	if code != exitFailed || !strings.Contains(stderr, want) || !strings.HasPrefix(stderr, "raftmine: ") || strings.Count(stderr, "\n") != 2 {
		t.Errorf("exit code %d, said %q, want %q and a hint", code, stderr, want)
	}
	if view, problem := statusOf(t, environment); problem != "" || view.Leader != 1 || len(view.Servers) != 1 {
		t.Errorf("the first server was disturbed: %+v, %s", view, problem)
	}
}

// TestStatusSaysThatTheWebServiceIsGone: since when and why, until it is back; the job stays as it was.
func TestStatusSaysThatTheWebServiceIsGone(t *testing.T) {
	dir := keepOnFailure(t)
	environment := filepath.Join(dir, "environment")
	serve := func(listen string) *process {
		return startProcess(t, "webservice", "--environment", environment, "--zeros", "16", "--listen", listen, "-o", "json")
	}
	service := serve("127.0.0.1:0")
	started, _ := service.waitEvent(0, "process_started")
	url := started["address"].(string)
	startProcess(t, "server", "--environment", environment, "--heartbeat", "200ms", "--web-service", url)
	var job jobView
	eventually(t, "a job is open", func() string {
		view, problem := statusOf(t, environment)
		if problem != "" || view.Job == nil || view.WebServiceError != "" {
			return fmt.Sprintf("%+v, %s", view, problem)
		}
		job = *view.Job
		return ""
	})
	service.signal(syscall.SIGKILL)
	_ = service.waitExit()
	eventually(t, "status says that it is gone", func() string {
		view, problem := statusOf(t, environment)
		if problem != "" || !strings.Contains(view.WebServiceError, "since ") || !strings.Contains(view.WebServiceError, "connection refused") {
			return fmt.Sprintf("%+v, %s", view, problem)
		}
		if *view.Job != job {
			t.Fatalf("the job was %+v and is %+v", job, *view.Job)
		}
		return ""
	})
	if code, stdout, _ := command(t, "status", "--environment", environment); code != exitDone ||
		!strings.Contains(stdout, "\nweb service "+url+": ") || !strings.Contains(stdout, "connection refused") {
		t.Errorf("for people: exit code %d\n%s", code, stdout)
	}
	serve(strings.TrimPrefix(url, "http://"))
	eventually(t, "the web service is back", func() string {
		view, problem := statusOf(t, environment)
		if problem != "" || view.WebServiceError != "" || *view.Job != job {
			return fmt.Sprintf("%+v, %s; the job was %+v", view, problem, job)
		}
		return ""
	})
}

// TestJoinAddressNobodyListensOn gives up with one clear line, and leaves nothing that stops a later start.
func TestJoinAddressNobodyListensOn(t *testing.T) {
	dir := keepOnFailure(t)
	environment := filepath.Join(dir, "environment")
	server := startProcess(t, "server", "--environment", environment, "--join", "127.0.0.1:1", "--join-timeout", "1s")
	if code := server.waitExit(); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if said := server.errors(); !strings.Contains(said, "127.0.0.1:1") || !strings.HasPrefix(said, "raftmine: ") || strings.Count(said, "\n") > 2 {
		t.Errorf("said %q", said)
	}
	later := startProcess(t, "server", "--environment", environment, "-o", "json")
	if started, _ := later.waitEvent(0, "process_started"); started["id"] != float64(1) {
		t.Errorf("a later first server has id %v", started["id"])
	}
}

// TestCrashedServersAddressIsSwept: after kill -9 the environment no longer lists the server, and its data directory is
// taken again, under the same id.
func TestCrashedServersAddressIsSwept(t *testing.T) {
	environment := filepath.Join(keepOnFailure(t), "environment")
	first := startProcess(t, "server", "--environment", environment, "-o", "json")
	started, _ := first.waitEvent(0, "process_started")
	first.signal(syscall.SIGKILL)
	_ = first.waitExit()
	if addresses, problem := addressesOf(t, environment); problem == "" {
		t.Errorf("the environment still lists %v", addresses)
	}
	again := startProcess(t, "server", "--environment", environment, "-o", "json")
	restarted, _ := again.waitEvent(0, "process_started")
	if restarted["id"] != float64(1) || restarted["data_dir"] != started["data_dir"] {
		t.Errorf("came back as %v, was %v", restarted, started)
	}
	if entries, _ := filepath.Glob(filepath.Join(environment, "entries", "*.json")); len(entries) != 1 {
		t.Errorf("the environment holds %v, want the live server alone", entries)
	}
}

// TestMinerSaysThatItWaitsAndForWhomItMines: a person sees at once why nothing is mined, and when that is over.
func TestMinerSaysThatItWaitsAndForWhomItMines(t *testing.T) {
	environment := filepath.Join(keepOnFailure(t), "environment")
	miner := startProcess(t, "miner", "--environment", environment)
	miner.waitLine(0, "it waits", func(line string) bool {
		return strings.HasPrefix(line, "no leader: ") && strings.Contains(line, environment)
	})
	startProcess(t, "server", "--environment", environment)
	miner.waitLine(0, "it mines", func(line string) bool { return line == "mining for server 1 (term 2)" })
}

// TestServerWithoutALeaderSaysWhyWhenItKnows: the reason why it does not go on alone comes a minute after a start.
func TestServerWithoutALeaderSaysWhyWhenItKnows(t *testing.T) {
	began := time.Unix(1_000, 0)
	pace := newWaitingPace(began)
	for _, row := range []struct {
		after time.Duration
		alone string
		due   bool
	}{
		{time.Second, "", false},
		{time.Second, "known early", false},
		{leaderless + 1, "", true},
		{10 * time.Second, "", false},
		{time.Minute, "server 1: it is on another machine", true},
		{61 * time.Second, "server 1: it is on another machine", false},
		{62 * time.Second, "", false},
		{63 * time.Second, "server 1: it is on another machine", false},
		{64 * time.Second, "server 1: its log is damaged", true},
	} {
		if due := pace.due(began.Add(row.after), row.alone); due != row.due {
			t.Errorf("after %v, with %q: %t", row.after, row.alone, due)
		}
	}
}
