package rpc

import (
	"sync"
	"time"

	"raftmine/fsm"
)

// Tuning.
const (
	// watchBuffer is how many events wait for one slow watcher.
	watchBuffer = 1024
	// watchChatter is from how many waiting events on heartbeats and miners' comings and goings are dropped first.
	watchChatter = watchBuffer / 2
)

// Hub takes what happens on this server and hands it to the watchers. It implements raftnode.Observer; MinerObserver is
// its other face. Its methods never block, and cost next to nothing while nobody watches.
type Hub struct {
	mu       sync.Mutex
	watchers map[*watcher]struct{}
}

// NewHub returns a hub without watchers. It holds no goroutine and needs no Close.
func NewHub() *Hub { return &Hub{watchers: make(map[*watcher]struct{})} }

// watcher is the bounded queue of one Watch stream. Blocks are not queued: a blockMark says that the state has new ones,
// and the stream reads them there, so they are never lost.
type watcher struct {
	wake chan struct{} // holds one token while something waits

	mu      sync.Mutex
	queue   []Watched
	dropped uint64 // since the queue was last taken
}

// blockMark stands in the queue where blocks were settled.
type blockMark struct{}

func (blockMark) isEvent() {}

// Applied implements raftnode.Observer.
func (h *Hub) Applied(_ uint64, events []fsm.Event) {
	if !h.watched() {
		return
	}
	for _, event := range events {
		switch e := event.(type) {
		case fsm.LeaderChanged:
			h.tell(LeaderEvent{ID: e.ServerID, Term: e.Term}, false)
		case fsm.ServerChanged:
			h.tell(ServerEvent{ID: e.Server.ID, Up: e.Server.Up, Reason: e.Reason}, false)
		case fsm.JobChanged:
			h.tell(JobEvent{
				ID: e.Job.ID, Height: e.Job.Height, Previous: e.Job.Previous, Bits: e.Job.Bits,
				Timestamp: e.Job.Timestamp, What: e.What,
			}, false)
		case fsm.BlockSettled:
			h.tell(blockMark{}, false)
		}
	}
}

// Heartbeat implements raftnode.Observer.
func (h *Hub) Heartbeat(from, to uint64, answered bool) {
	h.tell(HeartbeatEvent{From: from, To: to, Answered: answered}, true)
}

// MinerObserver returns what a coordinator on server serverID tells of its miners.
func (h *Hub) MinerObserver(serverID uint64) *MinerObserver { return &MinerObserver{h, serverID} }

// MinerObserver implements coordinator.Observer.
type MinerObserver struct {
	hub      *Hub
	serverID uint64
}

// MinerConnected tells that a miner's session began.
func (o *MinerObserver) MinerConnected(name string) {
	o.hub.tell(MinerEvent{Name: name, What: "connected"}, true)
}

// MinerDisconnected tells that a miner's session ended.
func (o *MinerObserver) MinerDisconnected(name, why string) {
	o.hub.tell(MinerEvent{Name: name, What: "disconnected", Message: why}, true)
}

// MinerRefused tells that a miner is given no work.
func (o *MinerObserver) MinerRefused(name, why string) {
	o.hub.tell(MinerEvent{Name: name, What: "refused", Message: why}, true)
}

// Heartbeat tells of a heartbeat to a miner.
func (o *MinerObserver) Heartbeat(miner string, answered bool) {
	o.hub.tell(HeartbeatEvent{From: o.serverID, ToMiner: miner, Answered: answered}, true)
}

func (h *Hub) watched() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.watchers) > 0
}

// tell queues event for every watcher. Chatter gives way early, so that it cannot push out what matters.
func (h *Hub) tell(event Event, chatter bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watchers) == 0 {
		return
	}
	told := Watched{UnixMilli: uint64(time.Now().UnixMilli()), Event: event}
	for w := range h.watchers {
		w.put(told, chatter)
	}
}

// watch registers a watcher; the caller unwatches it.
func (h *Hub) watch() *watcher {
	w := &watcher{wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers[w] = struct{}{}
	return w
}

func (h *Hub) unwatch(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

func (w *watcher) put(event Watched, chatter bool) {
	limit := watchBuffer
	if chatter {
		limit = watchChatter
	}
	w.mu.Lock()
	_, isMark := event.Event.(blockMark)
	switch {
	case len(w.queue) < limit:
		w.queue = append(w.queue, event)
	case !isMark: // a mark is not missed: blocks are read whenever the queue was taken
		w.dropped++
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take empties the queue. It reports how many events were dropped after those it returns.
func (w *watcher) take() (queue []Watched, dropped uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	queue, dropped = w.queue, w.dropped
	w.queue, w.dropped = nil, 0
	return queue, dropped
}
