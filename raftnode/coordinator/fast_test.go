package coordinator

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// A fast miner as the coordinator sees it. What is granted follows from chunks a second alone, so a chunk is fastChunk
// nonces here where it is DefaultChunkSize in earnest, and each rate is as much lower: the receipts are searched for real.
const (
	fastRate   = 45e6 // nonces a second of a thread, in earnest
	fastChunk  = 4
	fastScale  = float64(fastChunk) / DefaultChunkSize
	fastChunks = fastRate / DefaultChunkSize // a second of a thread
)

// fastMiner searches at its speed, and stands still only when it holds no range. Its answers hold it up no more than a
// real miner's do.
type fastMiner struct {
	t       *testing.T
	s       *Session
	threads int
	speed   float64 // nonces a second
	held    []Process
	kept    []uint64     // grants with an answer that is not acknowledged
	sent    chan Message // taken one after the other, as from a stream

	chunks   uint64        // finished
	searched time.Duration // from the first grant to the last chunk, waits included
	waits    int           // for a range, after the first one
	longest  time.Duration
}

// fastMiner connects a miner.
func (r *rig) fastMiner(threads int) *fastMiner {
	r.t.Helper()
	s, err := r.c.Open()
	if err != nil {
		r.t.Fatal(err)
	}
	return &fastMiner{t: r.t, s: s, threads: threads, speed: fastScale * fastRate * float64(threads), sent: make(chan Message, 64)}
}

func (m *fastMiner) report(rate float64) HeartbeatReply {
	wanted := 2
	reply := HeartbeatReply{
		Name: "fast", Instance: fsm.ID{1}, Threads: m.threads, Kernel: "test", HashRate: rate, Held: slices.Clone(m.kept), Wanted: &wanted,
	}
	for _, p := range m.held {
		reply.Held = append(reply.Held, p.GrantID)
	}
	return reply
}

// mine searches for so long.
func (m *fastMiner) mine(length time.Duration) {
	var stream sync.WaitGroup
	stream.Go(func() {
		for message := range m.sent {
			if err := m.s.Receive(m.t.Context(), message); err != nil {
				m.t.Error(err)
			}
		}
	})
	defer func() { close(m.sent); stream.Wait() }()
	// A real miner does not know its rate yet: it is granted what it would be in earnest.
	rate := fastScale * assumedRate * float64(m.threads)
	var first, idle time.Time
	var done <-chan time.Time // of m.held[0]; nil: there is none
	for end := time.After(length); ; {
		if done == nil && len(m.held) > 0 {
			if first.IsZero() {
				first = time.Now()
			} else if waited := time.Since(idle); waited > 0 {
				m.waits++
				m.longest = max(m.longest, waited)
			}
			done = time.After(time.Duration(float64(m.held[0].Nonces.Len()) / m.speed * float64(time.Second)))
		}
		select {
		case <-end:
			return
		case <-done:
			p := m.held[0]
			m.held, done, idle = slices.Delete(m.held, 0, 1), nil, time.Now()
			m.chunks += p.Nonces.Len() / p.ChunkSize
			m.searched = time.Since(first)
			m.kept = append(m.kept, p.GrantID)
			m.sent <- honest(p)
		case message := <-m.s.Outgoing():
			switch message := message.(type) {
			case HeartbeatRequest:
				m.sent <- m.report(rate)
				rate = m.speed
			case Process:
				m.held = append(m.held, message)
			case Acknowledgement:
				m.kept = slices.DeleteFunc(m.kept, func(id uint64) bool { return id == message.GrantID })
				if message.Result != Committed {
					m.t.Errorf("an honest answer came to %+v", message)
				}
			default:
				m.t.Errorf("told %T %+v", message, message)
			}
		}
	}
}

// TestFastMinerNeverWaitsAndTheLogStaysSmall: at 45 MH/s a thread finishes 450 chunks a second. The range of 20,000 chunks
// is searched to its end again and again. Each grant is in hand before the one before it ends, to the last one of a round;
// between two rounds the miner waits for three commits at most: of its last two answers, and of the new timestamp.
func TestFastMinerNeverWaitsAndTheLogStaysSmall(t *testing.T) {
	const (
		commitTime = 20 * time.Millisecond // of a slow disk
		length     = 3 * time.Minute
		most       = 2 // entries a second, each with an answer and the grant that follows
	)
	for _, threads := range []int{1, 8} {
		t.Run(fmt.Sprintf("threads=%d", threads), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(r *rig) {
					const chunks = DefaultLastNonce / DefaultChunkSize
					r.cfg.Nonces, r.cfg.ChunkSize, r.cfg.MaxGrantChunks = pow.Range{First: 1, Last: chunks * fastChunk}, fastChunk, 0
					r.cl.latency = commitTime
				})
				time.Sleep(time.Second) // there is a job
				opened := len(r.cl.history())
				m := r.fastMiner(threads)
				m.mine(length)

				entries, commands := map[uint64]bool{}, 0
				for _, a := range r.cl.history()[opened:] {
					entries[a.entry] = true
					commands++
				}
				perSecond := func(count int) float64 { return float64(count) / length.Seconds() }
				chunks, rounds := float64(m.chunks)/m.searched.Seconds()/float64(threads), int(r.cl.job().Round)
				t.Logf("%d rounds; a second: %.1f chunks a thread, %.2f entries, %.2f commands; %d waits, %v at most",
					rounds, chunks, perSecond(len(entries)), perSecond(commands), m.waits, m.longest)
				if chunks < 0.99*fastChunks {
					t.Errorf("%.1f chunks a second and thread, want %.0f", chunks, fastChunks)
				}
				if rounds < 4 || m.waits > rounds || m.longest > 3*commitTime {
					t.Errorf("waited %d times for a range in %d rounds, %v at most, want once a round, for three commits of %v",
						m.waits, rounds, m.longest, commitTime)
				}
				if n := perSecond(len(entries)); n > most || perSecond(commands) > 2*most {
					t.Errorf("%.2f entries and %.2f commands a second, want %d and %d at most", n, perSecond(commands), most, 2*most)
				}
			})
		})
	}
}
