package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"raftmine/fsm/pow"
	"raftmine/rpc/webservice"
)

// moment is a point in the life of a submission at which a fault can strike.
type moment string

const (
	anyMoment moment = ""
	// unjudged: the web service has the request and has not looked at it. The late judgement comes after the fault.
	unjudged moment = "submitting"
	// judged: the verdict is on the web service's disk and not yet sent.
	judged moment = "judged"
)

// holdLimit bounds how long a submission is held: below the leader's own patience with the web service.
const holdLimit = 2 * time.Second

// submission is one request to submit a solution, and the web service's answer.
type submission struct {
	nonce, timestamp string
	verdict          string // success, wrong or incomplete
	at               time.Time
}

// drillService is the block web service of a drill, in the drill's own process: it counts the submissions and can hold
// one while a fault strikes.
type drillService struct {
	address string
	service *webservice.Server
	http    *http.Server
	served  chan error

	mu          sync.Mutex
	submissions []submission // in the order of their verdicts
	held        *hold        // nil: nothing is awaited
}

// hold is the wait for one submission.
type hold struct {
	at       moment
	reached  chan struct{} // closed when a submission is at that moment
	released chan struct{} // closed when it may go on
}

func startDrillService(dir string, zeros int, blockTime time.Duration) (*drillService, error) {
	service, err := webservice.OpenServer(webservice.ServerConfig{DataDir: dir, Zeros: zeros, BlockTime: blockTime})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, service.Close())
	}
	s := &drillService{address: "http://" + listener.Addr().String(), service: service, served: make(chan error, 1)}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() { s.served <- s.http.Serve(listener) }()
	return s, nil
}

func (s *drillService) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	err := s.http.Shutdown(ctx)
	<-s.served
	return errors.Join(err, s.service.Close())
}

// ServeHTTP passes every request to the web service.
func (s *drillService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasSuffix(r.URL.Path, "/submit.php") {
		s.service.ServeHTTP(w, r)
		return
	}
	entry := submission{nonce: r.FormValue("nonce"), timestamp: r.FormValue("timestamp")}
	s.pass(unjudged)
	// The order of verdicts is the order of the chain.
	s.mu.Lock()
	answer := &recorder{header: http.Header{}, status: http.StatusOK}
	s.service.ServeHTTP(answer, r)
	entry.at, entry.verdict = time.Now(), verdictIn(answer.body.String())
	s.submissions = append(s.submissions, entry)
	s.mu.Unlock()
	s.pass(judged)
	for name, values := range answer.header {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.status)
	_, _ = w.Write(answer.body.Bytes()) // whoever asked may be dead by now
}

func verdictIn(body string) string {
	for _, word := range []string{"success", "wrong", "incomplete"} {
		if strings.Contains(body, word) {
			return word
		}
	}
	return "failed"
}

// pass holds a submission that somebody waits for.
func (s *drillService) pass(at moment) {
	s.mu.Lock()
	h := s.held
	if h == nil || h.at != at {
		s.mu.Unlock()
		return
	}
	s.held = nil
	s.mu.Unlock()
	close(h.reached)
	timer := time.NewTimer(holdLimit)
	defer timer.Stop()
	select {
	case <-h.released:
	case <-timer.C:
	}
}

// await arms the service: reached is closed when a submission is at that moment, and it goes on after release, which is
// called in any case.
func (s *drillService) await(at moment) (reached <-chan struct{}, release func()) {
	h := &hold{at: at, reached: make(chan struct{}), released: make(chan struct{})}
	s.mu.Lock()
	s.held = h
	s.mu.Unlock()
	return h.reached, func() {
		s.mu.Lock()
		if s.held == h {
			s.held = nil
		}
		s.mu.Unlock()
		close(h.released)
	}
}

// report returns the submissions so far.
func (s *drillService) report() []submission {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]submission(nil), s.submissions...)
}

// chainOf returns the hashes of the accepted blocks, computed from the submissions alone.
func chainOf(submissions []submission) []pow.Hash {
	previous := webservice.GenesisHash()
	var chain []pow.Hash
	for _, s := range submissions {
		if s.verdict == "success" {
			previous = pow.SumText(previous, s.nonce, s.timestamp)
			chain = append(chain, previous)
		}
	}
	return chain
}

// repeatedIn counts the submissions from one time up to another that had been made before.
func repeatedIn(submissions []submission, from, until time.Time) int {
	seen := make(map[[2]string]bool)
	repeated := 0
	for _, s := range submissions {
		key := [2]string{s.nonce, s.timestamp}
		if seen[key] && !s.at.Before(from) && s.at.Before(until) {
			repeated++
		}
		seen[key] = true
	}
	return repeated
}

// recorder keeps an answer.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header            { return r.header }
func (r *recorder) WriteHeader(status int)         { r.status = status }
func (r *recorder) Write(data []byte) (int, error) { return r.body.Write(data) }
