package rpc

import (
	"fmt"

	"raftmine/fsm"
	pb "raftmine/rpc/raftminepb"
)

// The wire's words. Index 0 has none.
var (
	phases = [...]string{
		fsm.PhaseOpen: "open", fsm.PhaseSolved: "solved", fsm.PhaseSubmitting: "submitting", fsm.PhaseClosed: "closed",
	}
	jobSteps = [...]string{
		fsm.JobOpened: "opened", fsm.JobRolled: "rolled", fsm.JobSolved: "solved", fsm.JobClosed: "closed",
	}
)

// wordOf returns the wire's word for an enumeration value, wordTo the value of a word; value 0 has no word.
func wordOf[T ~uint8](words []string, value T) string {
	if int(value) < len(words) {
		return words[value]
	}
	return ""
}

func wordTo[T ~uint8](message, field string, words []string, word string) (T, error) {
	for value, known := range words {
		if value > 0 && known == word {
			return T(value), nil
		}
	}
	return 0, fieldError(message, field, "is %q", word)
}

func statusTo(s Status) *pb.GetStatusResponse {
	out := &pb.GetStatusResponse{
		ClusterId: s.ClusterID, ServerId: s.ServerID, Term: s.Term, LeaderId: s.LeaderID,
		ComputedLeaderId: s.ComputedLeaderID, AppliedIndex: s.AppliedIndex, StateDigest: s.StateDigest[:],
		Blocks: s.Blocks, Voters: uint32(s.Voters), ClusterStopped: s.ClusterStopped, SoftwareVersion: s.SoftwareVersion,
		HistoryMissing: s.HistoryMissing,
	}
	for _, v := range s.Servers {
		out.Servers = append(out.Servers, &pb.ServerStatus{
			Id: v.ID, Address: v.Address, Up: v.Up, Voter: v.Voter, Member: v.Member, Leader: v.Leader, DataDir: v.DataDir,
		})
	}
	if job := s.Job; job != nil {
		out.Job = &pb.JobStatus{
			Id: job.ID, Height: job.Height, PreviousHash: job.Previous[:], Bits: uint32(job.Bits), Timestamp: job.Timestamp,
			FirstNonce: job.Nonces.First, LastNonce: job.Nonces.Last, ChunkSize: job.ChunkSize,
			ChunksTotal: job.Chunks.Total, ChunksPending: job.Chunks.Pending, ChunksGranted: job.Chunks.Granted,
			ChunksFinished: job.Chunks.Finished, Phase: wordOf(phases[:], job.Phase), Round: job.Round,
		}
	}
	for _, m := range s.Miners {
		out.Miners = append(out.Miners, &pb.MinerStatus{
			Name: m.Name, Connected: m.Connected, HashRate: m.HashRate, ChunksFinished: m.ChunksFinished,
			Solutions: m.Solutions, Strikes: m.Strikes, Threads: uint32(m.Threads), Kernel: m.Kernel,
			Refused: m.Refused,
		})
	}
	if c := s.Coordinator; c != nil {
		out.Coordinator = &pb.CoordinatorStatus{
			WebService: c.WebService, WebServiceError: c.WebServiceError, HashRate: c.HashRate,
		}
	}
	return out
}

func statusFrom(in *pb.GetStatusResponse) (Status, error) {
	const name = "GetStatusResponse"
	out := Status{
		ClusterID: in.GetClusterId(), ServerID: in.GetServerId(), Term: in.GetTerm(), LeaderID: in.GetLeaderId(),
		ComputedLeaderID: in.GetComputedLeaderId(), AppliedIndex: in.GetAppliedIndex(), Blocks: in.GetBlocks(),
		Voters: int(in.GetVoters()), ClusterStopped: in.GetClusterStopped(), SoftwareVersion: in.GetSoftwareVersion(),
		HistoryMissing: in.GetHistoryMissing(),
	}
	var err error
	if out.StateDigest, err = hashFrom(name, "state_digest", in.GetStateDigest()); err != nil {
		return Status{}, err
	}
	for _, v := range in.GetServers() {
		out.Servers = append(out.Servers, ServerStatus{
			ID: v.GetId(), Address: v.GetAddress(), DataDir: v.GetDataDir(), Up: v.GetUp(), Voter: v.GetVoter(),
			Member: v.GetMember(), Leader: v.GetLeader(),
		})
	}
	for _, m := range in.GetMiners() {
		out.Miners = append(out.Miners, MinerStatus{
			Name: m.GetName(), Connected: m.GetConnected(), HashRate: m.GetHashRate(), ChunksFinished: m.GetChunksFinished(),
			Solutions: m.GetSolutions(), Strikes: m.GetStrikes(), Threads: int(m.GetThreads()), Kernel: m.GetKernel(),
			Refused: m.GetRefused(),
		})
	}
	if c := in.GetCoordinator(); c != nil {
		out.Coordinator = &CoordinatorStatus{
			WebService: c.GetWebService(), WebServiceError: c.GetWebServiceError(), HashRate: c.GetHashRate(),
		}
	}
	if job := in.GetJob(); job != nil {
		if out.Job, err = jobStatusFrom(job); err != nil {
			return Status{}, err
		}
	}
	return out, nil
}

