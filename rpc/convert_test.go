package rpc

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"raftmine/fsm"
	"raftmine/fsm/pow"
	"raftmine/miner"
	"raftmine/raftnode"
	"raftmine/raftnode/coordinator"
	pb "raftmine/rpc/raftminepb"
)

var (
	testReport = raftnode.ServerReport{
		ClusterID: "c", ServerID: 2, Address: "127.0.0.1:7002", Term: 3, LeaderID: 1, ComputedLeaderID: 4, LastIndex: 5,
		AppliedIndex: 6, DataDir: "/data/2", Host: fsm.Host{MachineID: "machine", BootID: "boot"}, Stopping: true,
	}
	testJoinReply = raftnode.JoinReply{
		ClusterID: "c", ServerID: 3, Servers: []raftnode.ServerAddress{{ServerID: 1, Address: "127.0.0.1:7001"}},
	}
	testBeat = raftnode.HeartbeatRequest{
		ClusterID: "c", ServerID: 1, Address: "127.0.0.1:7001", Term: 3, LeaderID: 1, SentUnixMilli: 1_790_000_000_000,
		ServerAddresses: []string{"127.0.0.1:7001", "[::1]:7002", "host.example:7003"},
	}
	testJoin = raftnode.JoinRequest{
		RequestID: fsm.ID{1, 2, 3}, Address: "127.0.0.1:7003", DataDir: "/data/3",
		Host: fsm.Host{MachineID: "machine", BootID: "boot"}, SoftwareVersion: "v1",
	}
	testLeave = raftnode.LeaveRequest{ClusterID: "c", ServerID: 2}
	testBlock = Block{
		Sequence: 4, Height: 3, Hash: pow.Hash{1}, Previous: pow.Hash{2}, Nonce: 5, Timestamp: 6, Bits: 24, Miner: "m",
		Verdict: fsm.VerdictStale, Detail: "stale", SettledAt: 7, Index: 8,
	}
)

func pointer[T any](v T) *T { return &v }

// TestMinerMessagesKeepEveryField goes from a miner's message to the coordinator's twin of it.
func TestMinerMessagesKeepEveryField(t *testing.T) {
	nonces := pow.Range{First: 1, Last: math.MaxUint64}
	tests := []struct {
		sent miner.Message
		want coordinator.Message
	}{
		{
			miner.HeartbeatReply{
				Name: "m-1", Instance: [16]byte{1, 15: 2}, Threads: 3, Kernel: "generic", SoftwareVersion: "v1",
				HashRate: 4.5e6, Hashes: 6, Held: []uint64{7, 8}, Wanted: pointer(2), Leaving: true,
			},
			coordinator.HeartbeatReply{
				Name: "m-1", Instance: fsm.ID{1, 15: 2}, Threads: 3, Kernel: "generic", SoftwareVersion: "v1",
				HashRate: 4.5e6, Hashes: 6, Held: []uint64{7, 8}, Wanted: pointer(2), Leaving: true,
			},
		},
		{miner.HeartbeatReply{Name: "m", Wanted: pointer(0)}, coordinator.HeartbeatReply{Name: "m", Wanted: pointer(0)}},
		{miner.HeartbeatReply{Name: "m"}, coordinator.HeartbeatReply{Name: "m"}},
		{
			miner.AnswerNo{GrantID: 1, JobID: 2, Timestamp: 3, Nonces: nonces, Receipt: 4},
			coordinator.AnswerNo{GrantID: 1, JobID: 2, Timestamp: 3, Nonces: nonces, Receipt: 4},
		},
		{
			miner.AnswerYes{GrantID: 1, JobID: 2, Timestamp: 3, Nonce: 4},
			coordinator.AnswerYes{GrantID: 1, JobID: 2, Timestamp: 3, Nonce: 4},
		},
	}
	for _, test := range tests {
		wire, err := mineRequestTo(test.sent)
		if err != nil {
			t.Fatal(err)
		}
		got, err := mineRequestFrom(overWire(t, wire))
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("sent %+v\n got %+v, %v\nwant %+v", test.sent, got, err, test.want)
		}
	}
}

