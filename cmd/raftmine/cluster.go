package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"raftmine/raftnode"
	"raftmine/raftnode/registry"
	"raftmine/rpc"
)

// respawnDelay is how long "run --respawn" waits before it starts a dead process again.
const respawnDelay = 2 * time.Second

// stopPatience is how long a child may take to end in order before it is killed. Tuning.
const stopPatience = 8 * time.Second

// answerPatience is how long a server may take to tell its state at the end. Tuning.
const answerPatience = time.Second

// cluster is a web service, servers and miners that run as child processes on this machine.
//
//	DIR/lock          held while the run lives
//	DIR/environment   the local environment, so that runs never mix
//	DIR/webservice    the chain
//	DIR/servers/N     one folder a server
//	DIR/logs          one log a process
type cluster struct {
	dir      string
	lock     *registry.FileLock // of dir: two runs would change each other's cluster
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
	ended    chan struct{}     // has room for one: a process ended that is not started again
}

func newCluster(dir string, out *printer, logLevel string) (*cluster, error) {
	if err := refuseForeign(dir, "environment", "lock", "logs", "servers"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := registry.LockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	for _, folder := range []string{"logs", "servers"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o700); err != nil {
			return nil, errors.Join(err, lock.Release())
		}
	}
	env, err := registry.Open(filepath.Join(dir, "environment"))
	if err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	c := &cluster{dir: dir, lock: lock, env: env, out: out, logLevel: logLevel, children: make(map[string]*child),
		ended: make(chan struct{}, 1), client: rpc.NewClusterClient()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// errForeignFolder: a folder for data holds other things, which it might be a mistake to write among.
var errForeignFolder = errors.New("not a folder of raftmine's data")

// refuseForeign refuses a folder that holds something, but not mark, which every folder of ours has in the end. What else
// is ours may be there without it: a process may have been killed before it made mark.
func refuseForeign(dir, mark string, ours ...string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var foreign []string
	for _, entry := range entries {
		switch name := entry.Name(); {
		case name == mark:
			return nil
		case name != "lost+found" && !slices.Contains(ours, name):
			foreign = append(foreign, name)
		}
	}
	if len(foreign) == 0 {
		return nil
	}
	names := strings.Join(foreign[:min(3, len(foreign))], ", ")
	if more := len(foreign) - 3; more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	return hinted(fmt.Errorf("%s is %w: it holds %s, and no %s", dir, errForeignFolder, names, mark),
		"choose an empty folder with --data-dir DIR")
}

// start starts one process under a supervisor, which reports its end.
func (c *cluster) start(ctx context.Context, role, name string, args ...string) (*child, error) {
	all := append([]string{role, "--environment", c.env.Dir(), "--log-level", c.logLevel}, args...)
	process, err := startChild(ctx, role, filepath.Join(c.dir, "logs", name+".log"), all...)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.children[name] = process
	c.mu.Unlock()
	c.out.processStarted(process.started)
	c.wg.Add(1)
	go c.supervise(role, name, args, process)
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
	if said := process.lastError(); said != "" {
		why = said
	}
	c.out.print(ended, "%s (pid %d) ended: %s", name, process.pid(), why)
	if !c.respawn {
		select {
		case c.ended <- struct{}{}:
		default:
		}
	}
	for c.respawn {
		select {
		case <-c.ctx.Done():
			return
		case <-time.After(respawnDelay):
		}
		_, err := c.start(c.ctx, role, name, args...)
		if err == nil || c.ctx.Err() != nil {
			return
		}
		c.out.print(processEnded{Event: "process_ended", Role: role, Error: err.Error()}, "%s: %v", name, err)
	}
}

// awaitLastServer returns nil once every server has ended for good, or the error of ctx.
func (c *cluster) awaitLastServer(ctx context.Context) error {
	for c.respawn || c.lives("server") {
		select {
		case <-c.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// lives reports whether a process of the role runs.
func (c *cluster) lives(role string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, process := range c.children {
		if process.role == role && process.alive() {
			return true
		}
	}
	return false
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

// startWebService starts our own web service.
func (c *cluster) startWebService(ctx context.Context, zeros int, blockTime time.Duration) error {
	_, err := c.start(ctx, "webservice", "webservice", "--data-dir", filepath.Join(c.dir, "webservice"),
		"--zeros", strconv.Itoa(zeros), "--block-time", blockTime.String())
	return err
}

// startServers starts quantity servers. Those whose folder has an id start first and together, because none of them
// may be able to lead alone. New ones join them, one after the other, so that in a new cluster folder N holds server N.
func (c *cluster) startServers(ctx context.Context, quantity int, flags []string) error {
	start := func(n int) error {
		name := fmt.Sprintf("server-%d", n)
		_, err := c.start(ctx, "server", name, append([]string{"--data-dir", c.serverDir(n)}, flags...)...)
		return err
	}
	known, err := c.knownServers()
	if err != nil {
		return err
	}
	errs := make([]error, len(known))
	var wg sync.WaitGroup
	for i, n := range known {
		wg.Go(func() { errs[i] = start(n) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for n := 1; n <= quantity; n++ {
		if slices.Contains(known, n) {
			continue
		}
		if err := start(n); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) serverDir(n int) string { return filepath.Join(c.dir, "servers", strconv.Itoa(n)) }

// checkServers refuses to start fewer servers than there are: the others would wait for those that are left out.
func (c *cluster) checkServers(quantity int) error {
	known, err := c.knownServers()
	if err != nil {
		return err
	}
	if most := slices.Max(append(known, 0)); most > quantity {
		return hinted(fmt.Errorf("%s holds the servers %s, and --servers is %d", c.dir, strings.Trim(fmt.Sprint(known), "[]"), quantity),
			fmt.Sprintf("run again with --servers %d", most))
	}
	return nil
}

// knownServers returns the folders of servers that have an id, in order.
func (c *cluster) knownServers() ([]int, error) {
	entries, err := os.ReadDir(filepath.Join(c.dir, "servers"))
	if err != nil {
		return nil, err
	}
	var known []int
	for _, entry := range entries {
		n, err := strconv.Atoi(entry.Name())
		if err != nil || n < 1 {
			continue
		}
		if has, err := raftnode.HasServer(c.serverDir(n)); err != nil {
			return nil, err
		} else if has {
			known = append(known, n)
		}
	}
	slices.Sort(known)
	return known, nil
}

// startMiners starts quantity miners, named miner-1 and so on.
func (c *cluster) startMiners(ctx context.Context, quantity, threads int, flags ...string) error {
	for n := 1; n <= quantity; n++ {
		name := fmt.Sprintf("miner-%d", n)
		args := append([]string{"--name", name, "--threads", strconv.Itoa(threads)}, flags...)
		if _, err := c.start(ctx, "miner", name, args...); err != nil {
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
	if len(addresses) == 0 {
		return agreement{}, err
	}
	stopErr := c.commitStop(ctx, addresses)
	agreement, err := c.compareStates(addresses)
	return agreement, errors.Join(stopErr, err)
}

// commitStop has the leader commit that the cluster stops. Leadership may just be moving.
func (c *cluster) commitStop(ctx context.Context, addresses []string) error {
	for {
		err := c.client.StopCluster(ctx, addresses, "run ended")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
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
	if a.Servers == 1 {
		return fmt.Sprintf("1 server is left, with state %.12s at index %d", a.StateDigest, a.AppliedIndex)
	}
	return fmt.Sprintf("%d servers agree on state %.12s at index %d", a.Servers, a.StateDigest, a.AppliedIndex)
}

// compareStates waits until every server that answers has applied the same entries, and compares their states. One that
// was killed or is paused has no say.
func (c *cluster) compareStates(addresses []string) (agreement, error) {
	patience, cancel := context.WithTimeout(context.Background(), stopPatience) // also after Ctrl-C: that is when it is asked
	defer cancel()
	for {
		states := make([]*rpc.Status, len(addresses))
		ctx, cancel := context.WithTimeout(patience, answerPatience)
		var asked sync.WaitGroup
		for i, address := range addresses {
			asked.Go(func() {
				if status, err := c.client.Status(ctx, address); err == nil {
					states[i] = &status
				}
			})
		}
		asked.Wait()
		cancel()
		states = slices.DeleteFunc(states, func(s *rpc.Status) bool { return s == nil })
		same := true
		for _, s := range states {
			if s.AppliedIndex != states[0].AppliedIndex {
				same = false
			} else if s.StateDigest != states[0].StateDigest {
				return agreement{}, fmt.Errorf("servers disagree on the state at index %d: keep %s and report this", s.AppliedIndex, c.dir)
			}
		}
		switch {
		case len(states) == 0:
			return agreement{}, nil
		case same:
			return agreement{AppliedIndex: states[0].AppliedIndex, StateDigest: states[0].StateDigest.String(), Servers: len(states)}, nil
		case patience.Err() != nil:
			return agreement{}, errors.New("the servers did not reach the same index in time")
		}
		wait(patience, 20*time.Millisecond)
	}
}

// close ends every process, in the order in which they need each other, and frees the folder.
func (c *cluster) close() error {
	c.cancel()
	c.wg.Wait() // no supervisor starts anything from here on
	c.stopAll("miner")
	c.stopAll("server")
	c.stopAll("webservice")
	return errors.Join(c.client.Close(), c.lock.Release())
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
