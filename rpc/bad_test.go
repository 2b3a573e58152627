package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"raftmine/fsm/pow"
	"raftmine/miner"
	pb "raftmine/rpc/raftminepb"
)

// validRequests are what a miner may say; the bad ones differ from them in one thing.
func validRequests() map[string]*pb.MineRequest {
	out := make(map[string]*pb.MineRequest)
	for name, message := range map[string]miner.Message{
		"report": miner.HeartbeatReply{
			Name: "m", Instance: [16]byte{1}, Threads: 1, Kernel: "generic", HashRate: 1, Held: []uint64{1}, Wanted: pointer(2),
		},
		"answer no":  miner.AnswerNo{GrantID: 1, JobID: 1, Timestamp: 1, Nonces: pow.Range{First: 1, Last: 100}, Receipt: 7},
		"answer yes": miner.AnswerYes{GrantID: 1, JobID: 1, Timestamp: 1, Nonce: 7},
	} {
		request, err := mineRequestTo(message)
		if err != nil {
			panic(err)
		}
		out[name] = request
	}
	return out
}

// checkRefusal wants one clear line.
func checkRefusal(t *testing.T, err error, code codes.Code, says string) {
	t.Helper()
	message := status.Convert(err).Message()
	if status.Code(err) != code || !strings.Contains(message, says) {
		t.Errorf("got %v, want %v that says %q", err, code, says)
	}
	if message == "" || len(message) > 300 || strings.ContainsAny(message, "\r\n") {
		t.Errorf("%q is not one clear line", message)
	}
}