func jobStatusFrom(job *pb.JobStatus) (*JobStatus, error) {
	const name = "JobStatus"
	out := &JobStatus{
		ID: job.GetId(), Height: job.GetHeight(), Timestamp: job.GetTimestamp(), Round: job.GetRound(),
		ChunkSize: job.GetChunkSize(), Chunks: fsm.Counts{
			Total: job.GetChunksTotal(), Pending: job.GetChunksPending(),
			Granted: job.GetChunksGranted(), Finished: job.GetChunksFinished(),
		},
	}
	var err error
	if out.Previous, err = hashFrom(name, "previous_hash", job.GetPreviousHash()); err != nil {
		return nil, err
	}
	if out.Bits, err = bitsFrom(name, "bits", job.GetBits()); err != nil {
		return nil, err
	}
	if out.Nonces, err = rangeFrom(name, job.GetFirstNonce(), job.GetLastNonce()); err != nil {
		return nil, err
	}
	if out.Phase, err = wordTo[fsm.Phase](name, "phase", phases[:], job.GetPhase()); err != nil {
		return nil, err
	}
	return out, nil
}

// blockOf leaves out what a block's readers have no use for.
func blockOf(b fsm.Block) Block {
	return Block{
		Sequence: b.Sequence, Height: b.Height, Hash: b.Hash, Previous: b.Previous, Nonce: b.Nonce, Timestamp: b.Timestamp,
		Bits: b.Bits, Miner: b.Miner, Verdict: b.Verdict, Detail: b.Detail, SettledAt: b.At, Index: b.Index,
	}
}

func blockTo(b Block) *pb.Block {
	return &pb.Block{
		Sequence: b.Sequence, Height: b.Height, Hash: b.Hash[:], PreviousHash: b.Previous[:], Nonce: b.Nonce,
		Timestamp: b.Timestamp, Bits: uint32(b.Bits), Miner: b.Miner, Verdict: pb.Verdict(b.Verdict),
		VerdictDetail: b.Detail, SettledUnixMs: b.SettledAt, SettledIndex: b.Index,
	}
}

func blockFrom(b *pb.Block) (Block, error) {
	const name = "Block"
	out := Block{
		Sequence: b.GetSequence(), Height: b.GetHeight(), Nonce: b.GetNonce(), Timestamp: b.GetTimestamp(),
		Miner: b.GetMiner(), Detail: b.GetVerdictDetail(), SettledAt: b.GetSettledUnixMs(), Index: b.GetSettledIndex(),
	}
	if err := checkPositive(name, "sequence", out.Sequence); err != nil {
		return Block{}, err
	}
	var err error
	if out.Hash, err = hashFrom(name, "hash", b.GetHash()); err != nil {
		return Block{}, err
	}
	if out.Previous, err = hashFrom(name, "previous_hash", b.GetPreviousHash()); err != nil {
		return Block{}, err
	}
	if out.Bits, err = bitsFrom(name, "bits", b.GetBits()); err != nil {
		return Block{}, err
	}
	switch v := b.GetVerdict(); v {
	case pb.Verdict_VERDICT_SUCCESS, pb.Verdict_VERDICT_WRONG, pb.Verdict_VERDICT_STALE, pb.Verdict_VERDICT_UNKNOWN:
		out.Verdict = fsm.Verdict(v)
	default:
		return Block{}, fieldError(name, "verdict", "is %d", v)
	}
	return out, nil
}

