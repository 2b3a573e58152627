package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
	"raftmine/miner"
	"raftmine/rpc"
)

// shownBroken is how many broken promises people are shown.
const shownBroken = 20

// drillEnd is what the cluster said last, while it ran.
type drillEnd struct {
	agreement agreement
	blocks    [][]rpc.Block // the settled blocks, as each server lists them
}

// drillReport is the result of a drill. JSON names are for scripts.
type drillReport struct {
	Event           string        `json:"event"` // drill_done
	Seed            uint64        `json:"seed"`
	Survived        int           `json:"survived"`
	Answers         int           `json:"answers_acknowledged"`
	Late            int           `json:"answers_too_late"`
	Lost            int           `json:"answers_lost"`
	Regranted       uint64        `json:"chunks_regranted"`
	SearchedTwice   uint64        `json:"chunks_searched_twice"`
	Blocks          int           `json:"blocks"`
	AcceptedTwice   int           `json:"heights_accepted_twice"`
	Submissions     int           `json:"submissions"`
	RepeatedSubmits int           `json:"repeated_submits"`
	Entries         uint64        `json:"log_entries"`
	Seconds         float64       `json:"seconds"`
	WithoutLeader   []drillSpread `json:"without_leader"`
	NextAnswer      drillSpread   `json:"next_answer"`
	Idle            drillSpread   `json:"idle"`
	IdleWithWork    drillSpread   `json:"idle_with_work"`
	IdleLeaderKill  drillSpread   `json:"idle_with_work_leader_killed"`
	Broken          []string      `json:"broken"` // promises
	agreement

	faults []survived
	miners int // real ones, whose search threads are watched
}

// drillSpread is a distribution, in milliseconds.
type drillSpread struct {
	What   string  `json:"what"`
	Faults int     `json:"faults"`
	P50    float64 `json:"p50_ms"`
	P99    float64 `json:"p99_ms"`
	Max    float64 `json:"max_ms"`
}

// spread is by nearest rank: of few values p99 is the largest.
func spread(what string, values []float64) drillSpread {
	s := drillSpread{What: what, Faults: len(values)}
	if len(values) == 0 {
		return s
	}
	values = slices.Sorted(slices.Values(values))
	rank := func(share float64) float64 { return values[int(math.Ceil(share*float64(len(values))))-1] }
	s.P50, s.P99, s.Max = rank(0.50), rank(0.99), values[len(values)-1]
	return s
}

// settle ends the work in order, and asks every server for its last word: nothing is submitted any more, all processes
// end after it.
func (d *drill) settle() (drillEnd, error) {
	ctx, cancel := context.WithTimeout(context.Background(), drillPatience)
	defer cancel()
	d.cancel() // of the supervisors
	d.stopClients()
	d.stopAll("miner")
	var end drillEnd
	for {
		views, problem := d.views(ctx, "")
		if problem == "" {
			problem = "a solution is being submitted"
			if job := views[0].Job; job == nil || job.Phase == fsm.PhaseOpen {
				break
			}
		}
		if wait(ctx, 10*time.Millisecond); ctx.Err() != nil {
			return end, fmt.Errorf("the cluster did not come to rest within %s: %s", drillPatience, problem)
		}
	}
	var addresses []string
	for id := 1; id <= d.o.servers; id++ {
		addresses = append(addresses, d.server(id).started.Address)
	}
	if err := d.commitStop(ctx, addresses); err != nil {
		return end, err
	}
	for end.agreement.Servers != d.o.servers {
		var err error
		if end.agreement, err = d.compareStates(addresses); err != nil {
			return end, err
		}
		if wait(ctx, 10*time.Millisecond); ctx.Err() != nil {
			return end, fmt.Errorf("%d of %d servers could be compared", end.agreement.Servers, d.o.servers)
		}
	}
	for id := 1; id <= d.o.servers; id++ {
		var blocks []rpc.Block
		err := listBlocks(ctx, d.client, addresses[id-1], func(b rpc.Block) { blocks = append(blocks, b) })
		if err != nil {
			return end, err
		}
		end.blocks = append(end.blocks, blocks)
	}
	d.stopAll("server")
	return end, nil
}

