package coordinator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// bestOf returns the nonce of the smallest digest in p up to and including last that is no solution, and false when there
// is none.
func bestOf(p Process, last uint64) (best uint64, found bool) {
	var smallest pow.Hash
	for nonce := p.Nonces.First; nonce <= last; nonce++ {
		digest, solved := p.Work.Verify(nonce)
		if !solved && (!found || digest.Compare(smallest) < 0) {
			best, smallest, found = nonce, digest, true
		}
	}
	return best, found
}

// lazy is the answer of a miner that hashes a share of p, at least one nonce, and hides the solutions it meets.
func lazy(p Process, share float64) AnswerNo {
	for last := p.Nonces.First + uint64(share*float64(p.Nonces.Len())); ; last++ {
		if best, ok := bestOf(p, min(max(last, p.Nonces.First+1)-1, p.Nonces.Last)); ok {
			return answerNo(p, best)
		}
	}
}

// lie answers lazily until the miner is refused, and returns the ranges that were committed.
func (m *testMiner) lie(share float64, limit int) (claimed []pow.Range) {
	m.r.t.Helper()
	for range limit {
		p := m.process()
		m.held = m.held[1:]
		err := m.s.Receive(m.r.t.Context(), lazy(p, share))
		m.pump()
		switch {
		case err == nil && m.lastAck().Result == Committed:
			claimed = append(claimed, p.Nonces)
		case errors.Is(err, ErrMinerRefused):
			if m.lastAck().Result != Wrong || !m.over {
				m.r.t.Errorf("refused, and its last acknowledgement is %+v", m.lastAck())
			}
			return claimed
		case err != nil || m.lastAck().Result != Wrong:
			m.r.t.Fatalf("%v, %+v", err, m.lastAck())
		}
	}
	m.r.t.Fatalf("a miner that does %v of the work is believed after %d ranges", share, limit)
	return nil
}

// long opens jobs with plenty of chunks of 100 nonces, each seed another search.
func long(seed int) func(*rig) {
	return func(r *rig) {
		r.cfg.Nonces.Last = 1_000_000
		r.service.block.Previous = pow.Sum([]byte{byte(seed)})
	}
}

// TestLyingMinerIsRefusedAndWhatItFinishedIsSearchedAgain reports after how many ranges a miner is found that hashes only
// a share of each. One that hashes nothing gets nothing committed: its first answers are wrong ones.
func TestLyingMinerIsRefusedAndWhatItFinishedIsSearchedAgain(t *testing.T) {
	for _, row := range []struct {
		share  float64
		seeds  int
		limit  int // ranges
		median int // at most
	}{{0, 9, 10, 1}, {0.5, 9, 400, 110}, {0.8, 3, 4000, 1200}} {
		var after []int
		for seed := range row.seeds {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, long(seed))
				liar, other := r.miner("liar", 1), r.miner("other", 1)
				claimed := liar.lie(row.share, row.limit)
				after = append(after, len(claimed))
				if m := r.cl.miner("liar"); m.Strikes < fsm.MaxStrikes {
					t.Errorf("the state has %d strikes", m.Strikes)
				}
				believed := r.cl.miner("liar").Chunks // up to its last good check
				if seed > 0 {
					return
				}
				if row.share < 0.6 && believed != 0 {
					t.Errorf("%d chunks of it are believed", believed)
				}
				if r.logs.count("msg=\"miner refused\"") != 1 || len(claimed) > 0 && r.logs.count("finished ranges are searched again") != 1 {
					t.Error("it was not logged once")
				}
				if events := r.observer.take(); !slices.ContainsFunc(events, func(e string) bool { return strings.HasPrefix(e, "refused liar: ") }) {
					t.Errorf("watchers are told %v", events)
				}
				if status := r.c.Status().Miners[0]; status.Name != "liar" || !strings.Contains(status.Refused, "strikes") {
					t.Errorf("status says %+v", status)
				}
				if err := liar.connect(1); !errors.Is(err, ErrMinerRefused) {
					t.Errorf("it comes back: %v", err)
				}
				other.s.Close()
				fresh := r.miner("fresh", 1)
				again := map[pow.Range]bool{}
				for range len(claimed) - int(believed) + 1 { // and what it held last
					again[fresh.process().Nonces] = true
					if err := fresh.no(fresh.process()); err != nil {
						t.Fatal(err)
					}
				}
				for _, nonces := range claimed[believed:] {
					if !again[nonces] {
						t.Errorf("%v is not searched again", nonces)
					}
				}
			})
		}
		slices.Sort(after)
		t.Logf("%.0f %%: refused after %d committed ranges in the middle, %d at least, %d at most", 100*row.share,
			after[len(after)/2], after[0], after[len(after)-1])
		if after[len(after)/2] > row.median {
			t.Errorf("%.0f %%: %d ranges in the middle, want %d", 100*row.share, after[len(after)/2], row.median)
		}
	}
}

