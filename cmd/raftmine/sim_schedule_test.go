package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// simSchedule is what a seed stands for: a cluster and its faults.
type simSchedule struct {
	seed      uint64
	servers   int
	miners    int
	snapshots bool // small logs: snapshots are taken and sent
	liar      bool // the last miner lies
	graceful  bool // no server is away for long enough to be taken from the voters
	hasty     bool // a bug is planted
	faults    []simFault
}

// simFault is one fault: it begins, and ends after a while.
type simFault struct {
	at, lasts  time.Duration
	what       string // for people
	begin, end func(*sim)
}

// simStorm is for how long faults begin, at most. Most defects need few faults, and a short schedule is one that a person can
// follow; some need many. So storms are of any length, and the faults as dense in each.
const simStorm = 24 * time.Second

func newSimSchedule(seed uint64) simSchedule {
	dice := rand.New(rand.NewPCG(seed, 1))
	s := simSchedule{seed: seed, servers: 3, miners: 3, snapshots: dice.IntN(3) == 0, liar: dice.IntN(4) == 0, graceful: dice.IntN(4) == 0}
	if dice.IntN(3) == 0 {
		s.servers = 5
	}
	busy := make(map[string]time.Duration) // until when something has its own fault
	storm := simStorm/8 + time.Duration(dice.Int64N(int64(simStorm)*7/8))
	for range 1 + (16+dice.Int64N(16))*int64(storm)/int64(simStorm) {
		fault := simFault{
			at:    time.Duration(dice.Int64N(int64(storm))).Round(time.Millisecond),
			lasts: time.Duration(dice.Int64N(int64(6*time.Second)) + int64(50*time.Millisecond)).Round(time.Millisecond),
		}
		if dice.IntN(4) == 0 {
			fault.lasts = fault.lasts/20 + time.Millisecond
		}
		s.faults = append(s.faults, fault)
	}
	slices.SortFunc(s.faults, func(a, b simFault) int { return int(a.at - b.at) })
	kept := s.faults[:0]
	for _, fault := range s.faults {
		target := s.choose(&fault, dice)
		if fault.at < busy[target] {
			continue // one after the other
		}
		busy[target] = fault.at + fault.lasts
		kept = append(kept, fault)
	}
	s.faults = kept
	return s
}

// choose makes a fault, and returns what it occupies.
func (s *simSchedule) choose(f *simFault, dice *rand.Rand) (target string) {
	server := func() int { return 1 + dice.IntN(s.servers) }
	if dice.IntN(3) == 0 { // the one that leads, most of the time
		server = func() int { return 1 }
	}
	a, b := server(), 1+dice.IntN(s.servers)
	if a == b {
		b = a%s.servers + 1
	}
	miner := dice.IntN(s.miners)
	name := simHost(a)
	switch kind := dice.IntN(32); {
	case kind < 7:
		// The others stay: a majority that moved at once would need an environment, or --join, to find each other. Where the group
		// shrinks, two may be all of it.
		moves := dice.IntN(4) == 0 && (a == 1 || a == 2 && s.graceful)
		f.what = fmt.Sprintf("server %d crashes", a)
		if moves {
			f.what += " and returns at another address"
		}
		f.begin = func(s *sim) { s.server(a).crash() }
		f.end = func(s *sim) {
			if moves {
				s.server(a).moves++
			}
			s.revive(a)
		}
		return name
	case kind < 9:
		f.what = fmt.Sprintf("server %d is stopped", a)
		f.begin = func(s *sim) { s.background.Go(s.server(a).stop) }
		f.end = func(s *sim) { s.revive(a) }
		f.lasts += 3 * time.Second // as long as a stop may take
		return name
	case kind < 12:
		f.what = fmt.Sprintf("server %d is paused", a)
		f.begin, f.end = simFreeze(name, 1), simFreeze(name, -1)
		return name
	case kind < 14:
		f.what = fmt.Sprintf("disk of server %d stalls", a)
		f.lasts += f.lasts / 2
		f.begin = func(s *sim) { s.server(a).faultyDisk().setStalled(true) }
		f.end = func(s *sim) { s.server(a).faultyDisk().setStalled(false); s.revive(a) }
		return name
	case kind < 16:
		f.what = fmt.Sprintf("disk of server %d is full", a)
		f.begin = func(s *sim) { d := s.server(a).faultyDisk(); d.change(func() { d.failing = true }) }
		f.end = func(s *sim) {
			d := s.server(a).faultyDisk()
			d.change(func() { d.failing = false })
			s.revive(a)
		}
		return name
	case kind < 19:
		f.what = fmt.Sprintf("server %d is cut off", a)
		links := s.linksOf(name)
		f.begin, f.end = simCut(links, 1), simCut(links, -1)
		return "net " + name
	case kind < 21:
		f.what = fmt.Sprintf("nothing from server %d reaches server %d", a, b)
		links := []simLink{{simHost(a), simHost(b)}}
		f.begin, f.end = simCut(links, 1), simCut(links, -1)
		return "link"
	case kind < 22:
		f.what = fmt.Sprintf("server %d hears nothing", a)
		links := slices.DeleteFunc(s.linksOf(name), func(l simLink) bool { return l.from == name })
		f.begin, f.end = simCut(links, 1), simCut(links, -1)
		return "net " + name
	case kind < 23:
		f.what = "servers " + s.groups() + " are separated"
		var links []simLink
		for i := 1; i <= s.servers; i++ {
			for j := 1; j <= s.servers; j++ {
				if i != j && (i%2 == 0) != (j%2 == 0) {
					links = append(links, simLink{simHost(i), simHost(j)})
				}
			}
		}
		f.begin, f.end = simCut(links, 1), simCut(links, -1)
		return "split"
	case kind < 24:
		delay := time.Duration(1+dice.IntN(400)) * time.Millisecond
		f.what = fmt.Sprintf("network of server %d is slow by %v", a, delay)
		f.begin, f.end = simSlow(s.linksOf(name), delay), simSlow(s.linksOf(name), 0)
		return "slow"
	case kind < 25:
		f.what = fmt.Sprintf("network of server %d loses messages", a)
		links := s.linksOf(name)
		f.begin, f.end = simLose(links, 1), simLose(links, -1)
		return "lossy"
	case kind < 26:
		f.what = fmt.Sprintf("connections of server %d break", a)
		f.lasts = 0
		f.begin, f.end = func(s *sim) { s.net.resetConns(name) }, func(*sim) {}
		return "reset"
	case kind < 28:
		f.what = fmt.Sprintf("miner m%d dies", miner)
		f.begin, f.end = func(s *sim) { s.background.Go(s.miners[miner].stop) }, func(s *sim) { s.miners[miner].start() }
		return fmt.Sprint("m", miner)
	case kind < 29:
		f.what = fmt.Sprintf("miner m%d is paused", miner)
		f.begin, f.end = simFreeze(fmt.Sprint("m", miner), 1), simFreeze(fmt.Sprint("m", miner), -1)
		return fmt.Sprint("m", miner)
	}
	return s.chooseWeb(f, dice)
}

