package miner

import (
	"context"
	"time"
)

// dialed is what came of a dial.
type dialed struct {
	conn   Conn
	cancel context.CancelFunc
	err    error
}

// link is one stream, with a goroutine for each direction.
type link struct {
	conn    Conn
	cancel  context.CancelFunc // of the context that the stream was dialled with
	in      chan received
	out     chan Message
	over    chan struct{} // closed when the session is done with the link
	outbox  []Message     // not given to out yet
	greeted bool          // the first heartbeat was answered
}

type received struct {
	message Message
	err     error
}

// receive is the goroutine that reads the stream.
func (l *link) receive() {
	for {
		message, err := l.conn.Receive()
		select {
		case l.in <- received{message, err}:
		case <-l.over:
			return
		}
		if err != nil {
			return
		}
	}
}

// send is the goroutine that writes the stream.
func (l *link) send() {
	for {
		select {
		case message := <-l.out:
			err := l.conn.Send(message)
			if err == nil {
				continue
			}
			// The reason is what Receive returns; all that a failed Send knows is often that the stream is over.
			select {
			case <-time.After(time.Second):
			case <-l.over:
				return
			}
			select {
			case l.in <- received{err: err}:
			case <-l.over:
			}
			return
		case <-l.over:
			return
		}
	}
}
