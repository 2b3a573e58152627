package audit

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// turns are histories that together take every turn, each made once.
var turns = func() (made [6]func(testing.TB) *world) {
	for seed := range made {
		var once sync.Once
		var w *world
		made[seed] = func(t testing.TB) *world {
			once.Do(func() { w = history(t, uint64(seed), 8, 12) })
			return w
		}
	}
	return made
}()

func TestHonestHistoryHolds(t *testing.T) {
	for seed := range uint64(len(turns)) {
		w := turns[seed](t)
		events := map[string]int{}
		report := replay(t, w.records, Options{Visit: func(e Event) error {
			switch e := e.(type) {
			case TookOffice:
				events["terms"]++
			case Regranted:
				events["regrants"]++
			case JobEnded:
				events["jobs"]++
				if s := e.Job.Solution; s != nil && (!s.Nonces.Contains(s.Nonce) || e.Job.Below.Gaps != 0) {
					t.Errorf("job %d: %+v", e.Job.ID, e.Job)
				}
			}
			return nil
		}})
		if !report.Holds() {
			t.Fatalf("seed %d: %v", seed, report.Findings)
		}
		if report.Head.State != w.state.Digest() || report.Head.Chain != w.state.Head().Hash || report.Head.Records != uint64(len(w.records)) {
			t.Errorf("seed %d: it ends with %s", seed, report.Head)
		}
		settled := report.Verdicts[fsm.VerdictSuccess] + report.Verdicts[fsm.VerdictWrong] + report.Verdicts[fsm.VerdictStale] +
			report.Verdicts[fsm.VerdictUnknown]
		if settled != 12 || report.Verdicts[fsm.VerdictSuccess] != w.state.Accepted() || report.Terms != uint64(events["terms"]) ||
			report.Takeovers == 0 || events["regrants"] == 0 || report.Ranges == 0 {
			t.Errorf("seed %d: %+v", seed, report)
		}
		var nonces uint64
		for _, m := range report.Miners {
			nonces += m.Receipts.Nonces
		}
		if nonces != report.Nonces {
			t.Errorf("seed %d: miners did %d nonces of %d", seed, nonces, report.Nonces)
		}
	}
}

// TestEveryGrantIsToldToItsEnd: each is finished to its last nonce or interrupted, once, but for those of a job that is not
// over. So who searched what is told of the interrupted ones too, and each job counts them.
func TestEveryGrantIsToldToItsEnd(t *testing.T) {
	reasons := make(map[string]int)
	for seed, made := range turns {
		w := made(t)
		type grant struct {
			miner string
			last  uint64
		}
		open, state := make(map[uint64]grant), fsm.New()
		for _, r := range w.records {
			result, err := state.Apply(r.Index, r.Term, r.Data)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range result.Outcomes {
				if o.Code == fsm.Done && o.Grant.ID != 0 {
					open[o.Grant.ID] = grant{o.Grant.Miner, o.Grant.Nonces.Last}
				}
			}
		}
		ended := func(id uint64, g grant) {
			if open[id] != g {
				t.Errorf("seed %d: grant %d ends as %v, and was %v", seed, id, g, open[id])
			}
			delete(open, id)
		}
		told, counted := make(map[uint64]uint64), make(map[uint64]uint64)
		report := replay(t, w.records, Options{
			Searched: func(s Searched) error {
				if s.Nonces.Last == open[s.GrantID].last {
					ended(s.GrantID, grant{s.Miner, s.Nonces.Last})
				}
				return nil
			},
			Interrupted: func(i Interrupted) error {
				reasons[i.Reason]++
				ended(i.GrantID, grant{i.Miner, i.Nonces.Last})
				if i.Reason != InterruptedBySolution {
					told[i.JobID]++
				}
				return nil
			},
			Visit: func(e Event) error {
				if e, ok := e.(JobEnded); ok {
					counted[e.Job.ID] = e.Job.Interrupted
				}
				return nil
			},
		})
		if report.OpenJob != nil {
			counted[report.OpenJob.ID] = report.OpenJob.Interrupted
		}
		for id, n := range counted {
			if told[id] != n {
				t.Errorf("seed %d: job %d counts %d interrupted grants, %d are told", seed, id, n, told[id])
			}
		}
		for g := range state.Grants() { // of the job that is not over
			delete(open, g.ID)
		}
		if len(open) != 0 {
			t.Errorf("seed %d: never ended: %v", seed, open)
		}
	}
	for _, reason := range []string{InterruptedBySolution, InterruptedSolved, InterruptedClosed, fsm.ReleaseLeft.String(), fsm.ReleaseRefused.String()} {
		if reasons[reason] == 0 {
			t.Errorf("none was interrupted because of %q: %v", reason, reasons)
		}
	}
}

