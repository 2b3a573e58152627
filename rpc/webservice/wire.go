package webservice

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"raftmine/fsm/pow"
	"raftmine/raftnode/coordinator"
)

// ErrAnswer: the web service's answer is not one that this package knows.
var ErrAnswer = errors.New("unreadable answer")

// maxHeight bounds the heights of a web service, so that there is always a next one. It is the largest number that every
// JSON reader keeps exact.
const maxHeight = 1<<53 - 1

// Paths below the base address (protocol).
const (
	requestPath = "request.php"
	submitPath  = "submit.php"
	blocksPath  = "blocks.json"
)

// Limits (protocol).
const (
	bitsPerZero = 4
	maxZeros    = pow.MaxBits / bitsPerZero
)

// verdict is the status word of a submission (protocol).
type verdict string

const (
	verdictSuccess    verdict = "success"
	verdictWrong      verdict = "wrong"
	verdictIncomplete verdict = "incomplete"
)

// blockAnswer is the answer of request.php.
type blockAnswer struct {
	Hash   string `json:"hash"`
	Zeros  number `json:"zeros,omitempty"`
	Bits   number `json:"bits,omitempty"`
	Height number `json:"height,omitempty"`
}

// submitAnswer is the answer of submit.php.
type submitAnswer struct {
	Status verdict `json:"status"`
}

// number is the text of a JSON number, which some services send as a string. Empty: absent, null or an empty string.
type number string

func numberOf[T int | uint64](n T) number { return number(fmt.Sprint(n)) }

// MarshalJSON writes n, which must be decimal digits, as a number.
func (n number) MarshalJSON() ([]byte, error) { return []byte(n), nil }

// UnmarshalJSON keeps the text of any JSON value; parse judges it, because it knows the field's name.
func (n *number) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		*n = ""
		return nil
	}
	if data[0] == '"' {
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
		*n = number(strings.TrimSpace(text))
		return nil
	}
	*n = number(data)
	return nil
}

// parse reads a whole number from 0 to limit. A fraction of zeros alone ("7.0") is taken, an exponent is not.
func (n number) parse(field string, limit uint64) (uint64, error) {
	digits := string(n)
	if whole, fraction, found := strings.Cut(digits, "."); found && fraction != "" && strings.Trim(fraction, "0") == "" {
		digits = whole
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, fmt.Errorf("%w: %s is %s, want a whole number", ErrAnswer, field, excerpt([]byte(n)))
	}
	value, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || value > limit {
		return 0, fmt.Errorf("%w: %s is %s, want 0 to %d", ErrAnswer, field, excerpt([]byte(n)), limit)
	}
	return value, nil
}

// parseBlock reads the answer of request.php.
func parseBlock(body []byte) (coordinator.Block, error) {
	var block coordinator.Block
	var answer blockAnswer
	if err := decode(body, &answer); err != nil {
		return block, err
	}
	if answer.Hash == "" {
		return block, fmt.Errorf("%w: no hash in %s", ErrAnswer, excerpt(body))
	}
	previous, err := pow.ParseHash(strings.TrimSpace(answer.Hash))
	if err != nil {
		return block, fmt.Errorf("%w: hash is %s, want %d hex digits",
			ErrAnswer, excerpt([]byte(answer.Hash)), 2*pow.HashSize)
	}

	var bits, height uint64
	switch {
	case answer.Bits != "":
		bits, err = answer.Bits.parse("bits", pow.MaxBits)
	case answer.Zeros != "":
		bits, err = answer.Zeros.parse("zeros", maxZeros)
		bits *= bitsPerZero
	default:
		err = fmt.Errorf("%w: neither zeros nor bits in %s", ErrAnswer, excerpt(body))
	}
	if err == nil && answer.Height != "" {
		height, err = answer.Height.parse("height", maxHeight)
	}
	if err != nil {
		return block, err
	}
	return coordinator.Block{Previous: previous, Bits: int(bits), Height: height}, nil
}

// parseVerdict reads the answer of submit.php in any of its forms.
func parseVerdict(body []byte) (verdict, error) {
	text := clean(body)
	word := string(text)
	if bytes.HasPrefix(text, []byte("{")) {
		var answer submitAnswer
		if err := decode(text, &answer); err != nil {
			return "", err
		}
		word = string(answer.Status)
	}
	word = strings.ToLower(strings.Trim(word, " \t\r\n\"'"))
	switch v := verdict(word); v {
	case verdictSuccess, verdictWrong, verdictIncomplete:
		return v, nil
	}
	if len(text) == 0 {
		return "", fmt.Errorf("%w: it is empty", ErrAnswer)
	}
	return "", fmt.Errorf("%w: %sno verdict in %s", ErrAnswer, htmlNote(text), excerpt(text))
}

// decode reads one JSON object.
func decode(body []byte, into any) error {
	text := clean(body)
	if len(text) == 0 {
		return fmt.Errorf("%w: it is empty", ErrAnswer)
	}
	err := json.Unmarshal(text, into)
	if err == nil {
		return nil
	}
	if wrongType, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrongType.Field != "" {
		return fmt.Errorf("%w: %s is a %s in %s", ErrAnswer, wrongType.Field, wrongType.Value, excerpt(text))
	}
	return fmt.Errorf("%w: %snot the JSON object asked for: %s", ErrAnswer, htmlNote(text), excerpt(text))
}

// clean drops a UTF-8 byte order mark and the space around it.
func clean(body []byte) []byte {
	text := bytes.TrimSpace(body)
	return bytes.TrimSpace(bytes.TrimPrefix(text, []byte("\uFEFF")))
}

// htmlNote says what a page in angle brackets most likely is.
func htmlNote(text []byte) string {
	if bytes.HasPrefix(text, []byte("<")) {
		return "a web page, "
	}
	return ""
}

// maxExcerpt is how many bytes of somebody else's text an error shows (tuning). With what stands before it an error usually
// stays below fsm.MaxText, and so is not cut, once it is told since when the service fails.
const maxExcerpt = 64

// excerpt quotes the beginning of text in printable characters, on one line.
func excerpt(text []byte) string {
	if len(text) <= maxExcerpt {
		return strconv.Quote(string(text))
	}
	end := maxExcerpt
	for end > maxExcerpt-utf8.UTFMax && !utf8.RuneStart(text[end]) {
		end--
	}
	return strconv.Quote(string(text[:end])) + "..."
}
