//go:build (amd64 || arm64) && !purego

package sha256d

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"

	"raftmine/fsm/pow"
)

// A decade is ten nonces that differ in the last digit alone: decade n is 10n to 10n+9. The kernels in assembly work in
// decades, because all nonces of a decade (but of the one before 10) have the same number of digits, and all words of
// their message but one in common. So a decade's words are made once, in Go; the last digit is added in assembly.

// decadeKernel is what a kernel in assembly does; decadeSearcher does the rest.
type decadeKernel interface {
	// prepare sets the kernel to a job and to nonces with this many digits. It reports false when it cannot do them.
	prepare(job *Job, digits int) bool
	// run tries count decades from decade on. It returns the hits as offsets from the first nonce, ascending, which are
	// valid until the next call.
	run(decade uint64, count int, threshold uint32) (hits []uint16)
}

// decadeSearcher is the Searcher around a decadeKernel.
type decadeSearcher struct {
	kernel  decadeKernel
	decades uint64 // in one run
	limit   uint64 // nonces in one call
	generic Searcher

	job    *Job // what the kernel is set to
	digits int
	able   bool
}

func (s *decadeSearcher) Search(job *Job, nonces pow.Range, threshold uint32, hits []uint64) (found int, tried uint64) {
	last := nonces.Last
	if last-nonces.First >= s.limit {
		last = nonces.First + s.limit - 1
	}
	for first := nonces.First; ; {
		// One stretch of nonces that have as many digits after the other.
		digits, end := decimalDigits(first), last
		if digits < pow.MaxDecimalDigits {
			end = min(end, powerOfTen(digits)-1)
		}
		if job != s.job || digits != s.digits {
			s.able = s.kernel.prepare(job, digits)
			s.job, s.digits = job, digits
		}
		search := s.stretch
		if !s.able {
			search = s.generic.Search
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
func (s *decadeSearcher) stretch(_ *Job, nonces pow.Range, threshold uint32, hits []uint64) (found int, tried uint64) {
	// When many nonces are hits, no more are tried than fill the buffer, or so.
	most := s.decades
	if perHit := 1<<32/(uint64(threshold)+1) + 1; perHit < 10*most {
		most = min(most, uint64(len(hits))*perHit/10+1)
	}
	for decade, end := nonces.First/10, nonces.Last/10; ; decade += most {
		count := min(most, end-decade+1)
		for _, offset := range s.kernel.run(decade, int(count), threshold) {
			nonce := 10*decade + uint64(offset)
			if nonce < nonces.First || nonce > nonces.Last {
				continue
			}
			hits[found] = nonce
			if found++; found == len(hits) {
				return found, nonce - nonces.First + 1
			}
		}
		if end-decade < most {
			return found, nonces.Last - nonces.First + 1
		}
	}
}

// newDecadeSearcher returns the Searcher around kernel, which does at most so many decades in one run and so many nonces
// in one call.
func newDecadeSearcher(kernel decadeKernel, decades int, limit uint64) Searcher {
	return &decadeSearcher{kernel: kernel, decades: uint64(decades), limit: limit, generic: newGeneric()}
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
