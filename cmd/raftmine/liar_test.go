package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"raftmine/fsm/pow"
	"raftmine/miner"
	"raftmine/raftnode/registry"
)

// liar is a gRPC client that searches a share of each chunk, claims it all, and says nothing of the solutions it meets.
type liar struct {
	*simulated
	share   float64
	chunk   uint64
	held    []miner.Process
	waiting bool        // for an acknowledgement
	claimed []pow.Range // acknowledged
}

func startLiar(t *testing.T, env *registry.Environment, name string, share float64, chunk uint64) *liar {
	t.Helper()
	m, err := newSimulated(t.Context(), env, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	return &liar{simulated: m, share: share, chunk: chunk}
}

// lie goes on until the leader refuses it, which is the error, or so many chunks are claimed.
func (l *liar) lie(limit int) error {
	for len(l.claimed) < limit {
		message, err := l.conn.Receive()
		if err != nil {
			return err
		}
		if err := l.take(message); err != nil {
			return err
		}
	}
	return nil
}

func (l *liar) take(message miner.Message) error {
	switch m := message.(type) {
	case miner.HeartbeatRequest:
		wanted := 1
		reply := miner.HeartbeatReply{Name: l.name, Threads: 1, Kernel: "none", SoftwareVersion: version, Wanted: &wanted, HashRate: 1e18}
		copy(reply.Instance[:], fmt.Sprintf("%016s", l.name))
		for _, p := range l.held {
			reply.Held = append(reply.Held, p.GrantID)
		}
		if err := l.conn.Send(reply); err != nil {
			return err
		}
	case miner.Process:
		if !slices.ContainsFunc(l.held, func(p miner.Process) bool { return p.GrantID == m.GrantID }) {
			l.held = append(l.held, m)
		}
	case miner.Interrupt:
		l.held = slices.DeleteFunc(l.held, func(p miner.Process) bool {
			return slices.Contains(m.GrantIDs, p.GrantID) || len(m.GrantIDs) == 0 && p.JobID == m.JobID
		})
	case miner.Acknowledgement:
		l.waiting = false
		at := slices.IndexFunc(l.held, func(p miner.Process) bool { return p.GrantID == m.GrantID })
		if at < 0 {
			break
		}
		p := &l.held[at]
		switch {
		case m.Result == miner.ResultCommitted && m.Nonce < p.Nonces.Last:
			l.claimed = append(l.claimed, pow.Range{First: p.Nonces.First, Last: m.Nonce})
			p.Nonces.First = m.Nonce + 1
		case m.Result == miner.ResultCommitted:
			l.claimed = append(l.claimed, p.Nonces)
			fallthrough
		default: // of a wrong one it is sent the range once more
			l.held = slices.Delete(l.held, at, at+1)
		}
	}
	if l.waiting || len(l.held) == 0 {
		return nil
	}
	l.waiting = true
	return l.conn.Send(l.answer(l.held[0]))
}

// answer claims the first chunk of p.
func (l *liar) answer(p miner.Process) miner.AnswerNo {
	nonces := pow.Range{First: p.Nonces.First, Last: min(p.Nonces.First+l.chunk-1, p.Nonces.Last)}
	tried := max(uint64(l.share*float64(nonces.Len())), 1)
	receipt, best := uint64(0), pow.Hash{}
	for nonce := nonces.First; nonce < nonces.First+tried || receipt == 0; nonce++ {
		if digest, solved := p.Work.Verify(nonce); !solved && (receipt == 0 || digest.Compare(best) < 0) {
			receipt, best = nonce, digest
		}
	}
	return miner.AnswerNo{GrantID: p.GrantID, JobID: p.JobID, Timestamp: p.Work.Timestamp, Nonces: nonces, Receipt: receipt}
}

// TestLyingMinersAreFoundByTheLeader: each searches another share of its chunks, over real gRPC. An honest one after
// them answers for 200 chunks.
func TestLyingMinersAreFoundByTheLeader(t *testing.T) {
	const chunk = 64
	data := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "--servers", "1", "--miners", "0", "--zeros", "16", "--block-time", "0s", "--chunk", fmt.Sprint(chunk),
		"--data-dir", data, "-o", "json")
	_, _ = run.waitEvent(0, "leader")
	env, err := registry.Open(filepath.Join(data, "environment"))
	if err != nil {
		t.Fatal(err)
	}
	var revoked uint64
	for _, row := range []struct {
		name  string
		share float64
		limit int // chunks
	}{{"nothing", 0, 50}, {"half", 0.5, 400}, {"most", 0.8, 4000}} {
		l := startLiar(t, env, row.name, row.share, chunk)
		if err := l.lie(row.limit); !errors.Is(err, miner.ErrRefused) {
			t.Fatalf("%s: after %d chunks: %v", row.name, len(l.claimed), err)
		}
		t.Logf("%.0f %%: refused after %d chunks", 100*row.share, len(l.claimed))
		status, problem := statusOf(t, env.Dir())
		at := slices.IndexFunc(status.Miners, func(m minerView) bool { return m.Name == row.name })
		if problem != "" || at < 0 {
			t.Fatalf("%s is not in the status: %s", row.name, problem)
		}
		if m := status.Miners[at]; m.Refused == "" || m.Strikes < 3 || m.HashRate != 0 {
			t.Errorf("status says %+v", m)
		} else {
			revoked += uint64(len(l.claimed)) - m.ChunksFinished
		}
		if again, err := newSimulated(t.Context(), env, row.name); err == nil {
			if _, err := again.next(); !errors.Is(err, miner.ErrRefused) {
				t.Errorf("%s comes back: %v", row.name, err)
			}
			again.close()
		}
	}
	if err := startLiar(t, env, "honest", 1, chunk).lie(200); err != nil {
		t.Errorf("the honest one: %v", err)
	}
	if _, stdout, _ := command(t, "status", "--environment", env.Dir()); !strings.Contains(stdout, "half is refused work: 3 strikes") {
		t.Errorf("status for people:\n%s", stdout)
	}
	run.signal(syscall.SIGINT)
	if code := run.waitExit(); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
	code, report, stderr := auditJSON(t, data)
	if code != exitDone || report["chunks_revoked"] != float64(revoked) {
		t.Errorf("the audit ends with %d and %v chunks revoked, want %d: %s", code, report["chunks_revoked"], revoked, stderr)
	}
}

