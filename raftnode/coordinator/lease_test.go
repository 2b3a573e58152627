package coordinator

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
)

func TestBrokenStreamResumesWithinLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.miner("a", 2)
		if len(a.held) != 2 {
			t.Fatalf("holds %d ranges, want 2", len(a.held))
		}
		kept, lost := a.held[0], a.held[1]
		a.s.Close()
		time.Sleep(14 * time.Second)
		a.held, a.received = []Process{kept}, nil
		if err := a.connect(2); err != nil {
			t.Fatal(err)
		}
		if len(a.received) != 1 || a.received[0] != Message(lost) {
			t.Errorf("received %+v, want only the lost %+v again", a.received, lost)
		}
		stayFor(30*time.Second, a)
		for _, p := range []Process{kept, lost} {
			if err := a.no(p); err != nil || a.lastAck().Result != Committed {
				t.Errorf("answer for %v: %v, %+v", p.Nonces, err, a.acks)
			}
		}
	})
}

func TestHeldGrantThatIsGoneIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.miner("a", 1)
		p := a.process()
		a.s.Close()
		time.Sleep(20 * time.Second)
		if err := a.connect(1); err != nil {
			t.Fatal(err)
		}
		want := Interrupt{JobID: p.JobID, Reason: InterruptReleased, GrantIDs: []uint64{p.GrantID}}
		if len(a.interrupts) != 1 || fmt.Sprint(a.interrupts[0]) != fmt.Sprint(want) {
			t.Fatalf("interrupts %+v, want %+v", a.interrupts, want)
		}
		before, counts := r.cl.miner("a"), r.cl.counts()
		if err := a.no(p); err != nil || a.lastAck().Result != Released {
			t.Errorf("late answer: %v, %+v, want Released", err, a.lastAck())
		}
		checkLine(t, a.lastAck().Message)
		if after := r.cl.miner("a"); after.Strikes != 0 || after.Chunks != before.Chunks || r.cl.counts() != counts {
			t.Errorf("the late answer changed %+v to %+v", before, after)
		}
	})
}

// TestLateAnswersForARangeOfAnotherMiner: neither a "no" nor a solution of who held it before is taken, and who holds it
// now is not disturbed.
func TestLateAnswersForARangeOfAnotherMiner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { easy(r); r.cfg.Nonces.Last = 100 })
		a, b := r.miner("a", 1), r.miner("b", 1)
		p := a.process()
		a.s.Close()
		stayFor(16*time.Second, b)
		now := b.process()
		if now.Nonces != p.Nonces || now.GrantID == p.GrantID {
			t.Fatalf("b holds %+v, a held %+v", now, p)
		}
		if err := a.connect(0); err != nil {
			t.Fatal(err)
		}
		counts := r.cl.counts()
		for _, late := range []Message{answerNo(p, unsolved(t, p)), answerYes(p, solution(t, p))} {
			if err := a.s.Receive(t.Context(), late); err != nil {
				t.Fatal(err)
			}
			if a.pump(); a.lastAck().Result != Released {
				t.Errorf("%+v: %+v, want Released", late, a.lastAck())
			}
			checkLine(t, a.lastAck().Message)
		}
		if m := r.cl.miner("a"); m.Strikes != 0 || m.Chunks != 0 || m.Solutions != 0 || r.cl.counts() != counts ||
			r.cl.job().Phase != fsm.PhaseOpen || len(b.interrupts) != 0 {
			t.Errorf("the late answers changed the miner to %+v, the chunks to %+v, the job to %s; b heard %+v", m, r.cl.counts(), r.cl.job().Phase, b.interrupts)
		}
		if err := b.yes(now, solution(t, now)); err != nil || b.lastAck().Result != Committed {
			t.Errorf("the answer of who holds it: %v, %+v", err, b.lastAck())
		}
	})
}

func TestExpiredLeaseIsGrantedToAnotherMiner(t *testing.T) {
	for name, leave := range map[string]func(*testMiner){
		"connected, but silent": func(*testMiner) {},
		"disconnected":          func(m *testMiner) { m.s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 100 })
				a, b := r.miner("a", 1), r.miner("b", 1)
				p := a.process()
				leave(a)
				stayFor(14*time.Second, b)
				if len(b.held) != 0 {
					t.Fatalf("b was granted %+v within the lease", b.held)
				}
				stayFor(2*time.Second, b)
				if got := b.process(); got.Nonces != p.Nonces {
					t.Errorf("b was granted %v, want %v", got.Nonces, p.Nonces)
				}
				history := r.cl.history()
				if n := len(history); history[n-1].entry != history[n-2].entry {
					t.Errorf("released and granted in two entries: %+v", history[n-2:])
				}
				if a.pump(); !a.over {
					t.Error("the silent miner is still connected")
				}
			})
		})
	}
}

func TestLeavingMinerReturnsItsRangesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 300 })
		a, b := r.miner("a", 3), r.miner("b", 1)
		if len(a.held) != 3 || len(b.held) != 0 {
			t.Fatalf("a holds %d, b %d", len(a.held), len(b.held))
		}
		bye := a.hello(0)
		bye.Leaving = true
		if err := a.s.Receive(t.Context(), bye); err != nil {
			t.Fatal(err)
		}
		if b.pump(); len(b.held) != 1 {
			t.Errorf("b was granted nothing")
		}
		if counts := r.cl.counts(); counts.Granted != 1 || counts.Pending != 2 {
			t.Errorf("%+v", counts)
		}
	})
}

