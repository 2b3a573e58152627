package raftnode

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// raftPair is two of the library's transports over guarded streams; answer says what server 1 answers.
func raftPair(t *testing.T, answer func(raft.RPC)) (from *raft.NetworkTransport, to raft.ServerAddress) {
	network := newTestNet()
	transport := func(id uint64) (*raft.NetworkTransport, *testListener) {
		l := network.listen()
		stream := newGuardedStream(l, "cluster", id)
		stream.start()
		transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: stream, MaxPool: 1, Timeout: time.Minute,
			Logger: newRaftLogger(discard())})
		t.Cleanup(func() {
			transport.CloseStreams()
			if err := transport.Close(); err != nil {
				t.Error(err)
			}
		})
		return transport, l
	}
	server, at := transport(1)
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case rpc := <-server.Consumer():
				answer(rpc)
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	from, _ = transport(2)
	return from, raftAddress(1, at.address)
}

// TestAllThatServersSayPasses: the largest messages that the library makes of what a log may hold, and a snapshot of any
// size and content.
func TestAllThatServersSayPasses(t *testing.T) {
	snapshot := bytes.Repeat([]byte{raftInstallSnapshot, 0xdb, 0xff, 0xff, 0xff, 0xff}, maxRaftBytes/2)
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("18446744073709551615"), Addr: []byte(strings.Repeat("a", 300))}
	var entries []*raft.Log
	for i := range uint64(maxRaftEntries) {
		entries = append(entries, &raft.Log{Index: 1<<63 + i, Term: 1 << 40, Type: raft.LogConfiguration, Data: make([]byte, 70_000), Extensions: []byte{}, AppendedAt: time.Now()})
	}
	entries[maxRaftEntries-1].Data = make([]byte, fsm.MaxEntrySize)
	var got *raft.AppendEntriesRequest
	var size int64
	from, to := raftPair(t, func(rpc raft.RPC) {
		switch c := rpc.Command.(type) {
		case *raft.AppendEntriesRequest:
			got = c
			rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: header, Term: 1 << 63, LastLog: 1 << 63, Success: true}, nil)
		case *raft.InstallSnapshotRequest:
			content, err := io.ReadAll(rpc.Reader)
			if size = int64(len(content)); !bytes.Equal(content, snapshot) {
				err = errors.New("another snapshot came")
			}
			rpc.Respond(&raft.InstallSnapshotResponse{Success: true}, err)
		case *raft.RequestVoteRequest:
			rpc.Respond(&raft.RequestVoteResponse{Peers: make([]byte, 9000), Granted: true}, nil)
		case *raft.TimeoutNowRequest:
			rpc.Respond(nil, errNoVote)
		default:
			rpc.Respond(&raft.RequestPreVoteResponse{}, nil)
		}
	})
	id := raft.ServerID("1")
	for range 3 { // on one connection
		request := &raft.AppendEntriesRequest{RPCHeader: header, Term: 1 << 63, PrevLogEntry: 1 << 62, Entries: entries, LeaderCommitIndex: 1 << 32}
		var answer raft.AppendEntriesResponse
		if err := from.AppendEntries(id, to, request, &answer); err != nil || !answer.Success {
			t.Fatalf("entries: %v", err)
		}
		if len(got.Entries) != maxRaftEntries || len(got.Entries[maxRaftEntries-1].Data) != fsm.MaxEntrySize {
			t.Fatalf("%d entries came", len(got.Entries))
		}
		errs := errors.Join(
			from.AppendEntries(id, to, &raft.AppendEntriesRequest{RPCHeader: header}, new(raft.AppendEntriesResponse)),
			from.RequestVote(id, to, &raft.RequestVoteRequest{RPCHeader: header}, new(raft.RequestVoteResponse)),
			from.RequestPreVote(id, to, &raft.RequestPreVoteRequest{}, new(raft.RequestPreVoteResponse)),
			from.InstallSnapshot(id, to, &raft.InstallSnapshotRequest{RPCHeader: header, Configuration: make([]byte, 1<<20), Size: int64(len(snapshot))},
				new(raft.InstallSnapshotResponse), bytes.NewReader(snapshot)),
		)
		if errs != nil || size != int64(len(snapshot)) {
			t.Fatalf("%d bytes of a snapshot: %v", size, errs)
		}
		if err := from.TimeoutNow(id, to, &raft.TimeoutNowRequest{}, new(raft.TimeoutNowResponse)); err == nil || err.Error() != errNoVote.Error() {
			t.Fatalf("an answer with an error alone: %v", err)
		}
	}
}

