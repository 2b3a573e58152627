package rpc

import (
	"fmt"

	"raftmine/fsm"
	"raftmine/miner"
	"raftmine/raftnode/coordinator"
	pb "raftmine/rpc/raftminepb"
)

// The two vocabularies of enumerations on the mining stream. Index 0 is the wire's unspecified value.
var (
	interruptReasons = [...]string{
		coordinator.InterruptSolved:   "solved",
		coordinator.InterruptStale:    "stale",
		coordinator.InterruptReleased: "released",
	}
	answerResults = [...]string{
		coordinator.Committed: miner.ResultCommitted,
		coordinator.Duplicate: miner.ResultDuplicate,
		coordinator.Stale:     miner.ResultStale,
		coordinator.Released:  miner.ResultReleased,
		coordinator.Wrong:     miner.ResultWrong,
	}
)

// mineRequestFrom checks what a miner sent. It judges form alone: whether a grant exists is the coordinator's to say.
func mineRequestFrom(request *pb.MineRequest) (coordinator.Message, error) {
	switch m := request.GetMessage().(type) {
	case *pb.MineRequest_HeartbeatReply:
		report := m.HeartbeatReply.GetMiner()
		if report == nil {
			return nil, malformed("HeartbeatReply of a miner must carry miner")
		}
		return minerReportFrom(report)
	case *pb.MineRequest_ProcessAnswerNo:
		answer := m.ProcessAnswerNo
		const name = "ProcessAnswerNo"
		if err := checkGrant(name, answer.GetGrantId(), answer.GetJobId(), answer.GetTimestamp()); err != nil {
			return nil, err
		}
		nonces, err := rangeFrom(name, answer.GetFirstNonce(), answer.GetLastNonce())
		if err != nil {
			return nil, err
		}
		return coordinator.AnswerNo{
			GrantID: answer.GetGrantId(), JobID: answer.GetJobId(), Timestamp: answer.GetTimestamp(),
			Nonces: nonces, Receipt: answer.GetReceiptNonce(),
		}, nil
	case *pb.MineRequest_ProcessAnswerYes:
		answer := m.ProcessAnswerYes
		const name = "ProcessAnswerYes"
		if err := checkGrant(name, answer.GetGrantId(), answer.GetJobId(), answer.GetTimestamp()); err != nil {
			return nil, err
		}
		return coordinator.AnswerYes{
			GrantID: answer.GetGrantId(), JobID: answer.GetJobId(), Timestamp: answer.GetTimestamp(),
			Nonce: answer.GetNonce(),
		}, nil
	}
	return nil, malformed("MineRequest carries no message")
}

// checkGrant wants what every answer and Process names.
func checkGrant(message string, grantID, jobID, timestamp uint64) error {
	if err := checkPositive(message, "grant_id", grantID); err != nil {
		return err
	}
	if err := checkPositive(message, "job_id", jobID); err != nil {
		return err
	}
	return checkPositive(message, "timestamp", timestamp)
}

func minerReportFrom(report *pb.MinerReport) (coordinator.HeartbeatReply, error) {
	const name = "MinerReport"
	var none coordinator.HeartbeatReply
	for _, text := range []struct{ field, value string }{
		{"name", report.GetName()}, {"kernel", report.GetKernel()}, {"software_version", report.GetSoftwareVersion()},
	} {
		if err := checkText(name, text.field, text.value, maxText); err != nil {
			return none, err
		}
	}
	instance, err := idFrom(name, "instance_id", report.GetInstanceId())
	if err != nil {
		return none, err
	}
	if report.GetThreads() > maxThreads {
		return none, fieldError(name, "threads", "is %d, want at most %d", report.GetThreads(), maxThreads)
	}
	if err := checkHashRate(name, "hash_rate", report.GetHashRate()); err != nil {
		return none, err
	}
	if held := len(report.GetHeldGrantIds()); held > maxHeld {
		return none, fieldError(name, "held_grant_ids", "has %d grants, want at most %d", held, maxHeld)
	}
	var wanted *int
	if request := report.GetProcessRequest(); request != nil {
		if request.GetRanges() > maxRanges {
			return none, fieldError("ProcessRequest", "ranges", "is %d, want at most %d", request.GetRanges(), maxRanges)
		}
		ranges := int(request.GetRanges())
		wanted = &ranges
	}
	return coordinator.HeartbeatReply{
		Name: report.GetName(), Instance: instance, Threads: int(report.GetThreads()), Kernel: report.GetKernel(),
		SoftwareVersion: report.GetSoftwareVersion(), HashRate: report.GetHashRate(), Hashes: report.GetHashes(),
		Held: report.GetHeldGrantIds(), Wanted: wanted, Leaving: report.GetLeaving(),
	}, nil
}

