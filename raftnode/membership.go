package raftnode

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftmine/fsm"
)

const (
	// caughtUpEntries is how far behind a server may be and count as caught up. Tuning.
	caughtUpEntries = 128
	// catchUpLook is how often the leader asks a server that catches up how far it is.
	catchUpLook = 20 * time.Millisecond
	// governPause is the least time from one look at the servers to the next: what a look does may be the reason for another.
	governPause = 5 * time.Millisecond
)

// governTerm keeps the server table and Raft's configuration true while this server leads. All changes of the
// configuration come from here, one at a time.
func (n *Node) governTerm(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	n.lookAround(ctx, &work)
	for {
		looked := time.Now()
		catchingUp := n.governOnce(ctx)
		pause := n.config.Heartbeat
		if catchingUp {
			pause = min(pause, catchUpLook)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-n.govern:
		}
		timer.Stop()
		if !sleep(ctx, governPause-time.Since(looked)) {
			return
		}
	}
}

// lookAround finds out at once who is there. A dead server's port refuses; one that answers nothing takes its time.
func (n *Node) lookAround(ctx context.Context, work *sync.WaitGroup) {
	n.peers.mu.Lock()
	defer n.peers.mu.Unlock()
	for id, p := range n.peers.byID {
		poke(p.kick)
		work.Go(func() {
			if refused := n.probe(ctx, n.book.address(id), nil); refused >= refusedDials {
				n.peers.mu.Lock()
				p.fail(time.Now())
				p.refused = refused
				n.peers.mu.Unlock()
				poke(n.govern)
			}
		})
	}
}

// governOnce looks at every server and commits what changed. It reports whether a server is being caught up.
func (n *Node) governOnce(ctx context.Context) (catchingUp bool) {
	servers := n.configuration()
	if !isVoter(servers, n.id) {
		n.leaveOffice(ctx)
		return false
	}
	var rows []fsm.Server
	n.View(func(v fsm.View) { rows = v.Servers() })
	var commands []fsm.Command
	for _, row := range rows {
		if row.ID == n.id {
			commands = append(commands, n.governSelf(row)...)
			continue
		}
		p, ok := n.peers.get(row.ID)
		if !ok {
			continue
		}
		commands = append(commands, n.judge(row, p, servers)...)
	}
	n.commit(ctx, commands)
	for _, row := range rows {
		if row.ID == n.id || !row.Member || isVoter(servers, row.ID) {
			continue
		}
		if p, ok := n.peers.get(row.ID); ok && p.present && !p.left {
			catchingUp = n.bringIn(ctx, p, servers) || catchingUp
			servers = n.configuration()
		}
	}
	n.dismissSilent(ctx, rows)
	n.preferLowest(ctx, servers)
	return catchingUp
}

// governSelf keeps the leader's own row true.
func (n *Node) governSelf(row fsm.Server) []fsm.Command {
	return n.moved(row, n.report())
}

// judge says what the table must learn of another server.
func (n *Node) judge(row fsm.Server, p peer, servers []raft.Server) (commands []fsm.Command) {
	if row.Up {
		reason := p.silence(n.config.Heartbeat)
		if reason == "" && !isVoter(servers, row.ID) {
			reason = "no longer a voter"
		}
		if reason != "" {
			return []fsm.Command{fsm.ServerDown{ServerID: row.ID, Reason: reason}}
		}
	}
	if !p.present || p.left {
		return nil
	}
	commands = n.moved(row, p.report)
	if !row.Member {
		return append(commands, fsm.ReadmitServer{ServerID: row.ID})
	}
	if !row.Up && isVoter(servers, row.ID) && p.stable(n.config.Heartbeat) && n.caughtUp(p.report) {
		commands = append(commands, fsm.ServerUp{ServerID: row.ID})
	}
	return commands
}

// moved updates a row that differs from what the server says of itself.
func (n *Node) moved(row fsm.Server, report ServerReport) []fsm.Command {
	if row.Address == report.Address && row.DataDir == report.DataDir && row.Host == report.Host {
		return nil
	}
	return []fsm.Command{fsm.UpdateServer{
		ServerID: row.ID,
		Address:  report.Address,
		DataDir:  report.DataDir,
		Host:     report.Host,
	}}
}

func (n *Node) commit(ctx context.Context, commands []fsm.Command) {
	if len(commands) == 0 {
		return
	}
	outcomes, err := n.Propose(ctx, commands...)
	if err != nil {
		if ctx.Err() == nil {
			n.log.Log(ctx, troubleLevel(err), "server table not updated, trying again", "error", err)
		}
		return
	}
	for i, outcome := range outcomes {
		switch command := commands[i].(type) {
		case fsm.ServerUp:
			n.log.Info("server up", "peer", command.ServerID)
		case fsm.ServerDown:
			n.log.Info("server down", "peer", command.ServerID, "reason", command.Reason)
		case fsm.ReadmitServer:
			n.log.Info("server readmitted", "peer", command.ServerID)
		}
		if outcome.Code != fsm.Done && outcome.Code != fsm.Duplicate {
			n.log.Warn("server table not updated", "detail", outcome.Detail)
		}
	}
}

