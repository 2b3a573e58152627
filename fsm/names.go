package fsm

import "fmt"

// name looks up a value that counts from 1.
func name(kind string, names []string, value uint8) string {
	if value == 0 || int(value) > len(names) {
		return fmt.Sprintf("%s(%d)", kind, value)
	}
	return names[value-1]
}

// String returns the code in lower case.
func (c Code) String() string {
	return name("code", []string{"done", "duplicate", "no work", "stale", "released", "wrong", "refused"}, uint8(c))
}

// String returns the reason in lower case.
func (r ReleaseReason) String() string {
	return name("release reason", []string{"silent", "left", "restarted", "refused"}, uint8(r))
}

// String returns the verdict as scripts read it: success, wrong, stale or unknown.
func (v Verdict) String() string {
	return name("verdict", []string{"success", "wrong", "stale", "unknown"}, uint8(v))
}

// String returns the phase in lower case.
func (p Phase) String() string {
	return name("phase", []string{"open", "solved", "submitting", "closed"}, uint8(p))
}

// String returns the step in lower case.
func (s JobStep) String() string {
	return name("job step", []string{"opened", "rolled", "solved", "closed"}, uint8(s))
}
