package fsm

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Outcomes are told in exports, and whoever checks an export compares every letter of them. So what they say is part of
// version 1, as bytes are: the golden file has each text, with the commands of the tables in this package.

// outcomeWords are the lines of the golden file: "refused: job 1 is open".
var outcomeWords = sync.OnceValues(func() (map[string]bool, error) {
	data, err := os.ReadFile(filepath.Join(goldenFolder, "v1.outcomes"))
	words := make(map[string]bool)
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		words[line] = true
	}
	return words, err
})

// checkWords wants an outcome to say what it said when version 1 was made.
func checkWords(t *testing.T, outcome Outcome) {
	t.Helper()
	if outcome.Detail == "" {
		return
	}
	words, err := outcomeWords()
	if err != nil {
		t.Fatal(err)
	}
	if line := fmt.Sprintf("%s: %s", outcome.Code, outcome.Detail); !words[line] {
		t.Errorf("testdata/fsm/v1.outcomes does not have %q: a text that was changed makes every export before it fail; "+
			"a new one gets a line of its own", line)
	}
}

// verb is what a format leaves open.
var verb = regexp.MustCompile(`%[a-z]`)

// TestEveryOutcomeTextIsPinned: each text in the source is in the golden file, and each line there is still in the source.
func TestEveryOutcomeTextIsPinned(t *testing.T) {
	words, err := outcomeWords()
	if err != nil {
		t.Fatal(err)
	}
	texts := outcomeFormats(t)
	if len(texts) < 40 {
		t.Fatalf("%d texts were found in the source", len(texts))
	}
	told := make(map[string]bool)
	for _, format := range texts {
		text := regexp.MustCompile("^[a-z ]+: " + verb.ReplaceAllString(regexp.QuoteMeta(format), ".+") + "$")
		found := false
		for line := range words {
			if text.MatchString(line) {
				found, told[line] = true, true
			}
		}
		if !found {
			t.Errorf("no line of testdata/fsm/v1.outcomes is %q", format)
		}
	}
	for line := range words {
		if !told[line] {
			t.Errorf("nothing says %q any more: exports that have it do not verify", line)
		}
	}
}

// outcomeFormats returns the formats of all outcomes that Apply can come to.
func outcomeFormats(t *testing.T) (formats []string) {
	files, err := filepath.Glob("apply*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			called, _ := call.Fun.(*ast.Ident)
			if called == nil {
				return true
			}
			at, ok := map[string]int{"wrong": 0, "stale": 0, "refused": 0, "because": 1}[called.Name]
			if !ok {
				return true
			}
			text, ok := call.Args[at].(*ast.BasicLit)
			if !ok { // because, called by the three others
				return true
			}
			format, err := strconv.Unquote(text.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(format, "%T") { // of no command that DecodeEntry lets through
				formats = append(formats, format)
			}
			return true
		})
	}
	return formats
}
