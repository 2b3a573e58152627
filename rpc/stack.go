package rpc

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	pb "raftmine/rpc/raftminepb"
)

// aside runs the deep work of one waiting goroutine on goroutines that end with it, one at a time. A stack that grew to
// 8 KiB while something was decoded or proposed stays so while its goroutine waits for hours inside a stream: Go shrinks a
// stack only when less than a quarter is used, and gRPC's own frames are more. A miner is three such goroutines, and there
// are thousands of miners.
type aside struct {
	server *Server
	method string
	done   chan error
}

func (s *Server) aside(method string) aside { return aside{s, method, make(chan error, 1)} }

// run returns what work returns. A panic becomes an error, as it does in a handler.
func (a aside) run(work func() error) error {
	go func() {
		var err error
		defer func() { a.done <- err }()
		defer a.server.recovered(a.method, &err)
		err = work()
	}()
	return <-a.done
}

// shallowStream keeps the stack of a handler small that takes one request and sends a stream. Mine does so itself.
type shallowStream struct {
	grpc.ServerStream
	aside aside
}

// SendMsg implements grpc.ServerStream.
func (s *shallowStream) SendMsg(message any) error {
	return s.aside.run(func() error { return s.ServerStream.SendMsg(message) })
}

// RecvMsg implements grpc.ServerStream.
func (s *shallowStream) RecvMsg(message any) error {
	return s.aside.run(func() error { return s.ServerStream.RecvMsg(message) })
}

// shallowCodec keeps the stack of the goroutine small that receives a miner's messages: gRPC decodes them inside Recv.
type shallowCodec struct {
	encoding.CodecV2
	server *Server
}

// Unmarshal implements encoding.CodecV2.
func (c shallowCodec) Unmarshal(data mem.BufferSlice, message any) error {
	decode := func() error { return c.CodecV2.Unmarshal(data, message) }
	if _, ofMiner := message.(*pb.MineRequest); !ofMiner {
		return decode()
	}
	return c.server.aside("Mine").run(decode)
}
