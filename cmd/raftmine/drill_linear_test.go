package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"raftmine/fsm"
	"raftmine/miner"
	"raftmine/raftnode"
)

// minerHistory is the history of the miners of a real cluster, linear_test.go: which ranges they were granted, and what they were
// told of their answers.
//
// A miner does not ask for each grant. One of a term was called for when its miner asked the leader of that term for work: the log
// says which term, and never the order.
type minerHistory struct {
	mu     sync.Mutex
	began  time.Time
	asked  map[minerTerm]int64
	grants []minerGrant
	given  map[answerKey]*minerAnswer
}

type minerTerm struct {
	miner string
	term  uint64
}

type minerGrant struct {
	miner string
	grant miner.Process
	back  int64
}

type minerAnswer struct {
	command    fsm.Command
	round      round
	call, back int64
	result     string // empty: nobody knows
}

func newMinerHistory() *minerHistory {
	return &minerHistory{began: time.Now(), asked: make(map[minerTerm]int64), given: make(map[answerKey]*minerAnswer)}
}

// now is the time of a call or return. Caller holds mu.
func (h *minerHistory) now() int64 { return int64(time.Since(h.began)) }

func (h *minerHistory) leads(client string, term uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.asked[minerTerm{client, term}]; !ok {
		h.asked[minerTerm{client, term}] = h.now()
	}
}

func (h *minerHistory) granted(client string, grant miner.Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.grants = append(h.grants, minerGrant{client, grant, h.now()})
}

func keyOfAnswer(a acked) answerKey {
	return answerKey{grant: a.grant, job: a.job, timestamp: a.timestamp, nonces: a.nonces, receipt: a.receipt, solution: a.solution}
}

func (h *minerHistory) answering(a acked) {
	h.mu.Lock()
	defer h.mu.Unlock()
	answer := &minerAnswer{round: round{a.job, a.timestamp}, call: h.now(), back: math.MaxInt64}
	if a.solution {
		answer.command = fsm.Solve{JobID: a.job, GrantID: a.grant, Miner: a.client, Timestamp: a.timestamp, Nonce: a.receipt}
	} else {
		answer.command = fsm.Finish{JobID: a.job, GrantID: a.grant, Miner: a.client, Timestamp: a.timestamp, Nonces: a.nonces, Receipt: a.receipt}
	}
	h.given[keyOfAnswer(a)] = answer
}

// answered takes what the miner was told. An answer that was sent again is one operation.
func (h *minerHistory) answered(a acked, ack miner.Acknowledgement) {
	h.mu.Lock()
	defer h.mu.Unlock()
	answer := h.given[keyOfAnswer(a)]
	answer.back, answer.result = h.now(), ack.Result
}

// minerLog is what the log says of grants and answers.
type minerLog struct {
	applied map[any][]loggedCommand
	grants  map[uint64]loggedGrant
}

type loggedGrant struct {
	loggedCommand
	term uint64
}

func readMinerLog(dir string) (*minerLog, error) {
	reader, err := raftnode.ReadJournal(dir)
	if err != nil {
		return nil, err
	}
	state := fsm.New()
	log := &minerLog{applied: make(map[any][]loggedCommand), grants: make(map[uint64]loggedGrant)}
	for record, err := range reader.Records() {
		if err != nil {
			return nil, err
		}
		entry, err := fsm.DecodeEntry(record.Data)
		if err != nil {
			return nil, err
		}
		before, _ := state.Job()
		result, err := state.Apply(record.Index, record.Term, record.Data)
		if err != nil {
			return nil, err
		}
		after, _ := state.Job()
		for i, command := range entry.Commands {
			l := loggedCommand{command, roundOf(command, before, after), result.Outcomes[i]}
			key := keyOfCommand(command)
			log.applied[key] = append(log.applied[key], l)
			if _, ok := command.(fsm.GrantWork); ok && l.outcome.Code == fsm.Done {
				log.grants[l.outcome.Grant.ID] = loggedGrant{l, record.Term}
			}
		}
	}
	return log, nil
}

