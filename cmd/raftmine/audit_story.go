package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/audit"
)

// A story without --all prints this many lines from the beginning and from the end. Everything is in the JSON output.
const (
	storyHead = 24
	storyTail = 24
)

// story prints what happened, as the replay meets it.
type story struct {
	out     *printer
	all     bool
	printed int
	tail    []string // the last lines that were not printed
	left    uint64   // how many that are
}

func newStory(out *printer, all bool) *story { return &story{out: out, all: all || out.json} }

func (s *story) print(object any, line string) {
	if s.all || s.printed < storyHead {
		s.printed++
		s.out.print(object, "%s", line)
		return
	}
	s.left++
	s.tail = append(s.tail, line)
	if len(s.tail) > storyTail {
		s.tail = slices.Delete(s.tail, 0, len(s.tail)-storyTail)
	}
}

// end prints what was kept back.
func (s *story) end() {
	if hidden := s.left - uint64(len(s.tail)); hidden > 0 {
		s.out.print(nil, "    ... %d more (--all prints them)", hidden)
	}
	for _, line := range s.tail {
		s.out.print(nil, "%s", line)
	}
	s.tail, s.left = nil, 0
}

func (s *story) event(event audit.Event) error {
	if object, line := viewAuditEvent(event); object != nil {
		s.print(object, line)
	}
	return nil
}

func (s *story) searched(r audit.Searched) error {
	view := rangeView{eventAt: at("range", r.Finished), Job: r.JobID, Round: r.Round, GrantID: r.GrantID, Miner: r.Miner,
		First: r.Nonces.First, Last: r.Nonces.Last, Receipt: r.Receipt, Digest: r.Digest.String(), Excess: r.Excess,
		GrantedIndex: r.Granted.Index, GrantedAt: r.Granted.UnixMilli}
	s.print(view, fmt.Sprintf("%s  range    %s of job %d searched by %s in %s, receipt %d", view.clock(), r.Nonces, r.JobID,
		r.Miner, span(r.Granted.UnixMilli, r.Finished.UnixMilli), r.Receipt))
	return nil
}

func (s *story) interrupted(r audit.Interrupted) error {
	view := interruptedView{eventAt: at("range_interrupted", r.At), Job: r.JobID, Round: r.Round, GrantID: r.GrantID, Miner: r.Miner,
		First: r.Nonces.First, Last: r.Nonces.Last, Reason: r.Reason, GrantedIndex: r.Granted.Index, GrantedAt: r.Granted.UnixMilli}
	took := span(r.Granted.UnixMilli, r.At.UnixMilli)
	what := fmt.Sprintf("granted to %s, interrupted after %s (%s)", r.Miner, took, r.Reason)
	if r.Reason == audit.InterruptedBySolution {
		what = fmt.Sprintf("searched by %s in %s up to a solution", r.Miner, took)
	}
	s.print(view, fmt.Sprintf("%s  range    %s of job %d %s", view.clock(), r.Nonces, r.JobID, what))
	return nil
}

// eventAt is what all events of an audit share.
type eventAt struct {
	Event  string `json:"event"`
	Index  uint64 `json:"index"`
	Term   uint64 `json:"term"`
	UnixMS uint64 `json:"unix_ms"`
}

func at(event string, p audit.Place) eventAt {
	return eventAt{Event: event, Index: p.Index, Term: p.Term, UnixMS: p.UnixMilli}
}

func (e eventAt) clock() string { return clock(time.UnixMilli(int64(e.UnixMS))) }

