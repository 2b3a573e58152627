//go:build !linux

package main

import (
	"os/exec"
	"syscall"
)

// startDetached starts command and calls ended when it has ended. The child has a process group of its own, so that Ctrl-C
// reaches this process alone. It stays in the session, where a paused process whose parent died gets SIGHUP and SIGCONT (POSIX),
// which end it.
func startDetached(command *exec.Cmd, ended func(error)) error {
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		return err
	}
	go func() { ended(command.Wait()) }()
	return nil
}
