package raftnode

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// TestPipelineTakesWhatIsSentWhenNobodyTakesTheAnswers: the library's goroutine that takes them ends at the first no.
func TestPipelineTakesWhatIsSentWhenNobodyTakesTheAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := newTestNet()
		transport := func() (*raftTransport, *testListener) {
			l := network.listen()
			return newRaftTransport(raft.NetworkTransportConfig{Stream: l, MaxPool: 1, Timeout: time.Second,
				Logger: newRaftLogger(discard())}, time.Second, func() bool { return false }), l
		}
		near, _ := transport()
		far, at := transport()
		answering, stop := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(answering)
			for {
				select {
				case rpc := <-far.Consumer():
					rpc.Respond(&raft.AppendEntriesResponse{Success: false}, nil)
				case <-stop:
					return
				}
			}
		}()
		pipeline, err := near.AppendEntriesPipeline("2", raft.ServerAddress(at.address))
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() {
			for range 10 {
				if _, err := pipeline.AppendEntries(&raft.AppendEntriesRequest{Term: 1}, new(raft.AppendEntriesResponse)); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		select {
		case err := <-sent:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("sending waits for ever")
		}
		for range 10 { // and none is lost
			select {
			case <-pipeline.Consumer():
			case <-time.After(time.Minute):
				t.Fatal("an answer is missing")
			}
		}
		close(stop)
		<-answering
		for _, c := range []io.Closer{pipeline, pipeline, near, far} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		near.CloseStreams()
		far.CloseStreams()
		synctest.Wait()
	})
}
