package miner

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"raftmine/fsm/pow"
	"raftmine/miner/sha256d"
)

// Tuning.
const (
	// pieceNonces is how many nonces a thread takes at a time: about 8 ms at 8 MH/s, 1 ms at 50. Threads do not wait for
	// one another at the end of a grant, so it only has to be large beside a lock, and small beside a grant.
	pieceNonces = 1 << 16
	// maxPieces bounds the memory of a grant, however many nonces it has: to twice as many pieces, for evenness.
	maxPieces = 1 << 12
	// hitRoom is how many hits a kernel may report in one call.
	hitRoom = 16
)

// search is the search threads and the grants they share. Each thread takes the next piece of the oldest grant that has
// one left, so that at the end of a grant nobody waits: the other threads are in the next one already.
type search struct {
	// settled has room for one, and is sent to when a grant is settled: searched to its end, or solved.
	settled chan struct{}
	counts  []count // of hashes, one for each thread
	ended   sync.WaitGroup

	mu       sync.Mutex // guards everything below, and the fields of grants that say so
	work     sync.Cond  // there is a new grant, or closed is set
	active   []*grant   // neither settled nor stopped, oldest first
	finished []*grant   // settled and not collected
	closed   bool

	// idled, when not nil, is told by a thread that waited for a piece: how long, and how long of that after there was one
	// again. Set it before the first grant.
	idled func(thread int, waited, late time.Duration)
}

// count is one thread's hashes, on a cache line of its own.
type count struct {
	hashes atomic.Uint64
	_      [56]byte
}

// grant is one granted range and how far its search is.
//
// The pieces of a grant are finished in any order. The answer needs the smallest digest of a head of the grant: all of
// it, or, when the miner leaves, as many chunks as are finished without a gap. So each piece keeps its own best until
// all pieces before it are finished, and best is then carried along with the head.
type grant struct {
	process Process
	job     *sha256d.Job
	cut     cut
	added   time.Time
	stopped atomic.Bool // nobody wants it searched any more; set once

	// Guarded by search.mu.
	next     uint64 // the first piece that no thread has taken
	pieces   []piece
	head     uint64    // pieces finished without a gap from the first on
	best     candidate // of these
	chunks   pow.Range // whole chunks of the head; Last is 0 when there is none
	receipt  candidate // of these
	solution uint64    // a nonce, 0: none
}

// piece is one piece's result.
type piece struct {
	finished bool
	best     candidate // none when no digest is smaller than that of an earlier piece
}

// candidate is a nonce and its digest. The zero value is none.
type candidate struct {
	nonce  uint64
	digest pow.Hash
}

// beats reports whether c is the better receipt: the smaller digest, of equal ones the lower nonce.
func (c candidate) beats(other candidate) bool {
	if c.nonce == 0 || other.nonce == 0 {
		return c.nonce != 0
	}
	if order := c.digest.Compare(other.digest); order != 0 {
		return order < 0
	}
	return c.nonce < other.nonce
}

// threshold is the first digest word that a nonce must not exceed to beat c.
func (c candidate) threshold() uint32 {
	if c.nonce == 0 {
		return math.MaxUint32
	}
	return uint32(c.digest[0])<<24 | uint32(c.digest[1])<<16 | uint32(c.digest[2])<<8 | uint32(c.digest[3])
}

// newSearch starts the search threads. close ends them.
func newSearch(threads int, kernel sha256d.Kernel) *search {
	s := &search{settled: make(chan struct{}, 1), counts: make([]count, threads)}
	s.work.L = &s.mu
	for i := range threads {
		s.ended.Go(func() {
			t := thread{number: i, search: s, searcher: kernel.New(), hits: make([]uint64, hitRoom), hashes: &s.counts[i].hashes}
			t.run()
		})
	}
	return s
}

// close stops every grant and ends the threads, each after the kernel call it is in.
func (s *search) close() {
	s.mu.Lock()
	s.closed = true
	for _, g := range s.active {
		g.stopped.Store(true)
	}
	s.active = nil
	s.mu.Unlock()
	s.work.Broadcast()
	s.ended.Wait()
}

// hashes returns how many nonces were tried.
func (s *search) hashes() uint64 {
	var sum uint64
	for i := range s.counts {
		sum += s.counts[i].hashes.Load()
	}
	return sum
}

// add puts a grant at the end of the queue.
func (s *search) add(process Process, job *sha256d.Job) *grant {
	g := &grant{process: process, job: job, cut: newCut(process.Nonces, process.ChunkSize), added: time.Now()}
	g.chunks.First = process.Nonces.First
	g.pieces = make([]piece, g.cut.pieces)
	s.mu.Lock()
	s.active = append(s.active, g)
	s.mu.Unlock()
	s.work.Broadcast()
	return g
}

// stop ends the search of a grant. A thread that is in it leaves it after the kernel call it is in.
func (s *search) stop(g *grant) {
	g.stopped.Store(true)
	s.mu.Lock()
	s.remove(g)
	s.mu.Unlock()
}

// collect returns the grants that were settled since the last call, in that order.
func (s *search) collect() []*grant {
	s.mu.Lock()
	defer s.mu.Unlock()
	finished := s.finished
	s.finished = nil
	return finished
}

// answered returns the finished chunks at the head of a grant and the receipt for them; false when there are none.
func (s *search) answered(g *grant) (chunks pow.Range, receipt uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.chunks, g.receipt.nonce, g.chunks.Last != 0
}

// remove is called with mu held.
func (s *search) remove(g *grant) {
	if i := slices.Index(s.active, g); i >= 0 {
		s.active = slices.Delete(s.active, i, i+1)
	}
}

