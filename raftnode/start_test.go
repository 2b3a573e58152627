package raftnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// directPeers calls the nodes of this process; their addresses are real.
type directPeers struct {
	mu    sync.Mutex
	nodes map[string]*Node
}

func (d *directPeers) serve(node *Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nodes[node.Address()] = node
}

func (d *directPeers) get(address string) (*Node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if node := d.nodes[address]; node != nil {
		return node, nil
	}
	return nil, fmt.Errorf("call %s: %w", address, syscall.ECONNREFUSED)
}

func (d *directPeers) Heartbeat(_ context.Context, address string, request HeartbeatRequest) (ServerReport, error) {
	node, err := d.get(address)
	if err != nil {
		return ServerReport{}, err
	}
	return node.HandleHeartbeat(request)
}

func (d *directPeers) Join(ctx context.Context, address string, request JoinRequest) (JoinReply, error) {
	node, err := d.get(address)
	if err != nil {
		return JoinReply{}, err
	}
	return node.HandleJoin(ctx, request)
}

func (d *directPeers) Leave(ctx context.Context, address string, request LeaveRequest) error {
	node, err := d.get(address)
	if err != nil {
		return err
	}
	return node.HandleLeave(ctx, request)
}

func (d *directPeers) History(ctx context.Context, address string, request HistoryRequest) iter.Seq2[JournalRecord, error] {
	node, err := d.get(address)
	if err != nil {
		return func(yield func(JournalRecord, error) bool) { yield(JournalRecord{}, err) }
	}
	return node.HandleHistory(ctx, request)
}

// local is a local environment with servers on real sockets and real disks.
type local struct {
	t     *testing.T
	env   *registry.Environment
	peers *directPeers
}

func newLocal(t *testing.T) *local {
	t.Helper()
	env, err := registry.Open(filepath.Join(t.TempDir(), "env"))
	if err != nil {
		t.Fatal(err)
	}
	return &local{t: t, env: env, peers: &directPeers{nodes: make(map[string]*Node)}}
}

// start starts a server and its Run; the returned function closes it.
func (l *local) start(change ...func(*StartConfig)) (*Node, func(), error) {
	config := StartConfig{Config: Config{
		Environment: l.env,
		Peers:       l.peers,
		Heartbeat:   500 * time.Millisecond,
		JoinTimeout: 20 * time.Second,
		Host:        fsm.Host{MachineID: "m", BootID: "b"},
	}}
	for _, f := range change {
		f(&config)
	}
	node, err := Start(context.Background(), config)
	if err != nil {
		return nil, nil, err
	}
	l.peers.serve(node)
	ran := make(chan error, 1)
	go func() {
		ran <- node.Run(context.Background(), func(ctx context.Context, _ uint64) error {
			<-ctx.Done()
			return nil
		})
	}()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			if err := node.Close(); err != nil {
				l.t.Error(err)
			}
			if err := <-ran; err != nil {
				l.t.Error(err)
			}
		})
	}
	l.t.Cleanup(stop)
	return node, stop, nil
}

func (l *local) mustStart(change ...func(*StartConfig)) (*Node, func()) {
	l.t.Helper()
	node, stop, err := l.start(change...)
	if err != nil {
		l.t.Fatal(err)
	}
	return node, stop
}

func memoryStores(string, bool, *slog.Logger) (*Stores, error) {
	store := raft.NewInmemStore()
	return &Stores{Log: store, Stable: store, Snapshots: raft.NewInmemSnapshotStore(), Close: func() error { return nil }}, nil
}

func TestServersStartedAtTheSameInstantAreOneCluster(t *testing.T) {
	tries := 100
	if testing.Short() {
		tries = 10
	}
	parallel := make(chan struct{}, 8)
	var work sync.WaitGroup
	for try := range tries {
		parallel <- struct{}{}
		work.Go(func() {
			defer func() { <-parallel }()
			l := newLocal(t)
			nodes := make([]*Node, 2)
			stops := make([]func(), 2)
			var starting sync.WaitGroup
			for i := range nodes {
				starting.Go(func() {
					var err error
					if nodes[i], stops[i], err = l.start(func(c *StartConfig) {
						if try >= 10 { // enough of the disk
							c.OpenStores = memoryStores
						}
					}); err != nil {
						t.Errorf("try %d: %v", try, err)
					}
				})
			}
			starting.Wait()
			if nodes[0] == nil || nodes[1] == nil {
				return
			}
			ids := []uint64{nodes[0].ID(), nodes[1].ID()}
			slices.Sort(ids)
			if !slices.Equal(ids, []uint64{1, 2}) || nodes[0].ClusterID() != nodes[1].ClusterID() {
				t.Errorf("try %d: servers %v of clusters %s and %s", try, ids, nodes[0].ClusterID(), nodes[1].ClusterID())
			}
			for _, stop := range stops {
				stop()
			}
			entries, err := l.env.Entries()
			if err != nil || len(entries) != 0 {
				t.Errorf("try %d: entries left: %v, %v", try, entries, err)
			}
		})
	}
	work.Wait()
}

