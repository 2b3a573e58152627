package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
	"raftmine/raftnode"
)

// network is what stands between the processes of a partitioned cluster, which are named server-1, miner-1 and so on.
type network interface {
	// cut cuts or heals one direction.
	cut(from, to string, cut bool)
}

// partitioned is a drill's cluster whose network the test controls: three servers, a real miner, and simulated ones in
// this process, which nothing separates from anybody.
type partitioned struct {
	*drill
	t      *testing.T
	net    network
	inside *drillClient // knows server 1 alone
	struck []partition

	starting func(name string) // nil: nothing is to be done before a process starts
}

// partition is one that is over.
type partition struct {
	name           string
	from, healed   time.Time
	until          time.Time // healthy again
	victim         string
	without, later time.Duration // without a leader that commits: from the cut on, and after it was healed
}

const (
	partitionHeartbeat = 300 * time.Millisecond
	partitionServers   = 3
)

func (p *partitioned) others(name string) (others []string) {
	for _, other := range []string{"server-1", "server-2", "server-3", "miner-1"} {
		if other != name {
			others = append(others, other)
		}
	}
	return others
}

// mute cuts or heals what a process sends to all others.
func (p *partitioned) mute(name string, cut bool) {
	for _, other := range p.others(name) {
		p.net.cut(name, other, cut)
	}
}

// deafen cuts or heals what all others send to a process.
func (p *partitioned) deafen(name string, cut bool) {
	for _, other := range p.others(name) {
		p.net.cut(other, name, cut)
	}
}

func (p *partitioned) isolate(name string, cut bool) {
	p.mute(name, cut)
	p.deafen(name, cut)
}

// startPartitioned starts the cluster. The servers listen at the addresses that listen names, and tell others those that
// advertise names; service is where they find the web service at a local address.
func startPartitioned(t *testing.T, heartbeat time.Duration, listen, advertise func(id int) string, service func(local string) string, more ...string) *partitioned {
	t.Helper()
	dir := keepOnFailure(t)
	t.Setenv(asRaftmine, "1") // for the children
	o := &drillOptions{servers: partitionServers, miners: 1, threads: 1, clients: 1, zeros: 5, blockTime: 300 * time.Millisecond,
		serverFlags: serverTuning{heartbeat: heartbeat, grace: time.Hour, nonceFirst: 1, nonceLast: 2_000_000_000, chunk: 2_000}}
	c, err := newCluster(filepath.Join(dir, "cluster"), &printer{w: io.Discard}, "info")
	if err != nil {
		t.Fatal(err)
	}
	p := &partitioned{t: t, drill: &drill{cluster: c, o: o, book: &ackBook{}, started: time.Now()}}
	t.Cleanup(func() {
		if err := p.end(); err != nil {
			t.Error(err)
		}
	})
	if p.service, err = startDrillService(filepath.Join(dir, "webservice"), o.zeros, o.blockTime); err != nil {
		t.Fatal(err)
	}
	flags := append(append(o.serverFlags.args(), "--web-service", service(p.service.address), "--keep-log"), more...)
	p.serverArgs = func(id int) []string {
		return append([]string{"--data-dir", p.serverDir(id), "--listen", listen(id), "--advertise", advertise(id)}, flags...)
	}
	return p
}

// startAll starts all processes, and waits until they work.
func (p *partitioned) startAll() {
	p.t.Helper()
	for id := 1; id <= p.o.servers; id++ {
		p.prepare(serverName(id))
		if err := p.startServer(p.t.Context(), id); err != nil {
			p.t.Fatal(err)
		}
	}
	p.startClients()
	p.inside = startDrillClient(drillClientConfig{name: "inside", chunk: p.o.serverFlags.chunk, pace: 5 * time.Millisecond, book: p.book, apart: true,
		sources: []func() []string{func() []string { return []string{p.server(1).started.Address} }}})
	p.clients = append(p.clients, p.inside)
	p.prepare(minerName(1))
	if err := p.startMiner(p.t.Context(), 1); err != nil {
		p.t.Fatal(err)
	}
	p.healthy(time.Now())
}

func (p *partitioned) prepare(name string) {
	if p.starting != nil {
		p.starting(name)
	}
}

func (p *partitioned) healthy(since time.Time) {
	p.t.Helper()
	if err := p.awaitHealthy(p.t.Context(), since); err != nil {
		p.t.Fatal(err)
	}
}

// survive cuts, waits until those who are left work and whatever the case demands besides, heals, and waits until all is as before.
func (p *partitioned) survive(name, victim string, cut func(bool), meanwhile func(from time.Time)) {
	p.t.Helper()
	s := partition{name: name, victim: victim, from: time.Now()}
	cut(true)
	done := time.Now() // nothing that is sent from now on passes
	if strings.HasPrefix(victim, "server") {
		if err := p.awaitTakeover(p.t.Context(), victim, s.from); err != nil {
			p.t.Fatalf("%s: %v", name, err)
		}
		p.down(victim)
	}
	if meanwhile != nil {
		meanwhile(done)
	}
	s.healed = time.Now()
	cut(false)
	p.healthy(s.healed)
	s.until = time.Now()
	trace := p.probe.trace(s.from, s.until)
	var again time.Time
	s.without, again = outage(trace, s.from, s.healed)
	if again.Before(s.healed) {
		again = s.healed
	}
	s.later, _ = outage(trace, again, s.until)
	p.struck = append(p.struck, s)
	p.t.Logf("%5.1fs %-36s without a leader %v, after the cut %v; healthy %v after it", time.Since(p.started).Seconds(), name,
		s.without.Round(time.Millisecond), s.later.Round(time.Millisecond), s.until.Sub(s.healed).Round(time.Millisecond))
}