// judge reads the logs of all servers and compares them with what was acknowledged, and with the web service's chain.
func (d *drill) judge(faults []survived, end drillEnd) (*drillReport, error) {
	answers := d.book.all()
	submissions := d.service.report()
	r := &drillReport{Event: "drill_done", Seed: d.o.seed, Survived: len(faults), Answers: len(answers), Late: d.book.late,
		Submissions: len(submissions), Seconds: time.Since(d.started).Seconds(), Broken: []string{}, agreement: end.agreement, faults: faults, miners: d.o.miners}
	r.RepeatedSubmits = repeatedIn(submissions, time.Time{}, time.Now())
	for _, why := range d.book.wrong() {
		r.breaks("a right answer was called wrong: %s", why)
	}
	chain := chainOf(submissions)
	r.Blocks = len(chain)
	var first *history
	for id := 1; id <= d.o.servers; id++ {
		h, err := replayServer(d.serverDir(id), end.agreement.AppliedIndex)
		if err != nil {
			return nil, fmt.Errorf("log of server %d: %w", id, err)
		}
		if got := h.state.Digest().String(); got != end.agreement.StateDigest {
			r.breaks("the log of server %d leads to state %.12s at entry %d, the servers said %.12s",
				id, got, end.agreement.AppliedIndex, end.agreement.StateDigest)
		}
		for _, why := range h.broken {
			r.breaks("server %d, %s", id, why)
		}
		for _, a := range h.lost(answers) {
			r.breaks("server %d lost the answer of %s for %s of grant %d, job %d, acknowledged at %s in term %d",
				id, a.client, a.nonces, a.grant, a.job, clock(a.at), a.term)
		}
		if why := differs(chain, end.blocks[id-1]); why != "" {
			r.breaks("the blocks of server %d are not the web service's chain: %s", id, why)
		}
		twice := acceptedTwice(h.state.Blocks(0, 0))
		for _, height := range twice {
			r.breaks("server %d has two accepted blocks at height %d", id, height)
		}
		if first == nil {
			first = h
			r.Lost, r.AcceptedTwice, r.Entries = len(h.lost(answers)), len(twice), h.state.Head().Records
		} else if first.state.Head() != h.state.Head() {
			r.breaks("the log of server %d is not that of server 1", id)
		}
	}
	d.count(r, first, first.lost(answers), submissions)
	r.summarize()
	return r, nil
}

func (r *drillReport) breaks(format string, args ...any) {
	r.Broken = append(r.Broken, fmt.Sprintf(format, args...))
}

// differs says where the accepted blocks of a server part from the web service's chain; "": nowhere.
func differs(chain []pow.Hash, blocks []rpc.Block) string {
	n := 0
	for _, block := range blocks {
		if block.Verdict != fsm.VerdictSuccess {
			continue
		}
		if n == len(chain) {
			return fmt.Sprintf("it lists block %d, the web service has %d", block.Height, len(chain))
		}
		if block.Hash != chain[n] || block.Height != uint64(n)+1 {
			return fmt.Sprintf("block %d is %.16s at height %d, the web service has %.16s", n+1, block.Hash, block.Height, chain[n])
		}
		n++
	}
	if n < len(chain) {
		return fmt.Sprintf("the web service accepted block %d, %.16s", n+1, chain[n])
	}
	return ""
}

