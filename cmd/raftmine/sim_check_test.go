package main

import (
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/anishathalye/porcupine"

	"raftmine/fsm"
	"raftmine/fsm/pow"
	"raftmine/raftnode"
	"raftmine/raftnode/coordinator"
)

func simDice(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

// simHistory is what the clients of a cluster saw.
type simHistory struct {
	mu    sync.Mutex
	acked []simAcknowledged
}

type simAnswer struct {
	miner  string
	answer coordinator.Message
}

// simAcknowledged is an answer that its miner was told to be committed.
type simAcknowledged struct {
	simAnswer
	result coordinator.Result
}

func (h *simHistory) acknowledged(miner string, answer coordinator.Message, result coordinator.Result) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acked = append(h.acked, simAcknowledged{simAnswer{miner, answer}, result})
}

func (h *simHistory) acknowledgedAnswers() []simAcknowledged {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.acked)
}

func (h *simHistory) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.acked)
}

// audit replays the history of each server and holds the promises against it.
func (s *sim) audit(totals *simTotals, same bool) {
	s.mu.Lock()
	totals.terms.Add(int64(len(s.terms)))
	s.mu.Unlock()
	totals.answers.Add(int64(s.history.count()))
	for _, server := range s.servers {
		p := server.running()
		if p == nil {
			continue
		}
		replayed := s.replay(server, same)
		if replayed == nil {
			continue
		}
		totals.blocks.Add(int64(replayed.state.Accepted()))
		totals.removed.Add(replayed.removed)
		totals.readmitted.Add(replayed.readmitted)
		var live pow.Hash
		p.node.View(func(v fsm.View) { live = v.Digest() })
		if same && replayed.state.Digest() != live {
			s.fail("the history of server %d is replayed to another state than its own", server.id)
		}
		if same { // the others have the same history
			result, operations := s.linearized(replayed.applied)
			totals.operations.Add(int64(operations))
			switch result {
			case porcupine.Illegal:
				s.fail("no order of the commands explains what the coordinators were told")
			case porcupine.Unknown:
				totals.undecided.Add(1)
			}
			return
		}
	}
}

// simReplay is what the log says.
type simReplay struct {
	state   *fsm.State
	applied map[any][]loggedCommand // by command

	removed, readmitted int64 // servers
}

// simSearched is a chunk of a job in one round.
type simSearched struct{ job, timestamp, chunk uint64 }

// simFinished are the chunks that anybody finished.
type simFinished map[simSearched]bool

// covers reports whether an answer that says no was not needed any more: its lease had expired, and others finished the whole
// range. It is a duplicate too, though nobody has committed this very answer.
func (f simFinished) covers(answer coordinator.Message) bool {
	no, ok := answer.(coordinator.AnswerNo)
	if !ok {
		return false
	}
	for chunk := range chunksOf(no.Nonces.First, no.Nonces.Last) {
		if !f[simSearched{no.JobID, no.Timestamp, chunk}] {
			return false
		}
	}
	return true
}

