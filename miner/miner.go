package miner

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"raftmine/miner/sha256d"
)

// Defaults and bounds. (tuning)
const (
	DefaultRanges           = 2
	DefaultHeartbeatTimeout = 15 * time.Second // three heartbeats
	DefaultLeaveTimeout     = 2 * time.Second
	DefaultHashRateWindow   = 10 * time.Second

	MaxThreads = 1024
	MaxRanges  = 64
)

// IdleMessage is logged at Debug when a search thread goes on that had nothing to search. Attributes: thread, idle, and
// idle_with_work, the part of idle in which there was a range to search. Those who measure read it.
const IdleMessage = "search thread was idle"

// maxName is the length of the longest name in bytes. (protocol)
const maxName = 64

// Config is what a miner is made of. The zero value of every field but Name and Dialer means its default.
type Config struct {
	// Name is unique among connected miners: 1 to 64 of A-Z, a-z, 0-9, dot, underscore and hyphen.
	Name string
	// Dialer finds the leader.
	Dialer Dialer
	// Threads is how many search threads there are. Zero means one for each processor.
	Threads int
	// Kernel does the search. The zero Kernel means sha256d.Best.
	Kernel sha256d.Kernel
	// Ranges is how many ranges the miner asks to hold. Zero means DefaultRanges; with one it would idle between ranges.
	Ranges int
	// Version is this software's, for people.
	Version string
	// Logger is told of the session at Info, of each range at Debug. Nil discards.
	Logger *slog.Logger
	// HeartbeatTimeout is how long the leader may send no HeartbeatRequest before the stream is given up.
	HeartbeatTimeout time.Duration
	// LeaveTimeout is how long Run waits for acknowledgements once it was asked to stop.
	LeaveTimeout time.Duration
	// HashRateWindow is the time that the hash rate is measured over.
	HashRateWindow time.Duration
}

// withDefaults fills what is zero.
func (c Config) withDefaults() Config {
	if c.Threads == 0 {
		c.Threads = min(runtime.NumCPU(), MaxThreads)
	}
	if c.Kernel.New == nil && c.Kernel.Name == "" {
		c.Kernel = sha256d.Best()
	}
	if c.Ranges == 0 {
		c.Ranges = DefaultRanges
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.HeartbeatTimeout == 0 {
		c.HeartbeatTimeout = DefaultHeartbeatTimeout
	}
	if c.LeaveTimeout == 0 {
		c.LeaveTimeout = DefaultLeaveTimeout
	}
	if c.HashRateWindow == 0 {
		c.HashRateWindow = DefaultHashRateWindow
	}
	return c
}

// Validate reports the first field that makes no sense.
func (c Config) Validate() error {
	if err := checkName(c.Name); err != nil {
		return err
	}
	c = c.withDefaults()
	switch {
	case c.Dialer == nil:
		return errors.New("no dialer")
	case c.Threads < 0 || c.Threads > MaxThreads:
		return fmt.Errorf("%d threads, want 1 to %d", c.Threads, MaxThreads)
	case c.Kernel.New == nil:
		return fmt.Errorf("kernel %q has no implementation", c.Kernel.Name)
	case c.Ranges < 0 || c.Ranges > MaxRanges:
		return fmt.Errorf("%d ranges, want 1 to %d", c.Ranges, MaxRanges)
	case c.HeartbeatTimeout < 0:
		return fmt.Errorf("heartbeat timeout %s is negative", c.HeartbeatTimeout)
	case c.LeaveTimeout < 0:
		return fmt.Errorf("leave timeout %s is negative", c.LeaveTimeout)
	case c.HashRateWindow < time.Second:
		return fmt.Errorf("hash rate window %s, want 1s or more", c.HashRateWindow)
	}
	return nil
}

func checkName(name string) error {
	if len(name) == 0 || len(name) > maxName {
		return fmt.Errorf("miner name %q has %d bytes, want 1 to %d", name, len(name), maxName)
	}
	for _, r := range name {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.', r == '_', r == '-':
		default:
			return fmt.Errorf("miner name %q has %q, want letters, digits, dots, underscores and hyphens", name, r)
		}
	}
	return nil
}

// Miner is one miner. Make it with New.
type Miner struct {
	config   Config
	instance [16]byte

	mu      sync.Mutex // guards everything below
	running bool
	search  *search // nil: never run
	rate    meter
	stats   Stats // without what is computed when asked
}

