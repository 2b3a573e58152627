package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"raftmine/raftnode"
)

// otherHostVariable makes a server of this test binary take itself for one on another host, which cannot look at the locks here.
const otherHostVariable = "TEST_OTHER_HOST"

func useOtherHost(name string) {
	if name == "" {
		return
	}
	tuneNode = func(config *raftnode.Config) { config.Host.MachineID, config.Host.BootID = name, name }
}

// TestCopyOfARunningServersDataDirectoryIsRefused: of the leader's and of a follower's, in the same environment, in another
// one, and from another host. Beside it answers are acknowledged, and none is lost. A server that is killed and started again
// at once, often, is not taken for its own copy.
func TestCopyOfARunningServersDataDirectoryIsRefused(t *testing.T) {
	s := startSurvivors(t, 3)
	for _, id := range []int{3, 1} {
		server, twin := s.servers[id-1], s.dataDir(id)+"-copy"
		server.signal(syscall.SIGSTOP)
		err := os.CopyFS(twin, os.DirFS(s.dataDir(id)))
		server.signal(syscall.SIGCONT)
		if err != nil {
			t.Fatal(err)
		}
		s.acknowledges()
		for _, from := range []struct{ name, environment, host string }{
			{"the same environment", s.environment, ""},
			{"another environment", filepath.Join(s.dir, "another"), ""},
			{"another host", filepath.Join(s.dir, "another"), "another"},
		} {
			t.Setenv(otherHostVariable, from.host)
			p := startProcess(t, "server", "--environment", from.environment, "--data-dir", twin, "--heartbeat", "300ms")
			code, said := p.waitExit(), p.errors()
			if code != exitFailed || !strings.Contains(said, "another process") || strings.Count(said, "\n") > 1 ||
				!strings.Contains(said, "start a new server on an empty directory instead") {
				t.Errorf("a copy of server %d in %s: exit code %d, said %q", id, from.name, code, said)
			}
			t.Logf("in %s: %s", from.name, said)
		}
		t.Setenv(otherHostVariable, "")
		s.acknowledges()
	}
	for i := range 20 {
		id := 1 + 2*(i%2)
		s.kill(id)
		s.start(id)
	}
	s.goesOn(1)
	s.holds(0)
}
