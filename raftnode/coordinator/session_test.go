package coordinator

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

func TestFirstMessageIsHeartbeatAndThenEachInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		s, err := r.c.Open()
		if err != nil {
			t.Fatal(err)
		}
		beat := (<-s.Outgoing()).(HeartbeatRequest)
		want := []string{"127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"}
		if beat.ServerID != 1 || beat.Term != r.cfg.Term || beat.ClusterID != "test" || !slices.Equal(beat.ServerAddresses, want) {
			t.Errorf("first heartbeat is %+v", beat)
		}
		m := &testMiner{r: r, name: "a", instance: fsm.ID{1}, s: s}
		if err := s.Receive(t.Context(), m.hello(1)); err != nil {
			t.Fatal(err)
		}
		m.pump()
		for i := range 3 {
			stayFor(5*time.Second-time.Millisecond, m)
			if got := r.observer.take(); i > 0 && len(got) != 1 {
				t.Errorf("interval %d: observer saw %q, want one heartbeat", i, got)
			}
			time.Sleep(time.Millisecond)
		}
		if m.over {
			t.Errorf("session ended: %v", s.Err())
		}
	})
}

func TestMinerThatNeverAnswersIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		s, err := r.c.Open()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for range s.Outgoing() {
			}
		}()
		before := r.cl.index
		time.Sleep(14 * time.Second)
		if err := s.Err(); err != nil {
			t.Errorf("ended after 14 s: %v", err)
		}
		time.Sleep(2 * time.Second)
		if err := s.Err(); !errors.Is(err, ErrSilent) {
			t.Fatalf("after 16 s of silence: %v, want %v", err, ErrSilent)
		}
		checkLine(t, s.Err().Error())
		if r.cl.index != before {
			t.Errorf("%d entries were committed", r.cl.index-before)
		}
	})
}

func TestNonsenseReportIsRefusedAndChangesNothing(t *testing.T) {
	minus := -1
	for name, report := range map[string]HeartbeatReply{
		"empty name":    {Instance: fsm.ID{1}},
		"bad name":      {Name: "a b", Instance: fsm.ID{1}},
		"no instance":   {Name: "a"},
		"threads":       {Name: "a", Instance: fsm.ID{1}, Threads: -1},
		"NaN rate":      {Name: "a", Instance: fsm.ID{1}, HashRate: math.NaN()},
		"negative rate": {Name: "a", Instance: fsm.ID{1}, HashRate: -1},
		"wanted":        {Name: "a", Instance: fsm.ID{1}, Wanted: &minus},
		"held":          {Name: "a", Instance: fsm.ID{1}, Held: make([]uint64, maxHeld+1)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				before := r.cl.index
				m := &testMiner{r: r}
				if err := m.connectAs(report); !errors.Is(err, ErrMinerRefused) {
					t.Errorf("got %v, want %v", err, ErrMinerRefused)
				} else if strings.Contains(err.Error(), "\n") {
					t.Errorf("more than one line: %q", err)
				}
				if !m.over || r.cl.index != before {
					t.Errorf("session over: %v; %d entries were committed", m.over, r.cl.index-before)
				}
				if events := r.observer.take(); len(events) != 1 || !strings.HasPrefix(events[0], "refused ") {
					t.Errorf("observer saw %q", events)
				}
			})
		})
	}
}

func TestFirstMessageMustBeTheReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		for _, message := range []Message{AnswerNo{}, AnswerYes{}, Process{}, nil} {
			s, err := r.c.Open()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Receive(t.Context(), message); !errors.Is(err, ErrMinerRefused) {
				t.Errorf("%T: %v, want %v", message, err, ErrMinerRefused)
			}
			if err := s.Receive(t.Context(), HeartbeatReply{Name: "a", Instance: fsm.ID{1}}); !errors.Is(err, ErrMinerRefused) {
				t.Errorf("a message after the end: %v", err)
			}
		}
	})
}

func TestNameOfAConnectedMinerIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.miner("a", 1)
		other := &testMiner{r: r, name: "a", instance: fsm.ID{9}}
		r.observer.take()
		for range 3 { // it asks again and again
			if err := other.connect(1); !errors.Is(err, ErrNameTaken) {
				t.Fatalf("second process of the name: %v, want %v", err, ErrNameTaken)
			}
		}
		if events := r.observer.take(); len(events) != 1 || r.logs.count("miner refused") != 1 {
			t.Errorf("told %q and logged %d times, want once", events, r.logs.count("miner refused"))
		}
		if err := a.no(a.process()); err != nil || a.lastAck().Result != Committed {
			t.Errorf("the first one was disturbed: %v, %+v", err, a.acks)
		}
	})
}

func TestSameProcessReplacesItsOldStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.miner("a", 2)
		old := a.s
		if err := a.connect(2); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(old.Err(), ErrReplaced) {
			t.Errorf("old stream: %v, want %v", old.Err(), ErrReplaced)
		}
		old.Close()
		if len(a.held) != 2 || len(a.interrupts) != 0 || a.s.Err() != nil {
			t.Errorf("holds %v, interrupts %v, %v", a.heldIDs(), a.interrupts, a.s.Err())
		}
	})
}

func TestRestartedMinerLosesTheRangesOfTheProcessBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 100 })
		a := r.miner("a", 1)
		first := a.process()
		a.s.Close()
		again := &testMiner{r: r, name: "a", instance: fsm.ID{9}}
		if err := again.connect(1); err != nil {
			t.Fatal(err)
		}
		if p := again.process(); p.GrantID == first.GrantID || p.Nonces != first.Nonces {
			t.Errorf("got %+v, want the range of %+v under a new grant", p, first)
		}
		if !slices.ContainsFunc(r.cl.history(), func(a applied) bool {
			release, ok := a.command.(fsm.Release)
			return ok && release.Reason == fsm.ReleaseRestarted && a.outcome.Code == fsm.Done
		}) {
			t.Error("no release because of the restart was committed")
		}
	})
}

func TestSlowReaderIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.miner("a", 1)
		for range outgoingBuffer + 1 { // acknowledgements that nobody reads
			select {
			case <-a.s.Done():
				t.Fatal("done early")
			default:
			}
			if err := a.s.Receive(t.Context(), AnswerNo{GrantID: 1, JobID: 0}); err != nil {
				t.Fatal(err)
			}
		}
		<-a.s.Done()
		if err := a.s.Err(); !errors.Is(err, ErrTooSlow) {
			t.Errorf("got %v, want %v", err, ErrTooSlow)
		}
	})
}

func TestMinersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.MaxMiners = 2 })
		r.miner("a", 0)
		b := r.miner("b", 0)
		if _, err := r.c.Open(); !errors.Is(err, ErrTooManyMiners) {
			t.Errorf("third stream: %v, want %v", err, ErrTooManyMiners)
		}
		b.s.Close()
		r.miner("c", 0)
	})
}

func TestTermEndEndsEverySession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a, b := r.miner("a", 1), r.miner("b", 1)
		stranger, err := r.c.Open()
		if err != nil {
			t.Fatal(err)
		}
		r.stop()
		for _, s := range []*Session{a.s, b.s, stranger} {
			if !errors.Is(s.Err(), ErrNotLeader) {
				t.Errorf("session ended with %v, want %v", s.Err(), ErrNotLeader)
			}
		}
		if a.pump(); !a.over {
			t.Error("Outgoing is not closed")
		}
		if _, err := r.c.Open(); !errors.Is(err, ErrNotLeader) {
			t.Errorf("Open after the term: %v", err)
		}
		if err := a.s.Receive(t.Context(), a.hello(1)); !errors.Is(err, ErrNotLeader) {
			t.Errorf("Receive after the term: %v", err)
		}
		if err := r.c.Run(t.Context()); err == nil {
			t.Error("Run a second time returned no error")
		}
	})
}

// stubborn is a Proposer whose commits do not end with the context.
type stubborn struct {
	*cluster
	gate chan struct{}
}

func (p stubborn) Propose(_ context.Context, commands ...fsm.Command) ([]fsm.Outcome, error) {
	if _, ok := commands[0].(fsm.Finish); ok {
		<-p.gate
	}
	return p.cluster.Propose(context.Background(), commands...)
}

func TestRunReturnsAfterTheLastCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		r := newRig(t, func(r *rig) { r.cfg.Proposer = stubborn{r.cl, gate} })
		a := r.miner("a", 1)
		answered := make(chan error, 1)
		go func() { answered <- a.s.Receive(t.Context(), honest(a.process())) }()
		synctest.Wait()
		r.cancel()
		time.Sleep(time.Minute)
		select {
		case <-r.done:
			t.Error("Run returned while an answer was being committed")
		default:
		}
		close(gate)
		<-answered
		if err := <-r.done; err != nil {
			t.Error(err)
		}
		r.cancel = nil
	})
}

func TestNextRangeIsGrantedBeforeCurrentEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.miner("a", 2)
		for range 8 {
			if len(a.held) != 2 {
				t.Fatalf("holds %d ranges, want 2", len(a.held))
			}
			r.cl.traced()
			if err := a.no(a.process()); err != nil {
				t.Fatal(err)
			}
			history := r.cl.history()
			n := len(history)
			finish, grant := history[n-2], history[n-1]
			if _, ok := finish.command.(fsm.Finish); !ok || finish.entry != grant.entry {
				t.Errorf("entry ends with %+v %+v, want the finish and the next grant in one", finish, grant)
			}
		}
	})
}

