package raftnode

import (
	"sync"

	"github.com/hashicorp/raft"
)

// The library's pipeline of log entries wedges: after an answer that says no, or none in time, the goroutine that takes the
// answers ends, while the one that sends may send once more and waits for ever to hand that over. The follower then gets Raft
// heartbeats and no entry until the term ends, and the shutdown of that Raft instance never returns. Here the answers are
// always taken, so sending goes on until it is told to end.

// AppendEntriesPipeline implements raft.Transport.
func (t *raftTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &drainedPipeline{AppendPipeline: inner, answers: make(chan raft.AppendFuture), closed: make(chan struct{})}
	p.work.Go(p.drain)
	return p, nil
}

// drainedPipeline keeps the answers that nobody has asked for yet. They are few: each is to something sent.
type drainedPipeline struct {
	raft.AppendPipeline
	answers chan raft.AppendFuture
	closed  chan struct{}
	once    sync.Once
	work    sync.WaitGroup
}

func (p *drainedPipeline) drain() {
	var kept []raft.AppendFuture
	for {
		var out chan raft.AppendFuture
		var next raft.AppendFuture
		if len(kept) > 0 {
			out, next = p.answers, kept[0]
		}
		select {
		case answer := <-p.AppendPipeline.Consumer():
			kept = append(kept, answer)
		case out <- next:
			kept = kept[1:]
		case <-p.closed:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *drainedPipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// Close implements raft.AppendPipeline.
func (p *drainedPipeline) Close() error {
	err := p.AppendPipeline.Close()
	p.once.Do(func() { close(p.closed) })
	p.work.Wait()
	return err
}
