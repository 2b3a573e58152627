package coordinator

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

func TestSolutionIsSubmittedBeforeNextBlockIsRequested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, easy)
		a := r.miner("a", 1)
		for range 3 {
			r.cl.traced()
			if err := a.yes(a.process(), solution(t, a.process())); err != nil {
				t.Fatal(err)
			}
			want := []string{"Solve", "Submitting", "VerifyLeader", "Submit", "Submitted", "Block", "OpenJob", "GrantWork"}
			if got := r.cl.traced(); !slices.Equal(got, want) {
				t.Errorf("from solution to next range:\n got %v\nwant %v", got, want)
			}
		}
	})
}

func TestNewJobIsGrantedInTheEntryThatOpensIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, easy)
		a, b := r.miner("a", 2), r.miner("b", 2)
		if err := a.yes(a.process(), solution(t, a.process())); err != nil {
			t.Fatal(err)
		}
		b.pump()
		if grants := grantsAtOpening(r); grants != 4 {
			t.Errorf("%d grants in the entry of the next job, want 4", grants)
		}
		r.service.set(func(sv *service) { sv.block.Previous = pow.Sum(nil) })
		stayFor(5*time.Second, a, b)
		if grants := grantsAtOpening(r); grants != 4 || r.cl.job().ID != 3 {
			t.Errorf("%d grants in the entry that closes a stale job and opens job %d, want 4", grants, r.cl.job().ID)
		}
	})
}

// grantsAtOpening counts the grants in the entry of the last OpenJob.
func grantsAtOpening(r *rig) (grants int) {
	var entry uint64
	for _, step := range r.cl.history() {
		switch step.command.(type) {
		case fsm.OpenJob:
			entry, grants = step.entry, 0
		case fsm.GrantWork:
			if step.entry == entry && step.outcome.Code == fsm.Done {
				grants++
			}
		}
	}
	return grants
}

func TestNoBlockIsRequestedBetweenSolutionAndVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) {
			easy(r)
			r.service.delay = 4 * time.Second // so that a look is under way all the time
		})
		time.Sleep(5 * time.Second)
		a := r.miner("a", 1)
		stayFor(5*time.Second+time.Millisecond, a) // the second look has begun
		r.cl.traced()
		if err := a.yes(a.process(), solution(t, a.process())); err != nil {
			t.Fatal(err)
		}
		r.service.set(func(sv *service) { sv.delay = time.Minute })
		stayFor(30*time.Second, a)
		want := []string{"Solve", "Submitting", "VerifyLeader", "Submit"}
		got := slices.DeleteFunc(r.cl.traced(), func(what string) bool { return what == "Finish" })
		if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			t.Errorf("got %v, want %v first", got, want)
		}
	})
}

// verdictCase is one way in which a verdict can get lost, and what must come of it.
type verdictCase struct {
	first    func(sv *service, accept func() Reply) (Reply, error) // what the web service does to the first submission
	verdict  fsm.Verdict
	submits  int
	attempts int // Submitting commands
}

var errLost = errors.New("connection reset by peer")

var verdictCases = map[string]verdictCase{
	"answered": {
		func(_ *service, accept func() Reply) (Reply, error) { return accept(), nil },
		fsm.VerdictSuccess, 1, 1,
	},
	"request lost": {
		func(*service, func() Reply) (Reply, error) { return Reply{}, errLost },
		fsm.VerdictSuccess, 2, 2,
	},
	"answer lost": {
		func(_ *service, accept func() Reply) (Reply, error) { accept(); return Reply{}, errLost },
		fsm.VerdictSuccess, 1, 1,
	},
	"answer lost and somebody went on": {
		func(sv *service, accept func() Reply) (Reply, error) {
			accept()
			sv.block.Previous = pow.Sum([]byte("somebody's"))
			return Reply{}, errLost
		},
		fsm.VerdictUnknown, 1, 1,
	},
	"request lost and somebody was faster": {
		func(sv *service, _ func() Reply) (Reply, error) {
			sv.block.Previous = pow.Sum([]byte("somebody's"))
			return Reply{}, errLost
		},
		fsm.VerdictUnknown, 1, 1,
	},
	"refused": {
		func(*service, func() Reply) (Reply, error) { return Reply{Detail: "wrong"}, nil },
		fsm.VerdictWrong, 1, 1,
	},
	"refused because somebody was faster": {
		func(sv *service, _ func() Reply) (Reply, error) {
			sv.block.Previous = pow.Sum([]byte("somebody's"))
			return Reply{Detail: "wrong"}, nil
		},
		fsm.VerdictStale, 1, 1,
	},
	"refused because it has it": {
		func(_ *service, accept func() Reply) (Reply, error) {
			accept()
			return Reply{Detail: "incomplete"}, nil
		},
		fsm.VerdictSuccess, 1, 1,
	},
}

