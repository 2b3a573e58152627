package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// TestWatchTellsOfTheServerThatItWatched: the leader's death and return are told by the next server that answers, and that
// nobody answers is told once.
func TestWatchTellsOfTheServerThatItWatched(t *testing.T) {
	environment := filepath.Join(keepOnFailure(t), "environment")
	in := []string{"--environment", environment, "-o", "json"}
	args := append([]string{"server", "--heartbeat", "500ms"}, in...)
	servers := make([]*process, 3)
	for i := range servers {
		servers[i] = startProcess(t, args...)
		_, _ = servers[i].waitEvent(0, "leader")
	}
	eventually(t, "three servers that are up", func() string {
		view, problem := statusOf(t, environment)
		for _, server := range view.Servers {
			if !server.Up || !server.Voter {
				return "not yet"
			}
		}
		if len(view.Servers) != 3 {
			return "not three: " + problem
		}
		return ""
	})
	watch := startProcess(t, append([]string{"watch"}, in...)...)
	_, at := watch.waitEvent(0, "heartbeat")

	kill := func(p *process) {
		p.signal(syscall.SIGKILL)
		p.waitExit()
	}
	kill(servers[0])
	if down, _ := watch.waitEvent(at, "server_down"); down["id"] != float64(1) {
		t.Errorf("told %v, want that server 1 is down", down)
	}
	lost, at := watch.waitEvent(at, "lost")
	if lost["address"] == "" || len(watch.events("no_server")) != 0 {
		t.Errorf("told %v and %v, want where the watch goes on", lost, watch.events("no_server"))
	}
	_, at = watch.waitEvent(at, "leader")

	kill(servers[1])
	kill(servers[2])
	_, at = watch.waitEvent(at, "no_server")
	for i := range servers { // each on its folder again
		servers[i] = startProcess(t, args...)
	}
	back, at := watch.waitEvent(at, "server_back")
	if up, _ := watch.waitEvent(at, "server_up"); up["id"] != float64(1) || back["address"] == "" {
		t.Errorf("told %v and %v, want that server 1 is up again", back, up)
	}
	if n := len(watch.events("no_server")); n != 1 {
		t.Errorf("told %d times that no server answers", n)
	}
	watch.signal(syscall.SIGINT)
	if code := watch.waitExit(); code != exitDone {
		t.Errorf("exit code %d", code)
	}
}

// TestOneLineForEachInterruption however often connections are tried in vain.
func TestOneLineForEachInterruption(t *testing.T) {
	gone, refused := errors.New("gone"), errors.New("refused")
	for _, servers := range []int{1, 3} {
		var told []string
		w := watcher{
			lost:   func(err error, address string) { told = append(told, fmt.Sprintf("lost: %v, %s", err, address)) },
			silent: func(err error) { told = append(told, fmt.Sprintf("silent: %v", err)) },
			back:   func(address string) { told = append(told, "back: "+address) },
		}
		w.connected("a")
		for range 2 {
			w.interrupted(gone, servers)
			w.connected("b")
		}
		for range 2 {
			w.interrupted(gone, servers)
			for range 20 {
				w.interrupted(refused, servers)
			}
			w.connected("c")
		}
		want := []string{"lost: gone, b", "lost: gone, b", "silent: gone", "back: c", "silent: gone", "back: c"}
		if !slices.Equal(told, want) {
			t.Errorf("of %d servers told %q, want %q", servers, told, want)
		}
	}
}
