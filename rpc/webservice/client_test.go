package webservice

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const goodBlock = `{"hash":"` + lowerHash + `","zeros":"7"}`

// foreign is a web service that is not ours, on loopback.
func foreign(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	service := httptest.NewServer(handler)
	t.Cleanup(service.Close)
	return service
}

// always answers everything with status and body.
func always(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func TestClientTakesWhatHistoricalServicesSend(t *testing.T) {
	for name, row := range map[string]struct {
		status      int
		contentType string
		body        string
		accepted    bool
		detail      string
	}{
		"plain text":          {200, "text/plain", "success", true, "success"},
		"plain text as html":  {200, "text/html; charset=utf-8", " Success\r\n", true, "success"},
		"JSON":                {200, "application/json", `{"status":"wrong"}`, false, "wrong"},
		"JSON as text":        {200, "text/html", `{"status":"incomplete"}`, false, "incomplete"},
		"JSON string":         {200, "", `"SUCCESS"`, true, "success"},
		"verdict with status": {400, "application/json", `{"status":"incomplete"}`, false, "incomplete"},
		"wrong with status":   {409, "text/plain", "wrong\n", false, "wrong"},
	} {
		t.Run(name, func(t *testing.T) {
			service := foreign(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", row.contentType)
				w.WriteHeader(row.status)
				io.WriteString(w, row.body)
			})
			reply, err := newClient(t, service.URL).Submit(t.Context(), 1, 2)
			if err != nil || reply.Accepted != row.accepted || reply.Detail != row.detail {
				t.Errorf("got %+v, %v; want accepted %t, %q", reply, err, row.accepted, row.detail)
			}
		})
	}
}

func TestClientAsksAtTheAddressesOfTheContract(t *testing.T) {
	asked := make(chan string, 2)
	service := foreign(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.RequestURI
		if strings.HasSuffix(r.URL.Path, "/submit.php") {
			io.WriteString(w, "success")
			return
		}
		io.WriteString(w, goodBlock)
	})
	for base, folder := range map[string]string{
		"": "", "/": "", "/a/pool": "/a/pool", "/a/pool/": "/a/pool", "/a%2Fb//": "/a%2Fb",
	} {
		client, err := NewClient(service.URL+base, ClientConfig{PoolName: "our pool&co"})
		if err != nil {
			t.Fatal(err)
		}
		if want := service.URL + folder; client.Address() != want {
			t.Errorf("address %s, want %s", client.Address(), want)
		}
		if block, err := client.Block(t.Context()); err != nil || block.Bits != 28 {
			t.Errorf("%q: block %+v, %v", base, block, err)
		}
		if got, want := <-asked, "GET "+folder+"/request.php"; got != want {
			t.Errorf("%q: asked %s, want %s", base, got, want)
		}
		if reply, err := client.Submit(t.Context(), 1<<64-1, 1790000000000); err != nil || !reply.Accepted {
			t.Errorf("%q: reply %+v, %v", base, reply, err)
		}
		want := "GET " + folder + "/submit.php?nonce=18446744073709551615&poolname=our+pool%26co&timestamp=1790000000000"
		if got := <-asked; got != want {
			t.Errorf("%q: asked %s, want %s", base, got, want)
		}
	}
}

func TestAddressThatCannotWorkIsRefused(t *testing.T) {
	for base, want := range map[string]string{
		"":                          "want http://HOST",
		"localhost:8080":            "want http://HOST",
		"127.0.0.1:8080":            "first path segment",
		"ftp://localhost":           "want http://HOST",
		"http://":                   "want http://HOST",
		"http://:8080":              "want http://HOST",
		"http:///path":              "want http://HOST",
		"http://h\x00st":            "invalid control character",
		"http://host:port":          "invalid port",
		"http://host/?a=b":          "no query",
		"http://host/#top":          "no fragment",
		"http://host/request.php":   "without request.php",
		"http://host/p/submit.php":  "without submit.php",
		"http://host/%zz\x1b[2J\n ": "invalid",
	} {
		_, err := NewClient(base, ClientConfig{})
		if err == nil {
			t.Errorf("%q is taken", base)
			continue
		}
		checkLine(t, err, want)
	}
	for _, config := range []ClientConfig{
		{PoolName: strings.Repeat("p", MaxPoolName+1)}, {Timeout: -1}, {ConnectTimeout: -1},
	} {
		if _, err := NewClient("http://localhost", config); err == nil {
			t.Errorf("%+v is taken", config)
		}
	}
}

func TestPasswordOfTheAddressIsSentAndNeverShown(t *testing.T) {
	service := foreign(t, func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "miner" || password != "secret" {
			t.Errorf("credentials %s:%s", user, password)
		}
		w.WriteHeader(http.StatusForbidden)
	})
	client := newClient(t, strings.Replace(service.URL, "http://", "http://miner:secret@", 1))
	_, err := client.Block(t.Context())
	if err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(client.Address(), "secret") {
		t.Errorf("error %v, address %s", err, client.Address())
	}
	for _, base := range []string{"http://miner:secret@host:port", "http://miner:secret@host/request.php", "ftp://miner:secret@host", "http://miner:secret@ho st"} {
		if _, err := NewClient(base, ClientConfig{}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", base, err)
		}
	}
}

