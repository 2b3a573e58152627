package rpc

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"raftmine/fsm"
	pb "raftmine/rpc/raftminepb"
)

// maxBlocks is the most blocks in one ListBlocks answer. Protocol.
const maxBlocks = 1000

// peerService is what servers say to each other beside Raft.
type peerService struct {
	pb.UnimplementedPeerServiceServer
	node Node
}

// Heartbeat implements PeerService.
func (p *peerService) Heartbeat(_ context.Context, request *pb.HeartbeatRequest) (*pb.HeartbeatReply, error) {
	in, err := heartbeatRequestFrom(request)
	if err != nil {
		return nil, toStatus(err)
	}
	report, err := p.node.HandleHeartbeat(in)
	if err != nil {
		return nil, toStatus(err)
	}
	return heartbeatReplyTo(report), nil
}

// Join implements PeerService.
func (p *peerService) Join(ctx context.Context, request *pb.JoinRequest) (*pb.JoinResponse, error) {
	in, err := joinRequestFrom(request)
	if err != nil {
		return nil, toStatus(err)
	}
	reply, err := p.node.HandleJoin(ctx, in)
	if err != nil {
		return nil, toStatus(err)
	}
	return joinResponseTo(reply), nil
}

// Leave implements PeerService.
func (p *peerService) Leave(ctx context.Context, request *pb.LeaveRequest) (*pb.LeaveResponse, error) {
	in, err := leaveRequestFrom(request)
	if err != nil {
		return nil, toStatus(err)
	}
	if err := p.node.HandleLeave(ctx, in); err != nil {
		return nil, toStatus(err)
	}
	return &pb.LeaveResponse{}, nil
}

// historyBatch is how many bytes of records are put into one message, but for its last record. Tuning.
const historyBatch = 256 << 10

// History implements PeerService.
func (p *peerService) History(
	request *pb.HistoryRequest, stream grpc.ServerStreamingServer[pb.HistoryResponse],
) error {
	in, err := historyRequestFrom(request)
	if err != nil {
		return toStatus(err)
	}
	// A message that was sent is not touched again: gRPC may hold on to it.
	response, size := &pb.HistoryResponse{}, 0
	send := func() error {
		if size == 0 {
			return nil
		}
		full := response
		response, size = &pb.HistoryResponse{}, 0
		return stream.Send(full)
	}
	for record, err := range p.node.HandleHistory(stream.Context(), in) {
		if err != nil {
			if sendErr := send(); sendErr != nil {
				return sendErr
			}
			return toStatus(err)
		}
		response.Records = append(response.Records, historyRecordTo(record))
		if size += len(record.Data) + historyRecordBytes; size >= historyBatch {
			if err := send(); err != nil {
				return err
			}
		}
	}
	return send()
}

// clusterService answers people and scripts.
type clusterService struct {
	pb.UnimplementedClusterServiceServer
	server *Server
}

// GetStatus implements ClusterService.
func (c *clusterService) GetStatus(context.Context, *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	return statusTo(c.server.Status()), nil
}

// Status is what GetStatus answers. All that comes from the state is of one applied index.
func (s *Server) Status() Status {
	node := s.config.Node.Status()
	out := Status{
		ServerID: node.ServerID, Term: node.Term, LeaderID: node.LeaderID, Voters: len(node.Voters),
		SoftwareVersion: s.config.Version, HistoryMissing: node.HistoryMissing,
	}
	s.config.Node.View(func(v fsm.View) {
		out.ClusterID = v.ClusterID()
		out.ComputedLeaderID = v.LowestUp()
		out.AppliedIndex = v.Head().Index
		out.StateDigest = v.Digest()
		out.Blocks = v.Accepted()
		out.ClusterStopped = v.Stopped()
		for _, server := range v.Servers() {
			out.Servers = append(out.Servers, ServerStatus{
				ID: server.ID, Address: server.Address, DataDir: server.DataDir, Up: server.Up, Member: server.Member,
				Voter: slices.Contains(node.Voters, server.ID), Leader: server.ID == node.LeaderID,
			})
		}
		for i, id := range node.Voters { // without a leader little of the log may be applied
			if !slices.ContainsFunc(out.Servers, func(row ServerStatus) bool { return row.ID == id }) {
				out.Servers = append(out.Servers, ServerStatus{ID: id, Address: node.VoterAddresses[i], Voter: true, Leader: id == node.LeaderID})
			}
		}
		if job, ok := v.Job(); ok {
			out.Job = &JobStatus{
				ID: job.ID, Height: job.Height, Previous: job.Previous, Bits: job.Bits, Timestamp: job.Timestamp,
				Round: job.Round, Nonces: job.Nonces, ChunkSize: job.ChunkSize, Chunks: v.Counts(), Phase: job.Phase,
			}
		}
		for _, miner := range v.Miners() {
			row := MinerStatus{
				Name: miner.Name, ChunksFinished: miner.Chunks, Solutions: miner.Solutions, Strikes: miner.Strikes,
			}
			if miner.Strikes >= fsm.MaxStrikes {
				row.Refused = fmt.Sprintf("%d strikes", miner.Strikes)
			}
			out.Miners = append(out.Miners, row)
		}
	})
	if term := s.currentTerm(); term != nil {
		s.addCoordinator(&out, term.leader)
	}
	return out
}

