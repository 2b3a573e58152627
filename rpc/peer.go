package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"google.golang.org/grpc"

	"raftmine/raftnode"
	pb "raftmine/rpc/raftminepb"
)

// PeerClient implements raftnode.PeerClient. An address that nothing listens at is known at once: the error matches
// syscall.ECONNREFUSED, and every call asks the address anew.
type PeerClient struct{ pool *pool }

var _ raftnode.PeerClient = (*PeerClient)(nil)

// NewPeerClient returns a client without connections.
func NewPeerClient() *PeerClient { return &PeerClient{pool: newPool()} }

// Close ends all calls and connections.
func (c *PeerClient) Close() error { return c.pool.close() }

// Heartbeat implements raftnode.PeerClient.
func (c *PeerClient) Heartbeat(
	ctx context.Context, address string, request raftnode.HeartbeatRequest,
) (report raftnode.ServerReport, err error) {
	err = c.pool.call(ctx, address, func(conn *grpc.ClientConn) error {
		reply, err := pb.NewPeerServiceClient(conn).Heartbeat(ctx, heartbeatRequestTo(request))
		if err == nil {
			report, err = heartbeatReplyFrom(reply)
		}
		return err
	})
	return report, wrapped("heartbeat to", err)
}

// Join implements raftnode.PeerClient.
func (c *PeerClient) Join(
	ctx context.Context, address string, request raftnode.JoinRequest,
) (reply raftnode.JoinReply, err error) {
	err = c.pool.call(ctx, address, func(conn *grpc.ClientConn) error {
		response, err := pb.NewPeerServiceClient(conn).Join(ctx, joinRequestTo(request))
		if err == nil {
			reply, err = joinResponseFrom(response)
		}
		return err
	})
	return reply, wrapped("join through", err)
}

// Leave implements raftnode.PeerClient.
func (c *PeerClient) Leave(ctx context.Context, address string, request raftnode.LeaveRequest) error {
	err := c.pool.call(ctx, address, func(conn *grpc.ClientConn) error {
		_, err := pb.NewPeerServiceClient(conn).Leave(ctx, leaveRequestTo(request))
		return err
	})
	return wrapped("leave through", err)
}

// History implements raftnode.PeerClient. It ends with ctx, with the answer, or when the caller stops.
func (c *PeerClient) History(
	ctx context.Context, address string, request raftnode.HistoryRequest,
) iter.Seq2[raftnode.JournalRecord, error] {
	return func(yield func(raftnode.JournalRecord, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stopped := false
		err := c.pool.call(ctx, address, func(conn *grpc.ClientConn) error {
			stream, err := pb.NewPeerServiceClient(conn).History(ctx, historyRequestTo(request))
			if err != nil {
				return err
			}
			for {
				response, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				records, err := historyResponseFrom(response)
				if err != nil {
					return err
				}
				for _, record := range records {
					if !yield(record, nil) {
						stopped = true
						return nil
					}
				}
			}
		})
		if err != nil && !stopped {
			yield(raftnode.JournalRecord{}, wrapped("history of", err))
		}
	}
}

// wrapped puts what was tried before an error; nil stays nil.
func wrapped(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %w", what, err)
}
