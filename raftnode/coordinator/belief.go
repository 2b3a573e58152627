package coordinator

import (
	"fmt"
	"slices"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// When a miner is not believed. Tuning.
const (
	// impossible is the pow.Excess above which a single receipt is a wrong answer: once in e^24, or 26 billion honest
	// ranges. One that is less bad than that never reaches liar alone.
	impossible = 24
	// liar is the suspicion of pow.Receipts with which a miner is refused. By Doob's inequality an honest one reaches it
	// within k ranges with probability k/liar at most: less than once in a hundred million of its ranges. The audit asks
	// for ten times as much, so that what it would find is taken back before, as a rule.
	liar = 1e8
	// A good check is goodCheck ranges or more whose excesses come to 1 or less in the mean: every other try of an honest
	// miner, one of a hundred of a miner that hashes 80 %, one of 1e9 at 50 %. What was finished until then is believed
	// for good.
	goodCheck = 128
	// maxUnproven bounds the ranges that are remembered since the last good check; the oldest go first.
	maxUnproven = 512
)

// belief is what the receipts of one process of a miner say of it, in this term.
type belief struct {
	receipts pow.Receipts
	// Since the last good check: how many ranges, and the sum of their excesses.
	unchecked       uint32
	uncheckedExcess float64
	unproven        *unproven // nil: nothing
}

// unproven is what a miner finished in one round since the last good check. Neighbours are one range.
type unproven struct {
	jobID  uint64
	round  uint32
	ranges []pow.Range
}

// wouldLie reports whether one more range with that excess is too much to believe.
func (b *belief) wouldLie(nonces uint64, excess float64) bool {
	next := b.receipts
	return next.Add(nonces, excess) >= liar
}

// finished takes the receipt of a committed answer. It reports a good check.
func (b *belief) finished(job fsm.Job, nonces pow.Range, excess float64) bool {
	b.receipts.Add(nonces.Len(), excess)
	b.unchecked++
	b.uncheckedExcess += excess
	if b.unchecked >= goodCheck && b.uncheckedExcess <= float64(b.unchecked) {
		b.unchecked, b.uncheckedExcess, b.unproven = 0, 0, nil
		return true
	}
	if b.unproven == nil || b.unproven.jobID != job.ID || b.unproven.round != job.Round {
		b.unproven = &unproven{jobID: job.ID, round: job.Round}
	}
	b.unproven.add(nonces)
	return false
}

func (u *unproven) add(nonces pow.Range) {
	if n := len(u.ranges); n > 0 && u.ranges[n-1].Last+1 == nonces.First {
		u.ranges[n-1].Last = nonces.Last
		return
	}
	if len(u.ranges) == maxUnproven {
		u.ranges = slices.Delete(u.ranges, 0, 1)
	}
	u.ranges = append(u.ranges, nonces)
}

// takeBack returns the command that makes what is unproven of the job's round pending again; false: there is nothing.
func (b *belief) takeBack(job fsm.Job, name, why string) (fsm.Revoke, bool) {
	u := b.unproven
	if u == nil || u.jobID != job.ID || u.round != job.Round {
		return fsm.Revoke{}, false
	}
	return fsm.Revoke{JobID: u.jobID, Round: u.round, Miner: name, Ranges: slices.Clone(u.ranges), Reason: fsm.Line(why)}, true
}

// disbelief says why a miner with one more such range is not believed.
func (b *belief) disbelief(nonces uint64, excess float64) string {
	all := b.receipts
	all.Add(nonces, excess)
	share, low, high := all.Share()
	ranges := fmt.Sprintf("%d ranges", all.Ranges)
	if all.Ranges == 1 {
		ranges = "1 range"
	}
	return fmt.Sprintf("the receipts of %s say that the work was not done: %.0f %% of it (%.0f to %.0f %%) if the same share of each range was searched",
		ranges, 100*share, 100*low, 100*high)
}

// rate is the miner's hash rate as far as it is believed: what it reports, up to twice what its committed and plausible
// ranges come to; before the first of them nothing, unless it has solved a block. Caller holds Coordinator.mu.
func (m *miner) rate() float64 {
	reported := m.hashRate
	if reported == 0 {
		reported = m.seen
	}
	switch {
	case m.seen > 0:
		_, _, share := m.belief.receipts.Share()
		return min(reported, 2*m.seen*min(share, 1))
	case m.solved:
		return min(reported, maxClaimedRate)
	}
	return 0
}

// refusal returns why a name is refused work; nil: it is not. Caller holds mu.
func (c *Coordinator) refusal(m *miner, name string) error {
	if m != nil && m.refusal != nil {
		return m.refusal
	}
	if c.strikes(name) >= fsm.MaxStrikes {
		return fmt.Errorf("%w: %d strikes; until it was away for %v", ErrMinerRefused, fsm.MaxStrikes, c.cfg.ForgetAfter)
	}
	return nil
}

// forged reports whether the strikes of a name came to it by another process than this one, which did good work under it
// before. Names are not proven by anything: whoever finds one free may call itself so. Caller holds mu.
func (m *miner) forged(instance fsm.ID) bool {
	return m.proven == instance && m.struck != (fsm.ID{}) && m.struck != instance
}