func TestBlockIsFoundInARangeThatALiarClaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) {
			long(3)(r)
			r.service.block.Bits = 10
		})
		liar := r.miner("liar", 1)
		claimed := liar.lie(0.5, 400)
		honestOne := r.miner("honest", 1)
		for len(r.cl.blocks()) == 0 {
			p := honestOne.process()
			nonce, solved := search(p)
			var err error
			if solved {
				err = honestOne.yes(p, nonce)
			} else {
				err = honestOne.no(p)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		block := r.cl.blocks()[0]
		if block.Verdict != fsm.VerdictSuccess || block.Miner != "honest" ||
			!slices.ContainsFunc(claimed, func(nonces pow.Range) bool { return nonces.Contains(block.Nonce) }) {
			t.Errorf("block %+v, want a success in one of the %d ranges that the liar claimed", block, len(claimed))
		}
	})
}

// smallest draws the digest that a search of so many nonces without a solution comes to: the smallest of as many uniform
// ones, all of them above 2^-bits.
func smallest(rng *rand.Rand, nonces uint64, bits int) (digest pow.Hash) {
	u := -math.Expm1(math.Log1p(-math.Ldexp(1, -bits)) + math.Log1p(-rng.Float64())/float64(nonces))
	binary.BigEndian.PutUint64(digest[:], uint64(math.Ldexp(u, 64)))
	return digest
}

// TestHonestMinersAreBelieved: four million receipts of 400 honest miners, in ranges of all sizes, and not one miner is
// refused. Were one refused in a million ranges, that would happen once in 50 times. The bound behind it is tested where
// it can be seen at work: a suspicion of c comes once in c ranges, or less.
func TestHonestMinersAreBelieved(t *testing.T) {
	const miners, each, seen = 400, 10_000, 1e3
	rng := rand.New(rand.NewPCG(7, 8))
	alarms, worst, longest := 0, 0.0, 0
	job := fsm.Job{ID: 1}
	for i := range miners {
		size, bits := []uint64{1, 100, 100_000, 1 << 31}[i%4], []int{1, 24, hard}[i%3]
		var b belief
		var low pow.Receipts
		for k := range uint64(each) {
			nonces := pow.Range{First: 2*size*k + 1, Last: 2*size*k + size}
			x := pow.Excess(size, bits, smallest(rng, size, bits))
			if x > impossible || b.wouldLie(size, x) {
				t.Fatalf("range %d of %d nonces of an honest miner with an excess of %.1f is not believed", k+1, size, x)
			}
			b.finished(job, nonces, x)
			if b.unproven != nil {
				longest = max(longest, len(b.unproven.ranges))
			}
			if low.Add(size, x) >= seen {
				alarms++
				low = pow.Receipts{}
			}
		}
		worst = max(worst, b.receipts.Suspicion)
	}
	const ranges = miners * each
	t.Logf("the largest suspicion in %d ranges is %.3g; %.0f is reached %d times; at most %d ranges unproven", ranges, worst, seen, alarms, longest)
	if alarms > ranges/seen {
		t.Errorf("a suspicion of %.0f comes %d times in %d ranges, want %.0f or less", seen, alarms, ranges, ranges/seen)
	}
	if longest > maxUnproven {
		t.Errorf("%d ranges are remembered, want %d at most", longest, maxUnproven)
	}
}

