package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

const (
	proofFormat = "raftmine block proof"
	// ProofVersion stands in every proof. Protocol.
	ProofVersion = 1
	// maxProofSize bounds what VerifyProof reads: six records of the largest size, in base64.
	maxProofSize = 64 << 20
)

// BlockProof is a self-contained proof of one block.
//
// It shows that the tree of the head holds six records (five when the timestamp was never rolled): the one that named the
// cluster, the one that opened the job, the one that rolled it to the timestamp, the one with the miner's request for
// work, the one with the solution and the one with the verdict, in this order; that what they say fits together; and that
// the proof of work is valid.
//
// Every value in the file is compared with these records, but for three that no record says. They are stated and fit, and
// only an audit of the history shows them:
//
//   - Head.Records: paths lead to the tree from histories of some other lengths too.
//   - Block.Granted: which range the request was answered with follows from all records before.
//   - Which request that was, when the miner has sent more than one for the job.
//
// Whoever checks a proof compares the head, both its number of records and its tree, with one from a source that he trusts:
// an audit of his own, of a data directory or of a running server.
type BlockProof struct {
	ClusterID string
	Head      Head // Records and Tree alone
	Block     ProvedBlock
	Records   []ProvedRecord
}

// ProvedBlock is what a proof is about.
type ProvedBlock struct {
	Height    uint64
	JobID     uint64
	Round     uint32
	Hash      pow.Hash
	Previous  pow.Hash
	Bits      int
	Nonce     uint64
	Timestamp uint64
	Miner     string
	GrantID   uint64
	Granted   pow.Range
	Verdict   fsm.Verdict
	Detail    string
}

// ProvedRecord is a record with its inclusion path. Its role is cluster, job, timestamp, grant, solution or verdict.
type ProvedRecord struct {
	Role    string
	Number  uint64 // counted from 0
	Command int
	Record  Record // without Chain
	Path    Path
}

// The forms in the file.
type (
	proofJSON struct {
		Format    string            `json:"format"`
		Version   int               `json:"version"`
		ClusterID string            `json:"cluster_id"`
		Head      treeJSON          `json:"head"`
		Block     blockJSON         `json:"block"`
		Records   []proofRecordJSON `json:"records"`
	}
	treeJSON struct {
		Records uint64  `json:"records"`
		Tree    hexHash `json:"tree"`
	}
	blockJSON struct {
		Height    uint64  `json:"height"`
		JobID     uint64  `json:"job_id"`
		Round     uint32  `json:"round"`
		Hash      hexHash `json:"hash"`
		Previous  hexHash `json:"previous_hash"`
		Bits      int     `json:"bits"`
		Nonce     uint64  `json:"nonce"`
		Timestamp uint64  `json:"timestamp"`
		Miner     string  `json:"miner"`
		GrantID   uint64  `json:"grant_id"`
		First     uint64  `json:"grant_first"`
		Last      uint64  `json:"grant_last"`
		Verdict   string  `json:"verdict"`
		Detail    string  `json:"detail"`
	}
	proofRecordJSON struct {
		Role    string    `json:"role"`
		Number  uint64    `json:"number"`
		Command int       `json:"command"`
		Index   uint64    `json:"index"`
		Term    uint64    `json:"term"`
		Data    string    `json:"data"`
		Path    []hexHash `json:"path"`
	}
)

