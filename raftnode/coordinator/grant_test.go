package coordinator

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// slow makes a commit take 100 ms, so that something can happen meanwhile.
func slow(r *rig) {
	r.cl.mu.Lock()
	defer r.cl.mu.Unlock()
	r.cl.latency = 100 * time.Millisecond
}

func TestGrantOfAProcessThatIsGoneReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 100 })
		slow(r)
		r.miner("a", 1).s.Close() // its grant is being committed
		again := &testMiner{r: r, name: "a", instance: fsm.ID{9}}
		if err := again.connect(1); err != nil {
			t.Fatal(err)
		}
		stayFor(time.Second, again)
		if p := again.process(); p.GrantID != 2 || len(again.held) != 1 {
			t.Errorf("holds %+v, want the range under a new grant", again.held)
		}
		checkHeld(t, r, again)
	})
}

func TestGrantOfABrokenStreamIsSentOnTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		slow(r)
		a := r.miner("a", 2)
		a.s.Close()
		time.Sleep(time.Second)
		if err := a.connect(2); err != nil {
			t.Fatal(err)
		}
		stayFor(time.Second, a)
		if len(a.held) != 2 || a.held[0].GrantID != 1 {
			t.Errorf("holds %+v, want grants 1 and 2", a.held)
		}
	})
}

func TestGrantThatIsNotWantedAnyMoreReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 100 })
		slow(r)
		a := r.miner("a", 1)
		bye := a.hello(0)
		bye.Leaving = true
		if err := a.s.Receive(t.Context(), bye); err != nil {
			t.Fatal(err)
		}
		stayFor(time.Second, a)
		if counts := r.cl.counts(); len(a.held) != 0 || counts.Pending != 1 {
			t.Errorf("holds %v, %+v", a.heldIDs(), counts)
		}
	})
}

func TestGrantCommittedWhileTheJobEndsIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, easy)
		a, b := r.miner("a", 1), r.miner("b", 1)
		slow(r)
		p := a.process()
		answer := answerYes(p, solution(t, p))
		go func() {
			if err := a.s.Receive(t.Context(), answer); err != nil {
				t.Error(err)
			}
		}()
		if err := b.s.Receive(t.Context(), b.hello(3)); err != nil { // asks for two more at the same time
			t.Fatal(err)
		}
		stayFor(5*time.Second, a, b)
		checkHeld(t, r, b)
		if len(b.held) != 3 || b.process().JobID != 2 {
			t.Errorf("b holds %+v, want three ranges of job 2", b.held)
		}
	})
}

func TestRangeReturnedDuringAnAnswerIsGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 200 })
		a, b := r.miner("a", 1), r.miner("b", 1)
		slow(r)
		bye := a.hello(0)
		bye.Leaving = true
		if err := a.s.Receive(t.Context(), bye); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // the release is half way
		if err := b.s.Receive(t.Context(), honest(b.process())); err != nil {
			t.Fatal(err)
		}
		b.held = nil
		stayFor(time.Second, b)
		if len(b.held) != 1 {
			t.Errorf("b holds nothing although %+v", r.cl.counts())
		}
	})
}

func TestThousandsAreFedInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const miners = maxBatchAsks*2 + 10
		r := newRig(t, func(r *rig) {
			r.cfg.Nonces.Last = 10 * miners
			r.cfg.ChunkSize = 10
			r.cfg.Nonces.First = 1
		})
		all := make([]*Session, miners)
		for i := range all {
			s, err := r.c.Open()
			if err != nil {
				t.Fatal(err)
			}
			wanted := 1
			if err := s.Receive(t.Context(), HeartbeatReply{Name: fmt.Sprint(i), Instance: fsm.ID{1}, Wanted: &wanted}); err != nil {
				t.Fatal(err)
			}
			all[i] = s
		}
		synctest.Wait()
		if counts := r.cl.counts(); counts.Granted != miners {
			t.Fatalf("%+v, want %d granted", counts, miners)
		}
		entries := r.cl.index
		r.service.set(func(sv *service) { sv.block.Bits-- }) // a new job for all of them at once
		time.Sleep(6 * time.Second)
		if counts := r.cl.counts(); counts.Granted != miners || r.cl.job().ID != 2 {
			t.Errorf("%+v in job %d, want %d granted in job 2", counts, r.cl.job().ID, miners)
		}
		if used := r.cl.index - entries; used > 10 {
			t.Errorf("%d entries for one job and %d grants", used, miners)
		}
		for _, s := range all {
			if err := s.Err(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestMinerWithStrikesElsewhereIsNotGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 100 })
		a, b := r.miner("a", 1), r.miner("b", 1)
		for range fsm.MaxStrikes {
			r.cl.must(t, fsm.Strike{Miner: "b", Reason: "found out later"})
		}
		a.s.Close()
		stayFor(16*time.Second, b)
		if err := b.s.Err(); !errors.Is(err, ErrMinerRefused) || len(b.held) != 0 {
			t.Errorf("b holds %v, %v", b.heldIDs(), err)
		}
	})
}

func TestRememberedNamesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.MaxMiners = 2 })
		for i := range knownPerMiner * 2 {
			r.miner(fmt.Sprint(i), 1).s.Close()
		}
		m := &testMiner{r: r, name: "one-more", instance: fsm.ID{1}}
		if err := m.connect(1); !errors.Is(err, ErrTooManyMiners) {
			t.Errorf("a new name: %v, want %v", err, ErrTooManyMiners)
		}
		r.miner("0", 1) // a known one may return
		time.Sleep(20 * time.Minute)
		r.miner("one-more", 1)
	})
}

func TestFailedReleaseIsRepeated(t *testing.T) {
	for _, kind := range []failure{notLeader, unknownLost, unknownDone, unknownLate} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				failures := 3
				r := newRig(t, func(r *rig) {
					r.cfg.Nonces.Last = 100
					r.cl.fail = func(commands []fsm.Command) failure {
						if _, ok := commands[0].(fsm.Release); ok && failures > 0 {
							failures--
							return kind
						}
						return commit
					}
				})
				a, b := r.miner("a", 1), r.miner("b", 1)
				p := a.process()
				a.s.Close()
				for range 30 {
					if stayFor(time.Second, b); b.over {
						if err := b.connect(1); err != nil {
							t.Fatal(err)
						}
					}
				}
				if got := b.process(); got.Nonces != p.Nonces {
					t.Errorf("b was granted %v, want %v", got.Nonces, p.Nonces)
				}
				checkHeld(t, r, b)
			})
		})
	}
}

// dropped forgets what the miner holds, as if it had lost it.
func (m *testMiner) dropped() Process {
	p := m.process()
	m.held, m.received, m.interrupts = nil, nil, nil
	return p
}

func TestRangeThatTheMinerDoesNotNameIsSentAgainAndThenReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 100 })
		a, b := r.miner("a", 1), r.miner("b", 1)
		p := a.dropped()
		stayFor(6*time.Second, a, b)
		if len(a.received) != 1 || a.received[0] != Message(p) {
			t.Fatalf("received %+v, want %+v again", a.received, p)
		}
		stayFor(6*time.Second, a, b) // it is named once: all is well
		a.dropped()
		stayFor(6*time.Second, a, b)
		if a.process().GrantID != p.GrantID {
			t.Fatalf("holds %+v, want %+v again", a.held, p)
		}
		a.dropped()
		if err := a.s.Receive(t.Context(), a.hello(0)); err != nil { // unasked: it answers no heartbeat. Then b is next
			t.Fatal(err)
		}
		stayFor(6*time.Second, a, b)
		if len(a.interrupts) != 1 || a.interrupts[0].Reason != InterruptReleased || len(a.held) != 0 {
			t.Errorf("interrupts %+v, holds %v", a.interrupts, a.heldIDs())
		}
		if got := b.process(); got.Nonces != p.Nonces {
			t.Errorf("b was granted %v, want %v", got.Nonces, p.Nonces)
		}
	})
}

