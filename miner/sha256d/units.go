//go:build (amd64 || arm64) && !purego

package sha256d

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"

	"raftmine/fsm/pow"
)

// The kernels in assembly work in units: as many nonces as share all words of their message but one, a power of ten.
// Unit n of ten is the nonces 10n to 10n+9, which differ in the last digit alone. All nonces of a unit (but of the one
// before 10) have the same number of digits. So a unit's words are made once, in Go; the rest is done in assembly.

// unitKernel is what a kernel in assembly does; unitSearcher does the rest.
type unitKernel interface {
	// prepare sets the kernel to a job and to nonces with this many digits. It returns how many nonces a unit has: 10 or
	// 100; 0 when it cannot do them.
	prepare(job *Job, digits int) (unit int)
	// run tries count units from unit on, count being at most as many as shape allows. It returns the hits as offsets from
	// the first nonce, ascending, which are valid until the next call.
	run(unit uint64, count int, threshold uint32) (hits []uint16)
}

// shape is how a kernel is used.
type shape struct {
	call int // nonces in one call, a multiple of run
	run  int // nonces in one run, a multiple of all units and of the lanes' units
	// The kernel tries lanes units at a time, with less to do it idles. Fewer than least units are left to the other
	// Searcher, which takes them one by one.
	lanes, least int
}

// unitSearcher is the Searcher around a unitKernel.
type unitSearcher struct {
	kernel unitKernel
	shape  shape
	other  Searcher // does what the kernel cannot, and small rests

	job    *Job // what the kernel is set to
	digits int
	unit   uint64 // 0: the kernel cannot do them
}

func (s *unitSearcher) Search(job *Job, nonces pow.Range, threshold uint32, hits []uint64) (found int, tried uint64) {
	last := nonces.Last
	// A call ends where a unit does, so that the next one starts with a whole one.
	if limit := uint64(s.shape.call) - nonces.First%100; last-nonces.First >= limit {
		last = nonces.First + limit - 1
	}
	for first := nonces.First; ; {
		// One stretch of nonces that have as many digits after the other.
		digits, end := decimalDigits(first), last
		if digits < pow.MaxDecimalDigits {
			end = min(end, powerOfTen(digits)-1)
		}
		if job != s.job || digits != s.digits {
			s.unit = uint64(s.kernel.prepare(job, digits))
			s.job, s.digits = job, digits
		}
		search := s.stretch
		if s.unit == 0 {
			search = s.other.Search
		}
		n, done := search(job, pow.Range{First: first, Last: end}, threshold, hits[found:])
		found += n
		if found == len(hits) || done <= end-first || end == last {
			return found, first - nonces.First + done
		}
		first = end + 1
	}
}

// stretch searches nonces that the kernel is prepared for.
func (s *unitSearcher) stretch(job *Job, nonces pow.Range, threshold uint32, hits []uint64) (found int, tried uint64) {
	most := uint64(s.shape.run) / s.unit
	// When many nonces are hits, no more are tried than fill the buffer, or so.
	if perHit := 1<<32/(uint64(threshold)+1) + 1; perHit < s.unit*most {
		most = min(most, uint64(len(hits))*perHit/s.unit+1)
	}
	lanes, least := uint64(s.shape.lanes), uint64(s.shape.least)
	for unit, end := nonces.First/s.unit, nonces.Last/s.unit; ; {
		count := min(most, end-unit+1)
		if rest := count % lanes; count > lanes && rest < least {
			count -= rest
		}
		first := max(nonces.First, s.unit*unit)
		if count < least {
			last := nonces.Last
			if count <= end-unit {
				last = s.unit*(unit+count) - 1
			}
			n, done := s.other.Search(job, pow.Range{First: first, Last: last}, threshold, hits[found:])
			found += n
			if found == len(hits) || done <= last-first || last == nonces.Last {
				return found, first - nonces.First + done
			}
			unit += count
			continue
		}
		for _, offset := range s.kernel.run(unit, int(count), threshold) {
			nonce := s.unit*unit + uint64(offset)
			if nonce < nonces.First || nonce > nonces.Last {
				continue
			}
			hits[found] = nonce
			if found++; found == len(hits) {
				return found, nonce - nonces.First + 1
			}
		}
		if end-unit < count {
			return found, nonces.Last - nonces.First + 1
		}
		unit += count
	}
}

// newUnitSearcher returns the Searcher around kernel, with another one for what it does not do.
func newUnitSearcher(kernel unitKernel, shape shape, other Searcher) Searcher {
	return &unitSearcher{kernel: kernel, shape: shape, other: other}
}

// decimalDigits returns how many digits n has.
func decimalDigits(n uint64) int {
	digits := 1
	for ; n >= 10; n /= 10 {
		digits++
	}
	return digits
}

// powerOfTen returns 10 to the n, which is at most 19.
func powerOfTen(n int) uint64 {
	power := uint64(1)
	for range n {
		power *= 10
	}
	return power
}

// message is the second block of the message of a decade's first nonce.
type message struct {
	block  [sha256.BlockSize]byte
	digits int // of the nonce, at least 2
}

// set writes all of it.
func (m *message) set(job *Job, decade uint64, digits int) {
	clear(m.block[:])
	m.digits = digits
	text := append(strconv.AppendUint(m.block[:0], 10*decade, 10), job.Timestamp...)
	m.block[len(text)] = 0x80
	binary.BigEndian.PutUint64(m.block[sha256.BlockSize-8:], 8*uint64(sha256.BlockSize+len(text)))
}

// step goes on to the next decade, which has as many digits.
func (m *message) step() {
	i := m.digits - 2
	for ; m.block[i] == '9' && i > 0; i-- {
		m.block[i] = '0'
	}
	m.block[i]++
}

// word returns one of W0 to W15.
func (m *message) word(i int) uint32 { return binary.BigEndian.Uint32(m.block[4*i:]) }

// lastDigit returns what the last digit adds to the word it is in.
func (m *message) lastDigit(digit int) uint32 { return uint32(digit) << (24 - 8*((m.digits-1)%4)) }