// ProveBlock proves the block at a height: the accepted one, or else the last solution for it that has a verdict. open is
// called twice and gives the same history, or one that has grown. A history that does not hold proves nothing.
func ProveBlock(open func() (Records, error), height uint64) (*BlockProof, error) {
	var job *Job
	records, err := open()
	if err != nil {
		return nil, err
	}
	report, err := Replay(records, Options{Visit: func(event Event) error {
		e, ok := event.(JobEnded)
		if ok && e.Job.Height == height && e.Job.Solution != nil && (job == nil || job.Verdict != fsm.VerdictSuccess) {
			job = e.Job
		}
		return nil
	}})
	if err != nil {
		return nil, err
	}
	if first, found := report.First(); found {
		return nil, first
	}
	if job == nil {
		return nil, fmt.Errorf("block %d: %w", height, ErrNotFound)
	}
	proof := &BlockProof{ClusterID: report.ClusterID, Block: provedBlock(job),
		Head: Head{Records: report.Head.Records, Tree: report.Head.Tree}}
	add := func(role string, at Place) {
		proof.Records = append(proof.Records, ProvedRecord{Role: role, Number: at.Record, Command: at.Command})
	}
	add("cluster", report.Named)
	add("job", job.Opened)
	if job.Rounds > 0 {
		add("timestamp", job.Rolled)
	}
	add("grant", job.Solution.Granted)
	add("solution", job.Solution.At)
	add("verdict", job.Settled)
	if records, err = open(); err != nil {
		return nil, err
	}
	visit := func(n uint64, record Record) {
		for i := range proof.Records {
			if proof.Records[i].Number == n {
				proof.Records[i].Record = Record{Index: record.Index, Term: record.Term, Data: bytes.Clone(record.Data)}
			}
		}
	}
	err = proofs(records, report.Head, visit, func(r tlog.HashReader) error {
		for i := range proof.Records {
			hashes, err := tlog.ProveRecord(int64(report.Head.Records), int64(proof.Records[i].Number), r)
			if err != nil {
				return err
			}
			proof.Records[i].Path = pathOf(hashes)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("prove block %d: %w", height, err)
	}
	return proof, proof.Verify()
}

func provedBlock(job *Job) ProvedBlock {
	s := job.Solution
	return ProvedBlock{Height: job.Height, JobID: job.ID, Round: job.Rounds, Hash: s.Hash, Previous: job.Previous,
		Bits: job.Bits, Nonce: s.Nonce, Timestamp: job.Timestamp, Miner: s.Miner, GrantID: s.GrantID, Granted: s.Nonces,
		Verdict: job.Verdict, Detail: job.Detail}
}

// WriteTo writes the proof as JSON.
func (p *BlockProof) WriteTo(w io.Writer) (int64, error) {
	b := p.Block
	file := proofJSON{Format: proofFormat, Version: ProofVersion, ClusterID: p.ClusterID,
		Head: treeJSON{p.Head.Records, hexHash(p.Head.Tree)}, Block: blockJSON{Height: b.Height, JobID: b.JobID, Round: b.Round, Hash: hexHash(b.Hash),
			Previous: hexHash(b.Previous), Bits: b.Bits, Nonce: b.Nonce, Timestamp: b.Timestamp, Miner: b.Miner,
			GrantID: b.GrantID, First: b.Granted.First, Last: b.Granted.Last, Verdict: b.Verdict.String(), Detail: b.Detail}}
	for _, r := range p.Records {
		path := make([]hexHash, len(r.Path))
		for i, hash := range r.Path {
			path[i] = hexHash(hash)
		}
		file.Records = append(file.Records, proofRecordJSON{Role: r.Role, Number: r.Number, Command: r.Command,
			Index: r.Record.Index, Term: r.Record.Term, Data: strictBase64.EncodeToString(r.Record.Data), Path: path})
	}
	text, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return 0, fmt.Errorf("write proof: %w", err)
	}
	n, err := w.Write(append(text, '\n'))
	if err != nil {
		err = fmt.Errorf("write proof: %w", err)
	}
	return int64(n), err
}

// VerifyProof reads a proof and checks all of it. Errors that are not the reader's own wrap ErrBadProof.
func VerifyProof(r io.Reader) (*BlockProof, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxProofSize+1))
	if err != nil {
		return nil, fmt.Errorf("read proof: %w", err)
	}
	if len(text) > maxProofSize {
		return nil, fmt.Errorf("it is larger than %d bytes: %w", maxProofSize, ErrBadProof)
	}
	if err := meant(text); err != nil {
		return nil, err
	}
	proof, err := parseProof(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadProof, err)
	}
	return proof, proof.Verify()
}

// noProof says what it is that is no proof.
type noProof string

func (e noProof) Error() string        { return ErrNoProof.Error() + string(e) }
func (e noProof) Is(target error) bool { return target == ErrNoProof || target == ErrBadProof }

// meant returns an error when text is not meant as a proof of a block: what is wrong with it inside says nothing then.
func meant(text []byte) error {
	var file struct {
		Format any `json:"format"`
	}
	err := json.NewDecoder(bytes.NewReader(text)).Decode(&file) // of an export: its first line
	switch {
	case startsAs(text, proofFormat) || err == nil && file.Format == proofFormat:
		return nil
	case len(bytes.TrimSpace(text)) == 0:
		return noProof(": it is empty")
	case file.Format == exportFormat:
		return noProof(", but an export of a history")
	}
	return noProof("")
}

func parseProof(text []byte) (*BlockProof, error) {
	var file proofJSON
	in := json.NewDecoder(bytes.NewReader(text))
	in.DisallowUnknownFields()
	if err := in.Decode(&file); err != nil {
		return nil, err
	}
	if in.More() {
		return nil, errors.New("there is more after it")
	}
	if file.Format != proofFormat || file.Version != ProofVersion {
		return nil, fmt.Errorf("it is %q of version %d, this software reads %q of version %d", file.Format, file.Version,
			proofFormat, ProofVersion)
	}
	b := file.Block
	head := Head{Records: file.Head.Records, Tree: pow.Hash(file.Head.Tree)}
	proof := &BlockProof{ClusterID: file.ClusterID, Head: head, Block: ProvedBlock{Height: b.Height, JobID: b.JobID,
		Round: b.Round, Hash: pow.Hash(b.Hash), Previous: pow.Hash(b.Previous), Bits: b.Bits, Nonce: b.Nonce,
		Timestamp: b.Timestamp, Miner: b.Miner, GrantID: b.GrantID, Granted: pow.Range{First: b.First, Last: b.Last},
		Detail: b.Detail}}
	for v := fsm.VerdictSuccess; v <= fsm.VerdictUnknown; v++ {
		if v.String() == b.Verdict {
			proof.Block.Verdict = v
		}
	}
	for _, r := range file.Records {
		data, err := strictBase64.DecodeString(r.Data)
		if err != nil {
			return nil, fmt.Errorf("record %d: data: %w", r.Index, err)
		}
		path := make(Path, len(r.Path))
		for i, hash := range r.Path {
			path[i] = pow.Hash(hash)
		}
		proof.Records = append(proof.Records, ProvedRecord{Role: r.Role, Number: r.Number, Command: r.Command,
			Record: Record{Index: r.Index, Term: r.Term, Data: data}, Path: path})
	}
	return proof, nil
}