// Stats is what a miner says of itself.
type Stats struct {
	HashRate       float64 // double SHA-256 a second over the window; 0: not yet known
	Hashes         uint64  // since Run began
	Connected      bool    // to a leader that speaks
	ServerID       uint64  // of the leader last heard
	Term           uint64  // the same leader's
	Held           int     // ranges, searched or answered and not acknowledged
	Unacknowledged int     // of these, answered
	Ranges         uint64  // answered, and the answer was committed
	Chunks         uint64  // in these
	Solutions      uint64  // committed
	Lost           uint64  // answers that did not count: stale, released, wrong
}

// New returns a miner that does not run yet.
func New(config Config) (*Miner, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("miner: %w", err)
	}
	m := &Miner{config: config.withDefaults()}
	m.rate.window = m.config.HashRateWindow
	if _, err := rand.Read(m.instance[:]); err != nil {
		return nil, fmt.Errorf("miner: instance id: %w", err)
	}
	return m, nil
}

// Stats returns what is so now. It may be called at any time, by any goroutine.
func (m *Miner) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	stats := m.stats
	if m.search != nil {
		stats.Hashes = m.search.hashes()
		stats.HashRate = m.rate.at(time.Now(), stats.Hashes)
	}
	return stats
}

// Run mines until ctx ends, then leaves: that is no error. It returns an error that wraps ErrRefused when the leader does
// not want this miner. Everything it started has ended when it returns. A miner runs once.
//
// Run raises GOMAXPROCS to one more than its threads. With a search in every Go processor, the arrival of an interrupt
// would be noticed only by Go's monitor, which looks every 10 ms.
func (m *Miner) Run(ctx context.Context) error {
	m.mu.Lock()
	if m.running {
		m.mu.Unlock()
		return errors.New("miner: runs already, or has run")
	}
	m.running = true
	if runtime.GOMAXPROCS(0) <= m.config.Threads {
		runtime.GOMAXPROCS(m.config.Threads + 1)
	}
	m.search = newSearch(m.config.Threads, m.config.Kernel)
	m.search.idled = m.idled
	m.mu.Unlock()

	s := newSession(m)
	err := s.run(ctx)
	s.end()
	return err
}

// idled tells of a search thread that had nothing to search for a while: what a miner that always holds a next range
// should never see but between two jobs.
func (m *Miner) idled(thread int, waited, late time.Duration) {
	m.config.Logger.Debug(IdleMessage, "thread", thread, "idle", waited, "idle_with_work", late)
}

// setLeader notes who was heard last.
func (m *Miner) setLeader(request HeartbeatRequest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats.ServerID, m.stats.Term = request.ServerID, request.Term
}

// startMeter takes the first sample, when there is work for the first time.
func (m *Miner) startMeter() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.rate.samples) == 0 {
		m.rate.add(time.Now(), m.search.hashes())
	}
}

// measure takes a sample.
func (m *Miner) measure() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.rate.samples) > 0 {
		m.rate.add(time.Now(), m.search.hashes())
	}
}

// countAnswer counts an acknowledged answer.
func (m *Miner) countAnswer(h *holding, result string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if result != ResultCommitted && result != ResultDuplicate {
		m.stats.Lost++
		return
	}
	switch answer := h.answer.(type) {
	case AnswerNo:
		m.stats.Ranges++
		m.stats.Chunks += (answer.Nonces.Len()-1)/h.grant.process.ChunkSize + 1
	case AnswerYes:
		m.stats.Solutions++
	}
}

// publish notes the state of the session.
func (m *Miner) publish(connected bool, held, unacknowledged int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats.Connected, m.stats.Held, m.stats.Unacknowledged = connected, held, unacknowledged
}

// meter measures a rate over a sliding window.
type meter struct {
	window  time.Duration
	samples []sample // oldest first, none older than window when the last one was taken
}

type sample struct {
	at     time.Time
	hashes uint64
}

// add takes a sample. Samples are taken some times a window, from the first work on.
func (m *meter) add(now time.Time, hashes uint64) {
	old := 0
	for old < len(m.samples) && now.Sub(m.samples[old].at) > m.window {
		old++
	}
	m.samples = append(m.samples[:0], m.samples[old:]...)
	m.samples = append(m.samples, sample{now, hashes})
}

// at returns the rate since the oldest sample in the window, 0 when there is none or it is too young to tell.
func (m *meter) at(now time.Time, hashes uint64) float64 {
	for _, s := range m.samples {
		age := now.Sub(s.at)
		if age > m.window {
			continue
		}
		if age < m.window/100 {
			break
		}
		return float64(hashes-s.hashes) / age.Seconds()
	}
	return 0
}