func watchedTo(w Watched) (*pb.WatchResponse, error) {
	out := &pb.WatchResponse{UnixMs: w.UnixMilli}
	switch e := w.Event.(type) {
	case StartEvent:
		out.Event = &pb.WatchResponse_Start{Start: &pb.StartEvent{ServerId: e.ServerID, AfterBlock: e.AfterBlock}}
	case LeaderEvent:
		out.Event = &pb.WatchResponse_Leader{Leader: &pb.LeaderEvent{Id: e.ID, Term: e.Term}}
	case BlockEvent:
		out.Event = &pb.WatchResponse_Block{Block: blockTo(e.Block)}
	case ServerEvent:
		out.Event = &pb.WatchResponse_Server{Server: &pb.ServerEvent{Id: e.ID, Up: e.Up, Reason: e.Reason}}
	case HeartbeatEvent:
		out.Event = &pb.WatchResponse_Heartbeat{Heartbeat: &pb.HeartbeatEvent{
			FromServer: e.From, ToServer: e.To, ToMiner: e.ToMiner, Answered: e.Answered,
		}}
	case MinerEvent:
		out.Event = &pb.WatchResponse_Miner{Miner: &pb.MinerEvent{Name: e.Name, What: e.What, Message: fsm.Line(e.Message)}}
	case JobEvent:
		out.Event = &pb.WatchResponse_Job{Job: &pb.JobEvent{
			Id: e.ID, Height: e.Height, PreviousHash: e.Previous[:], Bits: uint32(e.Bits), Timestamp: e.Timestamp,
			What: wordOf(jobSteps[:], e.What),
		}}
	case LaggedEvent:
		out.Event = &pb.WatchResponse_Lagged{Lagged: &pb.LaggedEvent{Dropped: e.Dropped}}
	default:
		return nil, fmt.Errorf("watch: %T is not an event", w.Event)
	}
	return out, nil
}

// watchedFrom returns an Event of nil for a kind that this version does not know: a newer server may tell more.
func watchedFrom(in *pb.WatchResponse) (Watched, error) {
	out := Watched{UnixMilli: in.GetUnixMs()}
	switch e := in.GetEvent().(type) {
	case *pb.WatchResponse_Start:
		out.Event = StartEvent{ServerID: e.Start.GetServerId(), AfterBlock: e.Start.GetAfterBlock()}
	case *pb.WatchResponse_Leader:
		out.Event = LeaderEvent{ID: e.Leader.GetId(), Term: e.Leader.GetTerm()}
	case *pb.WatchResponse_Block:
		block, err := blockFrom(e.Block)
		if err != nil {
			return Watched{}, err
		}
		out.Event = BlockEvent{Block: block}
	case *pb.WatchResponse_Server:
		out.Event = ServerEvent{ID: e.Server.GetId(), Up: e.Server.GetUp(), Reason: e.Server.GetReason()}
	case *pb.WatchResponse_Heartbeat:
		out.Event = HeartbeatEvent{
			From: e.Heartbeat.GetFromServer(), To: e.Heartbeat.GetToServer(), ToMiner: e.Heartbeat.GetToMiner(),
			Answered: e.Heartbeat.GetAnswered(),
		}
	case *pb.WatchResponse_Miner:
		out.Event = MinerEvent{Name: e.Miner.GetName(), What: e.Miner.GetWhat(), Message: e.Miner.GetMessage()}
	case *pb.WatchResponse_Job:
		job, err := jobEventFrom(e.Job)
		if err != nil {
			return Watched{}, err
		}
		out.Event = job
	case *pb.WatchResponse_Lagged:
		out.Event = LaggedEvent{Dropped: e.Lagged.GetDropped()}
	}
	return out, nil
}

func jobEventFrom(job *pb.JobEvent) (JobEvent, error) {
	const name = "JobEvent"
	out := JobEvent{ID: job.GetId(), Height: job.GetHeight(), Timestamp: job.GetTimestamp()}
	var err error
	if out.Previous, err = hashFrom(name, "previous_hash", job.GetPreviousHash()); err != nil {
		return JobEvent{}, err
	}
	if out.Bits, err = bitsFrom(name, "bits", job.GetBits()); err != nil {
		return JobEvent{}, err
	}
	if out.What, err = wordTo[fsm.JobStep](name, "what", jobSteps[:], job.GetWhat()); err != nil {
		return JobEvent{}, err
	}
	return out, nil
}