// settle is called with mu held.
func (s *search) settle(g *grant) {
	g.stopped.Store(true)
	s.remove(g)
	s.finished = append(s.finished, g)
	select {
	case s.settled <- struct{}{}:
	default: // whoever collects has been told already
	}
}

// take waits for the next piece. bound is the best of the grant's head: only a nonce that beats it matters. A nil grant
// ends the thread.
func (s *search) take(thread int) (g *grant, index uint64, bound candidate) {
	var waiting time.Time // zero: there was a piece at once
	s.mu.Lock()
	for {
		if s.closed {
			s.mu.Unlock()
			return nil, 0, candidate{}
		}
		if g, index, bound = s.next(); g != nil {
			break
		}
		if waiting.IsZero() {
			waiting = time.Now()
		}
		s.work.Wait()
	}
	idled := s.idled
	s.mu.Unlock()
	if idled != nil && !waiting.IsZero() {
		waited := time.Since(waiting)
		idled(thread, waited, min(waited, time.Since(g.added)))
	}
	return g, index, bound
}

// next takes the next piece of the oldest grant that has one. It is called with mu held.
func (s *search) next() (g *grant, index uint64, bound candidate) {
	for _, g := range s.active {
		if g.next < g.cut.pieces {
			index = g.next
			g.next++
			return g, index, g.best
		}
	}
	return nil, 0, candidate{}
}

// finish records a piece that was searched to its end without a solution.
func (s *search) finish(g *grant, index uint64, best candidate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.pieces[index] = piece{finished: true, best: best}
	for g.head < g.cut.pieces && g.pieces[g.head].finished {
		if g.pieces[g.head].best.beats(g.best) {
			g.best = g.pieces[g.head].best
		}
		if last := g.cut.piece(g.head).Last; g.cut.endsChunk(last) {
			g.chunks.Last, g.receipt = last, g.best
		}
		g.head++
	}
	if g.head == g.cut.pieces && !g.stopped.Load() {
		s.settle(g)
	}
}

// solve records a solution; the first one of a grant counts.
func (s *search) solve(g *grant, nonce uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.solution == 0 && !g.stopped.Load() {
		g.solution = nonce
		s.settle(g)
	}
}

// thread is one search thread.
type thread struct {
	number   int
	search   *search
	searcher sha256d.Searcher
	hits     []uint64
	hashes   *atomic.Uint64
}

func (t *thread) run() {
	for {
		g, index, bound := t.search.take(t.number)
		if g == nil {
			return
		}
		t.piece(g, index, bound)
	}
}

// piece searches one piece of g. The same pass finds the receipt and the solution: the threshold is the smallest first
// word so far, and the digest of a solution is below every digest that is none. A new smallest digest is rare (its
// expected number grows with the logarithm of the nonces tried), so nearly all time is spent in the kernel.
func (t *thread) piece(g *grant, index uint64, bound candidate) {
	nonces := g.cut.piece(index)
	var best candidate
	for {
		if g.stopped.Load() {
			return
		}
		found, tried := t.searcher.Search(g.job, nonces, bound.threshold(), t.hits)
		t.hashes.Add(tried)
		for _, nonce := range t.hits[:found] {
			digest, solved := g.job.Work.Verify(nonce)
			if solved {
				t.search.solve(g, nonce)
				return
			}
			if c := (candidate{nonce, digest}); c.beats(bound) {
				best, bound = c, c
			}
		}
		if tried > nonces.Last-nonces.First {
			break
		}
		nonces.First += tried
	}
	t.search.finish(g, index, best)
}

// cut divides a grant into pieces, so that every end of a chunk is the end of a piece: a chunk is divided into pieces
// when it is the larger one, or else a piece is some whole chunks.
type cut struct {
	nonces   pow.Range
	chunk    uint64 // nonces; the grant's last one may be shorter
	size     uint64 // nonces of a piece; the last one of a chunk, or of the grant, may be shorter
	perChunk uint64 // pieces of a chunk; 0 when a piece is whole chunks
	pieces   uint64
}

// newCut takes a valid range and a chunk size that is not 0.
func newCut(nonces pow.Range, chunk uint64) cut {
	c := cut{nonces: nonces, chunk: min(chunk, nonces.Len())}
	size := max(pieceNonces, nonces.Len()/maxPieces+1)
	if c.chunk <= size {
		c.size = size / c.chunk * c.chunk
		c.pieces = (nonces.Len()-1)/c.size + 1
		return c
	}
	c.size = (c.chunk-1)/((c.chunk-1)/size+1) + 1 // even pieces
	c.perChunk = (c.chunk-1)/c.size + 1
	whole, rest := nonces.Len()/c.chunk, nonces.Len()%c.chunk
	c.pieces = whole * c.perChunk
	if rest > 0 {
		c.pieces += (rest-1)/c.size + 1
	}
	return c
}

// piece returns the nonces of the piece at index, which is below pieces.
func (c cut) piece(index uint64) pow.Range {
	start, end := index*c.size, c.nonces.Len()
	if c.perChunk > 0 {
		chunk := index / c.perChunk * c.chunk
		start = chunk + index%c.perChunk*c.size
		end = chunk + min(c.chunk, end-chunk)
	}
	return pow.Range{First: c.nonces.First + start, Last: c.nonces.First + start + min(c.size, end-start) - 1}
}

// endsChunk reports whether nonce, the last one of a piece, is the last one of a chunk or of the grant.
func (c cut) endsChunk(nonce uint64) bool {
	return nonce == c.nonces.Last || (nonce-c.nonces.First+1)%c.chunk == 0
}
