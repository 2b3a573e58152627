package fsm

import (
	"cmp"
	"slices"

	"raftmine/fsm/pow"
)

// run is the chunks from first up to but not including end, counted from 0. It is never empty.
type run struct{ first, end uint64 }

func (r run) len() uint64 { return r.end - r.first }

// work is the partition of one job's chunks. Its invariants, which check verifies:
//
//	returned is sorted; its runs are disjoint, not adjacent, and end below cursor (not at it)
//	grants are disjoint, whole chunks below cursor, and meet no returned run
//	what is below cursor and neither returned nor granted is finished
//
// cursor and returned are therefore determined by which chunks are pending.
type work struct {
	nonces    pow.Range
	chunkSize uint64
	total     uint64 // chunks

	cursor   uint64
	returned []run

	grants                        []*Grant            // by id
	byFirst                       []*Grant            // the same, by first nonce
	byMiner                       map[string][]*Grant // the same, by id
	returnedChunks, grantedChunks uint64
}

func newWork(nonces pow.Range, chunkSize uint64) work {
	return work{
		nonces:    nonces,
		chunkSize: chunkSize,
		total:     (nonces.Len()-1)/chunkSize + 1,
		byMiner:   make(map[string][]*Grant),
	}
}

// restart makes every chunk pending. The caller has seen that nothing is granted.
func (w *work) restart() {
	w.cursor = 0
	w.returned = nil
	w.returnedChunks = 0
}

func (w *work) counts() Counts {
	c := Counts{Total: w.total, Pending: w.total - w.cursor + w.returnedChunks, Granted: w.grantedChunks}
	c.Finished = c.Total - c.Pending - c.Granted
	return c
}

// rangeOf returns the nonces of a run. Only the job's last chunk may be short.
func (w *work) rangeOf(r run) pow.Range {
	nonces := pow.Range{First: w.nonces.First + r.first*w.chunkSize, Last: w.nonces.Last}
	if r.end < w.total {
		nonces.Last = w.nonces.First + r.end*w.chunkSize - 1
	}
	return nonces
}

// runOf returns the chunks of nonces, and false when those are not whole chunks of the job.
func (w *work) runOf(nonces pow.Range) (run, bool) {
	if nonces.First < w.nonces.First || nonces.Last > w.nonces.Last || nonces.First > nonces.Last {
		return run{}, false
	}
	from := nonces.First - w.nonces.First
	last := nonces.Last - w.nonces.First
	if from%w.chunkSize != 0 {
		return run{}, false
	}
	// last+1 cannot overflow: nonces start at 1, so last is at most 1<<64-2.
	if nonces.Last != w.nonces.Last && (last+1)%w.chunkSize != 0 {
		return run{}, false
	}
	return run{first: from / w.chunkSize, end: last/w.chunkSize + 1}, true
}

// take removes up to max pending chunks, one run, lowest first among the returned and else at the cursor. It returns
// false when nothing is pending.
func (w *work) take(max uint64) (run, bool) {
	if len(w.returned) > 0 {
		r := &w.returned[0]
		taken := run{first: r.first, end: r.first + min(max, r.len())}
		w.returnedChunks -= taken.len()
		if r.first = taken.end; r.first == r.end {
			w.returned = slices.Delete(w.returned, 0, 1)
		}
		return taken, true
	}
	if w.cursor == w.total {
		return run{}, false
	}
	taken := run{first: w.cursor, end: w.cursor + min(max, w.total-w.cursor)}
	w.cursor = taken.end
	return taken, true
}

// putBack makes chunks pending that are neither pending nor granted, and merges them with their neighbours.
func (w *work) putBack(r run) {
	at := w.firstReturnedAfter(r.first)
	w.returnedChunks += r.len()
	from, to := at, at // the neighbours that r swallows
	if at > 0 && w.returned[at-1].end == r.first {
		from--
		r.first = w.returned[from].first
	}
	if at < len(w.returned) && w.returned[at].first == r.end {
		r.end = w.returned[at].end
		to++
	}
	if r.end == w.cursor { // then r is the last one
		w.returned = slices.Delete(w.returned, from, to)
		w.returnedChunks -= r.len()
		w.cursor = r.first
		return
	}
	w.returned = slices.Replace(w.returned, from, to, r)
}

