package raftnode

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

func TestRaftsChatterIsForDebuggingAndDiskTroubleForPeople(t *testing.T) {
	var out bytes.Buffer
	level := new(slog.LevelVar)
	logger := newRaftLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level})))
	logger.Info("entering leader state")
	logger.Named("net").With("a", 1).Error("failed to heartbeat to", "peer", "2")
	logger.Log(hclog.Warn, "Election timeout reached")
	logger.Error("failed to commit logs", "error", errors.New("disk full")) // which ends the server, with one line of its own
	logger.Error("failed to append to logs", "error", errors.New("disk full"))
	if out.Len() > 0 {
		t.Errorf("a person sees %q", out.String())
	}
	logger.Error("failed to take snapshot", "error", errors.New("disk full"))
	if !strings.Contains(out.String(), "disk full") || !strings.Contains(out.String(), "level=WARN") {
		t.Errorf("a full disk logs %q", out.String())
	}
	out.Reset()
	level.Set(slog.LevelDebug)
	logger.Error("failed to heartbeat to", "peer", "2")
	if !strings.Contains(out.String(), "peer=2") {
		t.Errorf("debug shows %q", out.String())
	}
}

func TestConfigurationThatCannotWorkIsRefused(t *testing.T) {
	good := Config{DataDir: &DataDir{}, Stream: &testListener{}, Advertise: "host:1", Peers: newTestNet()}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no data directory":   func(c *Config) { c.DataDir = nil },
		"no listener":         func(c *Config) { c.Stream = nil },
		"no peers":            func(c *Config) { c.Peers = nil },
		"negative heartbeat":  func(c *Config) { c.Heartbeat = -1 },
		"lease too long":      func(c *Config) { c.RaftLease = time.Second },
		"election too short":  func(c *Config) { c.RaftElection = 100 * time.Millisecond },
		"negative in flight":  func(c *Config) { c.InFlight = -1 },
		"too many commands":   func(c *Config) { c.BatchCommands = fsm.MaxCommands + 1 },
		"long version":        func(c *Config) { c.Version = strings.Repeat("v", 1000) },
		"no address":          func(c *Config) { c.Advertise = "" },
		"unspecified address": func(c *Config) { c.Advertise = "0.0.0.0:7000" },
		"unspecified in IPv6": func(c *Config) { c.Advertise = "[::]:7000" },
		"no port":             func(c *Config) { c.Advertise = "host" },
		"port zero":           func(c *Config) { c.Advertise = "host:0" },
	} {
		bad := good
		change(&bad)
		if err := bad.Validate(); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewestAddressWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := map[uint64]fsm.Server{2: {ID: 2, Address: "table:2"}}
		b := &addressBook{
			self: 1, advertise: "self:1", fresh: 15 * time.Second, heard: make(map[uint64]heard),
			table: func(id uint64) (fsm.Server, bool) { row, ok := table[id]; return row, ok },
			configured: func() []raft.Server {
				return []raft.Server{{ID: "2", Address: "2@old:2"}, {ID: "3", Address: "3@old:3"}, {ID: "4", Address: "broken"}}
			},
		}
		want := func(id uint64, address string) {
			t.Helper()
			if got := b.address(id); got != address {
				t.Errorf("server %d: %q, want %q", id, got, address)
			}
		}
		want(1, "self:1")
		want(2, "table:2")
		want(3, "old:3")
		want(4, "")
		if _, err := b.ServerAddr("4"); err == nil {
			t.Error("an address was made up")
		}
		b.hear(2, "heard:2")
		b.hear(3, "heard:3")
		b.hear(1, "imposter:1")
		b.hear(2, "0.0.0.0:2") // nobody can dial that
		want(1, "self:1")
		want(2, "heard:2")
		time.Sleep(16 * time.Second)
		want(2, "table:2")
		want(3, "heard:3") // nothing better is known
		b.local = map[uint64]string{2: "local:2"}
		want(2, "local:2")
		if address, err := b.ServerAddr("2"); err != nil || address != "2@local:2" {
			t.Errorf("raft dials %q, %v", address, err)
		}
	})
}

func TestSilentRaftConnectionsEndWithTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := newTestNet()
		listener := network.listen()
		stream := newGuardedStream(listener, "cluster", 1)
		stream.start()
		silent, err := network.dial(listener.address, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := silent.Read(make([]byte, 1)); err == nil || time.Since(began) != helloTimeout {
			t.Errorf("a connection without hello ended with %v after %v", err, time.Since(began))
		}
		other := newGuardedStream(network.listen(), "cluster", 2)
		near, err := other.Dial(raftAddress(1, listener.address), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		far, err := stream.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.Dial("127.0.0.1:7001", time.Second); err == nil {
			t.Error("an address without an id was dialled")
		}
		// Both ends wait; closing one stream ends its connections and Accept.
		ended := make(chan error, 2)
		go func() { _, err := far.Read(make([]byte, 1)); ended <- err }()
		go func() { _, err := stream.Accept(); ended <- err }()
		synctest.Wait()
		if err := stream.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-ended; err == nil {
				t.Error("something lives on")
			}
		}
		if _, err := stream.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
		near.Close()
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestServersThatMovedApartFindEachOther: one that moved while another was down, and that other one, which moves as well, know
// only old addresses of each other. A third one, which both reach, tells.
func TestServersThatMovedApartFindEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.settled()
		c.servers[0].kill()
		c.wait("server 2 leads", func() bool { return c.leads(2) })
		c.servers[1].kill()
		c.servers[1].start() // each start is at another address
		c.wait("there is a leader again", func() bool { return c.leader() != nil })
		c.servers[0].start()
		c.wait("server 1 leads", func() bool { return c.leads(1) && c.up(1, 2, 3) })
	})
}
