package audit

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// Options say what Replay checks beyond the history itself, and whom it tells. All of it is optional. What the functions
// return as an error ends the replay.
type Options struct {
	// Known are heads that were seen before: the history must begin with each of them. Records and Tree must be set;
	// Chain and State are compared when they are not zero.
	Known []Head
	// ClusterID is the cluster whose history it should be; empty: of any.
	ClusterID string
	// Live are what running servers said of their own state.
	Live []Live
	// EndsAt is asked once, after the last record, for the head that the source itself says it ends with.
	EndsAt func() (Head, bool)

	Visit       func(Event) error
	Searched    func(Searched) error    // each finished range
	Interrupted func(Interrupted) error // each grant that was not finished
}

// Live is the digest of a running server's state after the record with that index.
type Live struct {
	Index uint64
	State pow.Hash
}

// Replay applies the records to a new state, one after the other, and checks everything that package audit promises. A
// history that does not hold is no error: the report says where. It ends at the first record that is not the one that was
// chained, because nothing after it means anything; all other findings are collected. The error is the visitor's, or
// says that the source was told to stop, or was interrupted.
func Replay(records Records, o Options) (*Report, error) {
	a := newAuditor(o)
	for record, err := range records {
		if err != nil {
			if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrInterrupted) {
				return nil, err
			}
			a.broken(indexOf(err, a.state.Head().Index), KindSource, "%v", err)
			break
		}
		if !a.record(record) || a.err != nil {
			break
		}
	}
	a.end()
	return a.report, a.err
}

// StateAt returns the state as of the last record up to index, which the chain vouches for, and the head of the history
// there.
func StateAt(records Records, index uint64) (*fsm.State, Head, error) {
	state, t := fsm.New(), tree{}
	var d fsm.Decoder
	for record, err := range records {
		if err != nil {
			return nil, Head{}, err
		}
		if record.Index > index {
			if state.Head().Records == 0 {
				return nil, Head{}, fmt.Errorf("record %d: the history begins with record %d: %w", index, record.Index, ErrNotFound)
			}
			return state, headOf(state, &t), nil
		}
		if _, kind, err := apply(state, &d, record); err != nil {
			return nil, Head{}, Finding{record.Index, kind, err.Error()}
		}
		t.add(record.Index, record.Term, record.Data)
	}
	if head := state.Head(); head.Records == 0 || head.Index < index {
		return nil, Head{}, fmt.Errorf("record %d: the history ends with record %d: %w", index, head.Index, ErrNotFound)
	}
	return state, headOf(state, &t), nil
}

// headOf returns the head of a history that came to a state.
func headOf(state *fsm.State, t *tree) Head {
	head := state.Head()
	return Head{Records: head.Records, Index: head.Index, Term: head.Term, Chain: head.Hash, Tree: t.root(), State: state.Digest()}
}

// applied is a record with what it came to. The commands are valid until the next one.
type applied struct {
	entry  fsm.Entry
	result fsm.Result
}

// apply applies one record and compares the chain. After an error the state is of no use.
func apply(state *fsm.State, d *fsm.Decoder, r Record) (a applied, kind Kind, err error) {
	before := state.Head()
	if a.entry, err = d.Decode(r.Data); err == nil {
		a.result, err = state.ApplyEntry(r.Index, r.Term, r.Data, a.entry)
	}
	after := state.Head()
	if err != nil {
		after = before.Next(r.Index, r.Term, r.Data)
	}
	if after.Hash != r.Chain { // whatever else is wrong follows from this
		return a, KindChain, fmt.Errorf("its chain hash is %s, but it hashes to %s after record %d: it was changed, or "+
			"records before it were changed, removed or moved", r.Chain, after.Hash, before.Index)
	}
	return a, KindEntry, err
}