// TestLeaderMessagesKeepEveryField goes from the coordinator's message to the miner's twin of it.
func TestLeaderMessagesKeepEveryField(t *testing.T) {
	tests := []struct {
		sent coordinator.Message
		want miner.Message
	}{
		{
			coordinator.HeartbeatRequest{
				ClusterID: "c", ServerID: 1, Address: "127.0.0.1:7001", Term: 2, SentUnixMilli: 3,
				ServerAddresses: []string{"127.0.0.1:7001"},
			},
			miner.HeartbeatRequest{ServerID: 1, Term: 2, ServerAddresses: []string{"127.0.0.1:7001"}},
		},
		{
			coordinator.Process{
				GrantID: 1, JobID: 2, Work: pow.Work{Previous: pow.Hash{3}, Timestamp: 4, Bits: 256},
				Nonces: pow.Range{First: 5, Last: math.MaxUint64}, ChunkSize: 6,
			},
			miner.Process{
				GrantID: 1, JobID: 2, Work: pow.Work{Previous: pow.Hash{3}, Timestamp: 4, Bits: 256},
				Nonces: pow.Range{First: 5, Last: math.MaxUint64}, ChunkSize: 6,
			},
		},
		{coordinator.Interrupt{JobID: 1, Reason: coordinator.InterruptSolved}, miner.Interrupt{JobID: 1, Reason: "solved"}},
		{coordinator.Interrupt{JobID: 1, Reason: coordinator.InterruptStale}, miner.Interrupt{JobID: 1, Reason: "stale"}},
		{
			coordinator.Interrupt{JobID: 1, Reason: coordinator.InterruptReleased, GrantIDs: []uint64{2, 3}},
			miner.Interrupt{JobID: 1, Reason: "released", GrantIDs: []uint64{2, 3}},
		},
		{
			coordinator.Acknowledgement{GrantID: 1, Nonce: 2, Result: coordinator.Committed},
			miner.Acknowledgement{GrantID: 1, Nonce: 2, Result: miner.ResultCommitted},
		},
		{
			coordinator.Acknowledgement{GrantID: 1, Solution: true, Result: coordinator.Duplicate, Message: "again"},
			miner.Acknowledgement{GrantID: 1, Solution: true, Result: miner.ResultDuplicate, Message: "again"},
		},
		{
			coordinator.Acknowledgement{GrantID: 1, Nonce: 2, Result: coordinator.Stale, Message: "two\nlines \xff"},
			miner.Acknowledgement{GrantID: 1, Nonce: 2, Result: miner.ResultStale, Message: "two lines \uFFFD"},
		},
		{
			coordinator.Acknowledgement{GrantID: 1, Nonce: 2, Result: coordinator.Released},
			miner.Acknowledgement{GrantID: 1, Nonce: 2, Result: miner.ResultReleased},
		},
		{
			coordinator.Acknowledgement{GrantID: 1, Nonce: 2, Result: coordinator.Wrong},
			miner.Acknowledgement{GrantID: 1, Nonce: 2, Result: miner.ResultWrong},
		},
	}
	for _, test := range tests {
		wire, err := mineResponseTo(test.sent)
		if err != nil {
			t.Fatal(err)
		}
		got, err := mineResponseFrom(overWire(t, wire))
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("sent %+v\n got %+v, %v\nwant %+v", test.sent, got, err, test.want)
		}
	}
}

// TestEnumerationsMeanTheSameOnTheWire guards the conversions that are casts.
func TestEnumerationsMeanTheSameOnTheWire(t *testing.T) {
	for value, word := range interruptReasons {
		if got := pb.InterruptReason(value).String(); value > 0 && got != "INTERRUPT_REASON_"+strings.ToUpper(word) {
			t.Errorf("interrupt reason %q is %s on the wire", word, got)
		}
	}
	for value, word := range answerResults {
		if got := pb.AnswerResult(value).String(); value > 0 && got != "ANSWER_RESULT_"+strings.ToUpper(word) {
			t.Errorf("answer result %q is %s on the wire", word, got)
		}
	}
	for v := fsm.VerdictSuccess; v <= fsm.VerdictUnknown; v++ {
		if got := pb.Verdict(v).String(); got != "VERDICT_"+strings.ToUpper(v.String()) {
			t.Errorf("verdict %v is %s on the wire", v, got)
		}
	}
	for p := fsm.PhaseOpen; p <= fsm.PhaseClosed; p++ {
		if got := wordOf(phases[:], p); got != p.String() {
			t.Errorf("phase %v is %q on the wire", p, got)
		}
	}
	for s := fsm.JobOpened; s <= fsm.JobClosed; s++ {
		if got := wordOf(jobSteps[:], s); got != s.String() {
			t.Errorf("job step %v is %q on the wire", s, got)
		}
	}
	if len(pb.InterruptReason_name) != len(interruptReasons) || len(pb.AnswerResult_name) != len(answerResults) ||
		len(pb.Verdict_name) != int(fsm.VerdictUnknown)+1 {
		t.Error("the wire has values that the tables lack")
	}
}

