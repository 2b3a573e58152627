package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"raftmine/rpc"
)

// statusTimeout bounds one server's answer.
const statusTimeout = 3 * time.Second

func newStatusCommand() *cobra.Command {
	var servers string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show leader, servers, job, miners and rates",
		Long: `Show the cluster: of the servers asked, the leader answers if it is among them, else the one that knows most. With one
address the answer is that server's own view, its state digest included.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := jsonOutput(cmd)
			if err != nil {
				return err
			}
			addresses, err := serversFlag(cmd, servers)
			if err != nil {
				return err
			}
			client := rpc.NewClusterClient()
			defer client.Close()
			statuses, best, err := askStatus(cmd.Context(), client, addresses)
			if err != nil {
				return err
			}
			view := viewStatus(statuses[best])
			view.addHistories(statuses)
			if asJSON {
				return printJSON(cmd.OutOrStdout(), view)
			}
			return printStatus(cmd.OutOrStdout(), statuses[best], view)
		},
	}
	addServersFlag(cmd, &servers)
	return cmd
}

func addServersFlag(cmd *cobra.Command, value *string) {
	cmd.Flags().StringVar(value, "servers", "", "addresses of servers, comma separated (default: those of this host)")
}

// bestStatus asks all addresses at once and returns the leader's answer, else the one with the highest term and index.
func bestStatus(ctx context.Context, client *rpc.ClusterClient, addresses []string) (rpc.Status, error) {
	statuses, best, err := askStatus(ctx, client, addresses)
	if err != nil {
		return rpc.Status{}, err
	}
	return statuses[best], nil
}

// askStatus returns all answers and which one is the best; those that did not come have server id 0.
func askStatus(ctx context.Context, client *rpc.ClusterClient, addresses []string) (statuses []rpc.Status, best int, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	statuses = make([]rpc.Status, len(addresses))
	errs := make([]error, len(addresses))
	var wg sync.WaitGroup
	for i, address := range addresses {
		wg.Go(func() {
			if statuses[i], errs[i] = client.Status(ctx, address); errs[i] != nil {
				errs[i] = fmt.Errorf("server at %s: %w", address, errs[i])
			}
		})
	}
	wg.Wait()
	best = -1
	for i := range statuses {
		if errs[i] == nil && (best < 0 || better(statuses[i], statuses[best])) {
			best = i
		}
	}
	if best < 0 {
		return nil, 0, hinted(errors.Join(errs...), "check the addresses, and that a server runs there")
	}
	return statuses, best, nil
}

func better(a, b rpc.Status) bool {
	if (a.Coordinator != nil) != (b.Coordinator != nil) {
		return a.Coordinator != nil
	}
	if a.Term != b.Term {
		return a.Term > b.Term
	}
	return a.AppliedIndex > b.AppliedIndex
}

func printStatus(w io.Writer, s rpc.Status, view statusView) error {
	if s.LeaderID == 0 {
		fmt.Fprintln(w, shownLeaderless(s))
		if s.AppliedIndex == 0 { // there is no state to show
			fmt.Fprintln(w)
			return printServers(w, view.Servers, "HISTORY", serverView.history)
		}
	} else {
		fmt.Fprintf(w, "leader is server %d (term %d), by the rule it is %s; ", s.LeaderID, s.Term, orNobody(s.ComputedLeaderID))
	}
	fmt.Fprintf(w, "%d %s accepted\n", s.Blocks, plural(s.Blocks, "block"))
	if s.Voters > 0 {
		fmt.Fprintf(w, "an acknowledged answer is on the disks of %d of %d voters\n", s.Voters/2+1, s.Voters)
	}
	fmt.Fprintf(w, "state %s at index %d, of server %d\n", s.StateDigest, s.AppliedIndex, s.ServerID)
	if len(view.Diverged) > 0 {
		fmt.Fprintf(w, "THE SERVERS %s HAVE DIFFERENT STATES AT ONE INDEX, which must never be: stop them, keep their data directories, "+
			"and compare those with \"raftmine audit DIR...\"\n", idList(view.Diverged))
	}
	if s.ClusterStopped {
		fmt.Fprintln(w, "the cluster was told to stop")
	}
	if c := s.Coordinator; c != nil {
		service := c.WebService
		if c.WebServiceError != "" {
			service += ": " + c.WebServiceError
		}
		fmt.Fprintf(w, "web service %s\n", service)
	}
	if j := s.Job; j == nil {
		fmt.Fprintln(w, "no job yet")
	} else {
		fmt.Fprintf(w, "\njob %d for block %d is %s: %d bits on %s\n", j.ID, j.Height, phaseName(j.Phase), j.Bits, j.Previous)
		fmt.Fprintf(w, "timestamp %d (%s), round %d, nonces %s\n", j.Timestamp, clock(timeOf(j.Timestamp)), j.Round+1, j.Nonces)
		fmt.Fprintf(w, "chunks: %d pending, %d granted, %d finished of %d\n", j.Chunks.Pending, j.Chunks.Granted, j.Chunks.Finished, j.Chunks.Total)
	}
	fmt.Fprintln(w)
	if err := printServers(w, view.Servers, "HISTORY", serverView.history); err != nil {
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(s.Miners) > 0 {
		fmt.Fprintln(table, "\nMINER\tCONNECTED\tRATE\tTHREADS\tKERNEL\tCHUNKS\tSOLUTIONS\tWRONG ANSWERS")
		for _, m := range s.Miners {
			fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\t%d\t%d\t%d\n", m.Name, choose(m.Refused != "", "refused", choose(m.Connected, "yes", "no")), hashRate(m.HashRate), m.Threads,
				m.Kernel, m.ChunksFinished, m.Solutions, m.Strikes)
		}
		if s.Coordinator != nil {
			fmt.Fprintf(table, "all\t\t%s\n", hashRate(s.Coordinator.HashRate))
		}
		for _, m := range s.Miners {
			if m.Refused != "" {
				fmt.Fprintf(table, "%s is refused work: %s\n", m.Name, m.Refused)
			}
		}
	}
	return table.Flush()
}

// shownLeaderless says what a server without a leader can show, and what to do.
func shownLeaderless(s rpc.Status) string {
	if s.Voters == 0 {
		return fmt.Sprintf("no leader (term %d): server %d has no log yet and waits for a leader that sends it; start the other servers", s.Term, s.ServerID)
	}
	return fmt.Sprintf("no leader (term %d): a majority of the %d voters must be up, start those that are not; until one leads, server %d shows its log up to entry %d",
		s.Term, s.Voters, s.ServerID, s.AppliedIndex)
}

// printServers prints the server table, with a last column of the caller's.
func printServers(w io.Writer, rows []serverView, column string, last func(serverView) string) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "SERVER\tADDRESS\tTABLE\tRAFT\tROLE\t%s\n", column)
	for _, row := range rows {
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\n", row.ID, row.Address, row.inTable(), choose(row.Voter, "voter", "no vote"), row.Role, last(row))
	}
	return table.Flush()
}

func orNobody(id uint64) string {
	if id == 0 {
		return "nobody"
	}
	return fmt.Sprintf("server %d", id)
}

func choose(condition bool, yes, no string) string {
	if condition {
		return yes
	}
	return no
}