// Verify checks everything that a BlockProof shows, with nothing but what it holds. Errors wrap ErrBadProof.
func (p *BlockProof) Verify() error {
	if err := p.verify(); err != nil {
		if errors.Is(err, ErrBadProof) {
			return err
		}
		return fmt.Errorf("block %d: %w: %w", p.Block.Height, ErrBadProof, err)
	}
	return nil
}

func (p *BlockProof) verify() error {
	roles := []string{"cluster", "job", "timestamp", "grant", "solution", "verdict"}
	if p.Block.Round == 0 {
		roles = slices.Delete(roles, 2, 3)
	}
	if len(p.Records) != len(roles) {
		return fmt.Errorf("%d records, want %d", len(p.Records), len(roles))
	}
	commands, entries := make(map[string]fsm.Command, len(roles)), make([]fsm.Entry, len(roles))
	for i, r := range p.Records {
		if r.Role != roles[i] {
			return fmt.Errorf("record %d has the role %q, want %q", r.Record.Index, r.Role, roles[i])
		}
		if err := CheckInclusion(r.Path, p.Head, r.Number, r.Record); err != nil {
			return err
		}
		if i > 0 {
			before := p.Records[i-1]
			if r.Number < before.Number || r.Number == before.Number && r.Command <= before.Command {
				return fmt.Errorf("the %s is not after the %s", r.Role, before.Role)
			}
		}
		entry, err := fsm.DecodeEntry(r.Record.Data)
		if err != nil {
			return err
		}
		if r.Command < 0 || r.Command >= len(entry.Commands) {
			return fmt.Errorf("the %s is command %d of %d", r.Role, r.Command, len(entry.Commands))
		}
		commands[r.Role], entries[i] = entry.Commands[r.Command], entry
	}
	if cluster, ok := commands["cluster"].(fsm.OpenCluster); !ok || cluster.ClusterID != p.ClusterID {
		return errors.New("the cluster has another name")
	}
	if err := p.Block.fits(commands); err != nil {
		return err
	}
	for i, r := range p.Records {
		if at := slices.Index(entries[i].Commands, commands[r.Role]); at != r.Command { // the first of equal ones did it
			return fmt.Errorf("the %s is command %d, and that is command %d again", r.Role, r.Command, at)
		}
	}
	return nil
}

// fits compares the block with the commands.
func (b ProvedBlock) fits(commands map[string]fsm.Command) error {
	job, isJob := commands["job"].(fsm.OpenJob)
	grant, isGrant := commands["grant"].(fsm.GrantWork)
	solution, isSolution := commands["solution"].(fsm.Solve)
	verdict, isVerdict := commands["verdict"].(fsm.Submitted)
	if !isJob || !isGrant || !isSolution || !isVerdict {
		return errors.New("a record holds another command than its role says")
	}
	timestamp := job.Timestamp
	if b.Round > 0 {
		roll, isRoll := commands["timestamp"].(fsm.Roll)
		if !isRoll || roll.JobID != b.JobID || roll.Round != b.Round {
			return errors.New("the timestamp is another job's or another round's")
		}
		timestamp = roll.Timestamp
	}
	part := newPartition(job.Nonces, max(job.ChunkSize, 1))
	switch {
	case job.Height != b.Height || job.Previous != b.Previous || job.Bits != b.Bits || timestamp != b.Timestamp:
		return errors.New("the job is another one than the block's")
	case grant.JobID != b.JobID || grant.Miner != b.Miner:
		return errors.New("the grant is another job's or another miner's")
	case solution.JobID != b.JobID || solution.Miner != b.Miner || solution.GrantID != b.GrantID ||
		solution.Nonce != b.Nonce || solution.Timestamp != b.Timestamp:
		return errors.New("the solution is another one than the block's")
	case verdict.JobID != b.JobID || verdict.Verdict != b.Verdict || verdict.Detail != b.Detail:
		return errors.New("the verdict is another one than the block's")
	case job.Nonces.Validate() != nil || part.whole(b.Granted) != nil || part.count(b.Granted) > grant.Chunks ||
		!b.Granted.Contains(b.Nonce):
		return fmt.Errorf("nonce %d of the granted %s does not fit the job's %s", b.Nonce, b.Granted, job.Nonces)
	}
	work := pow.Work{Previous: b.Previous, Timestamp: b.Timestamp, Bits: b.Bits}
	if err := work.Validate(); err != nil {
		return err
	}
	if hash, valid := work.Verify(b.Nonce); !valid || hash != b.Hash {
		return fmt.Errorf("nonce %d gives %s, which has %d leading zero bits", b.Nonce, hash, hash.LeadingZeroBits())
	}
	return nil
}
