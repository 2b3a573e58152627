package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/audit"
)

type (
	auditView struct {
		Event       string           `json:"event"`
		Holds       bool             `json:"holds"`   // everything that was asked for was verified, and holds
		Verdict     string           `json:"verdict"` // holds, does_not_hold, or else not_verified: something could not be read
		Error       string           `json:"error,omitempty"`
		Findings    []findingView    `json:"findings"`
		FindingsAll uint64           `json:"findings_total"`
		Source      string           `json:"source"`
		Server      uint64           `json:"server,omitempty"`
		Live        *liveView        `json:"live,omitempty"`
		ClusterID   string           `json:"cluster_id"`
		Head        headView         `json:"head"`
		FirstIndex  uint64           `json:"first_index"`
		FromMS      uint64           `json:"from_unix_ms"`
		ToMS        uint64           `json:"to_unix_ms"`
		Commands    uint64           `json:"commands"`
		Bytes       uint64           `json:"bytes"`
		Terms       uint64           `json:"terms"`
		Takeovers   uint64           `json:"takeovers"`
		Stops       uint64           `json:"planned_stops"`
		Recoveries  uint64           `json:"recoveries"`
		Strikes     uint64           `json:"strikes"`
		Jobs        uint64           `json:"jobs"`
		Blocks      map[string]int   `json:"blocks"`
		Stale       uint64           `json:"jobs_closed_stale"`
		Rolls       uint64           `json:"rolls"`
		Ranges      uint64           `json:"ranges"`
		Nonces      uint64           `json:"nonces"`
		Regrants    []regrantCount   `json:"regrants"`
		Revoked     uint64           `json:"chunks_revoked"`
		Leader      uint64           `json:"leader"`
		Servers     []serverEndView  `json:"servers"`
		Miners      []minerAuditView `json:"miners"`
		OpenJob     *jobAuditView    `json:"open_job"`
		Others      []otherView      `json:"others"`
		Unread      []unreadHistory  `json:"unread"` // what could not be read, and therefore is not verified
		Recheck     *recheckResult   `json:"recheck,omitempty"`
		NotDone     string           `json:"recheck_not_done,omitempty"` // why there was none, although it was asked for
	}
	unreadHistory struct {
		Source string `json:"source"`
		Server uint64 `json:"server,omitempty"`
		Error  string `json:"error"`

		name string
	}
	liveView struct {
		AppliedIndex uint64 `json:"applied_index"`
		StateDigest  string `json:"state_digest"`
	}
	headView struct {
		Records uint64 `json:"records"`
		Index   uint64 `json:"index"`
		Term    uint64 `json:"term"`
		Chain   string `json:"chain"`
		Tree    string `json:"tree"`
		State   string `json:"state_digest"`
	}
	serverEndView struct {
		ID      uint64 `json:"id"`
		Address string `json:"address"`
		Up      bool   `json:"up"`
		Member  bool   `json:"member"`
		WasUp   *bool  `json:"was_up,omitempty"` // ever; nil: that is not known
		DataDir string `json:"data_dir"`
	}
	minerAuditView struct {
		Name           string           `json:"name"`
		Ranges         uint64           `json:"ranges"`
		Nonces         uint64           `json:"nonces"`
		Solutions      uint64           `json:"solutions"`
		Strikes        uint64           `json:"strikes"`
		*workShareView                  // nil: no range is left of which it could be said
		LogPValue      float64          `json:"log10_p_value"` // how likely an honest miner is this bad over all ranges
		Implausible    bool             `json:"implausible"`
		FlaggedIndex   uint64           `json:"flagged_index,omitempty"`
		FlaggedAfter   uint64           `json:"flagged_after_ranges,omitempty"`
		Impossible     uint64           `json:"ranges_impossible,omitempty"` // whose receipt says alone that they were not searched
		First          []impossibleView `json:"first_impossible,omitempty"`
		OthersPValue   *float64         `json:"log10_p_value_others,omitempty"` // as log10_p_value, of the other ranges
		Revoked        uint64           `json:"chunks_revoked,omitempty"`       // taken back from it, to be searched again
	}
	// workShareView estimates which share of the work was done, if it was the same in each range but the impossible ones.
	workShareView struct {
		WorkShare float64 `json:"work_share"`     // 1: all of it
		WorkLow   float64 `json:"work_share_low"` // 95 % bounds, rounded outwards; 0: too few ranges for one
		WorkHigh  float64 `json:"work_share_high"`
	}
	impossibleView struct {
		Index     uint64  `json:"index"` // of the record with the answer
		First     uint64  `json:"first"`
		Last      uint64  `json:"last"`
		LogPValue float64 `json:"log10_p_value"` // how likely one that is searched is this bad
	}
	otherView struct {
		Source   string        `json:"source"`
		Server   uint64        `json:"server,omitempty"`
		Live     *liveView     `json:"live,omitempty"`
		Holds    bool          `json:"holds"`
		Findings []findingView `json:"findings"`
		Head     headView      `json:"head"`
		Same     uint64        `json:"same_records"` // as the longest history
		Behind   uint64        `json:"records_behind"`
		Parts    bool          `json:"parts"`
		Compared bool          `json:"compared"` // false: it could not be

		name string
	}
)

