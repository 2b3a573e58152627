package miner

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm/pow"
	"raftmine/miner/sha256d"
)

func TestFirstReplyAsksForTwoRangesAndSaysWhoItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		c := r.accept()
		synctest.Wait()
		expectNothing(t, c) // the leader speaks first
		reply := r.heartbeat(c)
		if reply.Wanted == nil || *reply.Wanted != DefaultRanges {
			t.Errorf("wanted %v, want %d", reply.Wanted, DefaultRanges)
		}
		if reply.Name != "m1" || reply.Threads != 2 || reply.Kernel == "" || reply.SoftwareVersion != "test" ||
			reply.Instance == [16]byte{} || len(reply.Held) != 0 || reply.HashRate != 0 || reply.Leaving {
			t.Errorf("first reply %+v", reply)
		}
		if again := r.heartbeat(c); again.Wanted != nil || again.Instance != reply.Instance {
			t.Errorf("second reply %+v, want no Wanted and the same instance", again)
		}
		r.end()
	})
}

func TestNextRangeIsHeldBeforeCurrentEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, func(c *Config) { c.Threads = 1 })
		c, reply := r.connect()
		for i := range *reply.Wanted {
			r.tell(c, hardRange(uint64(i+1)))
		}
		// From here on the leader says nothing: the second range is searched all the same.
		for i := range *reply.Wanted {
			p := hardRange(uint64(i + 1))
			checkNo(t, expect[AnswerNo](t, c), p, p.Nonces)
		}
		r.end()
	})
}

func TestMinerKeepsHashingWhileLeaderIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		r := startRig(t, func(c *Config) { c.Kernel = g.kernel() })
		c, _ := r.connect()
		r.tell(c, hardRange(1))
		r.tell(c, hardRange(2))
		g.pass(1)
		c.fail(errGone)
		r.answerDial(dialResult{err: errGone}) // nobody leads
		time.Sleep(time.Minute)
		synctest.Wait()

		close(g.tokens)
		synctest.Wait()
		if stats := r.miner.Stats(); stats.Hashes != 6000 || stats.Connected || stats.Held != 2 || stats.Unacknowledged != 2 {
			t.Errorf("without a leader: %+v, want 6000 hashes and 2 ranges answered", stats)
		}
		c, reply := r.connect()
		if !slices.Equal(reply.Held, []uint64{1, 2}) || reply.Wanted == nil {
			t.Errorf("to the next leader: %+v, want grants 1 and 2 held and Wanted set", reply)
		}
		got := []AnswerNo{expect[AnswerNo](t, c), expect[AnswerNo](t, c)}
		slices.SortFunc(got, func(a, b AnswerNo) int { return int(a.GrantID) - int(b.GrantID) })
		for i, answer := range got {
			p := hardRange(uint64(i + 1))
			checkNo(t, answer, p, p.Nonces)
		}
		r.end()
	})
}

func TestAnswersAreRedeliveredUntilAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, func(c *Config) { c.Threads = 1 }) // so that the answers come in order
		c, _ := r.connect()
		r.tell(c, hardRange(1))
		r.tell(c, Process{GrantID: 2, JobID: 8, Work: easyWork, ChunkSize: 1000, Nonces: pow.Range{First: 1, Last: 1 << 40}})
		no := expect[AnswerNo](t, c)
		yes := expect[AnswerYes](t, c)
		for range 3 {
			c.fail(errGone)
			c, _ = r.connect()
			if got := expect[AnswerNo](t, c); got != no {
				t.Errorf("delivered again %+v, want %+v", got, no)
			}
			if got := expect[AnswerYes](t, c); got != yes {
				t.Errorf("delivered again %+v, want %+v", got, yes)
			}
		}
		r.tell(c, acknowledgement(no, ResultDuplicate))
		c.fail(errGone)
		c, reply := r.connect()
		if got := expect[AnswerYes](t, c); got != yes || !slices.Equal(reply.Held, []uint64{2}) {
			t.Errorf("after the first acknowledgement %+v holding %v, want only %+v", got, reply.Held, yes)
		}
		r.tell(c, acknowledgement(yes, ResultCommitted))
		c.fail(errGone)
		c, reply = r.connect()
		synctest.Wait()
		expectNothing(t, c)
		if len(reply.Held) != 0 {
			t.Errorf("holds %v after all acknowledgements", reply.Held)
		}
		if s := r.miner.Stats(); s.Ranges != 1 || s.Chunks != 3 || s.Solutions != 1 || s.Lost != 0 {
			t.Errorf("stats %+v, want 1 range, 3 chunks and 1 solution", s)
		}
		r.end()
	})
}

func TestAcknowledgementOfAnotherAnswerForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		c, _ := r.connect()
		r.tell(c, hardRange(1))
		no := expect[AnswerNo](t, c)
		for _, wrong := range []Acknowledgement{
			{GrantID: 2, Nonce: no.Nonces.Last, Result: ResultCommitted},
			{GrantID: 1, Nonce: no.Nonces.Last - 1, Result: ResultCommitted},
			{GrantID: 1, Nonce: no.Nonces.Last, Solution: true, Result: ResultCommitted},
		} {
			r.tell(c, wrong)
		}
		if reply := r.heartbeat(c); !slices.Equal(reply.Held, []uint64{1}) {
			t.Errorf("holds %v, want the answer of grant 1 kept", reply.Held)
		}
		r.tell(c, acknowledgement(no, ResultCommitted))
		r.end()
	})
}

func TestAnswersThatDoNotCountAreLoggedOnceAndDropped(t *testing.T) {
	levels := map[string]string{ResultStale: "INFO", ResultReleased: "INFO", ResultWrong: "WARN", "new word": "WARN"}
	for result, level := range levels {
		t.Run(result, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startRig(t, nil)
				c, _ := r.connect()
				r.tell(c, hardRange(1))
				ack := acknowledgement(expect[AnswerNo](t, c), result)
				ack.Message = "because of this"
				r.tell(c, ack)
				r.tell(c, ack) // said twice, by mistake
				if reply := r.heartbeat(c); len(reply.Held) != 0 {
					t.Errorf("holds %v, want nothing", reply.Held)
				}
				log := r.log.String()
				if strings.Count(log, "because of this") != 1 || !strings.Contains(log, "level="+level+" msg=\"answer") {
					t.Errorf("log has not one line at %s:\n%s", level, log)
				}
				if s := r.miner.Stats(); s.Lost != 1 || s.Ranges != 0 {
					t.Errorf("stats %+v, want 1 lost", s)
				}
				r.end()
			})
		})
	}
}

func TestSolutionIsAnsweredAtOnceAndTheRestGoesOnUntilInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		r := startRig(t, func(c *Config) { c.Kernel = g.kernel(); c.Threads = 1 })
		c, _ := r.connect()
		endless := pow.Range{First: 1, Last: math.MaxUint64}
		r.tell(c, Process{GrantID: 1, JobID: 7, Work: easyWork, ChunkSize: 1000, Nonces: endless})
		r.tell(c, Process{GrantID: 2, JobID: 7, Work: hardWork, ChunkSize: 1000, Nonces: endless})
		g.pass(1)
		yes := expect[AnswerYes](t, c)
		if _, ok := easyWork.Verify(yes.Nonce); !ok || yes.GrantID != 1 || yes.JobID != 7 || yes.Timestamp != easyWork.Timestamp {
			t.Errorf("%+v is no solution of grant 1", yes)
		}
		g.pass(5) // in grant 2
		r.tell(c, Interrupt{JobID: 7, Reason: "solved"})
		if reply := r.heartbeat(c); !slices.Equal(reply.Held, []uint64{1}) {
			t.Errorf("after the interrupt it holds %v, want the solution alone", reply.Held)
		}
		close(g.tokens)
		synctest.Wait()
		if calls := g.tried(); len(calls) > 7 || len(calls) < 6 {
			t.Errorf("%d kernel calls, want 6 and at most the one it was in", len(calls))
		}
		r.tell(c, acknowledgement(yes, ResultCommitted))
		r.end()
	})
}