// TestLiarsAreFoundAfterSoManyRanges has the numbers that the README and doc.go give, of a thousand miners each.
func TestLiarsAreFoundAfterSoManyRanges(t *testing.T) {
	const miners, size = 1000, 100_000
	for _, row := range []struct {
		share          float64
		median, within int // ranges until it is found
		worst          int
	}{{0, 1, 0, 1}, {0.5, 50, 10, 250}, {0.8, 550, 50, 2000}} {
		var after []int
		rng := rand.New(rand.NewPCG(9, 10))
		for range miners {
			var b belief
			for k := 1; ; k++ {
				x := pow.Excess(size, hard, smallest(rng, max(1, uint64(row.share*size)), hard))
				if x > impossible || b.wouldLie(size, x) {
					after = append(after, k)
					break
				}
				b.receipts.Add(size, x)
			}
		}
		slices.Sort(after)
		median, worst := after[miners/2], after[miners-1]
		t.Logf("%.0f %%: found after %d ranges in the middle, %d nine times of ten, %d at worst", 100*row.share, median, after[miners*9/10], worst)
		if median < row.median-row.within || median > row.median+row.within || worst > row.worst {
			t.Errorf("%.0f %%: found after %d ranges in the middle and %d at worst, want about %d and at most %d", 100*row.share,
				median, worst, row.median, row.worst)
		}
	}
}

// TestHonestMinerOfTinyRangesIsBelieved searches for real, one nonce a range and a few, on easy and hard jobs.
func TestHonestMinerOfTinyRangesIsBelieved(t *testing.T) {
	for _, size := range []uint64{1, 2, 16} {
		for _, bits := range []int{4, hard} {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(r *rig) {
					r.cfg.Nonces.Last, r.cfg.ChunkSize = 100_000, size
					r.service.block.Bits = bits
				})
				a := r.miner("a", 1)
				for range 200 {
					p := a.process()
					nonce, solved := search(p)
					var err error
					if solved {
						err = a.yes(p, nonce)
					} else {
						err = a.no(p)
					}
					if ack := a.lastAck(); err != nil || ack.Result != Committed {
						t.Fatalf("%d nonces of %d bits: %v, %+v", size, bits, err, ack)
					}
				}
			})
		}
	}
}

func TestUnprovenRangesAreOfOneRoundAndFew(t *testing.T) {
	var b belief
	first := fsm.Job{ID: 1}
	for i := range uint64(100) {
		b.finished(first, pow.Range{First: 100*i + 1, Last: 100*i + 100}, 1.1)
	}
	if got := b.unproven.ranges; len(got) != 1 || got[0] != (pow.Range{First: 1, Last: 10_000}) {
		t.Errorf("neighbours are kept as %v", got)
	}
	for i := range uint64(3 * maxUnproven) {
		b.finished(first, pow.Range{First: 1e6 + 200*i, Last: 1e6 + 200*i + 99}, 1.1)
	}
	if got := b.unproven.ranges; len(got) != maxUnproven || got[maxUnproven-1].First != 1e6+200*(3*maxUnproven-1) {
		t.Errorf("%d ranges are kept, the last one %v", len(got), got[len(got)-1])
	}
	next := fsm.Job{ID: 1, Round: 1}
	if revoke, ok := b.takeBack(next, "a", "why"); ok {
		t.Errorf("in the next round %+v of the one before is taken back", revoke)
	}
	b.finished(next, pow.Range{First: 1, Last: 100}, 1.1)
	revoke, ok := b.takeBack(next, "a", "why")
	if !ok || revoke.JobID != 1 || revoke.Round != 1 || !slices.Equal(revoke.Ranges, []pow.Range{{First: 1, Last: 100}}) {
		t.Errorf("in the next round %+v is taken back", revoke)
	}
	if !b.finished(first, pow.Range{First: 1, Last: 100}, -5000) || b.unproven != nil || b.unchecked != 0 {
		t.Errorf("after a good check %+v is kept", b.unproven)
	}
}

