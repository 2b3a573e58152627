// Package raftminepb is the generated code of raftmine.v1, what crosses the network between miners, servers and
// clients. Its types never leave package rpc.
package raftminepb