func viewHead(h audit.Head) headView {
	return headView{h.Records, h.Index, h.Term, h.Chain.String(), h.Tree.String(), h.State.String()}
}

func viewLive(l *audit.Live) *liveView {
	if l == nil {
		return nil
	}
	return &liveView{l.Index, l.State.String()}
}

func viewFindings(r *audit.Report) []findingView {
	views := []findingView{}
	for _, f := range r.Findings {
		views = append(views, findingView{"finding", f.Index, string(f.Kind), f.What})
	}
	return views
}

func viewReport(a audited) auditView {
	r := a.report
	v := auditView{Event: "audit", Findings: viewFindings(r), FindingsAll: r.FindingCount, Source: a.path, Server: a.id, Live: viewLive(a.live),
		ClusterID: r.ClusterID, Head: viewHead(r.Head), FirstIndex: r.FirstIndex, FromMS: r.FromUnixMilli, ToMS: r.ToUnixMilli,
		Commands: r.Commands, Bytes: r.Bytes, Terms: r.Terms, Takeovers: r.Takeovers, Stops: r.Stops, Recoveries: r.Recoveries,
		Strikes: r.Strikes, Jobs: r.Jobs, Blocks: map[string]int{}, Stale: r.Stale, Rolls: r.Rolls, Ranges: r.Ranges,
		Nonces: r.Nonces, Regrants: regrantCounts(r.Regrants[:]), Revoked: r.Revoked, Leader: r.Office.ServerID,
		Servers: []serverEndView{}, Miners: []minerAuditView{}, Others: []otherView{}, Unread: []unreadHistory{}}
	for verdict := fsm.VerdictSuccess; verdict <= fsm.VerdictUnknown; verdict++ {
		v.Blocks[verdictName(verdict)] = int(r.Verdicts[verdict])
	}
	for _, s := range r.Servers {
		v.Servers = append(v.Servers, serverEndView{s.ID, s.Address, s.Up, s.Member, &s.WasUp, s.DataDir})
	}
	for _, m := range r.Miners {
		v.Miners = append(v.Miners, viewMiner(m))
	}
	if r.OpenJob != nil {
		job := viewJob(r.OpenJob)
		v.OpenJob = &job
	}
	return v
}

func viewMiner(m audit.Miner) minerAuditView {
	r := &m.Receipts
	v := minerAuditView{Name: m.Name, Ranges: r.Ranges, Nonces: r.Nonces, Solutions: m.Solutions, Strikes: m.Strikes,
		LogPValue: log10(r.LogPValue()), Implausible: r.Implausible(), FlaggedIndex: r.Flagged.Index, FlaggedAfter: r.FlaggedAfter,
		Impossible: r.Impossible, Revoked: r.Revoked}
	share, low, high, known := r.Share()
	if known || r.Ranges == 0 {
		v.workShareView = &workShareView{math.Round(share*1e4) / 1e4, math.Floor(low*1e4) / 1e4, math.Ceil(high*1e4) / 1e4}
	}
	for _, i := range r.FirstImpossible {
		v.First = append(v.First, impossibleView{i.Finished.Index, i.Nonces.First, i.Nonces.Last, log10(i.LogPValue)})
	}
	if known && r.Impossible > 0 {
		others := log10(r.Others.LogPValue())
		v.OthersPValue = &others
	}
	return v
}