// auditor is one replay. Beside the state it keeps its own account, from commands and outcomes alone.
type auditor struct {
	o      Options
	report *Report
	err    error // of a visitor; the replay ends

	state   *fsm.State
	decoder fsm.Decoder
	tree    tree
	heads   []Head // known before and not reached yet, by Records
	live    []Live // not reached yet, by Index
	at      Place  // of the current command
	ended   bool   // by a record that cannot be believed

	leader        uint64          // who proposes in the current term
	office        uint64          // who took office last
	led           map[uint64]bool // who took office ever
	unled         uint64          // the last term of which it was found that nobody took office
	wasUp         map[uint64]bool // servers, by id
	lastUnixMilli uint64          // of the record before the current one

	job       *Job // the last one; nil: none yet
	work      pow.Work
	phase     fsm.Phase
	part      partition
	lost      bool    // the account and the state have parted; until the next job they are not compared again
	held      int     // grants that are not finished; each is in its miner's row
	spare     []*held // to be used again
	lastGrant uint64
	accepted  uint64 // height
	jobMoved  bool   // in the current record

	miners map[string]*minerRow
	recent *minerRow // the last one that was looked up: nearly always the next one too
}

// held is a grant that is not finished.
type held struct {
	id        uint64
	miner     *minerRow
	all, left pow.Range
	granted   Place
}

// minerRow is what is known of a miner. Rows stay, also when the state forgot the miner.
type minerRow struct {
	Miner
	strikes uint64 // as the state counts them: forgotten with the miner

	// Of the last job that the miner worked for, counted from 1; see auditor.working.
	job    uint64
	share  *Share
	number uint32 // in the partition
	grants []*held
}

func newAuditor(o Options) *auditor {
	a := &auditor{
		o:      o,
		report: &Report{},
		state:  fsm.New(),
		heads:  append([]Head(nil), o.Known...),
		live:   append([]Live(nil), o.Live...),
		led:    make(map[uint64]bool),
		wasUp:  make(map[uint64]bool),
		miners: make(map[string]*minerRow),
	}
	slices.SortFunc(a.live, func(x, y Live) int { return cmp.Compare(x.Index, y.Index) })
	slices.SortFunc(a.heads, func(x, y Head) int { return cmp.Compare(x.Records, y.Records) })
	for i := range a.report.Regrants {
		a.report.Regrants[i].Reason = reason(i + 1).String()
	}
	return a
}

func (a *auditor) visit(event Event) {
	if a.o.Visit != nil && a.err == nil {
		a.err = a.o.Visit(event)
	}
}

// broken notes what does not hold.
func (a *auditor) broken(index uint64, kind Kind, format string, args ...any) {
	finding := Finding{index, kind, fmt.Sprintf(format, args...)}
	a.report.find(finding)
	if kind == KindSource || kind == KindChain || kind == KindEntry {
		a.ended = true
	}
	a.visit(Found{finding})
}

// wrong is broken at the current record.
func (a *auditor) wrong(kind Kind, format string, args ...any) {
	a.broken(a.at.Index, kind, format, args...)
}

// record takes the next record and reports whether there is sense in going on.
func (a *auditor) record(r Record) bool {
	before := a.state.Head()
	applied, kind, err := apply(a.state, &a.decoder, r)
	if err != nil {
		a.report.Head = Head{Records: before.Records, Index: before.Index, Term: before.Term, Chain: before.Hash,
			Tree: a.tree.root()}
		a.broken(r.Index, kind, "%v", err)
		return false
	}
	entry := applied.entry
	a.at = Place{Record: uint64(a.tree.leaves), Index: r.Index, Term: r.Term, UnixMilli: entry.UnixMilli}
	a.tree.add(r.Index, r.Term, r.Data)
	a.count(r, entry)
	if r.Readable != nil {
		if said := Readable(r, entry, applied.result); !bytes.Equal(said, r.Readable) {
			a.wrong(KindReadable, "the export says %.200s, its data holds %.200s", r.Readable, said)
		}
	}
	if r.Term != before.Term {
		a.leader = entry.LeaderID
	} else if entry.LeaderID != a.leader {
		a.wrong(KindTerm, "server %d proposed it, but server %d leads in term %d", entry.LeaderID, a.leader, r.Term)
	}
	a.begin(&entry, &before)
	for i, command := range entry.Commands {
		a.at.Command = i
		a.command(&entry, command, &applied.result.Outcomes[i], &before)
	}
	for _, event := range applied.result.Events {
		if e, ok := event.(fsm.ServerChanged); ok {
			a.report.ServerChanges++
			if e.Server.Up {
				a.wasUp[e.Server.ID] = true
			}
			if !e.Server.Up && e.Reason != "added" {
				a.cell().Faults++
			}
			a.visit(ServerChanged{Server: e.Server, Reason: e.Reason, At: a.at})
		}
	}
	a.lastUnixMilli = entry.UnixMilli
	a.compare()
	for len(a.heads) > 0 && a.heads[0].Records <= uint64(a.tree.leaves) {
		a.compareHead(a.heads[0])
		a.heads = a.heads[1:]
	}
	for len(a.live) > 0 && a.live[0].Index <= r.Index {
		a.compareLive(a.live[0])
		a.live = a.live[1:]
	}
	return true
}

