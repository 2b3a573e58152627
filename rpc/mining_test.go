package rpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"raftmine/raftnode/coordinator"
	pb "raftmine/rpc/raftminepb"
)

// stuckStream is the stream of a miner that does not read: Send ends with the stream alone, which ends with its handler.
type stuckStream struct {
	grpc.ServerStream
	ctx  context.Context
	half chan struct{} // closed: the miner sends nothing any more
}

func (s *stuckStream) Context() context.Context { return s.ctx }

func (s *stuckStream) Send(*pb.MineResponse) error {
	<-s.ctx.Done()
	return s.ctx.Err()
}

func (s *stuckStream) Recv() (*pb.MineRequest, error) {
	select {
	case <-s.half:
		return nil, io.EOF
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func TestStreamOfAMinerThatDoesNotReadEnds(t *testing.T) {
	for name, test := range map[string]struct {
		end   func(*Server, *fakeSession, *stuckStream)
		after time.Duration
		want  error
	}{
		"too slow":        {func(_ *Server, s *fakeSession, _ *stuckStream) { s.end(coordinator.ErrTooSlow) }, 0, coordinator.ErrTooSlow},
		"term over":       {func(server *Server, _ *fakeSession, _ *stuckStream) { server.Unlead() }, 0, coordinator.ErrNotLeader},
		"silent":          {func(_ *Server, s *fakeSession, _ *stuckStream) { s.end(coordinator.ErrSilent) }, lastWords, coordinator.ErrSilent},
		"nothing to come": {func(_ *Server, _ *fakeSession, s *stuckStream) { close(s.half) }, lastWords, nil},
		"silent, then over": {func(server *Server, s *fakeSession, _ *stuckStream) {
			s.end(coordinator.ErrSilent)
			synctest.Wait()
			server.Unlead()
		}, 0, coordinator.ErrNotLeader},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				node := newFakeNode(1)
				server, err := NewServer(Config{Node: node, Hub: node.hub, Version: "test"})
				if err != nil {
					t.Fatal(err)
				}
				leader := &fakeLeader{}
				server.Lead(leader)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				stream := &stuckStream{ctx: ctx, half: make(chan struct{})}
				ended := make(chan error, 1)
				go func() { ended <- (&miningService{server: server}).mine(stream) }()
				synctest.Wait() // the first message is stuck
				session := leader.opened()[0]
				session.reply(coordinator.Acknowledgement{GrantID: 1, Result: coordinator.Committed})
				began := time.Now()
				test.end(server, session, stream)
				if err := <-ended; !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
					t.Errorf("ended with %v, want %v", err, test.want)
				}
				if took := time.Since(began); took != test.after {
					t.Errorf("ended after %v, want %v", took, test.after)
				}
				if !session.isClosed() {
					t.Error("the session is open")
				}
				cancel() // as gRPC does when a handler has returned
				server.streams.Wait()
			})
		})
	}
}

// TestNothingIsLeftOfAMinerThatDoesNotRead: the same with a stream of gRPC, whose Send must end with its handler.
func TestNothingIsLeftOfAMinerThatDoesNotRead(t *testing.T) {
	logs := &logBuffer{}
	server, address := start(t, newFakeNode(1), func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	leader := &fakeLeader{address: address}
	server.Lead(leader)
	if _, err := pb.NewMiningServiceClient(dialPlain(t, address)).Mine(testContext(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "session opened", func() bool { return len(leader.opened()) == 1 })
	session := leader.opened()[0]
	const messages = 20 // more than the windows of both ends hold, so that a Send gets stuck
	for range messages {
		session.reply(coordinator.HeartbeatRequest{ClusterID: strings.Repeat("c", 40<<10)})
	}
	eventually(t, "some were sent", func() bool { return len(session.outgoing) < messages-2 })
	session.end(coordinator.ErrTooSlow)
	server.Unlead()
	eventually(t, "stream ended", func() bool { return strings.Contains(logs.String(), "mining stream ended") })
	server.streams.Wait()
}

// logBuffer keeps log lines.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(line)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func TestWhatIsQueuedIsSentBeforeTheStreamEnds(t *testing.T) {
	server, address := start(t, newFakeNode(1))
	leader := &fakeLeader{address: address}
	server.Lead(leader)
	stream, err := pb.NewMiningServiceClient(dialPlain(t, address)).Mine(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	const messages = 30
	session := leader.opened()[0]
	for i := range uint64(messages) {
		session.reply(coordinator.Acknowledgement{GrantID: i + 1, Nonce: 7, Result: coordinator.Wrong, Message: "wrong"})
	}
	session.end(coordinator.ErrMinerRefused)
	for i := range uint64(messages) {
		response, err := stream.Recv()
		if err != nil || response.GetAcknowledgement().GetGrantId() != i+1 {
			t.Fatalf("message %d: %v, %v", i+1, response, err)
		}
	}
	if _, err := stream.Recv(); err == nil || !strings.Contains(err.Error(), coordinator.ErrMinerRefused.Error()) {
		t.Errorf("the stream ended with %v", err)
	}
}
