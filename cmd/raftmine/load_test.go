package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"raftmine/miner"
	"raftmine/miner/sha256d"
)

var (
	loadFor  = flag.Duration("load.for", 10*time.Second, "how long TestNoElectionUnderLoad loads its servers")
	loadBusy = flag.Int("load.busy", 0, "busy loops of normal priority beside the documented load")
	loadDisk = flag.Int("load.disk", 0, "processes that write and sync files on the servers' disk beside the documented load")
)

// asBurden makes this test binary a process that takes what others need. Its arguments are what it takes, how often, and a
// folder; it ends when its standard input does.
const asBurden = "TEST_BINARY_IS_BURDEN"

// What a burden takes.
const (
	burdenSearch = "search" // CPU, as a miner's search threads do, and at their priority
	burdenBusy   = "busy"   // CPU, at the priority of everybody
	burdenDisk   = "disk"
)

func runBurden(args []string) error {
	times, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	if args[0] == burdenSearch {
		if err := miner.LowerPriority(); err != nil {
			return err
		}
	}
	runtime.GOMAXPROCS(times + 1) // a thread for each
	failed := make(chan error, times)
	for i := range times {
		go func() {
			switch args[0] {
			case burdenSearch:
				searchAlone(context.Background(), sha256d.Best().New(), uint64(i))
			case burdenBusy:
				for n := 0; ; n++ {
				}
			case burdenDisk:
				failed <- writeOften(filepath.Join(args[2], "burden-"+strconv.Itoa(i)))
			}
		}()
	}
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		failed <- err
	}()
	return <-failed
}

// writeOften writes a file of 4 MiB anew and syncs it, for ever.
func writeOften(path string) error {
	for data := make([]byte, 4<<20); ; {
		file, err := os.Create(path)
		if err != nil {
			return err
		}
		if _, err := file.Write(data); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
	}
}

// TestNoElectionUnderLoad: three servers, a search thread for each core at a miner's priority, and 16 writers that keep the
// log full. Nothing fails, so nobody may call an election. More of either load is for looking, and may well break it.
func TestNoElectionUnderLoad(t *testing.T) {
	const writers = 16
	c := startLoggingServers(t, "info", 3, 16, fewHashes()...)
	ignore := func([]byte) {}
	startHelper(t, asBurden, ignore, burdenSearch, strconv.Itoa(runtime.NumCPU()))
	if *loadBusy > 0 {
		startHelper(t, asBurden, ignore, burdenBusy, strconv.Itoa(*loadBusy))
	}
	if *loadDisk > 0 {
		startHelper(t, asBurden, ignore, burdenDisk, strconv.Itoa(*loadDisk), c.dir)
	}
	for name, process := range c.children {
		if session, err := unix.Getsid(process.pid()); err != nil || session != process.pid() {
			t.Errorf("%s is in session %d, %v: it shares its CPU with others", name, session, err)
		}
	}
	answers := startWriters(t, c, writers)
	eventually(t, "all servers are up and server 1 leads", func() string {
		s, err := bestStatus(t.Context(), c.client, c.watchable())
		up := 0
		for _, server := range s.Servers {
			if server.Up && server.Voter {
				up++
			}
		}
		if err != nil || up != 3 || s.LeaderID != 1 || answers.Load() == 0 {
			return fmt.Sprintf("%d up, server %d leads, %d answers, %v", up, s.LeaderID, answers.Load(), err)
		}
		return ""
	})
	began, before, answered := time.Now(), loadStatus(t, c), answers.Load()
	select {
	case <-time.After(*loadFor):
	case <-t.Context().Done():
	}
	after, took := loadStatus(t, c), time.Since(began).Round(time.Second)
	elections, told := after.Term-before.Term, toldSince(t, c, began)
	fmt.Printf("load: %v, %d entries, %d answers, %d elections (%d search threads, %d writers, %d busy loops, %d disk writers)\n", took,
		after.AppliedIndex-before.AppliedIndex, answers.Load()-answered, elections, runtime.NumCPU(), writers, *loadBusy, *loadDisk)
	for _, line := range told {
		fmt.Println(line)
	}
	if elections > 0 || after.LeaderID != 1 {
		t.Errorf("%d elections that no fault caused; server %d leads", elections, after.LeaderID)
	}
	if answers.Load() == answered {
		t.Error("no answer was acknowledged")
	}
}

type loaded struct{ Term, LeaderID, AppliedIndex uint64 }

// loadStatus is what the servers say once one of them leads.
func loadStatus(t *testing.T, c *cluster) (l loaded) {
	t.Helper()
	eventually(t, "somebody leads", func() string {
		s, err := bestStatus(t.Context(), c.client, c.watchable())
		if err != nil {
			return err.Error()
		}
		if l = (loaded{s.Term, s.LeaderID, s.AppliedIndex}); l.LeaderID == 0 {
			return "nobody leads"
		}
		return ""
	})
	return l
}

// toldSince returns what the servers logged, by time, but for what is about miners.
func toldSince(t *testing.T, c *cluster, since time.Time) (lines []string) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(c.dir, "logs", "server-*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, log := range logs {
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			at, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
			when, err := time.Parse(time.RFC3339Nano, at)
			if err == nil && when.After(since) && !strings.Contains(line, " miner=") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	slices.Sort(lines)
	return lines
}