func TestMalformedMessages(t *testing.T) {
	node := newFakeNode(1)
	node.open(t)
	server, address := start(t, node)
	leader := &fakeLeader{address: address}
	server.Lead(leader)
	before := node.state.Digest()
	conn := dialPlain(t, address)

	valid := validRequests()
	report := func(change func(*pb.MinerReport)) *pb.MineRequest {
		return mangled(valid["report"], func(m *pb.MineRequest) { change(m.GetHeartbeatReply().GetMiner()) })
	}
	no := func(change func(*pb.ProcessAnswerNo)) *pb.MineRequest {
		return mangled(valid["answer no"], func(m *pb.MineRequest) { change(m.GetProcessAnswerNo()) })
	}
	yes := func(change func(*pb.ProcessAnswerYes)) *pb.MineRequest {
		return mangled(valid["answer yes"], func(m *pb.MineRequest) { change(m.GetProcessAnswerYes()) })
	}
	mining := []struct {
		name    string
		request *pb.MineRequest
		says    string
	}{
		{"nothing", &pb.MineRequest{}, "carries no message"},
		{"reply of nobody", &pb.MineRequest{Message: &pb.MineRequest_HeartbeatReply{HeartbeatReply: &pb.HeartbeatReply{}}}, "miner"},
		{"reply of a server", &pb.MineRequest{Message: &pb.MineRequest_HeartbeatReply{HeartbeatReply: heartbeatReplyTo(testReport)}}, "miner"},
		{"empty report", report(func(r *pb.MinerReport) { r.Reset() }), "instance_id has 0 bytes"},
		{"short instance", report(func(r *pb.MinerReport) { r.InstanceId = make([]byte, 15) }), "instance_id has 15 bytes"},
		{"long instance", report(func(r *pb.MinerReport) { r.InstanceId = make([]byte, 17) }), "instance_id has 17 bytes"},
		{"long name", report(func(r *pb.MinerReport) { r.Name = strings.Repeat("n", 1000) }), "name has 1000 bytes"},
		{"name of two lines", report(func(r *pb.MinerReport) { r.Name = "a\nb" }), "control character"},
		{"kernel", report(func(r *pb.MinerReport) { r.Kernel = "\x1b[2J" }), "control character"},
		{"threads", report(func(r *pb.MinerReport) { r.Threads = math.MaxUint32 }), "threads"},
		{"NaN", report(func(r *pb.MinerReport) { r.HashRate = math.NaN() }), "hash_rate is NaN"},
		{"infinite", report(func(r *pb.MinerReport) { r.HashRate = math.Inf(1) }), "hash_rate"},
		{"negative rate", report(func(r *pb.MinerReport) { r.HashRate = -1 }), "hash_rate is -1"},
		{"too many held", report(func(r *pb.MinerReport) { r.HeldGrantIds = make([]uint64, maxHeld+1) }), "held_grant_ids"},
		{"too many ranges", report(func(r *pb.MinerReport) { r.ProcessRequest.Ranges = math.MaxUint32 }), "ranges"},
		{"no: empty", no(func(a *pb.ProcessAnswerNo) { a.Reset() }), "grant_id is 0"},
		{"no: job", no(func(a *pb.ProcessAnswerNo) { a.JobId = 0 }), "job_id is 0"},
		{"no: timestamp", no(func(a *pb.ProcessAnswerNo) { a.Timestamp = 0 }), "timestamp is 0"},
		{"no: first above last", no(func(a *pb.ProcessAnswerNo) { a.FirstNonce = 101 }), "101-100 is empty"},
		{"no: from 0", no(func(a *pb.ProcessAnswerNo) { a.FirstNonce = 0 }), "starts at 0"},
		{"no: all nonces", no(func(a *pb.ProcessAnswerNo) { a.FirstNonce, a.LastNonce = 0, math.MaxUint64 }), "starts at 0"},
		{"yes: empty", yes(func(a *pb.ProcessAnswerYes) { a.Reset() }), "grant_id is 0"},
		{"yes: job", yes(func(a *pb.ProcessAnswerYes) { a.JobId = 0 }), "job_id is 0"},
		{"yes: timestamp", yes(func(a *pb.ProcessAnswerYes) { a.Timestamp = 0 }), "timestamp is 0"},
	}
	for _, test := range mining {
		t.Run("mine/"+test.name, func(t *testing.T) {
			stream, err := pb.NewMiningServiceClient(conn).Mine(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(test.request); err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = stream.Recv()
			}
			checkRefusal(t, err, codes.InvalidArgument, test.says)
		})
	}

	peers, cluster := pb.NewPeerServiceClient(conn), pb.NewClusterServiceClient(conn)
	beat := func(change func(*pb.HeartbeatRequest)) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := peers.Heartbeat(ctx, mangled(heartbeatRequestTo(testBeat), change))
			return err
		}
	}
	join := func(change func(*pb.JoinRequest)) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := peers.Join(ctx, mangled(joinRequestTo(testJoin), change))
			return err
		}
	}
	unary := []struct {
		name string
		call func(context.Context) error
		says string
	}{
		{"heartbeat of nobody", beat(func(r *pb.HeartbeatRequest) { r.Reset() }), "server_id is 0"},
		{"heartbeat from nowhere", beat(func(r *pb.HeartbeatRequest) { r.Address = "" }), "host:port"},
		{"port 0", beat(func(r *pb.HeartbeatRequest) { r.Address = "127.0.0.1:0" }), "port of 1 to 65535"},
		{"port 65536", beat(func(r *pb.HeartbeatRequest) { r.Address = "127.0.0.1:65536" }), "port of 1 to 65535"},
		{"bad neighbour", beat(func(r *pb.HeartbeatRequest) { r.ServerAddresses[1] = "x" }), "server_addresses"},
		{"too many neighbours", beat(func(r *pb.HeartbeatRequest) { r.ServerAddresses = make([]string, maxAddresses+1) }), "257 servers"},
		{"far future", beat(func(r *pb.HeartbeatRequest) { r.SentUnixMs = math.MaxUint64 }), "sent_unix_ms"},
		{"long cluster id", beat(func(r *pb.HeartbeatRequest) { r.ClusterId = strings.Repeat("c", 65) }), "cluster_id has 65 bytes"},
		{"join of nobody", join(func(r *pb.JoinRequest) { r.Reset() }), "request_id has 0 bytes"},
		{"zero request id", join(func(r *pb.JoinRequest) { r.RequestId = make([]byte, 16) }), "request_id is all zero"},
		{"join from nowhere", join(func(r *pb.JoinRequest) { r.Address = "nowhere" }), "host:port"},
		{"long path", join(func(r *pb.JoinRequest) { r.DataDir = "/" + strings.Repeat("d", 4096) }), "data_dir has 4097 bytes"},
		{"machine id", join(func(r *pb.JoinRequest) { r.MachineId = "\x00" }), "machine_id"},
		{"boot id", join(func(r *pb.JoinRequest) { r.BootId = "\x00" }), "boot_id"},
		{"version", join(func(r *pb.JoinRequest) { r.SoftwareVersion = strings.Repeat("v", 129) }), "software_version"},
		{"leave of nobody", func(ctx context.Context) error {
			_, err := peers.Leave(ctx, &pb.LeaveRequest{})
			return err
		}, "server_id is 0"},
		{"too many blocks", func(ctx context.Context) error {
			_, err := cluster.ListBlocks(ctx, &pb.ListBlocksRequest{Limit: 1001})
			return err
		}, "limit is 1001"},
		{"long reason", func(ctx context.Context) error {
			_, err := cluster.StopCluster(ctx, &pb.StopClusterRequest{Reason: strings.Repeat("r", 201)})
			return err
		}, "reason has 201 bytes"},
	}
	for _, test := range unary {
		t.Run(test.name, func(t *testing.T) {
			checkRefusal(t, test.call(testContext(t)), codes.InvalidArgument, test.says)
		})
	}

	if n := leader.received(); n != 0 {
		t.Errorf("%d malformed messages reached the coordinator", n)
	}
	if n := node.calls(); n != 0 {
		t.Errorf("%d malformed messages reached the node", n)
	}
	checkUntouched(t, node, before, address)
}