func TestServersOnRealDisksGoOnWhereTheyWere(t *testing.T) {
	l := newLocal(t)
	first, stopFirst := l.mustStart()
	second, stopSecond := l.mustStart()
	third, stopThird := l.mustStart()
	waitFor(t, "three voters", 5*time.Second, func() bool { return len(first.Status().Voters) == 3 })
	entries, err := l.env.Entries()
	if err != nil || len(entries) != 3 || entries[2].ServerID != 3 || entries[2].Address != third.Address() ||
		entries[2].DataDir != third.DataDir() || entries[2].PID != os.Getpid() {
		t.Errorf("entries %+v, %v", entries, err)
	}
	if _, err := first.Propose(t.Context(), strike(1)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the state is everywhere", 5*time.Second, func() bool { return digest(first) == digest(second) && digest(second) == digest(third) })
	address, cluster := first.Address(), first.ClusterID()
	stopThird()
	stopSecond()
	stopFirst()

	again, _ := l.mustStart()
	if again.ID() != 1 || again.ClusterID() != cluster || again.Address() != address {
		t.Errorf("came back as server %d at %s of %s", again.ID(), again.Address(), again.ClusterID())
	}
	other, _ := l.mustStart(func(c *StartConfig) { c.Listen = "127.0.0.1:0" }) // another port
	if other.ID() != 2 {
		t.Errorf("came back as server %d", other.ID())
	}
	waitFor(t, "a leader", 5*time.Second, func() bool { return again.Status().Leading || other.Status().Leading })
	waitFor(t, "the state is back", 5*time.Second, func() bool {
		var strikes uint32
		again.View(func(v fsm.View) {
			m, _ := v.Miner("miner-1")
			strikes = m.Strikes
		})
		return strikes == 1 && digest(again) == digest(other)
	})
}

func digest(n *Node) (text string) {
	n.View(func(v fsm.View) { text = fmt.Sprint(v.Head().Index, v.Digest()) })
	return text
}

func TestPortInUseIsReplacedOnARestartButNotWhenAskedFor(t *testing.T) {
	l := newLocal(t)
	node, stop := l.mustStart()
	address := node.Address()
	stop()
	occupant, err := Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	defer occupant.Close()
	_, _, err = l.start(func(c *StartConfig) { c.Listen = address })
	if !errors.Is(err, syscall.EADDRINUSE) || strings.Contains(err.Error(), "\n") {
		t.Errorf("start on a port in use: %v", err)
	}
	again, _ := l.mustStart()
	if again.ID() != 1 || again.Address() == address {
		t.Errorf("server %d at %s", again.ID(), again.Address())
	}
	waitFor(t, "it leads", 5*time.Second, func() bool { return again.Status().Leading })
}

func TestNewClusterIsNotMadeBesideTheDirectoryOfAnother(t *testing.T) {
	l := newLocal(t)
	_, stop := l.mustStart()
	stop()
	elsewhere := filepath.Join(t.TempDir(), "data")
	_, _, err := l.start(func(c *StartConfig) { c.DataDirPath = elsewhere })
	if !errors.Is(err, ErrNoClusterToJoin) || !strings.Contains(err.Error(), "server-1") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
	first, _ := l.mustStart()
	waitFor(t, "server 1 leads", 5*time.Second, func() bool { return first.Status().Leading })
	second, _ := l.mustStart(func(c *StartConfig) { c.DataDirPath = elsewhere })
	if second.ID() != 2 || second.ClusterID() != first.ClusterID() {
		t.Errorf("server %d of %s", second.ID(), second.ClusterID())
	}
}

// TestNewClusterIsNotMadeBesideADeadServerElsewhere: its entry is all that leads to its directory. It is kept until that is gone.
func TestNewClusterIsNotMadeBesideADeadServerElsewhere(t *testing.T) {
	l := newLocal(t)
	dirs := t.TempDir()
	one, two := filepath.Join(dirs, "one"), filepath.Join(dirs, "two")
	first, stop := l.mustStart(func(c *StartConfig) { c.DataDirPath = one })
	cluster := first.ClusterID()
	entries, err := l.env.Entries()
	if err != nil || len(entries) != 1 {
		t.Fatalf("entries %v, %v", entries, err)
	}
	stop()
	// As kill -9 leaves it: the entry, and nobody who holds it.
	content, err := json.Marshal(entries[0])
	if err != nil {
		t.Fatal(err)
	}
	trace := filepath.Join(l.env.Dir(), "entries", "server-999999-dead.json")
	if err := os.WriteFile(trace, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first failure must not take the trace away
		_, _, err := l.start(func(c *StartConfig) { c.DataDirPath = two })
		if !errors.Is(err, ErrNoClusterToJoin) || !strings.Contains(err.Error(), one) || strings.Contains(err.Error(), "\n") {
			t.Fatalf("beside the dead server: %v", err)
		}
	}
	first, stop = l.mustStart(func(c *StartConfig) { c.DataDirPath = one })
	if first.ID() != 1 || first.ClusterID() != cluster {
		t.Errorf("server %d of %s", first.ID(), first.ClusterID())
	}
	if _, err := os.Stat(trace); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dead entry of a server that runs: %v", err)
	}
	stop()
	// What was deleted is no trace.
	if err := errors.Join(os.WriteFile(trace, content, 0o600), os.RemoveAll(one)); err != nil {
		t.Fatal(err)
	}
	founded, _ := l.mustStart(func(c *StartConfig) { c.DataDirPath = two })
	if founded.ID() != 1 || founded.ClusterID() == cluster {
		t.Errorf("server %d of %s", founded.ID(), founded.ClusterID())
	}
	if _, err := os.Stat(trace); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dead entry of a directory that is gone: %v", err)
	}
}

