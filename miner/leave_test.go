package miner

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm/pow"
)

// leaveHalfway makes a miner leave with a range of three chunks of which two are finished, and another that is not begun.
func leaveHalfway(t *testing.T) (*rig, *fakeConn) {
	t.Helper()
	g := newGate()
	r := startRig(t, func(c *Config) { c.Kernel = g.kernel(); c.Threads = 1 })
	c, _ := r.connect()
	p := halfRange()
	r.tell(c, p)
	r.tell(c, hardRange(100))
	g.pass(int(2*p.ChunkSize/1000) + 1)
	synctest.Wait() // in the next call, in the third chunk
	r.stop()
	synctest.Wait()
	close(g.tokens)
	return r, c
}

// halfRange is a range whose chunks are several pieces each.
func halfRange() Process {
	return Process{
		GrantID: 1, JobID: 7, Work: hardWork, ChunkSize: 66_000, Nonces: pow.Range{First: 1, Last: 198_000},
	}
}

func TestLeavingAnswersForTheFinishedChunksAtTheHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := leaveHalfway(t)
		start := time.Now()
		stream := r.dialer.context
		if stream.Err() != nil {
			t.Error("the stream's context has ended before the goodbye")
		}
		no := expect[AnswerNo](t, c)
		checkNo(t, no, halfRange(), pow.Range{First: 1, Last: 132_000})
		goodbye := expect[HeartbeatReply](t, c)
		if !goodbye.Leaving || goodbye.Wanted == nil || *goodbye.Wanted != 0 || len(goodbye.Held) != 1 || goodbye.Held[0] != 1 {
			t.Errorf("goodbye %+v, want leaving, no more ranges, and grant 1's answer held", goodbye)
		}
		r.tell(c, acknowledgement(no, ResultCommitted))
		c.fail(errGone) // the leader has nothing more to say
		if err := r.wait(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("it waited %s for nothing", took)
		}
		if stream.Err() == nil {
			t.Error("the stream's context lives on")
		}
		if s := r.miner.Stats(); s.Chunks != 2 || s.Held != 0 || s.Connected {
			t.Errorf("stats %+v, want 2 chunks and nothing held", s)
		}
	})
}

func TestLeavingWaitsTwoSecondsForAcknowledgements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := leaveHalfway(t)
		start := time.Now()
		if err := r.wait(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if took := time.Since(start); took != DefaultLeaveTimeout {
			t.Errorf("it waited %s, want %s", took, DefaultLeaveTimeout)
		}
		if !c.isOver() || !strings.Contains(r.log.String(), "left before the leader acknowledged every answer") {
			t.Errorf("stream over: %v, log:\n%s", c.isOver(), r.log)
		}
	})
}

func TestLeavingDoesNotWaitForALeaderThatKeepsTheStreamOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		c, _ := r.connect()
		start := time.Now()
		r.stop()
		if goodbye := expect[HeartbeatReply](t, c); !goodbye.Leaving {
			t.Errorf("%+v is no goodbye", goodbye)
		}
		r.tell(c, hardRange(1)) // too late
		if err := r.wait(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if took := time.Since(start); took != farewell {
			t.Errorf("it waited %s, want %s", took, farewell)
		}
	})
}

func TestLeavingIsShortOnceEverythingIsAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := leaveHalfway(t)
		no := expect[AnswerNo](t, c)
		expect[HeartbeatReply](t, c)
		time.Sleep(time.Second)
		acknowledged := time.Now()
		r.tell(c, acknowledgement(no, ResultCommitted))
		if err := r.wait(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if took := time.Since(acknowledged); took != farewell {
			t.Errorf("it waited another %s, want %s", took, farewell)
		}
	})
}

func TestLeavingBeforeTheFirstHeartbeatStillDeliversAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		c, _ := r.connect()
		r.tell(c, hardRange(1))
		no := expect[AnswerNo](t, c)
		c.fail(errGone)
		c = r.accept()
		synctest.Wait()
		r.stop()
		synctest.Wait()
		if first := r.heartbeat(c); first.Leaving || first.Wanted == nil || *first.Wanted != 0 {
			t.Errorf("first reply %+v, want 0 ranges wanted, and not leaving before the answers are sent", first)
		}
		if got := expect[AnswerNo](t, c); got != no {
			t.Errorf("delivered %+v, want %+v", got, no)
		}
		if goodbye := expect[HeartbeatReply](t, c); !goodbye.Leaving {
			t.Errorf("%+v is no goodbye", goodbye)
		}
		r.tell(c, acknowledgement(no, ResultCommitted))
		if err := r.wait(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestLeavingWithAFreshStreamAndNothingToSayHangsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, nil)
		c := r.accept()
		synctest.Wait()
		start := time.Now()
		r.end()
		if !c.isOver() || time.Since(start) > 0 {
			t.Errorf("stream over: %v after %s, want at once", c.isOver(), time.Since(start))
		}
	})
}
