//go:build !linux

package main

// raisePriority does nothing on this system.
func raisePriority() {}