// TestAnswersDeliveredTwiceAreHeldAgainstTheMinerOnce: a bad receipt that comes again says nothing new.
func TestAnswersDeliveredTwiceAreHeldAgainstTheMinerOnce(t *testing.T) {
	var after [2]int
	for times := range 2 {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, long(6))
			liar := r.miner("liar", 1)
			for range 400 {
				p := liar.process()
				liar.held = liar.held[1:]
				if err := liar.s.Receive(t.Context(), lazy(p, 0.5)); err != nil {
					return
				}
				liar.pump()
				after[times]++
				for range 5 * times {
					if err := liar.s.Receive(t.Context(), lazy(p, 0.5)); err != nil {
						t.Fatalf("after %d ranges: %v", after[times], err)
					}
					if liar.pump(); liar.lastAck().Result != Duplicate {
						t.Fatalf("%+v", liar.lastAck())
					}
				}
			}
		})
	}
	if after[0] != after[1] || after[0] == 400 {
		t.Errorf("refused after %d ranges, and after %d when each comes again", after[0], after[1])
	}
}

// TestRefusalThatIsNotCommittedIsDecidedAgain: nothing is half done.
func TestRefusalThatIsNotCommittedIsDecidedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := 0
		r := newRig(t, func(r *rig) {
			long(1)(r)
			r.cl.fail = func(commands []fsm.Command) failure {
				if _, ok := commands[0].(fsm.Strike); ok {
					if refused++; refused == 1 {
						return notLeader
					}
				}
				return commit
			}
		})
		liar := r.miner("liar", 1)
		var claimed int
		for range 400 {
			p := liar.process()
			err := liar.s.Receive(t.Context(), lazy(p, 0.5))
			if liar.pump(); err == nil {
				liar.held = liar.held[1:]
				claimed++
				continue
			}
			if refused == 1 {
				if m := r.cl.miner("liar"); m.Strikes != 0 || m.Chunks != uint64(claimed) {
					t.Errorf("%+v although nothing was committed", m)
				}
				if err := liar.connect(1); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if !errors.Is(err, ErrMinerRefused) || r.cl.miner("liar").Chunks != 0 {
				t.Errorf("%v, %+v", err, r.cl.miner("liar"))
			}
			return
		}
		t.Error("the liar is believed")
	})
}

func TestRefusedLiarIsRefusedByTheNextLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, long(2))
		liar := r.miner("liar", 1)
		liar.lie(0.5, 400)
		r.stop()
		r.start()
		if err := liar.connect(1); !errors.Is(err, ErrMinerRefused) {
			t.Errorf("the next leader says %v", err)
		}
		time.Sleep(14 * time.Minute)
		if err := liar.connect(1); !errors.Is(err, ErrMinerRefused) {
			t.Errorf("14 minutes later: %v", err)
		}
		time.Sleep(2 * time.Minute) // knocking does not count
		if err := liar.connect(1); err != nil {
			t.Errorf("16 minutes after the term began: %v", err)
		}
	})
}

// TestJobChangedWhileAMinerLies: what it finished of the job before cannot be taken back any more, and is not tried.
func TestJobChangedWhileAMinerLies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, long(4))
		liar := r.miner("liar", 1)
		for range 20 {
			p := liar.process()
			liar.held = liar.held[1:]
			if err := liar.s.Receive(t.Context(), lazy(p, 0.5)); err != nil {
				t.Fatal(err)
			}
			liar.pump()
		}
		r.service.set(func(sv *service) { sv.block.Bits-- })
		stayFor(6*time.Second, liar)
		claimed := liar.lie(0.5, 400)
		if m := r.cl.miner("liar"); r.cl.job().ID != 2 || m.Chunks != 20 {
			t.Errorf("%d chunks of it stay finished, want the 20 of job 1", m.Chunks)
		}
		for _, step := range r.cl.history() {
			if c, ok := step.command.(fsm.Revoke); ok && (step.outcome.Code != fsm.Done || c.JobID != 2) {
				t.Errorf("%+v of job %d came to %+v", c.Ranges, c.JobID, step.outcome)
			}
		}
		t.Logf("refused after 20 ranges of one job and %d of the next", len(claimed))
	})
}

