package main

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
	"raftmine/fsm/pow"
	"raftmine/rpc"
	"raftmine/rpc/webservice"
)

func wantSaid(t *testing.T, said string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(said, part) {
			t.Errorf("said %q, without %q", said, part)
		}
	}
}

func TestSameSeedIsTheSameFaults(t *testing.T) {
	seen := make(map[string]int)
	for n := 1; n <= 300; n++ {
		f := planFault(5, n, 2, time.Second)
		if again := planFault(5, n, 2, time.Second); f != again {
			t.Fatalf("fault %d is %+v, then %+v", n, f, again)
		}
		seen[f.role+" "+f.kind]++
		seen[string(f.moment)]++
		if f.moment != anyMoment && (f.role != "leader" || f.kind == "stop") {
			t.Errorf("fault %d: %+v waits for a submission of its victim, which makes none", n, f)
		}
	}
	for _, role := range []string{"leader", "follower", "miner"} {
		for _, kind := range []string{"kill", "pause", "stop"} {
			if seen[role+" "+kind] == 0 {
				t.Errorf("no %s of a %s among 300 faults", kind, role)
			}
		}
	}
	if seen[string(unjudged)] == 0 || seen[string(judged)] == 0 {
		t.Errorf("no fault during a submission: %v", seen)
	}
	if planFault(5, 1, 2, time.Second) == planFault(6, 1, 2, time.Second) {
		t.Error("two seeds begin with the same fault")
	}
	for n := 1; n <= 100; n++ {
		if f := planFault(5, n, 0, time.Second); f.role == "miner" {
			t.Fatalf("fault %d hits a miner, and there is none", n)
		}
	}
}

func TestOutageIsTheTimeWithoutALeaderThatCommits(t *testing.T) {
	start := time.UnixMilli(1_000_000)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	type row struct{ sent, at, term int }
	for _, test := range []struct {
		name        string
		rows        []row
		from, until int
		want, end   int
	}{
		{"killed: from the fault to the next leader's first answer", []row{{90, 95, 1}, {600, 610, 2}, {611, 615, 2}}, 100, 2000, 510, 610},
		{"an answer of the old leader that was on its way does not end it", []row{{90, 95, 1}, {96, 102, 1}, {600, 610, 2}}, 100, 2000, 510, 610},
		{"paused for less than an election", []row{{90, 95, 1}, {97, 300, 1}, {302, 304, 1}}, 100, 2000, 204, 304},
		{"handed over some time after the fault", []row{{90, 95, 1}, {101, 103, 1}, {104, 150, 1}, {155, 230, 2}}, 100, 2000, 80, 230},
		{"a slow commit later is no outage", []row{{90, 95, 1}, {101, 103, 1}, {104, 600, 1}, {601, 603, 1}}, 100, 2000, 3, 103},
		{"a change of leader after the window", []row{{90, 95, 1}, {101, 103, 1}, {300, 400, 2}}, 100, 102, 3, 103},
		{"nothing was answered", []row{{90, 95, 1}}, 100, 2000, 0, 0},
	} {
		var trace []mark
		for _, r := range test.rows {
			trace = append(trace, mark{at(r.sent), at(r.at), uint64(r.term)})
		}
		longest, end := outage(trace, at(test.from), at(test.until))
		if longest != time.Duration(test.want)*time.Millisecond || test.want > 0 && !end.Equal(at(test.end)) {
			t.Errorf("%s: %v until %v, want %d ms until %v", test.name, longest, end, test.want, at(test.end))
		}
	}
}

