package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"raftmine/raftnode"
	"raftmine/raftnode/registry"
)

// survivors is a group that is killed down to its last server. A simulated miner, beside the real one, remembers what was
// acknowledged.
type survivors struct {
	*group
	witness *drillClient
}

func startSurvivors(t *testing.T, servers int) *survivors {
	t.Helper()
	s := &survivors{group: startGroup(t, servers)}
	env, err := registry.Open(s.environment)
	if err != nil {
		t.Fatal(err)
	}
	s.witness = startDrillClient(drillClientConfig{name: "witness", chunk: groupChunk, pace: 10 * time.Millisecond, book: &ackBook{},
		sources: []func() []string{func() []string {
			addresses, _ := serversIn(env) // none: it asks again
			return addresses
		}}})
	t.Cleanup(s.witness.stop)
	s.acknowledges()
	return s
}

// goesOn waits until this server leads, mines blocks, and acknowledges answers.
func (s *survivors) goesOn(leader uint64) {
	s.t.Helper()
	s.settled(leader)
	s.mines()
	s.acknowledges()
}

func (s *survivors) acknowledges() {
	s.t.Helper()
	before := len(s.witness.book.all())
	eventually(s.t, "answers are acknowledged", func() string {
		if now := len(s.witness.book.all()); now < before+2 {
			return fmt.Sprintf("%d answers, %d before", now, before)
		}
		return ""
	})
}

func (s *survivors) dataDir(id int) string { return filepath.Join(s.dir, strconv.Itoa(id)) }

