package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

var (
	simSeed     = flag.Uint64("sim.seed", 0, "run this one schedule of TestSimulation, with its log")
	simFor      = flag.Duration("sim.for", 3*time.Second, "how long TestSimulation begins new schedules")
	simFrom     = flag.Uint64("sim.from", 0, "first seed of TestSimulation; 0: 1, and by the clock in a soak")
	simTogether = flag.Int("sim.together", 2, "schedules that run at once")
)

// What all simulated clusters have in common. The work is small, so that a search costs little.
const (
	simHeartbeat = 2 * time.Second
	simLast      = 160 // nonce
	simChunk     = 8
	simBits      = 7
)

var simNonces = pow.Range{First: 1, Last: simLast}

// simQuiet bounds the time that a cluster takes to recover once the faults are over: a transfer that did not help is tried
// again after a minute at most.
const simQuiet = 4 * time.Minute

// simStuck is real time, of which a schedule takes less than a second. Longer: somebody goes round in circles without any wait,
// or waits for a mutex.
const simStuck = 5 * time.Minute

// sim is one simulated cluster.
type sim struct {
	schedule   simSchedule
	dir        string
	net        *simNet
	web        *simWeb
	servers    []*simServer
	miners     []*simMiner
	history    simHistory
	operations simOperations
	logs       simLogBuffer

	background sync.WaitGroup // stops under way, and dying processes

	mu       sync.Mutex
	began    time.Time
	byAddr   map[string]*simProcess
	terms    map[uint64]int // who led
	problems []string
	notes    []string
}

func (s *sim) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems = append(s.problems, fmt.Sprintf("%8.3fs  ", time.Since(s.began).Seconds())+fmt.Sprintf(format, args...))
}

func (s *sim) failed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.problems)
}

func (s *sim) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, fmt.Sprintf("%8.3fs  ", time.Since(s.began).Seconds())+fmt.Sprintf(format, args...))
}

func (s *sim) server(id int) *simServer { return s.servers[id-1] }

func (s *sim) served(p *simProcess) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byAddr[p.address] = p
}

func (s *sim) unserved(p *simProcess) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byAddr[p.address] == p {
		delete(s.byAddr, p.address)
	}
}

func (s *sim) serving(address string) *simProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byAddr[address]
}

// leads is told each term that a server serves.
func (s *sim) leads(p *simProcess, term uint64) {
	s.mu.Lock()
	who, led := s.terms[term]
	s.terms[term] = p.server.id
	s.mu.Unlock()
	s.note("server %d leads in term %d", p.server.id, term)
	if led && who != p.server.id {
		s.fail("servers %d and %d both lead in term %d", who, p.server.id, term)
	}
}

func dialFrom(n *simNet, host string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		return n.dial(ctx, host, simWatch, address)
	}
}

// simLogBuffer keeps the log of one schedule that is looked at.
type simLogBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
	on   bool
}

func (b *simLogBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(line)
}

func (s *sim) logger(name string) *slog.Logger {
	if !s.logs.on {
		return slog.New(slog.DiscardHandler)
	}
	began := s.began
	return slog.New(slog.NewTextHandler(&s.logs, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
			return slog.String("t", fmt.Sprintf("%.3f", a.Value.Time().Sub(began).Seconds()))
		}
		return a
	}})).With("on", name)
}

// newSim starts a cluster without faults.
func newSim(schedule simSchedule, dir string, logs bool) (*sim, error) {
	s := &sim{schedule: schedule, dir: dir, net: newSimNet(schedule.seed), web: newSimWeb(), began: time.Now(),
		byAddr: make(map[string]*simProcess), terms: make(map[uint64]int)}
	s.logs.on = logs
	for id := 1; id <= schedule.servers; id++ {
		name := simHost(id)
		server := &simServer{sim: s, id: id, name: name}
		server.disk = newSimDisk(s.net, name, filepath.Join(dir, name+"-0"), simDice(schedule.seed, 100+uint64(id)))
		s.servers = append(s.servers, server)
		var join []string
		if id > 1 {
			join = []string{simAddress(1, 0)}
		}
		if err := server.start(join...); err != nil {
			return s, err
		}
	}
	for i := range schedule.miners {
		m := &simMiner{sim: s, name: fmt.Sprint("m", i), perChunk: time.Duration(150*(i+1)) * time.Millisecond,
			liar: schedule.liar && i == schedule.miners-1, dice: simDice(schedule.seed, 200+uint64(i))}
		s.miners = append(s.miners, m)
		m.start()
	}
	return s, s.recovered("the new cluster")
}

