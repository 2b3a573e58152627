package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"raftmine/fsm"
	"raftmine/rpc"
)

func newBlocksCommand() *cobra.Command {
	var (
		servers string
		all     bool
	)
	cmd := &cobra.Command{
		Use:   "blocks",
		Short: "List the accepted blocks",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			addresses, err := serversFlag(cmd, servers)
			if err != nil {
				return err
			}
			client := rpc.NewClusterClient()
			defer client.Close()
			status, err := bestStatus(cmd.Context(), client, addresses)
			if err != nil {
				return err
			}
			err = listBlocks(cmd.Context(), client, addressOf(status, addresses), func(b rpc.Block) {
				if all || b.Verdict == fsm.VerdictSuccess {
					view := viewBlock(b)
					out.print(view, "%s", view)
				}
			})
			return errors.Join(err, out.failed())
		},
	}
	addServersFlag(cmd, &servers)
	cmd.Flags().BoolVar(&all, "all", false, "also the solutions that were not accepted")
	return cmd
}

// addressOf returns where the server that answered listens.
func addressOf(status rpc.Status, asked []string) string {
	if len(asked) == 1 {
		return asked[0]
	}
	for _, server := range status.Servers {
		if server.ID == status.ServerID {
			return server.Address
		}
	}
	return asked[0]
}

// listBlocks calls each settled block in order.
func listBlocks(ctx context.Context, client *rpc.ClusterClient, address string, each func(rpc.Block)) error {
	var after uint64
	for {
		page, err := client.Blocks(ctx, address, after)
		if err != nil {
			return fmt.Errorf("server at %s: %w", address, err)
		}
		if len(page) == 0 {
			return nil
		}
		for _, block := range page {
			each(block)
		}
		if last := page[len(page)-1].Sequence; last > after {
			after = last
		} else {
			return errors.New("the server lists blocks out of order")
		}
	}
}
