//go:build !purego

package sha256d

const (
	sha2Decades = 64               // decades in one run: 25 microseconds at 25 MH/s (tuning)
	sha2Run     = 10 * sha2Decades // nonces
	sha2Limit   = 10 * sha2Run     // nonces in one call (tuning)
)

// sha2Block is what the SHA2 kernel works on. All quads are four words, W[t] first.
type sha2Block struct {
	midstate  [8]uint32              // H0 to H7
	tail      [12]uint32             // W4 to W15, the same for all nonces
	tailK     [12]uint32             // the same with the round constants
	part5     [4]uint32              // W4 to W7, each with sigma0 of the word after it
	part6     [4]uint32              // W8 to W11, likewise
	digits    [10][4]uint32          // what each last digit adds to W0 to W3
	decades   [sha2Decades][4]uint32 // W0 to W3 of each decade's first nonce
	threshold uint32
	hits      [sha2Run]uint16 // nonces counted from the first decade's, ascending
}

// sha2Search tries the ten nonces of each of the first decades of b.decades, at least one and at most all, and writes
// those whose digest's first word is at or below the threshold into b.hits: the same as generic finds, no more and no
// fewer. The nonces' digits must end in W3 or before. It needs SHA2.
//
//go:noescape
func sha2Search(b *sha2Block, decades int) (found int)

// sha2 is the arm64 kernel: two nonces' rounds interleaved.
type sha2 struct {
	job     *Job
	message message
	b       sha2Block
}

func newSHA2() Searcher {
	return newUnitSearcher(new(sha2), shape{call: sha2Limit, run: sha2Run, lanes: 1}, newGeneric())
}

func (s *sha2) prepare(job *Job, digits int) int {
	if digits < 2 || digits > 16 { // a decade of one digit is not whole; after 16 the last digit is in W4
		return 0
	}
	s.job = job
	s.message.set(job, powerOfTen(digits-2), digits)
	s.b.midstate = job.Midstate
	s.message.quads(&s.b.tail, &s.b.tailK, &s.b.part5, &s.b.part6)
	s.message.lastDigits(&s.b.digits)
	return 10
}

func (s *sha2) run(decade uint64, count int, threshold uint32) []uint16 {
	s.b.threshold = threshold
	s.message.firstQuads(s.job, decade, s.b.decades[:count])
	return s.b.hits[:sha2Search(&s.b, count)]
}
