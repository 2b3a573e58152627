package main

import (
	"os/exec"
	"path"
	"strings"
	"testing"
)

// arrows lists what each package may import of this module; a folder stands for all below it, the longest match
// counts. The reason is what a person reads when an arrow is broken.
var arrows = []struct {
	folder  string
	allowed []string
	reason  string
}{
	{"fsm", []string{"fsm"}, "the state machine is deterministic: it knows nothing of the world that feeds it"},
	{"fsm/pow", nil, "the judge of every kernel uses the standard library alone"},
	{"fsm/fsmpb", nil, "generated code"},
	{"fsm/audit", []string{"fsm"}, "an audit replays a history: entries in, report out"},
	{"raftnode", []string{"fsm", "fsm/pow", "raftnode/registry"}, "Raft knows its state machine and the local environment, not what a leader does in its term"},
	{"raftnode/registry", nil, "the local environment is a folder, whoever uses it"},
	{"raftnode/coordinator", []string{"fsm"}, "a coordinator is given a Proposer: it knows no Raft"},
	{"miner", []string{"fsm/pow", "miner"}, "a miner is given a Dialer: it knows neither gRPC nor Raft"},
	{"miner/sha256d", []string{"fsm/pow"}, "a kernel knows the message it hashes and nothing else"},
	{"rpc", []string{"fsm", "raftnode", "raftnode/coordinator", "miner", "rpc"}, "rpc adapts the interfaces of what it serves"},
	{"rpc/raftminepb", nil, "generated code"},
	{"rpc/webservice", []string{"fsm/pow", "raftnode/coordinator"}, "the web service speaks HTTP for a coordinator, not gRPC"},
	{"cmd/raftmine", []string{"fsm", "fsm/audit", "miner", "raftnode", "raftnode/coordinator", "rpc"}, "the command wires everything"},
}

// generatedWire may be imported inside rpc alone.
const generatedWire = "rpc/raftminepb"

func TestArrowsBetweenPackagesHold(t *testing.T) {
	const module = "raftmine/"
	output, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}} {{join .TestImports " "}} {{join .XTestImports " "}}`, module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	checked := 0
	for line := range strings.Lines(string(output)) {
		fields := strings.Fields(line)
		from := strings.TrimPrefix(fields[0], module)
		t.Run(from, func(t *testing.T) {
			allowed, reason, found := rule(from)
			if !found {
				t.Fatalf("%s: no rule for this package; DESIGN has no such folder", from)
			}
			for _, imported := range fields[1:] {
				to, ours := strings.CutPrefix(imported, module)
				if !ours || to == from {
					continue
				}
				checked++
				if !within(to, allowed) {
					t.Errorf("%s imports %s: %s", from, to, reason)
				}
				if to == generatedWire && from != "rpc" {
					t.Errorf("%s imports %s: generated wire types never leave rpc", from, to)
				}
			}
		})
	}
	if checked < 10 {
		t.Fatalf("only %d arrows seen: go list did not list this module", checked)
	}
}

func rule(from string) (allowed []string, reason string, found bool) {
	for folder := from; folder != "."; folder = path.Dir(folder) {
		for _, arrow := range arrows {
			if arrow.folder == folder {
				return arrow.allowed, arrow.reason, true
			}
		}
	}
	return nil, "", false
}

// within reports whether to is one of the folders or, where no rule of its own forbids it, below one. A parent
// stands for those of its subfolders that its rule's owner may see: raftnode alone does not include its coordinator, and
// fsm not the audit.
func within(to string, allowed []string) bool {
	for _, folder := range allowed {
		if to == folder || (folder != "raftnode" && to != "fsm/audit" && strings.HasPrefix(to, folder+"/")) {
			return true
		}
		if folder == "raftnode" && to == "raftnode/registry" {
			return true
		}
	}
	return false
}
