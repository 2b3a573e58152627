package fsm

import (
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

	grants                        ordered            // by id
	byFirst                       ordered            // the same, by first nonce
	byMiner                       map[string]*holder // the same; a miner that holds nothing may stay, until it is forgotten
	returnedChunks, grantedChunks uint64

	spare []*holding // that were dropped, to be used again
}

// holding is a grant with its holder, so that dropping it asks no map.
type holding struct {
	Grant
	holder *holder
}

// holder is the grants of one miner, by id.
type holder struct{ grants ordered }

func newWork(nonces pow.Range, chunkSize uint64) work {
	return work{
		nonces:    nonces,
		chunkSize: chunkSize,
		total:     (nonces.Len()-1)/chunkSize + 1,
		byMiner:   make(map[string]*holder),
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
	at := w.byFirst.from(nonces.Last) // the grant before begins below; those from here on at nonces.Last or above
	if at < len(w.byFirst) && w.byFirst[at].key == nonces.Last {
		return false
	}
	return at == 0 || w.byFirst[at-1].Nonces.Last < nonces.First
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
func (w *work) grant(id uint64) *holding { return w.grants.get(id) }

// heldBy returns the grants of a miner, by id. They are valid until the next change.
func (w *work) heldBy(miner string) ordered {
	if h := w.byMiner[miner]; h != nil {
		return h.grants
	}
	return nil
}

// hold adds a grant of chunks that were taken. Its id is above all others.
func (w *work) hold(grant Grant, r run) {
	var g *holding
	if n := len(w.spare); n > 0 {
		g, w.spare = w.spare[n-1], w.spare[:n-1]
	} else {
		g = new(holding)
	}
	h := w.byMiner[grant.Miner]
	if h == nil {
		h = new(holder)
		w.byMiner[grant.Miner] = h
	}
	*g = holding{grant, h}
	w.grants.put(g.ID, g)
	w.byFirst.put(g.Nonces.First, g)
	h.grants.put(g.ID, g)
	w.grantedChunks += r.len()
}

// finish ends the first chunks of a grant, down to r.end, and drops the grant when nothing is left.
func (w *work) finish(g *holding, r run) {
	if nonces := w.rangeOf(r); nonces.Last != g.Nonces.Last {
		at := w.byFirst.from(g.Nonces.First)
		g.Nonces.First = nonces.Last + 1
		w.byFirst[at].key = g.Nonces.First // still before the next one
	} else {
		w.drop(g)
	}
	w.grantedChunks -= r.len()
}

// release returns what is left of a grant.
func (w *work) release(g *holding) {
	r, _ := w.runOf(g.Nonces)
	w.drop(g)
	w.grantedChunks -= r.len()
	w.putBack(r)
}

// drop takes a grant off the three lists. It must not be used any more.
func (w *work) drop(g *holding) {
	w.grants.remove(g.ID)
	w.byFirst.remove(g.Nonces.First)
	g.holder.grants.remove(g.ID)
	w.spare = append(w.spare, g)
}

// forget drops what is kept of a miner that holds nothing.
func (w *work) forget(miner string) {
	if h := w.byMiner[miner]; h != nil && len(h.grants) == 0 {
		delete(w.byMiner, miner)
	}
}

// ordered is grants in the order of a key, which stands beside the pointer: a search through thousands of grants then
// stays within a few cache lines.
type ordered []keyed

type keyed struct {
	key uint64
	*holding
}

// from returns the position of the first grant whose key is at least that.
func (o ordered) from(key uint64) int {
	low, high := 0, len(o)
	for low < high {
		if middle := int(uint(low+high) / 2); o[middle].key < key {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low
}

func (o ordered) get(key uint64) *holding {
	if at := o.from(key); at < len(o) && o[at].key == key {
		return o[at].holding
	}
	return nil
}

func (o *ordered) put(key uint64, g *holding) {
	if n := len(*o); n == 0 || (*o)[n-1].key < key { // nearly always
		*o = append(*o, keyed{key, g})
		return
	}
	*o = slices.Insert(*o, o.from(key), keyed{key, g})
}

// remove moves the shorter side: most grants are finished in about the order in which they were made.
func (o *ordered) remove(key uint64) {
	grants := *o
	at := grants.from(key)
	if at == len(grants) || grants[at].key != key {
		return
	}
	if at >= len(grants)/2 {
		*o = slices.Delete(grants, at, at+1)
		return
	}
	copy(grants[1:at+1], grants[:at])
	grants[0] = keyed{}
	*o = grants[1:]
}
