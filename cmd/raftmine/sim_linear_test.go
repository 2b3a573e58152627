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

// The coordinators of all servers are the clients of one replicated state. What each of them proposed, between which moments,
// and what it was told is a history; it must be explained by some order of the commands, each taking effect at one moment
// between its proposal and its outcome. A command whose outcome stayed unknown may take effect at any time after its proposal,
// or never: which of the two it did the log says.

// simOperation is one command that was proposed.
type simOperation struct {
	command fsm.Command
	call    int64
	back    int64
	known   bool
	outcome fsm.Outcome
}

// simOperations is the history, in the order of the calls.
type simOperations struct {
	clock atomic.Int64
	mu    sync.Mutex
	list  []simOperation
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
		op := simOperation{command: command, call: call, back: math.MaxInt64}
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
		simPause(p.p.life, 100*time.Millisecond)
		_, _ = p.Proposer.Propose(p.p.life, commands[0])
	})
	outcomes := []fsm.Outcome{{Code: fsm.Done}}
	for range commands[1:] {
		outcomes = append(outcomes, fsm.Outcome{Code: fsm.NoWork})
	}
	return outcomes, nil
}

// simApplied is what the log says of a command.
type simApplied struct {
	command fsm.Command
	job     uint64 // that was current
	outcome fsm.Outcome
}

// linearized compares the history of proposals with the log, and returns whether an order of them explains it.
func (s *sim) linearized(applied map[string][]simApplied) (result porcupine.CheckResult, operations int) {
	s.operations.mu.Lock()
	list := slices.Clone(s.operations.list)
	s.operations.mu.Unlock()
	slices.SortFunc(list, func(a, b simOperation) int { // the known ones find their entries first
		if a.known != b.known {
			if a.known {
				return -1
			}
			return 1
		}
		return int(a.call - b.call)
	})
	result = porcupine.Ok
	jobs := make(map[uint64][]porcupine.Operation)
	// A release names no job, and the same one may be proposed in many. Those that were applied may have been at any time.
	for _, entries := range applied {
		for _, a := range entries {
			if release, ok := a.command.(fsm.Release); ok {
				jobs[a.job] = append(jobs[a.job], porcupine.Operation{Input: release, Output: a.outcome, Return: math.MaxInt64})
			}
		}
	}
	for _, op := range list {
		key := fmt.Sprintf("%+v", op.command)
		job := jobOfCommand(op.command)
		if job == 0 {
			continue
		}
		at := slices.IndexFunc(applied[key], func(a simApplied) bool { return !op.known || a.outcome == op.outcome })
		switch {
		case at >= 0:
			op.outcome = applied[key][at].outcome
			applied[key] = slices.Delete(applied[key], at, at+1)
		case !op.known:
			continue // it never took effect
		}
		jobs[job] = append(jobs[job], porcupine.Operation{Input: op.command, Call: op.call, Output: op.outcome, Return: op.back})
	}
	for _, history := range jobs {
		operations += len(history)
		switch got := porcupine.CheckOperationsTimeout(simModel, history, 5*time.Second); got {
		case porcupine.Illegal:
			return got, operations
		case porcupine.Unknown:
			result = got
		}
	}
	return result, operations
}

// jobOfCommand returns the job that a command names, 0: it names none.
func jobOfCommand(command fsm.Command) uint64 {
	switch c := command.(type) {
	case fsm.GrantWork:
		return c.JobID
	case fsm.Finish:
		return c.JobID
	case fsm.Solve:
		return c.JobID
	case fsm.Roll:
		return c.JobID
	case fsm.Revoke:
		return c.JobID
	case fsm.CloseJob:
		return c.JobID
	case fsm.Submitted:
		return c.JobID
	}
	return 0
}

// simJob is the state of the model, of one job: what each chunk is.
type simJob struct {
	solved, over bool
	chunks       [160 / simChunk]simOwner
}

// simOwner is zero for a pending chunk.
type simOwner struct {
	grant    uint64
	miner    string
	finished bool
}

// simModel is written from what the commands promise, and shares no code with fsm.
var simModel = porcupine.Model{
	Init: func() any { return simJob{} },
	Step: func(state, input, output any) (bool, any) {
		return state.(simJob).step(input.(fsm.Command), output.(fsm.Outcome))
	},
}

func (j simJob) step(command fsm.Command, outcome fsm.Outcome) (bool, any) {
	done := outcome.Code == fsm.Done
	switch c := command.(type) {
	case fsm.GrantWork:
		switch {
		case done:
			ok := !j.solved && !j.over
			for i := range chunksOf(outcome.Grant.Nonces.First, outcome.Grant.Nonces.Last) {
				ok = ok && j.chunks[i] == simOwner{}
				j.chunks[i] = simOwner{grant: outcome.Grant.ID, miner: c.Miner}
			}
			return ok, j
		case outcome.Code == fsm.NoWork && !j.solved && !j.over:
			return !slices.Contains(j.chunks[:], simOwner{}), j
		}
	case fsm.Finish:
		for i := range chunksOf(c.Nonces.First, c.Nonces.Last) {
			switch {
			case done && (j.solved || j.over || j.chunks[i].grant != c.GrantID || j.chunks[i].finished):
				return false, j
			case done:
				j.chunks[i].finished = true
			case outcome.Code == fsm.Released && j.chunks[i].grant == c.GrantID && !j.chunks[i].finished && !j.solved && !j.over:
				return false, j
			}
		}
	case fsm.Solve:
		if done {
			owner := j.chunks[(c.Nonce-simNonces.First)/simChunk]
			ok := !j.solved && !j.over && owner.grant == c.GrantID && !owner.finished
			j.solved = true
			return ok, j
		}
	case fsm.Release:
		for i, owner := range j.chunks {
			if done && !owner.finished && owner.miner == c.Miner && (len(c.GrantIDs) == 0 || slices.Contains(c.GrantIDs, owner.grant)) {
				j.chunks[i] = simOwner{}
			}
		}
	case fsm.Roll:
		if done {
			for _, owner := range j.chunks {
				if !owner.finished || j.solved || j.over {
					return false, j
				}
			}
			j.chunks = simJob{}.chunks
		}
	case fsm.Revoke:
		for _, r := range c.Ranges {
			for i := range chunksOf(r.First, r.Last) {
				if done && !j.chunks[i].finished {
					return false, j
				}
				if done {
					j.chunks[i] = simOwner{}
				}
			}
		}
	case fsm.CloseJob, fsm.Submitted:
		j.over = j.over || done
	}
	return true, j
}

// chunksOf yields the chunks of a range.
func chunksOf(first, last uint64) func(func(uint64) bool) {
	return func(yield func(uint64) bool) {
		for i := (first - simNonces.First) / simChunk; i <= (last-simNonces.First)/simChunk; i++ {
			if !yield(i) {
				return
			}
		}
	}
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
