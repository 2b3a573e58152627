package fsm

import (
	"bytes"
	"testing"

	"raftmine/fsm/pow"
)

// tb is what the helpers need of testing.TB and of rapid.T.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
}

// replica applies entries to a state as one server does.
type replica struct {
	tb
	*State
	index, term uint64
}

func newReplica(t tb) *replica { return &replica{tb: t, State: New(), term: 1} }

// entry applies commands in one entry, and checks the state after it.
func (r *replica) entry(commands ...Command) Result {
	r.Helper()
	r.index++
	data, err := EncodeEntry(Entry{LeaderID: 1, UnixMilli: 1_790_000_000_000 + r.index, Version: "test", Commands: commands})
	if err != nil {
		r.Fatalf("encode %+v: %v", commands, err)
	}
	return r.raw(data)
}

func (r *replica) raw(data []byte) Result {
	r.Helper()
	result, err := r.State.Apply(r.index, r.term, data)
	if err != nil {
		r.Fatalf("apply: %v", err)
	}
	if err := r.Check(); err != nil {
		r.Fatalf("after entry %d: %v", r.index, err)
	}
	return result
}

// do applies one command.
func (r *replica) do(command Command) Outcome {
	r.Helper()
	return r.entry(command).Outcomes[0]
}

// must applies commands that have to be Done.
func (r *replica) must(commands ...Command) []Outcome {
	r.Helper()
	outcomes := r.entry(commands...).Outcomes
	for i, outcome := range outcomes {
		if outcome.Code != Done {
			r.Fatalf("%T is %s: %s", commands[i], outcome.Code, outcome.Detail)
		}
	}
	return outcomes
}

// content is the state without its head, which moves with every entry.
func (r *replica) content() pow.Hash {
	head := r.head
	defer func() { r.head = head }()
	r.head = Head{}
	return r.Digest()
}

// restored returns a replica that goes on from a snapshot of this one.
func (r *replica) restored() *replica {
	r.Helper()
	return &replica{tb: r.tb, State: restore(r.tb, r.State.Snapshot()), index: r.index, term: r.term}
}

func restore(t tb, snapshot *Snapshot) *State {
	t.Helper()
	state, err := ReadSnapshot(bytes.NewReader(write(t, snapshot)))
	if err != nil {
		t.Fatalf("%v", err)
	}
	return state
}

func write(t tb, snapshot *Snapshot) []byte {
	t.Helper()
	var file bytes.Buffer
	n, err := snapshot.WriteTo(&file)
	if err != nil || n != int64(file.Len()) {
		t.Fatalf("wrote %d bytes of %d: %v", n, file.Len(), err)
	}
	return file.Bytes()
}

// search returns the first nonce of a range that is a solution, and the one with the smallest digest.
func search(work pow.Work, nonces pow.Range) (solution, receipt uint64) {
	var best pow.Hash
	for nonce := nonces.First; ; nonce++ {
		hash, valid := work.Verify(nonce)
		if valid && solution == 0 {
			solution = nonce
		}
		if receipt == 0 || hash.Compare(best) < 0 {
			receipt, best = nonce, hash
		}
		if nonce == nonces.Last {
			return solution, receipt
		}
	}
}

// hardJob is a job of 10 chunks of 100 nonces, the last one short, that nobody solves.
var hardJob = OpenJob{
	Height: 1, Previous: pow.Hash{1}, Bits: 64, Timestamp: 1000, Nonces: pow.Range{First: 1, Last: 950}, ChunkSize: 100,
}

// easyJob is the same with 8 bits, which some nonce of each 256 solves.
var easyJob = func() OpenJob {
	job := hardJob
	job.Bits = 8
	return job
}()

func grantWork(miner string, request, chunks uint64) GrantWork {
	return GrantWork{JobID: 1, Miner: miner, Instance: ID{1}, RequestID: request, Chunks: chunks}
}

func finish(miner string, grant, first, last uint64) Finish {
	return Finish{JobID: 1, GrantID: grant, Miner: miner, Timestamp: 1000, Nonces: pow.Range{First: first, Last: last},
		Receipt: first}
}

// withGrants returns a replica with a job of which a holds grant 1 (chunks 0 to 2), b grant 2 (chunks 3 and 4).
func withGrants(t testing.TB, job OpenJob) *replica {
	r := newReplica(t)
	r.must(job, grantWork("a", 1, 3), grantWork("b", 1, 2))
	return r
}

// solved returns a replica with a solved job, and the command that solved it.
func solved(t testing.TB) (*replica, Solve) {
	t.Helper()
	r := newReplica(t)
	grant := r.must(easyJob, grantWork("a", 1, 10))[1].Grant
	job, _ := r.Job()
	nonce, _ := search(job.Work(), grant.Nonces)
	solve := Solve{JobID: 1, GrantID: 1, Miner: "a", Timestamp: 1000, Nonce: nonce}
	r.must(solve)
	return r, solve
}