// count gives each fault what the logs say of the time from it to the next one.
func (d *drill) count(r *drillReport, h *history, lost []acked, submissions []submission) {
	idle := d.idleness(d.o.miners)
	for i := range r.faults {
		f := &r.faults[i]
		f.Event = "fault_report"
		from, until := f.from, time.Now()
		if i+1 < len(r.faults) {
			until = r.faults[i+1].from
		}
		c := &faultCounts{RepeatedSubmits: repeatedIn(submissions, from, until)}
		for _, e := range h.events {
			at := time.UnixMilli(int64(e.unixMilli))
			switch {
			case at.Before(from):
				if e.rangesChanged {
					c.InFlight = e.grants
				}
			case at.Before(until):
				c.Regranted += e.regranted
				c.SearchedTwice += e.twice
			}
		}
		for _, a := range lost {
			if !a.at.Before(from) && a.at.Before(until) {
				c.Lost++
			}
		}
		for thread, periods := range idle {
			if strings.HasPrefix(thread, f.Victim+" ") {
				continue // it does not search while it is dead
			}
			var sum time.Duration
			for _, p := range periods {
				within := p.within(f.from, f.until)
				sum += within
				if within > 0 {
					c.IdleWithWorkMS = max(c.IdleWithWorkMS, milliseconds(min(p.withWork, within)))
				}
			}
			c.IdleMS = max(c.IdleMS, milliseconds(sum))
		}
		f.faultCounts = c
	}
	for _, e := range h.events {
		r.Regranted += e.regranted
		r.SearchedTwice += e.twice
	}
}

// idlePeriod is a time in which a search thread did nothing.
type idlePeriod struct {
	end            time.Time
	idle, withWork time.Duration
}

// within returns how much of it lies between two times.
func (p idlePeriod) within(from, until time.Time) time.Duration {
	begin, end := p.end.Add(-p.idle), p.end
	if begin.Before(from) {
		begin = from
	}
	if end.After(until) {
		end = until
	}
	return max(0, end.Sub(begin))
}

// idleLine is a line of a miner's log that tells of an idle thread.
var idleLine = regexp.MustCompile(`^time=(\S+) level=DEBUG msg="` + miner.IdleMessage + `" thread=(\d+) idle=(\S+) idle_with_work=(\S+)$`)

// idleness reads the miners' logs: the idle periods of each search thread, by "miner thread".
func (d *drill) idleness(miners int) map[string][]idlePeriod {
	all := make(map[string][]idlePeriod)
	for n := 1; n <= miners; n++ {
		file, err := os.Open(d.process(minerName(n)).log)
		if err != nil {
			continue // the miner never started: the drill did not come this far
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			match := idleLine.FindStringSubmatch(lines.Text())
			if match == nil {
				continue
			}
			end, timeErr := time.Parse(time.RFC3339, match[1])
			idle, idleErr := time.ParseDuration(match[3])
			withWork, workErr := time.ParseDuration(match[4])
			if timeErr == nil && idleErr == nil && workErr == nil {
				thread := minerName(n) + " " + match[2]
				all[thread] = append(all[thread], idlePeriod{end, idle, withWork})
			}
		}
		file.Close()
	}
	return all
}

// summarize makes the distributions.
func (r *drillReport) summarize() {
	of := func(what string, value func(survived) float64, chosen func(survived) bool) drillSpread {
		var values []float64
		for _, f := range r.faults {
			if chosen(f) {
				values = append(values, value(f))
			}
		}
		return spread(what, values)
	}
	noLeader := func(f survived) float64 { return f.NoLeaderMS }
	leader := func(kind string) func(survived) bool {
		return func(f survived) bool { return f.Role == "leader" && f.Kind == kind }
	}
	moved := func(f survived) bool { return f.NextAnswerMS == 0 }
	searching := func(survived) bool { return r.miners > 0 }
	r.WithoutLeader = []drillSpread{
		of("leader killed", noLeader, leader("kill")),
		of("leader stopped", noLeader, leader("stop")),
		of("leader paused", noLeader, leader("pause")),
		of("leader returned", func(f survived) float64 { return f.ReturnMS }, func(f survived) bool { return f.Role == "leader" && f.Kind != "pause" }),
		of("leadership moved after another's fault", noLeader, func(f survived) bool { return f.Role != "leader" && moved(f) }),
	}
	r.NextAnswer = of("next answer, where the leader stayed", func(f survived) float64 { return f.NextAnswerMS },
		func(f survived) bool { return !moved(f) })
	withWork := func(f survived) float64 { return f.IdleWithWorkMS }
	r.Idle = of("search thread idle", func(f survived) float64 { return f.IdleMS }, searching)
	r.IdleWithWork = of("idle though it held a range", withWork, searching)
	r.IdleLeaderKill = of("... when a leader was killed", withWork, func(f survived) bool { return searching(f) && leader("kill")(f) })
}