// log10 makes a natural logarithm of a probability a decimal one, which JSON can hold.
func log10(natural float64) float64 { return max(natural/math.Ln10, -1e9) }

// printReport prints the summary, as JSON one object.
func printReport(out *printer, done auditOutcome) {
	view := viewReport(done.results[0])
	view.Recheck, view.NotDone = done.rechecked, done.notDone
	switch failure := done.failure(true); {
	case failure == nil:
		view.Holds, view.Verdict = true, "holds"
	case len(done.problems) > 0:
		view.Verdict, view.Error = "does_not_hold", failure.Error()
	default:
		view.Verdict, view.Error = "not_verified", failure.Error()
	}
	for _, u := range done.unread {
		view.Unread = append(view.Unread, unreadHistory{u.path, u.id, u.err.Error(), u.name})
	}
	longest := done.longest()
	for _, r := range done.results[1:] {
		other := otherView{Source: r.path, Server: r.id, Live: viewLive(r.live), Holds: r.report.Holds(), Findings: viewFindings(r.report),
			Head: viewHead(r.report.Head), Same: r.report.Head.Records, Compared: r.path == longest.path, name: r.name}
		for _, a := range done.agreements {
			if a.of.path == r.path {
				other.Compared = true
				other.Same, other.Parts = a.Same, a.Parts()
				other.Behind = a.with.report.Head.Records - r.report.Head.Records
			}
		}
		view.Others = append(view.Others, other)
	}
	var text strings.Builder
	view.write(&text, done.results[0].report.Strip)
	done.writeVerdict(&text)
	out.print(view, "%s", strings.TrimSuffix(text.String(), "\n"))
}

func (v auditView) write(w io.Writer, strip audit.Strip) {
	writeStrip(w, strip)
	line := func(title, format string, args ...any) {
		fmt.Fprintf(w, "%-10s%s\n", title, fmt.Sprintf(format, args...))
	}
	fmt.Fprintln(w)
	line("cluster", "%s", cmp.Or(v.ClusterID, "not opened"))
	line("history", "%d %s from index %d to %d, %d %s, %s, of %s", v.Head.Records, plural(v.Head.Records, "record"), v.FirstIndex,
		v.Head.Index, v.Commands, plural(v.Commands, "command"), bytesText(v.Bytes), span(v.FromMS, v.ToMS))
	last := fmt.Sprintf("server %d was the last one", v.Leader)
	if v.Leader == 0 {
		last = "nobody took office"
	}
	line("leaders", "%d %s, %d %s; %s", v.Terms, plural(v.Terms, "term"), v.Takeovers, plural(v.Takeovers, "takeover"), last)
	var servers []string
	for _, s := range v.Servers {
		servers = append(servers, fmt.Sprintf("%d %s", s.ID, s.state()))
	}
	line("servers", "at the end: %s", strings.Join(servers, ", "))
	blocks := []string{fmt.Sprintf("%d accepted", v.Blocks["success"])}
	for _, verdict := range []fsm.Verdict{fsm.VerdictWrong, fsm.VerdictStale, fsm.VerdictUnknown} {
		if name := verdictName(verdict); v.Blocks[name] > 0 {
			blocks = append(blocks, fmt.Sprintf("%d %s", v.Blocks[name], name))
		}
	}
	if v.Stale > 0 {
		blocks = append(blocks, fmt.Sprintf("%d %s given up because the block moved on", v.Stale, plural(v.Stale, "job")))
	}
	line("blocks", "%s", strings.Join(blocks, ", "))
	line("work", "%d finished %s of %s nonces; every receipt and every proof was hashed again", v.Ranges, plural(v.Ranges, "range"),
		count(v.Nonces))
	for _, r := range v.Regrants {
		line("", "%d %s (%d %s) granted again: %s", r.Ranges, plural(r.Ranges, "range"), r.Chunks, plural(r.Chunks, "chunk"), r.Reason)
	}
	for i, m := range v.Miners {
		title := ""
		if i == 0 {
			title = "miners"
		}
		line(title, "%s", m)
	}
	for i, o := range v.Others {
		title := ""
		if i == 0 {
			title = "others"
		}
		line(title, "%s", o)
	}
	for i, u := range v.Unread {
		title := ""
		if i == 0 {
			title = "unread"
		}
		line(title, "%s: %s", u.name, u.Error)
	}
	if r := v.Recheck; r != nil {
		line("recheck", "%d %s searched again (%s hashes, %.1f s, kernel %s): %d wrong, %d of ranges that were revoked", r.Ranges,
			plural(r.Ranges, "range"), count(r.Nonces), r.Seconds, r.Kernel, len(r.Wrong), r.Revoked)
		line("", "drawn by record %d: --recheck %v --at %d draws the same again", r.At, r.Fraction, r.At)
	} else if v.NotDone != "" {
		line("recheck", "not done: %s", v.NotDone)
	}
	line("chain", "%s", v.Head.Chain)
	line("tree", "%d:%s", v.Head.Records, v.Head.Tree)
	if v.Verdict != "does_not_hold" {
		same := ""
		if v.Live != nil {
			same = fmt.Sprintf(", as the running server's own after record %d", v.Live.AppliedIndex)
		}
		line("state", "%s%s", v.Head.State, same)
	}
}