// begin wants a history to begin with OpenCluster, and a term with TakeOffice. One record may come before that: a leader that
// loses its office and wins again at once may log in the new term what it was about to log in the old one.
func (a *auditor) begin(entry *fsm.Entry, before *fsm.Head) {
	if before.Records == 0 && !opensCluster(entry) {
		a.unled = a.at.Term // that follows from this
		a.wrong(KindCluster, "the first record does not open the cluster: the one that did is missing")
	}
	if office := a.state.Office(); office.Term == a.at.Term || a.unled == a.at.Term ||
		a.at.Term != before.Term && a.led[entry.LeaderID] {
		return
	}
	a.unled = a.at.Term
	a.wrong(KindTerm, "server %d proposed it before it took office in term %d", entry.LeaderID, a.at.Term)
}

func opensCluster(entry *fsm.Entry) bool {
	if len(entry.Commands) == 0 {
		return false
	}
	c, ok := entry.Commands[0].(fsm.OpenCluster)
	return ok && c.ClusterID != ""
}

func (a *auditor) count(r Record, entry fsm.Entry) {
	report := a.report
	if a.at.Record == 0 {
		report.FirstIndex, report.FromUnixMilli = r.Index, entry.UnixMilli
	}
	report.Bytes += uint64(len(r.Data))
	report.Commands += uint64(len(entry.Commands))
	report.FromUnixMilli = min(report.FromUnixMilli, entry.UnixMilli)
	report.ToUnixMilli = max(report.ToUnixMilli, entry.UnixMilli)
	a.cell().Records++
}

func (a *auditor) cell() *Cell { return a.report.Strip.at(a.at.UnixMilli) }

// compareHead compares a head that was seen before with the history at that length.
func (a *auditor) compareHead(known Head) {
	root := a.tree.root()
	switch {
	case known.Tree != root:
		a.wrong(KindHead, "the first %d records have the tree %s, the known head says %s: one of them is another history",
			known.Records, root, known.Tree)
	case known.Chain != pow.Hash{} && known.Chain != a.state.Head().Hash:
		a.wrong(KindHead, "after %d records the chain is at %s, the known head says %s", known.Records, a.state.Head().Hash,
			known.Chain)
	case known.State != pow.Hash{} && known.State != a.state.Digest():
		a.wrong(KindHead, "after %d records the state digest is %s, the known head says %s", known.Records, a.state.Digest(),
			known.State)
	}
}

// compareLive compares a state that a server has with the one that its history comes to.
func (a *auditor) compareLive(live Live) {
	switch digest := a.state.Digest(); {
	case live.Index != a.at.Index:
		a.wrong(KindHead, "the server's state is as of record %d, which its history does not have", live.Index)
	case live.State != digest:
		a.wrong(KindHead, "the history comes to the state %s, the server's own is %s", digest, live.State)
	}
}