// checkUntouched wants the state as it was, and the server serving.
func checkUntouched(t *testing.T, node *fakeNode, before pow.Hash, address string) {
	t.Helper()
	if node.state.Digest() != before {
		t.Error("the state changed")
	}
	stream, err := pb.NewMiningServiceClient(dialPlain(t, address)).Mine(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(validRequests()["answer yes"]); err != nil {
		t.Fatal(err)
	}
	_, err1 := stream.Recv()
	ack, err2 := stream.Recv()
	if err := errors.Join(err1, err2); err != nil || ack.GetAcknowledgement().GetGrantId() != 1 {
		t.Errorf("afterwards an honest miner gets %v, %v", ack, err)
	}
}

// rawCodec sends bytes as they are, under the name of protobuf.
type rawCodec struct{ encoding.CodecV2 }

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func TestGarbageAndOversizedMessages(t *testing.T) {
	node := newFakeNode(1)
	node.open(t)
	server, address := start(t, node)
	leader := &fakeLeader{address: address}
	server.Lead(leader)
	before := node.state.Digest()
	conn := dialPlain(t, address)
	garbage, huge := bytes.Repeat([]byte{0xff}, 50), make([]byte, MaxMessageSize+1)

	for _, test := range []struct {
		name string
		data []byte
		code codes.Code
		says string
	}{
		{"garbage", garbage, codes.Internal, "unmarshal"},
		{"invalid UTF-8", []byte("\x0a\x05\x12\x03\x0a\x01\xff"), codes.Internal, "UTF-8"}, // a report's name
		{"oversized", huge, codes.ResourceExhausted, fmt.Sprint(MaxMessageSize)},
	} {
		t.Run("mine/"+test.name, func(t *testing.T) {
			stream, err := conn.NewStream(testContext(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
				pb.MiningService_Mine_FullMethodName, grpc.ForceCodecV2(rawCodec{}))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.SendMsg(&test.data); err != nil {
				t.Fatal(err)
			}
			for err == nil {
				var ignored []byte
				err = stream.RecvMsg(&ignored)
			}
			checkRefusal(t, err, test.code, test.says)
		})
		t.Run("join/"+test.name, func(t *testing.T) {
			code := test.code
			if test.name == "invalid UTF-8" {
				code = codes.InvalidArgument // here these bytes are an id that is too short
			}
			var reply []byte
			err := conn.Invoke(testContext(t), pb.PeerService_Join_FullMethodName, &test.data, &reply,
				grpc.ForceCodecV2(rawCodec{}))
			checkRefusal(t, err, code, "")
		})
	}
	t.Run("not HTTP/2", func(t *testing.T) {
		for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + string(huge), "\x00\x01"} {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write([]byte(text)) // the server may have hung up already
			_ = conn.Close()
		}
	})
	if n := leader.received() + node.calls(); n != 0 {
		t.Errorf("%d bad messages came through", n)
	}
	checkUntouched(t, node, before, address)
}