func checkVerdict(t *testing.T, r *rig, want verdictCase, trace []string) {
	t.Helper()
	blocks := r.cl.blocks()
	if len(blocks) != 1 || blocks[0].Verdict != want.verdict {
		t.Fatalf("blocks %+v, want one with verdict %s", blocks, want.verdict)
	}
	submits, attempts := 0, 0
	for i, what := range trace {
		switch what {
		case "Submit":
			submits++
			if i == 0 || trace[i-1] != "VerifyLeader" {
				t.Errorf("submitted without VerifyLeader: %v", trace)
			}
		case "Submitting":
			attempts++
		}
	}
	if submits != want.submits || attempts != want.attempts {
		t.Errorf("%d submissions and %d intents, want %d and %d: %v", submits, attempts, want.submits, want.attempts, trace)
	}
}

func TestVerdictLostIsInferredFromService(t *testing.T) {
	for name, want := range verdictCases {
		t.Run("within a term, "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, easy)
				a := r.miner("a", 1)
				r.service.set(func(sv *service) {
					sv.submit = append(sv.submit, func(accept func() Reply) (Reply, error) { return want.first(sv, accept) })
				})
				r.cl.traced()
				if err := a.yes(a.process(), solution(t, a.process())); err != nil {
					t.Fatal(err)
				}
				stayFor(4*time.Second, a)
				checkVerdict(t, r, want, r.cl.traced())
			})
		})
		t.Run("by the next leader, "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, easy)
				a := r.miner("a", 1)
				p := a.process()
				r.service.set(func(sv *service) {
					sv.submit = append(sv.submit, func(accept func() Reply) (Reply, error) {
						_, _ = want.first(sv, accept)
						return Reply{}, errLost // and then the leader died
					})
					sv.delay = 2 * time.Second
				})
				r.cl.traced()
				if err := a.yes(p, solution(t, p)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2*time.Second + time.Millisecond)
				r.stop()
				r.service.set(func(sv *service) { sv.delay = 0 })
				r.start()
				time.Sleep(time.Second)
				switch { // a verdict that the dead leader had seen is had or inferred again
				case want.verdict == fsm.VerdictStale:
					want.verdict = fsm.VerdictUnknown
				case want.verdict == fsm.VerdictWrong:
					want.verdict, want.submits, want.attempts = fsm.VerdictSuccess, 2, 2
				}
				checkVerdict(t, r, want, r.cl.traced())
			})
		})
	}
}

func TestSecondSubmissionRefusedBecauseOfTheFirst(t *testing.T) {
	for name, row := range map[string]struct {
		between func(sv *service, accept func() Reply) // after the first answer was lost, before the second is refused
		verdict fsm.Verdict
	}{
		"the first one was accepted late": {func(_ *service, accept func() Reply) { accept() }, fsm.VerdictSuccess},
		"and somebody went on from there": {func(sv *service, _ func() Reply) { sv.block.Previous = pow.Sum(nil) }, fsm.VerdictUnknown},
		"it never was, and never will be": {func(*service, func() Reply) {}, fsm.VerdictWrong},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, easy)
				a := r.miner("a", 1)
				r.service.set(func(sv *service) {
					sv.submit = append(sv.submit,
						func(func() Reply) (Reply, error) { return Reply{}, errLost },
						func(accept func() Reply) (Reply, error) {
							row.between(sv, accept)
							return Reply{Detail: "wrong"}, nil
						})
				})
				r.cl.traced()
				if err := a.yes(a.process(), solution(t, a.process())); err != nil {
					t.Fatal(err)
				}
				stayFor(5*time.Second, a)
				checkVerdict(t, r, verdictCase{verdict: row.verdict, submits: 2, attempts: 2}, r.cl.traced())
			})
		})
	}
}