// The call was begun for a job that is over by the time it returns, with a solution or at the end of its range.
func TestResultOfACallDuringWhichTheJobChangedIsNotReported(t *testing.T) {
	for name, work := range map[string]pow.Work{"solution": easyWork, "range without one": hardWork} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate()
				r := startRig(t, func(c *Config) { c.Kernel = g.kernel(); c.Threads = 1 })
				c, _ := r.connect()
				old := Process{GrantID: 1, JobID: 7, Work: work, ChunkSize: 1000, Nonces: pow.Range{First: 1, Last: 1000}}
				r.tell(c, old)
				synctest.Wait() // in the range's only call
				r.tell(c, Interrupt{JobID: 7, Reason: "solved"})
				next := old
				next.GrantID, next.JobID, next.Work.Timestamp = 2, 8, old.Work.Timestamp+1
				r.tell(c, next)
				synctest.Wait()
				g.pass(1)
				synctest.Wait() // in the next job's call
				expectNothing(t, c)
				if held := r.heartbeat(c).Held; !slices.Equal(held, []uint64{2}) {
					t.Errorf("holds %v, want the next job's range alone", held)
				}
				g.pass(1)
				if work == hardWork {
					checkNo(t, expect[AnswerNo](t, c), next, next.Nonces)
				} else {
					checkYes(t, expect[AnswerYes](t, c), next)
				}
				r.end()
			})
		})
	}
}

// The search has settled the range, but the interrupt is read first.
func TestResultThatAnInterruptOvertakesIsNotReported(t *testing.T) {
	m, err := New(Config{Name: "m1", Dialer: newFakeDialer()})
	if err != nil {
		t.Fatal(err)
	}
	for _, work := range []pow.Work{easyWork, hardWork} {
		m.search = newSearch(1, m.config.Kernel)
		s := newSession(m)
		old := Process{GrantID: 1, JobID: 7, Work: work, ChunkSize: 1000, Nonces: pow.Range{First: 1, Last: 1000}}
		next := Process{GrantID: 2, JobID: 8, Work: hardWork, ChunkSize: 1000, Nonces: pow.Range{First: 1, Last: math.MaxUint64}}
		next.Work.Timestamp++
		steps := []func() error{
			func() error { return s.process(old) },
			func() error { <-s.search.settled; s.interrupt(Interrupt{JobID: 7}); return nil },
			func() error { return s.process(next) },
			s.collect,
		}
		for _, step := range steps {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		if len(s.held) != 1 || s.held[0].grant.process != next || s.held[0].answer != nil {
			t.Errorf("%d bits: holds %d ranges, want the next job's alone and no answer for it", work.Bits, len(s.held))
		}
		s.end()
	}
}

func TestInterruptDropsWhatItNamesAndNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		c, _ := r.connect()
		r.tell(c, hardRange(1))
		no := expect[AnswerNo](t, c)
		for id := uint64(2); id <= 6; id++ {
			p := hardRange(id)
			p.Nonces.Last = math.MaxUint64
			p.JobID = 7 + id/5 // the last two of another job
			r.tell(c, p)
		}
		r.tell(c, Interrupt{JobID: 7, GrantIDs: []uint64{3, 5}, Reason: "released"})
		if held := r.heartbeat(c).Held; !slices.Equal(held, []uint64{1, 2, 4, 6}) {
			t.Errorf("after grants 3 and 5: holds %v, want 1 2 4 6, whatever the job of 5", held)
		}
		r.tell(c, Interrupt{JobID: 7, Reason: "stale"})
		if held := r.heartbeat(c).Held; !slices.Equal(held, []uint64{1, 6}) {
			t.Errorf("after job 7: holds %v, want the answer of 1, and 6", held)
		}
		r.tell(c, Interrupt{JobID: 8, Reason: "stale"})
		r.tell(c, Interrupt{JobID: 99, Reason: "unheard of"})
		r.tell(c, acknowledgement(no, ResultStale))
		if held := r.heartbeat(c).Held; len(held) != 0 {
			t.Errorf("holds %v, want nothing", held)
		}
		synctest.Wait() // all threads are idle
		expectNothing(t, c)
		r.end()
	})
}