// revive starts a server that is down.
func (s *sim) revive(id int) {
	if err := s.server(id).start(); err != nil {
		s.note("server %d does not start: %v", id, err)
		if !strings.Contains(err.Error(), errSimDisk.Error()) && !strings.Contains(err.Error(), "in use") {
			s.fail("server %d does not start: %v", id, err)
		}
	}
}

// storm lets the faults happen.
func (s *sim) storm() {
	type step struct {
		at time.Duration
		do func()
	}
	var steps []step
	for _, f := range s.schedule.faults {
		steps = append(steps, step{f.at, func() { s.note("%s", f.what); f.begin(s) }})
		if f.lasts > 0 {
			steps = append(steps, step{f.at + f.lasts, func() { s.note("no longer: %s", f.what); f.end(s) }})
		}
	}
	slices.SortStableFunc(steps, func(a, b step) int { return int(a.at - b.at) })
	began := time.Now()
	for _, step := range steps {
		time.Sleep(time.Until(began.Add(step.at))) // virtual time, as all in a simulation
		step.do()
	}
}

// recovered waits until everything runs as it should: all servers are up, the lowest id leads, on everybody's calculation,
// and work is finished.
func (s *sim) recovered(who string) error {
	began := time.Now()
	acks, blocks := s.history.count(), uint64(0)
	first := true
	for problem := "?"; problem != ""; {
		if time.Since(began) > simQuiet {
			return fmt.Errorf("%s does not recover within %v: %s", who, simQuiet, problem)
		}
		time.Sleep(100 * time.Millisecond) // virtual
		for _, server := range s.servers {
			if server.running() == nil {
				s.revive(server.id)
			}
		}
		settled, now := s.now()
		if first && problem == "?" {
			first, blocks = false, settled
		}
		problem = now
		if problem == "" && s.history.count() < acks+4 {
			problem = fmt.Sprintf("%d answers acknowledged, it was %d", s.history.count(), acks)
		}
		if problem == "" && settled < blocks+1 {
			problem = "no block is settled"
		}
	}
	return nil
}

// now says what is not as it should be, and how many blocks are settled.
func (s *sim) now() (blocks uint64, problem string) {
	var leading []int
	for _, server := range s.servers {
		p := server.running()
		if p == nil {
			return 0, fmt.Sprintf("server %d is down", server.id)
		}
		status := p.node.Status()
		if status.Leading {
			leading = append(leading, server.id)
		}
		if status.ComputedLeaderID != 1 || status.LeaderID != 1 || len(status.Voters) != len(s.servers) {
			problem = fmt.Sprintf("server %d computes leader %d, knows leader %d of voters %v", server.id, status.ComputedLeaderID,
				status.LeaderID, status.Voters)
		}
		p.node.View(func(v fsm.View) {
			for _, row := range v.Servers() {
				if !row.Up || !row.Member {
					problem = fmt.Sprintf("server %d says that server %d is not up", server.id, row.ID)
				}
			}
			if server.id == 1 {
				blocks = v.BlockCount()
			}
		})
	}
	if !slices.Equal(leading, []int{1}) {
		problem = fmt.Sprintf("servers %v lead; %s", leading, problem)
	}
	return blocks, problem
}

// same waits until all servers have applied the same history, and returns its head.
func (s *sim) same() (head fsm.Head, err error) {
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		heads, digests, missing := make(map[fsm.Head]bool), make(map[pow.Hash]bool), uint64(0)
		for _, server := range s.servers {
			p := server.running()
			if p == nil {
				return head, fmt.Errorf("server %d is down", server.id)
			}
			missing += p.node.Status().HistoryMissing
			p.node.View(func(v fsm.View) {
				head = v.Head()
				heads[head], digests[v.Digest()] = true, true
			})
		}
		if len(heads) == 1 && len(digests) == 1 && missing == 0 {
			return head, nil
		}
		if time.Since(began) > simQuiet {
			return head, fmt.Errorf("servers do not agree: %d heads, %d digests, %d records missing", len(heads), len(digests), missing)
		}
	}
}

