package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// drillOptions are the flags of "raftmine drill".
type drillOptions struct {
	faults                            int
	seed                              uint64
	servers, miners, threads, clients int
	zeros                             int
	blockTime                         time.Duration
	dataDir                           string
	keep                              bool
	serverFlags                       serverTuning
}

func newDrillCommand() *cobra.Command {
	var o drillOptions
	cmd := &cobra.Command{
		Use:   "drill",
		Short: "A failover drill on a local cluster: kill, pause and restart its processes, and check every promise",
		Long: `Start a cluster on this machine and, one fault at a time, kill (-9), pause or terminate a server or a miner and start it
again, while miners search and simulated miners commit answers all the time. Which fault comes when follows from --seed.

Afterwards the logs of all servers are replayed and compared with every answer that was acknowledged and with the chain
of the web service. The drill fails when an acknowledged answer is lost, a height was accepted twice, a range was granted
to two, the servers' states differ, or the cluster did not become healthy again. Ctrl-C ends it early, with these checks.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return usageError{err}
			}
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			if _, err := newLogger(cmd, io.Discard); err != nil {
				return err
			}
			logLevel, _ := cmd.Flags().GetString("log-level")
			if !cmd.Flags().Changed("log-level") {
				logLevel = "info" // the children's logs go to files
			}
			return o.run(cmd.Context(), out, logLevel)
		},
	}
	cmd.Flags().IntVar(&o.faults, "faults", 10, "how many faults")
	cmd.Flags().Uint64Var(&o.seed, "seed", 0, "which faults; 0: a new seed, which is printed")
	cmd.Flags().IntVar(&o.servers, "servers", 3, "how many servers")
	cmd.Flags().IntVar(&o.miners, "miners", 2, "how many miners")
	cmd.Flags().IntVar(&o.threads, "threads", 1, "search threads of each miner")
	cmd.Flags().IntVar(&o.clients, "clients", 3, "how many simulated miners, which search little and answer often, beside the one that measures")
	cmd.Flags().IntVar(&o.zeros, "zeros", 6, "leading zero hex digits of the first block")
	cmd.Flags().DurationVar(&o.blockTime, "block-time", 3*time.Second, "pace of blocks; 0 keeps --zeros fixed")
	cmd.Flags().StringVar(&o.dataDir, "data-dir", "", "new folder for all data (default: one here, removed when all promises held)")
	cmd.Flags().BoolVar(&o.keep, "keep", false, "keep the data although all promises held")
	o.serverFlags.add(cmd)
	// Short heartbeats make a drill short; with small chunks the simulated miners answer often.
	changeDefault(cmd, "heartbeat", "1s")
	changeDefault(cmd, "chunk", "2000")
	return cmd
}

// changeDefault gives a flag that commands share another default here.
func changeDefault(cmd *cobra.Command, name, value string) {
	flag := cmd.Flags().Lookup(name)
	if err := flag.Value.Set(value); err != nil {
		panic(err) // a constant of this program
	}
	flag.DefValue = value
}

func (o *drillOptions) validate() error {
	switch {
	case o.faults < 1 || o.faults > 100_000:
		return fmt.Errorf("--faults %d: want 1 to 100000", o.faults)
	case o.servers < 3 || o.servers > maxServers:
		return fmt.Errorf("--servers %d: want 3 to %d, so that a majority survives each fault", o.servers, maxServers)
	case o.miners < 0 || o.miners > 64:
		return fmt.Errorf("--miners %d: want 0 to 64", o.miners)
	case o.threads < 1 || o.threads > 1024:
		return fmt.Errorf("--threads %d: want 1 to 1024", o.threads)
	case o.clients < 0 || o.clients > 1000:
		return fmt.Errorf("--clients %d: want 0 to 1000", o.clients)
	case o.zeros < 1 || o.zeros > 64:
		return fmt.Errorf("--zeros %d: want 1 to 64 hex digits", o.zeros)
	case o.blockTime < 0:
		return fmt.Errorf("--block-time %s: want 0 (fixed difficulty) or more", o.blockTime)
	}
	return o.serverFlags.validate()
}

// drillStarted is the first line of a drill: what it takes to repeat it.
type drillStarted struct {
	Event   string `json:"event"`
	Seed    uint64 `json:"seed"`
	Faults  int    `json:"faults"`
	Servers int    `json:"servers"`
	Miners  int    `json:"miners"`
	Clients int    `json:"clients"`
	DataDir string `json:"data_dir"`
}

// errDrillFailed: at least one promise broke; which ones was printed.
var errDrillFailed = errors.New("the drill failed")

// run does the whole drill. Whatever way it ends, its processes end with it.
func (o *drillOptions) run(ctx context.Context, out *printer, logLevel string) error {
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	dir, err := o.makeDataDir()
	if err != nil {
		return hinted(err, "choose a new folder that can be written with --data-dir DIR")
	}
	out.print(drillStarted{"drill", o.seed, o.faults, o.servers, o.miners, o.clients + 1, dir},
		"drill: %d faults by seed %d on %d servers, %d miners and %d simulated ones; data in %s",
		o.faults, o.seed, o.servers, o.miners, o.clients+1, dir)
	report, err := o.drill(ctx, dir, out, logLevel)
	if err == nil {
		report.print(out)
		if len(report.Broken) > 0 {
			err = fmt.Errorf("%w: %s", errDrillFailed, fmt.Sprintf("%d %s", len(report.Broken), plural(uint64(len(report.Broken)), "broken promise")))
		}
	}
	if err != nil {
		return hinted(err, fmt.Sprintf("logs and data are kept in %s; the same faults again: %s", dir, o.again()))
	}
	if o.keep {
		return nil
	}
	return os.RemoveAll(dir)
}

// again is the command for the same faults: what planFault depends on.
func (o *drillOptions) again() string {
	return fmt.Sprintf("raftmine drill --faults %d --seed %d --servers %d --miners %d --heartbeat %s", o.faults, o.seed, o.servers, o.miners, o.serverFlags.heartbeat)
}

// makeDataDir makes the folder of all data. An old one is refused: its history would be judged by this drill's answers.
func (o *drillOptions) makeDataDir() (string, error) {
	dir := o.dataDir
	if dir == "" {
		dir = "raftmine-drill-" + time.Now().Format("20060102-150405") + "-" + strconv.FormatUint(o.seed, 10)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", err
	}
	return dir, os.Mkdir(dir, 0o700)
}

// drill is a running drill.
type drill struct {
	*cluster
	o       *drillOptions
	out     *printer // the cluster's own is silent: a drill's processes end all the time
	service *drillService
	book    *ackBook
	seen    drillObserver // of the simulated miners; may be nil
	probe   *drillClient
	clients []*drillClient
	started time.Time

	serverArgs func(id int) []string
	leader     uint64 // when the cluster was healthy last
}

// drill starts the cluster, survives the faults and judges what is left.
func (o *drillOptions) drill(ctx context.Context, dir string, out *printer, logLevel string) (report *drillReport, err error) {
	c, err := newCluster(dir, &printer{w: io.Discard}, logLevel)
	if err != nil {
		return nil, err
	}
	d := &drill{cluster: c, o: o, out: out, book: &ackBook{}, started: time.Now()}
	defer func() { err = errors.Join(err, d.end()) }()
	if d.service, err = startDrillService(filepath.Join(dir, "webservice"), o.zeros, o.blockTime); err != nil {
		return nil, err
	}
	if err := d.startAll(context.WithoutCancel(ctx)); err != nil { // what was begun is judged, also without a fault
		return nil, err
	}
	survived, err := d.surviveAll(ctx)
	if err != nil {
		return nil, err
	}
	final, err := d.settle()
	if err != nil {
		return nil, err
	}
	return d.judge(survived, final)
}

// startAll starts the servers, the simulated miners and the real ones, and waits until all work.
func (d *drill) startAll(ctx context.Context) error {
	flags := append(d.o.serverFlags.args(), "--web-service", d.service.address, "--keep-log")
	d.serverArgs = func(id int) []string {
		return append([]string{"--data-dir", d.serverDir(id)}, flags...)
	}
	if err := d.startServers(ctx, d.o.servers, flags); err != nil {
		return err
	}
	if _, err := d.settledBlocks(ctx); err != nil {
		return err
	}
	d.startClients()
	for n := 1; n <= d.o.miners; n++ {
		if err := d.startMiner(ctx, n); err != nil {
			return err
		}
	}
	return d.awaitHealthy(ctx, time.Now())
}

// startClients starts the simulated miners. The one that measures asks every server by itself whether it leads, so what
// it sees depends on the servers alone; the others look for the leader as a miner does.
func (d *drill) startClients() {
	chunk := d.o.serverFlags.chunk
	for n := 0; n <= d.o.clients; n++ {
		config := drillClientConfig{name: fmt.Sprintf("client-%d", n), chunk: chunk, pace: 20 * time.Millisecond, book: d.book, seen: d.seen}
		config.sources = []func() []string{func() []string {
			addresses, _ := serversIn(d.env) // none: the dialer asks again
			return addresses
		}}
		if n == 0 {
			config.name, config.pace, config.apart, config.sources = "probe", 2*time.Millisecond, true, nil
			for id := 1; id <= d.o.servers; id++ {
				config.sources = append(config.sources, func() []string { return []string{d.server(id).started.Address} })
			}
		}
		d.clients = append(d.clients, startDrillClient(config))
	}
	d.probe = d.clients[0]
}

func (d *drill) startServer(ctx context.Context, id int) error {
	_, err := d.start(ctx, "server", serverName(id), d.serverArgs(id)...)
	return err
}

func (d *drill) startMiner(ctx context.Context, n int) error {
	name := minerName(n)
	// At debug level a miner's log tells when its threads were idle.
	_, err := d.start(ctx, "miner", name, "--name", name, "--threads", strconv.Itoa(d.o.threads), "--log-level", "debug")
	return err
}

func serverName(id int) string { return fmt.Sprintf("server-%d", id) }
func minerName(n int) string   { return fmt.Sprintf("miner-%d", n) }

// server returns the newest process of a server.
func (d *drill) server(id int) *child { return d.process(serverName(id)) }

func (d *drill) process(name string) *child {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.children[name]
}

// end ends everything that runs yet.
func (d *drill) end() error {
	d.stopClients()
	err := d.close()
	if d.service != nil {
		err = errors.Join(err, d.service.close())
	}
	return err
}

func (d *drill) stopClients() {
	for _, client := range d.clients {
		client.stop()
	}
	d.clients = nil
}
