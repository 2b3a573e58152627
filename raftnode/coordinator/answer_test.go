package coordinator

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// easy opens jobs that about every 16th nonce solves.
func easy(r *rig) { r.service.block.Bits = 4 }

// solution finds one in p, or fails the test: with 100 nonces and 4 bits there is always one.
func solution(t *testing.T, p Process) uint64 {
	t.Helper()
	nonce, ok := search(p)
	if !ok {
		t.Fatalf("%v holds no solution", p.Nonces)
	}
	return nonce
}

// unsolved finds the best nonce in p that is no solution.
func unsolved(t *testing.T, p Process) uint64 {
	t.Helper()
	nonce, ok := bestOf(p, p.Nonces.Last)
	if !ok {
		t.Fatalf("every nonce of %v is a solution", p.Nonces)
	}
	return nonce
}

var wrongAnswers = map[string]func(*testing.T, Process) Message{
	"receipt before the range": func(_ *testing.T, p Process) Message {
		a := honest(p)
		a.Receipt = p.Nonces.First - 1
		return a
	},
	"receipt after the range": func(_ *testing.T, p Process) Message {
		a := honest(p)
		a.Receipt = p.Nonces.Last + 1
		return a
	},
	"receipt is a solution": func(t *testing.T, p Process) Message {
		a := honest(p)
		a.Receipt = solution(t, p)
		return a
	},
	"receipt that no search comes to": func(t *testing.T, p Process) Message {
		a := honest(p)
		var worst pow.Hash
		for nonce := p.Nonces.First; nonce <= p.Nonces.Last; nonce++ {
			if digest := p.Work.Digest(nonce); digest.Compare(worst) > 0 {
				a.Receipt, worst = nonce, digest
			}
		}
		return a
	},
	"grant that never was": func(t *testing.T, p Process) Message {
		a := honest(p)
		a.GrantID, a.Receipt = 1000, unsolved(t, p)
		return a
	},
	"grant of another miner": func(t *testing.T, p Process) Message {
		a := honest(p)
		a.GrantID, a.Receipt = p.GrantID+1, unsolved(t, p)
		return a
	},
	"empty interval": func(t *testing.T, p Process) Message {
		a := honest(p)
		a.Nonces.Last = a.Nonces.First - 1
		return a
	},
	"nonce 0": func(t *testing.T, p Process) Message {
		a := honest(p)
		a.Nonces.First = 0
		return a
	},
	"more than the grant": func(t *testing.T, p Process) Message {
		a := honest(p)
		a.Nonces.Last, a.Receipt = a.Nonces.Last+100, unsolved(t, p)
		return a
	},
	"half a chunk": func(t *testing.T, p Process) Message {
		a := honest(p)
		a.Nonces.Last = a.Nonces.First + 49
		a.Receipt = unsolved(t, Process{Work: p.Work, Nonces: a.Nonces})
		return a
	},
	"job that never was": func(t *testing.T, p Process) Message {
		a := honest(p)
		a.JobID, a.Receipt = p.JobID+7, unsolved(t, p)
		return a
	},
	"timestamp of the future": func(t *testing.T, p Process) Message {
		a := honest(p)
		a.Timestamp, a.Receipt = p.Work.Timestamp+1, unsolved(t, p)
		return a
	},
	"wrong proof": func(t *testing.T, p Process) Message {
		return answerYes(p, unsolved(t, p))
	},
	"nonce outside its range": func(t *testing.T, p Process) Message {
		beside := p
		beside.Nonces = pow.Range{First: p.Nonces.First + 200, Last: p.Nonces.Last + 200}
		return answerYes(p, solution(t, beside))
	},
	"solution for a grant that never was": func(t *testing.T, p Process) Message {
		return AnswerYes{GrantID: 1000, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonce: solution(t, p)}
	},
}