func TestSolutionOfTheTermBeforeIsSubmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, easy)
		a := r.miner("a", 1)
		p := a.process()
		r.stop()
		r.cl.must(t, fsm.Solve{JobID: p.JobID, GrantID: p.GrantID, Miner: "a", Timestamp: p.Work.Timestamp, Nonce: solution(t, p)})
		r.cl.traced()
		r.start()
		want := []string{"TakeOffice", "Submitting", "VerifyLeader", "Submit", "Submitted", "Block", "OpenJob"}
		if got := r.cl.traced(); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestNothingIsSubmittedWithoutLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, easy)
		a := r.miner("a", 1)
		r.cl.mu.Lock()
		r.cl.verify = ErrNotLeader
		r.cl.mu.Unlock()
		if err := a.yes(a.process(), solution(t, a.process())); err != nil {
			t.Fatal(err)
		}
		stayFor(20*time.Second, a)
		if slices.Contains(r.cl.traced(), "Submit") {
			t.Error("submitted although another server leads")
		}
		r.cl.mu.Lock()
		r.cl.verify = nil
		r.cl.mu.Unlock()
		stayFor(10*time.Second, a)
		if blocks := r.cl.blocks(); len(blocks) != 1 || blocks[0].Verdict != fsm.VerdictSuccess {
			t.Errorf("blocks %+v", blocks)
		}
	})
}

func TestLostVerdictCommitIsRepeated(t *testing.T) {
	for _, kind := range []failure{notLeader, unknownLost, unknownDone, unknownLate} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, easy)
				a := r.miner("a", 1)
				failures := 3
				r.cl.mu.Lock()
				r.cl.fail = func(commands []fsm.Command) failure {
					switch commands[0].(type) {
					case fsm.Submitted, fsm.OpenJob:
						if failures > 0 {
							failures--
							return kind
						}
					}
					return commit
				}
				r.cl.mu.Unlock()
				if err := a.yes(a.process(), solution(t, a.process())); err != nil {
					t.Fatal(err)
				}
				stayFor(10*time.Second, a)
				if blocks := r.cl.blocks(); len(blocks) != 1 || blocks[0].Verdict != fsm.VerdictSuccess || len(r.service.accepted) != 1 {
					t.Errorf("blocks %+v, the service accepted %d", blocks, len(r.service.accepted))
				}
				if r.cl.job().ID != 2 || len(a.held) != 1 || a.process().JobID != 2 {
					t.Errorf("job %d, holds %+v", r.cl.job().ID, a.held)
				}
			})
		})
	}
}

func TestServiceThatAlwaysSaysWrongIsNotHammered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, easy)
		a := r.miner("a", 1)
		r.service.set(func(sv *service) {
			for range 100 {
				sv.submit = append(sv.submit, func(func() Reply) (Reply, error) { return Reply{Detail: "wrong"}, nil })
			}
		})
		for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
			if stayFor(100*time.Millisecond, a); len(a.held) > 0 {
				if err := a.yes(a.process(), solution(t, a.process())); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := len(r.cl.blocks()); n < 3 || n > 12 {
			t.Errorf("%d blocks were judged wrong in two minutes, want a few, ever more slowly", n)
		}
		for _, block := range r.cl.blocks() {
			if block.Verdict != fsm.VerdictWrong || block.Detail != "wrong" || block.Height != 1 {
				t.Errorf("%+v", block)
			}
		}
		r.service.set(func(sv *service) { sv.submit = nil })
		stayFor(2*time.Minute, a)
		if err := a.yes(a.process(), solution(t, a.process())); err != nil || r.cl.job().Height != 2 {
			t.Errorf("%v, height %d", err, r.cl.job().Height)
		}
	})
}