// mineResponseTo is what the coordinator sends, for the wire.
func mineResponseTo(message coordinator.Message) (*pb.MineResponse, error) {
	switch m := message.(type) {
	case coordinator.HeartbeatRequest:
		return &pb.MineResponse{Message: &pb.MineResponse_HeartbeatRequest{HeartbeatRequest: &pb.HeartbeatRequest{
			ClusterId: m.ClusterID, ServerId: m.ServerID, Address: m.Address, Term: m.Term, LeaderId: m.ServerID,
			SentUnixMs: m.SentUnixMilli, ServerAddresses: m.ServerAddresses,
		}}}, nil
	case coordinator.Process:
		return &pb.MineResponse{Message: &pb.MineResponse_Process{Process: &pb.Process{
			GrantId: m.GrantID, JobId: m.JobID, PreviousHash: m.Work.Previous[:], Bits: uint32(m.Work.Bits),
			Timestamp: m.Work.Timestamp, FirstNonce: m.Nonces.First, LastNonce: m.Nonces.Last, ChunkSize: m.ChunkSize,
		}}}, nil
	case coordinator.Interrupt:
		return &pb.MineResponse{Message: &pb.MineResponse_ProcessInterrupt{ProcessInterrupt: &pb.ProcessInterrupt{
			JobId: m.JobID, Reason: pb.InterruptReason(m.Reason), GrantIds: m.GrantIDs,
		}}}, nil
	case coordinator.Acknowledgement:
		ack := &pb.Acknowledgement{GrantId: m.GrantID, Result: pb.AnswerResult(m.Result), Message: fsm.Line(m.Message)}
		if m.Solution {
			ack.Answer = &pb.Acknowledgement_SolutionNonce{SolutionNonce: m.Nonce}
		} else {
			ack.Answer = &pb.Acknowledgement_LastNonce{LastNonce: m.Nonce}
		}
		return &pb.MineResponse{Message: &pb.MineResponse_Acknowledgement{Acknowledgement: ack}}, nil
	}
	return nil, fmt.Errorf("send %T to a miner: not a message of the leader", message)
}

// mineRequestTo is what a miner sends, for the wire.
func mineRequestTo(message miner.Message) (*pb.MineRequest, error) {
	switch m := message.(type) {
	case miner.HeartbeatReply:
		report := &pb.MinerReport{
			Name: m.Name, InstanceId: m.Instance[:], Threads: uint32(max(m.Threads, 0)), Kernel: m.Kernel,
			SoftwareVersion: m.SoftwareVersion, HashRate: m.HashRate, Hashes: m.Hashes, HeldGrantIds: m.Held,
			Leaving: m.Leaving,
		}
		if m.Wanted != nil {
			report.ProcessRequest = &pb.ProcessRequest{Ranges: uint32(max(*m.Wanted, 0))}
		}
		reply := &pb.HeartbeatReply{From: &pb.HeartbeatReply_Miner{Miner: report}}
		return &pb.MineRequest{Message: &pb.MineRequest_HeartbeatReply{HeartbeatReply: reply}}, nil
	case miner.AnswerNo:
		return &pb.MineRequest{Message: &pb.MineRequest_ProcessAnswerNo{ProcessAnswerNo: &pb.ProcessAnswerNo{
			GrantId: m.GrantID, JobId: m.JobID, FirstNonce: m.Nonces.First, LastNonce: m.Nonces.Last,
			ReceiptNonce: m.Receipt, Timestamp: m.Timestamp,
		}}}, nil
	case miner.AnswerYes:
		return &pb.MineRequest{Message: &pb.MineRequest_ProcessAnswerYes{ProcessAnswerYes: &pb.ProcessAnswerYes{
			GrantId: m.GrantID, JobId: m.JobID, Nonce: m.Nonce, Timestamp: m.Timestamp,
		}}}, nil
	}
	return nil, fmt.Errorf("send %T to the leader: not a message of a miner", message)
}