func TestMinerThatFinishesNothingLosesItsRanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 100 })
		a := r.miner("a", 1)
		p := a.process()
		b := r.miner("b", 1)
		stayFor(DefaultAnswerTimeout-2*time.Second, a, b)
		if len(a.interrupts) != 0 {
			t.Fatalf("interrupted early: %+v", a.interrupts)
		}
		if err := a.s.Receive(t.Context(), a.hello(0)); err != nil { // it wants nothing, so that b is next
			t.Fatal(err)
		}
		stayFor(3*time.Second, a, b)
		if len(a.interrupts) != 1 || a.interrupts[0].Reason != InterruptReleased || len(a.held) != 0 {
			t.Errorf("interrupts %+v", a.interrupts)
		}
		if got := b.process(); got.Nonces != p.Nonces {
			t.Errorf("b was granted %v, want %v", got.Nonces, p.Nonces)
		}
		if err := a.s.Err(); err != nil {
			t.Errorf("its session ended: %v", err)
		}
	})
}

func TestMinerThatFinishesNothingIsNotFedBeforeTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 200 })
		a := r.miner("a", 1)
		other := r.miner("b", 1)
		stayFor(DefaultAnswerTimeout-3*time.Second, a, other)
		if err := other.no(other.process()); err != nil {
			t.Fatal(err)
		}
		p := a.process()
		stayFor(4*time.Second, a, other)
		if len(a.held) != 0 || other.process().Nonces != p.Nonces {
			t.Fatalf("a holds %v, b %+v, want b to have %v", a.heldIDs(), other.held, p.Nonces)
		}
		c := r.miner("c", 2)
		if err := other.no(other.process()); err != nil { // the next round: two chunks
			t.Fatal(err)
		}
		stayFor(13*time.Second, a, other, c)
		if len(a.held) != 0 {
			t.Errorf("a was granted %v within a lease", a.heldIDs())
		}
		other.s.Close()
		c.s.Close()
		stayFor(16*time.Second, a)
		if len(a.held) != 1 {
			t.Error("a is never granted anything again")
		}
	})
}

func TestMinersAreForgottenWithTheirStrikes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a, b := r.miner("a", 1), r.miner("b", 1)
		if err := a.no(a.process()); err != nil {
			t.Fatal(err)
		}
		wrong := honest(b.process())
		wrong.Receipt = 0
		if err := b.s.Receive(t.Context(), wrong); err != nil {
			t.Fatal(err)
		}
		a.s.Close()
		b.s.Close()
		time.Sleep(14 * time.Minute)
		if a, b := r.cl.miner("a"), r.cl.miner("b"); a.Chunks != 1 || b.Strikes != 1 {
			t.Fatalf("forgotten within 15 minutes: %+v, %+v", a, b)
		}
		time.Sleep(2 * time.Minute)
		if m := r.cl.miner("a"); m.Name != "" {
			t.Errorf("not forgotten: %+v", m)
		}
		if m := r.cl.miner("b"); m.Name != "" {
			t.Errorf("its strike is not forgotten: %+v", m)
		}
		if n := len(r.c.Status().Miners); n != 0 {
			t.Errorf("%d miners in status, want none", n)
		}
		r.miner("a", 1) // and it may come back
	})
}

func TestNewTermResumesGrantsAndLetsTheAbsentGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 400 })
		a, b := r.miner("a", 2), r.miner("b", 2)
		mine, theirs := slices.Clone(a.held), slices.Clone(b.held)
		r.stop()
		time.Sleep(time.Minute) // without a leader
		r.start()
		time.Sleep(10 * time.Second)
		a.received = nil
		if err := a.connect(2); err != nil {
			t.Fatal(err)
		}
		if len(a.received) != 0 {
			t.Errorf("a was sent %+v, want nothing: it holds it all", a.received)
		}
		if err := a.no(mine[0]); err != nil || a.lastAck().Result != Committed {
			t.Errorf("answer to the next leader: %v, %+v", err, a.acks)
		}
		if len(a.held) != 1 {
			t.Fatalf("a holds %v although nothing is pending", a.heldIDs())
		}
		stayFor(7*time.Second, a)
		if len(a.held) != 2 || a.held[1].Nonces != theirs[0].Nonces {
			t.Errorf("a holds %+v, want the first range of the absent b as well", a.held)
		}
		ids := map[string]bool{}
		for _, step := range r.cl.history() {
			if grant, ok := step.command.(fsm.GrantWork); ok {
				key := fmt.Sprint(grant.Miner, grant.RequestID)
				if term := grant.RequestID >> 32; term != 2 && term != 3 {
					t.Errorf("request id %d is not of its term's share", grant.RequestID)
				}
				if ids[key] {
					t.Errorf("request id %d of %s was used twice", grant.RequestID, grant.Miner)
				}
				ids[key] = true
			}
		}
	})
}
