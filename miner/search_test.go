package miner

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm/pow"
	"raftmine/miner/sha256d"
)

// waitSettled waits for the search to settle a grant.
func waitSettled(t *testing.T, s *search) []*grant {
	t.Helper()
	select {
	case <-s.settled:
		return s.collect()
	case <-time.After(time.Minute):
		t.Fatal("no grant is settled")
		return nil
	}
}

func TestReceiptIsSmallestDigest(t *testing.T) {
	tests := []struct {
		nonces  pow.Range
		chunks  []uint64
		threads []int
	}{
		{pow.Range{First: 1, Last: 1}, []uint64{1, math.MaxUint64}, []int{1, 3}},
		{pow.Range{First: 1, Last: 7_000}, []uint64{1, 1000, 6_999, 7_000}, []int{1, 3}},
		{pow.Range{First: 99_990, Last: 100_009}, []uint64{3, 100_000}, []int{1, 3}},
		{pow.Range{First: 123_456, Last: 200_000}, []uint64{1000, 70_001}, []int{3}}, // several pieces
		{pow.Range{First: math.MaxUint64 - 66_000, Last: math.MaxUint64}, []uint64{100_000}, []int{1}},
	}
	for _, test := range tests {
		want := smallest(hardWork, test.nonces)
		for _, threads := range test.threads {
			for _, chunk := range test.chunks {
				t.Run(fmt.Sprintf("%s/chunk=%d/threads=%d", test.nonces, chunk, threads), func(t *testing.T) {
					s := newSearch(threads, sha256d.Best())
					defer s.close()
					g := s.add(Process{Nonces: test.nonces, ChunkSize: chunk}, sha256d.NewJob(hardWork))
					if settled := waitSettled(t, s); len(settled) != 1 || settled[0] != g || g.solution != 0 {
						t.Fatalf("settled %v with solution %d, want the grant without one", settled, g.solution)
					}
					if chunks, receipt, ok := s.answered(g); !ok || chunks != test.nonces || receipt != want {
						t.Errorf("answer %s with receipt %d, want %s with %d", chunks, receipt, test.nonces, want)
					}
					if got := s.hashes(); got != test.nonces.Len() {
						t.Errorf("%d hashes for %d nonces", got, test.nonces.Len())
					}
				})
			}
		}
	}
}

func TestEqualDigestsGiveTheLowerNonce(t *testing.T) {
	low, high := candidate{nonce: 5}, candidate{nonce: 6}
	if !low.beats(high) || high.beats(low) || low.beats(low) {
		t.Error("of equal digests the lower nonce must win, whatever the order")
	}
	if none := (candidate{}); none.beats(low) || !low.beats(none) || none.beats(none) {
		t.Error("no candidate beats none, and none beats any")
	}
	smaller := candidate{nonce: 9}
	low.digest[31] = 1
	if !smaller.beats(low) || low.beats(smaller) {
		t.Error("the smaller digest must win")
	}
}

// A digest whose first word is that of the best one so far may still be the smaller one.
func TestDigestsWithEqualFirstWordsAreCompared(t *testing.T) {
	const nonce = 123_456
	bound := candidate{nonce: nonce - 1, digest: hardWork.Digest(nonce)}
	for i := range bound.digest[4:] {
		bound.digest[4+i] = 0xff
	}
	s := newSearch(1, sha256d.Kernel{New: func() sha256d.Searcher { return nil }}) // its thread finds no work
	defer s.close()
	nonces := pow.Range{First: nonce, Last: nonce}
	g := &grant{process: Process{Nonces: nonces}, job: sha256d.NewJob(hardWork), cut: newCut(nonces, 1), pieces: make([]piece, 1)}
	for _, k := range sha256d.Kernels() {
		if !k.Available() {
			continue
		}
		g.pieces[0], g.head = piece{}, 0
		(&thread{search: s, searcher: k.New(), hits: make([]uint64, 1), hashes: &s.counts[0].hashes}).piece(g, 0, bound)
		if best := g.pieces[0].best; best.nonce != nonce {
			t.Errorf("%s: the best is nonce %d, want %d", k.Name, best.nonce, nonce)
		}
		g.stopped.Store(false)
	}
}

