package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"
)

// companionRetry is how long a server waits before it starts a companion miner again that ended by itself.
const companionRetry = 2 * time.Second

// companion is the miner of "server --mine": a process of its own that works while its server does not lead, so that
// nothing CPU-heavy ever runs beside a leader.
type companion struct {
	name        string
	threads     int
	flags       []string // more of the miner's
	environment string
	servers     func() string // comma separated: where to look for the leader beside the local environment
	log         string
	logLevel    string
	out         *printer
	logger      *slog.Logger
}

// run keeps the companion working while leading is false, until ctx ends. It returns when the miner has ended.
func (c *companion) run(ctx context.Context, leading <-chan bool) {
	lead := true // until the server knows its role, there is nobody to mine for
	var miner *child
	stop := func() {
		if miner != nil {
			miner.stop(stopPatience)
			miner = nil
		}
	}
	defer stop()
	for {
		var ended <-chan struct{}
		var retry <-chan time.Time
		switch {
		case lead:
			stop()
		case miner == nil:
			var err error
			if miner, err = c.start(ctx); err != nil {
				if ctx.Err() != nil {
					return
				}
				c.logger.Warn("companion miner", "error", err)
				retry = time.After(companionRetry)
			} else {
				c.out.processStarted(miner.started)
				ended = miner.exited
			}
		default:
			ended = miner.exited
		}
		select {
		case <-ctx.Done():
			return
		case lead = <-leading:
		case <-ended:
			c.logger.Warn("companion miner ended", "error", miner.lastError())
			miner.stop(0)
			miner = nil
			select {
			case <-ctx.Done():
				return
			case lead = <-leading:
			case <-time.After(companionRetry):
			}
		case <-retry:
		}
	}
}

func (c *companion) start(ctx context.Context) (*child, error) {
	args := []string{"miner", "--environment", c.environment, "--name", c.name, "--threads", strconv.Itoa(c.threads),
		"--log-level", c.logLevel}
	args = append(args, c.flags...)
	if servers := c.servers(); servers != "" {
		args = append(args, "--servers", servers)
	}
	return startChild(ctx, "miner", c.log, args...)
}

// companionLog is where the companion of a server writes its log.
func companionLog(dataDir string) string { return filepath.Join(dataDir, "miner.log") }