// TestStrikesUnderAnothersNameDoNotRefuseIt: while a miner is away, anybody may take its name and answer wrongly.
func TestStrikesUnderAnothersNameDoNotRefuseIt(t *testing.T) {
	for wrong := 1; wrong <= fsm.MaxStrikes; wrong++ {
		t.Run(fmt.Sprint(wrong), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				a := r.miner("a", 1)
				if err := a.no(a.process()); err != nil {
					t.Fatal(err)
				}
				a.s.Close()
				forger := &testMiner{r: r, name: "a", instance: fsm.ID{66}}
				if err := forger.connect(1); err != nil {
					t.Fatal(err)
				}
				for range wrong {
					lie := honest(forger.process())
					lie.Receipt = 0
					_ = forger.s.Receive(t.Context(), lie)
					forger.pump()
				}
				forger.s.Close()
				if m := r.cl.miner("a"); m.Strikes != uint32(wrong) || m.Chunks != 1 {
					t.Fatalf("%d strikes, want %d; %d chunks finished, want the one of the process before", m.Strikes, wrong, m.Chunks)
				}
				another := &testMiner{r: r, name: "a", instance: fsm.ID{67}}
				if err := another.connect(1); (err != nil) != (wrong == fsm.MaxStrikes) {
					t.Errorf("a third process of that name: %v", err)
				}
				another.s.Close()
				a.held = nil
				if err := a.connect(1); err != nil {
					t.Fatalf("the process that did good work is refused: %v", err)
				}
				if strikes := r.cl.miner("a").Strikes; strikes != 0 {
					t.Errorf("it has %d strikes of another's", strikes)
				}
				if err := a.no(a.process()); err != nil || a.lastAck().Result != Committed {
					t.Errorf("%v, %+v", err, a.acks)
				}
				a.s.Close()
				if err := forger.connect(1); err != nil { // it may try again, and a loses nothing but time
					t.Errorf("the forger is refused for good: %v", err)
				}
			})
		})
	}
}

func TestOwnStrikesAreNotForgiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.miner("a", 1)
		if err := a.no(a.process()); err != nil {
			t.Fatal(err)
		}
		for strike := range fsm.MaxStrikes {
			lie := honest(a.process())
			lie.Receipt = 0
			err := a.s.Receive(t.Context(), lie)
			if last := strike+1 == fsm.MaxStrikes; last != errors.Is(err, ErrMinerRefused) {
				t.Fatal(err)
			}
			if a.s.Close(); strike == 0 {
				if err := a.connect(1); err != nil {
					t.Fatal(err)
				}
			} else if err := a.connect(1); (err != nil) != (strike+1 == fsm.MaxStrikes) {
				t.Fatalf("after %d strikes: %v", strike+1, err)
			}
		}
	})
}

func TestClaimedHashRateIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) {
			long(5)(r)
			r.cfg.MaxGrantChunks = 1 << 20
		})
		a := &testMiner{r: r, name: "a", instance: fsm.ID{1}}
		report := a.hello(1)
		report.HashRate, report.Threads = 1e18, 1
		if err := a.connectAs(report); err != nil {
			t.Fatal(err)
		}
		if rate := r.c.Status().HashRate; rate != 0 {
			t.Errorf("%g hashes a second before the first range", rate)
		}
		time.Sleep(time.Second)
		p := a.process()
		p.Nonces.Last = 1_000
		if err := a.s.Receive(t.Context(), honest(p)); err != nil {
			t.Fatal(err)
		}
		a.pump()
		for range 10 { // what it shows is 1,000 a second
			p.Nonces.First, p.Nonces.Last = p.Nonces.Last+1, p.Nonces.Last+1_000
			time.Sleep(time.Second)
			if err := a.s.Receive(t.Context(), honest(p)); err != nil {
				t.Fatal(err)
			}
			if a.pump(); a.lastAck().Result != Committed {
				t.Fatalf("%+v", a.lastAck())
			}
		}
		if rate := r.c.Status().Miners[0].HashRate; rate < 1_000 || rate > 2_001 {
			t.Errorf("%g hashes a second after ranges of 1,000 a second, want twice that at most", rate)
		}
	})
}
