package miner

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/miner/sha256d"
)

func TestConfigIsChecked(t *testing.T) {
	tests := map[string]struct {
		change func(*Config)
		want   string // empty: valid
	}{
		"defaults":           {func(*Config) {}, ""},
		"longest name":       {func(c *Config) { c.Name = strings.Repeat("x", 64) }, ""},
		"no name":            {func(c *Config) { c.Name = "" }, "1 to 64"},
		"long name":          {func(c *Config) { c.Name = strings.Repeat("x", 65) }, "65 bytes, want 1 to 64"},
		"space in the name":  {func(c *Config) { c.Name = "a b" }, "' '"},
		"umlaut in the name": {func(c *Config) { c.Name = "grün" }, "'ü'"},
		"no dialer":          {func(c *Config) { c.Dialer = nil }, "no dialer"},
		"negative threads":   {func(c *Config) { c.Threads = -1 }, "-1 threads, want 1 to 1024"},
		"many threads":       {func(c *Config) { c.Threads = 1025 }, "1025 threads"},
		"kernel by name":     {func(c *Config) { c.Kernel = sha256d.Kernel{Name: "x"} }, `kernel "x"`},
		"negative ranges":    {func(c *Config) { c.Ranges = -1 }, "-1 ranges"},
		"many ranges":        {func(c *Config) { c.Ranges = 65 }, "65 ranges, want 1 to 64"},
		"heartbeat timeout":  {func(c *Config) { c.HeartbeatTimeout = -1 }, "heartbeat timeout"},
		"leave timeout":      {func(c *Config) { c.LeaveTimeout = -1 }, "leave timeout"},
		"short window":       {func(c *Config) { c.HashRateWindow = time.Millisecond }, "window 1ms"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			config := Config{Name: "m-1.a_B", Dialer: newFakeDialer()}
			test.change(&config)
			m, err := New(config)
			if test.want == "" && (err != nil || m == nil) {
				t.Errorf("New = %v, want a miner", err)
			}
			if test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), "miner: ") || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("New = %v, want an error of the miner with %q", err, test.want)
			}
		})
	}
}

func TestEveryMinerHasAnInstanceOfItsOwn(t *testing.T) {
	seen := map[[16]byte]bool{}
	for range 3 {
		m, err := New(Config{Name: "m", Dialer: newFakeDialer()})
		if err != nil {
			t.Fatal(err)
		}
		seen[m.instance] = true
	}
	if len(seen) != 3 || seen[[16]byte{}] {
		t.Errorf("instances %v, want three different ones", seen)
	}
}

func TestHashRateIsMeasuredOverTheWindow(t *testing.T) {
	start := time.Unix(1_790_000_000, 0)
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	m := meter{window: 10 * time.Second}
	if rate := m.at(at(0), 0); rate != 0 {
		t.Errorf("rate %v without a sample, want 0", rate)
	}
	m.add(at(0), 0)
	if rate := m.at(at(0.01), 50); rate != 0 {
		t.Errorf("rate %v after 10 ms, want 0: too early to tell", rate)
	}
	if rate := m.at(at(0.5), 500); rate != 1000 {
		t.Errorf("rate %v after 500 in 0.5 s, want 1000", rate)
	}
	for s := 1; s <= 60; s++ { // a thousand a second for a minute
		m.add(at(float64(s)), uint64(1000*s))
	}
	if rate := m.at(at(60), 60_000); rate != 1000 {
		t.Errorf("rate %v, want 1000", rate)
	}
	if len(m.samples) > 12 {
		t.Errorf("%d samples kept for a window of ten", len(m.samples))
	}
	if rate := m.at(at(65), 60_000); rate != 500 {
		t.Errorf("rate %v after 5 s of rest, want 500", rate)
	}
	if rate := m.at(at(90), 60_000); rate != 0 {
		t.Errorf("rate %v when every sample is old, want 0", rate)
	}
}

// A gated kernel tries a thousand nonces four times a second: what the heartbeats say must be that.
func TestHeartbeatsCarryTheHashRateOfTheLastTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		r := startRig(t, func(c *Config) { c.Kernel = g.kernel(); c.Threads = 1 })
		c, _ := r.connect()
		time.Sleep(3 * time.Second) // without work, which does not count
		p := hardRange(1)
		p.Nonces.Last = 1 << 40
		r.tell(c, p)
		synctest.Wait()
		for i := range 100 {
			time.Sleep(250 * time.Millisecond)
			g.pass(1)
			synctest.Wait()
			if i%20 == 19 {
				if reply := r.heartbeat(c); reply.HashRate < 3600 || reply.HashRate > 4400 || reply.Hashes != uint64(i+1)*1000 {
					t.Errorf("after %d calls: %v hashes, %v a second, want about 4000", i+1, reply.Hashes, reply.HashRate)
				}
			}
		}
		if rate := r.miner.Stats().HashRate; rate < 3600 || rate > 4400 {
			t.Errorf("stats say %v a second, want about 4000", rate)
		}
		r.stop()
		synctest.Wait()
		close(g.tokens)
		if err := r.wait(); err != nil {
			t.Error(err)
		}
	})
}