type (
	auditStart struct {
		Event  string `json:"event"`
		Source string `json:"source"`
		Server uint64 `json:"server,omitempty"`
	}
	// auditStop: the history could not be read to its end. Another one is told from its beginning, when there is one.
	auditStop struct {
		Event  string `json:"event"`
		Source string `json:"source"`
		Server uint64 `json:"server,omitempty"`
		Error  string `json:"error"`
	}
	exported struct {
		Event   string `json:"event"`
		File    string `json:"file"`
		Records uint64 `json:"records"`
	}
	termView struct {
		eventAt
		Leader   uint64 `json:"leader"`
		Before   uint64 `json:"leader_before"`
		SilentMS uint64 `json:"silent_ms"`
	}
	serverAuditView struct {
		eventAt
		Server uint64 `json:"server"`
		Up     bool   `json:"up"`
		Member bool   `json:"member"`
		Reason string `json:"reason"`
	}
	clusterAuditView struct {
		eventAt
		What string `json:"what"`
	}
	regrantView struct {
		eventAt
		Job    uint64 `json:"job"`
		First  uint64 `json:"first"`
		Last   uint64 `json:"last"`
		From   string `json:"from"`
		To     string `json:"to"`
		Reason string `json:"reason"`
	}
	revokeView struct {
		eventAt
		Job    uint64        `json:"job"`
		Miner  string        `json:"miner"`
		Chunks uint64        `json:"chunks"`
		Reason string        `json:"reason"`
		Ranges []revokedView `json:"ranges"`
	}
	revokedView struct {
		First uint64 `json:"first"`
		Last  uint64 `json:"last"`
	}
	strikeView struct {
		eventAt
		Miner  string `json:"miner"`
		Reason string `json:"reason"`
	}
	findingView struct {
		Event string `json:"event"`
		Index uint64 `json:"index"`
		Kind  string `json:"kind"`
		What  string `json:"what"`
	}
	rangeView struct {
		eventAt
		Job          uint64  `json:"job"`
		Round        uint32  `json:"round"`
		GrantID      uint64  `json:"grant_id"`
		Miner        string  `json:"miner"`
		First        uint64  `json:"first"`
		Last         uint64  `json:"last"`
		Receipt      uint64  `json:"receipt"`
		Digest       string  `json:"digest"`
		Excess       float64 `json:"excess"`
		GrantedIndex uint64  `json:"granted_index"`
		GrantedAt    uint64  `json:"granted_unix_ms"`
	}
	interruptedView struct {
		eventAt
		Job          uint64 `json:"job"`
		Round        uint32 `json:"round"`
		GrantID      uint64 `json:"grant_id"`
		Miner        string `json:"miner"`
		First        uint64 `json:"first"` // of what was left
		Last         uint64 `json:"last"`
		Reason       string `json:"reason"` // solution (its own), solved, closed, or why it was taken back
		GrantedIndex uint64 `json:"granted_index"`
		GrantedAt    uint64 `json:"granted_unix_ms"`
	}
	jobAuditView struct {
		eventAt                        // of the verdict, or of the close
		Job             uint64         `json:"job"`
		Height          uint64         `json:"height"`
		PreviousHash    string         `json:"previous_hash"`
		Bits            int            `json:"bits"`
		Timestamp       uint64         `json:"timestamp"`
		Rounds          uint32         `json:"rolled"`
		FirstNonce      uint64         `json:"first_nonce"`
		LastNonce       uint64         `json:"last_nonce"`
		ChunkSize       uint64         `json:"chunk_size"`
		OpenedIndex     uint64         `json:"opened_index"`
		OpenedAt        uint64         `json:"opened_unix_ms"`
		Verdict         string         `json:"verdict,omitempty"`
		Detail          string         `json:"detail,omitempty"`
		Hash            string         `json:"hash,omitempty"`
		Nonce           uint64         `json:"nonce,omitempty"`
		Miner           string         `json:"miner,omitempty"`
		GrantID         uint64         `json:"grant_id,omitempty"`
		GrantedIndex    uint64         `json:"granted_index,omitempty"`
		GrantedAt       uint64         `json:"granted_unix_ms,omitempty"`
		SolvedIndex     uint64         `json:"solved_index,omitempty"`
		SolvedAt        uint64         `json:"solved_unix_ms,omitempty"`
		SubmittedIndex  uint64         `json:"submitted_index,omitempty"` // of the first submission
		SubmittedAt     uint64         `json:"submitted_unix_ms,omitempty"`
		Submissions     uint32         `json:"submissions,omitempty"`
		Below           *coverageView  `json:"chunks_below_solution,omitempty"`
		Chunks          coverageView   `json:"chunks"`
		Ranges          uint64         `json:"ranges"`
		Hashes          uint64         `json:"hashes"`             // at least: without those of interrupted grants
		Interrupted     uint64         `json:"grants_interrupted"` // without the solution's
		DurationMS      uint64         `json:"duration_ms"`
		Regrants        []regrantCount `json:"regrants"`
		ChunksTakenBack uint64         `json:"chunks_revoked"`
		Miners          []shareView    `json:"miners"`
	}
	coverageView struct {
		Finished    uint64 `json:"finished"`
		Interrupted uint64 `json:"interrupted"`
		Returned    uint64 `json:"returned"`
		Gaps        uint64 `json:"gaps"`
	}
	regrantCount struct {
		Reason string `json:"reason"`
		Ranges uint64 `json:"ranges"`
		Chunks uint64 `json:"chunks"`
	}
	shareView struct {
		Miner           string `json:"miner"`
		Ranges          uint64 `json:"ranges"`
		Nonces          uint64 `json:"nonces"`
		FirstUnixMilli  uint64 `json:"first_unix_ms"`
		LastUnixMilli   uint64 `json:"last_unix_ms"`
		GrantsTakenBack uint64 `json:"grants_taken_back"`
	}
)

