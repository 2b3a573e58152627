package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"raftmine/fsm"
)

// A server that has no id yet is known by its request id: while it asks, it serves watch streams that are meant for that.
// So the leader finds out, before anything is committed, that the server which asks can be reached where it says.

func joinHello(requestID fsm.ID) hello { return newHello(string(requestID[:]), 0) }

// dialBack reports whether the server that asks is at the address that it claims. Nothing of it is final: a forwarded port or a
// service's address may work a moment later, and the joiner asks until its time is over.
func (n *Node) dialBack(ctx context.Context, request JoinRequest) error {
	if n.watchListener() == nil {
		return nil
	}
	conn, err := n.openWatch(ctx, joinHello(request.RequestID), request.Address)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: nothing listens at %s", ErrNotThere, request.Address)
	}
	if err != nil {
		return fmt.Errorf("%w: it is not found at %s: %w", ErrNotThere, request.Address, err)
	}
	return conn.Close()
}

// vouch answers those who dial this server back, until stop is called.
func (n *Node) vouch(requestID fsm.ID) (stop func()) {
	inner := n.watchListener()
	if inner == nil {
		return func() {}
	}
	n.door = openWatchDoor(inner)
	ctx, cancel := context.WithCancel(n.ctx)
	var work sync.WaitGroup
	work.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case conn := <-n.door.conns:
				work.Go(func() { answerDialBack(ctx, conn, joinHello(requestID)) })
			}
		}
	})
	return func() { cancel(); work.Wait() }
}

func answerDialBack(ctx context.Context, conn net.Conn, own hello) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(watchTimeout))
	var got hello
	if _, err := io.ReadFull(conn, got[:]); err == nil && got == own {
		conn.Write([]byte{watchServed}) // who asked sees it, or asks again
	}
}

// watchDoor takes the watch streams of a server that joins: first who dials it back, then, as a listener, what Run serves.
type watchDoor struct {
	net.Listener
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	work   sync.WaitGroup
}

func openWatchDoor(inner net.Listener) *watchDoor {
	d := &watchDoor{Listener: inner, conns: make(chan net.Conn), closed: make(chan struct{})}
	d.work.Go(func() {
		for {
			conn, err := inner.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				select {
				case <-d.closed:
					return
				case <-time.After(watchPauseFirst):
				}
				continue
			}
			select {
			case d.conns <- conn:
			case <-d.closed:
				conn.Close()
				return
			}
		}
	})
	return d
}

// Accept implements net.Listener.
func (d *watchDoor) Accept() (net.Conn, error) {
	select {
	case conn := <-d.conns:
		return conn, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (d *watchDoor) Close() (err error) {
	d.once.Do(func() {
		close(d.closed)
		err = d.Listener.Close()
		d.work.Wait()
	})
	return err
}
