package webservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"raftmine/fsm/pow"
)

// DefaultZeros is how many leading zero hex digits a Server asks for unless told otherwise.
const DefaultZeros = 6

// genesisPhrase is what the first block's previous hash is the double SHA-256 of (protocol).
const genesisPhrase = "raftmine genesis"

// GenesisHash returns the previous hash of the first block of a chain: the double SHA-256 of "raftmine genesis".
func GenesisHash() pow.Hash { return pow.Sum([]byte(genesisPhrase)) }

// Limits of the server (tuning).
const (
	maxRequestBody  = 64 << 10
	maxHeader       = 16 << 10
	readTimeout     = 10 * time.Second
	writeTimeout    = 10 * time.Second
	idleTimeout     = time.Minute
	shutdownTimeout = 2 * time.Second
	listedBlocks    = 100
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// DataDir is the folder of the chain. It is made when it does not exist. Required.
	DataDir string
	// Zeros is the number of leading zero hex digits, 1 to 64. Zero means DefaultZeros.
	Zeros int
	// Bits is the exact number of leading zero bits, 1 to 256. Zero means 4*Zeros.
	Bits int
	// BlockTime is the pace at which blocks shall be found. Zero fixes the bits; otherwise a new chain starts with Bits,
	// and an old one goes on with the bits it had come to.
	BlockTime time.Duration
	// Genesis is the previous hash of the first block of a new chain. The zero hash means GenesisHash. A chain that
	// starts from another one is refused.
	Genesis pow.Hash
	// Logger gets accepted blocks and failures. Nil discards.
	Logger *slog.Logger
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Validate reports a configuration that cannot work.
func (c ServerConfig) Validate() error {
	switch {
	case c.DataDir == "":
		return errors.New("web service data directory is not set")
	case c.Zeros < 0 || c.Zeros > maxZeros:
		return fmt.Errorf("%d zeros, want 1 to %d", c.Zeros, maxZeros)
	case c.Bits < 0 || c.Bits > pow.MaxBits:
		return fmt.Errorf("%d bits, want 1 to %d", c.Bits, pow.MaxBits)
	case c.BlockTime < 0:
		return fmt.Errorf("block time %s is negative", c.BlockTime)
	}
	return nil
}

func (c ServerConfig) withDefaults() ServerConfig {
	if c.Zeros == 0 {
		c.Zeros = DefaultZeros
	}
	if c.Bits == 0 {
		c.Bits = bitsPerZero * c.Zeros
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Server is a block web service on one data directory. It is an http.Handler; Serve runs it on a listener.
type Server struct {
	config  ServerConfig
	chain   *chain
	handler http.Handler

	mu         sync.Mutex // held while a block is stored: a reader sees the chain before or after, and one proof wins
	tip        tip        // tip.bits are those of the block to come
	pacer      pacer
	askedSince time.Time // when the block to come was first asked for; zero: not yet
	failed     error     // the store's first failure: what is on disk is then not known
}

var _ http.Handler = (*Server)(nil)

// OpenServer opens the chain in config.DataDir, checks it, and returns its service. Close ends it.
func OpenServer(config ServerConfig) (*Server, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	chain, end, err := openChain(config.DataDir, config.Genesis)
	if err != nil {
		return nil, err
	}
	if config.BlockTime == 0 || end.height == 0 {
		end.bits = config.Bits
	}
	s := &Server{config: config, chain: chain, tip: end, pacer: pacer{blockTime: config.BlockTime}}
	mux := http.NewServeMux()
	mux.Handle("/"+requestPath, methods(s.request, http.MethodGet, http.MethodHead))
	mux.Handle("/"+submitPath, methods(s.submit, http.MethodGet, http.MethodPost))
	mux.Handle("/"+blocksPath, methods(s.blocks, http.MethodGet, http.MethodHead))
	s.handler = mux
	return s, nil
}

// Close closes the chain. Call it after Serve has returned; a submission that comes later is refused.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = errors.New("closed")
	}
	return s.chain.db.Close()
}

// Serve answers on listener until ctx ends, then lets the requests under way finish for a moment. It closes listener.
// It returns nil when ctx ended it.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           s,
		ReadTimeout:       readTimeout,
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve web service on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	graceful, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if server.Shutdown(graceful) != nil {
		server.Close()
	}
	<-served
	return nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxRequestBody)
	s.handler.ServeHTTP(w, r)
}

