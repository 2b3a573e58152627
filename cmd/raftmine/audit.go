package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"raftmine/fsm/audit"
	"raftmine/fsm/pow"
)

// auditOptions are the flags of "raftmine audit".
type auditOptions struct {
	at      uint64
	drawAt  bool // --at was given with --recheck
	export  string
	recheck float64
	known   []string
	all     bool
	ranges  bool
	threads int
	servers string
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
servers, which send every record: they are verified here, and must come to the very states that the servers have. A server
that does not answer is named, and the others are audited; so is a directory in the folder of a run that cannot be read.

The exit code is 0 only if everything that was asked for was verified and holds; otherwise the first broken record is named,
or what could not be read.

--recheck searches a sample of the finished ranges again. It is drawn from the hash of the last record, so nobody knew it
before, and everybody draws the same. The report says which record that was: of a history that has grown since, --at with
it draws the same sample again. A range that was taken back later counts as it did then.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			known, err := o.validate(cmd)
			if err != nil {
				return usageError{err}
			}
			servers := splitList(o.servers)
			if len(args) > 0 && fromEnvironment(cmd, "servers") {
				servers = nil // the shell names them for other commands
			} else if err := checkAddresses("servers", o.servers); err != nil {
				return err
			}
			if len(args)+len(servers) == 0 {
				return usageError{errors.New("say which history to audit: a DATA-DIR, a FILE, or --servers with addresses")}
			}
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			sources, silent, err := findSources(cmd.Context(), out, args, servers)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("at") && !o.drawAt {
				err := printStateAt(cmd.Context(), out, sources[0], o.at)
				if len(silent) > 0 {
					err = errors.Join(err, nothingRead(silent))
				}
				return errors.Join(err, out.failed())
			}
			err = o.audit(cmd.Context(), out, sources, silent, known)
			return errors.Join(err, out.failed())
		},
	}
	cmd.Flags().StringVar(&o.servers, "servers", "", "audit the histories of running servers at these addresses, comma separated")
	cmd.Flags().Uint64Var(&o.at, "at", 0, "print the state as of this record instead; with --recheck: draw the sample as of it")
	cmd.Flags().StringVar(&o.export, "export", "", "write the history (of several the longest) to this file as JSON lines")
	cmd.Flags().Float64Var(&o.recheck, "recheck", 0, "search this fraction of the finished ranges again, above 0 to 1")
	cmd.Flags().StringSliceVar(&o.known, "known", nil, "a head seen before, as RECORDS:TREE; the history must begin with it")
	cmd.Flags().BoolVar(&o.all, "all", false, "print every event of a long history")
	cmd.Flags().BoolVar(&o.ranges, "ranges", false, "print every range, finished or interrupted: who searched what, and when")
	cmd.Flags().IntVar(&o.threads, "threads", 1, "search threads of --recheck")
	return cmd
}

