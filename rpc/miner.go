package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	_ "google.golang.org/grpc/health" // client-side health checks
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"raftmine/miner"
	"raftmine/raftnode/coordinator"
	pb "raftmine/rpc/raftminepb"
)

// Tuning.
const (
	// watchedServers is how many servers a miner is connected to at a time: the leader and the next two that would lead.
	watchedServers = 3
	// DefaultRotateAfter is how long a miner waits for one of the servers it watches to lead, before it tries others.
	DefaultRotateAfter = time.Second
	// DefaultHelloTimeout is how long a leader may take to speak first. A paused process still counts as healthy.
	DefaultHelloTimeout = 2 * time.Second
	// maxOpens is how many streams one Dial opens to servers that turn out not to lead.
	maxOpens = 20
	// goodbye is how long a closed stream may take to deliver what was sent on it.
	goodbye = 250 * time.Millisecond
)

// leaderConfig makes an ordinary gRPC client find the leader: of several servers it uses those whose MiningService is
// healthy.
const leaderConfig = `{"loadBalancingConfig":[{"round_robin":{}}],"healthCheckConfig":{"serviceName":"` + MiningService + `"}}`

// MinerDialerConfig is what a MinerDialer is made of.
type MinerDialerConfig struct {
	// Addresses returns where servers are known to be, host:port; required. It is called again whenever no leader is
	// found, so it may read the local environment anew. What a leader says of its servers is tried before.
	Addresses    func() []string
	RotateAfter  time.Duration // zero means DefaultRotateAfter
	HelloTimeout time.Duration // zero means DefaultHelloTimeout
	Logger       *slog.Logger
}

// Validate reports the first field that is wrong.
func (c MinerDialerConfig) Validate() error {
	switch {
	case c.Addresses == nil:
		return errors.New("miner dialer: no addresses given")
	case c.RotateAfter < 0:
		return fmt.Errorf("miner dialer: rotate after %v, want more than 0", c.RotateAfter)
	case c.HelloTimeout < 0:
		return fmt.Errorf("miner dialer: hello timeout %v, want more than 0", c.HelloTimeout)
	}
	return nil
}

// MinerDialer implements miner.Dialer. It stays connected to at most three servers between two streams, so that a new
// leader among them is known the moment it says so.
type MinerDialer struct {
	config   MinerDialerConfig
	resolver *manual.Resolver
	conn     *grpc.ClientConn

	dialing sync.Mutex // held by the one Dial that looks for a leader

	mu      sync.Mutex
	learned []string // from the last heartbeat: the leader, then those that are up, lowest id first
	window  []string // what the resolver was given
	next    int      // where the next window starts among all candidates

	clash nameClash
	tried atomic.Pointer[dialError] // the last connection attempt that failed
}

var _ miner.Dialer = (*MinerDialer)(nil)

// NewMinerDialer returns a dialer that is not connected yet. The caller closes it.
func NewMinerDialer(config MinerDialerConfig) (*MinerDialer, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.RotateAfter == 0 {
		config.RotateAfter = DefaultRotateAfter
	}
	if config.HelloTimeout == 0 {
		config.HelloTimeout = DefaultHelloTimeout
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	d := &MinerDialer{
		config:   config,
		resolver: manual.NewBuilderWithScheme("raftmine"),
		clash:    nameClash{held: nameHeld, retry: nameRetry},
	}
	conn, err := grpc.NewClient("raftmine:///leader", append(dialOptions(d.dialTCP),
		grpc.WithResolvers(d.resolver),
		grpc.WithDefaultServiceConfig(leaderConfig),
		grpc.WithIdleTimeout(0),
	)...)
	if err != nil {
		return nil, fmt.Errorf("miner dialer: %w", err)
	}
	d.conn = conn
	return d, nil
}

func (d *MinerDialer) dialTCP(ctx context.Context, address string) (net.Conn, error) {
	conn, err := dialTCP(ctx, address)
	if err != nil {
		d.tried.Store(&dialError{err})
		return nil, err
	}
	return conn, nil
}

// Close ends all streams and connections.
func (d *MinerDialer) Close() error { return d.conn.Close() }

// Dial implements miner.Dialer. It returns when the leader has spoken: a server that only believes to lead does not count.
// After a stream that ended because the miner's name is taken it pauses first.
func (d *MinerDialer) Dial(ctx context.Context) (miner.Conn, error) {
	if err := d.clash.wait(ctx); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		if err := d.awaitLeader(ctx); err != nil {
			return nil, fmt.Errorf("find leader: %w", err)
		}
		conn, err := d.open(ctx)
		if err == nil {
			return conn, nil
		}
		if !errors.Is(err, coordinator.ErrNotLeader) || attempt == maxOpens {
			return nil, fmt.Errorf("open mining stream: %w", err)
		}
		// A leader that was: the news of its health, or of its heir's, is on the way.
		d.awaitChange(ctx, connectivity.Ready, connectBase)
	}
}

// open opens a stream and waits until the leader speaks.
func (d *MinerDialer) open(ctx context.Context) (*minerConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := pb.NewMiningServiceClient(d.conn).Mine(ctx, grpc.WaitForReady(true))
	if err != nil {
		cancel()
		return nil, d.clash.judge(minerError(err))
	}
	c := &minerConn{dialer: d, stream: stream, cancel: cancel}
	silent := time.AfterFunc(d.config.HelloTimeout, cancel)
	c.first, err = c.receive()
	if !silent.Stop() && errors.Is(err, context.Canceled) {
		err = fmt.Errorf("the server does not speak: %w", ErrUnavailable)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return c, nil
}

// awaitLeader waits until a server that is watched says that it leads, and watches others in turn.
func (d *MinerDialer) awaitLeader(ctx context.Context) error {
	d.dialing.Lock()
	defer d.dialing.Unlock()
	d.watch(false)
	d.conn.Connect()
	for rounds := 0; ; rounds++ {
		if d.ready(ctx) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return d.notFound(err)
		}
		if d.conn.GetState() == connectivity.Shutdown {
			return ErrClosed
		}
		d.watch(true)
		d.conn.Connect()
		if rounds == 2 { // once: a wait that a person may wonder about
			d.config.Logger.Info("waiting for a server that leads", "reason", d.notFound(ErrUnavailable))
		}
	}
}

