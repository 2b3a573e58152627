package raftnode

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func TestStreamLayerTagsWhatItDialsAndTellsTheAdvertisedAddress(t *testing.T) {
	l := listenLoopback(t, ListenConfig{})
	layer := newStreamLayer(l, "server-1.example:7001")
	if got := layer.Addr().String(); got != "server-1.example:7001" {
		t.Errorf("address is %s", got)
	}
	if got := newStreamLayer(l, "").Addr().String(); got != l.Addr().String() {
		t.Errorf("address without an advertised one is %s, want %s", got, l.Addr())
	}
	conn, err := layer.Dial(raft.ServerAddress(l.Addr().String()), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "raft"); err != nil {
		t.Fatal(err)
	}
	acceptAndRead(t, layer, "raft")
	if err := layer.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := layer.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	dialAndWrite(t, l.Addr().String(), "P")
	acceptAndRead(t, l.GRPC(), "P") // the other parts go on
}

func TestDialSaysWhyItFailed(t *testing.T) {
	l := listenLoopback(t, ListenConfig{})
	gone, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	layer := newStreamLayer(l, "")
	if _, err := layer.Dial(raft.ServerAddress(gone.Addr().String()), time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial to a port that nobody listens on: %v", err)
	}
	if _, err := layer.Dial("no port", 0); err == nil {
		t.Error("dialled an address without a port")
	}
}

// Raft's own transport and gRPC, as they are, on one address.
func TestRaftAndGRPCShareOneAddress(t *testing.T) {
	l := listenLoopback(t, ListenConfig{})
	address := l.Addr().String()

	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- server.Serve(l.GRPC()) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("grpc server ended with %v", err)
		}
	}()
	client, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()

	quiet := hclog.NewNullLogger()
	receiver := raft.NewNetworkTransportWithLogger(newStreamLayer(l, ""), 2, time.Second, quiet)
	senderListener := listenLoopback(t, ListenConfig{})
	sender := raft.NewNetworkTransportWithLogger(newStreamLayer(senderListener, ""), 2, time.Second, quiet)
	handled := make(chan struct{})
	go func() {
		defer close(handled)
		for range 3 {
			rpc := <-receiver.Consumer()
			vote, ok := rpc.Command.(*raft.RequestVoteRequest)
			if !ok {
				t.Errorf("raft got a %T", rpc.Command)
				rpc.Respond(nil, errors.New("wrong request"))
				continue
			}
			rpc.Respond(&raft.RequestVoteResponse{Term: vote.Term + 1, Granted: true}, nil)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for term := uint64(1); term <= 3; term++ {
		reply := raft.RequestVoteResponse{}
		request := raft.RequestVoteRequest{Term: term}
		if err := sender.RequestVote("1", raft.ServerAddress(address), &request, &reply); err != nil || reply.Term != term+1 {
			t.Fatalf("raft request %d: %+v (%v)", term, reply, err)
		}
		answer, err := healthpb.NewHealthClient(client).Check(ctx, &healthpb.HealthCheckRequest{})
		if err != nil || answer.Status != healthpb.HealthCheckResponse_SERVING {
			t.Fatalf("grpc request %d: %v (%v)", term, answer, err)
		}
	}
	<-handled
	if err := errors.Join(sender.Close(), receiver.Close()); err != nil {
		t.Error(err)
	}
	sender.CloseStreams()
	receiver.CloseStreams()
}

// TestVoteIsGivenThoughTheServerWasStartedAgain: the connections of before are still in the candidate's pool.
func TestVoteIsGivenThoughTheServerWasStartedAgain(t *testing.T) {
	transport := func(l *Listener) *raftTransport {
		return newRaftTransport(raft.NetworkTransportConfig{Stream: newStreamLayer(l, ""), MaxPool: raftPool, Timeout: time.Minute,
			Logger: newRaftLogger(discard())}, time.Minute, func() bool { return false })
	}
	listen := func(address string) *Listener {
		l, err := Listen(address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	var near *raftTransport
	var target raft.ServerAddress
	// voter runs a server that votes until stop is called.
	voter := func(address string) (at string, stop func()) {
		l := listen(address)
		far := transport(l)
		done, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for {
				select {
				case rpc := <-far.Consumer():
					switch rpc.Command.(type) {
					case *raft.RequestVoteRequest:
						rpc.Respond(&raft.RequestVoteResponse{Granted: true}, nil)
					case *raft.RequestPreVoteRequest:
						rpc.Respond(&raft.RequestPreVoteResponse{Granted: true}, nil)
					default:
						rpc.Respond(&raft.TimeoutNowResponse{}, nil)
					}
				case <-done:
					return
				}
			}
		}()
		return l.Addr().String(), func() {
			if err := errors.Join(far.Close(), l.Close()); err != nil {
				t.Error(err)
			}
			far.CloseStreams()
			close(done)
			<-ended
		}
	}
	own := listen("127.0.0.1:0")
	near = transport(own)
	defer func() {
		near.CloseStreams()
		if err := errors.Join(near.Close(), own.Close()); err != nil {
			t.Error(err)
		}
	}()
	address, stop := voter("127.0.0.1:0")
	target = raft.ServerAddress(address)
	vote := func() error {
		var response raft.RequestVoteResponse
		err := near.RequestVote("2", target, &raft.RequestVoteRequest{Term: 1}, &response)
		if err == nil && !response.Granted {
			err = errors.New("not granted")
		}
		return err
	}
	asks := map[string]func() error{
		"vote": vote,
		"pre-vote": func() error {
			return near.RequestPreVote("2", target, &raft.RequestPreVoteRequest{Term: 1}, new(raft.RequestPreVoteResponse))
		},
		"election": func() error {
			return near.TimeoutNow("2", target, &raft.TimeoutNowRequest{}, new(raft.TimeoutNowResponse))
		},
	}
	for name, ask := range asks {
		var pool sync.WaitGroup // as many connections as are kept
		for range 2 * raftPool {
			pool.Go(func() {
				if err := vote(); err != nil {
					t.Errorf("before %s: %v", name, err)
				}
			})
		}
		pool.Wait()
		stop()
		_, stop = voter(address)
		if err := ask(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, ask := range asks {
		target = raft.ServerAddress(resetting(t, raftPool, address))
		if err := ask(); err != nil {
			t.Errorf("%s, after resets: %v", name, err)
		}
	}
	near.CloseStreams()
	stop()
}

// resetting listens, resets the first n connections once something was asked on them, and hands the later ones on to address.
func resetting(t *testing.T, n int, address string) string {
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for i := 0; ; i++ {
			conn, err := front.Accept()
			if err != nil {
				return
			}
			if i < n {
				_, _ = conn.Read(make([]byte, 1))
				_ = conn.(*net.TCPConn).SetLinger(0)
				_ = conn.Close()
				continue
			}
			back, err := net.Dial("tcp", address)
			if err != nil {
				_ = conn.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{conn, back}, {back, conn}} {
				all.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					_ = way[0].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		_ = front.Close()
		all.Wait()
	})
	return front.Addr().String()
}
