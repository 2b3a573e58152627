package main

import (
	"errors"
	"strconv"
	"strings"
	"unicode"
)

// usageError is a mistake in the command line: exit code 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// hintedError carries one line that says what to do.
type hintedError struct {
	err  error
	hint string
}

func (e hintedError) Error() string { return e.err.Error() }
func (e hintedError) Unwrap() error { return e.err }

// hinted adds a hint to err; nil stays nil.
func hinted(err error, hint string) error {
	if err == nil {
		return nil
	}
	return hintedError{err, hint}
}

func hintFor(err error) string {
	var h hintedError
	if errors.As(err, &h) {
		return h.hint
	}
	var usage usageError
	if errors.As(err, &usage) {
		return `"raftmine help" lists commands; "raftmine COMMAND --help" its flags`
	}
	return ""
}

// oneLine makes text fit for one line of a terminal: joined errors stand behind one another, and what cannot be printed,
// which may come with a file's name or from another machine, is escaped.
func oneLine(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
	var out strings.Builder
	for _, r := range strings.Join(lines, "; ") {
		if unicode.IsPrint(r) {
			out.WriteRune(r)
		} else {
			escaped := strconv.QuoteRune(r)
			out.WriteString(escaped[1 : len(escaped)-1])
		}
	}
	return out.String()
}