// TestInterruptEndsEveryThreadAfterTheCallItIsIn counts kernel calls, of threads that hash for real: none begins more than
// one after the interrupt was taken. That a call is shorter than a millisecond is for sha256d to show; together they keep an
// interrupt below five, which BenchmarkInterrupt measures. The clock of a busy machine is not asked here.
func TestInterruptEndsEveryThreadAfterTheCallItIsIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const threads = 2
		var calls atomic.Int64
		r := startRig(t, func(c *Config) {
			c.Threads = threads
			c.Kernel = sha256d.Kernel{Name: "counting", New: func() sha256d.Searcher {
				return countingSearcher{sha256d.Best().New(), &calls}
			}}
		})
		c, _ := r.connect()
		for job := uint64(1); job <= 20; job++ {
			p := hardRange(job)
			p.Nonces = pow.Range{First: 1, Last: 1 << 40}
			p.JobID = job
			started := calls.Load()
			r.tell(c, p)
			for calls.Load() < started+threads {
				r.heartbeat(c) // until it hashes
			}
			r.tell(c, Interrupt{JobID: job, Reason: "solved"})
			r.heartbeat(c) // the interrupt has been taken
			before := calls.Load()
			synctest.Wait() // every thread is idle
			if after := calls.Load(); after-before > threads {
				t.Fatalf("%d kernel calls begun after the interrupt, want at most one for each of %d threads", after-before, threads)
			}
		}
		r.end()
	})
}

// countingSearcher counts the calls that begin.
type countingSearcher struct {
	sha256d.Searcher
	calls *atomic.Int64
}

func (s countingSearcher) Search(job *sha256d.Job, nonces pow.Range, threshold uint32, hits []uint64) (int, uint64) {
	s.calls.Add(1)
	return s.Searcher.Search(job, nonces, threshold, hits)
}

func TestRangeThatIsSentAgainIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		c, _ := r.connect()
		r.tell(c, hardRange(1))
		no := expect[AnswerNo](t, c)
		r.tell(c, hardRange(1)) // answered, not acknowledged
		synctest.Wait()
		expectNothing(t, c)
		if s := r.miner.Stats(); s.Hashes != 3000 || s.Held != 1 {
			t.Errorf("stats %+v, want 3000 hashes and 1 range", s)
		}
		r.tell(c, acknowledgement(no, ResultCommitted))
		r.end()
	})
}

// Each answer is that of its own job, when the other one is known too.
func TestWorkOfTwoJobsIsHeldSideBySide(t *testing.T) {
	for name, work := range map[string]pow.Work{"solution": easyWork, "range without one": hardWork} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate()
				r := startRig(t, func(c *Config) { c.Kernel = g.kernel(); c.Threads = 1 })
				c, _ := r.connect()
				old := Process{GrantID: 1, JobID: 7, Work: work, ChunkSize: 1000, Nonces: pow.Range{First: 1, Last: 1000}}
				next := old
				next.GrantID, next.JobID, next.Work.Timestamp = 2, 8, old.Work.Timestamp+1
				r.tell(c, old)
				r.tell(c, next)
				synctest.Wait()
				close(g.tokens)
				for _, p := range []Process{old, next} {
					if work == hardWork {
						checkNo(t, expect[AnswerNo](t, c), p, p.Nonces)
						continue
					}
					checkYes(t, expect[AnswerYes](t, c), p)
				}
				r.end()
			})
		})
	}
}

