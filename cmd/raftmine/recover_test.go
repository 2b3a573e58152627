package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"raftmine/raftnode"
	"raftmine/raftnode/registry"
)

// recoveryServers are servers of one environment that a test kills and starts again.
type recoveryServers struct {
	t           *testing.T
	dir         string
	environment string
	running     map[int]*process
}

func startRecoveryServers(t *testing.T, quantity int) *recoveryServers {
	t.Helper()
	dir := keepOnFailure(t)
	s := &recoveryServers{t: t, dir: dir, environment: filepath.Join(dir, "environment"), running: make(map[int]*process)}
	for id := 1; id <= quantity; id++ {
		if started := s.start(id); started["id"] != float64(id) {
			t.Fatalf("server %d was given id %v", id, started["id"])
		}
	}
	s.wait("all vote and are up", func(view statusView) bool {
		return view.Leader == 1 && len(view.Servers) == quantity && !slices.ContainsFunc(view.Servers, func(row serverView) bool { return !row.Voter || !row.Up })
	})
	return s
}

func (s *recoveryServers) dataDir(id int) string {
	return filepath.Join(s.dir, fmt.Sprint("server-", id))
}

func (s *recoveryServers) start(id int) map[string]any {
	s.t.Helper()
	s.running[id] = startProcess(s.t, "server", "--environment", s.environment, "--data-dir", s.dataDir(id), "--heartbeat", "300ms", "-o", "json")
	started, _ := s.running[id].waitEvent(0, "process_started")
	return started
}

func (s *recoveryServers) kill(ids ...int) {
	s.t.Helper()
	for _, id := range ids {
		s.running[id].signal(syscall.SIGKILL)
	}
	for _, id := range ids {
		_ = s.running[id].waitExit()
		delete(s.running, id)
	}
}

func (s *recoveryServers) wait(what string, good func(statusView) bool) (last statusView) {
	s.t.Helper()
	eventually(s.t, what, func() string {
		view, problem := statusOf(s.t, s.environment)
		if problem == "" && !good(view) {
			problem = fmt.Sprintf("%+v", view.Servers)
		}
		last = view
		return problem
	})
	return last
}

// TestRecoverAsksBeforeItGivesUpAVoter: the directory of server 1 is out of reach, so server 2 waits until a person decides.
func TestRecoverAsksBeforeItGivesUpAVoter(t *testing.T) {
	s := startRecoveryServers(t, 2)
	s.kill(1)
	if err := os.Rename(s.dataDir(1), s.dataDir(1)+".elsewhere"); err != nil {
		t.Fatal(err)
	}
	s.running[2].waitLine(0, "why it waits", func(line string) bool {
		var waiting waitingView
		return json.Unmarshal([]byte(line), &waiting) == nil && waiting.Event == "waiting" && strings.Contains(waiting.Alone, "server 1: ")
	})
	args := []string{"server", "recover", "--environment", s.environment, "--data-dir", s.dataDir(2)}
	if code, _, said := command(t, args...); code != exitFailed || !strings.Contains(said, fmt.Sprintf("(pid %d)", s.running[2].cmd.Process.Pid)) {
		t.Errorf("beside the running server: exit code %d, said %q", code, said)
	}
	s.kill(2)
	code, explained, said := command(t, args...)
	if code != exitFailed || !strings.Contains(said, "--yes") || !strings.Contains(said, "nothing was changed") {
		t.Errorf("without --yes: exit code %d, said %q", code, said)
	}
	for _, part := range []string{"Server 2 would go on as the only voter", "server 1, last at", "no such file", "WHAT THIS MAY LOSE", "move their data directories away"} {
		if !strings.Contains(explained, part) {
			t.Errorf("explained %q, without %q", explained, part)
		}
	}
	if _, err := os.Stat(filepath.Join(s.dataDir(2), "recovery.json")); err == nil {
		t.Error("something was changed without --yes")
	}
	if err := recoverInterrupted(t, s.environment, s.dataDir(2)); !errors.Is(err, errInterrupted) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("interrupted at its question: %v", err)
	}
	if _, err := os.Stat(filepath.Join(s.dataDir(2), "recovery.json")); err == nil {
		t.Error("something was changed by a recovery that was interrupted")
	}
	code, done, said := command(t, append(args, "--yes", "-o", "json")...)
	var view recoveryView
	if err := json.Unmarshal([]byte(done), &view); code != exitDone || err != nil || view.Event != "recovered" || view.ID != 2 ||
		!slices.Equal(view.Read, []uint64{2}) || len(view.NotRead) != 1 || view.NotRead[0].ID != 1 || !view.MayLose {
		t.Fatalf("with --yes: exit code %d, %q, %q, %v", code, done, said, err)
	}
	s.start(2)
	s.wait("server 2 leads", func(view statusView) bool { return view.Leader == 2 })

	// Server 1 was not fenced. Its log has nothing that server 2 lacks, so it cannot win on it, and is taken in again.
	if err := os.Rename(s.dataDir(1)+".elsewhere", s.dataDir(1)); err != nil {
		t.Fatal(err)
	}
	s.start(1)
	s.wait("server 1 leads again", func(view statusView) bool {
		return view.Leader == 1 && len(view.Servers) == 2 && view.Servers[0].Voter && view.Servers[1].Voter
	})
	if code, _, said := command(t, args...); code != exitFailed || !strings.Contains(said, "in use") {
		t.Errorf("beside the running servers: exit code %d, said %q", code, said)
	}
	empty, err := registry.Open(filepath.Join(s.dir, "empty"))
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if code, _, said := command(t, "server", "recover", "--environment", empty.Dir(), "--data-dir", folder); code != exitFailed || !strings.Contains(said, "has no server yet") {
		t.Errorf("of an empty folder: exit code %d, said %q", code, said)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left %v in an empty folder, %v", left, err)
	}
	if code, _, said := command(t, "server", "recover", "--environment", empty.Dir()); code != exitUsage || !strings.Contains(said, "--data-dir") {
		t.Errorf("nothing to recover: exit code %d, said %q", code, said)
	}
}

