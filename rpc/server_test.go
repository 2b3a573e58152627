package rpc

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	"raftmine/fsm"
	"raftmine/raftnode/coordinator"
	pb "raftmine/rpc/raftminepb"
)

func healthOf(t *testing.T, conn *grpc.ClientConn, service string) healthpb.HealthCheckResponse_ServingStatus {
	t.Helper()
	reply, err := healthpb.NewHealthClient(conn).Check(testContext(t), &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		t.Fatal(err)
	}
	return reply.GetStatus()
}

func TestMiningIsHealthyBetweenLeadAndUnleadAlone(t *testing.T) {
	server, address := start(t, newFakeNode(1))
	conn := dialPlain(t, address)
	const serving, not = healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING
	steps := []struct {
		name string
		do   func()
		want healthpb.HealthCheckResponse_ServingStatus
	}{
		{"at first", func() {}, not},
		{"lead", func() { server.Lead(&fakeLeader{}) }, serving},
		{"lead again", func() { server.Lead(&fakeLeader{}) }, serving},
		{"unlead", server.Unlead, not},
		{"unlead again", server.Unlead, not},
		{"the next term", func() { server.Lead(&fakeLeader{}) }, serving},
	}
	for _, step := range steps {
		step.do()
		if got := healthOf(t, conn, MiningService); got != step.want {
			t.Errorf("%s: mining is %v, want %v", step.name, got, step.want)
		}
		if got := healthOf(t, conn, ""); got != serving {
			t.Errorf("%s: the server is %v, want %v", step.name, got, serving)
		}
	}
}

// TestOrdinaryClientFindsTheLeader uses nothing of ours on the client's side: a resolver with three addresses, round robin
// and the standard health check.
func TestOrdinaryClientFindsTheLeader(t *testing.T) {
	var servers []*Server
	var leaders []*fakeLeader
	builder := manual.NewBuilderWithScheme("test")
	var state resolver.State
	for id := range uint64(3) {
		server, address := start(t, newFakeNode(id+1))
		servers = append(servers, server)
		leaders = append(leaders, &fakeLeader{address: address})
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
	}
	builder.InitialState(state)
	conn := dialPlain(t, "test:///", grpc.WithResolvers(builder), grpc.WithDefaultServiceConfig(
		`{"loadBalancingConfig":[{"round_robin":{}}],"healthCheckConfig":{"serviceName":"raftmine.v1.MiningService"}}`))
	client := pb.NewMiningServiceClient(conn)

	for turn, leading := range []int{1, 2, 0} {
		servers[leading].Lead(leaders[leading])
		var stream grpc.BidiStreamingClient[pb.MineRequest, pb.MineResponse]
		var hello *pb.MineResponse
		// The news that the last leader was may be on the way still: then the call is UNAVAILABLE, and made again.
		eventually(t, "the leader is found", func() (found bool) {
			var err error
			if stream, err = client.Mine(testContext(t), grpc.WaitForReady(true)); err == nil {
				hello, err = stream.Recv()
			}
			if err != nil && status.Code(err) != codes.Unavailable {
				t.Fatal(err)
			}
			return err == nil
		})
		if got := hello.GetHeartbeatRequest().GetAddress(); got != leaders[leading].address {
			t.Errorf("turn %d: reached %s, want the leader at %s", turn, got, leaders[leading].address)
		}
		servers[leading].Unlead()
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("turn %d: the stream of a leader that was ended with %v, want UNAVAILABLE", turn, err)
		}
	}
}

func TestUnleadEndsEveryStreamAndSession(t *testing.T) {
	server, address := start(t, newFakeNode(1))
	leader := &fakeLeader{address: address}
	server.Lead(leader)
	client := pb.NewMiningServiceClient(dialPlain(t, address))
	var streams []grpc.BidiStreamingClient[pb.MineRequest, pb.MineResponse]
	for range 20 {
		stream, err := client.Mine(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	server.Unlead()
	for _, stream := range streams {
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("stream ended with %v, want UNAVAILABLE", err)
		}
	}
	for _, session := range leader.opened() {
		eventually(t, "session closed", session.isClosed)
	}
	if stream, err := client.Mine(testContext(t)); err == nil {
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("a stream to a server that does not lead ended with %v, want UNAVAILABLE", err)
		}
	}
}

func TestFollowerNamesTheLeaderToMiners(t *testing.T) {
	_, address := start(t, newFakeNode(2))
	stream, err := pb.NewMiningServiceClient(dialPlain(t, address)).Mine(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "server 1 at 127.0.0.1:7001") {
		t.Errorf("got %v, want UNAVAILABLE that names the leader", err)
	}
}

