package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"raftmine/fsm"
	"raftmine/rpc"
)

// How often progress is shown: the live line of a terminal, and plain lines elsewhere.
const (
	liveEach  = time.Second
	plainEach = 10 * time.Second
)

// startPatience is how long a run waits for its first leader.
const startPatience = 60 * time.Second

// settledBlocks waits for a leader and returns the sequence number of the last block that was settled before this run.
func (c *cluster) settledBlocks(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	var last error = errors.New("no server runs")
	for {
		if addresses := c.watchable(); len(addresses) > 0 {
			var status rpc.Status
			if status, last = bestStatus(ctx, c.client, addresses); last == nil {
				if status.Coordinator != nil {
					var sequence uint64
					err := listBlocks(ctx, c.client, addressOf(status, addresses), func(b rpc.Block) { sequence = b.Sequence })
					if err == nil {
						return sequence, nil
					}
					last = err
				} else {
					last = errors.New("no leader")
				}
			}
		}
		select {
		case <-ctx.Done():
			return 0, hinted(fmt.Errorf("no leader after %s: %w", startPatience, last), "see the servers' logs in "+c.dir+"/logs")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

var errServersEnded = errors.New("every server has ended")

// follow prints what happens until blocks are accepted (0: until ctx ends) and returns how many were. It is an error when
// there is nobody left to accept any.
func (c *cluster) follow(ctx context.Context, after, blocks uint64) (accepted uint64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { c.showProgress(ctx) })
	beside.Go(func() {
		if c.awaitLastServer(ctx) == nil {
			cancel(errServersEnded)
		}
	})
	defer beside.Wait()
	defer cancel(nil)
	var lastLeader rpc.LeaderEvent
	w := watcher{client: c.client, fromStart: true, after: after, addresses: c.watchable}
	err = w.watch(ctx, func(told rpc.Watched) error {
		switch e := told.Event.(type) {
		case rpc.LeaderEvent:
			if e == lastLeader { // a server tells it anew at the start of each watch
				return nil
			}
			lastLeader = e
		case rpc.BlockEvent, rpc.ServerEvent:
		default:
			return nil
		}
		object, line := viewEvent(told)
		c.out.print(object, "%s", line)
		if e, ok := told.Event.(rpc.BlockEvent); ok && e.Block.Verdict == fsm.VerdictSuccess {
			if accepted++; accepted == blocks {
				return errWatchEnough
			}
		}
		return nil
	})
	if errors.Is(context.Cause(ctx), errServersEnded) {
		return accepted, hinted(fmt.Errorf("%w, and %d %s accepted", errServersEnded, accepted, plural(accepted, "block")),
			fmt.Sprintf("see why in %s/logs; --data-dir %s goes on from here, and --respawn starts dead processes again", c.dir, c.dir))
	}
	return accepted, endedEarly(ctx, err)
}

// watchable returns the servers of this run that live, the leader by the rule first.
func (c *cluster) watchable() []string {
	addresses, _ := serversIn(c.env) // the servers' own logs say what cannot be read
	return addresses
}

// showProgress shows how the search goes until ctx ends: a live line on a terminal, a plain line now and then elsewhere.
// With JSON only trouble with the web service is told, which nothing else says.
func (c *cluster) showProgress(ctx context.Context) {
	each := plainEach
	if c.out.terminal || c.out.json {
		each = liveEach
	}
	if c.out.terminal {
		defer c.out.setLive("")
	}
	ticker := time.NewTicker(each)
	defer ticker.Stop()
	told := "" // the web service's trouble that was told
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		line, trouble := c.progress(ctx)
		if ctx.Err() != nil {
			return
		}
		if c.out.json {
			if trouble != told {
				c.out.print(webServiceView{"web_service", trouble}, "")
				told = trouble
			}
			continue
		}
		if c.out.terminal {
			c.out.setLive(line)
		} else {
			c.out.print(nil, "%s", line)
		}
	}
}

// webServiceView says that the web service cannot be used, or with an empty error that it can again.
type webServiceView struct {
	Event string `json:"event"`
	Error string `json:"error"`
}

// progress is one line on how the search goes, and what the web service's trouble is.
func (c *cluster) progress(ctx context.Context) (line, trouble string) {
	addresses := c.watchable()
	if len(addresses) == 0 {
		return "no server lives", ""
	}
	s, err := bestStatus(ctx, c.client, addresses)
	if err != nil {
		return "no server answers; see " + c.dir + "/logs", ""
	}
	if s.Coordinator == nil {
		return "no leader: waiting for an election; see " + c.dir + "/logs", ""
	}
	line = fmt.Sprintf("leader %d, %d %s, %s", s.LeaderID, s.Blocks, plural(s.Blocks, "block"), hashRate(s.Coordinator.HashRate))
	if j := s.Job; j != nil {
		line += fmt.Sprintf(", block %d (%d bits): %d of %d chunks done", j.Height, j.Bits, j.Chunks.Finished, j.Chunks.Total)
	}
	if s.Coordinator.WebServiceError != "" {
		line += ", web service: " + s.Coordinator.WebServiceError
	}
	return line, s.Coordinator.WebServiceError
}