func TestHistoriesTakeEveryTurn(t *testing.T) {
	var sum Report
	for _, made := range turns {
		r := replay(t, made(t).records, Options{})
		sum.Rolls += r.Rolls
		sum.Stale += r.Stale
		sum.Revoked += r.Revoked
		for i := range r.Regrants {
			sum.Regrants[i].Ranges += r.Regrants[i].Ranges
		}
	}
	if sum.Rolls == 0 || sum.Stale == 0 || sum.Revoked == 0 || slices.ContainsFunc(sum.Regrants[:], func(r Regrant) bool { return r.Ranges == 0 }) {
		t.Errorf("the histories lack something: %+v", sum)
	}
}

// TestTamperedRecordIsNamed changes one thing in the middle of a history, everything else left as it is.
func TestTamperedRecordIsNamed(t *testing.T) {
	w := history(t, 1, 6, 6)
	n := len(w.records)
	for name, row := range map[string]struct {
		tamper func([]Record) []Record
		at     int // position of the record that must be named, in w.records
		kind   Kind
	}{
		"flipped byte": {func(r []Record) []Record {
			r[n/2].Data = slices.Clone(r[n/2].Data)
			r[n/2].Data[len(r[n/2].Data)/2] ^= 1
			return r
		}, n / 2, KindChain},
		"changed chain":        {func(r []Record) []Record { r[n/2].Chain[7] ^= 1; return r }, n / 2, KindChain},
		"changed index":        {func(r []Record) []Record { r[n/2].Index = r[n/2-1].Index; return r }, n/2 - 1, KindChain},
		"changed term":         {func(r []Record) []Record { r[n-1].Term++; return r }, n - 1, KindChain},
		"removed record":       {func(r []Record) []Record { return slices.Delete(r, n/2, n/2+1) }, n/2 + 1, KindChain},
		"reordered pair":       {func(r []Record) []Record { r[n/2], r[n/2+1] = r[n/2+1], r[n/2]; return r }, n/2 + 1, KindChain},
		"first record removed": {func(r []Record) []Record { return r[1:] }, 1, KindChain},
		"repeated record":      {func(r []Record) []Record { return slices.Insert(r, n/2, r[n/2-1]) }, n/2 - 1, KindChain},
	} {
		report := replay(t, row.tamper(slices.Clone(w.records)), Options{})
		if first, found := report.First(); !found || first.Index != w.records[row.at].Index || first.Kind != row.kind {
			t.Errorf("%s: found %v, want %s at %d", name, report.Findings, row.kind, w.records[row.at].Index)
		}
		if report.FindingCount != 1 {
			t.Errorf("%s: %d findings", name, report.FindingCount)
		}
	}
}

// Every byte of every record's data is covered.
func TestEveryFlippedByteIsFound(t *testing.T) {
	w := history(t, 2, 3, 1)
	w.records = w.records[:min(len(w.records), 12)]
	for i := range w.records {
		for at := range w.records[i].Data {
			records := slices.Clone(w.records)
			records[i].Data = slices.Clone(records[i].Data)
			records[i].Data[at] ^= 1 << (at % 8)
			if first, _ := replay(t, records, Options{}).First(); first.Index != records[i].Index || first.Kind != KindChain {
				t.Fatalf("byte %d of record %d: found %v", at, records[i].Index, first)
			}
		}
	}
}

// rechain makes the chain of a changed history whole again, as a forger would.
func rechain(records []Record) []Record {
	var head fsm.Head
	for i := range records {
		head = head.Next(records[i].Index, records[i].Term, records[i].Data)
		records[i].Chain = head.Hash
	}
	return records
}

func TestTruncationAndForgeryAreSeenAgainstAKnownHead(t *testing.T) {
	w := history(t, 3, 6, 6)
	head := replay(t, w.records, Options{}).Head
	short := w.records[:len(w.records)-3]
	older := replay(t, short, Options{}).Head
	for name, row := range map[string]struct {
		records []Record
		known   Head
		index   uint64 // 0: it holds
	}{
		"whole":                 {w.records, head, 0},
		"another chain":         {w.records, Head{Records: older.Records, Tree: older.Tree, Chain: head.Chain}, short[len(short)-1].Index},
		"another state":         {w.records, Head{Records: older.Records, Tree: older.Tree, State: head.State}, short[len(short)-1].Index},
		"grown":                 {w.records, older, 0},
		"only records and tree": {w.records, Head{Records: older.Records, Tree: older.Tree}, 0},
		"cut off":               {short, head, short[len(short)-1].Index},
		"forged": {rechain(func() []Record {
			r := slices.Clone(w.records)
			return slices.Delete(r, 1, 2)
		}()), Head{Records: older.Records, Tree: older.Tree}, w.records[len(short)].Index},
	} {
		first, found := replay(t, row.records, Options{Known: []Head{row.known}}).First()
		if found != (row.index != 0) || first.Index != row.index || found && first.Kind != KindHead {
			t.Errorf("%s: found %v, want index %d", name, first, row.index)
		}
	}
}