// down waits until the table of those who are left says that a server is down.
func (p *partitioned) down(victim string) {
	p.t.Helper()
	eventually(p.t, victim+" is down in the table", func() string {
		views, problem := p.views(p.t.Context(), victim)
		for _, view := range views {
			for _, row := range view.Servers {
				if serverName(int(row.ID)) == victim && row.Up {
					problem += fmt.Sprintf("server %d counts it as up", view.ServerID)
				}
			}
		}
		return problem
	})
}

// silent checks that server 1, which led, acknowledges nothing that it was sent after the cut, and knows that it leads no more.
func (p *partitioned) silent(from time.Time) {
	p.t.Helper()
	eventually(p.t, "the leader that is cut off serves nobody", func() string {
		view, err := p.client.Status(p.t.Context(), p.server(1).started.Address)
		if err != nil {
			return err.Error()
		}
		if view.Coordinator != nil || view.LeaderID == 1 {
			return fmt.Sprintf("it knows leader %d", view.LeaderID)
		}
		return ""
	})
	for _, a := range p.book.all() {
		if a.client == p.inside.name && a.sent.After(from) {
			p.t.Errorf("the leader that is cut off acknowledged %s in term %d, %v after the cut", a.nonces, a.term, a.at.Sub(from))
		}
	}
}

// unheard waits until the leader has taken the miner's ranges back, and counts it as gone.
func (p *partitioned) unheard(time.Time) {
	p.t.Helper()
	eventually(p.t, "the miner that is cut off is silent for the leader", func() string {
		view, err := p.client.Status(p.t.Context(), p.server(1).started.Address)
		if err != nil {
			return err.Error()
		}
		for _, miner := range view.Miners {
			if miner.Name == minerName(1) && miner.Connected {
				return "it is connected"
			}
		}
		return ""
	})
}

// resumes waits until the real miner has answered for more ranges.
func (p *partitioned) resumes() {
	p.t.Helper()
	answered := func() (answers uint64, problem string) {
		view, err := p.client.Status(p.t.Context(), p.server(1).started.Address)
		if err != nil {
			return 0, err.Error()
		}
		for _, miner := range view.Miners {
			if miner.Name == minerName(1) {
				answers = miner.ChunksFinished + miner.Solutions
			}
		}
		return answers, ""
	}
	before, _ := answered()
	eventually(p.t, "the miner works", func() string {
		now, problem := answered()
		if problem == "" && now <= before {
			problem = fmt.Sprintf("%d chunks and solutions, %d before", now, before)
		}
		return problem
	})
}

// finish ends the cluster and judges it: every acknowledged answer is in each history, states and heads agree, and the web
// service accepted each height once.
func (p *partitioned) finish() {
	p.t.Helper()
	end, err := p.settle()
	if err != nil {
		p.t.Fatal(err)
	}
	report, err := p.judge(nil, end)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, why := range report.Broken {
		p.t.Error(why)
	}
	if report.Answers < 30 || report.Blocks == 0 || report.Servers != p.o.servers {
		p.t.Errorf("%d answers, %d blocks, %d servers agree; want many, some, %d", report.Answers, report.Blocks, report.Servers, p.o.servers)
	}
	var dirs []string
	for id := 1; id <= p.o.servers; id++ {
		dirs = append(dirs, p.serverDir(id))
	}
	if code, stdout, stderr := command(p.t, append([]string{"audit", "-o", "json"}, dirs...)...); code != exitDone {
		p.t.Errorf("the audit of all directories: exit code %d, said\n%s%s", code, tail([]byte(stdout), 2000), stderr)
	}
	p.checkLog()
	p.t.Logf("%d answers, %d blocks, %d requests to submit, %d repeated, %d chunks granted again", report.Answers, report.Blocks, report.Submissions,
		report.RepeatedSubmits, report.Regranted)
}

// partitionTerms bounds the terms from the end of a partition until all is healthy: one brings the lowest id back. On a busy
// machine Raft may call an election more, but leadership that goes to and fro takes many.
const partitionTerms = 4

