package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
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
// over it is the same, and its end has a live state to be compared with. Those that do not answer are returned apart. The
// error is that of ctx.
func serverSources(ctx context.Context, addresses []string) (sources []source, silent []unread, err error) {
	client := rpc.NewClusterClient()
	defer client.Close()
	addresses = slices.Compact(slices.Sorted(slices.Values(addresses)))
	statuses, errs := make([]rpc.Status, len(addresses)), make([]error, len(addresses))
	var asked sync.WaitGroup
	for i, address := range addresses {
		asked.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, statusTimeout)
			defer cancel()
			statuses[i], errs[i] = client.Status(ctx, address)
			if errs[i] == nil && statuses[i].AppliedIndex == 0 {
				errs[i] = errNoHistory
			}
		})
	}
	asked.Wait()
	for i, address := range addresses {
		if errs[i] != nil {
			silent = append(silent, unread{name: "server at " + address, path: address, id: statuses[i].ServerID, err: errs[i]})
		} else {
			sources = append(sources, serverSource(address, statuses[i]))
		}
	}
	return sources, silent, ctx.Err()
}

var errNoHistory = errors.New("it has no history yet")

func serverSource(address string, status rpc.Status) source {
	live := audit.Live{Index: status.AppliedIndex, State: status.StateDigest}
	return source{
		name: fmt.Sprintf("server %d", status.ServerID), path: address, id: status.ServerID, cluster: status.ClusterID,
		live: &live, last: live.Index,
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
					yield(audit.Record{}, stopped(err, request.AfterIndex))
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

// stopped tells a server that cannot be asked, of which nothing follows, from one whose history is broken behind the record
// at after: the place itself does not come over the network.
func stopped(err error, after uint64) error {
	if errors.Is(err, raftnode.ErrHistoryGap) || errors.Is(err, raftnode.ErrJournalDamaged) {
		return placedError{err, after + 1}
	}
	return fmt.Errorf("%w: %w", audit.ErrInterrupted, err)
}