// TestBlockIsMinedInWhatALiarClaimed: the honest miner is granted what the liar claimed, finds the solution that the liar
// did not, and the web service takes it.
func TestBlockIsMinedInWhatALiarClaimed(t *testing.T) {
	const chunk = 64
	data := filepath.Join(keepOnFailure(t), "run")
	run := startProcess(t, "run", "--servers", "3", "--miners", "0", "--zeros", "1", "--block-time", "0s", "--blocks", "1",
		"--chunk", fmt.Sprint(chunk), "--data-dir", data, "-o", "json")
	_, _ = run.waitEvent(0, "leader")
	env, err := registry.Open(filepath.Join(data, "environment"))
	if err != nil {
		t.Fatal(err)
	}
	l := startLiar(t, env, "liar", 0.5, chunk)
	if err := l.lie(400); !errors.Is(err, miner.ErrRefused) {
		t.Fatalf("after %d chunks: %v", len(l.claimed), err)
	}
	startProcess(t, "miner", "--name", "honest", "--environment", env.Dir())
	block, _ := run.waitEvent(0, "block")
	nonce := uint64(block["nonce"].(float64))
	if block["verdict"] != "success" || block["miner"] != "honest" ||
		!slices.ContainsFunc(l.claimed, func(nonces pow.Range) bool { return nonces.Contains(nonce) }) {
		t.Errorf("block %v, want one in the %d chunks that the liar claimed", block, len(l.claimed))
	}
	if code := run.waitExit(); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
	code, report, stderr := auditJSON(t, data)
	if code != exitDone || report["holds"] != true || report["chunks_revoked"] != float64(len(l.claimed)) {
		t.Errorf("the audit ends with %d and %v chunks revoked, want %d: %s", code, report["chunks_revoked"], len(l.claimed), stderr)
	}
}
