package raftnode

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// ErrReplicaStopped: an entry or a snapshot could not be understood, or the history could not be kept, and nothing was
// applied after it. What an entry says another version of the software may understand.
var ErrReplicaStopped = errors.New("replica stopped")

// replica is the state machine that Raft drives. After the first entry that it cannot apply it applies nothing more and
// takes no snapshot, so a restart meets the same entry again.
type replica struct {
	mu    sync.RWMutex // guards state: Apply and Restore write, View and Snapshot read
	state *fsm.State

	journal *journal // of what is applied; set before Raft starts. nil: none is kept
	// belongs says why this server is not the one of the table that it takes itself for. Set before Raft starts; may be nil.
	belongs func(table []fsm.Server) error

	failOnce sync.Once
	failed   chan struct{} // closed by fail
	reason   error         // valid once failed is closed

	applied func(index uint64, events []fsm.Event) // on Raft's goroutine, in log order, without mu
}

func newReplica(applied func(uint64, []fsm.Event)) *replica {
	return &replica{state: fsm.New(), failed: make(chan struct{}), applied: applied}
}

// Apply implements raft.FSM. It returns []fsm.Outcome or an error.
func (r *replica) Apply(log *raft.Log) any {
	if err := r.failure(); err != nil {
		return err
	}
	r.mu.Lock()
	old := r.state.Head()
	before, _ := r.state.Recovery()
	result, err := r.state.Apply(log.Index, log.Term, log.Data)
	head := r.state.Head()
	after, _ := r.state.Recovery()
	r.mu.Unlock()
	if after.RecoveryID != before.RecoveryID && after.Head != old.Hash {
		return r.fail(fmt.Errorf("%w at index %d: server %d went on with another history than this server has: keep this data "+
			"directory for an audit, and start on another one to join as a new server", ErrReplicaStopped, log.Index, after.Survivor))
	}
	if err == nil {
		err = r.known(result.Events)
	}
	if err == nil && r.journal != nil {
		err = r.journal.append(head, log.Data)
	}
	if err != nil {
		// The error says index and format version, or what is wrong with the journal.
		return r.fail(fmt.Errorf("%w at index %d: %w", ErrReplicaStopped, log.Index, err))
	}
	if len(result.Events) > 0 {
		r.applied(log.Index, result.Events)
	}
	return result.Outcomes
}

// known checks who this server is, when the table may have changed.
func (r *replica) known(events []fsm.Event) error {
	for _, event := range events {
		if _, ok := event.(fsm.ServerChanged); ok && r.belongs != nil {
			return r.belongs(r.state.Servers())
		}
	}
	return nil
}

// Snapshot implements raft.FSM: a copy now, written later.
func (r *replica) Snapshot() (raft.FSMSnapshot, error) {
	if err := r.failure(); err != nil {
		return nil, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return persistedSnapshot{r, r.state.Snapshot()}, nil
}

// Restore implements raft.FSM. The state is replaced whole or not at all.
func (r *replica) Restore(source io.ReadCloser) error {
	defer source.Close()
	if err := r.failure(); err != nil {
		return err
	}
	state, err := fsm.ReadSnapshot(source)
	if err != nil {
		return r.fail(fmt.Errorf("%w at a snapshot: %w", ErrReplicaStopped, err))
	}
	if r.belongs != nil {
		if err := r.belongs(state.Servers()); err != nil {
			return r.fail(fmt.Errorf("%w at a snapshot: %w", ErrReplicaStopped, err))
		}
	}
	if r.journal != nil {
		if err := r.journal.restored(state.Head()); err != nil {
			return r.fail(fmt.Errorf("%w at a snapshot: %w", ErrReplicaStopped, err))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = state
	return nil
}

func (r *replica) view(read func(fsm.View)) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	read(r.state)
}

func (r *replica) fail(err error) error {
	r.failOnce.Do(func() {
		if r.journal != nil {
			err = r.journal.advise(err)
		}
		r.reason = err
		close(r.failed)
	})
	return r.reason
}

// failure returns why the replica stopped; nil: it did not.
func (r *replica) failure() error {
	select {
	case <-r.failed:
		return r.reason
	default:
		return nil
	}
}

type persistedSnapshot struct {
	replica  *replica
	snapshot *fsm.Snapshot
}

// Persist implements raft.FSMSnapshot. Raft closes the sink, or cancels it on an error; the history that the snapshot takes
// the place of in the log is on the disk before.
func (s persistedSnapshot) Persist(sink raft.SnapshotSink) error {
	if journal := s.replica.journal; journal != nil {
		if err := journal.sync(); err != nil {
			return s.replica.fail(fmt.Errorf("%w at a snapshot: %w", ErrReplicaStopped, err))
		}
	}
	_, err := s.snapshot.WriteTo(sink)
	return err
}

// Release implements raft.FSMSnapshot.
func (s persistedSnapshot) Release() {}