// holds ends all work, and checks that every server's history is whole, the same, and has everything that was acknowledged.
func (s *survivors) holds(recoveries float64) {
	s.t.Helper()
	s.witness.stop()
	s.miner.signal(syscall.SIGTERM)
	_ = s.miner.waitExit()
	for _, why := range s.witness.book.wrong() {
		s.t.Errorf("a right answer was refused: %s", why)
	}
	var report map[string]any
	eventually(s.t, "all histories hold, and are equally long", func() string {
		args := []string{}
		for id := range s.servers {
			args = append(args, s.dataDir(id+1))
		}
		code, audited, stderr := auditJSON(s.t, args...)
		if report = audited; code != exitDone || report["holds"] != true {
			return fmt.Sprintf("exit code %d: %s", code, stderr)
		}
		for _, other := range report["others"].([]any) {
			other := other.(map[string]any)
			if other["holds"] != true || other["parts"] != false || other["records_behind"] != 0.0 || fmt.Sprint(other["head"]) != fmt.Sprint(report["head"]) {
				return fmt.Sprintf("%v is at %v, %v at %v", other["source"], other["head"], report["source"], report["head"])
			}
		}
		if len(report["others"].([]any)) != len(s.servers)-1 {
			return fmt.Sprintf("others: %v", report["others"])
		}
		return ""
	})
	if report["recoveries"] != recoveries {
		s.t.Errorf("%v recoveries in the history, want %v", report["recoveries"], recoveries)
	}
	reader, err := raftnode.ReadJournal(s.dataDir(1))
	if err != nil {
		s.t.Fatal(err)
	}
	defer reader.Close()
	h := newHistory()
	for record, err := range reader.Records() {
		if err == nil {
			err = h.apply(record.Index, record.Term, record.Data)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	for _, why := range h.broken {
		s.t.Error(why)
	}
	answers := s.witness.book.all()
	if lost := h.lost(answers); len(lost) > 0 {
		s.t.Errorf("%d of %d acknowledged answers are lost, first %+v", len(lost), len(answers), lost[0])
	}
	s.t.Logf("%d acknowledged answers, none lost: %t", len(answers), len(h.lost(answers)) == 0)
}

// TestTwoServersOnOneHostSurviveEither: kill -9 of one, and the other leads and mines; started again, the lowest id leads.
func TestTwoServersOnOneHostSurviveEither(t *testing.T) {
	s := startSurvivors(t, 2)
	began := time.Now()
	s.kill(1)
	s.leads(2)
	t.Logf("server 2 leads %v after kill -9 of the leader", time.Since(began).Round(time.Millisecond))
	s.goesOn(2)
	if events := s.servers[1].events("process_started"); len(events) != 1 {
		t.Errorf("server 2 said %d times that it is ready", len(events))
	}
	if events := s.servers[1].events("recovering"); len(events) != 1 || events[0]["pid"] != float64(s.servers[1].cmd.Process.Pid) {
		t.Errorf("server 2 said %v", events)
	}
	s.start(1)
	s.goesOn(1)
	s.kill(2)
	s.goesOn(1)
	s.start(2)
	s.goesOn(1)
	s.holds(1)
}

// TestLastOfThreeServersOnOneHostMines: killed one after the other, or right after one another.
func TestLastOfThreeServersOnOneHostMines(t *testing.T) {
	s := startSurvivors(t, 3)
	s.kill(1)
	s.goesOn(2) // server 1 is no voter any more
	s.kill(2)
	s.goesOn(3)
	s.start(2)
	s.start(1)
	s.goesOn(1)
	s.kill(1)
	s.kill(2)
	s.goesOn(3)
	s.start(1)
	s.start(2)
	s.goesOn(1)
	s.holds(2)
}

// TestSurvivorKilledAtEachStepOfItsRecovery: the old servers are started without it. Before the decision they go on as ever,
// afterwards they wait for it, and nothing that was acknowledged is lost. All steps are tried in make e2e; in virtual time
// raftnode's own tests do it.
func TestSurvivorKilledAtEachStepOfItsRecovery(t *testing.T) {
	steps := []string{"fenced 2", "decided"}
	if fullEndToEnd() {
		steps = []string{"intent", "locked", "staged", "journal", "fenced 1", "fenced 2", "decided", "archived snapshots",
			"placed snapshots", "archived raft.db", "placed raft.db", "installed"}
	}
	points := failpoints(t.TempDir())
	t.Setenv(failpointVariable, string(points)) // for the children
	s := startSurvivors(t, 3)
	recoveries, decided := 0.0, false
	for _, step := range steps {
		if err := points.arm(blow{Point: pointOfRecovery(step), Signal: syscall.SIGKILL}); err != nil {
			t.Fatal(err)
		}
		s.kill(1)
		s.kill(2)
		if code := s.servers[2].waitExit(); code == exitDone {
			t.Fatalf("%s: server 3 ended by itself", step)
		}
		if _, err := os.Stat(points.struck()); err != nil {
			t.Fatalf("%s: server 3 did not come there: %s", step, s.servers[2].errors())
		}
		s.servers[2] = nil
		if decided = decided || step == "decided"; decided {
			recoveries++
			s.start(1)
			s.start(2)
			s.waitFor(1, 3, step)
			s.waitFor(2, 3, step)
		} else {
			s.start(1)
			s.start(2)
			s.goesOn(1)
		}
		s.start(3)
		s.goesOn(1)
	}
	s.holds(recoveries)
}

// waitFor waits until a server says that it waits for another one, and knows no leader.
func (s *survivors) waitFor(id, survivor int, step string) {
	s.t.Helper()
	s.servers[id-1].waitLine(0, "why it waits", func(line string) bool {
		var waiting waitingView
		return json.Unmarshal([]byte(line), &waiting) == nil && waiting.Event == "waiting" &&
			waiting.Alone == fmt.Sprintf("it was left behind when server %d went on: start server %d", survivor, survivor)
	})
	if led := s.servers[id-1].events("leader"); len(led) > 0 {
		s.t.Errorf("%s: server %d had a leader without the survivor: %v", step, id, led)
	}
}

// TestServerWithoutADataDirGoesOnInItsOwn: the first free directory of the environment is that of the server that died.
func TestServerWithoutADataDirGoesOnInItsOwn(t *testing.T) {
	environment := filepath.Join(keepOnFailure(t), "environment")
	var servers []*process
	for id := 1; id <= 2; id++ {
		p := startProcess(t, "server", "--environment", environment, "--heartbeat", "300ms", "-o", "json")
		if started, _ := p.waitEvent(0, "process_started"); started["id"] != float64(id) {
			t.Fatalf("server %d was given id %v", id, started["id"])
		}
		servers = append(servers, p)
	}
	eventually(t, "both vote and are up", func() string {
		view, problem := statusOf(t, environment)
		if problem == "" && (view.Leader != 1 || !view.Servers[1].Voter || !view.Servers[1].Up) {
			problem = fmt.Sprintf("%+v", view.Servers)
		}
		return problem
	})
	servers[0].signal(syscall.SIGKILL)
	_ = servers[0].waitExit()
	eventually(t, "server 2 leads", func() string {
		view, problem := statusOf(t, environment)
		if problem == "" && (view.Leader != 2 || view.AnsweredBy != 2) {
			problem = fmt.Sprintf("leader %d, answered by %d", view.Leader, view.AnsweredBy)
		}
		return problem
	})
}
