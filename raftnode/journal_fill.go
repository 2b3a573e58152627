package raftnode

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"time"

	"raftmine/fsm"
)

const (
	// fillPauseMost bounds the pause after other servers could not fill a gap. The first one is a heartbeat. Tuning.
	fillPauseMost = time.Minute
	// quietHeartbeats is how long a server that sends records may send none.
	quietHeartbeats = 3
)

// HistoryRequest asks a server for a part of its history: the records with AfterIndex < index <= LastIndex.
type HistoryRequest struct {
	ClusterID  string // empty: whichever it is
	AfterIndex uint64
	LastIndex  uint64 // 0: up to the end
}

// HandleHistory yields records of this server's history, and at last an error, if there was one. One that has a gap itself
// yields what comes before it, then a *HistoryGapError. Data is valid until the next step.
func (n *Node) HandleHistory(ctx context.Context, request HistoryRequest) iter.Seq2[JournalRecord, error] {
	return func(yield func(JournalRecord, error) bool) {
		if err := n.sendHistory(ctx, request, yield); err != nil {
			yield(JournalRecord{}, fmt.Errorf("history after index %d: %w", request.AfterIndex, err))
		}
	}
}

func (n *Node) sendHistory(ctx context.Context, request HistoryRequest, yield func(JournalRecord, error) bool) error {
	if request.ClusterID != "" && request.ClusterID != n.clusterID {
		return fmt.Errorf("it is of cluster %s, this is %s: %w", request.ClusterID, n.clusterID, ErrForeignCluster)
	}
	if err := n.alive(); err != nil {
		return err
	}
	reader, err := ReadJournal(n.config.DataDir.Path())
	if err != nil {
		return err
	}
	defer reader.Close()
	for record, err := range reader.After(request.AfterIndex) {
		if err != nil {
			return err
		}
		if err := errors.Join(ctx.Err(), n.alive()); err != nil {
			return err
		}
		if request.LastIndex > 0 && record.Index > request.LastIndex {
			return nil
		}
		if !yield(record, nil) || record.Index == request.LastIndex {
			return nil
		}
	}
	return nil
}

// keepHistory fills gaps from other servers, until ctx ends.
func (n *Node) keepHistory(ctx context.Context) {
	pause := n.config.Heartbeat
	f := n.journal.fill(fsm.Head{}, fsm.Head{}) // what came of the gap, kept while servers break off
	defer func() { _ = f.discard() }()          // what is left the next start removes
	for ctx.Err() == nil {
		from, to, ok := n.journal.gap()
		if !ok {
			select {
			case <-ctx.Done():
			case <-n.journal.gapped:
			}
			continue
		}
		if f.from != from || f.to != to {
			_ = f.discard()
			f = n.journal.fill(from, to)
		}
		err := n.fillGap(ctx, f)
		switch {
		case err == nil:
			pause = n.config.Heartbeat
			n.log.Info("gap in the history filled", "records", to.Records-from.Records, "until_index", to.Index)
		case ctx.Err() == nil:
			n.log.Info("gap in the history not filled, trying again", "missing", n.journal.missing(), "error", err)
			sleep(ctx, pause)
			pause = min(2*pause, max(fillPauseMost, n.config.Heartbeat))
		}
	}
}

var errNobodyToAsk = errors.New("no other server is known")

// fillGap asks one server after the other, going on where the one before, or the attempt before, ended. Nothing is put into the
// journal until all of it leads to the head behind the gap.
func (n *Node) fillGap(ctx context.Context, f *gapFill) error {
	var errs []error
	for _, id := range n.othersWanted() {
		address := n.book.address(id)
		if address == "" {
			continue
		}
		others := f.head != f.from
		err := n.receiveHistory(ctx, address, f)
		if others && errors.Is(err, ErrJournalMismatch) { // it lies, or the others did: it is asked for all of it
			err = n.receiveHistory(ctx, address, f)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("server %d: %w", id, err))
		}
		if f.head == f.to {
			if err := f.install(); err != nil {
				return errors.Join(err, f.discard())
			}
			return nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return errNobodyToAsk
	}
	return errors.Join(errs...)
}

func (n *Node) receiveHistory(ctx context.Context, address string, f *gapFill) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	quiet := quietHeartbeats * n.config.Heartbeat
	timer := time.AfterFunc(quiet, cancel)
	defer timer.Stop()
	request := HistoryRequest{ClusterID: n.clusterID, AfterIndex: f.head.Index, LastIndex: f.to.Index}
	for record, err := range n.config.Peers.History(ctx, address, request) {
		if err != nil {
			return err
		}
		timer.Reset(quiet)
		if err := f.add(record); err != nil {
			return err
		}
		if f.head == f.to {
			return nil
		}
	}
	return fmt.Errorf("it sent no more than index %d of %d", f.head.Index, f.to.Index)
}

