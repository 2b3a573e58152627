package raftnode

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

// fakeEntry is an entry on its way: it lands when the test says so.
type fakeEntry struct {
	index    uint64
	commands []string
	landed   chan struct{}
	err      error
}

func (e *fakeEntry) Error() error  { <-e.landed; return e.err }
func (e *fakeEntry) Index() uint64 { return e.index }
func (e *fakeEntry) Response() any {
	outcomes := make([]fsm.Outcome, len(e.commands))
	for i, name := range e.commands {
		outcomes[i] = fsm.Outcome{Code: fsm.Done, Detail: name}
	}
	return outcomes
}

// fakeLog takes the entries of a committer.
type fakeLog struct {
	mu      sync.Mutex
	entries []*fakeEntry
}

func (l *fakeLog) apply(term uint64, data []byte) (raft.ApplyFuture, error) {
	if term != 1 {
		return nil, ErrNotLeader
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &fakeEntry{index: uint64(len(l.entries) + 1), commands: strings.Split(string(data), ","), landed: make(chan struct{})}
	l.entries = append(l.entries, e)
	return e, nil
}

func (l *fakeLog) land(t *testing.T, i int, err error) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if i >= len(l.entries) {
		t.Fatalf("entry %d of %d", i, len(l.entries))
	}
	l.entries[i].err = err
	close(l.entries[i].landed)
}

func newFakeCommitter() (*committer, *fakeLog) {
	log := &fakeLog{}
	c := &committer{
		maxCommands: 10, maxBytes: 1 << 20, maxInFlight: 2,
		encode: func(commands []fsm.Command) ([]byte, error) {
			var names []string
			for _, command := range commands {
				names = append(names, command.(fsm.Strike).Miner)
			}
			return []byte(strings.Join(names, ",")), nil
		},
		apply:   log.apply,
		refused: func() error { return ErrNotLeader },
	}
	c.start()
	return c, log
}

func TestProposalsGatherWhileEntriesAreInFlightAndEachGetsItsOwnOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, log := newFakeCommitter()
		var work sync.WaitGroup
		for i := range 25 {
			work.Go(func() {
				a, b := fmt.Sprintf("%d-a", i), fmt.Sprintf("%d-b", i)
				outcomes, err := c.propose(t.Context(), 1, []fsm.Command{fsm.Strike{Miner: a}, fsm.Strike{Miner: b}})
				if err != nil || len(outcomes) != 2 || outcomes[0].Detail != a || outcomes[1].Detail != b {
					t.Errorf("caller %d: %v, %v", i, outcomes, err)
				}
			})
			synctest.Wait()
		}
		// Two entries of one caller each are in flight; 23 callers wait, five of which fit into an entry.
		if len(log.entries) != 2 {
			t.Fatalf("%d entries in flight", len(log.entries))
		}
		next := 0
		for landed := 0; landed < len(log.entries); landed++ {
			for _, name := range log.entries[landed].commands {
				if !strings.HasPrefix(name, fmt.Sprint(next/2, "-")) {
					t.Errorf("entry %d holds %v", landed, log.entries[landed].commands)
				}
				next++
			}
			log.land(t, landed, nil)
			synctest.Wait()
		}
		work.Wait()
		if len(log.entries) != 2+5 {
			t.Errorf("%d entries", len(log.entries))
		}
		c.stop(time.Second)
	})
}

func TestRefusedAndUnknownAreKeptApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, log := newFakeCommitter()
		for i, test := range []struct {
			fromRaft, want, not error
		}{
			{raft.ErrNotLeader, ErrNotLeader, ErrOutcomeUnknown},
			{raft.ErrEnqueueTimeout, ErrNotLeader, ErrOutcomeUnknown},
			{raft.ErrLeadershipTransferInProgress, ErrNotLeader, ErrOutcomeUnknown},
			{raft.ErrLeadershipLost, ErrOutcomeUnknown, ErrNotLeader},
			{raft.ErrRaftShutdown, ErrOutcomeUnknown, ErrNotLeader},
			{errors.New("disk full"), ErrOutcomeUnknown, ErrNotLeader},
		} {
			done := make(chan error, 1)
			go func() {
				_, err := c.propose(t.Context(), 1, []fsm.Command{fsm.Strike{}})
				done <- err
			}()
			synctest.Wait()
			log.land(t, i, test.fromRaft)
			if err := <-done; !errors.Is(err, test.want) || errors.Is(err, test.not) {
				t.Errorf("raft says %v: %v", test.fromRaft, err)
			}
		}
		if _, err := c.propose(t.Context(), 2, []fsm.Command{fsm.Strike{}}); !errors.Is(err, ErrNotLeader) {
			t.Errorf("proposal of another term: %v", err)
		}
		c.stop(time.Second)
	})
}