// TestReplacedReceiptIsNamedEvenWhenRechained: another nonce of the range is a valid receipt, but not a plausible one.
func TestReplacedReceiptIsNamedEvenWhenRechained(t *testing.T) {
	w := newWorld(t, 5)
	w.bits = 40
	m := w.miner("a", 1)
	w.open(1_000_000, 5_000)
	for range 30 {
		w.commit(w.grantCommand(m, 1))
		w.answer(m)
	}
	if r := replay(t, w.records, Options{}); !r.Holds() {
		t.Fatal(r.Findings)
	}
	for i := range w.records {
		entry, err := fsm.DecodeEntry(w.records[i].Data)
		if err != nil {
			t.Fatal(err)
		}
		c, ok := entry.Commands[0].(fsm.Finish)
		if !ok {
			continue
		}
		records := slices.Clone(w.records)
		c.Receipt = c.Nonces.First + (c.Receipt-c.Nonces.First+1)%c.Nonces.Len()
		work := w.current().Work()
		if pow.Excess(c.Nonces.Len(), work.Bits, work.Digest(c.Receipt)) < 40 {
			continue // one of 2^7: nearly as good a digest by chance
		}
		entry.Commands = []fsm.Command{c}
		if records[i].Data, err = fsm.EncodeEntry(entry); err != nil {
			t.Fatal(err)
		}
		if first, _ := replay(t, records, Options{}).First(); first.Index != records[i].Index || first.Kind != KindChain {
			t.Errorf("record %d: found %v", records[i].Index, first)
		}
		if first, _ := replay(t, rechain(records), Options{}).First(); first.Index != records[i].Index || first.Kind != KindWork {
			t.Errorf("record %d, chained anew: found %v", records[i].Index, first)
		}
	}
}

func TestTwoLeadersInOneTermAreFound(t *testing.T) {
	w := history(t, 4, 4, 2)
	w.leader++
	w.commit(fsm.Strike{Miner: "miner-0", Reason: "wrong"})
	if first, _ := replay(t, w.records, Options{}).First(); first.Index != w.index || first.Kind != KindTerm {
		t.Errorf("found %v, want %s at %d", first, KindTerm, w.index)
	}
}

func TestStateAtIsTheStateThen(t *testing.T) {
	w := newWorld(t, 6)
	w.miner("a", 1)
	heads := map[uint64]Head{}
	for range 200 {
		if w.current().ID == 0 || w.current().Phase == fsm.PhaseClosed {
			w.open(1_990, 20)
		}
		w.step()
		heads[w.index] = replay(t, w.records, Options{}).Head
	}
	for index, want := range heads {
		state, head, err := StateAt(recordsOf(w.records), index)
		if err != nil || state.Digest() != want.State || head != want {
			t.Fatalf("record %d: %s, want %s: %v", index, head, want, err)
		}
	}
	if _, _, err := StateAt(recordsOf(w.records), w.index+1); err == nil {
		t.Error("a record after the end was found")
	}
	if _, _, err := StateAt(recordsOf(w.records), 0); err == nil {
		t.Error("a record before the beginning was found")
	}
}

func TestStateOfARunningServerIsCompared(t *testing.T) {
	w := history(t, 5, 3, 1)
	half := len(w.records) / 2
	before, _, err := StateAt(recordsOf(w.records), w.records[half].Index)
	if err != nil {
		t.Fatal(err)
	}
	good := Live{Index: w.records[half].Index, State: before.Digest()}
	end := Live{Index: w.index, State: w.state.Digest()}
	if r := replay(t, w.records, Options{Live: []Live{end, good}}); !r.Holds() {
		t.Errorf("its own states: %v", r.Findings)
	}
	for says, live := range map[string]Live{
		"the server's own is":         {Index: good.Index, State: end.State},
		"which its history does not":  {Index: gapIn(t, w.records), State: good.State},
		"the history ends here, and ": {Index: w.index + 1, State: end.State},
	} {
		r := replay(t, w.records, Options{Live: []Live{live}})
		first, _ := r.First()
		if first.Kind != KindHead || !strings.Contains(first.What, says) {
			t.Errorf("%+v: %v, want %q", live, first, says)
		}
	}
}

// gapIn returns an index that no record has, between two that have.
func gapIn(t *testing.T, records []Record) uint64 {
	for i, r := range records[1:] {
		if r.Index > records[i].Index+1 {
			return r.Index - 1
		}
	}
	t.Fatal("no gap")
	return 0
}

func TestInterruptedSourceSaysNothingAboutTheHistory(t *testing.T) {
	w := history(t, 6, 3, 1)
	broken := func(yield func(Record, error) bool) {
		_ = yield(w.records[0], nil) && yield(Record{}, fmt.Errorf("server 2: %w", ErrInterrupted))
	}
	if report, err := Replay(broken, Options{}); !errors.Is(err, ErrInterrupted) || report != nil {
		t.Errorf("%v, %v", report, err)
	}
}