func TestFirstServerThatWasKilledBeforeItHadItsIDIsNotInTheWay(t *testing.T) {
	l := newLocal(t)
	// It had claimed its directory and begun to bootstrap.
	dir, err := claimDataDir(l.env)
	if err != nil {
		t.Fatal(err)
	}
	stores, err := OpenBoltStores(dir.Path(), true, discard())
	if err != nil {
		t.Fatal(err)
	}
	if err := stores.Stable.SetUint64([]byte("CurrentTerm"), 7); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stores.Close(), dir.Close()); err != nil {
		t.Fatal(err)
	}
	node, _ := l.mustStart()
	if node.ID() != 1 || node.DataDir() != dir.Path() {
		t.Errorf("server %d on %s", node.ID(), node.DataDir())
	}
	waitFor(t, "it leads", 5*time.Second, func() bool { return node.Status().Leading })
}

func TestDamagedOrMissingLogIsNamed(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"missing":                   os.Remove,
		"empty":                     func(path string) error { return os.Truncate(path, 0) },
		"garbage":                   func(path string) error { return os.WriteFile(path, []byte(strings.Repeat("garbage ", 8192)), 0o600) },
		"cut":                       func(path string) error { return os.Truncate(path, 6000) },
		"cut after the second page": func(path string) error { return os.Truncate(path, 8192) },
		"cut after the third page":  func(path string) error { return os.Truncate(path, 12288) },
		"zeroes":                    func(path string) error { return os.WriteFile(path, make([]byte, 65536), 0o600) },
		"empty page": func(path string) error {
			file, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = file.WriteAt([]byte(strings.Repeat("\xff", 4096*6)), 4096*2)
			return errors.Join(err, file.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLocal(t)
			node, stop := l.mustStart()
			waitFor(t, "it leads", 5*time.Second, func() bool { return node.Status().Leading })
			path := filepath.Join(node.DataDir(), logFile)
			stop()
			if err := damage(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadFile(path)
			_, _, err := l.start()
			if after, _ := os.ReadFile(path); string(after) != string(before) {
				t.Error("the file was changed")
			}
			if err == nil || !(errors.Is(err, ErrLogDamaged) || errors.Is(err, ErrLogMissing)) ||
				!strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), joinAnew) || strings.Contains(err.Error(), "\n") {
				t.Errorf("start: %v", err)
			}
			if entries, _ := l.env.Entries(); len(entries) != 0 {
				t.Errorf("entries left: %v", entries)
			}
		})
	}
}

