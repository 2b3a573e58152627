package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"raftmine/raftnode/registry"
	"raftmine/rpc"
)

// respawnDelay is how long "run --respawn" waits before it starts a dead process again.
const respawnDelay = 2 * time.Second

// stopPatience is how long a child may take to end in order before it is killed. Tuning.
const stopPatience = 5 * time.Second

// cluster is a web service, servers and miners that run as child processes on this machine.
//
//	DIR/environment   the local environment, so that runs never mix
//	DIR/webservice    the chain
//	DIR/servers/N     one folder a server
//	DIR/logs          one log a process
type cluster struct {
	dir      string
	env      *registry.Environment
	out      *printer
	logLevel string
	respawn  bool
	client   *rpc.ClusterClient

	ctx    context.Context // of the supervisors: ends when the cluster is stopped
	cancel context.CancelFunc
	wg     sync.WaitGroup // supervisors

	mu       sync.Mutex
	children map[string]*child // by name; the newest process of each
}

func newCluster(dir string, out *printer, logLevel string) (*cluster, error) {
	for _, folder := range []string{"logs", "servers"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o700); err != nil {
			return nil, err
		}
	}
	env, err := registry.Open(filepath.Join(dir, "environment"))
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, env: env, out: out, logLevel: logLevel, children: make(map[string]*child),
		client: rpc.NewClusterClient()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// start starts one process under a supervisor, which reports its end.
func (c *cluster) start(ctx context.Context, role, name string, args ...string) (*child, error) {
	args = append([]string{role, "--environment", c.env.Dir(), "--log-level", c.logLevel}, args...)
	process, err := startChild(ctx, role, filepath.Join(c.dir, "logs", name+".log"), args...)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.children[name] = process
	c.mu.Unlock()
	c.out.processStarted(process.started)
	c.wg.Add(1)
	go c.supervise(role, name, args[1:], process)
	return process, nil
}

// supervise waits for a process to end. An end that nobody asked for is told, and with respawn answered.
func (c *cluster) supervise(role, name string, args []string, process *child) {
	defer c.wg.Done()
	select {
	case <-c.ctx.Done():
		return
	case <-process.exited:
	}
	if c.ctx.Err() != nil {
		return
	}
	ended := processEnded{Event: "process_ended", Role: role, ID: process.started.ID, Name: process.started.Name,
		PID: process.pid(), Error: describeExit(process.waitErr)}
	why := ended.Error
	if said := lastLine(process.log); said != "" {
		why = said
	}
	c.out.print(ended, "%s (pid %d) ended: %s", name, process.pid(), why)
	for c.respawn {
		select {
		case <-c.ctx.Done():
			return
		case <-time.After(respawnDelay):
		}
		_, err := c.start(c.ctx, role, name, args[4:]...)
		if err == nil || c.ctx.Err() != nil {
			return
		}
		c.out.print(processEnded{Event: "process_ended", Role: role, Error: err.Error()}, "%s: %v", name, err)
	}
}

// processEnded says that a child ended although nobody asked for it.
type processEnded struct {
	Event string `json:"event"`
	Role  string `json:"role"`
	ID    uint64 `json:"id,omitempty"`
	Name  string `json:"name,omitempty"`
	PID   int    `json:"pid"`
	Error string `json:"error"`
}

