package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"raftmine/fsm/pow"
)

// Domains of the two hashes. Protocol: whoever changes what is encoded changes the number.
const (
	stateDomain = "raftmine state 1"
	blockDomain = "raftmine block 1"
)

// Digest returns the state digest: SHA-256 of the canonical encoding, which is ours, field by field, because protobuf
// bytes are not canonical. Two states have the same digest exactly when everything in them is the same, Head included.
//
// The encoding, in this order (integers are 8 bytes big endian; a bool is 1 byte, 0 or 1; text is its length and its
// bytes; hashes and ids are their bytes; a list is its length and its elements; an optional is a bool and, if true, the
// value; the fields of a record are in the order of their Go type, those of a record in it in its place):
//
//	text      "raftmine state 1"
//	text      cluster id
//	bool      stopped
//	Office, Head
//	optional  Recover
//	list      Server
//	optional  Job; its Solution is optional in turn
//	integer   cursor
//	list      returned runs: first, end
//	integer   last grant id
//	list      Grant
//	list      Miner, by name
//	Miner     the forgotten
//	integer   number of blocks
//	hash      block chain: chain(0) is zero, chain(n) = SHA256(text "raftmine block 1" || chain(n-1) || Block n)
//
// Its cost is that of the state without its blocks.
func (s *State) Digest() pow.Hash {
	snapshot := s.share()
	return snapshot.Digest()
}

// encoder writes the canonical encoding into a hash, through a buffer: small writes to a hash are slow.
type encoder struct {
	hash   hash.Hash
	buffer []byte
}

func newEncoder(domain string) *encoder {
	e := &encoder{hash: sha256.New(), buffer: make([]byte, 0, 8192)}
	e.text(domain)
	return e
}

func (e *encoder) flush() {
	e.hash.Write(e.buffer)
	e.buffer = e.buffer[:0]
}

func (e *encoder) raw(data []byte) {
	if len(e.buffer)+len(data) > cap(e.buffer) {
		e.flush()
	}
	e.buffer = append(e.buffer, data...)
}

func (e *encoder) number(values ...uint64) {
	for _, value := range values {
		if len(e.buffer)+8 > cap(e.buffer) {
			e.flush()
		}
		e.buffer = binary.BigEndian.AppendUint64(e.buffer, value)
	}
}

func (e *encoder) text(text string) {
	e.number(uint64(len(text)))
	if len(e.buffer)+len(text) > cap(e.buffer) {
		e.flush()
	}
	e.buffer = append(e.buffer, text...)
}

func (e *encoder) flag(value bool) {
	if value {
		e.raw([]byte{1})
	} else {
		e.raw([]byte{0})
	}
}

func (e *encoder) sum() (sum pow.Hash) {
	e.flush()
	e.hash.Sum(sum[:0])
	return sum
}

// Digest returns the digest of the state that the snapshot was taken of.
func (s *Snapshot) Digest() pow.Hash {
	e := newEncoder(stateDomain)
	e.text(s.clusterID)
	e.flag(s.stopped)
	e.number(s.office.ServerID, s.office.Term, s.office.Index)
	e.number(s.head.Records, s.head.Index, s.head.Term)
	e.raw(s.head.Hash[:])
	e.flag(s.recovery != nil)
	if r := s.recovery; r != nil {
		e.raw(r.RecoveryID[:])
		e.number(r.Survivor, r.Index, r.Term)
		e.raw(r.Head[:])
	}
	e.number(uint64(len(s.servers)))
	for i := range s.servers {
		e.server(&s.servers[i])
	}
	e.flag(s.job != nil)
	if s.job != nil {
		e.job(s.job)
	}
	e.number(s.cursor)
	e.number(uint64(len(s.returned)))
	for _, r := range s.returned {
		e.number(r.first, r.end)
	}
	e.number(s.lastGrantID)
	e.number(uint64(len(s.grants)))
	for i := range s.grants {
		g := &s.grants[i]
		e.number(g.ID, g.JobID)
		e.text(g.Miner)
		e.raw(g.Instance[:])
		e.number(g.Nonces.First, g.Nonces.Last, g.Index)
	}
	e.number(uint64(len(s.miners)))
	for i := range s.miners {
		e.miner(&s.miners[i])
	}
	e.miner(&s.forgotten)
	e.number(uint64(len(s.blocks)))
	e.raw(s.blockChain[:])
	return e.sum()
}

func (e *encoder) server(row *Server) {
	e.number(row.ID)
	e.raw(row.RequestID[:])
	e.text(row.Address)
	e.text(row.DataDir)
	e.text(row.Host.MachineID)
	e.text(row.Host.BootID)
	e.flag(row.Member)
	e.flag(row.Up)
	e.number(row.Since)
}

func (e *encoder) job(j *Job) {
	e.number(j.ID, j.Height)
	e.raw(j.Previous[:])
	e.number(uint64(j.Bits), j.Timestamp, uint64(j.Round), j.Nonces.First, j.Nonces.Last, j.ChunkSize, uint64(j.Phase))
	e.flag(j.Solution != nil)
	if solution := j.Solution; solution != nil {
		e.number(solution.GrantID)
		e.text(solution.Miner)
		e.number(solution.Nonce)
		e.raw(solution.Hash[:])
		e.number(solution.Index, uint64(solution.Attempts))
	}
	e.number(j.Opened, j.OpenedAt)
}

func (e *encoder) miner(m *Miner) {
	e.text(m.Name)
	e.number(m.Chunks, m.Nonces, m.Solutions, uint64(m.Strikes), m.LastRequestID, m.LastGrantID)
}

// chainBlock adds a block to the chain that stands for all blocks in the state digest, so that a digest does not cost
// more with every block.
func chainBlock(chain pow.Hash, b *Block) pow.Hash {
	e := newEncoder(blockDomain)
	e.raw(chain[:])
	e.number(b.Sequence, b.JobID, b.Height)
	e.raw(b.Hash[:])
	e.raw(b.Previous[:])
	e.number(b.Nonce, b.Timestamp, uint64(b.Bits))
	e.text(b.Miner)
	e.number(uint64(b.Verdict))
	e.text(b.Detail)
	e.number(b.Index, b.At)
	return e.sum()
}