// TestRaftMessageThatAnnouncesTooMuchTakesNoMemory: a few bytes must not cost a server gigabytes.
func TestRaftMessageThatAnnouncesTooMuchTakesNoMemory(t *testing.T) {
	named := func(name string, value ...byte) string {
		return string([]byte{byte(0xa0 | len(name))}) + name + string(value)
	}
	nested := strings.Repeat("\x91", 1000)
	for what, message := range map[string]string{
		"entry of 4 GiB":                 "\x00\x81" + named("Entries", 0x91, 0x81) + named("Data", 0xdb, 0xff, 0xff, 0xff, 0xff),
		"entry of 2 GiB, as binary":      "\x00\x81" + named("Entries", 0x91, 0x81) + named("Data", 0xc6, 0x7f, 0xff, 0xff, 0xff),
		"entry beyond the largest":       "\x00\x81" + named("Entries", 0x91, 0x81) + named("Data", 0xdb, 0x00, 0x40, 0x00, 0x01),
		"4 billion entries":              "\x00\x81" + named("Entries", 0xdd, 0xff, 0xff, 0xff, 0xff),
		"one entry too many":             "\x00\x81" + named("Entries", 0xdc, 0x00, maxRaftEntries+1),
		"4 billion fields":               "\x01\xdf\xff\xff\xff\xff",
		"a name of 4 GiB":                "\x01\x81\xdb\xff\xff\xff\xff",
		"leader of 4 GiB":                "\x00\x82" + named("Term", 1) + named("Leader", 0xdb, 0xff, 0xff, 0xff, 0xff),
		"unknown field of 4 GiB":         "\x03\x81" + named("X", 0xdb, 0xff, 0xff, 0xff, 0xff),
		"text in place of a request":     "\x00\xdb\xff\xff\xff\xff",
		"list in place of a request":     "\x00\xdd\xff\xff\xff\xff",
		"number in place of a request":   "\x00\x05",
		"nested without an end":          "\x00\x81" + named("X") + nested,
		"extension of 4 GiB":             "\x00\x81" + named("X", 0xc9, 0xff, 0xff, 0xff, 0xff, 1),
		"configuration of 4 GiB":         "\x02\x81" + named("Configuration", 0xdb, 0xff, 0xff, 0xff, 0xff),
		"size below zero":                "\x02\x81" + named("Size", 0xff),
		"size below zero, of 8 bytes":    "\x02\x81" + named("Size", 0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0),
		"size that is no number":         "\x02\x81" + named("Size", 0xc0),
		"request behind a snapshot":      "\x02\x81" + named("Size", 3) + "abc\x00\xdb\xff\xff\xff\xff",
		"request behind an empty one":    "\x02\x80\x00\xdb\xff\xff\xff\xff",
		"request behind a good request":  "\x01\x81" + named("Candidate", 0xa3, 'a', 'b', 'c') + "\x00\xdb\xff\xff\xff\xff",
		"size twice, and a request then": "\x02\x82" + named("Size", 0xcd, 0xff, 0xff) + named("Size", 1) + "a\x00\xdb\xff\xff\xff\xff",
	} {
		t.Run(what, func(t *testing.T) {
			for cut := 1; cut <= len(message); cut++ {
				var m raftMessages
				var err error
				for rest := []byte(message); len(rest) > 0 && err == nil; rest = rest[min(cut, len(rest)):] {
					err = m.see(rest[:min(cut, len(rest))])
				}
				if err == nil || !strings.HasPrefix(err.Error(), "raft message refused: ") || strings.Contains(err.Error(), "\n") {
					t.Fatalf("in pieces of %d bytes: %v", cut, err)
				}
			}
			network := newTestNet()
			listener := network.listen()
			stream := newGuardedStream(listener, "cluster", 1)
			stream.start()
			transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: stream, Timeout: time.Minute, Logger: newRaftLogger(discard())})
			answered := make(chan struct{})
			go func() { // what is right before is answered
				for {
					select {
					case rpc := <-transport.Consumer():
						if rpc.Reader != nil {
							io.Copy(io.Discard, rpc.Reader)
						}
						rpc.Respond(&raft.RequestVoteResponse{}, nil)
					case <-answered:
						return
					}
				}
			}()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			conn, err := network.dial(listener.address, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			greeting := newHello("cluster", 1)
			go conn.Write(append(greeting[:], message...))
			conn.SetReadDeadline(time.Now().Add(time.Minute))
			_, err = io.Copy(io.Discard, conn)
			runtime.ReadMemStats(&after)
			var late net.Error
			if errors.As(err, &late) && late.Timeout() {
				t.Error("the connection stays open")
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > maxRaftBytes {
				t.Errorf("took %d bytes of memory", took)
			}
			close(answered)
			if err := errors.Join(conn.Close(), transport.Close()); err != nil {
				t.Error(err)
			}
			transport.CloseStreams()
		})
	}
}

// TestAnswerThatAnnouncesTooMuchIsRefused: who answers at an old address need not be a server.
func TestAnswerThatAnnouncesTooMuchIsRefused(t *testing.T) {
	for _, answer := range []string{"\xdb\xff\xff\xff\xff", "\xa0\x81\xa1X\xdb\x00\x01\x00\x01", "\xa0\xdf\xff\xff\xff\xff", "\xa0\x81\xa1X\x91", "HTTP/1.1 400 Bad Request"} {
		m := raftMessages{answers: true}
		if err := m.see([]byte(answer)); err == nil {
			t.Errorf("%q passed", answer)
		}
	}
}