// request tells what is to be searched.
func (s *Server) request(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	if s.askedSince.IsZero() {
		s.askedSince = s.config.Now()
	}
	now, failed := s.tip, s.failed
	s.mu.Unlock()
	if failed != nil {
		http.Error(w, "the chain cannot be stored; restart the web service", http.StatusInternalServerError)
		return
	}
	answer(w, blockAnswer{
		Hash:   now.hash.String(),
		Zeros:  numberOf((now.bits + bitsPerZero - 1) / bitsPerZero),
		Bits:   numberOf(now.bits),
		Height: numberOf(now.height + 1),
	})
}

// submit judges one proof.
func (s *Server) submit(w http.ResponseWriter, r *http.Request) {
	// FormValue takes the query, a form and a multipart form; what it cannot read is missing.
	nonce, timestamp, poolName := r.FormValue("nonce"), r.FormValue("timestamp"), r.FormValue("poolname")
	if pow.CheckDecimal(nonce) != nil || pow.CheckDecimal(timestamp) != nil {
		s.config.Logger.Debug("submission refused", "verdict", verdictIncomplete)
		answer(w, submitAnswer{Status: verdictIncomplete})
		return
	}
	v, err := s.judge(nonce, timestamp, shortPoolName(poolName))
	if err != nil {
		http.Error(w, "the chain cannot be stored; restart the web service", http.StatusInternalServerError)
		return
	}
	answer(w, submitAnswer{Status: v})
}

// judge checks a proof against the block to come and, if it holds, makes it the newest block.
func (s *Server) judge(nonce, timestamp, poolName string) (verdict, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return "", s.failed
	}
	logger := s.config.Logger.With("height", s.tip.height+1, "nonce", nonce, "timestamp", timestamp)
	digest := pow.SumText(s.tip.hash, nonce, timestamp)
	if digest.LeadingZeroBits() < s.tip.bits {
		logger.Debug("submission refused", "verdict", verdictWrong, "bits", digest.LeadingZeroBits())
		return verdictWrong, nil
	}
	now, next := s.config.Now(), s.tip.bits
	if !s.askedSince.IsZero() {
		next = s.pacer.next(s.tip.bits, now.Sub(s.askedSince))
	}
	block := record{
		Height:            s.tip.height + 1,
		Hash:              digest.String(),
		PreviousHash:      s.tip.hash.String(),
		Nonce:             nonce,
		Timestamp:         timestamp,
		Bits:              s.tip.bits,
		NextBits:          next,
		PoolName:          poolName,
		AcceptedUnixMilli: now.UnixMilli(),
	}
	if err := s.chain.add(block); err != nil {
		// The block may be on disk or not. Only a restart, which reads it back, can tell.
		s.failed = err
		logger.Error("block not stored, answering no more", "path", s.chain.path, "error", err)
		return "", err
	}
	s.tip = tip{hash: digest, height: block.Height, bits: next}
	s.askedSince = time.Time{}
	logger.Info("block accepted", "hash", block.Hash, "bits", block.Bits, "next_bits", next, "poolname", poolName)
	return verdictSuccess, nil
}

// blocks lists the newest blocks, for people.
func (s *Server) blocks(w http.ResponseWriter, _ *http.Request) {
	records, err := s.chain.newest(listedBlocks)
	if err != nil {
		s.config.Logger.Error("blocks not listed", "path", s.chain.path, "error", err)
		http.Error(w, "the chain cannot be read", http.StatusInternalServerError)
		return
	}
	answer(w, records)
}

// answer writes value as JSON. A client that is gone is no error of ours.
func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(value)
}

// methods refuses requests of other methods. ServeMux's own patterns would let HEAD submit a proof.
func methods(next http.HandlerFunc, allowed ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(allowed, r.Method) {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		next(w, r)
	})
}

// shortPoolName cuts name to MaxPoolName bytes of valid UTF-8.
func shortPoolName(name string) string {
	return strings.ToValidUTF8(name[:min(len(name), MaxPoolName)], "")
}
