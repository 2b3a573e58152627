package main

import "errors"

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
