package raftnode

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// TestFloodOfRaftConnectionsKeepsNoServerOut: whoever knows the cluster's id passes the hello, and may announce a large
// message on each connection and never end it.
func TestFloodOfRaftConnectionsKeepsNoServerOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := newTestNet()
		var closers []func() error
		transport := func(id uint64, crowded func(string)) (*guardedStream, *raft.NetworkTransport, string) {
			l := network.listen()
			stream := newGuardedStream(l, "cluster", id)
			stream.crowded = crowded
			stream.start()
			transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: stream, MaxPool: 1, Timeout: time.Minute,
				Logger: newRaftLogger(discard())})
			closers = append(closers, func() error { transport.CloseStreams(); return transport.Close() })
			return stream, transport, l.address
		}
		var said []string
		stream, server, address := transport(1, func(from string) { said = append(said, from) })
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case rpc := <-server.Consumer():
					rpc.Respond(&raft.RequestVoteResponse{Granted: true}, nil)
				case <-stop:
					return
				}
			}
		}()
		_, peer, _ := transport(2, nil)
		vote := func(from *raft.NetworkTransport) {
			t.Helper()
			var answer raft.RequestVoteResponse
			if err := from.RequestVote("1", raftAddress(1, address), &raft.RequestVoteRequest{}, &answer); err != nil || !answer.Granted {
				t.Fatalf("a server is kept out: %v", err)
			}
		}
		vote(peer)

		greeting := newHello("cluster", 1)
		unfinished := "\x00\x81\xa7Entries\x91\x81\xa4Data\xdb\x00\x40\x00\x00"
		const flood = 5 * maxRaftConns
		var conns []net.Conn
		for i := range flood {
			conn, err := network.dial(address, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(append(greeting[:], unfinished...)); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			conns = append(conns, conn)
			synctest.Wait()
		}
		vote(peer) // on the connection that it has
		if dials := len(network.accepted[address]); dials != flood+1 {
			t.Errorf("%d connections for a flood of %d: the server had to dial again", dials, flood)
		}
		_, late, _ := transport(3, nil)
		vote(late)
		synctest.Wait()
		if open := len(stream.conns); open > maxRaftConns {
			t.Errorf("%d connections are open, want at most %d", open, maxRaftConns)
		}
		if fmt.Sprint(said) != "[pipe]" {
			t.Errorf("told %v, want it told once", said)
		}
		for _, conn := range conns {
			conn.Close()
		}
		for _, c := range closers {
			if err := c(); err != nil {
				t.Error(err)
			}
		}
		close(stop)
	})
}

// hostConn is a connection from a host.
type hostConn struct {
	net.Conn
	host string
}

func (c hostConn) RemoteAddr() net.Addr { return advertised(c.host + ":7001") }

// admitFrom returns what lets a stream admit a connection from a host, which asks or says nothing.
func admitFrom(t *testing.T, stream *guardedStream) func(host string, asks bool) *guardedConn {
	return func(host string, asks bool) *guardedConn {
		near, far := net.Pipe()
		conn := stream.track(hostConn{near, host})
		stream.admit(conn)
		if asks {
			conn.asked.Store(stream.turns.Add(1))
		}
		t.Cleanup(func() { _ = errors.Join(near.Close(), far.Close()) })
		return conn
	}
}

// TestSilentConnectionsOfManyHostsPushOutNoServer, though a server's host has more connections than each of theirs.
func TestSilentConnectionsOfManyHostsPushOutNoServer(t *testing.T) {
	stream := newGuardedStream(newTestNet().listen(), "cluster", 1)
	admit := admitFrom(t, stream)
	var server []*guardedConn
	for range raftPool + 2 {
		server = append(server, admit("10.0.0.2", true))
	}
	for i := range 2 * maxRaftConns {
		admit(fmt.Sprintf("10.0.1.%d", i), false)
	}
	for i, conn := range server {
		if _, open := stream.conns[conn]; !open {
			t.Errorf("connection %d of the server was closed", i)
		}
	}
	if open := len(stream.conns); open != maxRaftConns {
		t.Errorf("%d connections are open, want %d", open, maxRaftConns)
	}
}

// TestConnectionsOfOneHostPushOutEachOther also when they ask and ask.
func TestConnectionsOfOneHostPushOutEachOther(t *testing.T) {
	stream := newGuardedStream(newTestNet().listen(), "cluster", 1)
	admit := admitFrom(t, stream)
	quiet := admit("10.0.0.2", false)
	var flood []*guardedConn
	for range maxRaftConns + 5 {
		flood = append(flood, admit("10.0.0.9", true))
	}
	late := admit("10.0.0.3", false)
	open := func(c *guardedConn) bool { _, ok := stream.conns[c]; return ok }
	if !open(quiet) || !open(late) {
		t.Errorf("connections of other hosts are open: %t and %t", open(quiet), open(late))
	}
	for i, conn := range flood {
		if open(conn) != (i >= 7) {
			t.Errorf("connection %d of the flood is open: %t", i, open(conn))
		}
	}
}
