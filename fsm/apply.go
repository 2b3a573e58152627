package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// ErrOutOfOrder is returned for an entry that does not follow the last one that was applied.
var ErrOutOfOrder = errors.New("log entry is out of order")

// Apply applies one log entry. Indexes grow, but not by one: Raft's own entries are not applied. An error means that the
// replica must stop; the state is as it was. Everything that may happen in a healthy cluster is in the outcomes.
func (s *State) Apply(index, term uint64, data []byte) (Result, error) {
	if err := s.follows(index, term); err != nil {
		return Result{}, err
	}
	entry, err := s.decoder.Decode(data)
	if err != nil {
		return Result{}, fmt.Errorf("apply entry %d: %w", index, err)
	}
	return s.applyEntry(index, term, data, entry, nil), nil
}

// ApplyEntry is Apply for a caller that needs the entry itself and has decoded it: entry must be what DecodeEntry returns
// for data, so that an audit of many records decodes each of them once. The outcomes are valid until the next call.
func (s *State) ApplyEntry(index, term uint64, data []byte, entry Entry) (Result, error) {
	if err := s.follows(index, term); err != nil {
		return Result{}, err
	}
	result := s.applyEntry(index, term, data, entry, s.outcomes[:0])
	if s.outcomes = result.Outcomes; cap(s.outcomes) > maxKept {
		s.outcomes = nil
	}
	return result, nil
}

// applyEntry appends the outcomes to those that it is given.
func (s *State) applyEntry(index, term uint64, data []byte, entry Entry, outcomes []Outcome) Result {
	s.head = s.head.Next(index, term, data)
	step := step{State: s, index: index, term: term, unixMilli: entry.UnixMilli}
	outcomes = slices.Grow(outcomes, len(entry.Commands))
	for _, command := range entry.Commands {
		outcomes = append(outcomes, step.apply(command))
	}
	return Result{Outcomes: outcomes, Events: step.events}
}

// follows reports an entry that cannot come after the last one.
func (s *State) follows(index, term uint64) error {
	if index <= s.head.Index || term < s.head.Term || term == 0 {
		return fmt.Errorf("apply entry %d of term %d after entry %d of term %d: %w",
			index, term, s.head.Index, s.head.Term, ErrOutOfOrder)
	}
	return nil
}

// Next returns the head after one more entry. Who holds the entries, and not the state, can follow the history with it.
func (h Head) Next(index, term uint64, data []byte) Head {
	var short [512]byte // most entries fit
	chained := append(short[:0], h.Hash[:]...)
	chained = binary.BigEndian.AppendUint64(chained, index)
	chained = binary.BigEndian.AppendUint64(chained, term)
	chained = binary.BigEndian.AppendUint64(chained, uint64(len(data)))
	next := Head{Records: h.Records + 1, Index: index, Term: term}
	if len(chained)+len(data) <= len(short) {
		next.Hash = sha256.Sum256(append(chained, data...))
		return next
	}
	chain := sha256.New()
	chain.Write(chained)
	chain.Write(data)
	chain.Sum(next.Hash[:0])
	return next
}

// step is the application of one entry: the state, and what its commands may know of the entry.
type step struct {
	*State
	index, term, unixMilli uint64
	events                 []Event
}

func (s *step) emit(event Event) { s.events = append(s.events, event) }

// apply applies one command. Each method either changes the state and returns Done, or leaves it alone.
func (s *step) apply(command Command) Outcome {
	switch c := command.(type) {
	case OpenCluster:
		return s.openCluster(c)
	case TakeOffice:
		return s.takeOffice(c)
	case ClusterStop:
		return s.clusterStop()
	case Recover:
		return s.recover(c)
	case AddServer:
		return s.addServer(c)
	case UpdateServer:
		return s.updateServer(c)
	case ReadmitServer:
		return s.readmitServer(c)
	case RemoveServer:
		return s.removeServer(c)
	case ServerUp:
		return s.serverUp(c)
	case ServerDown:
		return s.serverDown(c)
	case OpenJob:
		return s.openJob(c)
	case Roll:
		return s.roll(c)
	case Submitting:
		return s.submitting(c)
	case Submitted:
		return s.submitted(c)
	case CloseJob:
		return s.closeJob(c)
	case GrantWork:
		return s.grantWork(c)
	case Finish:
		return s.finish(c)
	case Solve:
		return s.solve(c)
	case Release:
		return s.release(c)
	case Strike:
		return s.strike(c)
	case Revoke:
		return s.revoke(c)
	}
	return wrong("unknown command %T", command) // not reached: DecodeEntry knows every command
}

var (
	done      = Outcome{Code: Done}
	duplicate = Outcome{Code: Duplicate}
)

func wrong(format string, args ...any) Outcome   { return because(Wrong, format, args...) }
func stale(format string, args ...any) Outcome   { return because(Stale, format, args...) }
func refused(format string, args ...any) Outcome { return because(Refused, format, args...) }

func because(code Code, format string, args ...any) Outcome {
	return Outcome{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// addTo and takeFrom keep totals between 0 and their largest value: totals are for people, and must not wrap.
func addTo(total *uint64, n uint64) {
	if n > math.MaxUint64-*total {
		n = math.MaxUint64 - *total
	}
	*total += n
}

func takeFrom(total *uint64, n uint64) { *total -= min(n, *total) }

func addTo32(total *uint32, n uint32) { *total += min(n, math.MaxUint32-*total) }

func (s *step) openCluster(c OpenCluster) Outcome {
	switch s.clusterID {
	case "":
	case c.ClusterID:
		return duplicate
	default:
		return refused("the cluster is %s already", s.clusterID)
	}
	if c.ClusterID == "" {
		return wrong("the cluster id is empty")
	}
	s.clusterID = c.ClusterID
	return done
}

// takeOffice does not ask the server table: the first leader takes office before it is in it.
func (s *step) takeOffice(c TakeOffice) Outcome {
	switch {
	case c.ServerID == 0:
		return wrong("server 0 cannot lead")
	case s.term == s.office.Term && c.ServerID == s.office.ServerID:
		return duplicate
	case s.term <= s.office.Term: // at most one leader a term: Raft dissertation §3.2
		return refused("server %d is in office since term %d", s.office.ServerID, s.office.Term)
	}
	s.office = Office{ServerID: c.ServerID, Term: s.term, Index: s.index}
	s.stopped = false
	s.emit(LeaderChanged{ServerID: c.ServerID, Term: s.term})
	return done
}

func (s *step) clusterStop() Outcome {
	if s.stopped {
		return duplicate
	}
	s.stopped = true
	return done
}

func (s *step) recover(c Recover) Outcome {
	switch {
	case c.RecoveryID == ID{}:
		return wrong("the recovery id is zero")
	case c.Survivor == 0:
		return wrong("server 0 cannot survive")
	case c.Index >= s.index || c.Term > s.term:
		return wrong("recovered entry %d of term %d is not before entry %d of term %d", c.Index, c.Term, s.index, s.term)
	case s.recovery != nil && s.recovery.RecoveryID == c.RecoveryID:
		return duplicate
	}
	s.recovery = &c
	return done
}