func (o *auditOptions) validate(cmd *cobra.Command) (known []audit.Head, err error) {
	if cmd.Flags().Changed("recheck") && !(o.recheck > 0 && o.recheck <= 1) {
		return nil, fmt.Errorf("--recheck %v: want a fraction above 0, at most 1", o.recheck)
	}
	o.drawAt = cmd.Flags().Changed("at") && o.recheck > 0
	if cmd.Flags().Changed("at") && !o.drawAt && (o.export != "" || len(o.known) > 0 || o.ranges) {
		return nil, errors.New("--at prints a state and audits nothing: give it without --export, --known and --ranges, or with --recheck")
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

// auditOutcome is what an audit came to.
type auditOutcome struct {
	results    []audited
	chains     map[uint64]pow.Hash // chain hash of the first one, by index, where another one was counted to end
	agreements []comparison
	rechecked  *recheckResult
	notDone    string   // why there was no recheck, although one was asked for
	asked      int      // how many histories
	unread     []unread // those of which something could not be read
	problems   []problem
}

// audit does the whole job. The error names the first thing that does not hold, or else what could not be verified.
func (o *auditOptions) audit(ctx context.Context, out *printer, sources []source, silent []unread, known []audit.Head) error {
	if o.export != "" {
		if err := mayExport(o.export); err != nil {
			return fmt.Errorf("--export %s: %w", o.export, err)
		}
	}
	done := auditOutcome{asked: len(sources) + len(silent), unread: silent}
	for _, s := range sources {
		var tell *story
		if len(done.results) == 0 { // the others tell the same
			out.print(auditStart{Event: "audit_started", Source: s.path, Server: s.id}, "%s's history in %s", s.name, s.path)
			tell = newStory(out, o.all)
			done.chains = make(map[uint64]pow.Hash)
			for _, other := range sources {
				done.chains[other.last] = pow.Hash{}
			}
			s = s.noting(done.chains)
		}
		report, err := o.replay(ctx, out, s, known, tell)
		if unreadable(ctx, err) {
			done.unread = append(done.unread, unread{s.name, s.path, s.id, err})
			if tell != nil {
				out.print(auditStop{Event: "audit_stopped", Source: s.path, Server: s.id, Error: err.Error()},
					"%s's history could not be read to its end, so another one is told", s.name)
			}
			continue
		} else if err != nil {
			return done.endedBy(fmt.Errorf("%s: %w", s.name, err))
		}
		done.results = append(done.results, audited{s, report})
	}
	if len(done.results) == 0 {
		return nothingRead(done.unread)
	}
	if o.recheck > 0 {
		if err := o.doRecheck(ctx, out, &done); err != nil {
			return done.endedBy(err)
		}
	}
	if err := done.compare(ctx, out); err != nil {
		return done.endedBy(err)
	}
	done.findProblems()
	printReport(out, done)
	failure := done.failure(out.json)
	first := done.results[0]
	if o.export != "" && first.report.Head.State == (pow.Hash{}) {
		// What is readable of it would be an export that holds.
		return exportFailed(failure, o.export, errors.New("nothing was written, because the history is broken off"))
	} else if o.export != "" {
		if err := export(ctx, out, first, o.export); err != nil {
			return exportFailed(failure, o.export, err)
		}
	}
	return failure
}

// endedBy is what an audit ends with that comes to no report. An interruption does not hide what was found before it.
func (d *auditOutcome) endedBy(err error) error {
	if d.findProblems(); len(d.problems) > 0 && errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s; then it was %w", d.problems[0].full, errInterrupted)
	}
	return err
}

// exportFailed adds what became of an export to what the audit came to, which is told also when the export was interrupted.
func exportFailed(failure error, path string, err error) error {
	if failure == nil {
		return fmt.Errorf("--export %s: %w", path, err)
	}
	if errors.Is(err, context.Canceled) {
		err = errInterrupted
	}
	return fmt.Errorf("%w; --export %s: %w", failure, path, err)
}

// unreadable reports whether an error says that a history could not be read, of which nothing follows, and is no
// interruption of the whole.
func unreadable(ctx context.Context, err error) bool {
	return errors.Is(err, audit.ErrInterrupted) && ctx.Err() == nil
}

// doRecheck searches a sample of the first history again, or notes why that was not done.
func (o *auditOptions) doRecheck(ctx context.Context, out *printer, done *auditOutcome) error {
	first := done.results[0]
	head := first.report.Head
	if head.State == (pow.Hash{}) {
		done.notDone = "the history is broken off"
		return nil
	}
	var err error
	if o.drawAt {
		err = first.shown(out, "read").read(ctx, func(p pass) (err error) {
			_, head, err = audit.StateAt(audit.Beginning(p.records, head.Records), o.at)
			return err
		})
	}
	if err == nil {
		done.rechecked, err = o.searchAgain(ctx, out, first, head)
	}
	if unreadable(ctx, err) || errors.Is(err, audit.ErrNotFound) {
		done.notDone = err.Error()
	} else if err != nil {
		return fmt.Errorf("%s: recheck: %w", first.name, err)
	}
	return nil
}

// replay audits one history. tell is nil when its events are not printed.
func (o *auditOptions) replay(ctx context.Context, out *printer, s source, known []audit.Head, tell *story) (report *audit.Report, err error) {
	options := audit.Options{Known: known, ClusterID: s.cluster}
	if s.live != nil {
		options.Live = []audit.Live{*s.live}
	}
	if tell != nil {
		options.Visit = tell.event
		if o.ranges {
			options.Searched, options.Interrupted = tell.searched, tell.interrupted
		}
	}
	err = s.shown(out, "replayed").read(ctx, func(p pass) error {
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

// longest returns the history with the most records, of equal ones the first.
func (d *auditOutcome) longest() audited {
	return slices.MaxFunc(d.results, func(a, b audited) int { return cmp.Compare(a.report.Head.Records, b.report.Head.Records) })
}

// compare compares every history with the longest. Where that one had the same chain hash when it was replayed, it had the same
// records. Only else are they read again, one by one.
func (d *auditOutcome) compare(ctx context.Context, out *printer) (err error) {
	longest := d.longest()
	for _, r := range d.results {
		if r.path == longest.path {
			continue
		}
		a := comparison{with: longest, of: r}
		if head := r.report.Head; head.Records > 0 && longest.path == d.results[0].path && d.chains[head.Index] == head.Chain {
			a.Same, a.Right = head.Records, longest.report.Head.Records > head.Records
			d.agreements = append(d.agreements, a)
			continue
		}
		err = r.shown(out, "compared").read(ctx, func(left pass) error {
			return longest.read(ctx, func(right pass) error {
				a.Agreement, err = audit.Compare(audit.Beginning(left.records, r.report.Head.Records),
					audit.Beginning(right.records, longest.report.Head.Records))
				return err
			})
		})
		switch {
		case unreadable(ctx, err):
			d.unread = append(d.unread, unread{r.name, r.path, r.id, fmt.Errorf("compare with %s: %w", longest.name, err)})
			continue
		case err != nil && (ctx.Err() != nil || r.report.Holds() && longest.report.Holds()):
			return fmt.Errorf("compare %s with %s: %w", r.name, longest.name, err)
		}
		d.agreements = append(d.agreements, a)
	}
	return nil
}

// problem is one thing that does not hold.
type problem struct {
	short string // which, for standard error
	full  string // and what is wrong
}

// findProblems collects what does not hold, first things first; none: everything holds.
func (d *auditOutcome) findProblems() {
	broken := func(name string, index uint64, what string) {
		short, at := "see the report", ""
		if index > 0 {
			short, at = fmt.Sprintf("see record %d in the report", index), fmt.Sprintf("record %d: ", index)
		}
		d.problems = append(d.problems, problem{fmt.Sprintf("%s's history does not hold: %s", name, short),
			fmt.Sprintf("%s's history does not hold: %s%s", name, at, what)})
	}
	for _, r := range d.results {
		for _, f := range r.report.Findings {
			broken(r.name, f.Index, fmt.Sprintf("%s: %s", f.Kind, f.What))
		}
	}
	for _, a := range d.agreements {
		if a.Parts() {
			short := fmt.Sprintf("the histories of %s and %s part after %d %s", a.of.name, a.with.name, a.Same, plural(a.Same, "record"))
			d.problems = append(d.problems, problem{short, fmt.Sprintf("%s: at index %d and %d", short, a.LeftIndex, a.RightIndex)})
		}
	}
	if d.rechecked != nil {
		for _, w := range d.rechecked.Wrong {
			broken(d.results[0].name, w.Index, w.What)
		}
	}
}

// unverified says what was asked for and could not be verified, in full or in short; empty: nothing.
func (d *auditOutcome) unverified(full bool) string {
	var parts []string
	if n := len(d.unread); n > 0 && !full {
		parts = append(parts, fmt.Sprintf("%d of %d histories could not be read", n, d.asked))
	}
	for _, u := range d.unread {
		if full {
			parts = append(parts, fmt.Sprintf("%s could not be read: %v", u.name, u.err))
		}
	}
	if d.notDone != "" {
		parts = append(parts, "nothing was searched again"+choose(full, ": "+d.notDone, ""))
	}
	return strings.Join(parts, "; ")
}

// failure is what the audit ends with: what does not hold goes before what is not known. The report for people has just said
// the rest, so that it is short for them.
func (d *auditOutcome) failure(full bool) error {
	switch unverified := d.unverified(full); {
	case len(d.problems) > 0 && full:
		return errors.New(d.problems[0].full)
	case len(d.problems) > 0:
		return errors.New(d.problems[0].short)
	case unverified != "":
		return errors.New(unverified + choose(full, "", ": see the report"))
	}
	return nil
}

// mayExport refuses to put an export into the place of what is no export, above all of a file of a data directory.
func mayExport(path string) error {
	return mayReplace(path, "export of a history", func(r io.Reader) error {
		_, err := audit.NewImport(r)
		return err
	})
}

// mayReplace reports whether a file may be written at path: there is none, an empty one, or one that is read as another of its
// kind, in a folder that takes another file. What is to be written may take long to make.
func mayReplace(path, kind string, read func(io.Reader) error) error {
	folder := filepath.Dir(path)
	if err := unix.Access(folder, unix.W_OK|unix.X_OK); err != nil {
		return hinted(fmt.Errorf("the folder %s: %w", folder, err), "choose a file in a folder that is there and can be written to")
	}
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
	err = a.shown(out, "exported").read(ctx, func(p pass) error {
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
