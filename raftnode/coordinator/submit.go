package coordinator

import (
	"errors"
	"fmt"
	"log/slog"

	"raftmine/fsm"
)

// settle hands in the solution of s.job and logs the verdict. The intent is logged before each request. A request without
// an answer, of this leader or of the one before, leaves its outcome in doubt: then the web service's current block says
// what came of it.
func (c *Coordinator) settle(s snapshot) error {
	job := s.job
	retry := newBackoff(c.cfg.Heartbeat/50, c.cfg.Heartbeat)
	for {
		if c.doubt == job.ID {
			verdict, detail, again, err := c.infer(job)
			if err != nil {
				return nil // the term is over
			}
			if !again {
				return c.logVerdict(job, verdict, detail)
			}
		}
		if job.Phase == fsm.PhaseSolved || c.doubt == job.ID {
			outcomes, err := c.propose(fsm.Submitting{JobID: job.ID})
			if err != nil {
				return fmt.Errorf("log the intent to submit job %d: %w", job.ID, err)
			}
			if outcomes[0].Code != fsm.Done {
				return nil // somebody else is further: look again
			}
			job.Phase = fsm.PhaseSubmitting
		}
		if err := c.cfg.Proposer.VerifyLeader(c.term); err != nil {
			return fmt.Errorf("submit job %d: %w", job.ID, err)
		}
		inDoubt := c.doubt == job.ID
		c.doubt = job.ID
		reply, err := c.cfg.Source.Submit(c.term, job.Solution.Nonce, job.Timestamp)
		c.serviceAnswered(err)
		if err == nil {
			if !reply.Accepted {
				return c.rejected(job, reply, inDoubt)
			}
			return c.logVerdict(job, fsm.VerdictSuccess, reply.Detail)
		}
		c.log.Info("submission has no verdict yet", "job", job.ID, "height", job.Height, "error", err)
		if !c.sleep(retry.NextBackOff()) {
			return nil
		}
	}
}

// infer asks the web service's current block what came of a submission without an answer: again means that it was not
// taken. Its error is the end of the term.
func (c *Coordinator) infer(job fsm.Job) (verdict fsm.Verdict, detail string, again bool, err error) {
	block, err := c.fetchUntil()
	switch {
	case err != nil:
		return 0, "", false, err
	case block.Previous == job.Solution.Hash:
		return fsm.VerdictSuccess, "inferred: the web service asks for the block after it", false, nil
	case block.Previous == job.Previous:
		return 0, "", true, nil
	}
	return fsm.VerdictUnknown, "no answer, and the web service asks for another block: " + block.Previous.String(), false, nil
}

// rejected settles a solution that the web service did not accept. When a request before had no answer, that one may have
// been accepted, which makes the second one wrong.
func (c *Coordinator) rejected(job fsm.Job, reply Reply, inDoubt bool) error {
	block, err := c.fetchUntil()
	switch {
	case err != nil:
		return nil // the term is over
	case block.Previous == job.Previous:
		return c.logVerdict(job, fsm.VerdictWrong, reply.Detail)
	case block.Previous == job.Solution.Hash:
		return c.logVerdict(job, fsm.VerdictSuccess, "inferred: the web service asks for the block after it")
	case inDoubt:
		return c.logVerdict(job, fsm.VerdictUnknown, "submitted more than once; last answer: "+reply.Detail)
	}
	return c.logVerdict(job, fsm.VerdictStale, reply.Detail)
}

// logVerdict closes the job. What the web service said is not lost to a failed commit: it is proposed again within the term.
func (c *Coordinator) logVerdict(job fsm.Job, verdict fsm.Verdict, detail string) error {
	retry := newBackoff(c.cfg.Heartbeat/100, c.cfg.Heartbeat/5)
	for {
		outcomes, err := c.propose(fsm.Submitted{JobID: job.ID, Verdict: verdict, Detail: fsm.Line(detail)})
		switch {
		case err == nil && (outcomes[0].Code == fsm.Wrong || outcomes[0].Code == fsm.Refused):
			return fmt.Errorf("log the verdict of job %d: %s", job.ID, outcomes[0].Detail)
		case err == nil:
			c.log.Info("block settled", "job", job.ID, "height", job.Height, "hash", job.Solution.Hash,
				"nonce", job.Solution.Nonce, "miner", job.Solution.Miner, "verdict", verdict, "detail", fsm.Line(detail))
			return nil
		}
		level := slog.LevelWarn
		if errors.Is(err, ErrNotLeader) || c.term.Err() != nil { // leadership moves, and the next leader does this
			level = slog.LevelDebug
		}
		c.log.Log(c.term, level, "verdict not logged yet", "job", job.ID, "error", err)
		if !c.sleep(retry.NextBackOff()) {
			return nil
		}
	}
}