// checkLog looks for what only the log tells: how often the leadership moved, and that a silent miner's ranges were taken back.
func (p *partitioned) checkLog() {
	p.t.Helper()
	stores, err := raftnode.OpenBoltStores(p.serverDir(1), false, slog.New(slog.DiscardHandler))
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() {
		if err := stores.Close(); err != nil {
			p.t.Error(err)
		}
	}()
	last, err := stores.Log.LastIndex()
	if err != nil {
		p.t.Fatal(err)
	}
	offices := make([][]uint64, len(p.struck))       // server ids, from the end of each partition on
	released := make([]time.Duration, len(p.struck)) // how long after the cut the victim's ranges were
	for index := uint64(1); index <= last; index++ {
		var record raft.Log
		if err := stores.Log.GetLog(index, &record); err != nil {
			p.t.Fatal(err)
		}
		if record.Type != raft.LogCommand {
			continue
		}
		entry, err := fsm.DecodeEntry(record.Data)
		if err != nil {
			p.t.Fatal(err)
		}
		at := time.UnixMilli(int64(entry.UnixMilli))
		for i, s := range p.struck {
			for _, command := range entry.Commands {
				switch c := command.(type) {
				case fsm.TakeOffice:
					if at.After(s.healed) && at.Before(s.until) {
						offices[i] = append(offices[i], c.ServerID)
					}
				case fsm.Release:
					if c.Miner == s.victim && c.Reason == fsm.ReleaseSilent && at.After(s.from) && at.Before(s.healed) {
						released[i] = at.Sub(s.from).Round(time.Millisecond)
					}
				}
			}
		}
	}
	for i, s := range p.struck {
		switch {
		case len(offices[i]) > partitionTerms:
			p.t.Errorf("%s: after it servers %v took office one after the other", s.name, offices[i])
		case len(offices[i]) > 1:
			p.t.Logf("%s: after it servers %v took office", s.name, offices[i])
		}
		if s.victim == minerName(1) {
			// After three heartbeats since the last sign of it, which was some time before the cut.
			if released[i] == 0 {
				p.t.Errorf("%s: its ranges were not taken back", s.name)
			}
			p.t.Logf("%s: its ranges were taken back %v after the cut", s.name, released[i])
		}
	}
}

// startProxied starts a cluster of which every server is behind a proxy. It listens at an address of its own of 127/8, where
// no other process takes the port meanwhile.
func startProxied(t *testing.T, heartbeat time.Duration, more ...string) (*partitioned, *proxies) {
	t.Helper()
	var own [2]byte
	if _, err := rand.Read(own[:]); err != nil {
		t.Fatal(err)
	}
	listen := func(id int) string { return fmt.Sprintf("127.%d.%d.%d:7000", 1+own[0]%254, own[1], id) }
	net := newProxies(t)
	advertised := make(map[int]string)
	for id := 1; id <= partitionServers; id++ {
		advertised[id] = net.listen(serverName(id), listen(id))
	}
	p := startPartitioned(t, heartbeat, listen, func(id int) string { return advertised[id] }, func(local string) string { return local }, more...)
	p.net = net
	p.startAll()
	return p, net
}

// TestPartitionsAreSurvived separates one process after the other from the rest, wholly and in one direction.
func TestPartitionsAreSurvived(t *testing.T) {
	p, _ := startProxied(t, partitionHeartbeat)
	p.survivePartitions()
	p.finish()
}

func (p *partitioned) survivePartitions() {
	p.t.Helper()
	p.survive("the leader is cut off", "server-1", func(cut bool) { p.isolate("server-1", cut) }, p.silent)
	p.survive("a follower is cut off", "server-3", func(cut bool) { p.isolate("server-3", cut) }, nil)
	p.survive("the miner is cut off", "miner-1", func(cut bool) { p.isolate("miner-1", cut) }, p.unheard)
	p.resumes()
	p.survive("the leader hears, and is not heard", "server-1", func(cut bool) { p.mute("server-1", cut) }, p.silent)
	p.survive("the leader is heard, and hears not", "server-1", func(cut bool) { p.deafen("server-1", cut) }, p.silent)
}

// TestSlowNetworkWorks delays every message between the processes. With Raft's timeouts for near servers nobody would lead:
// an answer takes longer than a lease.
func TestSlowNetworkWorks(t *testing.T) {
	if !fullEndToEnd() {
		t.Skip("it is slow: make e2e runs it")
	}
	p, net := startProxied(t, time.Second, "--raft-timeout", "1s") // a heartbeat must have its answer before the next one
	for _, name := range append(p.others(""), "") {
		for _, other := range p.others(name) {
			net.delay(name, other, slowNetwork)
		}
	}
	p.survive("the leader is cut off, all are slow", "server-1", func(cut bool) { p.isolate("server-1", cut) }, p.silent)
	p.resumes()
	p.finish()
}

// slowNetwork is one way.
const slowNetwork = 150 * time.Millisecond

// TestFlappingLinkIsSurvived cuts and heals again and again, about as fast as Raft's timeouts are.
func TestFlappingLinkIsSurvived(t *testing.T) {
	p, _ := startProxied(t, partitionHeartbeat)
	for _, name := range []string{"server-1", "server-2"} {
		p.survive(name+"'s links flap", "", func(cut bool) { p.isolate(name, cut) }, func(time.Time) {
			for i := range 10 {
				wait(t.Context(), time.Duration(100+i*70)*time.Millisecond) // the length of a cut, or of what is between two
				p.isolate(name, i%2 == 1)
			}
		})
	}
	p.finish()
}