// addCoordinator adds the leader's own memory. A miner that never asked for work has no row in the state yet.
func (s *Server) addCoordinator(out *Status, leader Leader) {
	memory := leader.Status()
	out.Coordinator = &CoordinatorStatus{
		WebService: memory.WebService, WebServiceError: fsm.Line(memory.WebServiceError), HashRate: memory.HashRate,
	}
	rows := make(map[string]int, len(out.Miners))
	for i, miner := range out.Miners {
		rows[miner.Name] = i
	}
	for _, miner := range memory.Miners {
		i, ok := rows[miner.Name]
		if !ok {
			i = len(out.Miners)
			out.Miners = append(out.Miners, MinerStatus{Name: miner.Name})
		}
		row := &out.Miners[i]
		row.Connected, row.HashRate, row.Threads, row.Kernel = miner.Connected, miner.HashRate, miner.Threads, miner.Kernel
		row.Refused = miner.Refused
	}
	slices.SortStableFunc(out.Miners, func(a, b MinerStatus) int { return strings.Compare(a.Name, b.Name) })
}

// Watch implements ClusterService.
func (c *clusterService) Watch(request *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.WatchResponse]) error {
	s := c.server
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()

	w := &watching{
		node: s.config.Node, queue: s.config.Hub.watch(), recheck: watchRecheck, after: request.GetAfterBlock(),
		send: func(told Watched) error {
			response, err := watchedTo(told)
			if err != nil {
				return err
			}
			return stream.Send(response)
		},
	}
	defer s.config.Hub.unwatch(w.queue)
	if !request.GetBlocksFromStart() {
		s.config.Node.View(func(v fsm.View) { w.after = v.BlockCount() })
	}
	if err := w.sendNow(StartEvent{ServerID: s.config.Node.Status().ServerID, AfterBlock: w.after}); err != nil {
		return err
	}
	err := w.run(ctx)
	if s.stopping.Err() != nil {
		err = errStopping
	}
	return toStatus(err)
}

// ListBlocks implements ClusterService.
func (c *clusterService) ListBlocks(_ context.Context, request *pb.ListBlocksRequest) (*pb.ListBlocksResponse, error) {
	limit := int(request.GetLimit())
	switch {
	case limit == 0:
		limit = maxBlocks
	case limit > maxBlocks:
		return nil, toStatus(fieldError("ListBlocksRequest", "limit", "is %d, want at most %d", limit, maxBlocks))
	}
	response := &pb.ListBlocksResponse{}
	c.server.config.Node.View(func(v fsm.View) {
		for _, block := range v.Blocks(request.GetAfterBlock(), limit) {
			response.Blocks = append(response.Blocks, blockTo(blockOf(block)))
		}
	})
	return response, nil
}

// StopCluster implements ClusterService.
func (c *clusterService) StopCluster(
	ctx context.Context, request *pb.StopClusterRequest,
) (*pb.StopClusterResponse, error) {
	if err := checkText("StopClusterRequest", "reason", request.GetReason(), fsm.MaxText); err != nil {
		return nil, toStatus(err)
	}
	if err := c.server.config.Node.StopCluster(ctx, request.GetReason()); err != nil {
		return nil, toStatus(fmt.Errorf("stop cluster: %w", err))
	}
	return &pb.StopClusterResponse{}, nil
}
