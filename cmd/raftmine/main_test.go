package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// asRaftmine makes this test binary behave as raftmine, so that end-to-end tests run real processes of the code
// under test. Children inherit it.
const asRaftmine = "TEST_BINARY_IS_RAFTMINE"

// roles are what else this test binary can be made to run as, by the variable that says so.
var roles = map[string]func(args []string) error{asFarm: runFarm, asBurden: runBurden, asSearcher: runSearcher}

func TestMain(m *testing.M) {
	for as, run := range roles {
		if os.Getenv(as) != "" {
			if err := run(os.Args[1:]); err != nil {
				fmt.Fprintln(os.Stderr, as+":", err)
				os.Exit(1)
			}
			return
		}
	}
	if os.Getenv(asRaftmine) != "" {
		useFailpoints(os.Getenv(failpointVariable))
		useSmallLogs(os.Getenv(smallLogsVariable))
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// patience bounds every wait for a condition in end-to-end tests. It is generous: a slow machine fails no test.
const patience = 60 * time.Second

// process is one raftmine process that a test drives.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	exited chan struct{}

	mu     sync.Mutex
	lines  []string      // of standard output so far
	more   chan struct{} // closed and replaced at each new line
	stderr bytes.Buffer
}

// startProcess runs raftmine with args, for the length of the test at most.
func startProcess(t *testing.T, args ...string) *process {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(executable, args...), exited: make(chan struct{}), more: make(chan struct{})}
	p.cmd.Env = append(childEnvironment(), asRaftmine+"=1")
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = &lockedWriter{mu: &p.mu, w: &p.stderr}
	stdout, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout = writer
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer stdout.Close()
		scanner := bufio.NewScanner(stdout)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			p.mu.Lock()
			p.lines = append(p.lines, scanner.Text())
			close(p.more)
			p.more = make(chan struct{})
			p.mu.Unlock()
		}
	}()
	go func() {
		_ = p.cmd.Wait()
		<-read
		close(p.exited)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		if args[0] == "run" { // one that is killed leaves processes that write for a moment in a folder that is being removed
			_ = p.cmd.Process.Signal(os.Interrupt)
			select {
			case <-p.exited:
			case <-time.After(patience):
			}
		}
		_ = p.cmd.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("%s\n-- stdout\n%s\n-- stderr\n%s", strings.Join(args, " "), strings.Join(p.output(), "\n"), p.errors())
		}
	})
	return p
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(data)
}

func (p *process) output() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

func (p *process) errors() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// waitLine returns the first line, from the given one on, that matches, and the number of the line after it.
func (p *process) waitLine(from int, what string, matches func(string) bool) (string, int) {
	p.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		p.mu.Lock()
		lines, more := p.lines, p.more
		p.mu.Unlock()
		for ; from < len(lines); from++ {
			if matches(lines[from]) {
				return lines[from], from + 1
			}
		}
		select {
		case <-more:
		case <-p.exited:
			if len(p.output()) > from {
				continue
			}
			p.t.Fatalf("ended before it printed %s", what)
		case <-deadline.C:
			p.t.Fatalf("did not print %s within %s", what, patience)
		}
	}
}

// waitEvent waits for a JSON line with this event and returns it decoded.
func (p *process) waitEvent(from int, event string) (map[string]any, int) {
	p.t.Helper()
	var object map[string]any
	_, next := p.waitLine(from, "event "+event, func(line string) bool {
		object = nil
		return json.Unmarshal([]byte(line), &object) == nil && object["event"] == event
	})
	return object, next
}

// waitExit returns the exit code.
func (p *process) waitExit() int {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.t.Fatalf("still runs after %s", patience)
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// events decodes every JSON line with this event so far.
func (p *process) events(event string) []map[string]any {
	var found []map[string]any
	for _, line := range p.output() {
		var object map[string]any
		if json.Unmarshal([]byte(line), &object) == nil && object["event"] == event {
			found = append(found, object)
		}
	}
	return found
}

// command runs raftmine in this process and returns its exit code and what it printed.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = execute(context.Background(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// eventually waits until check returns "", polling, and fails with its last answer.
func eventually(t testing.TB, what string, check func() string) {
	t.Helper()
	eventuallyWithin(t, patience, what, check)
}

func eventuallyWithin(t testing.TB, patience time.Duration, what string, check func() string) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.Now().Add(patience)
	for {
		problem := check()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s after %s", what, problem, patience)
		}
		<-ticker.C
	}
}

// keepOnFailure returns a folder that outlives a failed test, so that its logs and data can be read.
func keepOnFailure(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "raftmine-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kept %s", dir)
			logs, _ := filepath.Glob(filepath.Join(dir, "*", "logs", "*.log"))
			for _, log := range logs {
				if data, err := os.ReadFile(log); err == nil {
					t.Logf("-- %s\n%s", log, tail(data, 4000))
				}
			}
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func tail(data []byte, n int) []byte { return data[max(0, len(data)-n):] }