// TestDamagedJournalSaysWhatToDo: at its start, and when a server that runs finds it out.
func TestDamagedJournalSaysWhatToDo(t *testing.T) {
	empty := func(path string) error { return os.Truncate(path, 0) }
	garbage := func(path string) error { return os.WriteFile(path, []byte(strings.Repeat("garbage ", 20)), 0o600) }
	for name, row := range map[string]struct {
		file   string
		damage func(path string) error
	}{
		"synced missing":  {syncedFileName, os.Remove},
		"synced empty":    {syncedFileName, empty},
		"synced garbage":  {syncedFileName, garbage},
		"written missing": {writtenFileName, os.Remove},
		"written garbage": {writtenFileName, garbage},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLocal(t)
			node, stop := l.mustStart()
			waitFor(t, "it leads", 5*time.Second, func() bool { return node.Status().Leading })
			folder := filepath.Join(node.DataDir(), journalFolder)
			stop()
			path := filepath.Join(folder, row.file)
			if err := row.damage(path); err != nil {
				t.Fatal(err)
			}
			_, _, err := l.start()
			if !errors.Is(err, ErrJournalDamaged) || !strings.Contains(err.Error(), path) ||
				!strings.Contains(err.Error(), "move "+folder+" away") || !strings.HasSuffix(err.Error(), joinAnew) {
				t.Errorf("start: %v", err)
			}
		})
	}
	r := newReplica(nil)
	r.journal = &journal{dir: "/d/journal"}
	err := r.fail(fmt.Errorf("%w: %w", ErrReplicaStopped, &JournalError{Path: "/d/journal/1", Err: ErrJournalDamaged}))
	if !errors.Is(err, ErrJournalDamaged) || !strings.Contains(err.Error(), "move /d/journal away") || !strings.HasSuffix(err.Error(), joinAnew) {
		t.Errorf("while it runs: %v", err)
	}
}

// TestDamagedOrMissingSnapshotIsNamed: the log, which is whole, is not blamed, and a server goes on without a snapshot only
// where the log has all that it held.
func TestDamagedOrMissingSnapshotIsNamed(t *testing.T) {
	flip := func(path string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		data[len(data)/2] ^= 0x55
		return os.WriteFile(path, data, 0o600)
	}
	half := func(path string) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, info.Size()/2)
	}
	empty := func(path string) error { return os.Truncate(path, 0) }
	for _, row := range []struct {
		name     string
		trailing uint64
		file     string // under the newest snapshot; "" is its folder, ".." all snapshots
		damage   func(path string) error
		named    string // "": the server starts
	}{
		{"state flipped", 1, "state.bin", flip, "state.bin"},
		{"state cut", 1, "state.bin", half, "state.bin"},
		{"state empty", 1, "state.bin", empty, "state.bin"},
		{"state removed", 1, "state.bin", os.Remove, "state.bin"},
		{"meta cut", 1, "meta.json", half, "meta.json"},
		{"meta empty", 1, "meta.json", empty, "meta.json"},
		{"meta removed", 1, "meta.json", os.Remove, "meta.json"},
		{"newest removed", 1, "", os.RemoveAll, ".."},
		{"all removed", 1, "..", os.RemoveAll, ".."},
		{"a file in their place", 1, "..", func(path string) error {
			return errors.Join(os.RemoveAll(path), os.WriteFile(path, nil, 0o600))
		}, ".."},
		{"no log behind it", 0, "state.bin", flip, "state.bin"},
		{"the log has it, state", 10000, "state.bin", flip, ""},
		{"the log has it, meta", 10000, "meta.json", empty, ""},
		{"the log has it, removed", 10000, "..", os.RemoveAll, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newLocal(t)
			var log strings.Builder
			with := func(c *StartConfig) {
				c.TrailingLogs = max(1, row.trailing)
				c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			}
			node, stop := l.mustStart(with)
			waitFor(t, "it leads", 5*time.Second, func() bool { return node.Status().Leading })
			for range 2 {
				for range 3 {
					if _, err := node.Propose(t.Context(), strike(1)); err != nil {
						t.Fatal(err)
					}
				}
				if err := node.raft.Snapshot().Error(); err != nil {
					t.Fatal(err)
				}
			}
			snapshots, err := node.stores.Snapshots.List()
			if err != nil || len(snapshots) != 2 {
				t.Fatalf("%d snapshots, %v; want 2", len(snapshots), err)
			}
			folder := filepath.Join(node.DataDir(), snapshotFolder, snapshots[0].ID)
			records := func(node *Node) (n uint64) {
				node.View(func(v fsm.View) { n = v.Head().Records })
				return n
			}
			before := records(node)
			stop()
			if row.trailing == 0 { // as after a snapshot that a leader sent
				stores, err := OpenBoltStores(node.DataDir(), false, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(stores.Log.DeleteRange(0, 10000), stores.Close()); err != nil {
					t.Fatal(err)
				}
			}
			if err := row.damage(filepath.Join(folder, row.file)); err != nil {
				t.Fatal(err)
			}
			log.Reset()
			again, _, err := l.start(with)
			if row.named == "" {
				if err != nil {
					t.Fatalf("start: %v", err)
				}
				waitFor(t, "it has everything", 5*time.Second, func() bool { return records(again) >= before })
				return
			}
			if !errors.Is(err, ErrSnapshotDamaged) || !strings.Contains(err.Error(), filepath.Join(folder, row.named)+":") ||
				!strings.HasSuffix(err.Error(), joinAnew) || strings.Contains(err.Error(), logFile) || strings.Contains(err.Error(), "\n") {
				t.Errorf("start: %v", err)
			}
			if log.Len() > 0 {
				t.Errorf("beside its error it says %s", &log)
			}
		})
	}
}

