package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"raftmine/fsm/audit"
	"raftmine/fsm/pow"
	"raftmine/miner/sha256d"
)

// recheckResult is what searching a sample again came to.
type recheckResult struct {
	Fraction float64        `json:"fraction"`
	At       uint64         `json:"drawn_at"` // index of the record whose chain hash drew the sample
	Ranges   uint64         `json:"ranges"`
	Nonces   uint64         `json:"nonces"`
	Seconds  float64        `json:"seconds"`
	Kernel   string         `json:"kernel"`
	Wrong    []recheckWrong `json:"wrong"`   // by index
	Revoked  uint64         `json:"revoked"` // wrong ones that were not believed anyway
}

type recheckWrong struct {
	Index uint64 `json:"index"`
	Miner string `json:"miner"`
	What  string `json:"what"`
}

// searchAgain searches the sample again that head draws of a history, and compares receipts.
func (o *auditOptions) searchAgain(ctx context.Context, out *printer, a audited, head audit.Head) (*recheckResult, error) {
	began := time.Now()
	kernel := sha256d.Best()
	result := &recheckResult{Fraction: o.recheck, At: head.Index, Kernel: kernel.Name, Wrong: []recheckWrong{}}
	var mu sync.Mutex // guards result
	drawn := make(chan audit.Sampled)
	var workers sync.WaitGroup
	for range o.threads {
		workers.Go(func() {
			searcher := kernel.New()
			for s := range drawn {
				receipt, digest, solved, err := bestNonce(ctx, searcher, s.Work, s.Nonces)
				if err != nil {
					continue // ctx ended: Sample is told as well
				}
				mu.Lock()
				result.add(s, receipt, digest, solved)
				if out.terminal {
					out.setLive(fmt.Sprintf("searched again: %d %s, %s", result.Ranges, plural(result.Ranges, "range"),
						hashRate(float64(result.Nonces)/time.Since(began).Seconds())))
				}
				mu.Unlock()
			}
		})
	}
	err := a.read(ctx, func(p pass) error {
		return audit.Sample(p.records, head, o.recheck, func(s audit.Sampled) error {
			select {
			case drawn <- s:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	close(drawn)
	workers.Wait()
	out.setLive("")
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(result.Wrong, func(x, y recheckWrong) int { return int(min(max(int64(x.Index)-int64(y.Index), -1), 1)) })
	result.Seconds = time.Since(began).Seconds()
	return result, nil
}

func (r *recheckResult) add(s audit.Sampled, receipt uint64, digest pow.Hash, solved bool) {
	r.Ranges++
	r.Nonces += s.Nonces.Len()
	if receipt == s.Receipt && !solved {
		return
	}
	if s.Revoked {
		r.Revoked++
		return
	}
	what := fmt.Sprintf("miner %s said of %s that its smallest digest is nonce %d's, %s; it is nonce %d's, %s", s.Miner, s.Nonces,
		s.Receipt, s.Digest, receipt, digest)
	if solved {
		what = fmt.Sprintf("miner %s said that %s holds no solution; nonce %d is one: %s", s.Miner, s.Nonces, receipt, digest)
	}
	r.Wrong = append(r.Wrong, recheckWrong{Index: s.Finished.Index, Miner: s.Miner, What: what})
}

// bestNonce returns the nonce of the smallest digest, of equal ones the lowest, and whether it is a solution.
func bestNonce(ctx context.Context, searcher sha256d.Searcher, work pow.Work, nonces pow.Range) (best uint64, digest pow.Hash,
	solved bool, err error) {
	job := sha256d.NewJob(work)
	hits := make([]uint64, 64)
	threshold := uint32(math.MaxUint32)
	for {
		if err := ctx.Err(); err != nil {
			return 0, digest, false, err
		}
		found, tried := searcher.Search(job, nonces, threshold, hits)
		for _, nonce := range hits[:found] {
			if d, valid := work.Verify(nonce); best == 0 || d.Compare(digest) < 0 {
				best, digest, solved = nonce, d, valid
				threshold = uint32(d[0])<<24 | uint32(d[1])<<16 | uint32(d[2])<<8 | uint32(d[3])
			}
		}
		if tried > nonces.Last-nonces.First {
			return best, digest, solved, nil
		}
		nonces.First += tried
	}
}
