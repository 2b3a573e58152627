package coordinator

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// Defaults of a Config. Tuning: what a job is opened with is part of the job, so that servers cannot disagree.
const (
	DefaultHeartbeat       = 5 * time.Second
	DefaultLeaseHeartbeats = 3
	DefaultGrantTime       = 5 * time.Second
	DefaultAnswerTimeout   = 2 * time.Minute
	DefaultForgetAfter     = 15 * time.Minute
	DefaultFirstNonce      = 1
	DefaultLastNonce       = 2_000_000_000
	DefaultChunkSize       = 100_000
	DefaultMaxGrantChunks  = 10_000
	DefaultMaxMiners       = 10_000
)

// Limits of what one miner may ask. Tuning.
const (
	maxWanted      = 16   // ranges that one miner holds; a larger ProcessRequest counts as this
	maxHeld        = 1024 // grant ids in one HeartbeatReply
	maxThreads     = 1 << 16
	outgoingBuffer = 64 // messages that wait for a miner to read them
	knownPerMiner  = 4  // names that are remembered, for each of MaxMiners
)

// Config is what a coordinator is made of. A zero field takes its default, where there is one.
type Config struct {
	Proposer Proposer
	Source   BlockSource
	Observer Observer     // nil: nobody watches
	Logger   *slog.Logger // nil: discards

	ServerID  uint64
	ClusterID string
	Address   string // where miners reach this server
	Term      uint64 // Raft's, above 0 and below 1<<32

	Heartbeat       time.Duration // between two heartbeats to a miner, and between two looks at the block web service
	LeaseHeartbeats int           // a miner that is silent for so many heartbeats loses its ranges
	// AnswerTimeout is how long a miner may answer its heartbeats and still not finish anything of what it holds. Then
	// its ranges are granted again. At least 2*GrantTime.
	AnswerTimeout time.Duration
	// ForgetAfter is how long a miner without grants is away until it is forgotten, and with it why it was refused. A new
	// leader counts from the start of its term.
	ForgetAfter time.Duration

	Nonces         pow.Range // that a new job is searched in, each round
	ChunkSize      uint64    // nonces
	GrantTime      time.Duration
	MaxGrantChunks uint64
	MaxMiners      int // streams that are open at once

	Now func() time.Time // nil: time.Now. With a monotonic clock reading
}

func (c Config) withDefaults() Config {
	if c.Observer == nil {
		c.Observer = nobody{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	setDefault(&c.Heartbeat, DefaultHeartbeat)
	setDefault(&c.LeaseHeartbeats, DefaultLeaseHeartbeats)
	setDefault(&c.GrantTime, DefaultGrantTime)
	setDefault(&c.AnswerTimeout, max(DefaultAnswerTimeout, 2*c.GrantTime))
	setDefault(&c.ForgetAfter, DefaultForgetAfter)
	setDefault(&c.Nonces, pow.Range{First: DefaultFirstNonce, Last: DefaultLastNonce})
	setDefault(&c.ChunkSize, DefaultChunkSize)
	setDefault(&c.MaxGrantChunks, DefaultMaxGrantChunks)
	setDefault(&c.MaxMiners, DefaultMaxMiners)
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate reports what no coordinator can work with. Zero fields are valid where they have a default.
func (c Config) Validate() error {
	c = c.withDefaults()
	switch {
	case c.Proposer == nil:
		return errors.New("coordinator: no proposer")
	case c.Source == nil:
		return errors.New("coordinator: no block source")
	case c.ServerID == 0:
		return errors.New("coordinator: server id is 0")
	case c.Term == 0 || c.Term > math.MaxUint32:
		return fmt.Errorf("coordinator: term %d, want 1 to %d", c.Term, uint64(math.MaxUint32))
	case c.Heartbeat < time.Millisecond:
		return fmt.Errorf("coordinator: heartbeat %v, want 1ms or more", c.Heartbeat)
	case c.LeaseHeartbeats < 2:
		return fmt.Errorf("coordinator: lease of %d heartbeats, want 2 or more", c.LeaseHeartbeats)
	case c.GrantTime < 0:
		return fmt.Errorf("coordinator: grant time %v is negative", c.GrantTime)
	case c.AnswerTimeout < 2*c.GrantTime:
		return fmt.Errorf("coordinator: answer timeout %v, want at least twice the grant time of %v",
			c.AnswerTimeout, c.GrantTime)
	case c.ForgetAfter < c.lease():
		return fmt.Errorf("coordinator: miners are forgotten after %v, want at least the lease of %v",
			c.ForgetAfter, c.lease())
	case c.MaxMiners < 0:
		return fmt.Errorf("coordinator: at most %d miners", c.MaxMiners)
	}
	if err := c.Nonces.Validate(); err != nil {
		return fmt.Errorf("coordinator: %w", err)
	}
	if c.ChunkSize > fsm.MaxChunkSize {
		return fmt.Errorf("coordinator: chunks of %d nonces, want 1 to %d", c.ChunkSize, uint64(fsm.MaxChunkSize))
	}
	if chunks := (c.Nonces.Len()-1)/c.ChunkSize + 1; chunks > fsm.MaxChunks {
		return fmt.Errorf("coordinator: range %s has %d chunks, want at most %d: make them larger",
			c.Nonces, chunks, uint64(fsm.MaxChunks))
	}
	return nil
}

// lease is how long a miner may stay silent before its ranges are granted again.
func (c Config) lease() time.Duration { return time.Duration(c.LeaseHeartbeats) * c.Heartbeat }

// nobody is the Observer of a coordinator that has none.
type nobody struct{}

func (nobody) MinerConnected(string)            {}
func (nobody) MinerDisconnected(string, string) {}
func (nobody) MinerRefused(string, string)      {}
func (nobody) Heartbeat(string, bool)           {}
