package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"raftmine/fsm"
	"raftmine/fsm/audit"
)

func proveRecord(cmd *cobra.Command, out *printer, dataDir string, index uint64, file string) error {
	var proof *audit.RecordProof
	err := withPasses(cmd, out, dataDir, func(open func() (audit.Records, error)) (err error) {
		proof, err = audit.ProveRecord(open, index)
		return err
	})
	if errors.Is(err, audit.ErrNotFound) {
		return hinted(err, "\"raftmine audit --export FILE\" writes every record with its index")
	} else if err != nil {
		return err
	}
	view, err := viewRecord(proof)
	if err != nil {
		return err
	}
	return writeProof(cmd, out, proof, file, view, view.String())
}

type recordProofView struct {
	Event   string          `json:"event"`
	Holds   bool            `json:"holds"`
	Number  uint64          `json:"number"`
	Index   uint64          `json:"index"`
	Term    uint64          `json:"term"`
	Entry   json.RawMessage `json:"entry"`
	Records uint64          `json:"records"`
	Tree    string          `json:"tree"`

	entry fsm.Entry
}

func viewRecord(p *audit.RecordProof) (v recordProofView, err error) {
	if v.entry, err = p.Entry(); err != nil {
		return v, err
	}
	v.Event, v.Holds, v.Number, v.Index, v.Term = "record_proof", true, p.Number, p.Record.Index, p.Record.Term
	v.Entry, v.Records, v.Tree = audit.Readable(p.Record, v.entry, fsm.Result{}), p.Head.Records, p.Head.Tree.String()
	return v, nil
}

// String is what a person reads of a proof that holds.
func (v recordProofView) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "the proof of record %d holds: number %d of %d, counted from 0, term %d, proposed by server %d at %s\n", v.Index,
		v.Number, v.Records, v.Term, v.entry.LeaderID, time.UnixMilli(int64(v.entry.UnixMilli)).UTC().Format("2006-01-02 15:04:05.000 UTC"))
	var entry struct{ Commands []json.RawMessage }
	if err := json.Unmarshal(v.Entry, &entry); err == nil { // always: it was just written
		for _, command := range entry.Commands {
			fmt.Fprintf(&text, "  %s\n", command)
		}
	}
	fmt.Fprintf(&text, "tree %d:%s", v.Records, v.Tree)
	return text.String()
}
