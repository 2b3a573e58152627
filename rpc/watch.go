package rpc

import (
	"context"
	"time"

	"raftmine/fsm"
)

// Tuning.
const (
	// watchRecheck is how often a stream compares the state with what it told. Entries that came inside a Raft snapshot
	// were never applied one by one, so nobody announced them.
	watchRecheck = time.Second
	// watchBlocks is how many blocks are read from the state at once.
	watchBlocks = 256
)

// watching is one Watch stream's work, apart from gRPC.
type watching struct {
	node    Node
	queue   *watcher
	send    func(Watched) error
	after   uint64 // sequence number of the last block told
	leader  LeaderEvent
	recheck time.Duration
}

// run tells events until ctx ends (nil) or send fails.
func (w *watching) run(ctx context.Context) error {
	ticker := time.NewTicker(w.recheck)
	defer ticker.Stop()
	for {
		queue, dropped := w.queue.take()
		for _, event := range queue {
			var err error
			switch e := event.Event.(type) {
			case blockMark:
				err = w.sendBlocks()
			case LeaderEvent:
				if e.Term <= w.leader.Term {
					continue // was read from the state before
				}
				w.leader = e
				err = w.send(event)
			default:
				err = w.send(event)
			}
			if err != nil {
				return err
			}
		}
		if dropped > 0 {
			if err := w.sendNow(LaggedEvent{Dropped: dropped}); err != nil {
				return err
			}
		}
		if err := w.sendBlocks(); err != nil {
			return err
		}
		if err := w.sendLeader(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.queue.wake:
		case <-ticker.C:
		}
	}
}

// sendBlocks tells every block that was settled and not told yet.
func (w *watching) sendBlocks() error {
	for {
		var blocks []fsm.Block
		w.node.View(func(v fsm.View) { blocks = v.Blocks(w.after, watchBlocks) })
		if len(blocks) == 0 {
			return nil
		}
		for _, block := range blocks {
			if err := w.send(Watched{UnixMilli: block.At, Event: BlockEvent{Block: blockOf(block)}}); err != nil {
				return err
			}
			w.after = block.Sequence
		}
	}
}

// sendLeader tells the leader that the state knows, if it is news.
func (w *watching) sendLeader() error {
	var office fsm.Office
	w.node.View(func(v fsm.View) { office = v.Office() })
	current := LeaderEvent{ID: office.ServerID, Term: office.Term}
	if current.ID == 0 || current.Term <= w.leader.Term {
		return nil
	}
	w.leader = current
	return w.sendNow(current)
}

func (w *watching) sendNow(event Event) error {
	return w.send(Watched{UnixMilli: uint64(time.Now().UnixMilli()), Event: event})
}