func TestPauseWaitsForWhatIsInFlightAndHoldsTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, log := newFakeCommitter()
		var work sync.WaitGroup
		propose := func() {
			work.Go(func() {
				if _, err := c.propose(t.Context(), 1, []fsm.Command{fsm.Strike{}}); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		propose()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.pause(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("pause with an entry in flight: %v", err)
		}
		paused := make(chan error, 1)
		go func() { paused <- c.pause(t.Context()) }() // a second pause counts
		propose()
		log.land(t, 0, nil)
		if err := <-paused; err != nil {
			t.Errorf("pause: %v", err)
		}
		c.resume()
		synctest.Wait()
		if len(log.entries) != 1 {
			t.Error("a paused committer sent an entry")
		}
		c.resume()
		synctest.Wait()
		log.land(t, 1, nil)
		work.Wait()
		c.stop(time.Second)
	})
}

func TestStopFreesAllCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, log := newFakeCommitter()
		errs := make(chan error, 3)
		for range 3 { // two in flight, one waits
			go func() {
				_, err := c.propose(t.Context(), 1, []fsm.Command{fsm.Strike{}})
				errs <- err
			}()
			synctest.Wait()
		}
		stopped := make(chan struct{})
		go func() {
			c.stop(time.Second)
			close(stopped)
		}()
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("the one that waited: %v", err)
		}
		log.land(t, 0, nil)
		log.land(t, 1, raft.ErrLeadershipLost)
		first, second := <-errs, <-errs // whichever caller runs first
		if first != nil {
			first, second = second, first
		}
		if first != nil || !errors.Is(second, ErrOutcomeUnknown) {
			t.Errorf("the two in flight: %v, %v", first, second)
		}
		<-stopped
		if _, err := c.propose(t.Context(), 1, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("afterwards: %v", err)
		}
	})
}

func TestCallerThatGoesAwayWithItsEntryInFlightKnowsNoOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, log := newFakeCommitter()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.propose(ctx, 1, []fsm.Command{fsm.Strike{}})
		if !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		log.land(t, 0, nil)
		c.stop(time.Second)
	})
}

func TestProposalsOfTwoTermsShareNoEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, log := newFakeCommitter()
		if err := c.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		for i, term := range []uint64{1, 2, 1} { // the log takes entries of term 1
			work.Go(func() {
				_, err := c.propose(t.Context(), term, []fsm.Command{fsm.Strike{Miner: fmt.Sprint(i)}})
				if refused := errors.Is(err, ErrNotLeader); refused != (term == 2) || err != nil && !refused {
					t.Errorf("proposal of term %d: %v", term, err)
				}
			})
			synctest.Wait()
		}
		c.resume()
		synctest.Wait()
		for i, want := range []string{"0", "2"} {
			if got := strings.Join(log.entries[i].commands, ","); got != want {
				t.Errorf("entry %d holds %s, want %s", i, got, want)
			}
			log.land(t, i, nil)
		}
		work.Wait()
		c.stop(time.Second)
	})
}

func TestStopFreesCallersOfEntriesThatRaftForgot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, log := newFakeCommitter()
		errs := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := c.propose(t.Context(), 1, []fsm.Command{fsm.Strike{}})
				errs <- err
			}()
			synctest.Wait()
		}
		began := time.Now()
		c.stop(time.Second)
		if took := time.Since(began); took != time.Second {
			t.Errorf("stopped after %v", took)
		}
		for range 2 {
			if err := <-errs; !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, ErrClosed) {
				t.Errorf("error %v", err)
			}
		}
		c.work.Wait()
		log.land(t, 0, nil) // only what waits inside Raft is left
		log.land(t, 1, nil)
	})
}
