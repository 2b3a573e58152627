package main

import (
	"cmp"
	"fmt"
	"math"
	"reflect"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"raftmine/fsm"
)

// A history of operations is linearizable when some order of them explains it, in which each takes effect at one moment between
// its call and its return. One whose outcome stayed unknown may take effect at any time after its call, or never: which of the two
// it did the log says. Two kinds of clients have such a history: the coordinators of a simulated cluster (sim_linear_test.go),
// and the miners of real processes (drill_linear_test.go). The jobs of both have simNonces in chunks of simChunk.

// operation is one command that a client asked for.
type operation struct {
	command fsm.Command
	part    round // of the state; job 0: the model says nothing of it
	call    int64
	back    int64 // MaxInt64: the client never learned the outcome
	known   bool
	outcome fsm.Outcome
}

// round is one search of a job's range; parts of the state that have nothing to do with each other are checked one by one.
type round struct{ job, timestamp uint64 }

// loggedCommand is what the log says of a command.
type loggedCommand struct {
	command fsm.Command
	round   round
	outcome fsm.Outcome
}

// keyOfCommand finds the operation and the log's entry of one command.
func keyOfCommand(command fsm.Command) any {
	if reflect.TypeOf(command).Comparable() {
		return command
	}
	return fmt.Sprintf("%+v", command)
}

// roundOf returns the round that a command was applied to; before and after are the jobs before and after its entry.
func roundOf(command fsm.Command, before, after fsm.Job) round {
	switch c := command.(type) {
	case fsm.Finish:
		return round{c.JobID, c.Timestamp}
	case fsm.Solve:
		return round{c.JobID, c.Timestamp}
	case fsm.Roll, fsm.CloseJob, fsm.Submitted: // what they end
		return round{before.ID, before.Timestamp}
	}
	return round{after.ID, after.Timestamp}
}

// linearize compares a history with the log, and returns whether an order explains it. Part says which part of the state a
// logged command belongs to.
func linearize(list []operation, applied map[any][]loggedCommand, part func(loggedCommand) round) (result porcupine.CheckResult, operations int) {
	slices.SortStableFunc(list, func(a, b operation) int { // the known ones find their entries first
		if a.known != b.known {
			if a.known {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.call, b.call)
	})
	parts := make(map[round][]porcupine.Operation)
	for _, op := range list {
		if op.part.job == 0 {
			continue
		}
		key := keyOfCommand(op.command)
		at := slices.IndexFunc(applied[key], func(l loggedCommand) bool { return !op.known || l.outcome == op.outcome })
		switch {
		case at >= 0:
			op.outcome = applied[key][at].outcome
			applied[key] = slices.Delete(applied[key], at, at+1)
		case !op.known:
			continue // it never took effect
		}
		parts[op.part] = append(parts[op.part], porcupine.Operation{Input: op.command, Call: op.call, Output: op.outcome, Return: op.back})
	}
	// What no client of the history asked for, as the end of a lease, may have taken effect at any time.
	for _, entries := range applied {
		for _, l := range entries {
			if l.outcome.Code == fsm.Done && (jobOfCommand(l.command) != 0 || isRelease(l.command)) {
				parts[part(l)] = append(parts[part(l)], porcupine.Operation{Input: l.command, Output: l.outcome, Return: math.MaxInt64})
			}
		}
	}
	result = porcupine.Ok
	for _, history := range parts {
		operations += len(history)
		switch got := porcupine.CheckOperationsTimeout(workModel, history, 5*time.Second); got {
		case porcupine.Illegal:
			return got, operations
		case porcupine.Unknown:
			result = got
		}
	}
	return result, operations
}

// isRelease: a release names no job.
func isRelease(command fsm.Command) bool {
	_, ok := command.(fsm.Release)
	return ok
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

// workOfJob is the state of the model, of one job: what each chunk is.
type workOfJob struct {
	solved, over bool
	chunks       [simLast / simChunk]chunkOwner
}

// chunkOwner is zero for a pending chunk.
type chunkOwner struct {
	grant    uint64
	miner    string
	finished bool
}

// workModel is written from what the commands promise, and shares no code with fsm.
var workModel = porcupine.Model{
	Init: func() any { return workOfJob{} },
	Step: func(state, input, output any) (bool, any) {
		return state.(workOfJob).step(input.(fsm.Command), output.(fsm.Outcome))
	},
}

func (j workOfJob) step(command fsm.Command, outcome fsm.Outcome) (bool, any) {
	done := outcome.Code == fsm.Done
	switch c := command.(type) {
	case fsm.GrantWork:
		switch {
		case done:
			ok := !j.solved && !j.over
			for i := range chunksOf(outcome.Grant.Nonces.First, outcome.Grant.Nonces.Last) {
				ok = ok && j.chunks[i] == chunkOwner{}
				j.chunks[i] = chunkOwner{grant: outcome.Grant.ID, miner: c.Miner}
			}
			return ok, j
		case outcome.Code == fsm.NoWork && !j.solved && !j.over:
			return !slices.Contains(j.chunks[:], chunkOwner{}), j
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
				j.chunks[i] = chunkOwner{}
			}
		}
	case fsm.Roll:
		if done {
			for _, owner := range j.chunks {
				if !owner.finished || j.solved || j.over {
					return false, j
				}
			}
			j.chunks = workOfJob{}.chunks
		}
	case fsm.Revoke:
		for _, r := range c.Ranges {
			for i := range chunksOf(r.First, r.Last) {
				if done && !j.chunks[i].finished {
					return false, j
				}
				if done {
					j.chunks[i] = chunkOwner{}
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
