package registry

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary runs itself again as another process of the environment: locks are only as good as what the kernel
// does for real processes that are really killed.
const (
	envPart = "RAFTMINE_REGISTRY_TEST_PART"
	envDir  = "RAFTMINE_REGISTRY_TEST_DIR"
	envID   = "RAFTMINE_REGISTRY_TEST_ID"
)

func TestMain(m *testing.M) {
	if part := os.Getenv(envPart); part != "" {
		id, _ := strconv.ParseUint(os.Getenv(envID), 10, 64)
		if err := runPart(part, os.Getenv(envDir), id); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func runPart(part, dir string, id uint64) error {
	e, err := Open(dir)
	if err != nil {
		return err
	}
	switch part {
	case "publish":
		published, err := e.Publish(serverEntry(id))
		if err != nil {
			return err
		}
		waitForEnd()
		return published.Remove()
	case "lock":
		unlock, err := e.Lock(context.Background())
		if err != nil {
			return err
		}
		waitForEnd()
		unlock()
		return nil
	case "storm":
		for range 10 {
			if err := stormOnce(e, id); err != nil {
				return err
			}
		}
		return nil
	case "update":
		published, err := e.Publish(serverEntry(id))
		if err != nil {
			return err
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			waitForEnd()
		}()
		for n := uint64(1); ; n++ {
			select {
			case <-done:
				return published.Remove()
			default:
			}
			entry := serverEntry(id)
			entry.ClusterID = fmt.Sprint(n)
			entry.DataDir = strings.Repeat(fmt.Sprint(n, " "), 500)
			if err := published.Update(entry); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("no part %q", part)
}

// stormOnce does what a starting server does: under the lock it sweeps, reads and publishes; later it leaves.
func stormOnce(e *Environment, id uint64) error {
	unlock, err := e.Lock(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	// The one place where two processes in here at once would be seen.
	inside := filepath.Join(e.Dir(), "inside")
	file, err := os.OpenFile(inside, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("somebody else is under the lock: %w", err)
	}
	defer func() { _ = os.Remove(inside) }() // before unlock
	_ = file.Close()
	if _, err := e.Sweep(nil); err != nil {
		return err
	}
	published, err := e.Publish(serverEntry(id))
	if err != nil {
		return err
	}
	entries, err := e.Entries()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.ServerID == id {
			return published.Remove()
		}
	}
	return fmt.Errorf("own entry %d is not among %v", id, entries)
}

// waitForEnd says that the part is ready, and waits until the test closes the other end of standard input.
func waitForEnd() {
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func serverEntry(id uint64) Entry {
	return Entry{
		Role: RoleServer, ServerID: id, ClusterID: "c", Address: fmt.Sprintf("127.0.0.1:%d", 7000+id),
		DataDir: fmt.Sprintf("/data/server-%d", id),
	}
}

// process is another process of the environment.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	lines *bufio.Reader
}

func start(t *testing.T, part, dir string, id uint64) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), envPart+"="+part, envDir+"="+dir, envID+"="+strconv.FormatUint(id, 10))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, stdin: stdin, lines: bufio.NewReader(stdout)}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return p
}

// ready waits until the part has what it wants.
func (p *process) ready() *process {
	p.t.Helper()
	line, err := p.lines.ReadString('\n')
	if err != nil || line != "ready\n" {
		p.t.Fatalf("part says %q (%v), not ready", line, err)
	}
	return p
}

func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	_ = p.cmd.Wait()
}

// finish ends the part in order.
func (p *process) finish() {
	p.t.Helper()
	_ = p.stdin.Close()
	rest, _ := io.ReadAll(p.lines)
	if err := p.cmd.Wait(); err != nil {
		p.t.Fatalf("part ended with %v: %s", err, rest)
	}
}

func open(t *testing.T) *Environment {
	t.Helper()
	e, err := Open(filepath.Join(t.TempDir(), "environment"))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func ids(entries []Entry) []uint64 {
	list := []uint64{}
	for _, entry := range entries {
		list = append(list, entry.ServerID)
	}
	return list
}

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func mustBe(t *testing.T, err, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error is %v, want %v", err, target)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not say %q", err, word)
		}
	}
}
