package webservice

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"

	"raftmine/fsm/pow"
	"raftmine/raftnode/coordinator"
)

const (
	lowerHash = "00c0ffee00000000000000000000000000000000000000000000000000abcdef"
	upperHash = "00C0FFEE00000000000000000000000000000000000000000000000000ABCDEF"
)

func TestBlockIsReadInEveryFormThatServicesSend(t *testing.T) {
	previous, err := pow.ParseHash(lowerHash)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		body   string
		bits   int
		height uint64
	}{
		"number":                {`{"hash":"` + lowerHash + `","zeros":7}`, 28, 0},
		"string":                {`{"hash":"` + lowerHash + `","zeros":"7"}`, 28, 0},
		"string with space":     {`{"hash":" ` + lowerHash + ` ","zeros":" 7\n"}`, 28, 0},
		"leading zero":          {`{"hash":"` + lowerHash + `","zeros":"07"}`, 28, 0},
		"whole fraction":        {`{"hash":"` + lowerHash + `","zeros":7.0}`, 28, 0},
		"no zeros asked":        {`{"hash":"` + lowerHash + `","zeros":0}`, 0, 0},
		"most zeros":            {`{"hash":"` + lowerHash + `","zeros":64}`, 256, 0},
		"bits win":              {`{"hash":"` + lowerHash + `","zeros":7,"bits":29,"height":41}`, 29, 41},
		"bits alone":            {`{"hash":"` + lowerHash + `","bits":"256","height":"9007199254740991"}`, 256, 1<<53 - 1},
		"nulls":                 {`{"hash":"` + lowerHash + `","zeros":"3","bits":null,"height":null}`, 12, 0},
		"upper case":            {`{"HASH":"` + upperHash + `","Zeros":1}`, 4, 0},
		"more fields":           {`{"hash":"` + lowerHash + `","zeros":1,"pool":{"a":[1]},"status":"ok"}`, 4, 0},
		"byte order mark":       {"\uFEFF \r\n" + `{"hash":"` + lowerHash + `","zeros":1}` + "\r\n", 4, 0},
		"space before the mark": {" \uFEFF" + `{"hash":"` + lowerHash + `","zeros":1}`, 4, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseBlock([]byte(row.body))
			want := coordinator.Block{Previous: previous, Bits: row.bits, Height: row.height}
			if err != nil || got != want {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		})
	}
}

func TestBlockThatMakesNoSenseIsAnError(t *testing.T) {
	hash := `{"hash":"` + lowerHash + `",`
	for name, row := range map[string]struct{ body, want string }{
		"empty":               {"", "it is empty"},
		"mark alone":          {"\uFEFF", "it is empty"},
		"null":                {"null", "no hash"},
		"list":                {"[]", "not the JSON object"},
		"text":                {"no block today", `"no block today"`},
		"page":                {"<!DOCTYPE html>\n<html>", "a web page"},
		"truncated":           {hash + `"zer`, "not the JSON object"},
		"cut off at its end":  {hash + `"zeros":7`, "not the JSON object"},
		"two objects":         {hash + `"zeros":1}{}`, "not the JSON object"},
		"no hash":             {`{"zeros":7}`, "no hash"},
		"hash too short":      {`{"hash":"00ff","zeros":7}`, `hash is "00ff", want 64 hex digits`},
		"hash not hex":        {`{"hash":"` + strings.Repeat("g", 64) + `","zeros":7}`, "want 64 hex digits"},
		"hash a number":       {`{"hash":7,"zeros":7}`, "hash is a number"},
		"no difficulty":       {`{"hash":"` + lowerHash + `"}`, "neither zeros nor bits"},
		"empty zeros":         {hash + `"zeros":""}`, "neither zeros nor bits"},
		"fraction":            {hash + `"zeros":7.5}`, `zeros is "7.5", want a whole number`},
		"fraction cut off":    {hash + `"zeros":"7."}`, "want a whole number"},
		"exponent":            {hash + `"zeros":1e1}`, "want a whole number"},
		"negative":            {hash + `"zeros":-1}`, "want a whole number"},
		"sign":                {hash + `"zeros":"+7"}`, "want a whole number"},
		"hexadecimal":         {hash + `"zeros":"0x7"}`, "want a whole number"},
		"word":                {hash + `"zeros":"seven"}`, "want a whole number"},
		"boolean":             {hash + `"zeros":true}`, "want a whole number"},
		"object":              {hash + `"zeros":{}}`, "want a whole number"},
		"other digits":        {hash + `"zeros":"٧"}`, "want a whole number"},
		"too many zeros":      {hash + `"zeros":65}`, "want 0 to 64"},
		"too many bits":       {hash + `"bits":257}`, "want 0 to 256"},
		"bits beyond 64 bits": {hash + `"bits":18446744073709551616}`, "want 0 to 256"},
		"height too large":    {hash + `"zeros":7,"height":"18446744073709551616"}`, "height is"},
	} {
		t.Run(name, func(t *testing.T) {
			block, err := parseBlock([]byte(row.body))
			checkAnswerError(t, err, row.want)
			if block != (coordinator.Block{}) {
				t.Errorf("block %+v beside the error", block)
			}
		})
	}
}

