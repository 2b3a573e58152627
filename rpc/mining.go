package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

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

// lastWords is how long the stream of a session that is over may take to send what is queued. Tuning.
const lastWords = time.Second

type mineStream = grpc.BidiStreamingServer[pb.MineRequest, pb.MineResponse]

// Mine is one miner's stream. Its handler only waits: one other goroutine receives, and each message is sent by one that
// ends with it. For only a handler's return ends a stream, so it must not wait in Recv or Send when the term is over or the
// session ended, least of all for a miner that does not read.
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
	var session Session
	err := m.server.aside("Mine").run(func() (err error) {
		session, err = term.leader.Open()
		return err
	})
	if err != nil {
		return fmt.Errorf("open mining session: %w", err)
	}
	defer session.Close()

	received, sent := make(chan error, 1), make(chan error, 1)
	m.server.streams.Go(func() { received <- m.receive(stream, session) })
	outgoing, done := session.Outgoing(), session.Done() // outgoing is nil while a message is being sent
	var patience <-chan time.Time
	end := func() error { return sessionError(session.Err()) }
	for {
		select {
		case message, open := <-outgoing:
			if !open {
				return end()
			}
			outgoing = nil
			m.server.streams.Go(func() { sent <- m.send(stream, message) })
		case err := <-sent:
			if err != nil {
				return err
			}
			outgoing = session.Outgoing()
		case err := <-received:
			// What was queued before goes first: acknowledgements of what was received.
			end = func() error { return err }
			session.Close()
		case <-done:
			if errors.Is(session.Err(), coordinator.ErrTooSlow) {
				return end()
			}
			done, patience = nil, time.After(lastWords)
		case <-patience:
			return end()
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

// send is run on a goroutine of its own. When the handler returns, the stream's context ends, and so does this.
func (m *miningService) send(stream mineStream, message coordinator.Message) (err error) {
	defer m.server.recovered("Mine", &err)
	response, err := mineResponseTo(message)
	if err != nil {
		return err
	}
	return stream.Send(response)
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
