package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"raftmine/fsm/audit"
	"raftmine/fsm/pow"
	"raftmine/raftnode"
)

// source is one history to audit: a server's journal or an export.
type source struct {
	name    string // for people: "server 1"
	path    string
	id      uint64      // of the server; 0: not known
	cluster string      // id of the server's cluster; empty: not known
	live    *audit.Live // what the server said of its state; nil: it was not asked
	last    uint64      // index of the last record; 0: not known
	// open begins a pass over the history, which ends with ctx.
	open func(ctx context.Context) (p pass, err error)
}

// pass is one reading of a history.
type pass struct {
	records audit.Records
	endsAt  func() (audit.Head, bool) // for audit.Options; nil: the source does not say
	close   func() error
}

// findSources returns the histories that the arguments name, data directories, folders of "raftmine run", and exports, and
// those of running servers. The longest comes first: a server that was killed has less to tell. Servers that do not answer,
// and directories of a run that cannot be read, are returned apart, unless there is nothing else: then they are the error.
func findSources(ctx context.Context, out *printer, args, servers []string) ([]source, []unread, error) {
	sources, silent, err := namedSources(args)
	if err != nil {
		return nil, nil, err
	}
	running, gone, err := serverSources(ctx, servers)
	silent = append(silent, gone...)
	if sources = append(sources, running...); err == nil && len(sources) == 0 {
		err = nothingRead(silent)
	}
	if err != nil || len(sources) == 1 {
		return sources, silent, err
	}
	named := make(map[string]int)
	for _, s := range sources {
		named[s.name]++
	}
	for i, s := range sources {
		if named[s.name] > 1 { // copies, or a server and its own directory
			sources[i].name = fmt.Sprintf("%s (%s)", s.name, s.path)
		}
	}
	for i := range sources {
		s := &sources[i]
		if s.last > 0 {
			continue
		}
		err := s.shown(out, "counted").read(ctx, func(p pass) error {
			for r, err := range p.records {
				if err != nil {
					return ctx.Err() // what is broken is the audit's to say
				}
				s.last = r.Index
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	slices.SortStableFunc(sources, func(a, b source) int { return cmp.Compare(b.last, a.last) })
	return sources, silent, nil
}

// unread is a history that was asked for and could not be read, or not to its end. Nothing is known of it.
type unread struct {
	name, path string
	id         uint64 // of the server; 0: not known
	err        error
}

// nothingRead is the error when nothing else is left to audit.
func nothingRead(all []unread) error {
	var errs []error
	for _, u := range all {
		errs = append(errs, fmt.Errorf("%s: %w", u.name, u.err))
	}
	err := errors.Join(errs...)
	if hintFor(err) != "" {
		return err
	}
	return hinted(err, "check the address, and that a server runs there; the history of one that does not run is in its data directory")
}

// namedSources returns the histories of args. In a run's folder the directories that cannot be read are returned apart: a
// server that lost its disk does not hide the others. One that args name themselves is an error.
func namedSources(args []string) (sources []source, lost []unread, err error) {
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil {
			return nil, nil, err
		}
		if !info.IsDir() {
			s, err := exportSource(arg)
			if err != nil {
				return nil, nil, err
			}
			sources = append(sources, s)
			continue
		}
		dirs, err := dataDirsIn(arg)
		if err != nil {
			return nil, nil, err
		}
		for _, dir := range dirs {
			s, err := journalSource(dir)
			switch {
			case err == nil:
				sources = append(sources, s)
			case dir == arg:
				return nil, nil, err
			default:
				name, _ := filepath.Rel(arg, dir)
				lost = append(lost, unread{name: name, path: dir,
					err: hinted(err, "name a data directory that can be read, or a file that \"raftmine audit --export\" wrote")})
			}
		}
	}
	return sources, lost, nil
}

// dataDirsIn returns dir, or the servers' data directories when it is a run's folder.
func dataDirsIn(dir string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(dir, "servers")); errors.Is(err, fs.ErrNotExist) {
		return []string{dir}, nil
	}
	entries, err := os.ReadDir(filepath.Join(dir, "servers"))
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, entry := range entries {
		if entry.IsDir() {
			dirs = append(dirs, filepath.Join(dir, "servers", entry.Name()))
		}
	}
	slices.SortFunc(dirs, func(a, b string) int { // 2 before 10
		x, errX := strconv.Atoi(filepath.Base(a))
		y, errY := strconv.Atoi(filepath.Base(b))
		if errX != nil || errY != nil {
			return slices.Compare([]byte(a), []byte(b))
		}
		return x - y
	})
	if len(dirs) == 0 {
		return nil, fmt.Errorf("%s holds no server's data directory", filepath.Join(dir, "servers"))
	}
	return dirs, nil
}

func journalSource(dir string) (source, error) {
	// Read once, so that a directory without a history is a mistake of the command line, and not a broken history.
	reader, err := raftnode.ReadJournal(dir)
	if err == nil && !begun(reader) {
		err = errors.Join(errNoRecord, reader.Close())
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoRecord) {
		return source{}, hinted(fmt.Errorf("%s holds no history: %w", dir, err),
			"name a server's data directory, the folder of a \"raftmine run\", or a file that \"raftmine audit --export\" wrote")
	} else if err != nil {
		return source{}, err
	}
	s := source{path: dir, id: reader.Identity().ServerID, cluster: reader.Identity().ClusterID, name: dir}
	if s.id != 0 {
		s.name = fmt.Sprintf("server %d", s.id)
	}
	if err := reader.Close(); err != nil {
		return source{}, err
	}
	s.open = func(context.Context) (pass, error) {
		reader, err := raftnode.ReadJournal(dir)
		if err != nil {
			return pass{}, err
		}
		records := func(yield func(audit.Record, error) bool) {
			for r, err := range reader.Unhashed() { // a replay hashes it
				record := audit.Record{Index: r.Index, Term: r.Term, Data: r.Data, Chain: r.Chain}
				if !yield(record, placed(err)) {
					return
				}
			}
		}
		return pass{records: records, close: reader.Close}, nil
	}
	return s, nil
}

var errNoRecord = errors.New("its journal has no record yet")

// begun reports whether a journal has a first record, or what should be one: what is broken is the audit's to say.
func begun(journal *raftnode.JournalReader) bool {
	for range journal.Unhashed() {
		return true
	}
	return false
}

func exportSource(path string) (source, error) {
	s := source{name: filepath.Base(path), path: path, open: func(context.Context) (pass, error) {
		file, err := openRegular(path)
		if err != nil {
			return pass{}, err
		}
		export, err := audit.NewImport(file)
		if err != nil {
			return pass{}, errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
		}
		return pass{records: export.Records(), endsAt: export.End, close: file.Close}, nil
	}}
	p, err := s.open(context.Background()) // as with journals: another file is a mistake of the command line
	if err != nil {
		return source{}, hinted(err, "name a server's data directory, the folder of a \"raftmine run\", or a file that \"raftmine audit --export\" wrote")
	}
	return s, p.close()
}

// placedError says which record an error of a journal is about.
type placedError struct {
	error
	index uint64
}

func (e placedError) Unwrap() error       { return e.error }
func (e placedError) RecordIndex() uint64 { return e.index }

func placed(err error) error {
	var damaged *raftnode.JournalError
	var gap *raftnode.HistoryGapError
	switch {
	case errors.As(err, &damaged) && damaged.Index > 0: // else it is about no record
		return placedError{err, damaged.Index}
	case errors.As(err, &gap):
		return placedError{err, gap.After + 1}
	}
	return err
}

// shownEach is how many records pass between two changes of a live line.
const shownEach = 1 << 13

// shown returns s with passes that show on a terminal how far they are. done says what is done with a record.
func (s source) shown(out *printer, done string) source {
	if !out.terminal {
		return s
	}
	open := s.open
	s.open = func(ctx context.Context) (pass, error) {
		p, err := open(ctx)
		if err != nil {
			return pass{}, err
		}
		records := p.records
		p.records = func(yield func(audit.Record, error) bool) {
			defer out.setLive("")
			n, began := 0, time.Now()
			for record, err := range records {
				if !yield(record, err) {
					return
				}
				if n++; n%shownEach == 0 {
					out.setLive(fmt.Sprintf("%s: %d records %s, %.0f/s", s.name, n, done, float64(n)/time.Since(began).Seconds()))
				}
			}
		}
		return p, nil
	}
	return s
}

// noting returns s with passes that keep the chain hash of each record whose index is in chains. A replay says how far it is right.
func (s source) noting(chains map[uint64]pow.Hash) source {
	open := s.open
	s.open = func(ctx context.Context) (pass, error) {
		p, err := open(ctx)
		if err != nil {
			return pass{}, err
		}
		records := p.records
		p.records = func(yield func(audit.Record, error) bool) {
			for record, err := range records {
				if _, wanted := chains[record.Index]; wanted && err == nil {
					chains[record.Index] = record.Chain
				}
				if !yield(record, err) {
					return
				}
			}
		}
		return p, nil
	}
	return s
}

// begin begins a pass whose records end with ctx.
func (s source) begin(ctx context.Context) (pass, error) {
	p, err := s.open(ctx)
	if err != nil {
		return pass{}, err
	}
	records := p.records
	p.records = func(yield func(audit.Record, error) bool) {
		n := 0
		for record, err := range records {
			if n++; n%1024 == 0 && ctx.Err() != nil {
				yield(audit.Record{}, ctx.Err())
				return
			}
			if !yield(record, err) {
				return
			}
		}
	}
	return p, nil
}

// read makes one pass that ends with ctx.
func (s source) read(ctx context.Context, with func(pass) error) (err error) {
	p, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	return with(p)
}
