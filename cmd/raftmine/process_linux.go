package main

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// startDetached starts command in a session of its own, so that Ctrl-C reaches this process alone, and so that Linux gives
// each process a share of the CPU of its own (raisePriority).
//
// A child whose parent dies sees its standard input end and ends in order, but not while it is paused. The kernel wakes
// the paused processes of a session whose parents died, never those of another one. So the child asks to be woken when its
// parent dies. SIGCONT does nothing to one that runs; SIGKILL would end a server without a word to the others.
func startDetached(command *exec.Cmd) error {
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGCONT}
	started := make(chan error)
	starter() <- func() { started <- command.Start() }
	return <-started
}

// starter takes functions that are run on a thread that lives as long as this process: the kernel takes the end of the thread
// that started a child for the end of its parent.
var starter = sync.OnceValue(func() chan<- func() {
	starts := make(chan func())
	go runStarts(starts)
	return starts
})

func runStarts(starts <-chan func()) {
	runtime.LockOSThread()
	for start := range starts {
		start()
	}
}