// print prints one line for each fault, and the summary.
func (r *drillReport) print(out *printer) {
	if out.json {
		for _, f := range r.faults {
			out.print(f, "")
		}
		out.print(r, "")
		return
	}
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\nFAULT\tPROCESS\tKIND\tMOMENT\tPAUSE\tNO LEADER\tAT RETURN\tHEALTHY\tIN FLIGHT\tREGRANTED\tTWICE\tLOST\tRESUBMITTED\tIDLE\t")
	for _, f := range r.faults {
		name := f.Victim
		if f.Role == "leader" {
			name += "*"
		}
		noLeader, atReturn := fmt.Sprintf("%.1f", f.NoLeaderMS), fmt.Sprintf("%.1f", f.ReturnMS)
		if f.NextAnswerMS > 0 {
			noLeader, atReturn = "-", "-"
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%.0f\t%s\t%s\t%.0f\t%d\t%d\t%d\t%d\t%d\t%s\t\n", f.Fault, name, f.Kind, f.Moment, f.PauseMS,
			noLeader, atReturn, f.HealthyMS, f.InFlight, f.Regranted, f.SearchedTwice, f.Lost, f.RepeatedSubmits,
			choose(r.miners > 0, fmt.Sprintf("%.1f", f.IdleMS), "-"))
	}
	_ = table.Flush() // into memory
	fmt.Fprint(&text, "* the leader. Times in ms; in flight: ranges; regranted, twice: chunks; lost: answers; idle: the search thread that was it longest.\n\n")
	printSpreads(&text, "WITHOUT A GRANTING LEADER", r.WithoutLeader...)
	printSpreads(&text, "OTHER TIMES", r.NextAnswer, r.Idle, r.IdleWithWork, r.IdleLeaderKill)
	fmt.Fprintf(&text, "%d %s survived in %.0f s by seed %d\n", r.Survived, plural(uint64(r.Survived), "fault"), r.Seconds, r.Seed)
	fmt.Fprintf(&text, "answers     %d acknowledged, %d lost; %d came too late to count\n", r.Answers, r.Lost, r.Late)
	fmt.Fprintf(&text, "chunks      %d granted again, %d of them answered for twice\n", r.Regranted, r.SearchedTwice)
	fmt.Fprintf(&text, "blocks      %d accepted, %d heights twice; %d requests to submit, %d of them repeated\n", r.Blocks, r.AcceptedTwice, r.Submissions, r.RepeatedSubmits)
	fmt.Fprintf(&text, "state       %s, replayed from %d entries of each log\n", r.agreement, r.Entries)
	for _, why := range r.Broken[:min(len(r.Broken), shownBroken)] {
		fmt.Fprintf(&text, "BROKEN      %s\n", why)
	}
	if more := len(r.Broken) - shownBroken; more > 0 {
		fmt.Fprintf(&text, "BROKEN      and %d more: -o json has them all\n", more)
	}
	if len(r.Broken) == 0 {
		fmt.Fprintln(&text, "every promise held")
	}
	out.print(nil, "%s", strings.TrimRight(text.String(), "\n"))
}

// printSpreads prints a table of those that are of something.
func printSpreads(w io.Writer, title string, spreads ...drillSpread) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range spreads {
		if s.Faults == 0 {
			continue
		}
		if title != "" {
			fmt.Fprintf(table, "%s\tFAULTS\tP50\tP99\tMAX\n", title)
			title = ""
		}
		fmt.Fprintf(table, "%s\t%d\t%.1f ms\t%.1f ms\t%.1f ms\n", s.What, s.Faults, s.P50, s.P99, s.Max)
	}
	if title == "" {
		fmt.Fprintln(table)
	}
	_ = table.Flush() // into memory
}