func TestBrokenServiceIsAClearErrorAndNoVerdict(t *testing.T) {
	page := "<!DOCTYPE html>\n<html><head><title>Login</title>" + strings.Repeat("<br>", 500) + "success</html>"
	for name, row := range map[string]struct {
		handler http.HandlerFunc
		kind    error
		want    string
	}{
		"HTML":              {always(200, page), ErrAnswer, "a web page"},
		"500":               {always(500, "Fatal: \x1b[31m out of\nmemory"), ErrAnswer, "500 (Internal Server Error)"},
		"404":               {always(404, ""), ErrAnswer, "HTTP status 404 (Not Found)"},
		"odd status":        {always(799, ""), ErrAnswer, "HTTP status 799"},
		"not modified":      {always(304, ""), ErrAnswer, "HTTP status 304"},
		"empty":             {always(200, ""), ErrAnswer, "empty"},
		"truncated JSON":    {always(200, `{"status":"suc`), ErrAnswer, "not the JSON object"},
		"huge":              {always(200, strings.Repeat(" ", MaxAnswer)+"success"), ErrTooLarge, "more than 65536 bytes"},
		"endless":           {endless, ErrTooLarge, "more than 65536 bytes"},
		"compressed bomb":   {gzipBomb, ErrTooLarge, "more than 65536 bytes"},
		"broken gzip":       {brokenGzip, nil, "cut off after"},
		"shorter than said": {truncated("success"), io.ErrUnexpectedEOF, "cut off after 7 bytes"},
		"no answer":         {hijacked(""), io.EOF, "connection closed without an answer"},
		"not HTTP":          {hijacked("SSH-2.0-" + strings.Repeat("x", 5000) + "\r\n\r\n"), nil, "malformed HTTP"},
		"huge headers":      {hugeHeaders, nil, "headers exceeded"},
		"wrong chunks":      {hijacked(wrongChunks), nil, "cut off after 0 bytes"},
		"reset":             {reset, nil, "connection reset"},
	} {
		t.Run(name, func(t *testing.T) {
			service := foreign(t, row.handler)
			client := newClient(t, service.URL)
			check := func(script string, err error) {
				t.Helper()
				if err == nil {
					t.Fatalf("%s: no error", script)
				}
				if row.kind != nil && !errors.Is(err, row.kind) {
					t.Errorf("%s: error %v, want %v", script, err, row.kind)
				}
				if whole := "failing since " + time.RFC3339 + ": " + err.Error(); len(whole) > 200 { // fsm.MaxText
					t.Errorf("%q has %d bytes and would be cut", whole, len(whole))
				}
				if !strings.HasPrefix(err.Error(), script+": ") || strings.Contains(err.Error(), service.URL) {
					t.Errorf("error %v, want %s in front, and not the address, which stands beside it", err, script)
				}
				checkLine(t, err, row.want)
			}
			reply, err := client.Submit(t.Context(), 1, 2)
			check("submit.php", err)
			if reply.Accepted || reply.Detail != "" {
				t.Errorf("reply %+v beside the error", reply)
			}
			_, err = client.Block(t.Context())
			check("request.php", err)
		})
	}
}

func TestServiceThatIsGoneIsAClearError(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + listener.Addr().String()
	listener.Close()
	_, err = newClient(t, base).Submit(t.Context(), 1, 2)
	if err == nil {
		t.Fatal("no error")
	}
	checkLine(t, err, "connection refused")
}

func TestRedirectToAnotherHostIsNotFollowed(t *testing.T) {
	var reached atomic.Bool
	other := foreign(t, func(w http.ResponseWriter, _ *http.Request) {
		reached.Store(true)
		io.WriteString(w, "success")
	})
	for name, location := range map[string]string{
		"port":      other.URL + "/submit.php",
		"no scheme": "//" + other.Listener.Addr().String() + "/submit.php",
		"name":      "http://localhost:PORT/submit.php",
		"scheme":    "https://127.0.0.1:PORT/submit.php",
		"file":      "file:///etc/passwd",
	} {
		t.Run(name, func(t *testing.T) {
			service := foreign(t, func(w http.ResponseWriter, r *http.Request) {
				_, port, _ := net.SplitHostPort(r.Host)
				w.Header().Set("Location", strings.Replace(location, "PORT", port, 1))
				w.WriteHeader(http.StatusTemporaryRedirect)
				io.WriteString(w, "success")
			})
			reply, err := newClient(t, service.URL).Submit(t.Context(), 1, 2)
			if !errors.Is(err, ErrRedirect) || reply.Accepted {
				t.Fatalf("reply %+v, error %v, want a refused redirect", reply, err)
			}
			checkLine(t, err, "it points to")
		})
	}
	if reached.Load() {
		t.Error("the other host was asked")
	}
}