// writeVerdict says what does not hold, here and nowhere else in the report.
func (d *auditOutcome) writeVerdict(w io.Writer) {
	unverified := d.unverified(false)
	switch {
	case len(d.problems) == 0 && unverified == "":
		fmt.Fprintf(w, "\neverything holds\n")
		return
	case len(d.problems) == 0:
		fmt.Fprintf(w, "\nNOT EVERYTHING IS VERIFIED: %s; what was read holds\n", unverified)
		return
	}
	fmt.Fprintf(w, "\nDOES NOT HOLD: %s\n", d.problems[0].full)
	if unverified != "" {
		fmt.Fprintf(w, "  and %s\n", unverified)
	}
	for i, p := range d.problems[1:] {
		if i == 10 {
			fmt.Fprintf(w, "  and more; -o json lists up to a hundred of each history\n")
			break
		}
		fmt.Fprintf(w, "  %s\n", p.full)
	}
}

// state is a word for people.
func (s serverEndView) state() string {
	switch {
	case s.Up:
		return "up"
	case !s.Member:
		return "removed"
	case s.WasUp == nil:
		return "not up"
	case !*s.WasUp:
		return "never up"
	}
	return "down"
}

// doubtful is the decimal logarithm of the probability below which a miner's statistics are told in full. One of a
// thousand honest miners is below it; what the audit objects to is far rarer, see package audit.
const doubtful = -3

// tellingShare is the share of the work that a miner's receipts must say at least, or else they are too few to say
// anything: of an idle miner's one range the receipt is as good as an honest one's every now and then.
const tellingShare = 0.1