// bringIn makes a member that answers a non-voter, and a non-voter that has caught up a voter: one that died after it was
// given an id, or that has an empty log, would only weaken the majority. It reports whether there is more to do soon.
func (n *Node) bringIn(ctx context.Context, p peer, servers []raft.Server) bool {
	address := raftAddress(p.id, p.report.Address)
	if !isConfigured(servers, p.id) {
		if err := n.reconfigure(ctx, p.id, "non-voter", func(prev uint64) raft.IndexFuture {
			return n.raft.AddNonvoter(raftID(p.id), address, prev, n.config.TransportTimeout)
		}); err != nil {
			return false
		}
	}
	last := n.raft.LastIndex()
	report, err := n.ask(ctx, p.id, n.book.address(p.id))
	if err != nil {
		n.peers.lost(p.id)
		return false
	}
	n.peers.took(p.id, report)
	if report.Stopping {
		return false
	}
	var recovered uint64 // the last entry before a recovery; 0: there was none
	n.View(func(v fsm.View) {
		if recovery, ok := v.Recovery(); ok {
			recovered = recovery.Index
		}
	})
	// Up to there the gate of a server that began again is closed (votegate.go): as a voter it would give no vote, and once the
	// leader is gone nobody would send it the rest.
	if report.LastIndex+caughtUpEntries < last || report.Term != n.raft.CurrentTerm() || report.LastIndex <= recovered {
		return true
	}
	err = n.reconfigure(ctx, p.id, "voter", func(prev uint64) raft.IndexFuture {
		return n.raft.AddVoter(raftID(p.id), address, prev, n.config.TransportTimeout)
	})
	return err != nil && ctx.Err() == nil
}

// dismissSilent removes one member that was down and silent for the grace period, from the voters and from the table, so
// that failures one after the other are survived. Nothing of the kind happens when the cluster is being stopped.
func (n *Node) dismissSilent(ctx context.Context, rows []fsm.Server) {
	var over bool
	n.View(func(v fsm.View) { over = v.Stopped() })
	if over || n.stopping.Load() {
		return
	}
	for _, row := range rows {
		p, ok := n.peers.get(row.ID)
		if !row.Member || row.Up || !ok || p.present || time.Since(p.silent) < n.config.Grace {
			continue
		}
		if err := n.dismiss(ctx, row.ID, fmt.Sprintf("silent for %v", n.config.Grace)); err != nil && ctx.Err() == nil {
			n.log.Log(ctx, troubleLevel(err), "silent server not removed, trying again", "peer", row.ID, "error", err)
		}
		return
	}
}

// dismiss removes a server from Raft's configuration, and then from the members of the table.
func (n *Node) dismiss(ctx context.Context, id uint64, reason string) error {
	if isConfigured(n.configuration(), id) {
		err := n.reconfigure(ctx, id, "removed", func(prev uint64) raft.IndexFuture {
			return n.raft.RemoveServer(raftID(id), prev, n.config.TransportTimeout)
		})
		if err != nil {
			return err
		}
	}
	outcomes, err := n.Propose(ctx, fsm.RemoveServer{ServerID: id, Reason: fsm.Line(reason)})
	if err != nil {
		return err
	}
	if code := outcomes[0].Code; code != fsm.Done && code != fsm.Duplicate {
		return errors.New(outcomes[0].Detail)
	}
	n.log.Info("server removed", "peer", id, "reason", reason)
	return nil
}

// reconfigure changes Raft's configuration and waits until that is committed.
func (n *Node) reconfigure(ctx context.Context, id uint64, as string, change func(prev uint64) raft.IndexFuture) error {
	if err := n.configTurn.take(ctx); err != nil {
		return err
	}
	defer n.configTurn.pass()
	if p, ok := n.peers.get(id); as != "removed" && (!ok || !p.present) {
		return fmt.Errorf("server %d no longer answers", id) // as a voter it could only be in the way
	}
	err := n.await(ctx, func() error { return change(0).Error() })
	switch {
	case err == nil:
		n.log.Info("group changed", "peer", id, "as", as)
		poke(n.govern)
	case ctx.Err() == nil:
		n.log.Log(ctx, troubleLevel(err), "group not changed", "peer", id, "as", as, "error", err)
	}
	return err
}

// lost notes that a question was not answered, and has a heartbeat find out more.
func (s *peerSet) lost(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.byID[id]; ok && p.present {
		p.fail(time.Now())
		poke(p.kick)
	}
}

func (s *peerSet) took(id uint64, report ServerReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.byID[id]; ok {
		p.take(report)
	}
}

// caughtUp compares a report with this leader's log. The report is some milliseconds old, so a server that keeps pace with
// a busy leader counts.
func (n *Node) caughtUp(report ServerReport) bool {
	return report.AppliedIndex+caughtUpEntries >= n.raft.AppliedIndex() &&
		report.LastIndex+caughtUpEntries >= n.raft.LastIndex()
}

func isConfigured(servers []raft.Server, id uint64) bool {
	for _, server := range servers {
		if serverID(server.ID) == id {
			return true
		}
	}
	return false
}

func isVoter(servers []raft.Server, id uint64) bool {
	for _, server := range servers {
		if serverID(server.ID) == id {
			return server.Suffrage == raft.Voter
		}
	}
	return false
}