// replay goes through a server's journal. Only of the whole history is it asked whether everything is in it.
func (s *sim) replay(server *simServer, whole bool) *simReplay {
	reader, err := raftnode.ReadJournal(server.faultyDisk().dir)
	if err != nil {
		s.fail("read the history of server %d: %v", server.id, err)
		return nil
	}
	state := fsm.New()
	replayed := &simReplay{state: state, applied: make(map[any][]loggedCommand)}
	leaders := make(map[uint64]uint64) // by term
	done := make(map[simAnswer]bool)
	finished := make(simFinished)
	for record, err := range reader.Records() {
		if err != nil {
			s.fail("read the history of server %d: %v", server.id, err)
			return nil
		}
		entry, err := fsm.DecodeEntry(record.Data)
		if err != nil {
			s.fail("entry %d: %v", record.Index, err)
			return nil
		}
		if leader, ok := leaders[record.Term]; ok && leader != entry.LeaderID {
			s.fail("entry %d of term %d is server %d's, one before was server %d's", record.Index, record.Term, entry.LeaderID, leader)
		}
		leaders[record.Term] = entry.LeaderID
		before, _ := state.Job()
		result, err := state.Apply(record.Index, record.Term, record.Data)
		if err != nil {
			s.fail("entry %d: %v", record.Index, err)
			return nil
		}
		if record.Index%8 == 0 {
			if err := state.Check(); err != nil {
				s.fail("the state after entry %d is broken: %v", record.Index, err)
			}
		}
		job, _ := state.Job()
		for i, outcome := range result.Outcomes {
			command := entry.Commands[i]
			key := keyOfCommand(command)
			replayed.applied[key] = append(replayed.applied[key], loggedCommand{command, roundOf(command, before, job), outcome})
			if outcome.Code != fsm.Done {
				continue
			}
			switch c := entry.Commands[i].(type) {
			case fsm.Finish:
				for chunk := range chunksOf(c.Nonces.First, c.Nonces.Last) {
					finished[simSearched{c.JobID, c.Timestamp, chunk}] = true
				}
				done[simAnswer{c.Miner, coordinator.AnswerNo{GrantID: c.GrantID, JobID: c.JobID, Timestamp: c.Timestamp, Nonces: c.Nonces,
					Receipt: c.Receipt}}] = true
			case fsm.Solve:
				done[simAnswer{c.Miner, coordinator.AnswerYes{GrantID: c.GrantID, JobID: c.JobID, Timestamp: c.Timestamp, Nonce: c.Nonce}}] = true
			case fsm.RemoveServer:
				replayed.removed++
			case fsm.ReadmitServer:
				replayed.readmitted++
			}
		}
	}
	if err := state.Check(); err != nil {
		s.fail("the state is broken: %v", err)
	}
	if !whole {
		return replayed
	}
	for _, acked := range s.history.acknowledgedAnswers() {
		if !done[acked.simAnswer] && (acked.result != coordinator.Duplicate || !finished.covers(acked.answer)) {
			s.fail("%+v of %s was acknowledged with result %d, and is not in the history", acked.answer, acked.miner, acked.result)
		}
	}
	s.checkBlocks(state)
	return replayed
}

// checkBlocks compares the blocks with what the web service accepted.
func (s *sim) checkBlocks(state *fsm.State) {
	accepted := s.web.acceptedHashes()
	verdicts := make(map[pow.Hash]fsm.Verdict)
	heights := make(map[uint64]bool)
	for _, block := range state.Blocks(0, 0) {
		verdicts[block.Hash] = block.Verdict
		work := pow.Work{Previous: block.Previous, Timestamp: block.Timestamp, Bits: block.Bits}
		if hash, valid := work.Verify(block.Nonce); !valid || hash != block.Hash {
			s.fail("the proof of height %d does not hold", block.Height)
		}
		if block.Verdict != fsm.VerdictSuccess {
			continue
		}
		if heights[block.Height] {
			s.fail("height %d was accepted twice", block.Height)
		}
		heights[block.Height] = true
		if !slices.Contains(accepted, block.Hash) {
			s.fail("height %d is a success that the web service never accepted", block.Height)
		}
	}
	job, _ := state.Job()
	for _, hash := range accepted {
		verdict, settled := verdicts[hash]
		pending := job.Phase != fsm.PhaseClosed && job.Solution != nil && job.Solution.Hash == hash
		if !pending && (!settled || verdict != fsm.VerdictSuccess && verdict != fsm.VerdictUnknown) {
			s.fail("the web service accepted %v, the history says %v", hash, verdict)
		}
	}
	for _, m := range s.miners {
		if row, ok := state.Miner(m.name); ok && !m.liar && row.Strikes > 0 {
			s.fail("honest miner %s has %d strikes", m.name, row.Strikes)
		}
	}
}
