package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"raftmine/raftnode/registry"
)

// damageEntry destroys the environment's entry of a process that goes on, and returns its path.
func damageEntry(t *testing.T, environment string, role registry.Role, p *process) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(environment, "entries", fmt.Sprintf("%s-%d-*", role, p.cmd.Process.Pid)))
	if err != nil || len(found) != 1 {
		t.Fatalf("entries %v (%v), want one", found, err)
	}
	if err := os.WriteFile(found[0], []byte("{bad"), 0o600); err != nil {
		t.Fatal(err)
	}
	return found[0]
}

// TestDamagedEntryOfAProcessStopsNobody: the others go on mining, also under a new leader and for a miner that comes after,
// and each says once which file is damaged and what to do.
func TestDamagedEntryOfAProcessStopsNobody(t *testing.T) {
	environment := filepath.Join(keepOnFailure(t), "environment")
	in := []string{"--environment", environment, "-o", "json"}
	service := startProcess(t, append([]string{"webservice", "--zeros", "3"}, in...)...)
	_, _ = service.waitEvent(0, "process_started")
	server := func() *process {
		p := startProcess(t, append([]string{"server", "--heartbeat", "200ms"}, in...)...)
		_, _ = p.waitEvent(0, "leader")
		return p
	}
	one, two := server(), server()
	blocks := func() uint64 {
		view, _ := statusOf(t, environment)
		return view.Blocks
	}
	waitBlock := func(when string) {
		t.Helper()
		before := blocks()
		eventually(t, "a block "+when, func() string {
			if now := blocks(); now < before+2 { // one may have been under way
				return fmt.Sprintf("%d blocks, %d before", now, before)
			}
			return ""
		})
	}
	oneLine := func(said, path string, pid int) {
		t.Helper()
		if strings.Count(said, path) != 1 || !strings.Contains(said, fmt.Sprintf("(pid %d) again", pid)) {
			t.Errorf("said %q, want one line that names %s and what to do", said, path)
		}
	}

	damaged := damageEntry(t, environment, registry.RoleServer, two)
	miner := startProcess(t, append([]string{"miner", "--threads", "1"}, in...)...)
	waitBlock("after the damage of a follower's entry")
	for _, args := range [][]string{{"status"}, {"server", "list"}, {"env"}} {
		code, stdout, stderr := command(t, append(args, in...)...)
		if code != exitDone || stdout == "" {
			t.Errorf("%s: exit code %d, %q", args, code, stdout)
		}
		oneLine(stderr, damaged, two.cmd.Process.Pid)
	}
	for _, p := range []*process{one, miner} {
		eventually(t, "the damage is told", func() string { return choose(p.errors() == "", "nothing said", "") })
		oneLine(p.errors(), damaged, two.cmd.Process.Pid)
	}

	two.signal(syscall.SIGTERM)
	_ = two.waitExit()
	two = server()
	damaged = damageEntry(t, environment, registry.RoleWebService, service)
	waitBlock("after the damage of the web service's entry")
	eventually(t, "two is up", func() string {
		view, problem := statusOf(t, environment)
		for _, server := range view.Servers {
			if !server.Up || !server.Voter {
				problem = fmt.Sprintf("%+v", server)
			}
		}
		return problem
	})
	one.signal(syscall.SIGTERM) // its successor never knew the web service, and says why it does not
	_ = one.waitExit()
	eventually(t, "the new leader says which file is damaged", func() string {
		view, problem := statusOf(t, environment)
		if problem == "" && !strings.Contains(view.WebServiceError, registry.ErrDamaged.Error()) {
			problem = "web service: " + view.WebServiceError
		}
		return problem
	})
	wantSaid(t, two.errors(), damaged, fmt.Sprintf("(pid %d) again", service.cmd.Process.Pid))
}