func TestMessageThatMakesNoSenseEndsTheStreamWithOneLine(t *testing.T) {
	bad := func(change func(*Process)) Process {
		p := hardRange(1)
		change(&p)
		return p
	}
	tests := map[string]struct {
		message Message
		line    string
	}{
		"no grant id":      {bad(func(p *Process) { p.GrantID = 0 }), "without a grant id"},
		"empty range":      {bad(func(p *Process) { p.Nonces = pow.Range{First: 2, Last: 1} }), "nonce range 2-1 is empty"},
		"nonce 0":          {bad(func(p *Process) { p.Nonces.First = 0 }), "starts at 0"},
		"257 bits":         {bad(func(p *Process) { p.Work.Bits = 257 }), "257 leading zero bits"},
		"negative bits":    {bad(func(p *Process) { p.Work.Bits = -1 }), "-1 leading zero bits"},
		"chunk size 0":     {bad(func(p *Process) { p.ChunkSize = 0 }), "chunk size 0"},
		"a miner's answer": {AnswerNo{}, "miner.AnswerNo is not for a miner"},
		"nil":              {nil, "is not for a miner"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startRig(t, nil)
				c, _ := r.connect()
				r.tell(c, hardRange(9))
				no := expect[AnswerNo](t, c)
				r.tell(c, test.message)
				synctest.Wait()
				if !c.isOver() || strings.Count(r.log.String(), test.line) != 1 {
					t.Errorf("stream over: %v, log:\n%s", c.isOver(), r.log)
				}
				c, _ = r.connect() // it comes again, with what it had
				if got := expect[AnswerNo](t, c); got != no {
					t.Errorf("delivered again %+v, want %+v", got, no)
				}
				r.end()
			})
		})
	}
}

func TestLeaderThatSendsTooManyRangesLosesTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		r := startRig(t, func(c *Config) { c.Kernel = g.kernel() })
		c, _ := r.connect()
		for id := uint64(1); id <= maxHeld+1; id++ {
			r.tell(c, hardRange(id))
		}
		synctest.Wait()
		if !c.isOver() || r.miner.Stats().Held != maxHeld {
			t.Errorf("stream over: %v, holds %d, want %d", c.isOver(), r.miner.Stats().Held, maxHeld)
		}
		r.stop()
		synctest.Wait()
		close(g.tokens)
		if err := r.wait(); err != nil {
			t.Error(err)
		}
	})
}

// stuckConn takes nothing.
type stuckConn struct{ *fakeConn }

func (c stuckConn) Send(Message) error { <-c.over; return errGone }

func TestLeaderThatDoesNotReadIsGivenUpAndNotBufferedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		c := &fakeConn{toMiner: make(chan Message), over: make(chan struct{})}
		r.answerDial(dialResult{conn: stuckConn{c}})
		r.tell(c, HeartbeatRequest{})
		synctest.Wait() // its answer is with the goroutine that sends
		for range maxOutbox + 1 {
			r.tell(c, HeartbeatRequest{})
		}
		synctest.Wait()
		if !c.isOver() {
			t.Error("the stream is still open")
		}
		_, reply := r.connect()
		if reply.Wanted == nil {
			t.Error("the new stream does not begin with Wanted")
		}
		r.end()
	})
}

func TestSilentLeaderIsGivenUpAfterThreeHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		c, _ := r.connect()
		time.Sleep(14 * time.Second)
		r.heartbeat(c)
		r.tell(c, Interrupt{JobID: 1}) // other messages are no heartbeats
		time.Sleep(15*time.Second - time.Millisecond)
		synctest.Wait()
		if c.isOver() {
			t.Fatal("given up before 15 s of silence")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if !c.isOver() || !strings.Contains(r.log.String(), "no heartbeat from the leader for 15s") {
			t.Errorf("stream over after 15 s: %v, log:\n%s", c.isOver(), r.log)
		}
		_, reply := r.connect()
		if reply.Wanted == nil {
			t.Error("the new stream does not begin with Wanted")
		}
		r.end()
	})
}

