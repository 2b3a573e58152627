package raftnode

import (
	"os"
	"strings"
)

func machineID() string {
	return firstLine("/etc/machine-id", "/var/lib/dbus/machine-id")
}

func bootID() string {
	return firstLine("/proc/sys/kernel/random/boot_id")
}

// firstLine returns the first line of the first file that has one; empty when none has.
func firstLine(paths ...string) string {
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		line, _, _ := strings.Cut(string(content), "\n")
		// A golden image says "uninitialized" until its first boot: machine-id(5).
		if line = strings.TrimSpace(line); line != "" && line != "uninitialized" {
			return line
		}
	}
	return ""
}
