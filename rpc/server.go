package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	pb "raftmine/rpc/raftminepb"
)

// MiningService is the name whose health says whether a server leads. Protocol.
const MiningService = "raftmine.v1.MiningService"

// Server serves raftmine.v1 on one listener. Its methods may be called by any goroutine.
type Server struct {
	config Config
	grpc   *grpc.Server
	health *health.Server

	stopping context.Context // ends when Stop begins
	stop     context.CancelFunc
	streams  sync.WaitGroup // goroutines that read and write mining streams

	mu   sync.Mutex
	term *term // nil: not leading
}

// term is the service between one Lead and its Unlead.
type term struct {
	leader Leader
	over   chan struct{}
}

// NewServer makes a server that does not serve yet.
func NewServer(config Config) (*Server, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	s := &Server{config: config, health: health.NewServer()}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(MaxMessageSize),
		grpc.MaxConcurrentStreams(config.MaxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: config.KeepaliveTime, Timeout: config.KeepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinTime, PermitWithoutStream: true}),
		// Messages are small and connections many. gRPC gives the write buffer of a quiet connection back. A table of
		// headers would save some bytes of each call, and a connection has two for hours.
		grpc.WriteBufferSize(4<<10),
		grpc.ReadBufferSize(512),
		grpc.HeaderTableSize(0),
		grpc.ForceServerCodecV2(shallowCodec{encoding.GetCodecV2(proto.Name), s}),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(s.recoverUnary),
		grpc.StreamInterceptor(s.recoverStream),
	)
	pb.RegisterMiningServiceServer(s.grpc, &miningService{server: s})
	pb.RegisterPeerServiceServer(s.grpc, &peerService{node: config.Node})
	pb.RegisterClusterServiceServer(s.grpc, &clusterService{server: s})
	healthpb.RegisterHealthServer(s.grpc, &healthService{Server: s.health, stopping: s.stopping})
	reflection.RegisterV1(s.grpc)
	s.health.SetServingStatus(MiningService, healthpb.HealthCheckResponse_NOT_SERVING)
	return s, nil
}

// Serve answers on listener until Stop, which makes it return nil, or until the listener fails. It closes listener.
func (s *Server) Serve(listener net.Listener) error {
	if err := s.grpc.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve grpc on %s: %w", listener.Addr(), err)
	}
	return nil
}

// Lead attaches the coordinator of a term: from here on miners are served. A term that was not ended ends.
func (s *Server) Lead(leader Leader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlead()
	if s.stopping.Err() != nil {
		return
	}
	s.term = &term{leader: leader, over: make(chan struct{})}
	s.health.SetServingStatus(MiningService, healthpb.HealthCheckResponse_SERVING)
}

// Unlead ends the term: the health of MiningService turns, then every mining stream ends with UNAVAILABLE. It does not
// wait for miners.
func (s *Server) Unlead() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlead()
}

func (s *Server) unlead() {
	if s.term == nil {
		return
	}
	s.health.SetServingStatus(MiningService, healthpb.HealthCheckResponse_NOT_SERVING)
	close(s.term.over)
	s.term = nil
}

func (s *Server) currentTerm() *term {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.term
}

// Stop ends the streams, lets running calls finish until ctx ends, then breaks them off. It returns when everything that
// the server started has ended.
func (s *Server) Stop(ctx context.Context) {
	s.mu.Lock()
	s.unlead()
	s.stop()
	s.mu.Unlock()
	s.health.Shutdown()
	defer context.AfterFunc(ctx, s.grpc.Stop)()
	s.grpc.GracefulStop()
	s.grpc.Stop()
	s.streams.Wait()
}

// healthService is the standard one, but its Watch ends when the server stops: else no stop would ever be graceful.
type healthService struct {
	*health.Server
	stopping context.Context
}

// Watch implements the health service.
func (h *healthService) Watch(request *healthpb.HealthCheckRequest, stream healthpb.Health_WatchServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(h.stopping, cancel)()
	err := h.Server.Watch(request, &streamWithContext{stream, ctx})
	if h.stopping.Err() != nil {
		return toStatus(errStopping)
	}
	return err
}

type streamWithContext struct {
	healthpb.Health_WatchServer
	ctx context.Context
}

func (s *streamWithContext) Context() context.Context { return s.ctx }

var errStopping = fmt.Errorf("server is stopping: %w", ErrUnavailable)

// recoverUnary and recoverStream are the last resort: a panic ends its call, not the server, and is logged as the bug
// it is.
func (s *Server) recoverUnary(
	ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (response any, err error) {
	defer s.recovered(info.FullMethod, &err)
	return handler(ctx, request)
}

func (s *Server) recoverStream(
	service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler,
) (err error) {
	defer s.recovered(info.FullMethod, &err)
	if !info.IsClientStream {
		stream = &shallowStream{stream, s.aside(info.FullMethod)}
	}
	return handler(service, stream)
}

// recovered must be deferred itself.
func (s *Server) recovered(method string, err *error) {
	if cause := recover(); cause != nil {
		s.config.Logger.Error("grpc handler panicked", "method", method, "panic", cause, "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "%s: internal error; the server's log has the details", method)
	}
}
