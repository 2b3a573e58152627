package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// foreignService is a block web service as the exercise's historical ones were, written without a look at
// rpc/webservice: zeros is a string, verdicts are plain text, everything is text/html, hashes are upper case. It knows
// proofs by the definition in the exercise alone.
type foreignService struct {
	mu       sync.Mutex
	hash     string // lower-case hex
	zeros    int
	verdicts []string
	accepted []string // hashes in order
}

func startForeignService(t *testing.T, zeros int) (*foreignService, string) {
	t.Helper()
	first := sha256.Sum256([]byte("a foreign genesis"))
	f := &foreignService{hash: hex.EncodeToString(first[:]), zeros: zeros}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return f, server.URL + "/pow"
}

func (f *foreignService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "text/html; charset=iso-8859-1")
	switch r.URL.Path {
	case "/pow/request.php":
		fmt.Fprintf(w, "{ \"hash\" : %q,\r\n  \"zeros\": \"%d\" }\n", strings.ToUpper(f.hash), f.zeros)
	case "/pow/submit.php":
		_, _ = io.WriteString(w, f.judge(r.FormValue("timestamp"), r.FormValue("nonce"))+"\r\n")
	default:
		http.NotFound(w, r)
	}
}

func (f *foreignService) judge(timestamp, nonce string) string {
	verdict := "wrong"
	if timestamp == "" || nonce == "" {
		verdict = "incomplete"
	} else {
		inner := sha256.Sum256([]byte(f.hash + nonce + timestamp))
		outer := sha256.Sum256(inner[:])
		digest := hex.EncodeToString(outer[:])
		if strings.HasPrefix(digest, strings.Repeat("0", f.zeros)) {
			verdict = "success"
			f.hash = digest
			f.accepted = append(f.accepted, digest)
		}
	}
	f.verdicts = append(f.verdicts, verdict)
	return verdict
}

func (f *foreignService) report() (verdicts, accepted []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.verdicts...), append([]string(nil), f.accepted...)
}