// String is one row for people.
func (m minerAuditView) String() string {
	text := fmt.Sprintf("%s: %d %s of %s nonces, %d %s", m.Name, m.Ranges, plural(m.Ranges, "range"), count(m.Nonces), m.Solutions,
		plural(m.Solutions, "solution"))
	if m.Strikes > 0 {
		text += fmt.Sprintf(", %d %s", m.Strikes, plural(m.Strikes, "strike"))
	}
	which, p := "its receipts", m.LogPValue
	if m.Impossible > 0 {
		text += fmt.Sprintf("; %d %s cannot have been searched", m.Impossible, plural(m.Impossible, "range"))
		which = "its other receipts"
	}
	if m.OthersPValue != nil {
		p = *m.OthersPValue
	}
	switch {
	case m.Ranges == m.Impossible:
	case p < doubtful || m.Implausible && m.Impossible == 0:
		text += fmt.Sprintf("; %s say %.0f %% of the work (%.0f to %.0f %%) if it searched the same share of each range, an honest miner's are "+
			"this bad or worse with p = %s", which, 100*m.WorkShare, 100*m.WorkLow, 100*m.WorkHigh, probability(p))
	case m.workShareView == nil || m.WorkLow < tellingShare:
		text += fmt.Sprintf("; %s are too few to say what it searched (p = %s)", which, probability(p))
	default:
		text += fmt.Sprintf("; %s fit an honest miner's (p = %s), and say at least %.0f %% of the work (95 times of 100) if it searched the same share of each range",
			which, probability(p), math.Floor(100*min(m.WorkLow, 1)))
	}
	if m.Implausible {
		text += fmt.Sprintf(": IMPLAUSIBLE since record %d, after %d %s", m.FlaggedIndex, m.FlaggedAfter, plural(m.FlaggedAfter, "range"))
	}
	if m.Revoked > 0 {
		text += fmt.Sprintf("; a leader refused it and took back %d %s", m.Revoked, plural(m.Revoked, "chunk"))
	}
	return text
}

func probability(log10 float64) string {
	if log10 > -4 {
		return fmt.Sprintf("%.2g", math.Pow(10, log10))
	}
	return fmt.Sprintf("10^%.0f", log10)
}

// atRecord says where something is; nothing of what is about no record.
func atRecord(index uint64) string {
	if index == 0 {
		return ""
	}
	return fmt.Sprintf(" at record %d", index)
}

// String is one row for people.
func (o otherView) String() string {
	switch {
	case !o.Holds && len(o.Findings) > 0:
		return fmt.Sprintf("%s: DOES NOT HOLD%s", o.name, atRecord(o.Findings[0].Index))
	case !o.Compared:
		return fmt.Sprintf("%s: holds in itself, and could not be compared", o.name)
	case o.Parts:
		return fmt.Sprintf("%s: ANOTHER HISTORY after %d %s", o.name, o.Same, plural(o.Same, "record"))
	case o.Behind > 0:
		return fmt.Sprintf("%s: holds, the same history, %d %s behind the longest", o.name, o.Behind, plural(o.Behind, "record"))
	}
	text := fmt.Sprintf("%s: holds, the same %d %s, the same head", o.name, o.Same, plural(o.Same, "record"))
	if o.Live != nil {
		text += ", and its own state is the same"
	}
	return text
}

// writeStrip draws the timeline: one column is one stretch of time.
func writeStrip(w io.Writer, s audit.Strip) {
	if s.Used == 0 {
		return
	}
	var leader, blocks, faults strings.Builder
	last := uint64(0)
	for _, c := range s.Cells[:s.Used] {
		mark := byte('-')
		if c.Terms > 0 {
			last = c.Leader
			mark = digit(last)
		} else if last == 0 {
			mark = ' '
		}
		leader.WriteByte(mark)
		blocks.WriteByte(amount(c.Blocks))
		faults.WriteByte(amount(c.Faults))
	}
	from := time.UnixMilli(int64(s.From))
	each := time.Duration(min(s.Width, 1<<40)) * time.Millisecond
	fmt.Fprintf(w, "\ntimeline  from %s, %s a column\n", from.Format("2006-01-02 15:04:05"), each)
	fmt.Fprintf(w, "leader    |%s|  the server that took office\n", leader.String())
	fmt.Fprintf(w, "blocks    |%s|  accepted\n", blocks.String())
	fmt.Fprintf(w, "faults    |%s|  servers down, ranges taken back, strikes, refused blocks, recoveries\n", faults.String())
}

func amount(n uint64) byte {
	if n == 0 {
		return '.'
	}
	return digit(n)
}

func digit(n uint64) byte {
	if n > 9 {
		return '+'
	}
	return byte('0' + n)
}

func bytesText(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d bytes", n)
}
