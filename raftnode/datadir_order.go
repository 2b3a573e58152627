package raftnode

import (
	"cmp"
	"strconv"
	"strings"
)

// naturalCompare orders names as people count: server-2 before server-10. Runs of digits compare as numbers, of any
// length; names that are equal so far compare as text.
func naturalCompare(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		digitsX, digitsY := leadingDigits(x), leadingDigits(y)
		if digitsX != "" && digitsY != "" {
			numberX, numberY := strings.TrimLeft(digitsX, "0"), strings.TrimLeft(digitsY, "0")
			if c := cmp.Or(cmp.Compare(len(numberX), len(numberY)), cmp.Compare(numberX, numberY)); c != 0 {
				return c
			}
			x, y = x[len(digitsX):], y[len(digitsY):]
			continue
		}
		if c := cmp.Compare(x[0], y[0]); c != 0 {
			return c
		}
		x, y = x[1:], y[1:]
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(a, b))
}

func leadingDigits(s string) string {
	end := 0
	for end < len(s) && '0' <= s[end] && s[end] <= '9' {
		end++
	}
	return s[:end]
}

// dirNumber returns N of server-N; 0 when the name is not of that form.
func dirNumber(name string) int {
	digits, found := strings.CutPrefix(name, "server-")
	number, err := strconv.Atoi(digits)
	if !found || err != nil || number < 0 {
		return 0
	}
	return number
}
