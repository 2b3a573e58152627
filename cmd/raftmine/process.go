package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stopOnStdinEnd is the hidden flag by which a child ends with its parent: the parent holds the other end of the
// child's standard input, and the kernel closes it however the parent dies.
const stopOnStdinEnd = "stop-with-stdin"

// startTimeout is how long a child may take from its start until it says that it is ready. Tuning.
const startTimeout = 30 * time.Second

// child is one raftmine process that this process started.
type child struct {
	role string // server, miner or webservice
	args []string
	log  string // file that takes its standard error
	from int64  // where this process's part of it begins

	started processStarted // what it said when it was ready
	cmd     *exec.Cmd
	stdin   io.Closer
	exited  chan struct{} // closed when it was reaped
	waitErr error         // after exited
	once    sync.Once     // stop
}

// processStarted is the line by which a process says that it is ready. Scripts rely on its names.
type processStarted struct {
	Event   string `json:"event"`
	Role    string `json:"role"`
	ID      uint64 `json:"id,omitempty"`
	Name    string `json:"name,omitempty"`
	PID     int    `json:"pid"`
	Address string `json:"address,omitempty"`
	DataDir string `json:"data_dir,omitempty"`
}

// startChild starts this binary again with args and waits until it is ready, ends, or ctx ends. Ctrl-C reaches the parent
// alone, which stops its children in order.
func startChild(ctx context.Context, role, log string, args ...string) (*child, error) {
	executable, err := os.Executable()
	if err != nil {
		return nil, err
	}
	logFile, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	from, err := logFile.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	c := &child{role: role, args: args, log: log, from: from, exited: make(chan struct{})}
	c.cmd = exec.Command(executable, append(args, "--output", "json", "--"+stopOnStdinEnd)...)
	c.cmd.Env = childEnvironment()
	c.cmd.Stderr = logFile
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, stdoutWriter, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.cmd.Stdout = stdoutWriter
	err = startDetached(c.cmd, func(err error) {
		c.waitErr = err
		close(c.exited)
	})
	stdoutWriter.Close()
	if err != nil {
		stdout.Close()
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	ready := make(chan error, 1)
	go c.read(stdout, ready)
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case err = <-ready:
	case <-timeout.C:
		err = fmt.Errorf("not ready after %s", startTimeout)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		c.stop(2 * time.Second)
		if said := c.lastError(); said != "" && ctx.Err() == nil {
			err = errors.New(strings.TrimPrefix(said, "raftmine: "))
		}
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	return c, nil
}

// read waits for the child's first line, then drains what else it prints, so that it never blocks.
func (c *child) read(stdout io.ReadCloser, ready chan<- error) {
	defer stdout.Close()
	lines := bufio.NewReader(stdout)
	line, err := lines.ReadBytes('\n')
	if err != nil {
		ready <- errors.New("it ended before it was ready")
		return
	}
	if err := json.Unmarshal(line, &c.started); err != nil || c.started.Event != "process_started" {
		ready <- fmt.Errorf("it said %q instead of being ready", strings.TrimSpace(string(line)))
		return
	}
	ready <- nil
	_, _ = io.Copy(io.Discard, lines)
}

// pid returns the child's process id.
func (c *child) pid() int { return c.cmd.Process.Pid }

// alive reports whether the child was not reaped yet.
func (c *child) alive() bool {
	select {
	case <-c.exited:
		return false
	default:
		return true
	}
}

// stop asks the child to end in order, wakes it if it is paused, kills it after patience, and waits until it is gone.
func (c *child) stop(patience time.Duration) {
	c.once.Do(func() {
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		_ = c.cmd.Process.Signal(syscall.SIGCONT)
		timer := time.AfterFunc(patience, func() { _ = c.cmd.Process.Kill() })
		defer timer.Stop()
		<-c.exited
		c.stdin.Close()
	})
	<-c.exited
}

// childEnvironment is this process's environment without raftmine's variables: a child is told all by flags.
func childEnvironment() []string {
	var kept []string
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "RAFTMINE_") {
			kept = append(kept, variable)
		}
	}
	return kept
}

// withParent returns a context that ends when standard input does, if the command line asks for that.
func withParent(ctx context.Context, enabled bool) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if enabled {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			cancel(errParentEnded)
		}()
	}
	return ctx, func() { cancel(nil) }
}

var errParentEnded = errors.New("the process that started this one ended")

// lastError returns the last line that the child printed as its error, or "".
func (c *child) lastError() string {
	data, err := os.ReadFile(c.log)
	if err != nil || int64(len(data)) < c.from {
		return ""
	}
	data = data[c.from:]
	last := ""
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "raftmine: ") {
			last = strings.TrimSpace(line)
		}
	}
	return last
}
