package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestCopyOfARunningServersDataDirectoryIsRefused: of the leader's and of a follower's, in the same environment and in another
// one. Beside it answers are acknowledged, and none is lost. A server that is killed and started again
// at once, again and again, is not taken for its own copy.
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
		for _, environment := range []string{s.environment, filepath.Join(s.dir, "another")} {
			p := startProcess(t, "server", "--environment", environment, "--data-dir", twin, "--heartbeat", "300ms")
			code, said := p.waitExit(), p.errors()
			if code != exitFailed || !strings.Contains(said, "another process") || strings.Count(said, "\n") > 1 ||
				!strings.Contains(said, "start a new server on an empty directory instead") {
				t.Errorf("a copy of server %d in %s: exit code %d, said %q", id, environment, code, said)
			}
		}
		s.acknowledges()
	}
	rounds := 4
	if fullEndToEnd() {
		rounds = 20
	}
	for i := range rounds {
		id := 1 + 2*(i%2)
		s.kill(id)
		s.start(id)
	}
	s.goesOn(1)
	s.holds(0)
}