func TestReplyToAnEarlierHeartbeatNeedNotNameARange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 100 })
		a, b := r.miner("a", 1), r.miner("b", 1)
		late := HeartbeatReply{Name: b.name, Instance: b.instance, Threads: 1}
		for range 3 {
			if err := b.s.Receive(t.Context(), late); err != nil { // unasked: these answer nothing
				t.Fatal(err)
			}
		}
		time.Sleep(5500 * time.Millisecond) // b has a heartbeat to answer, and then is granted the range
		bye := a.hello(0)
		bye.Leaving = true
		if err := a.s.Receive(t.Context(), bye); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		time.Sleep(5 * time.Second) // and then has another heartbeat
		if err := b.s.Receive(t.Context(), late); err != nil {
			t.Fatal(err)
		}
		b.pump()
		if len(b.received) != 1 || len(b.held) != 1 {
			t.Errorf("received %+v, want the range once", b.received)
		}
		b.held = nil
		if err := b.s.Receive(t.Context(), late); err != nil {
			t.Fatal(err)
		}
		if b.pump(); len(b.held) != 1 {
			t.Error("the second reply does not name the range, which was not sent again")
		}
	})
}

func TestGrantOfANewRoundIsSentWithItsTimestamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 100 })
		a, b := r.miner("a", 1), r.miner("b", 1)
		p, old := a.process(), r.cl.job()
		// The job loop's Roll is applied, and it has not looked yet, when b's grant comes.
		r.c.mu.Lock()
		m := r.c.miners["b"]
		m.nextRequest++
		outcomes := r.cl.must(t,
			fsm.Finish{JobID: old.ID, GrantID: p.GrantID, Miner: "a", Timestamp: old.Timestamp, Nonces: p.Nonces, Receipt: p.Nonces.First},
			fsm.Roll{JobID: old.ID, Round: 1, Timestamp: old.Timestamp + 1},
			fsm.GrantWork{JobID: old.ID, Miner: "b", Instance: b.instance, RequestID: m.nextRequest, Chunks: 1})
		r.c.deliver(m, outcomes[2:], r.c.generation)
		r.c.mu.Unlock()
		if b.pump(); b.process().Work.Timestamp != old.Timestamp+1 {
			t.Errorf("b was sent timestamp %d, want %d of its round", b.process().Work.Timestamp, old.Timestamp+1)
		}
	})
}

func TestJobSolvedWhileTheNextIsOpenedIsNoErrorOfItsMiners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, easy)
		a, b := r.miner("a", 1), r.miner("b", 1)
		slow(r)
		time.Sleep(4950 * time.Millisecond)
		r.service.set(func(sv *service) { sv.block.Previous = pow.Sum([]byte("another")) })
		p := a.dropped()
		go func() { // committed 50 ms after the web service was asked for its block
			if err := a.s.Receive(t.Context(), answerYes(p, solution(t, p))); err != nil {
				t.Error(err)
			}
		}()
		stayFor(4*time.Second, a, b)
		refused := slices.ContainsFunc(r.cl.history(), func(step applied) bool {
			_, grant := step.command.(fsm.GrantWork)
			return grant && step.outcome.Code == fsm.Wrong
		})
		if !refused {
			t.Fatal("no grant of a job that was not opened: the test is out of step")
		}
		if n := r.logs.count("level=ERROR"); n > 0 {
			t.Errorf("%d errors are logged", n)
		}
		if job := r.cl.job(); job.ID != 2 || len(a.held) != 1 || len(b.held) != 1 || b.process().JobID != job.ID {
			t.Errorf("job %d: a holds %+v, b %+v", job.ID, a.held, b.held)
		}
	})
}

// TestMinerThatNeverAnswersHoldsLittleOfTheJob: whatever it says of itself and asks for.
func TestMinerThatNeverAnswersHoldsLittleOfTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) {
			r.cfg.Nonces.Last, r.cfg.ChunkSize, r.cfg.MaxGrantChunks = 2_000_000_000, 100_000, 0 // the default
		})
		hog := &testMiner{r: r, name: "hog", instance: fsm.ID{1}}
		reply := hog.hello(1024)
		reply.HashRate, reply.Threads = 1e18, 1<<16
		if err := hog.connectAs(reply); err != nil {
			t.Fatal(err)
		}
		stayFor(30*time.Second, hog)
		if counts := r.cl.counts(); counts.Granted == 0 || counts.Granted > 20_000/10 {
			t.Errorf("it holds %d of 20,000 chunks", counts.Granted)
		}
	})
}