// compare compares the account with the state's own.
func (a *auditor) compare() {
	if a.job == nil || a.lost {
		return
	}
	counts, chunks := a.state.Counts(), &a.part.chunks
	if counts.Pending != chunks[untouched]+chunks[returned] || counts.Granted != chunks[granted] ||
		counts.Finished != chunks[finished] {
		a.lost = true
		a.wrong(KindPartition, "job %d: the state has %d chunks pending, %d granted and %d finished, the audit counts %d, %d and %d",
			a.job.ID, counts.Pending, counts.Granted, counts.Finished, chunks[untouched]+chunks[returned], chunks[granted],
			chunks[finished])
		return
	}
	if !a.jobMoved {
		return
	}
	a.jobMoved = false
	if job, _ := a.state.Job(); job.ID != a.job.ID || job.Phase != a.phase || job.Round != a.job.Rounds ||
		job.Timestamp != a.job.Timestamp {
		a.lost = true
		a.wrong(KindJob, "the state is at job %d, %s, round %d; the audit at job %d, %s, round %d",
			job.ID, job.Phase, job.Round, a.job.ID, a.phase, a.job.Rounds)
	}
	held := 0
	for grant := range a.state.Grants() {
		held++
		if own := a.holding(grant.Miner, grant.ID); own == nil || own.left != grant.Nonces {
			a.lost = true
			a.wrong(KindPartition, "the state has %s granted to miner %s as grant %d, the audit has not", grant.Nonces,
				grant.Miner, grant.ID)
		}
	}
	if held != a.held {
		a.lost = true
		a.wrong(KindPartition, "the state has %d grants, the audit %d", held, a.held)
	}
}

// end completes the report.
func (a *auditor) end() {
	report := a.report
	if head := a.state.Head(); !a.ended || report.Head == (Head{}) {
		report.Head = Head{Records: uint64(a.tree.leaves), Index: head.Index, Term: head.Term, Chain: head.Hash,
			Tree: a.tree.root()}
		if !a.ended {
			report.Head.State = a.state.Digest()
		}
	}
	if !a.ended {
		a.compareEnd()
		if err := a.state.Check(); err != nil {
			a.broken(report.Head.Index, KindEntry, "the state that it comes to cannot be: %v", err)
		}
	}
	for _, m := range sortedMiners(a.miners) {
		if m.Receipts.Unanswered() {
			a.broken(m.Receipts.Flagged.Index, KindWork, "miner %s: %s", m.Name, &m.Receipts)
		}
	}
	report.ClusterID = a.state.ClusterID()
	report.Office = a.state.Office()
	for _, server := range a.state.Servers() {
		report.Servers = append(report.Servers, Server{Server: server, WasUp: a.wasUp[server.ID]})
	}
	report.Miners = sortedMiners(a.miners)
	if a.job != nil && a.phase != fsm.PhaseClosed {
		a.job.Searched = a.part.below(0)
		report.OpenJob = a.job.told()
	}
}

// compareEnd compares the end with what is known of it.
func (a *auditor) compareEnd() {
	if a.tree.leaves == 0 {
		a.broken(0, KindSource, "the history is empty")
	}
	for _, known := range a.heads {
		a.broken(a.report.Head.Index, KindHead, "the history ends after %d records, the known head has %d: it was cut off",
			a.tree.leaves, known.Records)
	}
	for _, live := range a.live {
		a.broken(a.report.Head.Index, KindHead, "the history ends here, and the server's state is as of record %d", live.Index)
	}
	if a.o.EndsAt == nil {
		return
	}
	if end, ok := a.o.EndsAt(); ok && end != a.report.Head {
		a.broken(a.report.Head.Index, KindHead, "it says of its end: %s; it ends with: %s", end, a.report.Head)
	}
}

// String is one line.
func (h Head) String() string {
	return fmt.Sprintf("%d records, the last one %d of term %d, chain %s, tree %s, state %s", h.Records, h.Index, h.Term,
		h.Chain, h.Tree, h.State)
}

// indexed is an error of a source that knows which record it is about.
type indexed interface {
	error
	RecordIndex() uint64
}

func indexOf(err error, last uint64) uint64 {
	var known indexed
	if errors.As(err, &known) {
		return known.RecordIndex()
	}
	return last
}
