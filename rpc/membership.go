package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"raftmine/raftnode"
	pb "raftmine/rpc/raftminepb"
)

// RemoveServer implements ClusterService.
func (c *clusterService) RemoveServer(
	ctx context.Context, request *pb.RemoveServerRequest,
) (*pb.RemoveServerResponse, error) {
	if request.GetServerId() == 0 {
		return nil, toStatus(fieldError("RemoveServerRequest", "server_id", "is missing"))
	}
	if err := c.server.config.Node.RemoveServer(ctx, request.GetServerId()); err != nil {
		return nil, toStatus(err)
	}
	return &pb.RemoveServerResponse{}, nil
}

// TransferLeadership implements ClusterService.
func (c *clusterService) TransferLeadership(
	ctx context.Context, request *pb.TransferLeadershipRequest,
) (*pb.TransferLeadershipResponse, error) {
	to, err := c.server.config.Node.TransferLeadership(ctx, request.GetServerId())
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.TransferLeadershipResponse{ServerId: to}, nil
}

// RemoveServer asks the leader to end the membership of a server that does not run.
func (c *ClusterClient) RemoveServer(ctx context.Context, addresses []string, id uint64) error {
	return c.askLeader(ctx, "remove server", addresses, func(ctx context.Context, client pb.ClusterServiceClient) error {
		_, err := client.RemoveServer(ctx, &pb.RemoveServerRequest{ServerId: id})
		return err
	})
}

// TransferLeadership asks the leader to hand leadership to another server, 0: the lowest other one that is up, and
// returns which one that was.
func (c *ClusterClient) TransferLeadership(ctx context.Context, addresses []string, to uint64) (chosen uint64, err error) {
	err = c.askLeader(ctx, "transfer leadership", addresses, func(ctx context.Context, client pb.ClusterServiceClient) error {
		response, err := client.TransferLeadership(ctx, &pb.TransferLeadershipRequest{ServerId: to})
		chosen = response.GetServerId()
		return err
	})
	return chosen, err
}

// askPatience bounds one server's answer: one that is paused must not use up all the time. What the leader is asked for
// here takes it two seconds at most.
const askPatience = 3 * time.Second

// askLeader makes a call that only the leader answers. It finds the leader through the servers at addresses, which it
// asks in turn, and the hints they give. What the leader refuses is not asked again.
func (c *ClusterClient) askLeader(
	ctx context.Context, what string, addresses []string, call func(context.Context, pb.ClusterServiceClient) error,
) error {
	if len(addresses) == 0 {
		return fmt.Errorf("%s: no server address is known", what)
	}
	queue := slices.Clone(addresses)
	asked := make(map[string]bool)
	var last error
	for len(queue) > 0 {
		address := queue[0]
		queue = queue[1:]
		if asked[address] {
			continue
		}
		asked[address] = true
		try, cancel := context.WithTimeout(ctx, askPatience)
		err := c.pool.call(try, address, func(conn *grpc.ClientConn) error {
			return call(try, pb.NewClusterServiceClient(conn))
		})
		cancel()
		if err == nil {
			return nil
		}
		last = err
		if ctx.Err() != nil || errors.Is(err, raftnode.ErrRefused) || errors.Is(err, raftnode.ErrOutcomeUnknown) {
			break
		}
		if hint, ok := errors.AsType[*raftnode.NotLeaderError](err); ok && hint.Address != "" {
			queue = slices.Insert(queue, 0, hint.Address)
		}
	}
	return fmt.Errorf("%s: %w", what, last)
}