// recoverInterrupted is Ctrl-C at the question of a recovery. Whoever types "yes" after it is not heard.
func recoverInterrupted(t *testing.T, environment, dataDir string) error {
	t.Helper()
	env, err := registry.Find(environment)
	if err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	keyboard, keys := io.Pipe()
	defer keys.Close()
	out := &printer{w: io.Discard}
	confirm := func(plan raftnode.RecoveryPlan) bool {
		return confirmRecovery(ctx, plan, out, keyboard, writerFunc(func(prompt []byte) (int, error) {
			interrupt()
			return len(prompt), nil
		}))
	}
	time.AfterFunc(patience, func() { _ = keyboard.CloseWithError(errors.New("still asked")) })
	return recoverServer(ctx, env, dataDir, confirm, out, slog.New(slog.DiscardHandler))
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(data []byte) (int, error) { return f(data) }

// TestRecoverNeverPassesOverARunningServer: server 1 is only paused, and keeps its lock.
func TestRecoverNeverPassesOverARunningServer(t *testing.T) {
	s := startRecoveryServers(t, 2)
	s.running[1].signal(syscall.SIGSTOP)
	s.running[2].waitLine(0, "why it waits", func(line string) bool {
		var waiting waitingView
		return json.Unmarshal([]byte(line), &waiting) == nil && waiting.Event == "waiting" && strings.Contains(waiting.Alone, "in use by another raftmine server")
	})
	s.kill(2)
	code, _, said := command(t, "server", "recover", "--environment", s.environment, "--data-dir", s.dataDir(2), "--yes")
	if code != exitFailed || !strings.Contains(said, fmt.Sprintf("(pid %d)", s.running[1].cmd.Process.Pid)) {
		t.Errorf("exit code %d, said %q", code, said)
	}
	if env, err := registry.Open(s.environment); err != nil {
		t.Fatal(err)
	} else if entries, err := env.Entries(); err != nil || len(entries) != 1 {
		t.Errorf("entries %v, %v", entries, err)
	}
	s.running[1].signal(syscall.SIGCONT)
	s.start(2)
	s.wait("server 1 leads both", func(view statusView) bool { return view.Leader == 1 && len(view.Servers) == 2 && view.Servers[1].Up })
}

// TestLoneServerOfAStoppedClusterKnowsItsVoters: it has no leader and so applies nothing of its log, whose voters it lists.
func TestLoneServerOfAStoppedClusterKnowsItsVoters(t *testing.T) {
	s := startRecoveryServers(t, 3)
	s.kill(1, 2, 3)
	address := s.start(2)["address"]
	eventually(t, "status and list know three voters", func() string {
		for _, args := range [][]string{{"status"}, {"server", "list"}} {
			code, said, problem := command(t, append(args, "--environment", s.environment)...)
			if code != exitDone || strings.Count(said, "not applied yet") != 3 || !strings.Contains(said, address.(string)) ||
				!strings.HasPrefix(said, "no leader") || strings.Contains(said, "no job") {
				return said + problem
			}
		}
		return ""
	})
}

// TestRecoveryIsConfirmedInFullOrNotAtAll: nothing but a typed yes, on a terminal, is one.
func TestRecoveryIsConfirmedInFullOrNotAtAll(t *testing.T) {
	plan := raftnode.RecoveryPlan{ServerID: 2, Index: 120, Term: 3, LogOf: 1, Voters: []uint64{1, 2, 3}, Read: []uint64{1, 2},
		NotRead: []raftnode.LostVoter{{ID: 3, Why: "it is on another machine"}}}
	for _, row := range []struct {
		typed    string
		terminal bool
		json     bool
		want     bool
	}{{"yes\n", true, false, true}, {" yes \n", true, false, true}, {"y\n", true, false, false}, {"no\n", true, false, false},
		{"\n", true, false, false}, {"", true, false, false}, {"yes\n", false, false, false}, {"yes\n", true, true, false}} {
		var terminal io.Reader
		if row.terminal {
			terminal = strings.NewReader(row.typed)
		}
		var told, prompt strings.Builder
		if got := confirmRecovery(t.Context(), plan, &printer{w: &told, json: row.json}, terminal, &prompt); got != row.want {
			t.Errorf("%+v: %t", row, got)
		}
		if asked := prompt.Len() > 0; asked != (row.terminal && !row.json) {
			t.Errorf("%+v: asked %q", row, prompt.String())
		}
		if !row.json && !strings.Contains(told.String(), "Other voters whose logs were read: 1.") {
			t.Errorf("%+v: told %q", row, told.String())
		}
	}
}
