package rpc

import (
	"math"
	"net"
	"strconv"
	"unicode"

	"raftmine/fsm"
	"raftmine/fsm/pow"
)

// Bounds on what is taken from the network (tuning, but a smaller one refuses peers that are right).
const (
	maxText      = 256       // bytes of a name, kernel or version
	maxAddresses = 256       // servers named in one message
	maxHeld      = 4096      // grants a miner reports
	maxRanges    = 1024      // ranges a miner asks for
	maxThreads   = 1 << 16   // search threads of one miner
	maxHashRate  = 1e18      // double SHA-256 a second
	maxInt53     = 1<<53 - 1 // the largest integer that JSON readers keep; bounds times in milliseconds
)

// fieldError reports which field of which message is wrong.
func fieldError(message, field, problem string, args ...any) error {
	return malformed("%s.%s "+problem, append([]any{message, field}, args...)...)
}

// checkText refuses text that is too long for its field, or would break the line it is printed in.
func checkText(message, field, text string, limit int) error {
	if len(text) > limit {
		return fieldError(message, field, "has %d bytes, want at most %d", len(text), limit)
	}
	for _, r := range text {
		if unicode.IsControl(r) {
			return fieldError(message, field, "has a control character")
		}
	}
	return nil
}

// checkAddress wants host:port with a port that can be dialled; empty is allowed where optional says so.
func checkAddress(message, field, address string, optional bool) error {
	if address == "" && optional {
		return nil
	}
	if err := checkText(message, field, address, fsm.MaxAddress); err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return fieldError(message, field, "is %q, want host:port", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fieldError(message, field, "is %q, want a port of 1 to 65535", address)
	}
	return nil
}

func checkAddresses(message, field string, addresses []string) error {
	if len(addresses) > maxAddresses {
		return fieldError(message, field, "names %d servers, want at most %d", len(addresses), maxAddresses)
	}
	for _, address := range addresses {
		if err := checkAddress(message, field, address, false); err != nil {
			return err
		}
	}
	return nil
}

func checkHashRate(message, field string, rate float64) error {
	if math.IsNaN(rate) || rate < 0 || rate > maxHashRate {
		return fieldError(message, field, "is %v, want 0 to %g", rate, float64(maxHashRate))
	}
	return nil
}

func checkPositive(message, field string, value uint64) error {
	if value == 0 {
		return fieldError(message, field, "is 0")
	}
	return nil
}

func hashFrom(message, field string, data []byte) (pow.Hash, error) {
	if len(data) != pow.HashSize {
		return pow.Hash{}, fieldError(message, field, "has %d bytes, want %d", len(data), pow.HashSize)
	}
	return pow.Hash(data), nil
}

func idFrom(message, field string, data []byte) (fsm.ID, error) {
	if len(data) != len(fsm.ID{}) {
		return fsm.ID{}, fieldError(message, field, "has %d bytes, want %d", len(data), len(fsm.ID{}))
	}
	return fsm.ID(data), nil
}

func bitsFrom(message, field string, bits uint32) (int, error) {
	if bits > pow.MaxBits {
		return 0, fieldError(message, field, "is %d, want 0 to %d", bits, pow.MaxBits)
	}
	return int(bits), nil
}

// rangeFrom wants a closed interval that is not empty and does not hold nonce 0.
func rangeFrom(message string, first, last uint64) (pow.Range, error) {
	r := pow.Range{First: first, Last: last}
	if err := r.Validate(); err != nil {
		return pow.Range{}, malformed("%s: %v", message, err)
	}
	return r, nil
}