// gapFill gathers the records of a gap in files beside the journal. It is used by one goroutine.
type gapFill struct {
	journal  *journal
	from, to fsm.Head
	head     fsm.Head // after the last record
	files    []segment
	out      JournalFile
	size     int64
	buffer   []byte
}

func (j *journal) fill(from, to fsm.Head) *gapFill {
	return &gapFill{journal: j, from: from, to: to, head: from}
}

// add takes the next record. One that cannot belong here spoils all that came before: a false record is found only when the
// chain does not lead to the head behind the gap, so whoever sent it, everything goes.
func (f *gapFill) add(record JournalRecord) error {
	if record.Index <= f.head.Index || record.Term < f.head.Term || record.Term == 0 || len(record.Data) > fsm.MaxEntrySize {
		return errors.Join(fmt.Errorf("%w: record of index %d and term %d after index %d and term %d", ErrJournalMismatch,
			record.Index, record.Term, f.head.Index, f.head.Term), f.discard())
	}
	next := f.head.Next(record.Index, record.Term, record.Data)
	if next.Hash != record.Chain || (next.Records >= f.to.Records || next.Index >= f.to.Index) && next != f.to {
		return errors.Join(fmt.Errorf("%w: its record %d of index %d has chain %x, which does not lead to record %d of index %d, chain %s",
			ErrJournalMismatch, next.Records, next.Index, record.Chain, f.to.Records, f.to.Index, f.to.Hash), f.discard())
	}
	if f.out == nil || f.size >= f.journal.config.segmentBytes {
		if err := f.begin(); err != nil {
			return err
		}
	}
	f.buffer = appendRecord(f.buffer[:0], next, record.Data)
	if _, err := f.out.Write(f.buffer); err != nil {
		return unwritable(f.files[len(f.files)-1].path, errors.Join(err, f.discard()))
	}
	f.size += int64(len(f.buffer))
	f.files[len(f.files)-1].end, f.head = next, next
	return nil
}

func (f *gapFill) begin() error {
	if err := f.endFile(); err != nil {
		return errors.Join(err, f.discard())
	}
	path := filepath.Join(f.journal.dir, segmentName(f.head)+fetchedSuffix)
	header := segmentHeader{clusterID: f.journal.config.clusterID, continues: true, base: f.head}
	out, err := createSegment(f.journal.config, path, header)
	if err != nil {
		return errors.Join(err, f.discard())
	}
	f.out, f.size = out, segmentHeaderSize
	f.files = append(f.files, segment{path: path, continues: true, base: f.head, end: f.head})
	return nil
}

func (f *gapFill) endFile() error {
	if f.out == nil {
		return nil
	}
	err := errors.Join(f.out.Sync(), f.out.Close())
	f.out = nil
	if err != nil {
		return unwritable(f.files[len(f.files)-1].path, err)
	}
	return nil
}

// discard removes what was gathered and not installed.
func (f *gapFill) discard() (err error) {
	if f.out != nil {
		err = f.out.Close()
		f.out = nil
	}
	for _, s := range f.files {
		err = errors.Join(err, os.Remove(s.path))
	}
	f.files, f.head = nil, f.from
	return err
}

// install puts the files, which lead to the head behind the gap, into the journal. A kill in between leaves a smaller gap.
func (f *gapFill) install() error {
	if err := f.endFile(); err != nil {
		return err
	}
	for len(f.files) > 0 {
		s := f.files[0]
		fetched := s.path
		s.path = filepath.Join(f.journal.dir, baseName(fetched))
		// Where a snapshot came after another one, this takes the place of the segment between them, which has no record.
		if err := os.Rename(fetched, s.path); err != nil {
			return err
		}
		f.files = f.files[1:]
		f.journal.insert(s)
	}
	return syncDir(f.journal.dir)
}

// insert adds a segment that fills a gap, or a part of it from its beginning on.
func (j *journal) insert(s segment) {
	j.mu.Lock()
	defer j.mu.Unlock()
	at, empty := slices.BinarySearchFunc(j.segments, s.base.Records, func(other segment, records uint64) int {
		switch {
		case other.base.Records < records:
			return -1
		case other.base.Records > records:
			return 1
		}
		return 0
	})
	if empty {
		j.segments[at] = s
	} else {
		j.segments = slices.Insert(j.segments, at, s)
	}
	j.count()
}
