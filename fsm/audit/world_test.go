package audit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// world makes histories: it drives a State as a coordinator with many miners does, with every turn that a history can
// take, and really searches. The same seed gives the same history.
type world struct {
	t       testing.TB
	rng     *rand.Rand
	state   *fsm.State
	records []Record

	index, term, leader, now uint64

	miners   map[string]*worldMiner
	names    []string
	ranges   []pow.Range // finished in this round, some of them revoked since
	bits     int
	job      fsm.OpenJob
	previous pow.Hash
	height   uint64
	regrants int // releases and revokes so far
}

type worldMiner struct {
	name    string
	share   float64 // of the nonces that it hashes; below 0: none, it makes receipts up
	request uint64
	refused bool
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 4)), state: fsm.New(), term: 1, leader: 1, now: 1_790_000_000_000,
		miners: make(map[string]*worldMiner), bits: 11, previous: pow.Sum([]byte("genesis"))}
	host := fsm.Host{MachineID: "machine", BootID: "boot"}
	commands := []fsm.Command{fsm.OpenCluster{ClusterID: fmt.Sprintf("world-%d", seed)}, fsm.TakeOffice{ServerID: 1}}
	for id := uint64(1); id <= 3; id++ {
		commands = append(commands, fsm.AddServer{RequestID: fsm.ID{byte(id)}, Address: fmt.Sprintf("127.0.0.1:700%d", id),
			DataDir: fmt.Sprintf("/data/%d", id), Host: host}, fsm.ServerUp{ServerID: id})
	}
	w.commit(commands...)
	return w
}

// commit writes one entry.
func (w *world) commit(commands ...fsm.Command) []fsm.Outcome {
	w.t.Helper()
	w.index += 1 + w.rng.Uint64N(8)/7 // Raft's own entries leave gaps
	w.now += w.rng.Uint64N(50)
	data, err := fsm.EncodeEntry(fsm.Entry{LeaderID: w.leader, UnixMilli: w.now, Version: "0.1.0", Commands: commands})
	if err != nil {
		w.t.Fatal(err)
	}
	result, err := w.state.Apply(w.index, w.term, data)
	if err != nil {
		w.t.Fatal(err)
	}
	w.records = append(w.records, Record{Index: w.index, Term: w.term, Data: data, Chain: w.state.Head().Hash})
	return result.Outcomes
}

func (w *world) miner(name string, share float64) *worldMiner {
	m := &worldMiner{name: name, share: share}
	w.miners[name] = m
	w.names = append(w.names, name)
	return m
}

func (w *world) open(nonces, chunk uint64) {
	w.height++
	w.job = fsm.OpenJob{Height: w.height, Previous: w.previous, Bits: w.bits, Timestamp: w.now + 1,
		Nonces: pow.Range{First: 1, Last: nonces}, ChunkSize: chunk}
	w.ranges = nil
	w.commit(w.job)
}

func (w *world) current() fsm.Job {
	job, _ := w.state.Job()
	return job
}

func (w *world) grantCommand(m *worldMiner, chunks uint64) fsm.GrantWork {
	m.request++
	return fsm.GrantWork{JobID: w.current().ID, Miner: m.name, Instance: fsm.ID{1}, RequestID: m.request, Chunks: chunks}
}

func (w *world) held(m *worldMiner) (grants []fsm.Grant) {
	for g := range w.state.Grants() {
		if g.Miner == m.name {
			grants = append(grants, g)
		}
	}
	return grants
}

// quickWork is pow.Work for many nonces: it writes the hash down once, which is half of the time with the race detector.
type quickWork struct {
	hash, timestamp []byte
	bits            int
}

func quickly(work pow.Work) quickWork {
	return quickWork{[]byte(work.Previous.String()), strconv.AppendUint(nil, work.Timestamp, 10), work.Bits}
}

func (q quickWork) verify(nonce uint64) (pow.Hash, bool) {
	var buffer [pow.MaxMessageSize]byte
	message := append(buffer[:0], q.hash...)
	message = strconv.AppendUint(message, nonce, 10)
	digest := pow.Sum(append(message, q.timestamp...))
	return digest, digest.LeadingZeroBits() >= q.bits
}

// search hashes a range as the miner does. A solution ends it.
func (w *world) search(m *worldMiner, nonces pow.Range) (receipt, solution uint64) {
	work := quickly(w.current().Work())
	if m.share < 0 {
		for {
			receipt = nonces.First + w.rng.Uint64N(nonces.Len())
			if _, solved := work.verify(receipt); !solved {
				return receipt, 0
			}
		}
	}
	var best pow.Hash
	last := nonces.First + max(uint64(m.share*float64(nonces.Len())), 1) - 1
	for nonce := nonces.First; nonce <= last; nonce++ {
		digest, solved := work.verify(nonce)
		if solved {
			return receipt, nonce
		}
		if receipt == 0 || digest.Compare(best) < 0 {
			receipt, best = nonce, digest
		}
	}
	return receipt, 0
}

