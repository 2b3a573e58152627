package raftnode

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// ErrRefused: what an operator asked for makes no sense now; nothing was changed. The text says why and what to do.
var ErrRefused = errors.New("refused")

// RemoveServer ends the membership of a server that does not run: it votes no longer, and nobody waits for it. One that runs
// would report and be added again, so it must be stopped first. It keeps its id, and when it returns it is added again.
// Leader only.
func (n *Node) RemoveServer(ctx context.Context, id uint64) error {
	if err := n.alive(); err != nil {
		return err
	}
	if n.term.Load() == 0 {
		return n.notLeader()
	}
	var row fsm.Server
	var known bool
	n.View(func(v fsm.View) { row, known = v.Server(id) })
	switch {
	case !known:
		return fmt.Errorf("%w: there is no server %d", ErrRefused, id)
	case !row.Member && !isConfigured(n.configuration(), id):
		return fmt.Errorf("%w: server %d is no member any more", ErrRefused, id)
	case id == n.id:
		return fmt.Errorf("%w: server %d leads: stop it, then remove it", ErrRefused, id)
	}
	if _, err := n.ask(ctx, id, n.book.address(id)); err == nil {
		return fmt.Errorf("%w: server %d runs and would be added again: stop it, then remove it", ErrRefused, id)
	} else if ctx.Err() != nil {
		return ctx.Err()
	}
	n.peers.lost(id)
	if err := n.dismiss(ctx, id, "removed by an operator"); err != nil {
		return fmt.Errorf("remove server %d: %w", id, err)
	}
	return nil
}

// TransferLeadership hands leadership to another voter, 0: to the lowest other one that is up. The rule that the lowest id
// leads undoes it. It returns who was chosen. Leader only.
func (n *Node) TransferLeadership(ctx context.Context, to uint64) (uint64, error) {
	if err := n.alive(); err != nil {
		return 0, err
	}
	if n.term.Load() == 0 {
		return 0, n.notLeader()
	}
	if to == 0 {
		if to = n.heir(nil); to == 0 {
			return 0, fmt.Errorf("%w: no other server is up and votes", ErrRefused)
		}
	}
	var row fsm.Server
	var known bool
	n.View(func(v fsm.View) { row, known = v.Server(to) })
	switch {
	case !known:
		return 0, fmt.Errorf("%w: there is no server %d", ErrRefused, to)
	case !row.Member:
		return 0, fmt.Errorf("%w: server %d was removed; started again on its data directory it comes back", ErrRefused, to)
	case to == n.id:
		return to, nil
	case !isVoter(n.configuration(), to) || !row.Up:
		return 0, fmt.Errorf("%w: server %d is not up, so it cannot lead", ErrRefused, to)
	}
	if err := n.transfer(ctx, to); err != nil {
		if n.raft.State() != raft.Leader {
			return 0, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
		return 0, fmt.Errorf("%w: leadership was not handed to server %d: %w", ErrRefused, to, err)
	}
	return to, nil
}
