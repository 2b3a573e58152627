package main

import (
	"os/exec"
	"runtime"
	"syscall"
)

// startDetached starts command and calls ended when it has ended. The child has a session of its own, so that Ctrl-C reaches
// this process alone, and so that Linux gives each process a share of the CPU of its own (raisePriority).
//
// A child whose parent dies sees its standard input end and ends in order, but not while it is paused. The kernel wakes
// the paused processes of a session whose parents died, never those of another one. So the child asks to be woken when its
// parent dies. SIGCONT does nothing to one that runs; SIGKILL would end a server without a word to the others.
//
// The kernel takes the end of the thread that started a child for the end of its parent: that thread waits for the child.
func startDetached(command *exec.Cmd, ended func(error)) error {
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGCONT}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			ended(command.Wait())
		}
	}()
	return <-started
}
