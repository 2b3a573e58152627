package raftnode

import (
	"os"

	"raftmine/fsm"
)

// LocalHost returns the identity of this machine and of its current boot. Two processes with the same host can look at
// each other's locks and pids only if they also see the same file system: containers made from one image may share a
// machine id on different machines (the boot id then differs), and containers of one machine share the boot id, which is
// the kernel's, with different machine ids or none. Only when both are equal and not empty is it one machine and one boot.
func LocalHost() fsm.Host {
	host := fsm.Host{MachineID: machineID(), BootID: bootID()}
	if host.MachineID == "" {
		if name, err := os.Hostname(); err == nil && name != "" {
			host.MachineID = "hostname:" + name // weaker, but better than to take all machines for one
		}
	}
	return host
}