// mineResponseFrom checks what a leader sent.
func mineResponseFrom(response *pb.MineResponse) (miner.Message, error) {
	switch m := response.GetMessage().(type) {
	case *pb.MineResponse_HeartbeatRequest:
		request, err := heartbeatRequestFrom(m.HeartbeatRequest)
		if err != nil {
			return nil, err
		}
		return miner.HeartbeatRequest{
			ServerID: request.ServerID, Term: request.Term, ServerAddresses: request.ServerAddresses,
		}, nil
	case *pb.MineResponse_Process:
		return processFrom(m.Process)
	case *pb.MineResponse_ProcessInterrupt:
		interrupt := m.ProcessInterrupt
		if err := checkPositive("ProcessInterrupt", "job_id", interrupt.GetJobId()); err != nil {
			return nil, err
		}
		reason := interrupt.GetReason()
		if reason <= 0 || int(reason) >= len(interruptReasons) {
			return nil, fieldError("ProcessInterrupt", "reason", "is %d", reason)
		}
		return miner.Interrupt{
			JobID: interrupt.GetJobId(), GrantIDs: interrupt.GetGrantIds(), Reason: interruptReasons[reason],
		}, nil
	case *pb.MineResponse_Acknowledgement:
		return acknowledgementFrom(m.Acknowledgement)
	}
	return nil, malformed("MineResponse carries no message")
}

func processFrom(process *pb.Process) (miner.Process, error) {
	const name = "Process"
	out := miner.Process{GrantID: process.GetGrantId(), JobID: process.GetJobId(), ChunkSize: process.GetChunkSize()}
	if err := checkGrant(name, out.GrantID, out.JobID, process.GetTimestamp()); err != nil {
		return miner.Process{}, err
	}
	if err := checkPositive(name, "chunk_size", out.ChunkSize); err != nil {
		return miner.Process{}, err
	}
	var err error
	if out.Work.Previous, err = hashFrom(name, "previous_hash", process.GetPreviousHash()); err != nil {
		return miner.Process{}, err
	}
	if out.Work.Bits, err = bitsFrom(name, "bits", process.GetBits()); err != nil {
		return miner.Process{}, err
	}
	if out.Nonces, err = rangeFrom(name, process.GetFirstNonce(), process.GetLastNonce()); err != nil {
		return miner.Process{}, err
	}
	out.Work.Timestamp = process.GetTimestamp()
	return out, nil
}

func acknowledgementFrom(ack *pb.Acknowledgement) (miner.Acknowledgement, error) {
	const name = "Acknowledgement"
	out := miner.Acknowledgement{GrantID: ack.GetGrantId(), Message: ack.GetMessage()}
	if err := checkPositive(name, "grant_id", out.GrantID); err != nil {
		return miner.Acknowledgement{}, err
	}
	switch answer := ack.GetAnswer().(type) {
	case *pb.Acknowledgement_LastNonce:
		out.Nonce = answer.LastNonce
	case *pb.Acknowledgement_SolutionNonce:
		out.Nonce, out.Solution = answer.SolutionNonce, true
	default:
		return miner.Acknowledgement{}, fieldError(name, "answer", "is missing")
	}
	result := ack.GetResult()
	if result <= 0 || int(result) >= len(answerResults) {
		return miner.Acknowledgement{}, fieldError(name, "result", "is %d", result)
	}
	out.Result = answerResults[result]
	return out, checkText(name, "message", out.Message, 4*maxText)
}