func TestRedirectOnTheSameHostIsFollowedAFewTimes(t *testing.T) {
	hops := 0
	service := foreign(t, func(w http.ResponseWriter, r *http.Request) {
		hop, _ := strconv.Atoi(r.URL.Query().Get("hop"))
		if hop < hops {
			http.Redirect(w, r, "/new/submit.php?hop="+strconv.Itoa(hop+1), http.StatusFound)
			return
		}
		io.WriteString(w, "success")
	})
	client := newClient(t, service.URL)
	hops = maxRedirects
	if reply, err := client.Submit(t.Context(), 1, 2); err != nil || !reply.Accepted {
		t.Errorf("%d redirects: %+v, %v", hops, reply, err)
	}
	hops = maxRedirects + 1
	if _, err := client.Submit(t.Context(), 1, 2); !errors.Is(err, ErrRedirect) {
		t.Errorf("%d redirects: error %v, want them refused", hops, err)
	}
}

func TestSubmissionIsSentOnceWhenTheConnectionBreaks(t *testing.T) {
	var submissions atomic.Int32
	service := foreign(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, requestPath) {
			io.WriteString(w, goodBlock)
			return
		}
		submissions.Add(1)
		hijacked("")(w, r)
	})
	client := newClient(t, service.URL)
	if _, err := client.Block(t.Context()); err != nil { // would leave a kept connection, which net/http retries on
		t.Fatal(err)
	}
	if _, err := client.Submit(t.Context(), 1, 2); err == nil {
		t.Error("no error")
	}
	if got := submissions.Load(); got != 1 {
		t.Errorf("%d submissions arrived, want 1", got)
	}
}

func TestEnvironmentProxyIsNotUsed(t *testing.T) {
	client := newClient(t, "http://pool.example")
	if client.http.Transport.(*http.Transport).Proxy != nil {
		t.Error("the client asks for a proxy")
	}
}

func TestSlowServiceIsGivenUpAtTheDeadline(t *testing.T) {
	for name, row := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"never answers": {func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		}, "no complete answer in time (5s)"},
		"hangs after the headers": {func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, "cut off after 0 bytes: no complete answer in time (5s)"},
		"a byte a second": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				io.WriteString(w, " ")
				w.(http.Flusher).Flush()
				select {
				case <-time.After(time.Second):
				case <-r.Context().Done():
				}
			}
		}, "no complete answer in time (5s)"},
		"redirects slowly": {func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(2 * time.Second):
			case <-r.Context().Done():
			}
			http.Redirect(w, r, r.RequestURI, http.StatusFound)
		}, "no complete answer in time (5s)"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := pipeService(t, row.handler)
				start := time.Now()
				_, err := client.Submit(t.Context(), 1, 2)
				if !errors.Is(err, ErrTimeout) {
					t.Fatalf("error %v, want a timeout", err)
				}
				checkLine(t, err, row.want)
				if took := time.Since(start); took != DefaultTimeout {
					t.Errorf("given up after %s, want %s", took, DefaultTimeout)
				}
			})
		})
	}
}

func TestClientStopsReadingAtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := pipeService(t, func(w http.ResponseWriter, r *http.Request) {
			w.Write(bytes.Repeat([]byte(" "), MaxAnswer+1))
			w.(http.Flusher).Flush()
			<-r.Context().Done() // whoever reads on waits
		})
		start := time.Now()
		if _, err := client.Block(t.Context()); !errors.Is(err, ErrTooLarge) || time.Since(start) != 0 {
			t.Errorf("error %v after %s, want too large at once", err, time.Since(start))
		}
	})
}

func TestCallerCanEndARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := pipeService(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		if _, err := client.Block(ctx); !errors.Is(err, context.Canceled) || time.Since(start) != time.Second {
			t.Errorf("error %v after %s, want canceled after 1s", err, time.Since(start))
		}
	})
}

// pipeService serves handler on in-memory connections until the test ends.
func pipeService(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	listener := newPipes()
	service := &http.Server{Handler: handler}
	served := make(chan error, 1)
	go func() { served <- service.Serve(listener) }()
	t.Cleanup(func() {
		service.Close()
		<-served
	})
	return pipeClient(t, listener)
}

const wrongChunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"

func endless(w http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		if _, err := w.Write(bytes.Repeat([]byte("success "), 512)); err != nil {
			return
		}
	}
}

func gzipBomb(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Encoding", "gzip")
	compressor, _ := gzip.NewWriterLevel(w, gzip.BestCompression)
	compressor.Write(make([]byte, 64*MaxAnswer)) // about 4 KiB on the wire
	compressor.Close()
}

func brokenGzip(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Encoding", "gzip")
	io.WriteString(w, "success, but not compressed")
}

// truncated promises more than it sends.
func truncated(body string) http.HandlerFunc {
	return hijacked("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + body)
}

func hugeHeaders(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("X-Padding", strings.Repeat("x", 2*MaxAnswer))
	io.WriteString(w, "success")
}

// hijacked sends raw text and closes the connection.
func hijacked(raw string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			io.WriteString(conn, raw)
			conn.Close()
		}
	}
}

// reset drops the connection the rude way.
func reset(w http.ResponseWriter, _ *http.Request) {
	if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
}