// viewAuditEvent returns an event as JSON and as a line for people.
func viewAuditEvent(event audit.Event) (object any, line string) {
	switch e := event.(type) {
	case audit.TookOffice:
		v := termView{at("term", e.At), e.ServerID, e.Before, e.Silent}
		line := fmt.Sprintf("%s  term %-3d server %d takes office", v.clock(), e.Term, e.ServerID)
		if e.Before != 0 && e.Before != e.ServerID {
			line = fmt.Sprintf("%s  term %-3d server %d takes over from server %d, %d ms after its last record", v.clock(), e.Term,
				e.ServerID, e.Before, e.Silent)
		}
		return v, line
	case audit.ServerChanged:
		v := serverAuditView{at("server", e.At), e.Server.ID, e.Server.Up, e.Server.Member, e.Reason}
		state := "down"
		if e.Server.Up {
			state = "up"
		}
		line := fmt.Sprintf("%s  server   server %d %s", v.clock(), e.Server.ID, e.Reason)
		if e.Reason != state && e.Reason != "added" && e.Reason != "removed" && e.Reason != "readmitted" {
			line = fmt.Sprintf("%s  server   server %d is %s: %s", v.clock(), e.Server.ID, state, e.Reason)
		}
		return v, line
	case audit.ClusterEvent:
		v := clusterAuditView{at("cluster", e.At), e.What}
		return v, fmt.Sprintf("%s  cluster  %s", v.clock(), e.What)
	case audit.Regranted:
		v := regrantView{at("regrant", e.At), e.JobID, e.Nonces.First, e.Nonces.Last, e.From, e.To, e.Reason}
		return v, fmt.Sprintf("%s  regrant  %s of job %d from %s (%s) to %s", v.clock(), e.Nonces, e.JobID, e.From, e.Reason, e.To)
	case audit.Revoked:
		v := revokeView{at("revoke", e.At), e.JobID, e.Miner, e.Chunks, e.Reason, []revokedView{}}
		for _, nonces := range e.Ranges {
			v.Ranges = append(v.Ranges, revokedView{nonces.First, nonces.Last})
		}
		return v, fmt.Sprintf("%s  revoke   %d %s of job %d, finished by %s: %s", v.clock(), e.Chunks, plural(e.Chunks, "chunk"),
			e.JobID, e.Miner, e.Reason)
	case audit.Struck:
		v := strikeView{at("strike", e.At), e.Miner, e.Reason}
		return v, fmt.Sprintf("%s  strike   miner %s: %s", v.clock(), e.Miner, e.Reason)
	case audit.JobEnded:
		v := viewJob(e.Job)
		return v, v.String()
	case audit.Found:
		return findingView{"finding", e.Finding.Index, string(e.Finding.Kind), e.Finding.What},
			fmt.Sprintf("BROKEN%s (%s); the end of the report says how", atRecord(e.Finding.Index), e.Finding.Kind)
	}
	return nil, ""
}

