package main

import (
	"context"
	"errors"
	"slices"
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
			leader := addressOf(first, addresses) // the leader first: it alone knows the miners
			addresses = append([]string{leader}, slices.DeleteFunc(addresses, func(a string) bool { return a == leader })...)
			w := watcher{client: client, addresses: func() []string { return addresses }}
			w.lost = func(err error, address string) {
				out.print(lostView{"lost", err.Error(), address}, "lost the server: %v; going on with %s", err, address)
			}
			w.silent = func(err error) {
				out.print(noServerView{"no_server", err.Error()}, "no server answers; still trying: %v", err)
			}
			w.back = func(address string) {
				out.print(serverBackView{"server_back", address}, "a server answers again: %s", address)
			}
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

// What watch says of its own connections.
type lostView struct {
	Event   string `json:"event"`
	Error   string `json:"error"`
	Address string `json:"address"` // where it goes on
}

type noServerView struct {
	Event string `json:"event"`
	Error string `json:"error"`
}

type serverBackView struct {
	Event   string `json:"event"`
	Address string `json:"address"`
}

// watcher follows the events of a cluster over the death of servers. Each server's going up and down is told once,
// also when it happened while no server was watched.
type watcher struct {
	client    *rpc.ClusterClient
	addresses func() []string // asked anew before each connection
	fromStart bool            // blocks from after on, not only new ones
	after     uint64          // sequence number of the last block seen

	// Of these one is called for each interruption, and back after silent. They may be nil.
	lost   func(err error, address string) // a connection ended, and another server goes on
	silent func(err error)                 // a connection ended, and no server could be connected to
	back   func(address string)            // one answers again

	up       map[uint64]bool // what was told of the servers, or was so at the start; nil: there was no connection yet
	ended    error           // of the connection that was lost; nil while there is one, before the first, and when silent
	failed   int             // connections that did not come about since
	isSilent bool
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
			if err != nil && ctx.Err() == nil {
				w.interrupted(err, len(addresses))
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rewatchDelay):
		}
	}
}

// interrupted notes the end of a connection, or that none came about. Once every server was tried in vain, that is told.
func (w *watcher) interrupted(err error, servers int) {
	if w.failed++; w.failed == 1 {
		w.ended = err
	}
	if w.failed > servers && !w.isSilent {
		w.isSilent = true
		if w.silent != nil {
			w.silent(w.ended)
		}
	}
}

// connected notes that a server tells its events.
func (w *watcher) connected(address string) {
	switch {
	case w.isSilent && w.back != nil:
		w.back(address)
	case !w.isSilent && w.ended != nil && w.lost != nil:
		w.lost(w.ended, address)
	}
	w.ended, w.failed, w.isSilent = nil, 0, false
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
			w.connected(address)
			if err := w.tellMissed(ctx, address, each); err != nil {
				return stopWatching{err}
			}
			continue
		case rpc.BlockEvent:
			w.after = e.Block.Sequence
		case rpc.ServerEvent:
			if was, known := w.up[e.ID]; known && was == e.Up {
				continue
			}
			if w.up != nil { // nil: the status did not come, and this connection is about to end
				w.up[e.ID] = e.Up
			}
		}
		if err := each(told); err != nil {
			return stopWatching{err}
		}
	}
	return nil
}

// tellMissed tells which servers went up or down while no server was watched.
func (w *watcher) tellMissed(ctx context.Context, address string, each func(rpc.Watched) error) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	status, err := w.client.Status(ctx, address)
	if err != nil {
		return nil // the watch breaks as well, and the next one asks again
	}
	first := w.up == nil
	if first {
		w.up = make(map[uint64]bool)
	}
	for _, server := range status.Servers {
		was := w.up[server.ID]
		w.up[server.ID] = server.Up
		if !first && was != server.Up {
			event := rpc.ServerEvent{ID: server.ID, Up: server.Up}
			if err := each(rpc.Watched{UnixMilli: uint64(time.Now().UnixMilli()), Event: event}); err != nil {
				return err
			}
		}
	}
	return nil
}