// Pieces are finished in any order; the answer covers a head without gaps, and the receipt just what is answered.
func TestHeadIsAnsweredWithItsOwnReceipt(t *testing.T) {
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 1))
		chunk := []uint64{500, pieceNonces, 3*pieceNonces + 17}[seed%3]
		nonces := pow.Range{First: 1 + random.Uint64N(1000), Last: 8*pieceNonces + random.Uint64N(5000)}
		s := newSearch(1, sha256d.Kernel{New: func() sha256d.Searcher { return nil }}) // its thread finds no work
		g := &grant{process: Process{Nonces: nonces}, cut: newCut(nonces, chunk), chunks: pow.Range{First: nonces.First}}
		g.pieces = make([]piece, g.cut.pieces)
		bests := make([]candidate, g.cut.pieces) // with made-up digests: one byte, so that ties happen
		for i := range bests {
			r := g.cut.piece(uint64(i))
			bests[i] = candidate{nonce: r.First + random.Uint64N(r.Len())}
			bests[i].digest[0] = byte(random.UintN(6))
		}
		done := make(map[uint64]bool)
		for _, i := range random.Perm(len(bests)) {
			done[uint64(i)] = true
			s.finish(g, uint64(i), bests[i])

			var wantLast uint64
			var want, running candidate
			for j := uint64(0); done[j]; j++ {
				if bests[j].beats(running) {
					running = bests[j]
				}
				last := g.cut.piece(j).Last
				if last == nonces.Last || (last-nonces.First+1)%chunk == 0 {
					wantLast, want = last, running
				}
			}
			chunks, receipt, ok := s.answered(g)
			if ok != (wantLast != 0) || chunks.Last != wantLast || receipt != want.nonce {
				t.Fatalf("seed %d: %v finished: answered to %d with receipt %d, want %d with %d",
					seed, done, chunks.Last, receipt, wantLast, want.nonce)
			}
		}
		if settled := s.collect(); len(settled) != 1 {
			t.Errorf("seed %d: settled %d times, want once", seed, len(settled))
		}
		s.close()
	}
}

func TestPiecesCoverTheGrantAndEndWhereChunksEnd(t *testing.T) {
	check := func(t *testing.T, nonces pow.Range, chunk uint64) {
		t.Helper()
		c := newCut(nonces, chunk)
		if c.pieces == 0 || c.pieces > 4*maxPieces {
			t.Fatalf("%s in chunks of %d: %d pieces", nonces, chunk, c.pieces)
		}
		next := nonces.First
		for i := range c.pieces {
			p := c.piece(i)
			if p.First != next || p.Last < p.First || p.Last > nonces.Last {
				t.Fatalf("%s in chunks of %d: piece %d is %s, want it to start at %d", nonces, chunk, i, p, next)
			}
			// A chunk's end inside a piece would be fine only when the piece is whole chunks.
			start, end := p.First-nonces.First, p.Last-nonces.First
			if start/chunk != end/chunk && (start%chunk != 0 || !c.endsChunk(p.Last)) {
				t.Fatalf("%s in chunks of %d: piece %d, %s, is neither whole chunks nor within one", nonces, chunk, i, p)
			}
			next = p.Last + 1
		}
		if next != nonces.Last+1 {
			t.Fatalf("%s in chunks of %d: the last piece ends at %d", nonces, chunk, next-1)
		}
		if !c.endsChunk(nonces.Last) {
			t.Fatalf("%s in chunks of %d: its last nonce must end a chunk", nonces, chunk)
		}
	}
	for _, nonces := range []pow.Range{
		{First: 1, Last: 1}, {First: 1, Last: 2_000_000_000}, {First: 1, Last: math.MaxUint64},
		{First: math.MaxUint64, Last: math.MaxUint64}, {First: 1 << 63, Last: math.MaxUint64},
	} {
		for _, chunk := range []uint64{1, 7, 100_000, 1 << 32, math.MaxUint64 / 3, math.MaxUint64} {
			check(t, nonces, chunk)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		first := 1 + random.Uint64()>>random.UintN(64)
		length := random.Uint64() >> random.UintN(64)
		check(t, pow.Range{First: max(first, 1), Last: max(first, 1) + min(length, math.MaxUint64-max(first, 1))},
			1+random.Uint64()>>(1+random.UintN(63)))
	}
}

func TestSolutionEndsTheSearchOfItsGrantAlone(t *testing.T) {
	s := newSearch(2, sha256d.Best())
	defer s.close()
	work := easyWork
	work.Bits = 16
	solved := s.add(Process{Nonces: pow.Range{First: 1, Last: math.MaxUint64}, ChunkSize: 100_000}, sha256d.NewJob(work))
	other := s.add(Process{Nonces: pow.Range{First: 1, Last: 50_000}, ChunkSize: 1000}, sha256d.NewJob(hardWork))
	var settled []*grant
	for len(settled) < 2 {
		settled = append(settled, waitSettled(t, s)...)
	}
	if settled[0] != solved || settled[1] != other {
		t.Fatalf("settled %d grants, want the solved one and then the other", len(settled))
	}
	if _, ok := work.Verify(solved.solution); !ok {
		t.Errorf("nonce %d is no solution", solved.solution)
	}
	if other.solution != 0 {
		t.Errorf("the other grant has solution %d", other.solution)
	}
}

// A thread that is held up at the end of a grant holds nobody else up.
func TestThreadsGoOnToTheNextGrantWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := newSearch(2, g.kernel())
		job := sha256d.NewJob(hardWork)
		first := s.add(Process{Nonces: pow.Range{First: 1, Last: 500}, ChunkSize: 100}, job)
		synctest.Wait() // one thread is in the only piece of first
		second := s.add(Process{Nonces: pow.Range{First: 501, Last: 1000}, ChunkSize: 100}, job)
		synctest.Wait() // the other is in second
		if first.next != 1 || second.next != 1 {
			t.Errorf("pieces taken: %d and %d, want both", first.next, second.next)
		}
		close(g.tokens)
		synctest.Wait()
		if settled := s.collect(); len(settled) != 2 {
			t.Errorf("%d grants settled, want 2", len(settled))
		}
		s.close()
	})
}