// chooseWeb is a fault of the web service.
func (s *simSchedule) chooseWeb(f *simFault, dice *rand.Rand) string {
	set := func(change func(w *simWeb)) func(*sim) { return func(s *sim) { s.web.change(change) } }
	switch dice.IntN(5) {
	case 0:
		f.what = "web service is gone"
		f.begin, f.end = set(func(w *simWeb) { w.gone = true }), set(func(w *simWeb) { w.gone = false })
	case 1:
		f.what = "web service is slow"
		f.begin, f.end = set(func(w *simWeb) { w.slow = time.Second }), set(func(w *simWeb) { w.slow = 0 })
	case 2:
		f.what = "web service says wrong"
		f.begin, f.end = set(func(w *simWeb) { w.denies = true }), set(func(w *simWeb) { w.denies = false })
	case 3:
		f.what = "answers of the web service are lost"
		f.begin, f.end = set(func(w *simWeb) { w.swallows = true }), set(func(w *simWeb) { w.swallows = false })
	default:
		f.what = "web service moves on"
		f.lasts = 0
		f.begin, f.end = set((*simWeb).moveOn), func(*sim) {}
	}
	return "web"
}

func (s *simSchedule) groups() string {
	if s.servers == 3 {
		return "1,3 and 2"
	}
	return "1,3,5 and 2,4"
}

// linksOf are the links of a server to everybody else.
func (s *simSchedule) linksOf(name string) (links []simLink) {
	others := make([]string, 0, s.servers+s.miners)
	for i := 1; i <= s.servers; i++ {
		others = append(others, simHost(i))
	}
	for i := range s.miners {
		others = append(others, fmt.Sprint("m", i))
	}
	for _, other := range others {
		if other != name {
			links = append(links, simLink{name, other}, simLink{other, name})
		}
	}
	return links
}

func simFreeze(host string, by int) func(*sim) {
	return func(s *sim) { s.net.change(func() { s.net.frozen[host] += by }) }
}

func simCut(links []simLink, by int) func(*sim) {
	return func(s *sim) {
		s.net.change(func() {
			for _, link := range links {
				s.net.cuts[link] += by
			}
		})
	}
}

func simLose(links []simLink, by int) func(*sim) {
	return func(s *sim) {
		s.net.change(func() {
			for _, link := range links {
				s.net.lossy[link] += by
			}
		})
	}
}

func simSlow(links []simLink, delay time.Duration) func(*sim) {
	return func(s *sim) {
		s.net.change(func() {
			for _, link := range links {
				s.net.delays[link] = delay
			}
		})
	}
}

func (s simSchedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d servers, %d miners", s.seed, s.servers, s.miners)
	if s.snapshots {
		b.WriteString(", small logs")
	}
	if s.liar {
		b.WriteString(", one miner lies")
	}
	if s.graceful {
		b.WriteString(", long grace")
	}
	for _, f := range s.faults {
		fmt.Fprintf(&b, "\n%8.3fs  %s", f.at.Seconds(), f.what)
		if f.lasts > 0 {
			fmt.Fprintf(&b, ", for %.3fs", f.lasts.Seconds())
		}
	}
	return b.String()
}
