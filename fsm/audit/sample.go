package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"math"

	"raftmine/fsm/pow"
)

// Beginning returns the first n records.
func Beginning(records Records, n uint64) Records {
	return func(yield func(Record, error) bool) {
		if n == 0 {
			return
		}
		left := n
		for record, err := range records {
			left--
			if !yield(record, err) || err != nil || left == 0 {
				return
			}
		}
	}
}

// sampleDomain makes the sample's hashes differ from all others. Protocol: with it and the head everybody draws the same.
const sampleDomain = "raftmine recheck 1"

// Drawn reports whether a finished range is in the sample of that size. It is when the first 8 bytes of
//
//	SHA256("raftmine recheck 1" || chain || index || command)
//
// as a big-endian number are below fraction * 2^64, where chain is the head's chain hash, index the record's and command
// the position of the Finish in it, from 0, each 8 bytes big endian. Nobody knows the sample before the head is written.
func Drawn(chain pow.Hash, at Place, fraction float64) bool {
	if fraction >= 1 {
		return true
	}
	message := append([]byte(sampleDomain), chain[:]...)
	message = binary.BigEndian.AppendUint64(message, at.Index)
	message = binary.BigEndian.AppendUint64(message, uint64(at.Command))
	sum := sha256.Sum256(message)
	return float64(binary.BigEndian.Uint64(sum[:8])) < math.Ldexp(fraction, 64)
}

// Sampled is a range to search again.
type Sampled struct {
	Searched
	Revoked bool // it is not believed already: others searched it again
}

// Sample tells each drawn range, in order. The head is what Replay gave for the same history, which may have grown since.
func Sample(records Records, head Head, fraction float64, each func(Sampled) error) error {
	var round []Sampled // of the current round: it may be revoked yet
	flush := func() error {
		for _, s := range round {
			if err := each(s); err != nil {
				return err
			}
		}
		round = round[:0]
		return nil
	}
	report, err := Replay(Beginning(records, head.Records), Options{
		Searched: func(s Searched) error {
			if len(round) > 0 && (round[0].JobID != s.JobID || round[0].Round != s.Round) {
				if err := flush(); err != nil {
					return err
				}
			}
			if Drawn(head.Chain, s.Finished, fraction) {
				round = append(round, Sampled{Searched: s})
			}
			return nil
		},
		Visit: func(event Event) error {
			if e, ok := event.(Revoked); ok {
				for i := range round {
					for _, nonces := range e.Ranges {
						if round[i].JobID == e.JobID && nonces.First <= round[i].Nonces.Last && round[i].Nonces.First <= nonces.Last {
							round[i].Revoked = true
						}
					}
				}
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	if report.Head.Records != head.Records || report.Head.Chain != head.Chain {
		return fmt.Errorf("sample: the history of %d records ends with %s, not with %s: %w", report.Head.Records,
			report.Head.Chain, head.Chain, ErrBroken)
	}
	return flush()
}

// Agreement is how two histories compare. Same is how many records they share from the first one on.
type Agreement struct {
	Same uint64
	// Left and Right say whether that history has more records. When both have, they part: LeftIndex and RightIndex are
	// the indexes of the first records that differ.
	Left, Right           bool
	LeftIndex, RightIndex uint64
}

// Parts reports whether the histories differ, and not only in length.
func (a Agreement) Parts() bool { return a.Left && a.Right }

// Compare walks two histories side by side, to the first difference or to the end of one.
func Compare(left, right Records) (a Agreement, err error) {
	nextLeft, stopLeft := iter.Pull2(left)
	defer stopLeft()
	nextRight, stopRight := iter.Pull2(right)
	defer stopRight()
	for {
		l, leftErr, leftMore := nextLeft()
		r, rightErr, rightMore := nextRight()
		if leftErr != nil {
			return a, leftErr
		}
		if rightErr != nil {
			return a, rightErr
		}
		a.Left, a.Right = leftMore, rightMore
		a.LeftIndex, a.RightIndex = l.Index, r.Index
		if !leftMore || !rightMore {
			return a, nil
		}
		if l.Index != r.Index || l.Term != r.Term || l.Chain != r.Chain || !bytes.Equal(l.Data, r.Data) {
			return a, nil
		}
		a.Same++
	}
}