func TestSessionEndReachesTheMinerAfterItsAcknowledgements(t *testing.T) {
	server, address := start(t, newFakeNode(1))
	const acks = 30 // so many that the end of the session is known while they are sent
	server.Lead(&fakeLeader{address: address, answer: func(s *fakeSession, m coordinator.Message) error {
		if answer, ok := m.(coordinator.AnswerYes); ok {
			for range acks {
				s.outgoing <- coordinator.Acknowledgement{
					GrantID: answer.GrantID, Solution: true, Nonce: answer.Nonce, Result: coordinator.Wrong, Message: "third",
				}
			}
			s.end(coordinator.ErrMinerRefused)
			return coordinator.ErrMinerRefused
		}
		return nil
	}})
	client := pb.NewMiningServiceClient(dialPlain(t, address))
	for range 10 {
		stream, err := client.Mine(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(validRequests()["answer yes"]); err != nil {
			t.Fatal(err)
		}
		for i := range acks {
			ack, err := stream.Recv()
			if err != nil || ack.GetAcknowledgement().GetResult() != pb.AnswerResult_ANSWER_RESULT_WRONG {
				t.Fatalf("got %v, %v, want acknowledgement %d", ack, err, i)
			}
		}
		if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("stream ended with %v, want PERMISSION_DENIED", err)
		}
	}
}

func TestHalfClosedStreamEndsWithoutError(t *testing.T) {
	server, address := start(t, newFakeNode(1))
	leader := &fakeLeader{address: address}
	server.Lead(leader)
	stream, err := pb.NewMiningServiceClient(dialPlain(t, address)).Mine(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stream.Send(validRequests()["answer yes"]), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	var got []*pb.MineResponse
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, response)
	}
	if len(got) != 2 || got[1].GetAcknowledgement() == nil {
		t.Errorf("got %v, want a heartbeat and the acknowledgement", got)
	}
	eventually(t, "session closed", leader.opened()[0].isClosed)
}

func TestReflectionListsTheServices(t *testing.T) {
	_, address := start(t, newFakeNode(1))
	stream, err := reflectionpb.NewServerReflectionClient(dialPlain(t, address)).ServerReflectionInfo(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{},
	}); err != nil {
		t.Fatal(err)
	}
	reply, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, service := range reply.GetListServicesResponse().GetService() {
		got = append(got, service.GetName())
	}
	slices.Sort(got)
	want := []string{
		"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
		"raftmine.v1.ClusterService", "raftmine.v1.MiningService", "raftmine.v1.PeerService",
	}
	if !slices.Equal(got, want) {
		t.Errorf("services %v, want %v", got, want)
	}
}

func TestStopEndsOpenStreamsAtOnce(t *testing.T) {
	node := newFakeNode(1)
	node.open(t)
	server, address := start(t, node)
	server.Lead(&fakeLeader{address: address})
	conn := dialPlain(t, address)
	ctx := testContext(t)
	mine, err1 := pb.NewMiningServiceClient(conn).Mine(ctx)
	watch, err2 := pb.NewClusterServiceClient(conn).Watch(ctx, &pb.WatchRequest{})
	watchHealth, err3 := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{Service: MiningService})
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	_, err1 = mine.Recv()
	_, err2 = watch.Recv()
	_, err3 = watchHealth.Recv()
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	server.Stop(ctx)
	if took := time.Since(begun); took > patience/2 {
		t.Errorf("stop took %v: it waited for its deadline", took)
	}
	for name, next := range map[string]func() error{
		"mine":   func() error { _, err := mine.Recv(); return err },
		"watch":  func() error { _, err := watch.Recv(); return err },
		"health": func() error { _, err := watchHealth.Recv(); return err },
	} {
		err := next()
		for err == nil {
			err = next()
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s ended with %v, want UNAVAILABLE", name, err)
		}
	}
	server.Lead(&fakeLeader{}) // too late: must not serve again
	if server.currentTerm() != nil {
		t.Error("a stopped server leads")
	}
}

