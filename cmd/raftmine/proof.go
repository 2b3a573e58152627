package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"raftmine/fsm/audit"
)

func newProofCommand() *cobra.Command {
	var dataDir, verify, older, file, known string
	var record uint64
	cmd := &cobra.Command{
		Use:   "proof HEIGHT|--record INDEX|--older HEAD --data-dir DIR | --verify FILE",
		Short: "Prove one block or one record, or check such a proof",
		Long: `Write a self-contained proof of the block at HEIGHT: the records of its job, grant, solution and verdict, each with its
path to the head of the history's Merkle tree.

--verify checks a proof without any server: every value in it is compared with the records that it holds, the records with
the tree, and the solution is hashed. It cannot verify:
  head                      that the tree, and the number of records beside it, are the cluster's: compare both with a head
                            that you trust (--known does), or look for it in a history ("raftmine audit --known RECORDS:TREE")
  grant_first, grant_last   which range the miner was granted, and by which of its requests (the grant's record and command):
                            they fit, and "raftmine audit" shows them

--record INDEX writes a proof of one record of the log: what it holds, and its path to the head. What came of its commands, such
as the range that a request for work was granted, follows from all records before, and it does not prove that.

--older RECORDS:TREE writes a proof, of a few hashes, that the history begins with that of an older head: who kept the older
one learns that nothing was changed up to there.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			asked := len(args)
			for _, wanted := range []bool{cmd.Flags().Changed("record"), older != "", verify != ""} {
				if wanted {
					asked++
				}
			}
			switch {
			case asked != 1:
				return usageError{errors.New("give one of HEIGHT, --record INDEX, --older RECORDS:TREE, or --verify FILE")}
			case verify != "" && (given(cmd, "data-dir") || given(cmd, "file")):
				return usageError{errors.New("--verify reads one proof and writes nothing: give it without --data-dir and --file")}
			case verify != "":
				return verifyProof(cmd, out, verify, known)
			case known != "" && !fromEnvironment(cmd, "known"):
				return usageError{errors.New("--known is compared with a proof: give it with --verify FILE")}
			case dataDir == "":
				return usageError{errors.New("say where the history is with --data-dir DIR")}
			}
			if file != "" {
				if err := mayReplace(file, "proof", readProof); err != nil {
					return fmt.Errorf("--file %s: %w", file, err)
				}
			}
			if older != "" {
				head, ok := parseHead(older)
				if !ok {
					return usageError{fmt.Errorf("--older %q: want RECORDS:TREE, a number and 64 hex digits", older)}
				}
				return proveOlder(cmd, out, dataDir, head, file)
			}
			if len(args) == 0 {
				return proveRecord(cmd, out, dataDir, record, file)
			}
			height, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil || height == 0 {
				return usageError{fmt.Errorf("height %q: want a number from 1 on", args[0])}
			}
			return prove(cmd, out, dataDir, height, file)
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "a server's data directory, a run's folder, or an export")
	cmd.Flags().StringVar(&verify, "verify", "", "check the proof in this file; - is standard input")
	cmd.Flags().StringVar(&known, "known", "", "with --verify: a head that you trust, RECORDS:TREE; the proof's must be this one")
	cmd.Flags().Uint64Var(&record, "record", 0, "prove instead the record with this index of the log")
	cmd.Flags().StringVar(&older, "older", "", "prove instead that the history begins with that of this head, RECORDS:TREE")
	cmd.Flags().StringVar(&file, "file", "", "where to write the proof (default: standard output)")
	return cmd
}

func prove(cmd *cobra.Command, out *printer, dataDir string, height uint64, file string) error {
	var proof *audit.BlockProof
	err := withPasses(cmd, out, dataDir, func(open func() (audit.Records, error)) (err error) {
		proof, err = audit.ProveBlock(open, height)
		return err
	})
	if errors.Is(err, audit.ErrNotFound) {
		return hinted(err, "\"raftmine audit\" lists the blocks")
	} else if err != nil {
		return err
	}
	view := viewProof(proof)
	return writeProof(cmd, out, proof, file, view, view.String())
}

func proveOlder(cmd *cobra.Command, out *printer, dataDir string, older audit.Head, file string) error {
	var proof *audit.PrefixProof
	err := withPasses(cmd, out, dataDir, func(open func() (audit.Records, error)) (err error) {
		proof, err = audit.ProveOlder(open, older)
		return err
	})
	if err != nil {
		return err
	}
	view := viewPrefix(proof)
	return writeProof(cmd, out, proof, file, view, view.String())
}

// withPasses lets what proves read the longest history of dataDir more than once.
func withPasses(cmd *cobra.Command, out *printer, dataDir string, prove func(open func() (audit.Records, error)) error) (err error) {
	sources, silent, err := findSources(cmd.Context(), out, []string{dataDir}, nil)
	if err != nil {
		return err
	}
	var passes []pass
	defer func() {
		for _, p := range passes {
			err = errors.Join(err, p.close())
		}
	}()
	err = prove(func() (audit.Records, error) {
		p, err := sources[0].shown(out, "read").begin(cmd.Context())
		if err != nil {
			return nil, err
		}
		passes = append(passes, p)
		return p.records, nil
	})
	if err != nil && len(silent) > 0 { // what is not found may be in a history that cannot be read
		return errors.Join(fmt.Errorf("%s: %w", sources[0].name, err), nothingRead(silent))
	} else if err != nil {
		return fmt.Errorf("%s: %w", sources[0].name, err)
	}
	return nil
}

// writeProof writes a proof to a file and says so, or to standard output.
func writeProof(cmd *cobra.Command, out *printer, proof io.WriterTo, file string, view any, text string) (err error) {
	if file == "" {
		_, err = proof.WriteTo(cmd.OutOrStdout())
		return err
	}
	pending, err := renameio.NewPendingFile(file, renameio.WithPermissions(0o644), renameio.WithTempDir(filepath.Dir(file)))
	if err != nil {
		return fmt.Errorf("--file %s: %w", file, err)
	}
	defer func() { err = errors.Join(err, pending.Cleanup()) }()
	if _, err := proof.WriteTo(pending); err != nil {
		return err
	}
	if err := pending.CloseAtomicallyReplace(); err != nil {
		return err
	}
	out.print(view, "%s\nproof in %s", text, file)
	return out.failed()
}

// verifyProof checks a proof, and that its head is the known one; empty: nothing is known.
func verifyProof(cmd *cobra.Command, out *printer, path, known string) error {
	trusted, ok := parseHead(known)
	if known != "" && !ok {
		return usageError{fmt.Errorf("--known %q: want RECORDS:TREE, a number and 64 hex digits", known)}
	}
	file, err := proofFile(cmd, path)
	if err != nil {
		return err
	}
	defer file.Close()
	view, head, err := verifiedProof(file)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
		if errors.Is(err, audit.ErrNoProof) {
			err = hinted(err, "\"raftmine proof\" writes one, and \"raftmine audit\" verifies a history")
		}
		return err
	}
	if known != "" && head != trusted {
		return hinted(fmt.Errorf("%s: it proves something of the history with tree %d:%s, which is not the known head", path, head.Records,
			head.Tree), fmt.Sprintf("\"raftmine audit --known %d:%s\" says whether a history begins so", head.Records, head.Tree))
	}
	out.print(view, "%s", view)
	return out.failed()
}

// verifiedProof reads a proof of any kind, and returns what to say of it and the head that it leads to.
func verifiedProof(r io.Reader) (view fmt.Stringer, head audit.Head, err error) {
	in := bufio.NewReaderSize(r, 1<<10)
	start, _ := in.Peek(1 << 10)
	switch {
	case audit.StartsPrefixProof(start):
		p, err := audit.VerifyPrefixProof(in)
		if err != nil {
			return nil, head, err
		}
		return viewPrefix(p), p.Head, nil
	case audit.StartsRecordProof(start):
		p, err := audit.VerifyRecordProof(in)
		if err != nil {
			return nil, head, err
		}
		view, err := viewRecord(p)
		return view, p.Head, err
	}
	p, err := audit.VerifyProof(in)
	if err != nil {
		return nil, head, err
	}
	return viewProof(p), p.Head, nil
}

func readProof(r io.Reader) error {
	_, _, err := verifiedProof(r)
	return err
}