func TestPeerMessagesKeepEveryField(t *testing.T) {
	beat, err := heartbeatRequestFrom(overWire(t, heartbeatRequestTo(testBeat)))
	if err != nil || !reflect.DeepEqual(beat, testBeat) {
		t.Errorf("heartbeat request %+v, %v", beat, err)
	}
	report, err := heartbeatReplyFrom(overWire(t, heartbeatReplyTo(testReport)))
	if err != nil || report != testReport {
		t.Errorf("server report %+v, %v", report, err)
	}
	join, err := joinRequestFrom(overWire(t, joinRequestTo(testJoin)))
	if err != nil || join != testJoin {
		t.Errorf("join request %+v, %v", join, err)
	}
	reply, err := joinResponseFrom(overWire(t, joinResponseTo(testJoinReply)))
	if err != nil || !reflect.DeepEqual(reply, testJoinReply) {
		t.Errorf("join reply %+v, %v", reply, err)
	}
	leave, err := leaveRequestFrom(overWire(t, leaveRequestTo(testLeave)))
	if err != nil || leave != testLeave {
		t.Errorf("leave request %+v, %v", leave, err)
	}
}

func TestEventsKeepEveryField(t *testing.T) {
	for _, event := range []Event{
		StartEvent{ServerID: 1, AfterBlock: 2}, LeaderEvent{ID: 1, Term: 2}, BlockEvent{Block: testBlock},
		ServerEvent{ID: 1, Up: true, Reason: "back"}, HeartbeatEvent{From: 1, To: 2, Answered: true},
		HeartbeatEvent{From: 1, ToMiner: "m"}, MinerEvent{Name: "m", What: "refused", Message: "three"},
		JobEvent{ID: 1, Height: 2, Previous: pow.Hash{3}, Bits: 4, Timestamp: 5, What: fsm.JobRolled}, LaggedEvent{Dropped: 3},
	} {
		told := Watched{UnixMilli: 9, Event: event}
		wire, err := watchedTo(told)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := watchedFrom(overWire(t, wire)); err != nil || got != told {
			t.Errorf("told %+v, got %+v, %v", told, got, err)
		}
	}
	if _, err := watchedTo(Watched{Event: blockMark{}}); err == nil {
		t.Error("a mark is not an event for the wire, but was taken")
	}
}

func equalStatus(a, b Status) bool { return reflect.DeepEqual(a, b) }

