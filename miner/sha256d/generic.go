package sha256d

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"

	"raftmine/fsm/pow"
)

// callLimit is how many nonces one call of the generic kernel tries: a fifth of a millisecond with SHA instructions, half of
// one without. (tuning)
const callLimit = 1000

// generic is the reference kernel: crypto/sha256 and nothing else. It works through ten nonces at a time, those that
// differ in the last digit alone, in stages: all first compressions, then all second ones.
//
// The stages are what makes it fast. crypto/sha256 reads its state in 16-byte pieces, but takes it in and gives it out
// in 4-byte ones, and a processor cannot forward several small stores to one large load: a load right after the stores
// waits until they have left the store buffer. With nine other nonces in between nothing waits. (Measured on Zen 4, best
// of many runs: 10.0 MH/s in stages, 6.0 one nonce at a time, 4.6 with Sum instead of raw states; two compressions
// alone allow 12.)
//
// The states are taken out raw: padding by hand and AppendBinary cost less than Sum, which copies the hash, pads and
// converts.
type generic struct {
	job    *Job
	decade uint64 // what the lanes are set to: nonces 10*decade to 10*decade+9
	digits int    // of those nonces
	lanes  [10]lane
}

// lane is one nonce. Between calls hash holds the midstate.
type lane struct {
	hash  state
	block [sha256.BlockSize]byte // nonce, timestamp and padding: the second block of the message
	out   [stateSize]byte
}

func newGeneric() Searcher {
	g := new(generic)
	for i := range g.lanes {
		g.lanes[i].hash = sha256.New().(state)
	}
	return g
}

func (g *generic) Search(job *Job, nonces pow.Range, threshold uint32, hits []uint64) (found int, tried uint64) {
	last := nonces.Last
	if last-nonces.First >= callLimit {
		last = nonces.First + callLimit - 1
	}
	for decade, lo := nonces.First/10, nonces.First%10; ; decade, lo = decade+1, 0 {
		g.setUp(job, decade)
		lanes := g.lanes[lo:]
		if decade == last/10 {
			lanes = g.lanes[lo : last%10+1]
		}
		digest(job, lanes)
		for i := range lanes {
			if firstWord(&lanes[i]) > threshold {
				continue
			}
			nonce := 10*decade + lo + uint64(i)
			hits[found] = nonce
			if found++; found == len(hits) {
				return found, nonce - nonces.First + 1
			}
		}
		if decade == last/10 {
			return found, last - nonces.First + 1
		}
	}
}

// digest leaves the double SHA-256 of every lane in its out, and the midstate in its hash.
func digest(job *Job, lanes []lane) {
	for i := range lanes {
		lanes[i].hash.Write(lanes[i].block[:])
	}
	for i := range lanes {
		l := &lanes[i]
		l.hash.AppendBinary(l.out[:0])
		// The inner digest becomes a block in place: it is followed by zeros already, which leaves the padding's one bit
		// and the message's length, 256 bits.
		l.out[stateOffset+sha256.Size] = 0x80
		l.out[stateOffset+sha256.BlockSize-2] = 1
		l.hash.Reset()
	}
	for i := range lanes {
		l := &lanes[i]
		l.hash.Write(l.out[stateOffset : stateOffset+sha256.BlockSize])
	}
	for i := range lanes {
		l := &lanes[i]
		l.hash.AppendBinary(l.out[:0])
		l.hash.UnmarshalBinary(job.state) // no error: the bytes are crypto/sha256's own
	}
}

// firstWord returns the first word of the lane's digest.
func firstWord(l *lane) uint32 { return binary.BigEndian.Uint32(l.out[stateOffset:]) }

// setUp sets the lanes to the nonces of decade: nothing to do when they are, one step when they are at the decade before.
func (g *generic) setUp(job *Job, decade uint64) {
	switch {
	case job == g.job && decade == g.decade:
		return
	case job == g.job && decade == g.decade+1 && g.step():
	default:
		g.fill(job, decade)
	}
	g.decade = decade
}

// step adds ten to every lane's digits. It reports false when that takes one digit more.
func (g *generic) step() bool {
	i := g.digits - 2 // of ten nonces all digits but the last are the same
	for i >= 0 && g.lanes[0].block[i] == '9' {
		i--
	}
	if i < 0 {
		return false
	}
	for l := range g.lanes {
		block := &g.lanes[l].block
		block[i]++
		for j := i + 1; j < g.digits-1; j++ {
			block[j] = '0'
		}
	}
	return true
}

// fill writes the lanes' blocks from the start.
func (g *generic) fill(job *Job, decade uint64) {
	g.job = job
	for i := range g.lanes {
		l := &g.lanes[i]
		l.hash.UnmarshalBinary(job.state)
		clear(l.block[:])
		// In the last decade of uint64 the lanes past the end are wrong; the search never asks for them.
		text := strconv.AppendUint(l.block[:0], 10*decade+uint64(i), 10)
		if i == 0 {
			g.digits = len(text)
		}
		text = append(text, job.Timestamp...)
		l.block[len(text)] = 0x80
		binary.BigEndian.PutUint64(l.block[sha256.BlockSize-8:], 8*uint64(sha256.BlockSize+len(text)))
	}
}
