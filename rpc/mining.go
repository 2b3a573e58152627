package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"raftmine/raftnode/coordinator"
	pb "raftmine/rpc/raftminepb"
)

// miningService carries messages between miners' streams and the sessions of the current term.
type miningService struct {
	pb.UnimplementedMiningServiceServer
	server *Server
}

type mineStream = grpc.BidiStreamingServer[pb.MineRequest, pb.MineResponse]

// Mine is one miner's stream. The handler's goroutine sends, one other receives: a handler that waited in Recv could not
// end its stream when the term is over.
func (m *miningService) Mine(stream mineStream) error {
	err := m.mine(stream)
	if err != nil && m.server.config.Logger.Enabled(stream.Context(), slog.LevelDebug) {
		var address string
		if p, ok := peer.FromContext(stream.Context()); ok {
			address = p.Addr.String()
		}
		m.server.config.Logger.Debug("mining stream ended", "peer", address, "error", err)
	}
	return toStatus(err)
}

func (m *miningService) mine(stream mineStream) error {
	term := m.server.currentTerm()
	if term == nil {
		return m.notLeading()
	}
	session, err := term.leader.Open()
	if err != nil {
		return fmt.Errorf("open mining session: %w", err)
	}
	defer session.Close()

	received := make(chan error, 1)
	m.server.readers.Go(func() { received <- m.receive(stream, session) })
	for {
		select {
		case message, open := <-session.Outgoing():
			if !open {
				return sessionError(session.Err())
			}
			if err := sendToMiner(stream, message); err != nil {
				return err
			}
		case err := <-received:
			// What was queued before goes first: acknowledgements of what was received.
			if sendErr := sendQueued(stream, session); sendErr != nil {
				return sendErr
			}
			return err
		case <-term.over:
			return m.notLeading()
		}
	}
}

// receive hands the miner's messages to its session until one of the two ends. A half-closed stream is an end without
// error. When the handler returns, the stream's context ends, and so does this.
func (m *miningService) receive(stream mineStream, session Session) (err error) {
	defer m.server.recovered("Mine", &err)
	handling := m.server.aside("Mine")
	for {
		request, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		err = handling.run(func() error {
			message, err := mineRequestFrom(request)
			if err != nil {
				return err
			}
			if err := session.Receive(stream.Context(), message); err != nil {
				return sessionError(err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

func sendToMiner(stream mineStream, message coordinator.Message) error {
	response, err := mineResponseTo(message)
	if err != nil {
		return err
	}
	return stream.Send(response)
}

// sendQueued sends what waits in the session and does not wait for more.
func sendQueued(stream mineStream, session Session) error {
	for {
		select {
		case message, open := <-session.Outgoing():
			if !open {
				return nil
			}
			if err := sendToMiner(stream, message); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// sessionError is why a session ended. Without a reason it is the leader's doing: the miner may dial again.
func sessionError(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return fmt.Errorf("mining session ended: %w", ErrUnavailable)
	}
	return err
}

func (m *miningService) notLeading() error {
	if m.server.stopping.Err() != nil {
		return errStopping
	}
	s := m.server.config.Node.Status()
	if s.LeaderID != 0 && s.LeaderID != s.ServerID {
		return fmt.Errorf("server %d cannot serve miners, server %d at %s leads: %w",
			s.ServerID, s.LeaderID, s.LeaderAddress, coordinator.ErrNotLeader)
	}
	return fmt.Errorf("server %d cannot serve miners: %w", s.ServerID, coordinator.ErrNotLeader)
}
