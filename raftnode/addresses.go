package raftnode

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

// addressBook knows where servers listen. In this order: a live entry of the local environment (its process holds a
// lock, so it is true), what was heard within three heartbeats, the replicated server table, what was heard before
// that, and Raft's configuration, which says where a server was when it was added.
type addressBook struct {
	self       uint64
	advertise  string // of this server
	clusterID  string
	fresh      time.Duration // how long hearsay goes before the table
	env        *registry.Environment
	table      func(id uint64) (fsm.Server, bool)
	configured func() []raft.Server

	stale chan struct{} // a dial failed: read the environment again

	mu    sync.Mutex
	local map[uint64]string // from the environment
	heard map[uint64]heard
}

type heard struct {
	address  string
	at       time.Time
	stranger bool // neither the table nor Raft's configuration knew it
}

// maxStrangers is how many servers are heard of that this one does not know yet, as one whose log lags. Tuning.
const maxStrangers = 64

func (b *addressBook) hear(id uint64, address string) {
	if id == b.self || checkAdvertised(address) != nil {
		return
	}
	_, inTable := b.table(id)
	stranger := !inTable && !isConfigured(b.configured(), id)
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, again := b.heard[id]; stranger && !again && !b.roomForStranger() {
		return
	}
	b.heard[id] = heard{address: address, at: time.Now(), stranger: stranger}
}

// roomForStranger forgets strangers that were silent for long. The caller holds mu.
func (b *addressBook) roomForStranger() bool {
	strangers := 0
	for id, h := range b.heard {
		switch {
		case h.stranger && time.Since(h.at) >= b.fresh:
			delete(b.heard, id)
		case h.stranger:
			strangers++
		}
	}
	return strangers < maxStrangers
}

// address returns where a server listens; empty: not known.
func (b *addressBook) address(id uint64) string {
	if id == b.self {
		return b.advertise
	}
	b.mu.Lock()
	local, heard := b.local[id], b.heard[id]
	b.mu.Unlock()
	switch { // without the state machine's lock, if that can be: each Raft heartbeat asks
	case local != "":
		return local
	case heard.address != "" && time.Since(heard.at) < b.fresh:
		return heard.address
	}
	if row, inTable := b.table(id); inTable {
		return row.Address
	}
	if heard.address != "" {
		return heard.address
	}
	for _, server := range b.configured() {
		if serverID(server.ID) == id {
			if _, hostPort, err := splitRaftAddress(server.Address); err == nil {
				return hostPort
			}
		}
	}
	return ""
}

// ServerAddr implements raft.ServerAddressProvider.
func (b *addressBook) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	number := serverID(id)
	address := b.address(number)
	if address == "" {
		return "", errUnknownAddress
	}
	return raftAddress(number, address), nil
}

// known returns the ids, other than our own, that the environment or hearsay younger than fresh knows.
func (b *addressBook) known() []uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ids []uint64
	for id := range b.local {
		ids = append(ids, id)
	}
	for id, h := range b.heard {
		if _, ok := b.local[id]; !ok && time.Since(h.at) < b.fresh {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, cmp.Compare)
	return ids
}

// dialFailed asks run to look at the environment again.
func (b *addressBook) dialFailed(string) {
	select {
	case b.stale <- struct{}{}:
	default:
	}
}

// refresh reads the environment.
func (b *addressBook) refresh() error {
	if b.env == nil {
		return nil
	}
	entries, err := b.env.Entries()
	local := make(map[uint64]string)
	for _, entry := range entries {
		if entry.Role == registry.RoleServer && entry.ClusterID == b.clusterID && entry.ServerID != 0 &&
			entry.ServerID != b.self {
			local[entry.ServerID] = entry.Address
		}
	}
	b.mu.Lock()
	b.local = local
	b.mu.Unlock()
	return err
}

// run refreshes at each heartbeat, and soon after a failed dial, until ctx ends. It reports each error once.
func (b *addressBook) run(ctx context.Context, heartbeat time.Duration, report func(error)) {
	const pause = 100 * time.Millisecond // at most this often
	reported := ""
	for {
		if err := b.refresh(); err != nil && err.Error() != reported {
			reported = err.Error()
			report(err)
		}
		if !sleep(ctx, min(pause, heartbeat)) {
			return
		}
		timer := time.NewTimer(heartbeat)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-b.stale:
		}
		timer.Stop()
	}
}

// sleep waits, and reports whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
