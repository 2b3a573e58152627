package main

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
	"raftmine/fsm/pow"
	"raftmine/raftnode"
)

// answerKey names an answer: what a miner says of one range, or one solution, in one round of a job.
type answerKey struct {
	grant, job, timestamp uint64
	nonces                pow.Range
	receipt               uint64 // the nonce, of a solution
	solution              bool
}

func keyOfFinish(c fsm.Finish) answerKey {
	return answerKey{grant: c.GrantID, job: c.JobID, timestamp: c.Timestamp, nonces: c.Nonces, receipt: c.Receipt}
}

// history is what a log says, entry by entry. It keeps a partition of its own, chunk by chunk: as plain as can be, and
// without a look at the state machine's.
type history struct {
	state     *fsm.State
	committed map[answerKey]uint64 // log index
	events    []historyEvent       // what is counted for each fault, in the order of the log
	broken    []string

	job    fsm.OpenJob
	jobID  uint64
	chunks []chunk
	grants map[uint64]grantRecord // of the current round, not finished
}

// historyEvent is one thing to be counted, at the wall clock of the leader that proposed it.
type historyEvent struct {
	unixMilli              uint64
	regranted, twice       uint64 // chunks
	grants                 int    // after the entry
	rangesChanged, repeats bool
}

type chunk struct {
	holder   uint64 // grant id; 0: nobody
	granted  bool   // in this round, now or before
	finished bool
}

type grantRecord struct {
	miner  string
	nonces pow.Range // as granted
}