// close ends everything, and waits for it.
func (s *sim) close() {
	for _, m := range s.miners {
		m.stop()
	}
	for _, server := range s.servers {
		server.crash()
	}
	s.background.Wait()
}

// simTotals are the faults and schedules of a run of TestSimulation.
type simTotals struct {
	schedules, faults, answers, blocks, terms, removed, readmitted, operations, undecided atomic.Int64
}

// runSim runs one schedule in a bubble.
func runSim(t *testing.T, seed uint64, totals *simTotals, logs bool) {
	dir := simDir(t)
	schedule := newSimSchedule(seed)
	defer time.AfterFunc(simStuck, func() { panic(fmt.Sprintf("seed %d: virtual time stands still", seed)) }).Stop()
	synctest.Test(t, func(t *testing.T) {
		s, err := newSim(schedule, dir, logs)
		if err == nil {
			s.storm()
			err = s.recovered("the cluster")
		}
		if err == nil {
			for _, m := range s.miners {
				m.stop()
			}
			_, err = s.same()
		}
		if err != nil {
			s.fail("%v", err)
		}
		s.audit(totals, err == nil)
		s.close()
		for _, problem := range s.failed() {
			t.Error(problem)
		}
		if t.Failed() || logs {
			t.Logf("%v\n\nwhat happened:\n%s", schedule, strings.Join(s.notes, "\n"))
			t.Logf("replay it: go test ./cmd/raftmine -run TestSimulation -sim.seed %d", seed)
		}
		if logs {
			path := filepath.Join(os.TempDir(), fmt.Sprintf("raftmine-simulation-%d.log", seed))
			if err := os.WriteFile(path, s.logs.text.Bytes(), 0o600); err != nil {
				t.Error(err)
			}
			t.Logf("log: %s", path)
		}
		totals.schedules.Add(1)
		totals.faults.Add(int64(len(schedule.faults)))
	})
}

// simDir is a folder in memory, where the system has one: nothing of a simulation must survive the power.
func simDir(t *testing.T) string {
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err != nil || !info.IsDir() {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "raftmine-simulation-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestSimulation runs random faults against clusters of real servers and coordinators in virtual time, and holds every
// promise against what is left. A few seconds of it are part of every run of the tests; make soak runs it for long.
func TestSimulation(t *testing.T) {
	var totals simTotals
	if *simSeed != 0 {
		runSim(t, *simSeed, &totals, true)
		return
	}
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // the heap is small, and much is allocated: a third less time
	began := time.Now()
	var next atomic.Uint64
	next.Store(*simFrom)
	if *simFrom == 0 && *simFor > time.Minute {
		next.Store(uint64(began.UnixNano()))
	}
	t.Run("schedules", func(t *testing.T) {
		for range *simTogether {
			t.Run("worker", func(t *testing.T) {
				t.Parallel()
				for time.Since(began) < *simFor && !t.Failed() {
					seed := next.Add(1)
					t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { runSim(t, seed, &totals, false) })
				}
			})
		}
	})
	took := time.Since(began)
	rate := func(n int64) int64 { return int64(float64(n) / took.Minutes()) }
	summary := fmt.Sprintf("%d schedules, %d faults in %v: %d schedules and %d faults a minute; %d terms, %d servers removed and %d readmitted, "+
		"%d answers acknowledged, %d blocks; %d operations in linearizable histories, %d undecided",
		totals.schedules.Load(), totals.faults.Load(), took.Round(time.Second), rate(totals.schedules.Load()), rate(totals.faults.Load()),
		totals.terms.Load(), totals.removed.Load(), totals.readmitted.Load(), totals.answers.Load(), totals.blocks.Load(),
		totals.operations.Load(), totals.undecided.Load())
	t.Log(summary)
	if *simFor > time.Minute { // of a soak everybody wants to know
		fmt.Println(summary)
	}
}
