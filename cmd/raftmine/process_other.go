//go:build !linux

package main

import (
	"os/exec"
	"syscall"
)

// startDetached starts command in a process group of its own, so that Ctrl-C reaches this process alone. It stays in the
// session: the kernel wakes paused processes whose parents there died, and then they see that.
func startDetached(command *exec.Cmd) error {
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return command.Start()
}