func describeExit(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// startWebService starts our own web service and returns its URL.
func (c *cluster) startWebService(ctx context.Context, zeros int, blockTime time.Duration) (string, error) {
	process, err := c.start(ctx, "webservice", "webservice", "--data-dir", filepath.Join(c.dir, "webservice"),
		"--zeros", strconv.Itoa(zeros), "--block-time", blockTime.String())
	if err != nil {
		return "", err
	}
	return process.started.Address, nil
}

// startServers starts quantity servers. In a new cluster they start one after the other, so that the folder N holds
// server N; on data directories that have their ids they start together, because none can lead alone.
func (c *cluster) startServers(ctx context.Context, quantity int, flags []string) error {
	first := filepath.Join(c.dir, "servers", "1", "server.json")
	_, err := os.Stat(first)
	restart := err == nil
	start := func(n int) error {
		name := fmt.Sprintf("server-%d", n)
		_, err := c.start(ctx, "server", name, append([]string{"--data-dir", filepath.Join(c.dir, "servers", strconv.Itoa(n))}, flags...)...)
		return err
	}
	if !restart {
		for n := 1; n <= quantity; n++ {
			if err := start(n); err != nil {
				return err
			}
		}
		return nil
	}
	errs := make([]error, quantity)
	var wg sync.WaitGroup
	for n := 1; n <= quantity; n++ {
		wg.Go(func() { errs[n-1] = start(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// startMiners starts quantity miners, named miner-1 and so on.
func (c *cluster) startMiners(ctx context.Context, quantity, threads int) error {
	for n := 1; n <= quantity; n++ {
		name := fmt.Sprintf("miner-%d", n)
		if _, err := c.start(ctx, "miner", name, "--name", name, "--threads", strconv.Itoa(threads)); err != nil {
			return err
		}
	}
	return nil
}

// stopCluster ends the run in order: the miners return their ranges, the leader commits that the cluster stops, the
// servers' states are compared, and then everything ends.
func (c *cluster) stopCluster() (agreement, error) {
	c.cancel()
	c.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	c.stopAll("miner")
	addresses, err := serversIn(c.env)
	if err != nil {
		return agreement{}, err
	}
	if len(addresses) == 0 {
		return agreement{}, nil
	}
	for { // leadership may just be moving
		err := c.client.StopCluster(ctx, addresses, "run ended")
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return agreement{}, err
		case <-time.After(20 * time.Millisecond):
		}
	}
	return c.compareStates(ctx, addresses)
}

// agreement says whether the servers have the same state.
type agreement struct {
	AppliedIndex uint64 `json:"applied_index"`
	StateDigest  string `json:"state_digest"`
	Servers      int    `json:"servers_agreeing"`
}

func (a agreement) String() string {
	if a.Servers == 0 {
		return "no server was left to compare"
	}
	return fmt.Sprintf("%d %s agree on state %.12s at index %d", a.Servers, plural(uint64(a.Servers), "server"), a.StateDigest, a.AppliedIndex)
}

// compareStates waits until every server that answers has applied the same entries, and compares their states.
func (c *cluster) compareStates(ctx context.Context, addresses []string) (agreement, error) {
	for {
		digests := make(map[uint64]map[string]int) // by index
		for _, address := range addresses {
			status, err := c.client.Status(ctx, address)
			if err != nil {
				continue // a server that was killed has no state to compare
			}
			if digests[status.AppliedIndex] == nil {
				digests[status.AppliedIndex] = make(map[string]int)
			}
			digests[status.AppliedIndex][hex.EncodeToString(status.StateDigest[:])]++
		}
		for index, states := range digests {
			if len(states) > 1 {
				return agreement{}, fmt.Errorf("servers disagree on the state at index %d: keep %s and report this", index, c.dir)
			}
			if len(digests) == 1 {
				for digest, servers := range states {
					return agreement{AppliedIndex: index, StateDigest: digest, Servers: servers}, nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return agreement{}, errors.New("the servers did not reach the same index in time")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// close ends every process, in the order in which they need each other.
func (c *cluster) close() error {
	c.cancel()
	c.wg.Wait() // no supervisor starts anything from here on
	c.stopAll("miner")
	c.stopAll("server")
	c.stopAll("webservice")
	return c.client.Close()
}

// stopAll stops the processes of one role, all at once, and waits for them.
func (c *cluster) stopAll(role string) {
	c.mu.Lock()
	var chosen []*child
	for _, process := range c.children {
		if process.role == role {
			chosen = append(chosen, process)
		}
	}
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, process := range chosen {
		wg.Go(func() { process.stop(stopPatience) })
	}
	wg.Wait()
}