func TestStopBreaksOffWhatDoesNotEnd(t *testing.T) {
	node := newFakeNode(1)
	server, address := start(t, node)
	held := make(chan struct{})
	entered := make(chan struct{})
	server.Lead(&fakeLeader{address: address, answer: func(*fakeSession, coordinator.Message) error {
		close(entered)
		<-held
		return nil
	}})
	stream, err := pb.NewMiningServiceClient(dialPlain(t, address)).Mine(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(validRequests()["answer yes"]); err != nil {
		t.Fatal(err)
	}
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	stopped := make(chan struct{})
	go func() { server.Stop(ctx); close(stopped) }()
	for err == nil {
		_, err = stream.Recv()
	}
	select {
	case <-stopped:
		t.Error("stop returned while a message was still handled")
	default:
	}
	close(held)
	<-stopped
}

func TestPanicEndsItsCallAlone(t *testing.T) {
	node := newFakeNode(1)
	_, address := start(t, node)
	client := pb.NewClusterServiceClient(dialPlain(t, address))
	node.mu.Lock()
	node.panicked = true
	node.mu.Unlock()
	_, err := client.GetStatus(testContext(t), &pb.GetStatusRequest{})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "status of nothing") {
		t.Errorf("got %v, want INTERNAL that tells nothing of the inside", err)
	}
	node.mu.Lock()
	node.panicked = false
	node.mu.Unlock()
	if _, err := client.GetStatus(testContext(t), &pb.GetStatusRequest{}); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

func TestStatusIsOfTheStateAndTheLeadersMemory(t *testing.T) {
	node := newFakeNode(1)
	node.open(t)
	node.block(t, 1, false)
	server, address := start(t, node)
	client := NewClusterClient()
	defer client.Close()

	follower, err := client.Status(testContext(t), address)
	if err != nil {
		t.Fatal(err)
	}
	if follower.Coordinator != nil || follower.Miners[0].Connected {
		t.Errorf("a server that does not lead says %+v of miners", follower.Coordinator)
	}
	server.Lead(&fakeLeader{status: coordinator.Status{
		WebService: "http://w", WebServiceError: "gone\nsince\xff noon", HashRate: 5e6,
		Miners: []coordinator.MinerStatus{
			{Name: "a", Connected: true, Threads: 1}, {Name: "m", Connected: true, HashRate: 5e6, Threads: 2, Kernel: "generic"},
		},
	}})
	got, err := client.Status(testContext(t), address)
	if err != nil {
		t.Fatal(err)
	}
	if want := server.Status(); !equalStatus(got, want) {
		t.Errorf("over the wire: %+v\n      at home: %+v", got, want)
	}
	if got.ClusterID != "c" || got.ServerID != 1 || got.LeaderID != 1 || got.ComputedLeaderID != 1 || got.Term != 3 ||
		got.AppliedIndex != 2 || got.StateDigest != node.state.Digest() || got.Blocks != 1 || got.Voters != 1 ||
		got.SoftwareVersion != "test" {
		t.Errorf("status %+v", got)
	}
	wantServers := []ServerStatus{
		{ID: 1, Address: "127.0.0.1:7001", DataDir: "/data/1", Up: true, Voter: true, Member: true, Leader: true},
		{ID: 2, Address: "127.0.0.1:7002", DataDir: "/data/2", Member: true},
	}
	if !slices.Equal(got.Servers, wantServers) {
		t.Errorf("servers %+v, want %+v", got.Servers, wantServers)
	}
	wantMiners := []MinerStatus{
		{Name: "a", Connected: true, Threads: 1},
		{Name: "m", Connected: true, HashRate: 5e6, Threads: 2, Kernel: "generic", Solutions: 1},
	}
	if !slices.Equal(got.Miners, wantMiners) {
		t.Errorf("miners %+v, want %+v", got.Miners, wantMiners)
	}
	if got.Job == nil || got.Job.Phase != fsm.PhaseClosed || got.Job.Chunks.Total != 10 {
		t.Errorf("job %+v", got.Job)
	}
	if c := got.Coordinator; c == nil || c.WebService != "http://w" || c.HashRate != 5e6 ||
		c.WebServiceError != "gone since\uFFFD noon" {
		t.Errorf("coordinator %+v", got.Coordinator)
	}
}

// TestStatusOfAnUnappliedLogHasItsVoters: the server table comes out of the log, of which nothing is applied without a leader.
func TestStatusOfAnUnappliedLogHasItsVoters(t *testing.T) {
	node := newFakeNode(2)
	node.status.LeaderID, node.status.Voters, node.status.VoterAddresses = 0, []uint64{1, 2}, []string{"a:1", "b:2"}
	server, _ := start(t, node)
	want := []ServerStatus{{ID: 1, Address: "a:1", Voter: true}, {ID: 2, Address: "b:2", Voter: true}}
	if got := server.Status().Servers; !slices.Equal(got, want) {
		t.Errorf("servers %+v, want %+v", got, want)
	}
}

func TestStatusSaysWhoIsRefused(t *testing.T) {
	node := newFakeNode(1)
	node.open(t)
	for range fsm.MaxStrikes {
		node.apply(t, false, fsm.Strike{Miner: "liar", Reason: "lazy"})
	}
	server, _ := start(t, node)
	refused := func() (said []string) {
		for _, m := range server.Status().Miners {
			if m.Refused != "" {
				said = append(said, m.Name+": "+m.Refused)
			}
		}
		return said
	}
	node.apply(t, false, fsm.Strike{Miner: "careless", Reason: "wrong"})
	if got := refused(); len(got) != 1 || got[0] != "liar: 3 strikes" {
		t.Errorf("a follower says %v", got)
	}
	server.Lead(&fakeLeader{status: coordinator.Status{Miners: []coordinator.MinerStatus{{Name: "liar", Refused: "lazy"}}}})
	if got := refused(); len(got) != 1 || got[0] != "liar: lazy" {
		t.Errorf("the leader says %v", got)
	}
}