// pending reports whether all of r is.
func (w *work) pending(r run) bool {
	if r.first >= w.cursor {
		return true
	}
	at := w.firstReturnedAfter(r.first)
	// A run that crosses the cursor is never all pending: the chunk before the cursor is not.
	return at < len(w.returned) && w.returned[at].first <= r.first && r.end <= w.returned[at].end
}

// finished reports whether all of r is: nothing of it is pending or granted.
func (w *work) finished(r run) bool {
	if r.end > w.cursor {
		return false
	}
	if at := w.firstReturnedAfter(r.first); at < len(w.returned) && w.returned[at].first < r.end {
		return false
	}
	nonces := w.rangeOf(r)
	at, _ := slices.BinarySearchFunc(w.byFirst, nonces.First, func(g *Grant, first uint64) int {
		return cmp.Compare(g.Nonces.Last, first)
	})
	return at == len(w.byFirst) || w.byFirst[at].Nonces.First > nonces.Last
}

// firstReturnedAfter returns the position of the first returned run that ends after chunk.
func (w *work) firstReturnedAfter(chunk uint64) int {
	at, _ := slices.BinarySearchFunc(w.returned, chunk, func(x run, chunk uint64) int {
		if x.end <= chunk {
			return -1
		}
		return 1
	})
	return at
}

// grant returns the grant with that id, nil when it is not held.
func (w *work) grant(id uint64) *Grant {
	at, found := slices.BinarySearchFunc(w.grants, id, byID)
	if !found {
		return nil
	}
	return w.grants[at]
}

// hold adds a grant of chunks that were taken. Its id is above all others.
func (w *work) hold(g *Grant, r run) {
	w.grants = append(w.grants, g)
	at, _ := slices.BinarySearchFunc(w.byFirst, g.Nonces.First, byFirst)
	w.byFirst = slices.Insert(w.byFirst, at, g)
	w.byMiner[g.Miner] = append(w.byMiner[g.Miner], g)
	w.grantedChunks += r.len()
}

// finish ends the first chunks of a grant, down to r.end, and drops the grant when nothing is left.
func (w *work) finish(g *Grant, r run) {
	if nonces := w.rangeOf(r); nonces.Last != g.Nonces.Last {
		g.Nonces.First = nonces.Last + 1
	} else {
		w.drop(g)
	}
	w.grantedChunks -= r.len()
}

// release returns what is left of a grant.
func (w *work) release(g *Grant) {
	r, _ := w.runOf(g.Nonces)
	w.drop(g)
	w.grantedChunks -= r.len()
	w.putBack(r)
}

// drop takes a grant off the three lists.
func (w *work) drop(g *Grant) {
	if at, found := slices.BinarySearchFunc(w.grants, g.ID, byID); found {
		w.grants = without(w.grants, at)
	}
	if at, found := slices.BinarySearchFunc(w.byFirst, g.Nonces.First, byFirst); found {
		w.byFirst = without(w.byFirst, at)
	}
	held := w.byMiner[g.Miner]
	if at, found := slices.BinarySearchFunc(held, g.ID, byID); found {
		held = without(held, at)
	}
	if len(held) == 0 {
		delete(w.byMiner, g.Miner)
	} else {
		w.byMiner[g.Miner] = held
	}
}

// without removes one grant. It moves the shorter side: most grants are finished in about the order in which they were made.
func without(grants []*Grant, at int) []*Grant {
	if at >= len(grants)/2 {
		return slices.Delete(grants, at, at+1)
	}
	copy(grants[1:at+1], grants[:at])
	grants[0] = nil
	return grants[1:]
}

func byID(g *Grant, id uint64) int { return cmp.Compare(g.ID, id) }

func byFirst(g *Grant, first uint64) int { return cmp.Compare(g.Nonces.First, first) }
