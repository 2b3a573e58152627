package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"raftmine/fsm/audit"
	"raftmine/fsm/pow"
)

// auditOptions are the flags of "raftmine audit".
type auditOptions struct {
	at       uint64
	export   string
	recheck  float64
	known    []string
	all      bool
	ranges   bool
	threads  int
	progress bool
	servers  string
}

func newAuditCommand() *cobra.Command {
	var o auditOptions
	cmd := &cobra.Command{
		Use:   "audit DATA-DIR...|FILE|--servers ADDR,...",
		Short: "Replay and verify the history",
		Long: `Replay every record of a history, verify all of it, and say what happened: who searched what and when, the blocks and
their proofs, the leaders, the faults. Reads only, also beside a running server.

A history is a server's data directory, the folder of a "raftmine run" (then the histories of all its servers are audited
and compared; the longest is told), or a file that --export wrote. With --servers the histories are those of running
servers, which send every record: they are verified here, and must come to the very states that the servers have.

The exit code is 0 only if everything holds; otherwise the first broken record is named.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			known, err := o.validate(cmd)
			if err != nil {
				return usageError{err}
			}
			servers := splitList(o.servers)
			if len(args) > 0 && fromEnvironment(cmd, "servers") {
				servers = nil // the shell names them for other commands
			}
			if len(args)+len(servers) == 0 {
				return usageError{errors.New("say which history to audit: a DATA-DIR, a FILE, or --servers with addresses")}
			}
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			sources, err := findSources(cmd.Context(), args, servers)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("at") {
				err := printStateAt(cmd.Context(), out, sources[0], o.at)
				return errors.Join(err, out.failed())
			}
			file, terminal := out.w.(*os.File)
			o.progress = terminal && !out.json && term.IsTerminal(int(file.Fd()))
			err = o.audit(cmd.Context(), out, sources, known)
			return errors.Join(err, out.failed())
		},
	}
	cmd.Flags().StringVar(&o.servers, "servers", "", "audit the histories of running servers at these addresses, comma separated")
	cmd.Flags().Uint64Var(&o.at, "at", 0, "print the state as of this record instead")
	cmd.Flags().StringVar(&o.export, "export", "", "write the history (of several the longest) to this file as JSON lines")
	cmd.Flags().Float64Var(&o.recheck, "recheck", 0, "search this fraction of the finished ranges again, above 0 to 1")
	cmd.Flags().StringSliceVar(&o.known, "known", nil, "a head seen before, as RECORDS:TREE; the history must begin with it")
	cmd.Flags().BoolVar(&o.all, "all", false, "print every event of a long history")
	cmd.Flags().BoolVar(&o.ranges, "ranges", false, "print every finished range: who searched what, and when")
	cmd.Flags().IntVar(&o.threads, "threads", 1, "search threads of --recheck")
	return cmd
}

func (o *auditOptions) validate(cmd *cobra.Command) (known []audit.Head, err error) {
	if cmd.Flags().Changed("recheck") && !(o.recheck > 0 && o.recheck <= 1) {
		return nil, fmt.Errorf("--recheck %v: want a fraction above 0, at most 1", o.recheck)
	}
	if cmd.Flags().Changed("at") && (o.export != "" || o.recheck > 0 || len(o.known) > 0 || o.ranges) {
		return nil, errors.New("--at prints a state and audits nothing: give it without --export, --recheck, --known and --ranges")
	}
	if o.threads < 1 || o.threads > 1024 {
		return nil, fmt.Errorf("--threads %d: want 1 to 1024", o.threads)
	}
	for _, text := range o.known {
		head, ok := parseHead(text)
		if !ok {
			return nil, fmt.Errorf("--known %q: want RECORDS:TREE, a number and 64 hex digits", text)
		}
		known = append(known, head)
	}
	return known, nil
}

// parseHead reads RECORDS:TREE, as an audit prints it.
func parseHead(text string) (head audit.Head, ok bool) {
	records, tree, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(records, 10, 64)
	hash, badHash := pow.ParseHash(tree)
	return audit.Head{Records: n, Tree: hash}, err == nil && n > 0 && badHash == nil
}

// audited is a history with what was found.
type audited struct {
	source
	report *audit.Report
}

// audit does the whole job. The error names the first thing that does not hold.
func (o *auditOptions) audit(ctx context.Context, out *printer, sources []source, known []audit.Head) error {
	if o.export != "" {
		if err := mayExport(o.export); err != nil {
			return fmt.Errorf("--export %s: %w", o.export, err)
		}
	}
	var results []audited
	for i, s := range sources {
		var tell *story
		if i == 0 { // the others tell the same
			out.print(auditStart{Event: "audit_started", Source: s.path, Server: s.id}, "%s's history in %s", s.name, s.path)
			tell = newStory(out, o.all)
		}
		report, err := o.replay(ctx, out, s, known, tell)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		results = append(results, audited{s, report})
	}
	first := results[0]
	var rechecked *recheckResult
	if o.recheck > 0 && first.report.Holds() {
		result, err := o.searchAgain(ctx, out, first)
		if err != nil {
			return fmt.Errorf("%s: recheck: %w", first.name, err)
		}
		rechecked = result
	}
	agreements, err := compareAll(ctx, results)
	if err != nil {
		return err
	}
	problems := problemsOf(results, agreements, rechecked)
	printReport(out, results, agreements, rechecked, problems)
	var failure error
	if len(problems) > 0 && out.json {
		failure = errors.New(problems[0].full)
	} else if len(problems) > 0 {
		failure = errors.New(problems[0].short) // the report has just said the rest
	}
	if o.export != "" && first.report.Head.State == (pow.Hash{}) {
		// What is readable of it would be an export that holds.
		return errors.Join(failure, fmt.Errorf("--export %s: nothing was written, because the history is broken off", o.export))
	} else if o.export != "" {
		if err := export(ctx, out, first, o.export); err != nil {
			return errors.Join(failure, fmt.Errorf("--export %s: %w", o.export, err))
		}
	}
	return failure
}

// replay audits one history. tell is nil when its events are not printed.
func (o *auditOptions) replay(ctx context.Context, out *printer, s source, known []audit.Head, tell *story) (report *audit.Report, err error) {
	options := audit.Options{Known: known}
	if s.live != nil {
		options.Live = []audit.Live{*s.live}
	}
	if tell != nil {
		options.Visit = tell.event
		if o.ranges {
			options.Searched = tell.searched
		}
	}
	if o.progress {
		began := time.Now()
		options.Progress = func(records, _ uint64) {
			out.setLive(fmt.Sprintf("%s: %d records replayed, %.0f/s", s.name, records, float64(records)/time.Since(began).Seconds()))
		}
		defer out.setLive("")
	}
	err = s.read(ctx, func(p pass) error {
		options.EndsAt = p.endsAt
		report, err = audit.Replay(p.records, options)
		return err
	})
	if tell != nil {
		tell.end()
	}
	return report, err
}

// comparison is how a history compares with the longest one.
type comparison struct {
	audit.Agreement
	with audited // the longest
	of   audited
}

// compareAll compares every history with the longest.
func compareAll(ctx context.Context, results []audited) (agreements []comparison, err error) {
	longest := results[0]
	for _, r := range results[1:] {
		if r.report.Head.Records > longest.report.Head.Records {
			longest = r
		}
	}
	for _, r := range results {
		if r.path == longest.path {
			continue
		}
		a := comparison{with: longest, of: r}
		err = r.read(ctx, func(left pass) error {
			return longest.read(ctx, func(right pass) error {
				a.Agreement, err = audit.Compare(audit.Beginning(left.records, r.report.Head.Records),
					audit.Beginning(right.records, longest.report.Head.Records))
				return err
			})
		})
		if err != nil && r.report.Holds() && longest.report.Holds() {
			return nil, fmt.Errorf("compare %s with %s: %w", r.name, longest.name, err)
		}
		agreements = append(agreements, a)
	}
	return agreements, nil
}

// problem is one thing that does not hold.
type problem struct {
	short string // which, for standard error
	full  string // and what is wrong
}

// problemsOf returns what does not hold, first things first; none: everything holds.
func problemsOf(results []audited, agreements []comparison, rechecked *recheckResult) (problems []problem) {
	broken := func(name string, index uint64, what string) {
		problems = append(problems, problem{fmt.Sprintf("%s's history does not hold: see record %d in the report", name, index),
			fmt.Sprintf("%s's history does not hold: record %d: %s", name, index, what)})
	}
	for _, r := range results {
		for _, f := range r.report.Findings {
			broken(r.name, f.Index, fmt.Sprintf("%s: %s", f.Kind, f.What))
		}
	}
	for _, a := range agreements {
		if a.Parts() {
			short := fmt.Sprintf("the histories of %s and %s part after %d %s", a.of.name, a.with.name, a.Same, plural(a.Same, "record"))
			problems = append(problems, problem{short, fmt.Sprintf("%s: at index %d and %d", short, a.LeftIndex, a.RightIndex)})
		}
	}
	if rechecked != nil {
		for _, w := range rechecked.Wrong {
			broken(results[0].name, w.Index, w.What)
		}
	}
	return problems
}

// mayExport refuses to put an export into the place of what is no export, above all of a file of a data directory.
func mayExport(path string) error {
	return mayReplace(path, "export of a history", func(r io.Reader) error {
		_, err := audit.NewImport(r)
		return err
	})
}

// mayReplace reports whether a file may be written at path: there is none, an empty one, or one that is read as another of its kind.
func mayReplace(path, kind string, read func(io.Reader) error) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return hinted(errIrregular, "choose a file that does not exist yet")
	case info.Size() == 0:
		return nil
	}
	file, err := openRegular(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := read(file); err != nil {
		return hinted(fmt.Errorf("the file exists, and is no %s", kind), "choose a file that does not exist yet")
	}
	return nil
}

var errIrregular = errors.New("it is no regular file")

// openRegular opens a file to read it. A pipe or a device may never come to an end, nor even be opened, and what is read
// more than once must be the same each time.
func openRegular(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.IsDir() {
		err = errors.New("it is a folder")
	} else if err == nil && !info.Mode().IsRegular() {
		err = errIrregular
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
	}
	return file, nil
}

// export writes what was audited, and not what was written since.
func export(ctx context.Context, out *printer, a audited, path string) (err error) {
	file, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o600))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Cleanup()) }()
	err = a.read(ctx, func(p pass) error {
		_, err := audit.Export(file, audit.Beginning(p.records, a.report.Head.Records))
		return err
	})
	if err != nil {
		return err
	}
	if err := file.CloseAtomicallyReplace(); err != nil {
		return err
	}
	out.print(exported{Event: "exported", File: path, Records: a.report.Head.Records}, "exported %d records to %s",
		a.report.Head.Records, path)
	return nil
}

// printStateAt prints the state as of a record.
func printStateAt(ctx context.Context, out *printer, s source, index uint64) error {
	return s.read(ctx, func(p pass) error {
		state, head, err := audit.StateAt(p.records, index)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		view := viewState(state, head)
		var text strings.Builder
		view.write(&text)
		out.print(view, "%s", strings.TrimSuffix(text.String(), "\n"))
		return nil
	})
}

// proofFile opens FILE, or standard input for "-".
func proofFile(cmd *cobra.Command, path string) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(cmd.InOrStdin()), nil
	}
	file, err := openRegular(path)
	return file, hinted(err, "name a file that \"raftmine proof\" wrote, or - for standard input")
}