func BenchmarkPropose(b *testing.B) {
	for _, callers := range []int{1, 64, 1000} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			node := startProposer(b, false)
			before := node.Status().LastIndex
			b.ResetTimer()
			propose(b, node, callers, b.N)
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "proposals/s")
			b.ReportMetric(float64(b.N)/float64(node.Status().LastIndex-before), "proposals/entry")
		})
	}
}

// BenchmarkJournalCost lets two servers, one of them without a journal, work turn by turn, so that what else the machine
// does meets both alike. It reports the medians of what the journal costs: of the time, and of the processor's. Want at
// most 5 %.
func BenchmarkJournalCost(b *testing.B) {
	const turns, proposals = 31, 3_000
	for _, callers := range []int{64, 1000} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			nodes := []*Node{startProposer(b, false), startProposer(b, true)}
			var elapsed, used []float64 // with the journal, as a multiple of without
			for range b.N {
				for turn := range turns {
					var took, cpu [2]float64
					for i := range nodes {
						which := (i + turn) % 2
						began, before := time.Now(), processorTime(b)
						propose(b, nodes[which], callers, proposals)
						took[which], cpu[which] = time.Since(began).Seconds(), (processorTime(b) - before).Seconds()
					}
					elapsed, used = append(elapsed, took[0]/took[1]), append(used, cpu[0]/cpu[1])
				}
			}
			slices.Sort(elapsed)
			slices.Sort(used)
			b.ReportMetric(100*(elapsed[len(elapsed)/2]-1), "%time")
			b.ReportMetric(100*(used[len(used)/2]-1), "%cpu")
		})
	}
}

// processorTime returns what this process has used so far, on all cores.
func processorTime(t testing.TB) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// startProposer starts one server with fsync, which leads; followers beside it are measured end to end.
func startProposer(b *testing.B, withoutJournal bool) *Node {
	env, err := registry.Open(filepath.Join(b.TempDir(), "env"))
	if err != nil {
		b.Fatal(err)
	}
	peers := &directPeers{nodes: make(map[string]*Node)}
	node, err := Start(context.Background(), StartConfig{Config: Config{
		Environment: env, Peers: peers, WithoutJournal: withoutJournal,
	}})
	if err != nil {
		b.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() {
		ran <- node.Run(context.Background(), func(ctx context.Context, _ uint64) error {
			<-ctx.Done()
			return nil
		})
	}()
	for !node.Status().Leading {
		time.Sleep(time.Millisecond)
	}
	b.Cleanup(func() {
		if err := node.Close(); err != nil {
			b.Error(err)
		}
		<-ran
	})
	return node
}

// propose lets so many callers propose n commands.
func propose(b *testing.B, node *Node, callers, n int) {
	work := make(chan int)
	var done sync.WaitGroup
	for i := range callers {
		done.Go(func() {
			for range work {
				if _, err := node.Propose(context.Background(), strike(i)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	done.Wait()
}
