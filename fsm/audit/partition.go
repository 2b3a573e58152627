package audit

import (
	"fmt"
	"slices"
	"sort"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// owner says whose a stretch of nonces is.
type owner uint8

const (
	untouched owner = iota // never granted in this round
	returned               // granted before, pending again
	granted
	finished
)

// stretch is consecutive nonces with one owner. It holds no pointers: a job with many miners has thousands of them, and
// they are moved to and fro.
type stretch struct {
	nonces pow.Range
	grant  uint64 // granted: which grant
	miner  uint32 // granted: who holds it; returned: who held it last; see partition.names
	owner  owner
	why    reason // returned
}

// reason is why nonces became pending again: a fsm.ReleaseReason, or revoked.
type reason uint8

const revoked = reason(fsm.ReleaseRefused) + 1

func (r reason) String() string {
	if r == revoked {
		return "revoked"
	}
	return fsm.ReleaseReason(r).String()
}

func (s stretch) same(other stretch) bool {
	return s.owner == other.owner && s.grant == other.grant && s.miner == other.miner && s.why == other.why
}

// partition is the auditor's own account of who owns each nonce of a round: an ordered list of stretches that cover all
// of the job's nonces. It counts nonces where fsm counts chunks, and shares no code with it.
type partition struct {
	nonces    pow.Range
	chunk     uint64
	stretches []stretch
	chunks    [finished + 1]uint64 // by owner
	names     []string             // of miners; 0 is nobody
}

func newPartition(nonces pow.Range, chunk uint64) partition {
	p := partition{nonces: nonces, chunk: chunk, names: []string{""}}
	p.restart()
	return p
}

// number makes a place for a miner in names.
func (p *partition) number(miner string) uint32 {
	p.names = append(p.names, miner)
	return uint32(len(p.names) - 1)
}

// restart begins a new round.
func (p *partition) restart() {
	p.stretches = append(p.stretches[:0], stretch{nonces: p.nonces})
	p.chunks = [finished + 1]uint64{}
	p.chunks[untouched] = p.count(p.nonces)
}

// count returns the number of chunks in whole chunks; the job's last one may be short.
func (p *partition) count(r pow.Range) uint64 {
	n := r.Len() / p.chunk
	if r.Len()%p.chunk != 0 {
		n++
	}
	return n
}

// whole reports why nonces are not whole chunks of the job.
func (p *partition) whole(r pow.Range) error {
	if r.First < p.nonces.First || r.Last > p.nonces.Last || r.First > r.Last {
		return fmt.Errorf("%s lies outside the job's %s", r, p.nonces)
	}
	if (r.First-p.nonces.First)%p.chunk != 0 || r.Last != p.nonces.Last && (r.Last-p.nonces.First)%p.chunk != p.chunk-1 {
		return fmt.Errorf("%s is not whole chunks of %d nonces from %d on", r, p.chunk, p.nonces.First)
	}
	return nil
}

// at returns the position of the stretch that holds nonce, which lies in the job.
func (p *partition) at(nonce uint64) int {
	return sort.Search(len(p.stretches), func(i int) bool { return p.stretches[i].nonces.Last >= nonce })
}

// meets returns the positions from that of r's first nonce up to but not including the one behind its last.
func (p *partition) meets(r pow.Range) (from, end int) {
	from = p.at(r.First)
	for end = from; p.stretches[end].nonces.Last < r.Last; end++ { // a range meets few
	}
	return from, end + 1
}

// in returns the stretches that r meets, in order. They are valid until the next change.
func (p *partition) in(r pow.Range) []stretch {
	from, end := p.meets(r)
	return p.stretches[from:end]
}

// all reports the first nonces of r that do not fit.
func (p *partition) all(r pow.Range, fits func(stretch) bool) (pow.Range, stretch, bool) {
	for _, s := range p.in(r) {
		if !fits(s) {
			return clip(s.nonces, r), s, false
		}
	}
	return pow.Range{}, stretch{}, true
}

func clip(r, within pow.Range) pow.Range {
	return pow.Range{First: max(r.First, within.First), Last: min(r.Last, within.Last)}
}

// set gives r, which is whole chunks, to another owner.
func (p *partition) set(r pow.Range, to stretch) {
	to.nonces = r
	from, end := p.meets(r)
	var pieces [3]stretch // what is left of the first one, r, and what is left of the last one
	n := 0
	if first := p.stretches[from]; first.nonces.First < r.First {
		first.nonces.Last = r.First - 1
		pieces[n] = first
		n++
	}
	at := n
	pieces[n] = to
	n++
	if last := p.stretches[end-1]; last.nonces.Last > r.Last {
		last.nonces.First = r.Last + 1
		pieces[n] = last
		n++
	}
	for _, s := range p.stretches[from:end] {
		p.chunks[s.owner] -= p.count(clip(s.nonces, r))
	}
	p.chunks[to.owner] += p.count(r)
	p.splice(from, end, pieces[:n])
	p.merge(from + at)
}

// merge joins a stretch with its neighbours where they are the same.
func (p *partition) merge(at int) {
	from, end := at, at+1
	if at > 0 && p.stretches[at-1].same(p.stretches[at]) {
		from--
	}
	if end < len(p.stretches) && p.stretches[end].same(p.stretches[at]) {
		end++
	}
	if end-from > 1 {
		whole := p.stretches[from]
		whole.nonces.Last = p.stretches[end-1].nonces.Last
		p.splice(from, end, []stretch{whole})
	}
}

// splice replaces stretches. It moves the shorter side: the search goes from the first nonces to the last, so nearly all
// that shrinks is at the front.
func (p *partition) splice(from, end int, with []stretch) {
	if fewer := end - from - len(with); fewer > 0 && from < len(p.stretches)/2 {
		copy(p.stretches[fewer:], p.stretches[:from])
		p.stretches = p.stretches[fewer:]
		copy(p.stretches[from:], with)
		return
	}
	p.stretches = slices.Replace(p.stretches, from, end, with...)
}

// Coverage is the chunks of a round, by what became of them. A gap is a chunk that was never granted.
type Coverage struct{ Finished, Interrupted, Returned, Gaps uint64 }

// below returns the coverage of the chunks below nonce's own; all of them when nonce is 0.
func (p *partition) below(nonce uint64) (c Coverage) {
	last := p.nonces.Last
	if nonce != 0 {
		chunk := (nonce - p.nonces.First) / p.chunk
		if chunk == 0 {
			return c
		}
		last = p.nonces.First + chunk*p.chunk - 1
	}
	whole := pow.Range{First: p.nonces.First, Last: last}
	for _, s := range p.in(whole) {
		n := p.count(clip(s.nonces, whole))
		switch s.owner {
		case untouched:
			c.Gaps += n
		case returned:
			c.Returned += n
		case granted:
			c.Interrupted += n
		case finished:
			c.Finished += n
		}
	}
	return c
}
