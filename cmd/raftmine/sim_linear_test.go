package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"raftmine/fsm"
	"raftmine/raftnode/coordinator"
)

// In a simulation the clients whose history must be linearizable (linear_test.go) are the coordinators of all servers: what each
// of them proposed, between which moments, and what it was told.

// simOperations is the history, in the order of the calls.
type simOperations struct {
	clock atomic.Int64
	mu    sync.Mutex
	list  []operation
}

// proposer gives a coordinator its consensus.
func (s *sim) proposer(p *simProcess) coordinator.Proposer {
	return simProposer{proposer{p.node}, p}
}

type simProposer struct {
	coordinator.Proposer
	p *simProcess
}

func (p simProposer) Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Outcome, error) {
	operations := &p.p.server.sim.operations
	call := operations.clock.Add(1)
	outcomes, err := p.propose(ctx, commands)
	back := operations.clock.Add(1)
	operations.mu.Lock()
	defer operations.mu.Unlock()
	for i, command := range commands {
		op := operation{command: command, call: call, back: math.MaxInt64}
		// What a process is told when it is dead nobody learns.
		if err == nil && !p.p.dead() {
			op.back, op.known, op.outcome = back, true, outcomes[i]
		}
		operations.list = append(operations.list, op)
	}
	return outcomes, err
}

func (p simProposer) propose(ctx context.Context, commands []fsm.Command) ([]fsm.Outcome, error) {
	finish, ok := commands[0].(fsm.Finish)
	if !p.p.server.sim.schedule.hasty || !ok {
		return p.Proposer.Propose(ctx, commands...)
	}
	// The planted bug: what will surely be committed is acknowledged before it is.
	var grant fsm.Grant
	p.View(func(v fsm.View) { grant, ok = v.Grant(finish.GrantID) })
	if !ok || grant.Nonces.Last != finish.Nonces.Last {
		return p.Proposer.Propose(ctx, commands...)
	}
	p.p.work.Go(func() {
		wait(p.p.life, 100*time.Millisecond)
		_, _ = p.Proposer.Propose(p.p.life, commands[0])
	})
	outcomes := []fsm.Outcome{{Code: fsm.Done}}
	for range commands[1:] {
		outcomes = append(outcomes, fsm.Outcome{Code: fsm.NoWork})
	}
	return outcomes, nil
}

// linearized compares the history of proposals with the log, and returns whether an order of them explains it.
func (s *sim) linearized(applied map[any][]loggedCommand) (result porcupine.CheckResult, operations int) {
	s.operations.mu.Lock()
	list := slices.Clone(s.operations.list)
	s.operations.mu.Unlock()
	for i := range list {
		list[i].part.job = jobOfCommand(list[i].command)
	}
	// A command that was refused tells no round: the parts are the jobs.
	return linearize(list, applied, func(l loggedCommand) round { return round{job: l.round.job} })
}

// TestAnAcknowledgementBeforeItsCommitIsFound plants that bug, and kills leaders, until the histories cannot be explained.
func TestAnAcknowledgementBeforeItsCommitIsFound(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		schedule := simSchedule{seed: seed, servers: 3, miners: 3}
		for i := range 6 {
			id := 1 + i%2
			schedule.faults = append(schedule.faults, simFault{
				at: time.Duration(i+1) * 4 * time.Second, lasts: time.Second, what: fmt.Sprintf("server %d crashes", id),
				begin: func(s *sim) { s.server(id).crash() }, end: func(s *sim) { s.revive(id) },
			})
		}
		found := false
		dir := simDir(t)
		synctest.Test(t, func(t *testing.T) {
			schedule.hasty = true
			s, err := newSim(schedule, dir, false)
			if err == nil {
				s.storm()
				err = s.recovered("the cluster")
			}
			for _, m := range s.miners {
				m.stop()
			}
			if err == nil {
				_, err = s.same()
			}
			if err != nil {
				t.Error(err)
			} else if replay := s.replay(s.server(1), true); replay != nil {
				result, _ := s.linearized(replay.applied)
				found = result == porcupine.Illegal
			}
			s.close()
		})
		if found {
			t.Logf("found with seed %d", seed)
			return
		}
		if t.Failed() {
			return
		}
	}
	t.Error("no history is found to be impossible")
}
