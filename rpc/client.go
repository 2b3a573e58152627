package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"google.golang.org/grpc"

	pb "raftmine/rpc/raftminepb"
)

// ClusterClient asks servers for people and scripts.
type ClusterClient struct{ pool *pool }

// NewClusterClient returns a client without connections.
func NewClusterClient() *ClusterClient { return &ClusterClient{pool: newPool()} }

// Close ends all calls, watches and connections.
func (c *ClusterClient) Close() error { return c.pool.close() }

// Status asks the server at address.
func (c *ClusterClient) Status(ctx context.Context, address string) (out Status, err error) {
	err = c.pool.call(ctx, address, func(conn *grpc.ClientConn) error {
		response, err := pb.NewClusterServiceClient(conn).GetStatus(ctx, &pb.GetStatusRequest{})
		if err == nil {
			out, err = statusFrom(response)
		}
		return err
	})
	return out, wrapped("status of", err)
}

// Blocks returns the settled blocks with a sequence number above after, as the server at address knows them.
func (c *ClusterClient) Blocks(ctx context.Context, address string, after uint64) (blocks []Block, err error) {
	err = c.pool.call(ctx, address, func(conn *grpc.ClientConn) error {
		for {
			request := &pb.ListBlocksRequest{AfterBlock: after, Limit: maxBlocks}
			response, err := pb.NewClusterServiceClient(conn).ListBlocks(ctx, request)
			if err != nil {
				return err
			}
			if len(response.GetBlocks()) == 0 {
				return nil
			}
			for _, wire := range response.GetBlocks() {
				block, err := blockFrom(wire)
				if err != nil {
					return err
				}
				if block.Sequence <= after { // else a server could keep us here for ever
					return fieldError("Block", "sequence", "is %d after %d", block.Sequence, after)
				}
				blocks, after = append(blocks, block), block.Sequence
			}
		}
	})
	return blocks, wrapped("blocks of", err)
}

// WatchFrom says which blocks a watch tells beside what is new.
type WatchFrom struct {
	Past       bool   // first all settled blocks after AfterBlock
	AfterBlock uint64 // sequence number of the last block already seen; 0: none. Without Past it has no meaning
}

// Watch yields what the server at address tells, from StartEvent on, and at last one error: it ends only with an error,
// or when the caller stops. Nothing is retried: to go on elsewhere without losing a block, watch again with Past and
// the sequence number of the last BlockEvent, or StartEvent.AfterBlock when none came.
func (c *ClusterClient) Watch(ctx context.Context, address string, from WatchFrom) iter.Seq2[Watched, error] {
	return func(yield func(Watched, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stopped := false
		err := c.pool.call(ctx, address, func(conn *grpc.ClientConn) error {
			stream, err := pb.NewClusterServiceClient(conn).Watch(ctx, &pb.WatchRequest{
				BlocksFromStart: from.Past, AfterBlock: from.AfterBlock,
			})
			if err != nil {
				return err
			}
			for {
				response, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return fmt.Errorf("the server ended it: %w", ErrUnavailable)
				}
				if err != nil {
					return err
				}
				told, err := watchedFrom(response)
				if err != nil {
					return err
				}
				if told.Event != nil && !yield(told, nil) {
					stopped = true
					return nil
				}
			}
		})
		if !stopped {
			yield(Watched{}, wrapped("watch", err))
		}
	}
}

// StopCluster asks the leader to commit that the whole cluster is about to stop. It finds the leader through the
// servers at addresses, which it asks in turn, and the hints they give.
func (c *ClusterClient) StopCluster(ctx context.Context, addresses []string, reason string) error {
	return c.askLeader(ctx, "stop cluster", addresses, func(ctx context.Context, client pb.ClusterServiceClient) error {
		_, err := client.StopCluster(ctx, &pb.StopClusterRequest{Reason: reason})
		return err
	})
}
