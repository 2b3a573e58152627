package main

import (
	"fmt"
	"slices"
	"time"

	"raftmine/fsm"
	"raftmine/rpc"
)

// This file holds what scripts read: the JSON names, and the words for people beside them.

type statusView struct {
	Leader          uint64       `json:"leader"`
	Term            uint64       `json:"term"`
	ComputedLeader  uint64       `json:"computed_leader"`
	Servers         []serverView `json:"servers"`
	Job             *jobView     `json:"job"`
	Miners          []minerView  `json:"miners"`
	Blocks          uint64       `json:"blocks"`
	Voters          int          `json:"voters"`
	StateDigest     string       `json:"state_digest"`
	AppliedIndex    uint64       `json:"applied_index"`
	AnsweredBy      uint64       `json:"answered_by"`
	ClusterID       string       `json:"cluster_id"`
	ClusterStopped  bool         `json:"cluster_stopped"`
	Diverged        []uint64     `json:"diverged,omitempty"` // servers that answered with different states at one index
	HashRate        float64      `json:"hash_rate"`
	WebService      string       `json:"web_service,omitempty"`
	WebServiceError string       `json:"web_service_error,omitempty"`
}

type serverView struct {
	ID      uint64 `json:"id"`
	Address string `json:"address"`
	Up      bool   `json:"up"`
	Voter   bool   `json:"voter"`
	Role    string `json:"role"`
	Member  bool   `json:"member"`
	DataDir string `json:"data_dir"`
	// HistoryMissing is how many records the server's history lacks; nil: it was not asked.
	HistoryMissing *uint64 `json:"history_missing,omitempty"`
}

// addHistories adds what servers said of their own histories, and whether their states differ.
func (v *statusView) addHistories(statuses []rpc.Status) {
	v.Diverged = diverged(statuses)
	for i := range v.Servers {
		for _, s := range statuses {
			if s.ServerID == v.Servers[i].ID {
				v.Servers[i].HistoryMissing = &s.HistoryMissing
			}
		}
	}
}