func TestStatusKeepsEveryField(t *testing.T) {
	want := Status{
		ClusterID: "c", ServerID: 1, Term: 2, LeaderID: 3, ComputedLeaderID: 4, AppliedIndex: 5, StateDigest: pow.Hash{6},
		Servers: []ServerStatus{{ID: 1, Address: "a:1", DataDir: "/d", Up: true, Voter: true, Member: true, Leader: true}},
		Job: &JobStatus{
			ID: 1, Height: 2, Previous: pow.Hash{3}, Bits: 4, Timestamp: 5, Round: 6, Nonces: pow.Range{First: 7, Last: 8},
			ChunkSize: 9, Chunks: fsm.Counts{Total: 10, Pending: 5, Granted: 3, Finished: 2}, Phase: fsm.PhaseSubmitting,
		},
		Miners: []MinerStatus{{
			Name: "m", Connected: true, HashRate: 1.5, ChunksFinished: 2, Solutions: 3, Strikes: 1, Threads: 4, Kernel: "k", Refused: "r",
		}},
		Blocks: 7, Voters: 8, ClusterStopped: true,
		Coordinator:     &CoordinatorStatus{WebService: "w", WebServiceError: "e", HashRate: 9.5},
		SoftwareVersion: "v", HistoryMissing: 7,
	}
	if got, err := statusFrom(overWire(t, statusTo(want))); err != nil || !equalStatus(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

// overWire encodes and decodes, so that nothing passes by sharing memory.
func overWire[M proto.Message](t *testing.T, message M) M {
	t.Helper()
	data, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	out := message.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	return out.(M)
}

// mangled returns a copy of message with one thing changed.
func mangled[M proto.Message](message M, change func(M)) M {
	out := proto.Clone(message).(M)
	change(out)
	return out
}

// TestClientRefusesWhatAServerMustNotSay is the client's half of bad input; the server's is TestMalformedMessages.
func TestClientRefusesWhatAServerMustNotSay(t *testing.T) {
	response := func(message coordinator.Message) *pb.MineResponse {
		wire, err := mineResponseTo(message)
		if err != nil {
			t.Fatal(err)
		}
		return wire
	}
	process := response(coordinator.Process{
		GrantID: 1, JobID: 2, Work: pow.Work{Timestamp: 4, Bits: 20}, Nonces: pow.Range{First: 5, Last: 6}, ChunkSize: 6,
	})
	ack := response(coordinator.Acknowledgement{GrantID: 1, Nonce: 2, Result: coordinator.Committed})
	interrupt := response(coordinator.Interrupt{JobID: 1, Reason: coordinator.InterruptSolved})
	miningTests := map[string]*pb.MineResponse{
		"nothing":          {},
		"empty heartbeat":  {Message: &pb.MineResponse_HeartbeatRequest{}},
		"empty process":    {Message: &pb.MineResponse_Process{}},
		"empty interrupt":  {Message: &pb.MineResponse_ProcessInterrupt{}},
		"empty ack":        {Message: &pb.MineResponse_Acknowledgement{}},
		"short hash":       mangled(process, func(m *pb.MineResponse) { m.GetProcess().PreviousHash = make([]byte, 31) }),
		"bits":             mangled(process, func(m *pb.MineResponse) { m.GetProcess().Bits = 257 }),
		"no grant":         mangled(process, func(m *pb.MineResponse) { m.GetProcess().GrantId = 0 }),
		"no job":           mangled(process, func(m *pb.MineResponse) { m.GetProcess().JobId = 0 }),
		"no timestamp":     mangled(process, func(m *pb.MineResponse) { m.GetProcess().Timestamp = 0 }),
		"nonce 0":          mangled(process, func(m *pb.MineResponse) { m.GetProcess().FirstNonce = 0 }),
		"empty range":      mangled(process, func(m *pb.MineResponse) { m.GetProcess().FirstNonce = 7 }),
		"chunk size":       mangled(process, func(m *pb.MineResponse) { m.GetProcess().ChunkSize = 0 }),
		"unknown reason":   mangled(interrupt, func(m *pb.MineResponse) { m.GetProcessInterrupt().Reason = 4 }),
		"negative reason":  mangled(interrupt, func(m *pb.MineResponse) { m.GetProcessInterrupt().Reason = -1 }),
		"no reason":        mangled(interrupt, func(m *pb.MineResponse) { m.GetProcessInterrupt().Reason = 0 }),
		"no result":        mangled(ack, func(m *pb.MineResponse) { m.GetAcknowledgement().Result = 0 }),
		"unknown result":   mangled(ack, func(m *pb.MineResponse) { m.GetAcknowledgement().Result = 6 }),
		"ack of nothing":   mangled(ack, func(m *pb.MineResponse) { m.GetAcknowledgement().Answer = nil }),
		"ack of two lines": mangled(ack, func(m *pb.MineResponse) { m.GetAcknowledgement().Message = "a\nb" }),
	}
	for name, wire := range miningTests {
		if got, err := mineResponseFrom(wire); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %+v, %v, want ErrMalformed", name, got, err)
		}
	}

	status := statusTo(Status{Job: &JobStatus{Nonces: pow.Range{First: 1, Last: 2}, Phase: fsm.PhaseOpen}})
	statusTests := map[string]*pb.GetStatusResponse{
		"nothing":       {},
		"phase":         mangled(status, func(m *pb.GetStatusResponse) { m.Job.Phase = "ajar" }),
		"no phase":      mangled(status, func(m *pb.GetStatusResponse) { m.Job.Phase = "" }),
		"job's hash":    mangled(status, func(m *pb.GetStatusResponse) { m.Job.PreviousHash = nil }),
		"job's bits":    mangled(status, func(m *pb.GetStatusResponse) { m.Job.Bits = math.MaxUint32 }),
		"job's nonces":  mangled(status, func(m *pb.GetStatusResponse) { m.Job.LastNonce = 0 }),
		"digest length": mangled(status, func(m *pb.GetStatusResponse) { m.StateDigest = make([]byte, 33) }),
	}
	for name, wire := range statusTests {
		if got, err := statusFrom(wire); !errors.Is(err, ErrMalformed) {
			t.Errorf("status, %s: got %+v, %v, want ErrMalformed", name, got, err)
		}
	}

	block := blockTo(testBlock)
	blockTests := map[string]*pb.Block{
		"nothing":  {},
		"verdict":  mangled(block, func(b *pb.Block) { b.Verdict = 5 }),
		"sequence": mangled(block, func(b *pb.Block) { b.Sequence = 0 }),
		"hash":     mangled(block, func(b *pb.Block) { b.Hash = nil }),
		"previous": mangled(block, func(b *pb.Block) { b.PreviousHash = nil }),
		"bits":     mangled(block, func(b *pb.Block) { b.Bits = 300 }),
	}
	for name, wire := range blockTests {
		if got, err := blockFrom(wire); !errors.Is(err, ErrMalformed) {
			t.Errorf("block, %s: got %+v, %v, want ErrMalformed", name, got, err)
		}
		event := &pb.WatchResponse{Event: &pb.WatchResponse_Block{Block: wire}}
		if got, err := watchedFrom(event); !errors.Is(err, ErrMalformed) {
			t.Errorf("watched block, %s: got %+v, %v, want ErrMalformed", name, got, err)
		}
	}
	if _, err := watchedFrom(&pb.WatchResponse{Event: &pb.WatchResponse_Job{}}); !errors.Is(err, ErrMalformed) {
		t.Errorf("empty job event: %v, want ErrMalformed", err)
	}
	if got, err := watchedFrom(&pb.WatchResponse{UnixMs: 1}); err != nil || got.Event != nil {
		t.Errorf("an event of a newer version: %+v, %v, want neither", got, err)
	}

	if _, err := heartbeatReplyFrom(&pb.HeartbeatReply{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("heartbeat reply of nobody: %v, want ErrMalformed", err)
	}
	joined := joinResponseTo(testJoinReply)
	joinTests := map[string]*pb.JoinResponse{
		"nothing":     {},
		"no cluster":  mangled(joined, func(m *pb.JoinResponse) { m.ClusterId = "" }),
		"no id":       mangled(joined, func(m *pb.JoinResponse) { m.ServerId = 0 }),
		"other's id":  mangled(joined, func(m *pb.JoinResponse) { m.Servers[0].ServerId = 0 }),
		"no address":  mangled(joined, func(m *pb.JoinResponse) { m.Servers[0].Address = "" }),
		"port 0":      mangled(joined, func(m *pb.JoinResponse) { m.Servers[0].Address = "h:0" }),
		"too many":    mangled(joined, func(m *pb.JoinResponse) { m.Servers = make([]*pb.ServerAddress, maxAddresses+1) }),
		"nil servers": mangled(joined, func(m *pb.JoinResponse) { m.Servers = []*pb.ServerAddress{nil} }),
	}
	for name, wire := range joinTests {
		if got, err := joinResponseFrom(wire); !errors.Is(err, ErrMalformed) {
			t.Errorf("join response, %s: got %+v, %v, want ErrMalformed", name, got, err)
		}
	}
}

// FuzzMineRequest: no bytes make the server panic, and what it takes keeps its meaning on the way out.
func FuzzMineRequest(f *testing.F) {
	for _, request := range validRequests() {
		data, err := proto.Marshal(request)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var request pb.MineRequest
		if proto.Unmarshal(data, &request) != nil {
			return
		}
		message, err := mineRequestFrom(&request)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || strings.ContainsAny(err.Error(), "\r\n") {
				t.Fatalf("refused with %q, want one line that is ErrMalformed", err)
			}
			return
		}
		var back miner.Message
		switch m := message.(type) {
		case coordinator.HeartbeatReply:
			back = miner.HeartbeatReply{
				Name: m.Name, Instance: m.Instance, Threads: m.Threads, Kernel: m.Kernel, SoftwareVersion: m.SoftwareVersion,
				HashRate: m.HashRate, Hashes: m.Hashes, Held: m.Held, Wanted: m.Wanted, Leaving: m.Leaving,
			}
		case coordinator.AnswerNo:
			back = miner.AnswerNo(m)
		case coordinator.AnswerYes:
			back = miner.AnswerYes(m)
		}
		wire, err := mineRequestTo(back)
		if err != nil {
			t.Fatal(err)
		}
		again, err := mineRequestFrom(wire)
		if err != nil || !reflect.DeepEqual(again, message) {
			t.Fatalf("%+v became %+v, %v", message, again, err)
		}
	})
}

// FuzzMineResponse: no bytes make a miner panic.
func FuzzMineResponse(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x12, 0x02, 0x08, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		var response pb.MineResponse
		if proto.Unmarshal(data, &response) != nil {
			return
		}
		message, err := mineResponseFrom(&response)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("refused with %v, want ErrMalformed", err)
			}
			return
		}
		if process, ok := message.(miner.Process); ok {
			if process.Nonces.Validate() != nil || process.Work.Validate() != nil || process.ChunkSize == 0 {
				t.Fatalf("took %+v", process)
			}
		}
	})
}
