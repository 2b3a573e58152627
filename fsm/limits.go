package fsm

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of what a log entry may hold. Protocol. An entry that breaks one is refused by EncodeEntry and by DecodeEntry.
const (
	MaxEntrySize = 4 << 20 // bytes, with the version byte
	MaxCommands  = 1 << 16 // in one entry
	MaxListed    = 1 << 16 // grant ids or ranges in one command

	MaxMinerName = 64   // bytes
	MaxText      = 200  // bytes of a reason or detail
	MaxAddress   = 256  // bytes
	MaxPath      = 4096 // bytes
	MaxHostText  = 256  // bytes of a machine id or boot id
	MaxClusterID = 64   // bytes
	MaxVersion   = 128  // bytes of a software version
)

// Limits of a job. Protocol. OpenJob beyond them is Wrong.
const (
	MaxChunkSize = 1_000_000_000 // nonces
	MaxChunks    = 1 << 36       // in one round
)

// CheckMinerName reports why name cannot be a miner's: it is 1 to 64 letters, digits, dots, underscores and hyphens, all
// of ASCII.
func CheckMinerName(name string) error {
	if name == "" {
		return errors.New("miner name is empty")
	}
	if len(name) > MaxMinerName {
		return fmt.Errorf("miner name has %d bytes, want at most %d", len(name), MaxMinerName)
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return fmt.Errorf("miner name %q: want letters, digits, '.', '_' and '-' only", name)
		}
	}
	return nil
}

// Line makes text fit to be a reason or detail: one line of valid UTF-8 without control characters, cut to MaxText bytes.
// Text from outside goes through it before it is proposed.
func Line(text string) string {
	if len(text) > 4*MaxText { // what is cut anyway is not worth a walk
		text = text[:4*MaxText]
	}
	text = strings.ToValidUTF8(text, "\uFFFD")
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	text = strings.TrimSpace(text)
	if len(text) <= MaxText {
		return text
	}
	end := MaxText
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}

// checkText reports text that is too long or no UTF-8, which protobuf cannot hold.
func checkText(what, text string, limit int) error {
	if len(text) > limit {
		return fmt.Errorf("%s has %d bytes, want at most %d", what, len(text), limit)
	}
	if !utf8.ValidString(text) {
		return fmt.Errorf("%s is not valid UTF-8", what)
	}
	return nil
}

// checkPlace checks where a server is.
func checkPlace(address, dataDir string, host Host) error {
	return errors.Join(
		checkText("address", address, MaxAddress),
		checkText("data directory", dataDir, MaxPath),
		checkText("machine id", host.MachineID, MaxHostText),
		checkText("boot id", host.BootID, MaxHostText),
	)
}

// checkShape reports a command that no entry may hold, whatever the state: one that its encoding cannot carry, or that
// is larger than its limits. What else is false in a command is an Outcome.
func checkShape(command Command) error {
	switch c := command.(type) {
	case OpenCluster:
		return checkText("cluster id", c.ClusterID, MaxClusterID)
	case AddServer:
		return checkPlace(c.Address, c.DataDir, c.Host)
	case UpdateServer:
		return checkPlace(c.Address, c.DataDir, c.Host)
	case RemoveServer:
		return checkText("reason", c.Reason, MaxText)
	case ServerDown:
		return checkText("reason", c.Reason, MaxText)
	case OpenJob:
		if c.Bits < 0 || c.Bits > 1<<30 { // what is left of nonsense above 256 bits is Wrong
			return fmt.Errorf("%d bits", c.Bits)
		}
	case GrantWork:
		return CheckMinerName(c.Miner)
	case Finish:
		return CheckMinerName(c.Miner)
	case Solve:
		return CheckMinerName(c.Miner)
	case Release:
		if len(c.GrantIDs) > MaxListed {
			return fmt.Errorf("%d grant ids, want at most %d", len(c.GrantIDs), MaxListed)
		}
		if c.Reason < ReleaseSilent || c.Reason > ReleaseRefused {
			return fmt.Errorf("unknown release reason %d", c.Reason)
		}
		return CheckMinerName(c.Miner)
	case Strike:
		return errors.Join(CheckMinerName(c.Miner), checkText("reason", c.Reason, MaxText))
	case Submitted:
		if c.Verdict < VerdictSuccess || c.Verdict > VerdictUnknown {
			return fmt.Errorf("unknown verdict %d", c.Verdict)
		}
		return checkText("detail", c.Detail, MaxText)
	case CloseJob:
		return checkText("reason", c.Reason, MaxText)
	case Revoke:
		if len(c.Ranges) > MaxListed {
			return fmt.Errorf("%d ranges, want at most %d", len(c.Ranges), MaxListed)
		}
		return errors.Join(CheckMinerName(c.Miner), checkText("reason", c.Reason, MaxText))
	case ClusterStop:
		return checkText("reason", c.Reason, MaxText)
	}
	return nil
}