// ready waits at most RotateAfter for a leader.
func (d *MinerDialer) ready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, d.config.RotateAfter)
	defer cancel()
	for {
		state := d.conn.GetState()
		d.config.Logger.Debug("looking for a server that leads", "state", state.String()) // TRANSIENT_FAILURE: all said that they do not
		if state == connectivity.Ready {
			return true
		}
		if state == connectivity.Shutdown || !d.conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
}

// awaitChange waits at most limit while the connections are in state.
func (d *MinerDialer) awaitChange(ctx context.Context, state connectivity.State, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	d.conn.WaitForStateChange(ctx, state)
}

// watch gives the resolver at most three candidates: the first ones, or the next ones in turn.
func (d *MinerDialer) watch(rotate bool) {
	configured := d.config.Addresses()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setWindow(configured, rotate)
}

// learn takes the servers that a leader names: it stays watched, and so do those that would lead after it.
func (d *MinerDialer) learn(leader string, others []string) {
	d.mu.Lock()
	servers := append([]string{leader}, slices.DeleteFunc(slices.Clone(others),
		func(address string) bool { return address == leader })...)
	known := slices.Equal(servers, d.learned)
	d.mu.Unlock()
	if known {
		return
	}
	configured := d.config.Addresses()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.learned = servers
	// A server may be reached under another name than it gives itself: then the connection in use stays watched.
	if slices.Contains(d.window, leader) {
		d.setWindow(configured, false)
	}
}

// setWindow chooses what is watched, of the servers that were learned and then those configured. d.mu is held.
func (d *MinerDialer) setWindow(configured []string, rotate bool) {
	var all []string
	for _, address := range slices.Concat(d.learned, configured) {
		if checkAddress("server", "address", address, false) == nil && !slices.Contains(all, address) {
			all = append(all, address)
		}
	}
	d.next += watchedServers
	if !rotate || d.next >= len(all) {
		d.next = 0
	}
	servers := all[d.next:min(d.next+watchedServers, len(all))]
	if len(servers) == 0 || slices.Equal(servers, d.window) {
		return
	}
	d.window = slices.Clone(servers)
	var state resolver.State
	for _, address := range servers {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: address}}})
	}
	d.config.Logger.Debug("watching servers", "addresses", d.window)
	d.resolver.UpdateState(state)
}

// notFound says what was tried.
func (d *MinerDialer) notFound(cause error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.window) == 0 {
		return fmt.Errorf("no server address is known: %w", cause)
	}
	if tried := d.tried.Load(); tried != nil {
		return fmt.Errorf("none of %s leads (%w): %w", strings.Join(d.window, ", "), tried.error, cause)
	}
	return fmt.Errorf("none of %s leads: %w", strings.Join(d.window, ", "), cause)
}

// minerConn is one stream to the leader.
type minerConn struct {
	dialer *MinerDialer
	stream grpc.BidiStreamingClient[pb.MineRequest, pb.MineResponse]
	cancel context.CancelFunc
	first  miner.Message // received by Dial; nil once it was handed out

	sending sync.Mutex // gRPC allows no CloseSend beside a Send
	closed  bool       // guarded by sending
}

// Send implements miner.Conn. An error says no more than that the stream is over: why, Receive says.
func (c *minerConn) Send(message miner.Message) error {
	request, err := mineRequestTo(message)
	if err != nil {
		return err
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	if c.closed {
		return fmt.Errorf("send to leader: %w", io.ErrClosedPipe)
	}
	if err := c.stream.Send(request); err != nil {
		return fmt.Errorf("send to leader: %w", minerError(err))
	}
	return nil
}

// Receive implements miner.Conn.
func (c *minerConn) Receive() (miner.Message, error) {
	if message := c.first; message != nil {
		c.first = nil
		return message, nil
	}
	message, err := c.receive()
	if err != nil {
		return nil, fmt.Errorf("receive from leader: %w", err)
	}
	c.dialer.clash.accepted() // the leader's second message comes after it has heard the name
	return message, nil
}

func (c *minerConn) receive() (miner.Message, error) {
	response, err := c.stream.Recv()
	if errors.Is(err, io.EOF) {
		c.cancel()
		return nil, fmt.Errorf("the leader ended the stream: %w", ErrUnavailable)
	}
	if err != nil {
		c.cancel()
		return nil, c.dialer.clash.judge(minerError(err))
	}
	message, err := mineResponseFrom(response)
	if err != nil {
		c.cancel()
		return nil, err
	}
	if request := response.GetHeartbeatRequest(); request != nil {
		c.dialer.learn(request.GetAddress(), request.GetServerAddresses())
	}
	return message, nil
}

// Close implements miner.Conn. What was sent is delivered first, if the leader takes it at once.
func (c *minerConn) Close() error {
	if !c.sending.TryLock() { // a Send is stuck: nothing will be delivered
		c.cancel()
		return nil
	}
	defer c.sending.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	if err := c.stream.CloseSend(); err != nil {
		c.cancel()
		return nil // the stream was over
	}
	time.AfterFunc(goodbye, c.cancel)
	return nil
}