func TestAnswerIsAcknowledgedOnlyWhenCommitted(t *testing.T) {
	for kind, want := range map[failure]error{
		notLeader: ErrNotLeader, unknownLost: ErrOutcomeUnknown, unknownDone: ErrOutcomeUnknown, unknownLate: ErrOutcomeUnknown,
	} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				a := r.miner("a", 2)
				p, next := a.held[0], a.held[1]
				r.cl.mu.Lock()
				r.cl.fail = func(commands []fsm.Command) failure {
					if _, ok := commands[0].(fsm.Finish); ok {
						return kind
					}
					return commit
				}
				r.cl.mu.Unlock()
				if err := a.no(p); !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
				if len(a.acks) != 0 || !a.over {
					t.Errorf("acknowledged %+v, over: %v", a.acks, a.over)
				}
				r.cl.mu.Lock()
				r.cl.fail = nil
				r.cl.mu.Unlock()
				a.held = []Process{p, next} // its answer is not acknowledged
				if err := a.connect(2); err != nil {
					t.Fatal(err)
				}
				if err := a.no(p); err != nil {
					t.Fatal(err)
				}
				if got := a.lastAck().Result; got != Committed && got != Duplicate {
					t.Errorf("delivered again: %+v", a.lastAck())
				}
				stayFor(10*time.Second, a)
				checkHeld(t, r, a)
				if r.cl.miner("a").Chunks != 1 || r.cl.miner("a").Strikes != 0 {
					t.Errorf("%+v", r.cl.miner("a"))
				}
			})
		})
	}
}

// checkHeld compares what a miner holds with what the state grants it.
func checkHeld(t *testing.T, r *rig, m *testMiner) {
	t.Helper()
	var granted []uint64
	r.cl.View(func(v fsm.View) {
		for grant := range v.Grants() {
			if grant.Miner == m.name {
				granted = append(granted, grant.ID)
			}
		}
	})
	got := m.heldIDs()
	slices.Sort(got)
	if !slices.Equal(got, granted) {
		t.Errorf("%s holds %v, the state grants it %v", m.name, got, granted)
	}
}

func TestNoGrantTwiceUnderUnknownOutcome(t *testing.T) {
	for _, kind := range []failure{notLeader, unknownLost, unknownDone, unknownLate} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				failing := true
				r := newRig(t, func(r *rig) {
					r.cl.fail = func(commands []fsm.Command) failure {
						if _, ok := commands[len(commands)-1].(fsm.GrantWork); ok && failing {
							failing = false
							return kind
						}
						return commit
					}
				})
				a, b := r.miner("a", 2), r.miner("b", 2)
				for range 3 {
					stayFor(2*time.Second, a, b)
					for _, m := range []*testMiner{a, b} {
						if m.over {
							if err := m.connect(2); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
				stayFor(6*time.Second, a, b)
				checkHeld(t, r, a)
				checkHeld(t, r, b)
				seen := map[pow.Range]bool{}
				for _, p := range slices.Concat(a.held, b.held) {
					if seen[p.Nonces] {
						t.Errorf("%v was sent twice", p.Nonces)
					}
					seen[p.Nonces] = true
				}
				if len(a.held) < 2 || len(b.held) < 2 {
					t.Errorf("a holds %d, b %d, want 2 and more", len(a.held), len(b.held))
				}
			})
		})
	}
}

func TestStatusSaysWhoIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.miner("a", 1)
		report := a.hello(2)
		report.HashRate = 5e6
		if err := a.s.Receive(t.Context(), report); err != nil {
			t.Fatal(err)
		}
		if a.pump(); r.c.Status().HashRate != 0 {
			t.Errorf("%v hashes a second are believed before anything is finished", r.c.Status().HashRate)
		}
		time.Sleep(time.Millisecond) // 100,000 nonces a second
		if err := a.no(a.process()); err != nil {
			t.Fatal(err)
		}
		b := r.miner("b", 1)
		b.s.Close()
		synctest.Wait()
		status := r.c.Status()
		if len(status.Miners) != 2 || status.HashRate != 2e5 ||
			status.WebService != r.service.Address() || status.WebServiceError != "" {
			t.Fatalf("%+v", status)
		}
		if m := status.Miners[0]; m.Name != "a" || !m.Connected || m.HashRate != 2e5 ||
			m.Held != 2 || m.Wanted != 2 || m.Kernel != "test" {
			t.Errorf("%+v", m)
		}
		if m := status.Miners[1]; m.Name != "b" || m.Connected || m.HashRate != 0 || m.Held != 1 {
			t.Errorf("%+v", m)
		}
	})
}