func viewJob(j *audit.Job) jobAuditView {
	v := jobAuditView{eventAt: at("job_closed", j.Closed), Job: j.ID, Height: j.Height, PreviousHash: j.Previous.String(),
		Bits: j.Bits, Timestamp: j.Timestamp, Rounds: j.Rounds, FirstNonce: j.Nonces.First, LastNonce: j.Nonces.Last,
		ChunkSize: j.ChunkSize, OpenedIndex: j.Opened.Index, OpenedAt: j.Opened.UnixMilli, Detail: j.Detail,
		Submissions: j.Submissions, SubmittedIndex: j.Submitted.Index, SubmittedAt: j.Submitted.UnixMilli, Chunks: coverageView(j.Searched), Ranges: j.Ranges, Hashes: j.Hashes, Interrupted: j.Interrupted,
		ChunksTakenBack: j.Revoked, Regrants: regrantCounts(j.Regrants[:]), Miners: []shareView{}}
	if end := j.End(); end > j.Start() {
		v.DurationMS = end - j.Start()
	}
	if s := j.Solution; s != nil {
		v.eventAt = at("block", j.Settled)
		v.Hash, v.Nonce, v.Miner, v.GrantID = s.Hash.String(), s.Nonce, s.Miner, s.GrantID
		v.GrantedIndex, v.GrantedAt, v.SolvedIndex, v.SolvedAt = s.Granted.Index, s.Granted.UnixMilli, s.At.Index, s.At.UnixMilli
		below := coverageView(j.Below)
		v.Below = &below
	}
	if j.Verdict != 0 {
		v.Verdict = verdictName(j.Verdict)
	}
	for _, share := range j.Shares {
		v.Miners = append(v.Miners, shareView(share))
	}
	return v
}

func regrantCounts(all []audit.Regrant) []regrantCount {
	counts := []regrantCount{}
	for _, r := range all {
		if r.Ranges > 0 {
			counts = append(counts, regrantCount(r))
		}
	}
	return counts
}

// String is what a person reads of a job.
func (v jobAuditView) String() string {
	var out strings.Builder
	if v.Hash == "" {
		fmt.Fprintf(&out, "%s  closed   job %d for block %d: %s", v.clock(), v.Job, v.Height, v.Detail)
	} else {
		fmt.Fprintf(&out, "%s  block %-3d%s  %s  nonce %d by %s", v.clock(), v.Height, v.Hash, v.Verdict, v.Nonce, v.Miner)
		if v.Verdict != verdictName(fsm.VerdictSuccess) && v.Detail != "" {
			fmt.Fprintf(&out, " (%s)", v.Detail)
		}
	}
	fmt.Fprintf(&out, "\n%14s%s, %s%s hashes in %d %s", "", (time.Duration(v.DurationMS) * time.Millisecond).Round(time.Millisecond),
		choose(v.Hash == "" && v.Interrupted == 0, "", "at least "), count(v.Hashes), v.Ranges, plural(v.Ranges, "range"))
	if v.Interrupted > 0 {
		fmt.Fprintf(&out, "; %d %s interrupted, whose hashes are not known", v.Interrupted, plural(v.Interrupted, "grant"))
	}
	if v.Rounds > 0 {
		fmt.Fprintf(&out, ", timestamp rolled %d %s", v.Rounds, plural(uint64(v.Rounds), "time"))
	}
	if b := v.Below; b != nil {
		fmt.Fprintf(&out, "; chunks below the solution: %s", coverageText(b))
	}
	for _, r := range v.Regrants {
		fmt.Fprintf(&out, "; granted again %d (%s)", r.Ranges, r.Reason)
	}
	if v.Submissions > 1 {
		fmt.Fprintf(&out, "; submitted %d times", v.Submissions)
	}
	return out.String()
}

// span is the time between two clocks of leaders; they may differ.
func span(from, to uint64) string {
	return (time.Duration(int64(to)-int64(from)) * time.Millisecond).String()
}

// count writes a large number for people.
func count(n uint64) string {
	switch {
	case n >= 1e12:
		return fmt.Sprintf("%.2f T", float64(n)/1e12)
	case n >= 1e9:
		return fmt.Sprintf("%.2f G", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.2f M", float64(n)/1e6)
	}
	return fmt.Sprint(n)
}

// coverageText says what became of chunks, those that there are.
func coverageText(c *coverageView) string {
	var parts []string
	for _, part := range []struct {
		chunks uint64
		what   string
	}{{c.Finished, "finished"}, {c.Interrupted, "interrupted"}, {c.Returned, "taken back"}, {c.Gaps, "NEVER GRANTED"}} {
		if part.chunks > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.chunks, part.what))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ") + choose(c.Gaps == 0, ", no gap", "")
}