// answer lets a miner search what it holds first, or the head of it, and commits what comes of it. It reports whether the
// job was solved.
func (w *world) answer(m *worldMiner) bool {
	grants := w.held(m)
	if len(grants) == 0 {
		return false
	}
	g, job := grants[0], w.current()
	nonces := g.Nonces
	if chunks := (nonces.Len() + job.ChunkSize - 1) / job.ChunkSize; chunks > 1 && w.rng.IntN(4) == 0 {
		nonces.Last = nonces.First + w.rng.Uint64N(chunks-1)*job.ChunkSize + job.ChunkSize - 1
	}
	receipt, solution := w.search(m, nonces)
	finish := fsm.Finish{JobID: job.ID, GrantID: g.ID, Miner: m.name, Timestamp: job.Timestamp, Nonces: nonces, Receipt: receipt}
	if solution == 0 {
		commands := []fsm.Command{finish}
		if w.rng.IntN(3) == 0 {
			commands = append(commands, w.grantCommand(m, 1+w.rng.Uint64N(3)))
		}
		if w.rng.IntN(10) == 0 {
			commands = append(commands, finish) // its acknowledgement was lost
		}
		w.commit(commands...)
		w.ranges = append(w.ranges, nonces)
		return false
	}
	if done := (solution - g.Nonces.First) / job.ChunkSize * job.ChunkSize; done > 0 {
		finish.Nonces = pow.Range{First: g.Nonces.First, Last: g.Nonces.First + done - 1}
		finish.Receipt, _ = w.search(m, finish.Nonces)
		w.commit(finish)
	}
	solve := fsm.Solve{JobID: job.ID, GrantID: g.ID, Miner: m.name, Timestamp: job.Timestamp, Nonce: solution}
	if code := w.commit(solve, fsm.Submitting{JobID: job.ID}, solve)[0].Code; code != fsm.Done {
		w.t.Fatalf("the solution is %s", code)
	}
	return true
}

// settle logs a verdict.
func (w *world) settle(verdict fsm.Verdict) {
	job := w.current()
	w.commit(fsm.Submitted{JobID: job.ID, Verdict: verdict, Detail: verdict.String()})
	if verdict == fsm.VerdictSuccess {
		w.previous = job.Solution.Hash
		return
	}
	w.height--
}

// mine runs until that many blocks are settled.
func (w *world) mine(blocks int) *world {
	for blocks > 0 {
		if w.state.BlockCount() == 0 && w.current().ID == 0 || w.current().Phase == fsm.PhaseClosed {
			w.open(1_990, 20)
		}
		if w.step() {
			blocks--
		}
	}
	return w
}

// step does one thing. It reports whether a block was settled.
func (w *world) step() bool {
	m := w.miners[w.names[w.rng.IntN(len(w.names))]]
	switch n := w.rng.IntN(200); {
	case n < 70 && !m.refused:
		w.commit(w.grantCommand(m, 1+w.rng.Uint64N(4)))
	case n < 180:
		if w.answer(m) {
			verdict := fsm.VerdictSuccess
			if w.rng.IntN(5) == 0 {
				verdict = []fsm.Verdict{fsm.VerdictWrong, fsm.VerdictStale, fsm.VerdictUnknown}[w.rng.IntN(3)]
			}
			w.takeover(w.rng.IntN(3) == 0) // the next leader finds the intent
			w.settle(verdict)
			return true
		}
		if c := w.state.Counts(); c.Pending+c.Granted == 0 {
			job := w.current()
			w.ranges = nil
			w.commit(fsm.Roll{JobID: job.ID, Round: job.Round + 1, Timestamp: job.Timestamp + 1 + w.rng.Uint64N(1000)})
		}
	case n < 188:
		reason := fsm.ReleaseReason(1 + w.rng.IntN(4))
		forget := w.rng.IntN(3) == 0
		w.regrants += len(w.held(m))
		w.commit(fsm.Release{Miner: m.name, Reason: reason, Forget: forget})
		if forget {
			m.request = 0
		}
	case n < 192:
		w.takeover(true)
	case n < 193:
		job := w.current()
		w.commit(fsm.CloseJob{JobID: job.ID, Reason: "the previous hash moved"})
		w.height--
		w.open(1_990, 20)
	case n < 196: // refused, and changes nothing
		w.commit(fsm.Finish{JobID: w.current().ID, GrantID: 1 << 40, Miner: m.name, Timestamp: 1,
			Nonces: pow.Range{First: 1, Last: 20}, Receipt: 1},
			fsm.Solve{JobID: w.current().ID, GrantID: 1, Miner: m.name, Timestamp: w.current().Timestamp, Nonce: 5})
	case n < 198 && len(w.ranges) > 0:
		i := w.rng.IntN(len(w.ranges))
		job := w.current()
		w.commit(fsm.Revoke{JobID: job.ID, Round: job.Round, Miner: m.name, Ranges: []pow.Range{w.ranges[i]}, Reason: "not believed"})
		w.ranges = slices.Delete(w.ranges, i, i+1)
		w.regrants++
	}
	return false
}

func (w *world) takeover(really bool) {
	if !really {
		return
	}
	down := w.leader
	w.leader = down%3 + 1
	w.term += 1 + w.rng.Uint64N(2)
	w.index++
	w.now += 12
	w.commit(fsm.TakeOffice{ServerID: w.leader}, fsm.ServerDown{ServerID: down, Reason: "port refused"})
	w.commit(fsm.ServerUp{ServerID: down})
}

// history returns a history with everything in it: many miners, takeovers, re-grants, rolls, stale jobs.
func history(t testing.TB, seed uint64, miners, blocks int) *world {
	w := newWorld(t, seed)
	for i := range miners {
		w.miner(fmt.Sprintf("miner-%d", i), 1)
	}
	return w.mine(blocks)
}

func recordsOf(records []Record) Records {
	return func(yield func(Record, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func replay(t testing.TB, records []Record, o Options) *Report {
	t.Helper()
	report, err := Replay(recordsOf(records), o)
	if err != nil {
		t.Fatal(err)
	}
	return report
}
