package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"raftmine/raftnode"
	"raftmine/rpc"
)

const (
	// commandTimeout bounds a membership command; a leader may have to be elected first.
	commandTimeout = 10 * time.Second
	// commandPause is how long to wait while leadership moves.
	commandPause = 50 * time.Millisecond
)

// newMembershipCommands are the commands about the group's servers, each usable through any of them.
func newMembershipCommands() []*cobra.Command {
	return []*cobra.Command{newServerListCommand(), newServerRemoveCommand(), newServerTransferCommand()}
}

func newServerListCommand() *cobra.Command {
	var servers string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the servers of the group",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := jsonOutput(cmd)
			if err != nil {
				return err
			}
			return askServers(cmd, servers, func(ctx context.Context, client *rpc.ClusterClient, addresses []string) error {
				status, err := bestStatus(ctx, client, addresses)
				if err != nil {
					return err
				}
				rows := viewStatus(status).Servers
				if !asJSON {
					if status.LeaderID == 0 {
						fmt.Fprintln(cmd.OutOrStdout(), shownLeaderless(status))
					}
					return printServers(cmd.OutOrStdout(), rows, "DATA", func(row serverView) string { return row.DataDir })
				}
				for _, row := range rows {
					if err := printJSON(cmd.OutOrStdout(), row); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	addServersFlag(cmd, &servers)
	return cmd
}

func newServerRemoveCommand() *cobra.Command {
	var servers string
	cmd := &cobra.Command{
		Use:   "remove ID",
		Short: "End the membership of a server that does not run",
		Long: `End the membership of a server that does not run, so that the others no longer wait for it. It keeps its id; when it
is started again on its data directory it is a member again. A server that runs must be stopped first.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := serverArgument(args)
			if err != nil {
				return err
			}
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			return askServers(cmd, servers, func(ctx context.Context, client *rpc.ClusterClient, addresses []string) error {
				err := whileLeadershipMoves(ctx, func() error { return client.RemoveServer(ctx, addresses, id) })
				if err != nil {
					return err
				}
				out.print(removedView{"server_removed", id}, "server %d is no member any more; started again on its data directory it comes back", id)
				return out.failed()
			})
		},
	}
	addServersFlag(cmd, &servers)
	return cmd
}

func newServerTransferCommand() *cobra.Command {
	var servers string
	cmd := &cobra.Command{
		Use:   "transfer [ID]",
		Short: "Hand leadership to another server, for a moment",
		Long: `Hand leadership to a server, without an ID to the lowest other one that is up. The server that is up and has the lowest
id leads, so that one takes it back as soon as it has caught up: to keep a server from leading, stop it.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var to uint64
			if len(args) > 0 {
				var err error
				if to, err = serverArgument(args); err != nil {
					return err
				}
			}
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			return askServers(cmd, servers, func(ctx context.Context, client *rpc.ClusterClient, addresses []string) error {
				status, err := bestStatus(ctx, client, addresses)
				if err != nil {
					return err
				}
				var chosen uint64
				err = whileLeadershipMoves(ctx, func() (err error) {
					chosen, err = client.TransferLeadership(ctx, addresses, to)
					return err
				})
				if err != nil {
					return err
				}
				view := transferredView{"leadership_transferred", chosen, status.ComputedLeaderID}
				if chosen == status.LeaderID && chosen == to {
					out.print(view, "server %d leads already", chosen)
					return nil
				}
				undone := fmt.Sprintf("; server %d, the lowest id that is up, takes it back", view.Lowest)
				if view.Lowest == 0 || view.Lowest == chosen {
					undone = ", and it has the lowest id that is up"
				}
				out.print(view, "leadership went to server %d%s", chosen, undone)
				return out.failed()
			})
		},
	}
	addServersFlag(cmd, &servers)
	return cmd
}

type removedView struct {
	Event string `json:"event"`
	ID    uint64 `json:"id"`
}

type transferredView struct {
	Event  string `json:"event"`
	ID     uint64 `json:"id"`
	Lowest uint64 `json:"lowest_up"` // who leads by the rule
}

func serverArgument(args []string) (uint64, error) {
	id, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil || id == 0 {
		return 0, usageError{fmt.Errorf("server id %q: want a number from 1", args[0])}
	}
	return id, nil
}

// askServers runs a command with the servers that the command line names, or those of this host.
func askServers(cmd *cobra.Command, servers string, do func(context.Context, *rpc.ClusterClient, []string) error) error {
	addresses, err := serversFlag(cmd, servers)
	if err != nil {
		return err
	}
	client := rpc.NewClusterClient()
	defer client.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), commandTimeout)
	defer cancel()
	return do(ctx, client, addresses)
}

// whileLeadershipMoves repeats a call until somebody leads.
func whileLeadershipMoves(ctx context.Context, call func() error) error {
	var refused error // by servers that do not lead
	for {
		err := call()
		switch {
		case errors.Is(err, raftnode.ErrNotLeader):
			refused = err
		case !errors.Is(err, context.DeadlineExceeded) || ctx.Err() == nil:
			return err
		}
		select {
		case <-ctx.Done():
			return hinted(fmt.Errorf("no leader answered in time: %w", cmp.Or(refused, err)),
				`"raftmine server list" shows which servers are up; a majority of the voters is needed`)
		case <-time.After(commandPause):
		}
	}
}
