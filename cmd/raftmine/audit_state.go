package main

import (
	"fmt"
	"io"
	"strings"

	"raftmine/fsm"
	"raftmine/fsm/audit"
)

type (
	stateView struct {
		Index       uint64           `json:"applied_index"`
		Term        uint64           `json:"term"`
		Records     uint64           `json:"records"`
		Chain       string           `json:"chain"`
		Tree        string           `json:"tree"`
		StateDigest string           `json:"state_digest"`
		ClusterID   string           `json:"cluster_id"`
		Stopped     bool             `json:"cluster_stopped"`
		Leader      uint64           `json:"leader"`
		Servers     []serverEndView  `json:"servers"`
		Job         *jobView         `json:"job"`
		Grants      []grantView      `json:"grants"`
		Miners      []stateMinerView `json:"miners"`
		Blocks      uint64           `json:"blocks"`
		LastBlock   string           `json:"last_block,omitempty"`
	}
	grantView struct {
		ID    uint64 `json:"id"`
		Miner string `json:"miner"`
		First uint64 `json:"first"`
		Last  uint64 `json:"last"`
		Index uint64 `json:"index"`
	}
	stateMinerView struct {
		Name      string `json:"name"`
		Chunks    uint64 `json:"chunks_finished"`
		Nonces    uint64 `json:"nonces_finished"`
		Solutions uint64 `json:"solutions"`
		Strikes   uint32 `json:"strikes"`
	}
	proofView struct {
		Event     string `json:"event"`
		Holds     bool   `json:"holds"`
		ClusterID string `json:"cluster_id"`
		Height    uint64 `json:"height"`
		Hash      string `json:"hash"`
		Previous  string `json:"previous_hash"`
		Nonce     uint64 `json:"nonce"`
		Timestamp uint64 `json:"timestamp"`
		Bits      int    `json:"bits"`
		Miner     string `json:"miner"`
		Verdict   string `json:"verdict"`
		Records   uint64 `json:"records"`
		Tree      string `json:"tree"`
	}
	prefixView struct {
		Event        string `json:"event"`
		Holds        bool   `json:"holds"`
		OlderRecords uint64 `json:"older_records"`
		OlderTree    string `json:"older_tree"`
		Records      uint64 `json:"records"`
		Tree         string `json:"tree"`
	}
)

func viewState(s *fsm.State, head audit.Head) stateView {
	v := stateView{Index: head.Index, Term: head.Term, Records: head.Records, Chain: head.Chain.String(),
		Tree: head.Tree.String(), StateDigest: head.State.String(), ClusterID: s.ClusterID(), Stopped: s.Stopped(), Leader: s.Office().ServerID,
		Servers: []serverEndView{}, Grants: []grantView{}, Miners: []stateMinerView{}, Blocks: s.Accepted()}
	for _, server := range s.Servers() {
		v.Servers = append(v.Servers, serverEndView{server.ID, server.Address, server.Up, server.Member, nil, server.DataDir})
	}
	if j, ok := s.Job(); ok {
		v.Job = &jobView{ID: j.ID, Height: j.Height, PreviousHash: j.Previous.String(), Bits: j.Bits, Timestamp: j.Timestamp,
			Phase: phaseName(j.Phase), Round: j.Round, FirstNonce: j.Nonces.First, LastNonce: j.Nonces.Last, ChunkSize: j.ChunkSize,
			Chunks: chunksView(s.Counts())}
	}
	for g := range s.Grants() {
		v.Grants = append(v.Grants, grantView{g.ID, g.Miner, g.Nonces.First, g.Nonces.Last, g.Index})
	}
	for _, m := range s.Miners() {
		v.Miners = append(v.Miners, stateMinerView{m.Name, m.Chunks, m.Nonces, m.Solutions, m.Strikes})
	}
	if block, ok := s.LastAccepted(); ok {
		v.LastBlock = block.Hash.String()
	}
	return v
}

func (v stateView) write(w io.Writer) {
	fmt.Fprintf(w, "state as of record %d of term %d (%d records), cluster %s\n", v.Index, v.Term, v.Records, v.ClusterID)
	if v.Stopped {
		fmt.Fprintln(w, "cluster   stopped on purpose")
	}
	fmt.Fprintf(w, "leader    %d\n", v.Leader)
	for _, s := range v.Servers {
		fmt.Fprintf(w, "server    %d %-7s %s\n", s.ID, s.state(), s.Address)
	}
	if j := v.Job; j != nil {
		fmt.Fprintf(w, "job       %d for block %d, %s, %d bits, round %d: %d of %d chunks finished, %d granted, %d pending\n", j.ID,
			j.Height, j.Phase, j.Bits, j.Round, j.Chunks.Finished, j.Chunks.Total, j.Chunks.Granted, j.Chunks.Pending)
	}
	for _, g := range v.Grants {
		fmt.Fprintf(w, "grant     %d: %d-%d to %s at record %d\n", g.ID, g.First, g.Last, g.Miner, g.Index)
	}
	for _, m := range v.Miners {
		fmt.Fprintf(w, "miner     %s: %d chunks, %s hashes, %d solutions, %d strikes\n", m.Name, m.Chunks, count(m.Nonces), m.Solutions,
			m.Strikes)
	}
	fmt.Fprintf(w, "blocks    %d accepted %s\n", v.Blocks, strings.TrimSpace(v.LastBlock))
	fmt.Fprintf(w, "chain     %s\ntree      %d:%s\nstate     %s\n", v.Chain, v.Records, v.Tree, v.StateDigest)
}

func viewProof(p *audit.BlockProof) proofView {
	b := p.Block
	return proofView{Event: "proof", Holds: true, ClusterID: p.ClusterID, Height: b.Height, Hash: b.Hash.String(),
		Previous: b.Previous.String(), Nonce: b.Nonce, Timestamp: b.Timestamp, Bits: b.Bits, Miner: b.Miner,
		Verdict: verdictName(b.Verdict), Records: p.Head.Records, Tree: p.Head.Tree.String()}
}

// String is what a person reads of a proof that holds.
func (v proofView) String() string {
	return fmt.Sprintf("the proof of block %d holds: %s, %d zero bits, nonce %d, timestamp %d, by %s, verdict %s\n"+
		"cluster %s, tree %d:%s", v.Height, v.Hash, v.Bits, v.Nonce, v.Timestamp, v.Miner, v.Verdict, v.ClusterID, v.Records, v.Tree)
}

func viewPrefix(p *audit.PrefixProof) prefixView {
	return prefixView{Event: "prefix_proof", Holds: true, OlderRecords: p.Older.Records, OlderTree: p.Older.Tree.String(),
		Records: p.Head.Records, Tree: p.Head.Tree.String()}
}

// String is what a person reads of a proof that holds.
func (v prefixView) String() string {
	return fmt.Sprintf("the proof holds: the history of %d records begins with that of %d\nolder tree %d:%s\nnewer tree %d:%s", v.Records,
		v.OlderRecords, v.OlderRecords, v.OlderTree, v.Records, v.Tree)
}