// TestFaultOfAnotherIsNoTimeWithoutALeader: what the measuring client waited for its next answer then is a round trip.
func TestFaultOfAnotherIsNoTimeWithoutALeader(t *testing.T) {
	start := time.UnixMilli(1_000_000)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	stayed := []mark{{at(90), at(95), 1}, {at(101), at(136), 1}, {at(500), at(504), 1}}
	moved := []mark{{at(90), at(95), 1}, {at(101), at(136), 1}, {at(200), at(250), 2}}
	for _, row := range []struct {
		role     string
		trace    []mark
		next, no float64
		said     string
	}{
		{"miner", stayed, 36, 0, "the leader stayed, the next answer was acknowledged after 36 ms; healthy"},
		{"follower", stayed, 36, 0, "the leader stayed"},
		{"follower", moved, 0, 114, "114 ms without a granting leader"},
		{"leader", stayed, 0, 36, "36 ms without a granting leader"},
	} {
		s := survived{Role: row.role, Kind: "pause", from: at(100), returned: at(400), until: at(600)}
		s.measure(row.trace)
		if s.NextAnswerMS != row.next || s.NoLeaderMS != row.no || !strings.Contains(s.String(), row.said) {
			t.Errorf("%s: next answer %v, no leader %v, %q", row.role, s.NextAnswerMS, s.NoLeaderMS, s)
		}
	}
}

// TestDrillReportsOnlyWhatThereWas: no idle threads without miners, and the idle time of leader kills by itself.
func TestDrillReportsOnlyWhatThereWas(t *testing.T) {
	report := func(miners int) string {
		r := &drillReport{miners: miners, faults: []survived{
			{Role: "leader", Kind: "kill", Victim: "server-1", NoLeaderMS: 50, faultCounts: &faultCounts{IdleMS: 4, IdleWithWorkMS: 3}},
			{Role: "follower", Kind: "kill", Victim: "server-2", NextAnswerMS: 36, faultCounts: &faultCounts{IdleMS: 9, IdleWithWorkMS: 8}},
		}}
		r.summarize()
		var text strings.Builder
		r.print(&printer{w: &text})
		return strings.Join(strings.Fields(text.String()), " ")
	}
	wantSaid(t, report(2), "WITHOUT A GRANTING LEADER FAULTS P50 P99 MAX leader killed 1 50.0 ms",
		"next answer, where the leader stayed 1 36.0 ms", "idle though it held a range 2 3.0 ms 8.0 ms", "... when a leader was killed 1 3.0 ms 3.0 ms")
	if text := report(0); strings.Contains(text, "idle though") || strings.Contains(text, "search thread idle") || strings.Contains(text, "when a leader was killed") {
		t.Errorf("without miners: %s", text)
	}
}