// operations are the history as the model knows it. A grant that the log does not have is an error.
func (h *minerHistory) operations(log *minerLog) (list []operation, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := make(map[uint64]bool)
	for _, g := range h.grants {
		if seen[g.grant.GrantID] { // what is left of one that its miner had given up is sent again
			continue
		}
		seen[g.grant.GrantID] = true
		logged, ok := log.grants[g.grant.GrantID]
		grant := logged.outcome.Grant
		if !ok || grant.Miner != g.miner || g.grant.Nonces.First < grant.Nonces.First || g.grant.Nonces.Last != grant.Nonces.Last ||
			logged.round != (round{g.grant.JobID, g.grant.Work.Timestamp}) {
			err = errors.Join(err, fmt.Errorf("%s was granted %v, the log says %+v of grant %d", g.miner, g.grant, logged.outcome, g.grant.GrantID))
			continue
		}
		// Without a call the miner learned of it from a later leader.
		list = append(list, operation{command: logged.command, part: logged.round, call: h.asked[minerTerm{g.miner, logged.term}],
			back: g.back, known: true, outcome: logged.outcome})
	}
	for _, a := range h.given {
		op := operation{command: a.command, part: a.round, call: a.call, back: math.MaxInt64}
		committed := slices.ContainsFunc(log.applied[keyOfCommand(a.command)], func(l loggedCommand) bool { return l.outcome.Code == fsm.Done })
		switch {
		case a.result == miner.ResultCommitted, a.result == miner.ResultDuplicate && committed:
			op.back, op.known, op.outcome = a.back, true, fsm.Outcome{Code: fsm.Done}
		case a.result == miner.ResultReleased && !committed:
			op.back, op.known, op.outcome = a.back, true, fsm.Outcome{Code: fsm.Released}
		}
		list = append(list, op)
	}
	return list, err
}

// TestWhatMinersAreToldIsLinearizable: many miners at once are granted ranges and answer for them while the leader is killed,
// paused, stopped and started again. Some order of what they were told, in which everything takes effect between its call and
// its return, is the order of one server that never failed.
func TestWhatMinersAreToldIsLinearizable(t *testing.T) {
	faults := []fault{
		{role: "leader", kind: "kill", down: 300 * time.Millisecond},
		{role: "leader", kind: "pause", pause: 1200 * time.Millisecond},
		{role: "leader", kind: "kill"},
	}
	if fullEndToEnd() {
		for n := 1; n <= 40; n++ {
			faults = append(faults, planFault(3, n, 0, time.Second))
		}
	}
	dir := keepOnFailure(t)
	t.Setenv(asRaftmine, "1") // for the children
	t.Setenv("RAFTMINE_GRANT_TIME", "50ms")
	o := &drillOptions{servers: 3, clients: 8, zeros: 2, serverFlags: serverTuning{heartbeat: 300 * time.Millisecond,
		grace: raftnode.DefaultGrace, nonceFirst: simNonces.First, nonceLast: simNonces.Last, chunk: simChunk}}
	c, err := newCluster(filepath.Join(dir, "cluster"), &printer{w: io.Discard}, "info")
	if err != nil {
		t.Fatal(err)
	}
	seen := newMinerHistory()
	d := &drill{cluster: c, o: o, book: &ackBook{}, seen: seen, started: time.Now()}
	t.Cleanup(func() {
		if err := d.end(); err != nil {
			t.Error(err)
		}
	})
	if d.service, err = startDrillService(filepath.Join(dir, "webservice"), o.zeros, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.startAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, f := range faults {
		f.number = i + 1
		if f.after == 0 {
			f.after = 500 * time.Millisecond
		}
		if _, err := d.survive(t.Context(), f); err != nil {
			t.Fatalf("fault %d, %s of the %s: %v", f.number, f.kind, f.role, err)
		}
	}
	if _, err := d.settle(); err != nil {
		t.Fatal(err)
	}
	log, err := readMinerLog(d.serverDir(1))
	if err != nil {
		t.Fatal(err)
	}
	list, err := seen.operations(log)
	if err != nil {
		t.Error(err)
	}
	kinds := make(map[string]int)
	for _, op := range list {
		kinds[fmt.Sprintf("%T", op.command)]++
		if !op.known {
			kinds["open"]++
		}
	}
	result, operations := linearize(list, log.applied, func(l loggedCommand) round { return l.round })
	if result != porcupine.Ok {
		t.Errorf("what the miners were told: %v, want an order that explains it", result)
	}
	t.Logf("%d operations: %v", operations, kinds)
	if kinds["fsm.GrantWork"] < 100 || kinds["fsm.Finish"] < 100 || kinds["fsm.Solve"] < 3 {
		t.Errorf("too little happened: %v", kinds)
	}
}