func TestVerdictIsReadInEveryFormThatServicesSend(t *testing.T) {
	for _, word := range []verdict{verdictSuccess, verdictWrong, verdictIncomplete} {
		w := string(word)
		for _, body := range []string{
			w, w + "\n", "  " + w + "\r\n\r\n", strings.ToUpper(w), strings.ToUpper(w[:1]) + w[1:],
			`"` + w + `"`, "'" + w + "'",
			"\uFEFF" + w, `{"status":"` + w + `"}`, `{"Status":" ` + strings.ToUpper(w) + `\n"}`,
			"\uFEFF" + `{ "time":1, "status" : "` + w + `", "message":null }` + "\n",
		} {
			if got, err := parseVerdict([]byte(body)); err != nil || got != word {
				t.Errorf("%q: got %q, %v; want %q", body, got, err, word)
			}
		}
	}
}

func TestVerdictThatIsNotOneIsAnError(t *testing.T) {
	for name, row := range map[string]struct{ body, want string }{
		"empty":            {"", "it is empty"},
		"space":            {" \r\n", "it is empty"},
		"two words":        {"success wrong", `no verdict in "success wrong"`},
		"inside a page":    {"<html><body>success</body></html>", "a web page"},
		"cut off":          {"succes", "no verdict"},
		"longer":           {"unsuccessful", "no verdict"},
		"negated":          {"no success", "no verdict"},
		"object, cut off":  {`{"status":"succe`, "not the JSON object"},
		"object, no end":   {`{"status":"success"`, "not the JSON object"},
		"object, no word":  {`{"result":"success"}`, "no verdict"},
		"object, other":    {`{"status":"ok"}`, `no verdict in "{\"status\":\"ok\"}"`},
		"object, number":   {`{"status":1}`, "status is a number"},
		"object, boolean":  {`{"status":true}`, "status is a bool"},
		"list":             {`["success"]`, "no verdict"},
		"control sequence": {"\x1b[2Jsuccess\x00", `"\x1b[2Jsuccess\x00"`},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := parseVerdict([]byte(row.body))
			checkAnswerError(t, err, row.want)
			if v != "" {
				t.Errorf("verdict %q beside the error", v)
			}
		})
	}
}

func TestWhatTheServerWritesTheClientReads(t *testing.T) {
	written := blockAnswer{Hash: lowerHash, Zeros: numberOf(8), Bits: numberOf(29), Height: numberOf(uint64(41))}
	body, err := json.Marshal(written)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"hash":"` + lowerHash + `","zeros":8,"bits":29,"height":41}`; string(body) != want {
		t.Errorf("block is written as %s, want %s", body, want)
	}
	if block, err := parseBlock(body); err != nil || block.Bits != 29 || block.Height != 41 {
		t.Errorf("read back as %+v, %v", block, err)
	}
	if body, err := json.Marshal(submitAnswer{Status: verdictWrong}); err != nil || string(body) != `{"status":"wrong"}` {
		t.Errorf("verdict is written as %s, %v", body, err)
	}
}

// checkAnswerError wants a short, printable line that says want.
func checkAnswerError(t *testing.T, err error, want string) {
	t.Helper()
	if !errors.Is(err, ErrAnswer) {
		t.Fatalf("error %v, want an unreadable answer", err)
	}
	checkLine(t, err, want)
}

func checkLine(t *testing.T, err error, want string) {
	t.Helper()
	if !strings.Contains(err.Error(), want) {
		t.Errorf("error %q does not say %q", err, want)
	}
	if len(err.Error()) > 600 || strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("error is not one short printable line: %q", err)
	}
}

func FuzzParseBlock(f *testing.F) {
	f.Add([]byte(`{"hash":"` + lowerHash + `","zeros":"7"}`))
	f.Add([]byte(`{"hash":"` + upperHash + `","zeros":7.0,"bits":29,"height":41}`))
	f.Add([]byte("\uFEFF<html>\x1b\xff"))
	f.Add([]byte(`{"hash":"` + strings.Repeat("\u202e", 30) + `","zeros":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		block, err := parseBlock(body)
		if err != nil {
			checkAnswerError(t, err, "unreadable answer")
			return
		}
		if block.Bits < 0 || block.Bits > pow.MaxBits {
			t.Fatalf("%d bits from %q", block.Bits, body)
		}
		again, err := json.Marshal(blockAnswer{
			Hash: block.Previous.String(), Bits: numberOf(block.Bits), Height: numberOf(block.Height),
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseBlock(again); err != nil || got != block {
			t.Fatalf("%+v becomes %+v, %v", block, got, err)
		}
	})
}

func FuzzParseVerdict(f *testing.F) {
	f.Add([]byte(" \"Success\"\r\n"))
	f.Add([]byte(`{"status":"wrong","n":[{}]}`))
	f.Add([]byte("\uFEFFincomplete"))
	f.Add([]byte("<html>\x1b\xff"))
	f.Fuzz(func(t *testing.T, body []byte) {
		v, err := parseVerdict(body)
		if err != nil {
			checkAnswerError(t, err, "unreadable answer")
			return
		}
		if v != verdictSuccess && v != verdictWrong && v != verdictIncomplete {
			t.Fatalf("verdict %q from %q", v, body)
		}
		// JSON may spell a word in escapes; a verdict in plain text is spelt out.
		if body := strings.ToLower(string(body)); !strings.Contains(body, string(v)) && !strings.Contains(body, "{") {
			t.Fatalf("verdict %q from %q", v, body)
		}
	})
}
