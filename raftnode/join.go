package raftnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"raftmine/fsm"
)

const (
	joinPauseFirst = 50 * time.Millisecond
	joinPauseMost  = time.Second
	joinTryTimeout = 5 * time.Second
	// maxServers is how many servers the table may hold, with those that were removed: ids are never forgotten, and
	// anybody who reaches a server can ask for one. Tuning.
	maxServers = 1024
	// maxComing is how many members may be on their way: they have an id, and were not reached since. Tuning.
	maxComing = 16
	// joinsAtOnce is how many servers that ask are dialled back at a time. Tuning.
	joinsAtOnce = 4
)

// askToJoin asks one server after the other for an id, following hints to the leader, until one gives it. The request
// id makes asking again harmless.
func (n *Node) askToJoin(ctx context.Context, requestID fsm.ID) (JoinReply, error) {
	seeds := n.config.Join
	if len(seeds) == 0 {
		return JoinReply{}, errors.New("join: no server to ask is known: give one, or bootstrap a new cluster")
	}
	ctx, cancel := context.WithTimeout(ctx, n.config.JoinTimeout)
	defer cancel()
	request := JoinRequest{
		RequestID:       requestID,
		Address:         n.config.Advertise,
		DataDir:         n.config.DataDir.Path(),
		Host:            n.config.Host,
		SoftwareVersion: n.config.Version,
	}
	started := time.Now()
	var last error
	for pause := joinPauseFirst; ; pause = min(2*pause, joinPauseMost) {
		ask := slices.Clone(seeds)
		for i := 0; i < len(ask) && i < 2*len(seeds)+2; i++ { // hints may go in circles
			reply, err := n.askOne(ctx, ask[i], request)
			if err == nil {
				n.log.Info("joined cluster", "cluster", reply.ClusterID, "server_id", reply.ServerID, "from", ask[i])
				return reply, nil
			}
			if errors.Is(err, ErrJoinRefused) {
				return JoinReply{}, fmt.Errorf("join %s: %w", ask[i], err)
			}
			var other *NotLeaderError
			follows := errors.As(err, &other)
			// What the leader says of the address says more than that another one does not lead.
			if last == nil || ctx.Err() == nil && !(follows && errors.Is(last, ErrNotThere)) {
				last = fmt.Errorf("%s: %w", ask[i], err)
			}
			if follows && other.Address != "" && !slices.Contains(ask, other.Address) {
				ask = append(ask, other.Address)
			}
		}
		if pause == joinPauseFirst {
			n.log.Info("waiting for a leader to join", "asked", strings.Join(seeds, ","), "error", last)
		}
		if !sleep(ctx, pause) {
			return JoinReply{}, fmt.Errorf("join %s: %w after %v: %w", strings.Join(seeds, ","), ErrNoAnswer,
				time.Since(started).Round(100*time.Millisecond), last)
		}
	}
}

func (n *Node) askOne(ctx context.Context, address string, request JoinRequest) (JoinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTryTimeout)
	defer cancel()
	reply, err := n.config.Peers.Join(ctx, address, request)
	if err != nil {
		return JoinReply{}, err
	}
	if reply.ClusterID == "" || reply.ServerID == 0 {
		return JoinReply{}, errors.New("the reply has no id")
	}
	return reply, nil
}

// HandleJoin gives a server its id: the next one, or the one that its request id was given before. Any other than the
// leader answers with a *NotLeaderError.
func (n *Node) HandleJoin(ctx context.Context, request JoinRequest) (JoinReply, error) {
	if err := n.alive(); err != nil {
		return JoinReply{}, err
	}
	if request.RequestID == (fsm.ID{}) || request.DataDir == "" {
		return JoinReply{}, fmt.Errorf("%w: the request has no id or no data directory", ErrJoinRefused)
	}
	if err := checkAdvertised(request.Address); err != nil {
		return JoinReply{}, fmt.Errorf("%w: %w", ErrJoinRefused, err)
	}
	if len(request.Address) > fsm.MaxAddress || len(request.DataDir) > fsm.MaxPath {
		return JoinReply{}, fmt.Errorf("%w: an address of %d bytes and a data directory of %d, want at most %d and %d",
			ErrJoinRefused, len(request.Address), len(request.DataDir), fsm.MaxAddress, fsm.MaxPath)
	}
	if n.term.Load() == 0 {
		return JoinReply{}, n.notLeader()
	}
	if err := n.joinTurn.take(ctx); err != nil {
		return JoinReply{}, err
	}
	defer n.joinTurn.pass()
	if err := n.dialBack(ctx, request); err != nil {
		return JoinReply{}, err
	}
	known, full, coming := false, false, 0
	servers := n.configuration()
	n.View(func(v fsm.View) {
		rows := v.Servers()
		full = len(rows) >= maxServers
		for _, row := range rows {
			known = known || row.RequestID == request.RequestID
			if row.Member && !row.Up && !isConfigured(servers, row.ID) {
				coming++
			}
		}
	})
	if full && !known {
		return JoinReply{}, fmt.Errorf("%w: %d servers have joined this cluster, and it keeps no more", ErrJoinRefused, maxServers)
	}
	if coming >= maxComing && !known {
		return JoinReply{}, fmt.Errorf("%d servers that were given an id have not come yet: wait until they do, or are removed", coming)
	}
	outcomes, err := n.Propose(ctx, fsm.AddServer{
		RequestID: request.RequestID,
		Address:   request.Address,
		DataDir:   request.DataDir,
		Host:      request.Host,
	})
	if errors.Is(err, fsm.ErrUnfitEntry) {
		return JoinReply{}, fmt.Errorf("%w: %w", ErrJoinRefused, err)
	}
	if err != nil {
		return JoinReply{}, fmt.Errorf("add server at %s: %w", request.Address, err)
	}
	outcome := outcomes[0]
	if outcome.Code != fsm.Done && outcome.Code != fsm.Duplicate {
		return JoinReply{}, fmt.Errorf("%w: %s", ErrJoinRefused, outcome.Detail)
	}
	n.book.hear(outcome.ServerID, request.Address)
	poke(n.regroup)
	n.log.Info("server joins", "joining_id", outcome.ServerID, "address", request.Address,
		"version", request.SoftwareVersion)
	reply := JoinReply{ClusterID: n.clusterID, ServerID: outcome.ServerID}
	for _, id := range n.serverIDs() {
		if id != outcome.ServerID {
			reply.Servers = append(reply.Servers, ServerAddress{ServerID: id, Address: n.book.address(id)})
		}
	}
	return reply, nil
}

// HandleLeave records a planned stop. Leader only.
func (n *Node) HandleLeave(ctx context.Context, request LeaveRequest) error {
	if err := n.alive(); err != nil {
		return err
	}
	if request.ClusterID != n.clusterID {
		return fmt.Errorf("leave of server %d refused: it belongs to cluster %s, this is %s: %w",
			request.ServerID, request.ClusterID, n.clusterID, ErrForeignCluster)
	}
	n.peers.leaving(request.ServerID)
	outcomes, err := n.Propose(ctx, fsm.ServerDown{ServerID: request.ServerID, Reason: "stopped"})
	if err == nil && outcomes[0].Code != fsm.Done && outcomes[0].Code != fsm.Duplicate {
		err = errors.New(outcomes[0].Detail)
	}
	if err != nil {
		return fmt.Errorf("record stop of server %d: %w", request.ServerID, err)
	}
	return nil
}
