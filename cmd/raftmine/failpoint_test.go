package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	_ "unsafe" // for linkname

	"raftmine/fsm"
	"raftmine/raftnode/coordinator"
)

// failpointVariable names a folder. A server of this test binary that comes to the point that the file "armed" there names
// leaves what it was about to do in the file "struck", and sends itself, or the process named there, a signal. So one process is
// struck, once.
const failpointVariable = "TEST_FAILPOINTS"

// The steps of a block, to which a leader comes.
const (
	pointAfterOpen    = "after-open"    // the job is logged, nobody was told
	pointAfterGrant   = "after-grant"   // a range is logged as granted, and not sent
	pointBeforeSolve  = "before-solve"  // the miner told it, nothing is logged
	pointAfterSolve   = "after-solve"   // solution and intent are logged, nobody was told
	pointBeforeSubmit = "before-submit" // the last check is passed, the request is not sent
	pointAfterSubmit  = "after-submit"  // the web service judged it, the verdict is not logged
	pointAfterVerdict = "after-verdict" // the verdict is logged, the next block is not asked for
)

// pointOfRecovery is a step of a recovery, by the name that raftnode gives it.
func pointOfRecovery(step string) string { return "recovery: " + step }

// raftnodeStep is raftnode's own hook, which nothing but tests may replace, so it has no exported name.
//
//go:linkname raftnodeStep raftmine/raftnode.recoveryStep
var raftnodeStep func(step string)

// failpointMark is what a process leaves behind: who is struck, and the last solution that it knew, if any.
type failpointMark struct {
	PID              int
	Nonce, Timestamp uint64
}

// useFailpoints makes this process come to failpoints; an empty folder: it does not.
func useFailpoints(folder string) {
	if folder == "" {
		return
	}
	termEdges = func(p coordinator.Proposer, s coordinator.BlockSource) (coordinator.Proposer, coordinator.BlockSource) {
		f := failpoints(folder)
		return failProposer{p, f}, failSource{s, f}
	}
	raftnodeStep = func(step string) { failpoints(folder).reach(pointOfRecovery(step), 0, 0) }
}

// failpoints is the folder.
type failpoints string

func (f failpoints) armed() string  { return filepath.Join(string(f), "armed") }
func (f failpoints) struck() string { return filepath.Join(string(f), "struck") }

// blow is what happens at a point.
type blow struct {
	Point  string
	Signal syscall.Signal
	PID    int // who gets it; 0: the one that comes there
}

// arm chooses the next point, and what happens there.
func (f failpoints) arm(b blow) error {
	armed, err := json.Marshal(b)
	return errors.Join(err, os.RemoveAll(f.struck()), f.put(f.armed(), armed))
}

// put writes a file that is whole once it is there.
func (f failpoints) put(path string, content []byte) error {
	return errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path))
}

// reach strikes if this process is the first one at the armed point.
func (f failpoints) reach(point string, nonce, timestamp uint64) {
	armed, err := os.ReadFile(f.armed())
	var b blow
	if err != nil || json.Unmarshal(armed, &b) != nil || b.Point != point || os.Remove(f.armed()) != nil {
		return
	}
	if b.PID == 0 {
		b.PID = os.Getpid()
	}
	mark, _ := json.Marshal(failpointMark{b.PID, nonce, timestamp})
	_ = f.put(f.struck(), mark) // what is missing the test finds
	_ = syscall.Kill(b.PID, b.Signal)
	if b.PID == os.Getpid() && b.Signal == syscall.SIGKILL {
		select {}
	}
}

type failProposer struct {
	coordinator.Proposer
	failpoints
}

func (p failProposer) Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Outcome, error) {
	var solve fsm.Solve
	for _, command := range commands {
		if c, ok := command.(fsm.Solve); ok {
			solve = c
			p.reach(pointBeforeSolve, c.Nonce, c.Timestamp)
		}
	}
	outcomes, err := p.Proposer.Propose(ctx, commands...)
	if err != nil {
		return outcomes, err
	}
	for i, command := range commands {
		if outcomes[i].Code != fsm.Done {
			continue
		}
		switch command.(type) {
		case fsm.OpenJob:
			p.reach(pointAfterOpen, 0, 0)
		case fsm.GrantWork:
			p.reach(pointAfterGrant, 0, 0)
		case fsm.Solve:
			p.reach(pointAfterSolve, solve.Nonce, solve.Timestamp)
		case fsm.Submitted:
			var last fsm.Block
			p.View(func(v fsm.View) { last = v.Blocks(v.BlockCount()-1, 1)[0] })
			p.reach(pointAfterVerdict, last.Nonce, last.Timestamp)
		}
	}
	return outcomes, err
}

type failSource struct {
	coordinator.BlockSource
	failpoints
}

func (s failSource) Submit(ctx context.Context, nonce, timestamp uint64) (coordinator.Reply, error) {
	s.reach(pointBeforeSubmit, nonce, timestamp)
	reply, err := s.BlockSource.Submit(ctx, nonce, timestamp)
	if err == nil {
		s.reach(pointAfterSubmit, nonce, timestamp)
	}
	return reply, err
}