func TestStoppedGrantIsLeftAfterTheKernelCallItIsIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := newSearch(2, g.kernel())
		stopped := s.add(Process{Nonces: pow.Range{First: 1, Last: math.MaxUint64}, ChunkSize: 100_000}, sha256d.NewJob(hardWork))
		g.pass(10)
		synctest.Wait()
		s.stop(stopped)
		before := len(g.tried())
		close(g.tokens) // every call that still begins would run through
		synctest.Wait()
		if after := len(g.tried()); after-before > 2 {
			t.Errorf("%d kernel calls after the stop, want at most the one each of 2 threads was in", after-before)
		}
		if settled := s.collect(); len(settled) != 0 {
			t.Errorf("a stopped grant was settled")
		}
		s.close()
	})
}

func TestStoppedGrantIsNotSettledByTheCallItWasIn(t *testing.T) {
	for name, work := range map[string]pow.Work{"solution": easyWork, "end of the range": hardWork} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := newGate()
				s := newSearch(1, gate.kernel())
				defer s.close()
				g := s.add(Process{Nonces: pow.Range{First: 1, Last: 1000}, ChunkSize: 1000}, sha256d.NewJob(work))
				synctest.Wait() // in its only call
				s.stop(g)
				gate.pass(1)
				synctest.Wait()
				if settled := s.collect(); len(settled) != 0 || g.solution != 0 {
					t.Errorf("%d grants are settled, with solution %d, want none", len(settled), g.solution)
				}
			})
		})
	}
}

func TestSearchLoopAllocatesNothing(t *testing.T) {
	const nonces = 40 * pieceNonces
	s := newSearch(1, sha256d.Kernel{Name: "quick", New: func() sha256d.Searcher { return quickSearcher{} }})
	defer s.close()
	job := sha256d.NewJob(hardWork)
	fixed := testing.AllocsPerRun(10, func() {
		s.add(Process{Nonces: pow.Range{First: 1, Last: 1}, ChunkSize: 1000}, job)
		waitSettled(t, s)
	})
	long := testing.AllocsPerRun(10, func() {
		s.add(Process{Nonces: pow.Range{First: 1, Last: nonces}, ChunkSize: 1000}, job)
		waitSettled(t, s)
	})
	if long > fixed+1 {
		t.Errorf("a grant of %d pieces allocates %v times, one of one piece %v times", 40, long, fixed)
	}
}

func TestEveryNonceIsTriedHoweverFarACallGets(t *testing.T) {
	for step := uint64(1); step <= 4; step++ {
		s := newSearch(1, sha256d.Kernel{New: func() sha256d.Searcher { return stepSearcher(step) }})
		work := easyWork
		work.Bits = 0 // the first hit is a solution
		// stepSearcher's only hit is the very last nonce.
		g := s.add(Process{Nonces: pow.Range{First: 1, Last: 60}, ChunkSize: 20}, sha256d.NewJob(work))
		waitSettled(t, s)
		if g.solution != 60 || s.hashes() != 60 {
			t.Errorf("%d nonces a call: solution %d after %d hashes, want 60 after 60", step, g.solution, s.hashes())
		}
		s.close()
	}
}

// stepSearcher tries that many nonces a call and reports nonce 60 alone.
type stepSearcher uint64

func (step stepSearcher) Search(_ *sha256d.Job, nonces pow.Range, _ uint32, hits []uint64) (int, uint64) {
	tried := min(uint64(step), nonces.Len())
	if nonces.First+tried-1 == 60 {
		hits[0] = 60
		return 1, tried
	}
	return 0, tried
}

// quickSearcher takes a thousand nonces a call, with its first one as a hit now and then.
type quickSearcher struct{}

func (quickSearcher) Search(_ *sha256d.Job, nonces pow.Range, _ uint32, hits []uint64) (int, uint64) {
	hits[0] = nonces.First
	return 1, min(nonces.Last-nonces.First, 999) + 1
}

// TestIdleThreadSaysHowLong: a thread that waited says so once when there is work again.
func TestIdleThreadSaysHowLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type idle struct {
			thread       int
			waited, late time.Duration
		}
		var told []idle
		s := newSearch(1, sha256d.Best())
		s.idled = func(thread int, waited, late time.Duration) { told = append(told, idle{thread, waited, late}) }
		for id, pause := range []time.Duration{3 * time.Second, time.Second} {
			synctest.Wait() // the thread waits
			time.Sleep(pause)
			p := hardRange(uint64(id) + 1)
			p.Nonces.Last += 3 * pieceNonces // more than one piece
			s.add(p, sha256d.NewJob(p.Work))
			waitSettled(t, s)
		}
		s.close()
		if want := []idle{{0, 3 * time.Second, 0}, {0, time.Second, 0}}; !slices.Equal(told, want) {
			t.Errorf("told %v, want %v", told, want)
		}
	})
}