func TestPausesBetweenDialsGrowAreJitteredAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		const dials = 30
		for range dials {
			r.answerDial(dialResult{err: errGone})
		}
		c, _ := r.connect()
		r.heartbeat(c)
		c.fail(errGone)
		r.answerDial(dialResult{err: errors.New("another reason")})
		synctest.Wait()

		r.dialer.mu.Lock()
		at := r.dialer.dials
		r.dialer.mu.Unlock()
		seen := map[time.Duration]bool{}
		for i := 1; i <= dials; i++ {
			pause := at[i].Sub(at[i-1])
			usual := min(firstPause<<min(i-1, 10), maxPause)
			if pause < usual/2 || pause > min(usual*3/2, maxPause) {
				t.Errorf("pause %d is %s, want half to one and a half times %s, at most %s", i, pause, usual, maxPause)
			}
			seen[pause] = true
		}
		if len(seen) < 10 {
			t.Errorf("only %d different pauses: %v", len(seen), seen)
		}
		if pause := at[dials+1].Sub(at[dials]); pause > firstPause*3/2 {
			t.Errorf("after a leader was found the first pause is %s, want about %s again", pause, firstPause)
		}
		// One line for the failing dials, one for the lost stream, one for the other reason.
		if lines := strings.Count(r.log.String(), "level=WARN"); lines != 3 {
			t.Errorf("%d warnings, want 3:\n%s", lines, r.log)
		}
		r.end()
	})
}

// TestLeaderThatOnlyGreetsIsNoLeaderFound: it speaks before it hears the name, and may not take that.
func TestLeaderThatOnlyGreetsIsNoLeaderFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		taken := errors.New("name taken")
		var began time.Time
		for range 10 {
			c, _ := r.connect()
			c.fail(taken)
			began = time.Now()
		}
		c, _ := r.connect()
		if pause := time.Since(began); pause < maxPause/2 {
			t.Errorf("dials again after %s, want the pause to grow to about %s", pause, maxPause)
		}
		log := r.log.String()
		if strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, `msg="stream to the leader ended" miner=m1 error="name taken"`) {
			t.Errorf("want one warning about the stream:\n%s", log)
		}
		r.heartbeat(c) // now the leader has heard the name
		c.fail(taken)
		r.connect()
		if lines := strings.Count(r.log.String(), "level=WARN"); lines != 2 {
			t.Errorf("%d warnings after the miner was taken and lost again, want 2", lines)
		}
		r.end()
	})
}

func TestRefusedMinerStops(t *testing.T) {
	refusal := errors.Join(errors.New("three wrong answers"), ErrRefused)
	t.Run("by dial", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := startRig(t, nil)
			r.answerDial(dialResult{err: refusal})
			if err := r.wait(); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "three wrong answers") {
				t.Errorf("Run = %v, want ErrRefused and the reason", err)
			}
			r.stop()
		})
	})
	t.Run("by stream", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := startRig(t, nil)
			c, _ := r.connect()
			p := hardRange(1)
			p.Nonces.Last = 1 << 40
			r.tell(c, p)
			c.fail(refusal)
			if err := r.wait(); !errors.Is(err, ErrRefused) {
				t.Errorf("Run = %v, want ErrRefused", err)
			}
			r.stop()
		})
	})
}

// A stream's end is often noticed first by a Send that only knows that it is over.
func TestReasonOfReceiveIsPreferredToThatOfSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		c := &fakeConn{toMiner: make(chan Message), over: make(chan struct{}), fromMiner: make(chan Message)}
		r.answerDial(dialResult{conn: lateConn{c}})
		r.tell(c, HeartbeatRequest{})
		if err := r.wait(); !errors.Is(err, ErrRefused) {
			t.Errorf("Run = %v, want what Receive said", err)
		}
		r.stop()
	})
}

// lateConn fails to send at once, and says why half a second later.
type lateConn struct{ *fakeConn }

func (c lateConn) Send(Message) error {
	time.AfterFunc(500*time.Millisecond, func() { c.fail(ErrRefused) })
	return errGone
}

func TestRunEndsWhileItLooksForTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := startRig(t, nil)
		synctest.Wait() // in Dial
		r.end()
		r = startRig(t, nil)
		r.answerDial(dialResult{err: errGone})
		synctest.Wait() // in the pause
		r.end()
		if took := time.Since(start); took > 0 {
			t.Errorf("leaving took %s, want no wait", took)
		}
	})
}

func TestMinerRunsOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m, err := New(Config{Name: "m", Dialer: newFakeDialer()})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Run(ctx); err != nil {
		t.Errorf("first Run = %v", err)
	}
	if err := m.Run(ctx); err == nil {
		t.Error("second Run = nil, want an error")
	}
}