// diverged returns the servers of one cluster that have different states at one index, by id. The state has the head of the
// history in it, so what once differed differs for ever, and is found whenever two of them answer at the same index.
func diverged(statuses []rpc.Status) (ids []uint64) {
	for _, a := range statuses {
		if slices.ContainsFunc(statuses, func(b rpc.Status) bool {
			return a.ServerID != b.ServerID && a.ClusterID == b.ClusterID && a.AppliedIndex == b.AppliedIndex && a.StateDigest != b.StateDigest
		}) {
			ids = append(ids, a.ServerID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// history is a word for people.
func (s serverView) history() string {
	switch {
	case s.HistoryMissing == nil:
		return "not asked"
	case *s.HistoryMissing == 0:
		return "whole"
	}
	return fmt.Sprintf("lacks %d %s, which it fetches", *s.HistoryMissing, plural(*s.HistoryMissing, "record"))
}

// inTable is a word for people.
func (s serverView) inTable() string {
	switch {
	case !s.Member && s.Voter:
		return "not applied yet"
	case !s.Member:
		return "removed"
	case s.Up:
		return "up"
	}
	return "down"
}

type jobView struct {
	ID           uint64     `json:"id"`
	Height       uint64     `json:"height"`
	PreviousHash string     `json:"previous_hash"`
	Bits         int        `json:"bits"`
	Timestamp    uint64     `json:"timestamp"`
	Phase        string     `json:"phase"`
	Round        uint32     `json:"round"`
	FirstNonce   uint64     `json:"first_nonce"`
	LastNonce    uint64     `json:"last_nonce"`
	ChunkSize    uint64     `json:"chunk_size"`
	Chunks       chunksView `json:"chunks"`
}

type chunksView struct {
	Total    uint64 `json:"total"`
	Pending  uint64 `json:"pending"`
	Granted  uint64 `json:"granted"`
	Finished uint64 `json:"finished"`
}

type minerView struct {
	Name           string  `json:"name"`
	Connected      bool    `json:"connected"`
	HashRate       float64 `json:"hash_rate"`
	ChunksFinished uint64  `json:"chunks_finished"`
	Solutions      uint64  `json:"solutions"`
	Strikes        uint32  `json:"strikes"`
	Threads        int     `json:"threads,omitempty"`
	Kernel         string  `json:"kernel,omitempty"`
	Refused        string  `json:"refused,omitempty"` // why it gets no work
}

type blockView struct {
	Event        string `json:"event"`
	Height       uint64 `json:"height"`
	Hash         string `json:"hash"`
	PreviousHash string `json:"previous_hash"`
	Nonce        uint64 `json:"nonce"`
	Timestamp    uint64 `json:"timestamp"`
	Bits         int    `json:"bits"`
	Miner        string `json:"miner"`
	Verdict      string `json:"verdict"`
	Detail       string `json:"detail,omitempty"`
	SettledAt    uint64 `json:"settled_unix_ms"`
}

func viewStatus(s rpc.Status) statusView {
	v := statusView{Leader: s.LeaderID, Term: s.Term, ComputedLeader: s.ComputedLeaderID, Blocks: s.Blocks, Voters: s.Voters,
		StateDigest: s.StateDigest.String(), AppliedIndex: s.AppliedIndex, AnsweredBy: s.ServerID, ClusterID: s.ClusterID,
		ClusterStopped: s.ClusterStopped, Servers: []serverView{}, Miners: []minerView{}}
	for _, server := range s.Servers {
		role := "follower"
		if server.Leader {
			role = "leader"
		}
		v.Servers = append(v.Servers, serverView{ID: server.ID, Address: server.Address, Up: server.Up, Voter: server.Voter,
			Role: role, Member: server.Member, DataDir: server.DataDir})
	}
	if j := s.Job; j != nil {
		v.Job = &jobView{ID: j.ID, Height: j.Height, PreviousHash: j.Previous.String(), Bits: j.Bits, Timestamp: j.Timestamp,
			Phase: phaseName(j.Phase), Round: j.Round, FirstNonce: j.Nonces.First, LastNonce: j.Nonces.Last, ChunkSize: j.ChunkSize,
			Chunks: chunksView(j.Chunks)}
	}
	for _, m := range s.Miners {
		v.Miners = append(v.Miners, minerView(m))
	}
	if c := s.Coordinator; c != nil {
		v.HashRate, v.WebService, v.WebServiceError = c.HashRate, c.WebService, c.WebServiceError
	}
	return v
}

func viewBlock(b rpc.Block) blockView {
	return blockView{Event: "block", Height: b.Height, Hash: b.Hash.String(), PreviousHash: b.Previous.String(), Nonce: b.Nonce,
		Timestamp: b.Timestamp, Bits: b.Bits, Miner: b.Miner, Verdict: verdictName(b.Verdict), Detail: b.Detail, SettledAt: b.SettledAt}
}

// String is one line for people.
func (b blockView) String() string {
	line := fmt.Sprintf("block %-4d %s  nonce %d  timestamp %d  bits %d  by %s  %s",
		b.Height, b.Hash, b.Nonce, b.Timestamp, b.Bits, b.Miner, b.Verdict)
	if b.Verdict != verdictName(fsm.VerdictSuccess) && b.Detail != "" {
		line += fmt.Sprintf(" (%s)", b.Detail)
	}
	return line
}

func verdictName(v fsm.Verdict) string {
	switch v {
	case fsm.VerdictSuccess:
		return "success"
	case fsm.VerdictWrong:
		return "wrong"
	case fsm.VerdictStale:
		return "stale"
	}
	return "unknown"
}

func phaseName(p fsm.Phase) string {
	switch p {
	case fsm.PhaseOpen:
		return "open"
	case fsm.PhaseSolved:
		return "solved"
	case fsm.PhaseSubmitting:
		return "submitting"
	}
	return "closed"
}

func stepName(s fsm.JobStep) string {
	switch s {
	case fsm.JobOpened:
		return "opened"
	case fsm.JobRolled:
		return "rolled"
	case fsm.JobSolved:
		return "solved"
	}
	return "closed"
}

// The events beside block. Their names are what scripts rely on.
type leaderView struct {
	Event string `json:"event"`
	ID    uint64 `json:"id"`
	Term  uint64 `json:"term"`
}

type serverEventView struct {
	Event  string `json:"event"` // server_up or server_down
	ID     uint64 `json:"id"`
	Reason string `json:"reason,omitempty"`
}

type heartbeatView struct {
	Event    string `json:"event"`
	From     uint64 `json:"from"`
	To       uint64 `json:"to,omitempty"`
	ToMiner  string `json:"to_miner,omitempty"`
	Answered bool   `json:"answered"`
	UnixMS   uint64 `json:"unix_ms"`
}

type minerEventView struct {
	Event   string `json:"event"` // miner_connected, miner_disconnected or miner_refused
	Name    string `json:"name"`
	Message string `json:"message,omitempty"`
}

type jobEventView struct {
	Event        string `json:"event"` // job_opened, job_rolled, job_solved or job_closed
	ID           uint64 `json:"id"`
	Height       uint64 `json:"height"`
	PreviousHash string `json:"previous_hash"`
	Bits         int    `json:"bits"`
	Timestamp    uint64 `json:"timestamp"`
}

type laggedView struct {
	Event   string `json:"event"`
	Dropped uint64 `json:"dropped"`
}

// viewEvent returns what scripts read and what people read; nil for an event that is not for printing.
func viewEvent(w rpc.Watched) (object any, line string) {
	switch e := w.Event.(type) {
	case rpc.LeaderEvent:
		return leaderView{"leader", e.ID, e.Term}, fmt.Sprintf("leader is server %d (term %d)", e.ID, e.Term)
	case rpc.BlockEvent:
		block := viewBlock(e.Block)
		return block, block.String()
	case rpc.ServerEvent:
		name, word := "server_down", "down"
		if e.Up {
			name, word = "server_up", "up"
		}
		line = fmt.Sprintf("server %d is %s", e.ID, word)
		if e.Reason != "" && !e.Up {
			line += ": " + e.Reason
		}
		return serverEventView{name, e.ID, e.Reason}, line
	case rpc.HeartbeatEvent:
		to := fmt.Sprintf("server %d", e.To)
		if e.ToMiner != "" {
			to = "miner " + e.ToMiner
		}
		word := "answered"
		if !e.Answered {
			word = "not answered"
		}
		return heartbeatView{"heartbeat", e.From, e.To, e.ToMiner, e.Answered, w.UnixMilli},
			fmt.Sprintf("heartbeat server %d -> %s %s", e.From, to, word)
	case rpc.MinerEvent:
		line = fmt.Sprintf("miner %s %s", e.Name, e.What)
		if e.Message != "" {
			line += ": " + e.Message
		}
		return minerEventView{"miner_" + e.What, e.Name, e.Message}, line
	case rpc.JobEvent:
		return jobEventView{"job_" + stepName(e.What), e.ID, e.Height, e.Previous.String(), e.Bits, e.Timestamp},
			fmt.Sprintf("job %d for block %d %s: %d bits on %.16s...", e.ID, e.Height, stepName(e.What), e.Bits, e.Previous)
	case rpc.LaggedEvent:
		return laggedView{"lagged", e.Dropped}, fmt.Sprintf("%d events were dropped here: this reader is too slow", e.Dropped)
	}
	return nil, ""
}

// timeOf is a wall-clock time from the wire.
func timeOf(unixMilli uint64) time.Time { return time.UnixMilli(int64(unixMilli)) }