func TestWrongAnswerChangesNothingAndThreeRefuse(t *testing.T) {
	for name, lie := range wrongAnswers {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(r *rig) {
					easy(r)
					r.cfg.Nonces.Last = 300
				})
				a, b, c := r.miner("a", 1), r.miner("b", 1), r.miner("c", 2)
				p := a.process()
				before, job := r.cl.counts(), r.cl.job()
				for strike := range uint32(fsm.MaxStrikes) {
					if got := r.cl.miner("a").Strikes; got != strike {
						t.Fatalf("%d strikes before answer %d", got, strike+1)
					}
					if r.cl.counts() != before || r.cl.job() != job {
						t.Fatalf("the answer changed %+v to %+v", before, r.cl.counts())
					}
					err := a.s.Receive(t.Context(), lie(t, p))
					a.pump()
					if ack := a.lastAck(); len(a.acks) != int(strike)+1 || ack.Result != Wrong {
						t.Fatalf("acknowledgements %+v", a.acks)
					}
					checkLine(t, a.lastAck().Message)
					if last := strike+1 == fsm.MaxStrikes; last != errors.Is(err, ErrMinerRefused) || last != a.over {
						t.Fatalf("answer %d: %v, over: %v", strike+1, err, a.over)
					}
				}
				if m := r.cl.miner("a"); m.Chunks != 0 || m.Solutions != 0 || r.cl.job() != job {
					t.Errorf("the answers counted: %+v, job %+v, was %+v", m, r.cl.job(), job)
				}
				if b.pump(); b.s.Err() != nil || len(b.held) != 1 {
					t.Errorf("b was disturbed: %v", b.s.Err())
				}
				if c.pump(); len(c.held) != 2 || c.held[1].Nonces != p.Nonces {
					t.Errorf("c holds %+v, want the refused miner's range as well", c.held)
				}
				if err := a.connect(1); !errors.Is(err, ErrMinerRefused) {
					t.Errorf("back after %d wrong answers: %v", fsm.MaxStrikes, err)
				}
				a.instance = fsm.ID{77}
				if err := a.connect(1); !errors.Is(err, ErrMinerRefused) {
					t.Errorf("back as another process: %v", err)
				}
				// What costs one digest to refute is never proposed.
				proposed := slices.ContainsFunc(r.cl.history(), func(step applied) bool {
					finish, isFinish := step.command.(fsm.Finish)
					solve, isSolve := step.command.(fsm.Solve)
					return isFinish && finish.Miner == "a" || isSolve && solve.Miner == "a"
				})
				if cheap := strings.HasPrefix(name, "receipt") || name == "wrong proof"; cheap && proposed {
					t.Error("the answer was proposed unchecked")
				}
				if r.logs.count("wrong answer") < fsm.MaxStrikes {
					t.Errorf("wrong answers were not logged")
				}
			})
		})
	}
}

func TestRangeOfAWrongAnswerIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.miner("a", 1)
		p := a.process()
		lie := honest(p)
		lie.Receipt = p.Nonces.Last + 1
		a.held, a.received = nil, nil // with its answer a miner forgets the range
		if err := a.s.Receive(t.Context(), lie); err != nil {
			t.Fatal(err)
		}
		if a.pump(); len(a.received) != 2 || a.lastAck().Result != Wrong || a.received[1] != Message(p) {
			t.Fatalf("received %+v, want an acknowledgement, then %+v again", a.received, p)
		}
		if err := a.no(p); err != nil || a.lastAck().Result != Committed {
			t.Errorf("the right answer afterwards: %v, %+v", err, a.lastAck())
		}
	})
}

func TestStrikesOutliveTheTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, easy)
		a := r.miner("a", 1)
		for range 2 {
			if err := a.s.Receive(t.Context(), wrongAnswers["wrong proof"](t, a.process())); err != nil {
				t.Fatal(err)
			}
		}
		r.stop()
		r.start()
		if err := a.connect(1); err != nil {
			t.Fatal(err)
		}
		if err := a.s.Receive(t.Context(), wrongAnswers["wrong proof"](t, a.process())); !errors.Is(err, ErrMinerRefused) {
			t.Errorf("third wrong answer, to the next leader: %v", err)
		}
	})
}

func TestLateAnswersAreNoStrikes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, easy)
		a, b := r.miner("a", 1), r.miner("b", 1)
		old := a.process()
		if err := b.yes(b.process(), solution(t, b.process())); err != nil {
			t.Fatal(err)
		}
		a.pump()
		for _, late := range []Message{
			answerNo(old, unsolved(t, old)),
			answerYes(old, solution(t, old)),
			answerYes(old, unsolved(t, old)),
		} {
			if err := a.s.Receive(t.Context(), late); err != nil {
				t.Fatal(err)
			}
			if a.pump(); a.lastAck().Result != Stale {
				t.Errorf("%+v: %+v, want Stale", late, a.lastAck())
			}
		}
		if m := r.cl.miner("a"); m.Strikes != 0 || m.Solutions != 0 || m.Chunks != 0 {
			t.Errorf("%+v", m)
		}
	})
}

func TestAnswersDeliveredTwiceAreDuplicates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.service.set(func(sv *service) { sv.delay = 3 * time.Second }) })
		time.Sleep(4 * time.Second)
		a := r.miner("a", 2)
		p := a.process()
		for i, want := range []Result{Committed, Duplicate} {
			if err := a.no(p); err != nil || a.lastAck().Result != want {
				t.Errorf("delivery %d: %v, %+v", i+1, err, a.lastAck())
			}
		}
		if chunks := r.cl.miner("a").Chunks; chunks != 1 {
			t.Errorf("%d chunks counted", chunks)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) {
			easy(r)
			r.service.delay = 3 * time.Second // the verdict takes its time
		})
		time.Sleep(4 * time.Second)
		a := r.miner("a", 1)
		p := a.process()
		for i, want := range []Result{Committed, Duplicate} {
			if err := a.yes(p, solution(t, p)); err != nil || a.lastAck().Result != want {
				t.Errorf("delivery %d: %v, %+v", i+1, err, a.lastAck())
			}
		}
		if ack := a.lastAck(); !ack.Solution || ack.Nonce != solution(t, p) {
			t.Errorf("%+v does not name the answer", ack)
		}
		stayFor(10*time.Second, a)
		if blocks := r.cl.blocks(); len(blocks) != 1 || blocks[0].Verdict != fsm.VerdictSuccess {
			t.Errorf("blocks %+v", blocks)
		}
	})
}

func TestPartOfAGrantIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.cfg.MaxGrantChunks = 4 })
		a := r.miner("a", 1)
		p := a.process()
		if p.Nonces.Len() != 400 {
			t.Fatalf("granted %v", p.Nonces)
		}
		head := p
		head.Nonces.Last = 200
		if err := a.s.Receive(t.Context(), honest(head)); err != nil {
			t.Fatal(err)
		}
		if a.pump(); a.lastAck().Result != Committed || len(a.held) != 1 {
			t.Errorf("acks %+v, holds %v", a.acks, a.heldIDs())
		}
		rest := p
		rest.Nonces.First = 201
		if err := a.no(rest); err != nil || a.lastAck().Result != Committed || len(a.held) != 1 {
			t.Errorf("%v, acks %+v, holds %v", err, a.acks, a.heldIDs())
		}
	})
}

func TestSolutionInterruptsTheOthersAndIsSettledOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, easy)
		a, b := r.miner("a", 2), r.miner("b", 2)
		jobID, mine, theirs := a.process().JobID, a.process(), b.process()
		nonce := solution(t, mine)
		if err := a.yes(mine, nonce); err != nil {
			t.Fatal(err)
		}
		b.pump()
		if ack := a.lastAck(); ack.Result != Committed || !ack.Solution || ack.Nonce != nonce {
			t.Errorf("%+v", ack)
		}
		for _, m := range []*testMiner{a, b} { // a as well: it holds another range of the job
			if len(m.interrupts) != 1 || m.interrupts[0].JobID != jobID || m.interrupts[0].Reason != InterruptSolved {
				t.Errorf("%s: interrupts %+v", m.name, m.interrupts)
			}
			if len(m.held) != 2 || m.process().JobID != jobID+1 {
				t.Errorf("%s holds %+v, want two ranges of the next job", m.name, m.held)
			}
		}
		if err := b.yes(theirs, solution(t, theirs)); err != nil || b.lastAck().Result != Stale {
			t.Errorf("second solution: %v, %+v", err, b.lastAck())
		}
		blocks := r.cl.blocks()
		if len(blocks) != 1 || blocks[0].Nonce != nonce || blocks[0].Verdict != fsm.VerdictSuccess || blocks[0].Height != 1 {
			t.Fatalf("blocks %+v", blocks)
		}
		if p := a.process(); p.Work.Previous != blocks[0].Hash || r.cl.job().Height != 2 {
			t.Errorf("next job %+v does not follow %+v", p, blocks[0])
		}
	})
}

func TestSecondSolutionAtTheSameTimeIsNotSubmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) {
			easy(r)
			r.cl.latency = 10 * time.Millisecond
		})
		time.Sleep(time.Second)
		a, b := r.miner("a", 1), r.miner("b", 1)
		time.Sleep(time.Second)
		a.pump()
		b.pump()
		pa, pb := a.process(), b.process()
		for m, p := range map[*testMiner]Process{a: pa, b: pb} {
			answer := answerYes(p, solution(t, p))
			go func() {
				if err := m.s.Receive(t.Context(), answer); err != nil {
					t.Error(err)
				}
			}()
		}
		time.Sleep(time.Second)
		a.pump()
		b.pump()
		results := []Result{a.lastAck().Result, b.lastAck().Result}
		slices.Sort(results)
		if !slices.Equal(results, []Result{Committed, Stale}) {
			t.Errorf("results %v, want one committed and one stale", results)
		}
		submits := 0
		for _, step := range r.cl.history() {
			if _, ok := step.command.(fsm.Submitting); ok && step.outcome.Code == fsm.Done {
				submits++
			}
		}
		for _, what := range r.cl.traced() {
			if what == "Submit" {
				submits += 10
			}
		}
		if submits != 11 || len(r.cl.blocks()) != 1 {
			t.Errorf("%d submissions, %d intents, %d blocks, want one of each", submits/10, submits%10, len(r.cl.blocks()))
		}
	})
}

func TestWrongAnswerReasonIsOneBoundedLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.miner("a", 1)
		lie := honest(a.process())
		lie.Nonces.Last = 1<<64 - 1
		lie.Receipt = 0
		if err := a.s.Receive(t.Context(), lie); err != nil {
			t.Fatal(err)
		}
		a.pump()
		checkLine(t, a.lastAck().Message)
	})
}

// checkLine wants one line that says something.
func checkLine(t *testing.T, text string) {
	t.Helper()
	if len(text) < 10 || len(text) > fsm.MaxText || strings.ContainsAny(text, "\r\n") {
		t.Errorf("%q is not one clear line", text)
	}
}