// replayServer replays the log of a server that does not run, up to an index, and tells a new history.
func replayServer(dir string, until uint64) (*history, error) {
	stores, err := raftnode.OpenBoltStores(dir, false, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	h := newHistory()
	err = h.replay(stores.Log, until)
	return h, errors.Join(err, stores.Close())
}

func newHistory() *history {
	return &history{state: fsm.New(), committed: make(map[answerKey]uint64), grants: make(map[uint64]grantRecord)}
}

func (h *history) replay(log raft.LogStore, until uint64) error {
	first, err := log.FirstIndex()
	if err != nil {
		return err
	}
	if first != 1 {
		return fmt.Errorf("its log begins at entry %d: start the servers with --keep-log", first)
	}
	for index := first; index <= until; index++ {
		var entry raft.Log
		if err := log.GetLog(index, &entry); err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
		if entry.Type != raft.LogCommand {
			continue
		}
		if err := h.apply(entry.Index, entry.Term, entry.Data); err != nil {
			return err
		}
	}
	return nil
}

// apply applies one entry and follows what its commands did.
func (h *history) apply(index, term uint64, data []byte) error {
	entry, err := fsm.DecodeEntry(data)
	if err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	result, err := h.state.Apply(index, term, data)
	if err != nil {
		return err
	}
	event := historyEvent{unixMilli: entry.UnixMilli}
	for i, command := range entry.Commands {
		h.follow(index, command, result.Outcomes[i], &event)
	}
	if event.rangesChanged || event.repeats {
		event.grants = len(h.grants)
		h.events = append(h.events, event)
	}
	return nil
}

func (h *history) breaks(index uint64, format string, args ...any) {
	h.broken = append(h.broken, fmt.Sprintf("entry %d: ", index)+fmt.Sprintf(format, args...))
}

func (h *history) follow(index uint64, command fsm.Command, outcome fsm.Outcome, event *historyEvent) {
	if c, ok := command.(fsm.Finish); ok {
		switch outcome.Code {
		case fsm.Released:
			event.twice += h.count(c.Nonces)
			event.repeats = true
		case fsm.Duplicate:
			h.repeat(index, c)
		}
	}
	if outcome.Code != fsm.Done {
		return
	}
	switch c := command.(type) {
	case fsm.OpenJob:
		h.job, h.jobID = c, outcome.JobID
		h.restart()
	case fsm.Roll:
		for i, ch := range h.chunks {
			if !ch.finished {
				h.breaks(index, "round %d of job %d begins before chunk %d is finished", c.Round, c.JobID, i)
				break
			}
		}
		h.job.Timestamp = c.Timestamp
		h.restart()
	case fsm.GrantWork:
		h.grant(index, outcome.Grant, event)
	case fsm.Finish:
		h.finish(index, c)
	case fsm.Solve:
		h.committed[answerKey{grant: c.GrantID, job: c.JobID, timestamp: c.Timestamp,
			nonces: pow.Range{First: c.Nonce, Last: c.Nonce}, receipt: c.Nonce, solution: true}] = index
		work := pow.Work{Previous: h.job.Previous, Timestamp: h.job.Timestamp, Bits: h.job.Bits}
		if _, valid := work.Verify(c.Nonce); !valid || c.Timestamp != h.job.Timestamp {
			h.breaks(index, "nonce %d is no proof for job %d", c.Nonce, c.JobID)
		}
	case fsm.Release:
		for id, grant := range h.grants {
			if grant.miner != c.Miner || len(c.GrantIDs) > 0 && !c.Forget && !slices.Contains(c.GrantIDs, id) {
				continue
			}
			h.each(grant.nonces, func(ch *chunk) {
				if ch.holder == id {
					ch.holder = 0
				}
			})
			delete(h.grants, id)
			event.rangesChanged = true
		}
	case fsm.Revoke:
		h.breaks(index, "miner %s is not believed, and a drill's miners are honest: %s", c.Miner, c.Reason)
		for _, nonces := range c.Ranges {
			h.each(nonces, func(ch *chunk) { ch.finished = false })
		}
	}
}

func (h *history) restart() {
	nonces := h.job.Nonces
	h.chunks = make([]chunk, (nonces.Len()-1)/h.job.ChunkSize+1)
	clear(h.grants)
}

// each calls do for every chunk of a range.
func (h *history) each(nonces pow.Range, do func(*chunk)) {
	first := (nonces.First - h.job.Nonces.First) / h.job.ChunkSize
	for i := first; i < first+h.count(nonces); i++ {
		do(&h.chunks[i])
	}
}

// count returns the number of chunks of a range.
func (h *history) count(nonces pow.Range) uint64 { return (nonces.Len()-1)/h.job.ChunkSize + 1 }

func (h *history) grant(index uint64, grant fsm.Grant, event *historyEvent) {
	held, finished := uint64(0), 0
	h.each(grant.Nonces, func(ch *chunk) {
		if ch.holder != 0 {
			held = ch.holder
		}
		if ch.finished {
			finished++
		}
		if ch.granted {
			event.regranted++
		}
		ch.holder, ch.granted = grant.ID, true
	})
	if held != 0 {
		h.breaks(index, "%s was granted as %d while it was grant %d", grant.Nonces, grant.ID, held)
	}
	if finished > 0 {
		h.breaks(index, "%s was granted as %d, %d chunks of it were finished", grant.Nonces, grant.ID, finished)
	}
	h.grants[grant.ID] = grantRecord{grant.Miner, grant.Nonces}
	event.rangesChanged = true
}

func (h *history) finish(index uint64, c fsm.Finish) {
	h.committed[keyOfFinish(c)] = index
	if c.JobID != h.jobID || c.Timestamp != h.job.Timestamp {
		h.breaks(index, "%s was finished for timestamp %d of job %d, which is over", c.Nonces, c.Timestamp, c.JobID)
		return
	}
	wrong := 0
	h.each(c.Nonces, func(ch *chunk) {
		if ch.holder != c.GrantID || ch.finished {
			wrong++
		}
		ch.holder, ch.finished = 0, true
	})
	if wrong > 0 {
		h.breaks(index, "%s was finished by grant %d, which did not hold %d chunks of it", c.Nonces, c.GrantID, wrong)
	}
	if grant, ok := h.grants[c.GrantID]; ok && grant.nonces.Last == c.Nonces.Last {
		delete(h.grants, c.GrantID)
	}
}

// repeat takes an answer that was called a duplicate: it was committed before, or others have finished the whole range since.
func (h *history) repeat(index uint64, c fsm.Finish) {
	if c.JobID != h.jobID || c.Timestamp != h.job.Timestamp {
		h.breaks(index, "%s was called finished before for timestamp %d of job %d, which is over", c.Nonces, c.Timestamp, c.JobID)
		return
	}
	missing := 0
	h.each(c.Nonces, func(ch *chunk) {
		if !ch.finished {
			missing++
		}
	})
	if missing > 0 {
		h.breaks(index, "%s of grant %d was called finished before, and %d chunks of it were not", c.Nonces, c.GrantID, missing)
		return
	}
	h.committed[keyOfFinish(c)] = index
}

// lost returns the acknowledged answers that this history does not have. One that others' answers made needless is not lost.
func (h *history) lost(answers []acked) (lost []acked) {
	for _, a := range answers {
		key := answerKey{grant: a.grant, job: a.job, timestamp: a.timestamp, nonces: a.nonces, receipt: a.receipt, solution: a.solution}
		if _, ok := h.committed[key]; !ok {
			lost = append(lost, a)
		}
	}
	return lost
}

// acceptedTwice returns the heights that have more than one accepted block.
func acceptedTwice(blocks []fsm.Block) (twice []uint64) {
	seen := make(map[uint64]int)
	for _, block := range blocks {
		if block.Verdict != fsm.VerdictSuccess {
			continue
		}
		if seen[block.Height]++; seen[block.Height] == 2 {
			twice = append(twice, block.Height)
		}
	}
	return twice
}
