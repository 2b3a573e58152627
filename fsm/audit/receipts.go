package audit

import "raftmine/fsm/pow"

// FalseAlarm is how rarely an honest miner is called implausible: once in this many of its finished ranges, or less.
const FalseAlarm = 1e9

// Receipts is what one miner's receipts say of its work, over all ranges that it ever finished.
type Receipts struct {
	pow.Receipts
	// Flagged is the place of the range with which the suspicion reached FalseAlarm, and FlaggedAfter the number of
	// ranges by then; zero when it never did. When it does so again after a Revoke, that place counts.
	Flagged      Place
	FlaggedAfter uint64
	Revoked      uint64 // chunks that were taken back, because a leader did not believe the miner either

	answered bool // the last Revoke came after Flagged
}

// Add counts a finished range and reports whether it is the one that makes the miner implausible.
func (s *Receipts) Add(nonces uint64, excess float64, at Place) bool {
	if suspicion := s.Receipts.Add(nonces, excess); suspicion >= FalseAlarm && (s.FlaggedAfter == 0 || s.answered) {
		s.Flagged, s.FlaggedAfter, s.answered = at, s.Ranges, false
		return true
	}
	return false
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