func TestStaleJobInterruptsEveryone(t *testing.T) {
	moved := pow.Sum([]byte("somebody's"))
	for name, change := range map[string]func(*service){
		"previous hash moved": func(sv *service) { sv.block.Previous = moved },
		"bits changed":        func(sv *service) { sv.block.Bits-- },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil)
				a, b := r.miner("a", 2), r.miner("b", 2)
				old := slices.Clone(a.held)
				r.service.set(change)
				stayFor(5*time.Second, a, b)
				for _, m := range []*testMiner{a, b} {
					if len(m.interrupts) != 1 || m.interrupts[0].Reason != InterruptStale || m.interrupts[0].JobID != 1 {
						t.Errorf("%s: interrupts %+v", m.name, m.interrupts)
					}
					if len(m.held) != 2 || m.held[0].JobID != 2 || m.held[1].JobID != 2 {
						t.Errorf("%s holds %+v, want two ranges of job 2", m.name, m.held)
					}
				}
				job := r.cl.job()
				if job.Previous != r.service.block.Previous || job.Bits != r.service.block.Bits || job.Height != 1 {
					t.Errorf("job %+v", job)
				}
				if err := a.no(old[0]); err != nil || a.lastAck().Result != Stale {
					t.Errorf("late answer: %v, %+v", err, a.lastAck())
				}
				if m := r.cl.miner("a"); m.Strikes != 0 || m.Chunks != 0 {
					t.Errorf("%+v", m)
				}
			})
		})
	}
}

func TestRangeWithoutSolutionRollsTimestamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a, b := r.miner("a", 2), r.miner("b", 2)
		last := r.cl.job().Timestamp
		for round := range uint32(5) {
			if job := r.cl.job(); job.Round != round || job.Phase != fsm.PhaseOpen {
				t.Fatalf("job %+v, want round %d", job, round)
			}
			for range r.cl.counts().Total {
				m := a
				if len(a.held) == 0 {
					m = b
				}
				if p := m.process(); p.Work.Timestamp != r.cl.job().Timestamp {
					t.Fatalf("sent timestamp %d in a round of %d", p.Work.Timestamp, r.cl.job().Timestamp)
				}
				if err := m.no(m.process()); err != nil || m.lastAck().Result != Committed {
					t.Fatalf("%v, %+v", err, m.lastAck())
				}
				a.pump()
				b.pump()
			}
			if now := r.cl.job().Timestamp; now <= last {
				t.Errorf("timestamp %d after %d", now, last)
			} else {
				last = now
			}
			if len(a.held) == 0 || len(b.held) == 0 {
				t.Fatalf("round %d: a holds %v, b %v", round+1, a.heldIDs(), b.heldIDs())
			}
		}
		if r.service.requests > 2 {
			t.Errorf("%d requests for blocks", r.service.requests)
		}
	})
}

func TestRoundsFasterThanHeartbeatsStillLookAtTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.Nonces.Last = 100 })
		a := r.miner("a", 1)
		r.service.set(func(sv *service) { sv.block.Previous = pow.Sum([]byte("somebody's")) })
		for i := 0; r.cl.job().ID == 1; i++ {
			if i > 60 {
				t.Fatal("the stale job goes on for ever")
			}
			if err := a.no(a.process()); err != nil {
				t.Fatal(err)
			}
			stayFor(100*time.Millisecond, a)
		}
	})
}

func TestServiceGoneSearchGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) {
			easy(r)
			r.cfg.Nonces.Last = 100_000
		})
		a := r.miner("a", 2)
		r.service.set(func(sv *service) { sv.down = errDown })
		for range 100 {
			stayFor(time.Second, a)
			p := a.process()
			a.held = a.held[1:]
			answer := answerNo(p, unsolved(t, p))
			if err := a.s.Receive(t.Context(), answer); err != nil {
				t.Fatal(err)
			}
			if a.pump(); a.lastAck().Result != Committed || len(a.held) != 2 {
				t.Fatalf("acks %+v, holds %v", a.lastAck(), a.heldIDs())
			}
		}
		if requests := r.service.requests; requests < 5 || requests > 30 {
			t.Errorf("%d requests to a dead service in 100 s", requests)
		}
		text := r.c.Status().WebServiceError
		if !strings.HasPrefix(text, "failing since ") || !strings.Contains(text, errDown.Error()) {
			t.Errorf("status says %q", text)
		}
		if n := r.logs.count("block web service fails"); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}
		// A solution waits for the service, and is submitted when it is back.
		p := a.process()
		if err := a.yes(p, solution(t, p)); err != nil {
			t.Fatal(err)
		}
		stayFor(time.Minute, a)
		if job := r.cl.job(); job.Phase != fsm.PhaseSubmitting {
			t.Fatalf("job %+v", job)
		}
		r.service.set(func(sv *service) { sv.down = nil })
		stayFor(10*time.Second, a)
		if blocks := r.cl.blocks(); len(blocks) != 1 || blocks[0].Verdict != fsm.VerdictSuccess || len(a.held) != 2 {
			t.Errorf("blocks %+v, holds %v", blocks, a.heldIDs())
		}
		if text := r.c.Status().WebServiceError; text != "" || r.logs.count("works again") != 1 {
			t.Errorf("status says %q after it is back", text)
		}
	})
}

func TestTermEndsWhileServiceHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.service.delay = time.Hour })
		began := time.Now()
		r.stop()
		if took := time.Since(began); took > 0 {
			t.Errorf("took %v", took)
		}
	})
}

func TestHeightIsTheServicesWhenItMakesSense(t *testing.T) {
	for _, row := range []struct{ first, later, want, then uint64 }{
		{0, 0, 1, 2},
		{1, 0, 1, 2},
		{1, 1, 1, 2}, // a height that is taken
		{41, 0, 41, 42},
		{41, 7, 41, 42},
		{41, 50, 41, 51}, // the service counts on
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(r *rig) {
				easy(r)
				r.service.block.Height = row.first
			})
			if got := r.cl.job().Height; got != row.want {
				t.Errorf("service says %d: height %d, want %d", row.first, got, row.want)
			}
			a := r.miner("a", 1)
			r.service.set(func(sv *service) { sv.block.Height = row.later })
			if err := a.yes(a.process(), solution(t, a.process())); err != nil {
				t.Fatal(err)
			}
			if got := r.cl.job().Height; got != row.then {
				t.Errorf("service says %d, then %d: height %d, want %d", row.first, row.later, got, row.then)
			}
		})
	}
}

func TestBlockThatMakesNoSenseIsNotOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.service.block.Bits = 257 })
		time.Sleep(time.Minute)
		if job := r.cl.job(); job.ID != 0 {
			t.Errorf("opened %+v", job)
		}
		if text := r.c.Status().WebServiceError; !strings.Contains(text, "257") {
			t.Errorf("status says %q", text)
		}
		r.service.set(func(sv *service) { sv.block.Bits = hard })
		time.Sleep(10 * time.Second)
		if job := r.cl.job(); job.ID != 1 {
			t.Errorf("not opened: %+v", job)
		}
	})
}

func TestConfigIsValidated(t *testing.T) {
	cl := newCluster(t)
	good := Config{Proposer: cl, Source: &service{cl: cl}, ServerID: 1, Term: 1}
	if err := good.Validate(); err != nil {
		t.Fatalf("defaults: %v", err)
	}
	for name, change := range map[string]func(*Config){
		"proposer":       func(c *Config) { c.Proposer = nil },
		"source":         func(c *Config) { c.Source = nil },
		"server id":      func(c *Config) { c.ServerID = 0 },
		"term":           func(c *Config) { c.Term = 0 },
		"large term":     func(c *Config) { c.Term = 1 << 32 },
		"heartbeat":      func(c *Config) { c.Heartbeat = -1 },
		"lease":          func(c *Config) { c.LeaseHeartbeats = 1 },
		"grant time":     func(c *Config) { c.GrantTime = -1 },
		"answer timeout": func(c *Config) { c.AnswerTimeout = time.Second },
		"forget":         func(c *Config) { c.ForgetAfter = time.Second },
		"miners":         func(c *Config) { c.MaxMiners = -1 },
		"range":          func(c *Config) { c.Nonces = pow.Range{First: 2, Last: 1} },
		"nonce 0":        func(c *Config) { c.Nonces = pow.Range{First: 0, Last: 1} },
		"chunk":          func(c *Config) { c.ChunkSize = fsm.MaxChunkSize + 1 },
		"chunks":         func(c *Config) { c.Nonces, c.ChunkSize = pow.Range{First: 1, Last: 1<<64 - 1}, 1 },
	} {
		bad := good
		change(&bad)
		if _, err := New(bad); err == nil || !strings.HasPrefix(err.Error(), "coordinator: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
