package webservice

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"raftmine/fsm/pow"
	"raftmine/raftnode/coordinator"
)

func TestClientAndServerBuildAChain(t *testing.T) {
	server := openServer(t, ServerConfig{DataDir: t.TempDir(), Bits: testBits})
	client := newClient(t, serve(t, server)+"/")
	previous := GenesisHash()
	for height := uint64(1); height <= 5; height++ {
		block, err := client.Block(t.Context())
		want := coordinator.Block{Previous: previous, Bits: testBits, Height: height}
		if err != nil || block != want {
			t.Fatalf("block %+v, %v; want %+v", block, err, want)
		}
		bad := unsolved(block, height)
		if reply, err := client.Submit(t.Context(), bad, height); err != nil || reply.Accepted || reply.Detail != "wrong" {
			t.Fatalf("bad proof: %+v, %v", reply, err)
		}
		nonce, digest := solve(block, height, 1)
		reply, err := client.Submit(t.Context(), nonce, height)
		if err != nil || !reply.Accepted || reply.Detail != "success" {
			t.Fatalf("good proof: %+v, %v", reply, err)
		}
		previous = digest
	}
}

func TestAcceptedProofSentAgainIsWrongAndTheHashTellsIt(t *testing.T) {
	server := openServer(t, ServerConfig{DataDir: t.TempDir(), Bits: 16})
	client := newClient(t, serve(t, server))
	block, err := client.Block(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nonce, digest := solve(block, 7, 1)
	if reply, err := client.Submit(t.Context(), nonce, 7); err != nil || !reply.Accepted {
		t.Fatalf("first time: %+v, %v", reply, err)
	}
	if reply, err := client.Submit(t.Context(), nonce, 7); err != nil || reply.Accepted || reply.Detail != "wrong" {
		t.Errorf("second time: %+v, %v; want wrong", reply, err)
	}
	if next, err := client.Block(t.Context()); err != nil || next.Previous != digest || next.Height != 2 {
		t.Errorf("asks for %+v, %v; want our digest %s at height 2", next, err, digest)
	}
}

func TestOneOfManyRacingProofsIsAccepted(t *testing.T) {
	const racers = 16
	folder := t.TempDir()
	server := openServer(t, ServerConfig{DataDir: folder, Bits: 14})
	block := serverBlock(server)
	// Proofs that hold for this block and after none of the others, so that a later one is never good for height 2.
	var nonces []uint64
	var digests []pow.Hash
	for start := uint64(1); len(nonces) < racers; {
		nonce, digest := solve(block, 1, start)
		start = nonce + 1
		chained := false
		for i := range nonces {
			after := pow.Work{Previous: digest, Timestamp: 1, Bits: block.Bits}
			before := pow.Work{Previous: digests[i], Timestamp: 1, Bits: block.Bits}
			_, one := after.Verify(nonces[i])
			_, two := before.Verify(nonce)
			chained = chained || one || two
		}
		if !chained {
			nonces, digests = append(nonces, nonce), append(digests, digest)
		}
	}
	client := newClient(t, serve(t, server))
	start := make(chan struct{})
	replies := make([]coordinator.Reply, racers)
	var group sync.WaitGroup
	for i := range racers {
		group.Go(func() {
			<-start
			var err error
			if replies[i], err = client.Submit(t.Context(), nonces[i], 1); err != nil {
				t.Errorf("racer %d: %v", i, err)
			}
		})
	}
	close(start)
	group.Wait()
	accepted := -1
	for i, reply := range replies {
		if reply.Accepted {
			if accepted >= 0 {
				t.Errorf("racers %d and %d are both accepted", accepted, i)
			}
			accepted = i
		}
	}
	if accepted < 0 {
		t.Fatal("nobody is accepted")
	}
	if next := serverBlock(server); next.Height != 2 || next.Previous != digests[accepted] {
		t.Errorf("the chain goes on with %+v, want %s at height 2", next, digests[accepted])
	}
}

func TestSubmissionIsJudgedInEveryForm(t *testing.T) {
	const timestamp = "01790000000000" // opaque: the leading zero is hashed
	server := openServer(t, ServerConfig{DataDir: t.TempDir(), Bits: testBits})
	good := func() url.Values {
		block := serverBlock(server)
		for nonce := 1; ; nonce++ {
			text := strconv.Itoa(nonce)
			if pow.SumText(block.Previous, text, timestamp).LeadingZeroBits() >= block.Bits {
				return url.Values{"timestamp": {timestamp}, "nonce": {text}, "poolname": {"a pool"}}
			}
		}
	}
	without := func(field string) url.Values { v := good(); v.Del(field); return v }
	with := func(field, value string) url.Values { v := good(); v.Set(field, value); return v }
	get := func(v url.Values) *http.Request {
		return httptest.NewRequest("GET", "/submit.php?"+v.Encode(), nil)
	}
	post := func(v url.Values) *http.Request {
		r := httptest.NewRequest("POST", "/submit.php", strings.NewReader(v.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return r
	}
	multipartPost := func(v url.Values) *http.Request {
		var body bytes.Buffer
		form := multipart.NewWriter(&body)
		for field := range v {
			form.WriteField(field, v.Get(field))
		}
		form.Close()
		r := httptest.NewRequest("POST", "/submit.php", &body)
		r.Header.Set("Content-Type", form.FormDataContentType())
		return r
	}
	// prepare makes the request when its row's turn has come, because a good proof is good for one height. The rows have
	// an order so that their luck does not change: one in 256 wrong proofs is right.
	for _, row := range []struct {
		name    string
		prepare func() *http.Request
		want    verdict
	}{
		{"GET", func() *http.Request { return get(good()) }, verdictSuccess},
		{"POST, form", func() *http.Request { return post(good()) }, verdictSuccess},
		{"POST, multipart form", func() *http.Request { return multipartPost(good()) }, verdictSuccess},
		{"POST, query", func() *http.Request { r := get(good()); r.Method = "POST"; return r }, verdictSuccess},
		{"no pool name", func() *http.Request { return get(without("poolname")) }, verdictSuccess},
		{"long pool name", func() *http.Request {
			return get(with("poolname", strings.Repeat("é", 4000)))
		}, verdictSuccess},
		{"odd pool name", func() *http.Request { return get(with("poolname", "\x00\xff<script>")) }, verdictSuccess},
		{"the first of two nonces counts", func() *http.Request {
			v := good()
			v.Add("nonce", "x")
			return get(v)
		}, verdictSuccess},

		{"nothing", func() *http.Request { return get(nil) }, verdictIncomplete},
		{"no nonce", func() *http.Request { return get(without("nonce")) }, verdictIncomplete},
		{"no timestamp", func() *http.Request { return post(without("timestamp")) }, verdictIncomplete},
		{"empty nonce", func() *http.Request { return get(with("nonce", "")) }, verdictIncomplete},
		{"21 digits", func() *http.Request { return get(with("nonce", strings.Repeat("1", 21))) }, verdictIncomplete},
		{"sign", func() *http.Request { return get(with("nonce", "-1")) }, verdictIncomplete},
		{"space", func() *http.Request { return get(with("timestamp", " 1")) }, verdictIncomplete},
		{"fraction", func() *http.Request { return get(with("timestamp", "1.0")) }, verdictIncomplete},
		{"hexadecimal", func() *http.Request { return get(with("nonce", "0x1")) }, verdictIncomplete},
		{"other digits", func() *http.Request { return get(with("nonce", "١")) }, verdictIncomplete},
		{"bad escapes", func() *http.Request {
			r := get(nil)
			r.URL.RawQuery = "nonce=%zz&timestamp=1"
			return r
		}, verdictIncomplete},
		{"broken multipart form", func() *http.Request {
			r := multipartPost(good())
			r.Body = io.NopCloser(strings.NewReader("--"))
			return r
		}, verdictIncomplete},
		{"form too large", func() *http.Request {
			return post(with("padding", strings.Repeat("x", maxRequestBody)))
		}, verdictIncomplete},

		{"timestamp without its zero", func() *http.Request { return get(with("timestamp", timestamp[1:])) }, verdictWrong},
		{"another nonce", func() *http.Request { return get(with("nonce", strings.Repeat("9", 20))) }, verdictWrong},
		{"an earlier block's", func() *http.Request {
			v := good()
			mineBlock(t, server, 5)
			return get(v)
		}, verdictWrong},
	} {
		request := row.prepare()
		before := serverBlock(server)
		response := httptest.NewRecorder()
		server.ServeHTTP(response, request)
		if want := `{"status":"` + string(row.want) + `"}` + "\n"; response.Code != 200 || response.Body.String() != want {
			t.Errorf("%s: %d %s, want %s", row.name, response.Code, response.Body, want)
		}
		if moved := serverBlock(server) != before; moved != (row.want == verdictSuccess) {
			t.Errorf("%s: the chain moved: %t", row.name, moved)
		}
	}
}

func TestOtherRequestsAreRefused(t *testing.T) {
	server := openServer(t, ServerConfig{DataDir: t.TempDir(), Bits: 1})
	nonce, _ := solve(serverBlock(server), 1, 1)
	good := "?timestamp=1&nonce=" + strconv.FormatUint(nonce, 10)
	for _, row := range []struct {
		method, target, allow string
		status                int
	}{
		{"HEAD", "/submit.php" + good, "GET, POST", 405},
		{"PUT", "/submit.php" + good, "GET, POST", 405},
		{"POST", "/request.php", "GET, HEAD", 405},
		{"DELETE", "/blocks.json", "GET, HEAD", 405},
		{"GET", "/", "", 404},
		{"GET", "/submit.php/" + good, "", 404},
		{"GET", "/../../etc/passwd", "", 307},
		{"GET", "/index.php", "", 404},
	} {
		response := httptest.NewRecorder()
		server.ServeHTTP(response, httptest.NewRequest(row.method, row.target, nil))
		if response.Code != row.status || response.Header().Get("Allow") != row.allow {
			t.Errorf("%s %s: %d, allow %q; want %d, %q",
				row.method, row.target, response.Code, response.Header().Get("Allow"), row.status, row.allow)
		}
	}
	if height := serverBlock(server).Height; height != 1 {
		t.Errorf("height %d, want 1", height)
	}
}

func TestZerosAreEnoughForAClientThatKnowsThemAlone(t *testing.T) {
	for bits, zeros := range map[int]string{1: "1", 4: "1", 5: "2", 24: "6", 29: "8", 256: "64"} {
		server := openServer(t, ServerConfig{DataDir: t.TempDir(), Bits: bits})
		response := httptest.NewRecorder()
		server.ServeHTTP(response, httptest.NewRequest("GET", "/request.php", nil))
		want := `{"hash":"` + GenesisHash().String() + `","zeros":` + zeros +
			`,"bits":` + strconv.Itoa(bits) + `,"height":1}` + "\n"
		if response.Body.String() != want {
			t.Errorf("%d bits: %s, want %s", bits, response.Body, want)
		}
	}
}

func TestBlocksAreListedNewestFirst(t *testing.T) {
	server := openServer(t, ServerConfig{DataDir: t.TempDir(), Bits: 1})
	list := func() (blocks []record) {
		response := httptest.NewRecorder()
		server.ServeHTTP(response, httptest.NewRequest("GET", "/blocks.json", nil))
		if err := json.Unmarshal(response.Body.Bytes(), &blocks); err != nil || blocks == nil {
			t.Fatalf("%s: %v", response.Body, err)
		}
		return blocks
	}
	if got := list(); len(got) != 0 {
		t.Errorf("a new chain lists %d blocks", len(got))
	}
	first, second := mineBlock(t, server, 1), mineBlock(t, server, 2)
	got := list()
	if len(got) != 2 || got[0].Hash != second.String() || got[0].PreviousHash != first.String() || got[1].Height != 1 {
		t.Errorf("listed %+v", got)
	}
}

func TestBitsAreFixedWithoutBlockTime(t *testing.T) {
	clock := newClock()
	server := openServer(t, ServerConfig{DataDir: t.TempDir(), Zeros: 2, Now: clock.Now})
	for i := range 12 {
		server.request(httptest.NewRecorder(), nil)
		clock.Advance(time.Duration(i%2) * time.Hour)
		mineBlock(t, server, uint64(i))
		if bits := serverBlock(server).Bits; bits != 8 {
			t.Fatalf("bits moved to %d", bits)
		}
	}
}

func TestPacedBitsSurviveARestartAndDowntimeIsNotCounted(t *testing.T) {
	clock := newClock()
	config := ServerConfig{DataDir: t.TempDir(), Zeros: 1, BlockTime: 3 * time.Second, Now: clock.Now}
	server, err := OpenServer(config)
	if err != nil {
		t.Fatal(err)
	}
	find := func(took time.Duration) int {
		server.request(httptest.NewRecorder(), nil)
		clock.Advance(took)
		mineBlock(t, server, uint64(clock.Now().UnixMilli()))
		return serverBlock(server).Bits
	}
	for want := 5; want <= 9; want++ {
		if got := find(time.Millisecond); got != want {
			t.Fatalf("%d bits after a fast block, want %d", got, want)
		}
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	clock.Advance(10 * time.Hour)

	config.Zeros = 3 // of a new chain only
	if server, err = OpenServer(config); err != nil {
		t.Fatal(err)
	}
	if got := serverBlock(server); got.Bits != 9 || got.Height != 6 {
		t.Errorf("opened again at %+v, want 9 bits at height 6", got)
	}
	for range 2 {
		clock.Advance(time.Hour) // nobody asks
		if got := find(3 * time.Second); got != 9 {
			t.Errorf("%d bits after a block at the pace wanted, want 9", got)
		}
	}
	mineBlock(t, server, 1) // nobody asked: no time is known
	if got := serverBlock(server).Bits; got != 9 {
		t.Errorf("%d bits after a block that nobody asked for, want 9", got)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}

	config.BlockTime = 0 // fixed again
	if got := serverBlock(openServer(t, config)).Bits; got != 12 {
		t.Errorf("%d bits without block time, want 12", got)
	}
}

func TestServeFinishesWhatIsUnderWayAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, err := OpenServer(ServerConfig{DataDir: t.TempDir(), Bits: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		listener := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- server.Serve(ctx, listener) }()

		client := pipeClient(t, listener)
		if _, err := client.Block(t.Context()); err != nil {
			t.Fatal(err)
		}
		silent, err := listener.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		go io.WriteString(silent, "POST /submit.php HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n") // and no more
		synctest.Wait()

		start := time.Now()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if took := time.Since(start); took > shutdownTimeout {
			t.Errorf("a client that sends nothing held the end up for %s", took)
		}
		if _, err := client.Block(t.Context()); err == nil {
			t.Error("it still answers")
		}
	})
}

func TestClientThatStallsIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, err := OpenServer(ServerConfig{DataDir: t.TempDir(), Bits: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		listener := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- server.Serve(ctx, listener) }()
		stalled, err := listener.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer stalled.Close()
		start := time.Now()
		if _, err := io.WriteString(stalled, "GET /request.php HTTP/1.1\r\nHo"); err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, stalled) // ends when the server closes
		if took := time.Since(start); took < readTimeout || took > readTimeout+time.Second {
			t.Errorf("cut off after %s, want %s", took, readTimeout)
		}
		cancel()
		<-served
	})
}

func TestServeReportsAListenerThatFails(t *testing.T) {
	server := openServer(t, ServerConfig{DataDir: t.TempDir()})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	if err := server.Serve(t.Context(), listener); err == nil {
		t.Error("no error")
	} else {
		checkLine(t, err, "serve web service on 127.0.0.1:")
	}
}

func TestSettingsThatCannotWorkAreRefused(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "untouched")
	for _, config := range []ServerConfig{
		{}, {DataDir: folder, Zeros: -1}, {DataDir: folder, Zeros: 65}, {DataDir: folder, Bits: -1},
		{DataDir: folder, Bits: 257}, {DataDir: folder, BlockTime: -time.Second},
	} {
		if server, err := OpenServer(config); err == nil {
			server.Close()
			t.Errorf("%+v is taken", config)
		}
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("a refused setting made the folder: %v", err)
	}
}