func TestSpreadIsByNearestRank(t *testing.T) {
	values := make([]float64, 200)
	for i := range values {
		values[i] = float64(200 - i)
	}
	if got, want := spread("x", values), (drillSpread{"x", 200, 100, 198, 200}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := spread("x", []float64{7}), (drillSpread{"x", 1, 7, 7, 7}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := spread("x", nil); got != (drillSpread{What: "x"}) {
		t.Errorf("%+v of nothing", got)
	}
}

// testLog is a Raft log in memory.
type testLog struct {
	t     *testing.T
	store *raft.InmemStore
	index uint64
}

func newTestLog(t *testing.T) *testLog { return &testLog{t: t, store: raft.NewInmemStore()} }

func (l *testLog) add(unixMilli uint64, commands ...fsm.Command) {
	l.t.Helper()
	data, err := fsm.EncodeEntry(fsm.Entry{LeaderID: 1, UnixMilli: unixMilli, Version: "test", Commands: commands})
	if err != nil {
		l.t.Fatal(err)
	}
	l.index++
	if err := l.store.StoreLog(&raft.Log{Index: l.index, Term: 1, Type: raft.LogCommand, Data: data}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *testLog) replay() *history {
	l.t.Helper()
	h := newHistory()
	if err := h.replay(l.store, l.index); err != nil {
		l.t.Fatal(err)
	}
	return h
}

// jobOfTen is a job of ten chunks that nobody solves.
var jobOfTen = fsm.OpenJob{Height: 1, Bits: pow.MaxBits, Timestamp: 7, Nonces: pow.Range{First: 1, Last: 1000}, ChunkSize: 100}

func TestHistoryFindsWhatWasLostAndWhatWasDoneTwice(t *testing.T) {
	log := newTestLog(t)
	log.add(10, fsm.TakeOffice{ServerID: 1}, jobOfTen)
	log.add(20, fsm.GrantWork{JobID: 1, Miner: "a", RequestID: 1, Chunks: 3}, fsm.GrantWork{JobID: 1, Miner: "b", RequestID: 1, Chunks: 2})
	log.add(30, fsm.Finish{JobID: 1, GrantID: 1, Miner: "a", Timestamp: 7, Nonces: pow.Range{First: 1, Last: 100}, Receipt: 5})
	log.add(40, fsm.Release{Miner: "a", Reason: fsm.ReleaseSilent})
	log.add(50, fsm.GrantWork{JobID: 1, Miner: "b", RequestID: 2, Chunks: 4})
	log.add(60, fsm.Finish{JobID: 1, GrantID: 1, Miner: "a", Timestamp: 7, Nonces: pow.Range{First: 101, Last: 300}, Receipt: 200})
	h := log.replay()
	if len(h.broken) != 0 {
		t.Errorf("broken: %v", h.broken)
	}
	var sum historyEvent
	for _, e := range h.events {
		sum.regranted += e.regranted
		sum.twice += e.twice
		sum.grants = e.grants
	}
	if sum.regranted != 2 || sum.twice != 2 || sum.grants != 2 {
		t.Errorf("%d chunks granted again, %d answered for twice, %d grants at the end; want 2, 2 and 2", sum.regranted, sum.twice, sum.grants)
	}
	// The rest of grant 1 is finished by b, and a, who does not know it, answers once more.
	log.add(70, fsm.Finish{JobID: 1, GrantID: 3, Miner: "b", Timestamp: 7, Nonces: pow.Range{First: 101, Last: 300}, Receipt: 250})
	log.add(80, fsm.Finish{JobID: 1, GrantID: 1, Miner: "a", Timestamp: 7, Nonces: pow.Range{First: 101, Last: 200}, Receipt: 150})
	h = log.replay()
	if len(h.broken) != 0 {
		t.Errorf("broken: %v", h.broken)
	}
	kept := acked{client: "a", grant: 1, job: 1, timestamp: 7, nonces: pow.Range{First: 1, Last: 100}, receipt: 5}
	released := acked{client: "a", grant: 1, job: 1, timestamp: 7, nonces: pow.Range{First: 101, Last: 300}, receipt: 200}
	otherRound := kept
	otherRound.timestamp = 8
	otherReceipt := kept
	otherReceipt.receipt = 6
	solution := kept
	solution.solution = true
	needless := acked{client: "a", grant: 1, job: 1, timestamp: 7, nonces: pow.Range{First: 101, Last: 200}, receipt: 150}
	answers := []acked{kept, needless, released, otherRound, otherReceipt, solution}
	if lost := h.lost(answers); !slices.Equal(lost, answers[2:]) {
		t.Errorf("lost are %v, want all but the first two of %v", lost, answers)
	}
}

// TestHistoryFindsABrokenPartition feeds outcomes that the state machine never gives: the judge must not lean on it.
func TestHistoryFindsABrokenPartition(t *testing.T) {
	grant := func(id uint64, first, last uint64) (fsm.Command, fsm.Outcome) {
		return fsm.GrantWork{}, fsm.Outcome{Code: fsm.Done, Grant: fsm.Grant{ID: id, JobID: 1, Miner: "a", Nonces: pow.Range{First: first, Last: last}}}
	}
	finish := func(id uint64, first, last uint64) (fsm.Command, fsm.Outcome) {
		return fsm.Finish{JobID: 1, GrantID: id, Timestamp: 7, Nonces: pow.Range{First: first, Last: last}}, fsm.Outcome{Code: fsm.Done}
	}
	type step func() (fsm.Command, fsm.Outcome)
	granted := func(id, first, last uint64) step {
		return func() (fsm.Command, fsm.Outcome) { return grant(id, first, last) }
	}
	finished := func(id, first, last uint64) step {
		return func() (fsm.Command, fsm.Outcome) { return finish(id, first, last) }
	}
	repeated := func(id, first, last, timestamp uint64) step {
		return func() (fsm.Command, fsm.Outcome) {
			return fsm.Finish{JobID: 1, GrantID: id, Timestamp: timestamp, Nonces: pow.Range{First: first, Last: last}}, fsm.Outcome{Code: fsm.Duplicate}
		}
	}
	other := func(c fsm.Command) step {
		return func() (fsm.Command, fsm.Outcome) { return c, fsm.Outcome{Code: fsm.Done} }
	}
	for _, row := range []struct {
		name  string
		steps []step
		want  string
	}{
		{"right", []step{granted(1, 1, 200), finished(1, 1, 100), finished(1, 101, 200), granted(2, 201, 300)}, ""},
		{"granted to two", []step{granted(1, 1, 200), granted(2, 101, 300)}, "101-300 was granted as 2 while it was grant 1"},
		{"granted after it was finished", []step{granted(1, 1, 200), finished(1, 1, 200), granted(2, 101, 300)}, "1 chunks of it were finished"},
		{"finished twice", []step{granted(1, 1, 200), finished(1, 1, 100), finished(1, 1, 100)}, "did not hold 1 chunks"},
		{"finished by another", []step{granted(1, 1, 200), finished(2, 1, 100)}, "did not hold 1 chunks"},
		{"called a duplicate, and half of it is nobody's", []step{granted(1, 1, 200), finished(1, 1, 100), repeated(1, 1, 200, 7)}, "1 chunks of it were not"},
		{"called a duplicate in another round", []step{granted(1, 1, 200), finished(1, 1, 200), repeated(1, 1, 200, 6)}, "timestamp 6 of job 1, which is over"},
		{"rolled too early", []step{granted(1, 1, 200), other(fsm.Roll{JobID: 1, Round: 1, Timestamp: 8})}, "before chunk 0 is finished"},
		{"an honest miner is not believed", []step{granted(1, 1, 200), finished(1, 1, 200),
			other(fsm.Revoke{JobID: 1, Miner: "a", Ranges: []pow.Range{{First: 1, Last: 200}}, Reason: "lazy"})}, "honest: lazy"},
		{"a proof that is none", []step{granted(1, 1, 200), other(fsm.Solve{JobID: 1, GrantID: 1, Timestamp: 7, Nonce: 5})}, "nonce 5 is no proof"},
	} {
		h := newHistory()
		h.follow(1, jobOfTen, fsm.Outcome{Code: fsm.Done, JobID: 1}, &historyEvent{})
		for i, next := range row.steps {
			command, outcome := next()
			h.follow(uint64(i)+2, command, outcome, &historyEvent{})
		}
		if said := strings.Join(h.broken, "; "); row.want == "" && said != "" || !strings.Contains(said, row.want) {
			t.Errorf("%s: said %q, want %q", row.name, said, row.want)
		}
	}
}

func TestHeightsAcceptedTwiceAreFound(t *testing.T) {
	blocks := []fsm.Block{{Height: 1, Verdict: fsm.VerdictSuccess}, {Height: 2, Verdict: fsm.VerdictWrong}, {Height: 2, Verdict: fsm.VerdictSuccess}}
	if twice := acceptedTwice(blocks); len(twice) != 0 {
		t.Errorf("heights %v, want none: a block that was refused does not count", twice)
	}
	blocks = append(blocks, blocks[2], blocks[2])
	if twice := acceptedTwice(blocks); !slices.Equal(twice, []uint64{2}) {
		t.Errorf("heights %v, want 2", twice)
	}
}

func TestChainOfTheWebServiceIsComparedBlockByBlock(t *testing.T) {
	chain := []pow.Hash{{1}, {2}}
	block := func(height uint64, hash byte, verdict fsm.Verdict) rpc.Block {
		return rpc.Block{Height: height, Hash: pow.Hash{hash}, Verdict: verdict}
	}
	one, two := block(1, 1, fsm.VerdictSuccess), block(2, 2, fsm.VerdictSuccess)
	for _, row := range []struct {
		blocks []rpc.Block
		want   string
	}{
		{[]rpc.Block{one, two}, ""},
		{[]rpc.Block{one, block(2, 9, fsm.VerdictWrong), two}, ""},
		{[]rpc.Block{one}, "the web service accepted block 2"},
		{[]rpc.Block{one, block(2, 2, fsm.VerdictUnknown)}, "the web service accepted block 2"},
		{[]rpc.Block{two, one}, "block 1 is"},
		{[]rpc.Block{one, block(3, 2, fsm.VerdictSuccess)}, "at height 3"},
		{[]rpc.Block{one, two, two}, "it lists block 2, the web service has 2"},
	} {
		if said := differs(chain, row.blocks); row.want == "" && said != "" || !strings.Contains(said, row.want) {
			t.Errorf("%v: said %q, want %q", row.blocks, said, row.want)
		}
	}
}

// TestDrillServiceHoldsASubmissionAndCounts holds a submission at both moments, and submits the same solution again.
func TestDrillServiceHoldsASubmissionAndCounts(t *testing.T) {
	s, err := startDrillService(filepath.Join(t.TempDir(), "chain"), 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	nonce := 1
	for pow.SumText(webservice.GenesisHash(), fmt.Sprint(nonce), "5").LeadingZeroBits() < 4 {
		nonce++
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	submit := func() string {
		response, err := client.Get(fmt.Sprintf("%s/submit.php?timestamp=5&nonce=%d", s.address, nonce))
		if err != nil {
			return err.Error()
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return string(body)
	}
	for _, step := range []struct {
		at      moment
		counted int // while it is held
		verdict string
	}{{unjudged, 0, "success"}, {judged, 2, "wrong"}} {
		reached, release := s.await(step.at)
		answered := make(chan string, 1)
		go func() { answered <- submit() }()
		<-reached
		if n := len(s.report()); n != step.counted {
			t.Errorf("%s: %d submissions are judged while it is held, want %d", step.at, n, step.counted)
		}
		release()
		if answer := <-answered; !strings.Contains(answer, step.verdict) {
			t.Errorf("%s: answered %s, want %s", step.at, answer, step.verdict)
		}
	}
	all := s.report()
	if chain := chainOf(all); len(chain) != 1 {
		t.Errorf("the chain is %v, want one block", chain)
	}
	if n := repeatedIn(all, time.Time{}, time.Now().Add(time.Hour)); n != 1 {
		t.Errorf("%d repeated submissions, want 1", n)
	}
	if n := repeatedIn(all, time.Time{}, all[1].at); n != 0 {
		t.Errorf("%d repeated submissions before the second one", n)
	}
}

func TestIdlePeriodsCountWithinAFault(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	p := idlePeriod{end: at(20), idle: 10 * time.Second}
	for _, row := range []struct{ from, until, want int }{{0, 5, 0}, {0, 15, 5}, {12, 14, 2}, {12, 30, 8}, {20, 30, 0}, {0, 30, 10}} {
		if got := p.within(at(row.from), at(row.until)); got != time.Duration(row.want)*time.Second {
			t.Errorf("%v within %d to %d, want %d s", got, row.from, row.until, row.want)
		}
	}
	line := `time=2026-01-02T03:04:05.678+01:00 level=DEBUG msg="search thread was idle" thread=1 idle=1.5s idle_with_work=12.5µs`
	if match := idleLine.FindStringSubmatch(line); len(match) != 5 || match[2] != "1" || match[3] != "1.5s" || match[4] != "12.5µs" {
		t.Errorf("a miner's line is read as %q", match)
	}
}
