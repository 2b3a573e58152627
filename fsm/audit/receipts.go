package audit

import (
	"fmt"
	"math"
	"strings"

	"raftmine/fsm/pow"
)

// FalseAlarm is how rarely an honest miner is called implausible: once in this many of its finished ranges, or less. And
// of so many ranges that are really searched one, or less, is called impossible.
const FalseAlarm = 1e9

// maxImpossible bounds how many of a miner's impossible ranges are listed.
const maxImpossible = 10

// impossibleExcess is the excess that a range has once in FalseAlarm times, or less, when all of it is searched.
var impossibleExcess = math.Log(FalseAlarm)

// Receipts is what one miner's receipts say of its work, over all ranges that it ever finished.
type Receipts struct {
	pow.Receipts
	// Flagged is the place of the range with which the suspicion reached FalseAlarm, and FlaggedAfter the number of
	// ranges by then; zero when it never did. When it does so again after a Revoke, that place counts.
	Flagged      Place
	FlaggedAfter uint64
	Revoked      uint64 // chunks that were taken back, because a leader did not believe the miner either

	// Impossible is how many ranges have a receipt that alone says that they were not searched, and FirstImpossible the
	// first of these. Others is what the receipts of all other ranges say in sum.
	Impossible      uint64
	FirstImpossible []ImpossibleRange
	Others          pow.Receipts

	answered bool // the last Revoke came after Flagged
}

// ImpossibleRange is a finished range with a receipt that no search comes to.
type ImpossibleRange struct {
	Finished  Place
	Nonces    pow.Range
	LogPValue float64 // natural logarithm of the probability that the receipt of a range that is searched is this bad, or worse
}

// Add counts a finished range and reports whether it is the one that makes the miner implausible.
func (s *Receipts) Add(nonces pow.Range, excess float64, at Place) bool {
	if excess < impossibleExcess {
		s.Others.Ranges++
		s.Others.Nonces += nonces.Len()
		s.Others.Excess += excess
	} else if s.Impossible++; s.Impossible <= maxImpossible {
		s.FirstImpossible = append(s.FirstImpossible, ImpossibleRange{Finished: at, Nonces: nonces, LogPValue: -excess})
	}
	if suspicion := s.Receipts.Add(nonces.Len(), excess); suspicion >= FalseAlarm && (s.FlaggedAfter == 0 || s.answered) {
		s.Flagged, s.FlaggedAfter, s.answered = at, s.Ranges, false
		return true
	}
	return false
}

// Share estimates the share of the work that was done in all ranges but the impossible ones, with the bounds between which
// it lies in 95 % of all cases or more. It takes for granted that it was the same share in each of them, which the
// receipts do not say; ok is false when there is no such range.
func (s *Receipts) Share() (share, low, high float64, ok bool) {
	share, low, high = s.Others.Share()
	return whole(share), whole(low), whole(high), s.Others.Ranges > 0
}

// whole corrects a share that was estimated without the impossible ranges, which takes the worst away: when the share f is
// searched, the mean excess of the others is 1/f - c/(e^(fc)-1), where c is impossibleExcess, and not 1/f.
func whole(estimate float64) float64 {
	low, high := 0.0, estimate
	for range 60 {
		f := (low + high) / 2
		if mean := 1/f - impossibleExcess/math.Expm1(f*impossibleExcess); mean > 1/estimate {
			low = f
		} else {
			high = f
		}
	}
	return high
}

// String is what is known of an implausible miner's work, and how sure it is.
func (s *Receipts) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "after %s its receipts say that the work was not done, which an honest miner's do with a probability of %g at most",
		ranges(s.FlaggedAfter), float64(s.FlaggedAfter)/FalseAlarm)
	if s.Impossible > 0 {
		fmt.Fprintf(&text, "; %d of its %s cannot have been searched (p is how likely one that is comes out as bad): %s", s.Impossible, ranges(s.Ranges), s.listImpossible())
	}
	if share, low, high, ok := s.Share(); ok {
		of := "its " + ranges(s.Ranges)
		if s.Impossible > 0 {
			of = "the other " + ranges(s.Others.Ranges)
		}
		fmt.Fprintf(&text, "; if it searched the same share of each of %s, that is %.1f %% (%.1f to %.1f %%, 95 times of 100)", of,
			100*share, 100*low, 100*high)
	}
	return text.String()
}

// listImpossible names the first impossible ranges.
func (s *Receipts) listImpossible() string {
	const listed = 3
	var text []string
	for _, r := range s.FirstImpossible[:min(listed, len(s.FirstImpossible))] {
		text = append(text, fmt.Sprintf("%s in record %d with p = 10^%.0f", r.Nonces, r.Finished.Index, r.LogPValue/math.Ln10))
	}
	if more := s.Impossible - uint64(len(text)); more > 0 {
		text = append(text, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(text, ", ")
}

func ranges(n uint64) string {
	if n == 1 {
		return "1 range"
	}
	return fmt.Sprintf("%d ranges", n)
}

// Implausible reports whether the receipts say that the work was not done.
func (s *Receipts) Implausible() bool { return s.FlaggedAfter != 0 }

// Unanswered reports whether they say so, and nothing was done about it.
func (s *Receipts) Unanswered() bool { return s.Implausible() && !s.answered }

// revoke counts chunks that were taken back. Then the suspicion starts anew.
func (s *Receipts) revoke(chunks uint64) {
	s.Revoked += chunks
	s.answered = true
	s.Answered()
}
