package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"raftmine/fsm/audit"
	"raftmine/raftnode"
	"raftmine/rpc"
)

// The patience with a server whose journal is behind its state by the last record, which it writes a moment later.
const (
	historyPatience = 5 * time.Second
	historyPause    = 20 * time.Millisecond
)

// serverSources returns the histories of running servers, each up to what its server has applied by now: so every pass
// over it is the same, and its end has a live state to be compared with.
func serverSources(ctx context.Context, addresses []string) ([]source, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	client := rpc.NewClusterClient()
	defer client.Close()
	var sources []source
	for _, address := range slices.Compact(slices.Sorted(slices.Values(addresses))) {
		status, err := client.Status(ctx, address)
		if err != nil {
			return nil, hinted(fmt.Errorf("server at %s: %w", address, err),
				"check the address, and that a server runs there; the history of one that does not run is in its data directory")
		}
		if status.AppliedIndex == 0 {
			return nil, fmt.Errorf("server at %s has no history yet", address)
		}
		sources = append(sources, serverSource(address, status))
	}
	return sources, nil
}

func serverSource(address string, status rpc.Status) source {
	live := audit.Live{Index: status.AppliedIndex, State: status.StateDigest}
	return source{
		name: fmt.Sprintf("server %d", status.ServerID), path: address, id: status.ServerID, live: &live, last: live.Index,
		open: func(ctx context.Context) (pass, error) {
			client := rpc.NewPeerClient()
			return pass{records: serverRecords(ctx, client, address, live.Index), close: client.Close}, nil
		},
	}
}

// serverRecords yields a server's history up to the record at last.
func serverRecords(ctx context.Context, client *rpc.PeerClient, address string, last uint64) audit.Records {
	return func(yield func(audit.Record, error) bool) {
		patience := time.NewTimer(historyPatience)
		defer patience.Stop()
		request := raftnode.HistoryRequest{LastIndex: last}
		for {
			for r, err := range client.History(ctx, address, request) {
				if err != nil {
					yield(audit.Record{}, unread(err, request.AfterIndex))
					return
				}
				if !yield(audit.Record{Index: r.Index, Term: r.Term, Data: r.Data, Chain: r.Chain}, nil) {
					return
				}
				request.AfterIndex = r.Index
			}
			if request.AfterIndex >= last {
				return
			}
			select {
			case <-time.After(historyPause):
			case <-patience.C:
				return // what is missing is the audit's to say
			case <-ctx.Done():
				yield(audit.Record{}, ctx.Err())
				return
			}
		}
	}
}

// unread tells a server that cannot be asked, of which nothing follows, from one whose history is broken behind the record
// at after: the place itself does not come over the network.
func unread(err error, after uint64) error {
	if errors.Is(err, raftnode.ErrHistoryGap) || errors.Is(err, raftnode.ErrJournalDamaged) {
		return placedError{err, after + 1}
	}
	return fmt.Errorf("%w: %w", audit.ErrInterrupted, err)
}
