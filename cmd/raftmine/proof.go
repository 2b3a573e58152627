package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"raftmine/fsm/audit"
)

func newProofCommand() *cobra.Command {
	var dataDir, verify, file string
	cmd := &cobra.Command{
		Use:   "proof HEIGHT --data-dir DIR | --verify FILE",
		Short: "Prove one block, or check such a proof",
		Long: `Write a self-contained proof of the block at HEIGHT: the records of its job, grant, solution and verdict, each with its
path to the head of the history's Merkle tree. --verify checks a proof without any server; compare the head it names with
one from an audit or a server that you trust ("raftmine audit --known RECORDS:TREE").`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			switch {
			case verify != "" && len(args) == 0:
				return verifyProof(cmd, out, verify)
			case verify != "" || len(args) == 0:
				return usageError{errors.New("give either HEIGHT or --verify FILE")}
			case dataDir == "":
				return usageError{errors.New("say where the history is with --data-dir DIR")}
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
	cmd.Flags().StringVar(&file, "file", "", "where to write the proof (default: standard output)")
	return cmd
}

func prove(cmd *cobra.Command, out *printer, dataDir string, height uint64, file string) (err error) {
	sources, err := findSources(cmd.Context(), []string{dataDir}, nil)
	if err != nil {
		return err
	}
	var passes []pass
	defer func() {
		for _, p := range passes {
			err = errors.Join(err, p.close())
		}
	}()
	proof, err := audit.ProveBlock(func() (audit.Records, error) {
		p, err := sources[0].open(cmd.Context())
		if err != nil {
			return nil, err
		}
		passes = append(passes, p)
		return p.records, nil
	}, height)
	if errors.Is(err, audit.ErrNotFound) {
		return hinted(fmt.Errorf("%s: %w", sources[0].name, err), "\"raftmine audit\" lists the blocks")
	} else if err != nil {
		return fmt.Errorf("%s: %w", sources[0].name, err)
	}
	if file == "" {
		_, err = proof.WriteTo(cmd.OutOrStdout())
		return err
	}
	pending, err := renameio.NewPendingFile(file, renameio.WithPermissions(0o644), renameio.WithTempDir(filepath.Dir(file)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pending.Cleanup()) }()
	if _, err := proof.WriteTo(pending); err != nil {
		return err
	}
	if err := pending.CloseAtomicallyReplace(); err != nil {
		return err
	}
	view := viewProof(proof)
	out.print(view, "%s\nproof in %s", view, file)
	return nil
}

func verifyProof(cmd *cobra.Command, out *printer, path string) error {
	file, err := proofFile(cmd, path)
	if err != nil {
		return err
	}
	defer file.Close()
	proof, err := audit.VerifyProof(file)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	view := viewProof(proof)
	out.print(view, "%s", view)
	return nil
}
