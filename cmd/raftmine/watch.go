package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"raftmine/rpc"
)

// rewatchDelay is how long a broken watch waits before it tries the next server.
const rewatchDelay = 200 * time.Millisecond

func newWatchCommand() *cobra.Command {
	var servers string
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show what happens, as it happens, until interrupted",
		Long: `Show events as they happen: leaders, blocks, servers up and down, heartbeats, miners, jobs. When the server that tells
them ends, the next one goes on; no block is missed or told twice.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			addresses, err := serversFlag(cmd, servers)
			if err != nil {
				return err
			}
			client := rpc.NewClusterClient()
			defer client.Close()
			first, err := bestStatus(cmd.Context(), client, addresses)
			if err != nil {
				return err
			}
			// The leader first: it alone knows the miners.
			addresses = append([]string{addressOf(first, addresses)}, addresses...)
			w := watcher{client: client, addresses: func() []string { return addresses }, unreachable: func(err error) {
				out.print(lostView{"lost", err.Error()}, "lost the server: %v; trying the next", err)
			}}
			err = w.watch(cmd.Context(), func(told rpc.Watched) error {
				if object, line := viewEvent(told); object != nil {
					out.print(object, "%s  %s", clock(timeOf(told.UnixMilli)), line)
				}
				return out.failed()
			})
			if failed := out.failed(); failed != nil {
				return failed
			}
			return endedEarly(cmd.Context(), err)
		},
	}
	addServersFlag(cmd, &servers)
	return cmd
}

type lostView struct {
	Event string `json:"event"`
	Error string `json:"error"`
}

// watcher follows the events of a cluster over the death of servers.
type watcher struct {
	client      *rpc.ClusterClient
	addresses   func() []string      // asked anew before each connection
	fromStart   bool                 // blocks from after on, not only new ones
	after       uint64               // sequence number of the last block seen
	unreachable func(error)          // called once for each connection that was lost; may be nil
	started     func(address string) // called at the start of each connection; may be nil
}

var errWatchEnough = errors.New("seen enough")

// stopWatching is an error of the reader, not of the connection.
type stopWatching struct{ error }

func (e stopWatching) Unwrap() error { return e.error }

// watch calls each until that returns an error, of which errWatchEnough counts as none, or ctx ends.
func (w *watcher) watch(ctx context.Context, each func(rpc.Watched) error) error {
	for turn := 0; ; turn++ {
		if addresses := w.addresses(); len(addresses) > 0 {
			err := w.follow(ctx, addresses[turn%len(addresses)], each)
			if errors.Is(err, errWatchEnough) {
				return nil
			}
			if errors.As(err, new(stopWatching)) {
				return err
			}
			if err != nil && ctx.Err() == nil && w.unreachable != nil {
				w.unreachable(err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rewatchDelay):
		}
	}
}

// follow reads one connection until it ends or each returns an error.
func (w *watcher) follow(ctx context.Context, address string, each func(rpc.Watched) error) error {
	for told, err := range w.client.Watch(ctx, address, rpc.WatchFrom{Past: w.fromStart, AfterBlock: w.after}) {
		if err != nil {
			return err
		}
		switch e := told.Event.(type) {
		case rpc.StartEvent: // from here on the numbers are known, so that the next server can go on
			w.fromStart, w.after = true, e.AfterBlock
			if w.started != nil {
				w.started(address)
			}
			continue
		case rpc.BlockEvent:
			w.after = e.Block.Sequence
		}
		if err := each(told); err != nil {
			return stopWatching{err}
		}
	}
	return nil
}
