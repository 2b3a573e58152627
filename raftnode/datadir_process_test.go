package raftnode

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"raftmine/raftnode/registry"
)

// The test binary runs itself again as another process that uses a data directory.
const (
	envDataDirPart = "RAFTMINE_DATADIR_TEST_PART"
	envDataDirPath = "RAFTMINE_DATADIR_TEST_PATH"
)

func init() {
	part := os.Getenv(envDataDirPart)
	if part == "" {
		return
	}
	if err := runDataDirPart(part, os.Getenv(envDataDirPath)); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runDataDirPart(part, path string) error {
	switch part {
	case "hold":
		dir, err := OpenDataDir(path)
		if err != nil {
			return err
		}
		fmt.Println(dir.Path())
		_, _ = io.Copy(io.Discard, os.Stdin)
		return dir.Close()
	case "claim":
		env, err := registry.Open(path)
		if err != nil {
			return err
		}
		unlock, err := env.Lock(context.Background())
		if err != nil {
			return err
		}
		dir, err := claimDataDir(env)
		unlock()
		if err != nil {
			return err
		}
		fmt.Println(dir.Path())
		_, _ = io.Copy(io.Discard, os.Stdin)
		return dir.Close()
	case "rewrite":
		dir, err := OpenDataDir(path)
		if err != nil {
			return err
		}
		fmt.Println(dir.Path())
		for n := 0; ; n++ {
			identity := dir.Identity()
			identity.ClusterID, identity.ServerID, identity.Address = "cluster", 1, fmt.Sprintf("127.0.0.1:%d", n%65536)
			if err := dir.SetIdentity(identity); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("no part %q", part)
}

// dataDirProcess is another process that uses the data directory path.
type dataDirProcess struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.Closer
	output *bufio.Reader
	path   string
}

// startDataDirPart starts a part without waiting for it.
func startDataDirPart(t *testing.T, part, path string) *dataDirProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envDataDirPart+"="+part, envDataDirPath+"="+path)
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
	p := &dataDirProcess{t: t, cmd: cmd, stdin: stdin, output: bufio.NewReader(stdout)}
	t.Cleanup(p.kill)
	return p
}

// ready waits until the process has its directory.
func (p *dataDirProcess) ready() *dataDirProcess {
	p.t.Helper()
	line, err := p.output.ReadString('\n')
	if _, scanErr := fmt.Sscanf(line, "/%s\n", &p.path); err != nil || scanErr != nil {
		p.t.Fatalf("process says %q (%v)", line, err)
	}
	p.path = "/" + p.path
	return p
}

// kill is kill -9. It does nothing when the process has ended.
func (p *dataDirProcess) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}
