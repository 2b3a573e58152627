package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"raftmine/fsm"
	"raftmine/miner"
	"raftmine/miner/sha256d"
	"raftmine/raftnode/coordinator"
	"raftmine/rpc"
)

func newMinerCommand() *cobra.Command {
	var (
		servers   string
		threads   int
		name      string
		kernel    string
		withStdin bool
	)
	cmd := &cobra.Command{
		Use:   "miner",
		Short: "Search ranges for the leader, at low priority",
		Long: `Search ranges for the leader, at low CPU priority. Without --servers the miner finds the servers of this host in the
local environment, also those that start later. It keeps hashing what it holds when the leader dies, and hands its
answers to the next one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if threads < 1 || threads > 1024 {
				return usageError{fmt.Errorf("--threads %d: want 1 to 1024", threads)}
			}
			if name == "" {
				name = defaultMinerName()
			}
			if err := fsm.CheckMinerName(name); err != nil {
				return usageError{fmt.Errorf("--name: %w", err)}
			}
			var searchKernel sha256d.Kernel // the zero one is the fastest here
			if kernel != "" {
				var err error
				if searchKernel, err = kernelNamed(kernel); err != nil {
					return err
				}
			}
			if err := checkAddresses("servers", servers); err != nil {
				return err
			}
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			logger, err := newLogger(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			addresses := func() []string { return splitList(servers) }
			where := "of " + servers
			if servers == "" {
				env, err := openEnvironment(cmd)
				if err != nil {
					return err
				}
				where = "in the environment " + env.Dir()
				trouble := &environmentTrouble{logger: logger}
				addresses = func() []string {
					found, err := serversIn(env)
					trouble.tell(err)
					return found
				}
			}
			if err := miner.LowerPriority(); err != nil {
				logger.Warn("mining at normal priority", "error", err)
			}
			dialer, err := rpc.NewMinerDialer(rpc.MinerDialerConfig{Addresses: addresses, Logger: logger})
			if err != nil {
				return usageError{fmt.Errorf("--servers: %w", err)}
			}
			defer dialer.Close()
			m, err := miner.New(miner.Config{Name: name, Threads: threads, Kernel: searchKernel, Dialer: &tellingDialer{Dialer: dialer, out: out, where: where}, Version: version, Logger: logger})
			if err != nil {
				return err
			}
			ctx, cancel := withParent(cmd.Context(), withStdin)
			defer cancel()
			out.processStarted(processStarted{Role: "miner", Name: name, PID: os.Getpid()})
			err = m.Run(ctx)
			if errors.Is(err, coordinator.ErrNameTaken) {
				return hinted(err, "another miner of this name is at work: choose another name with --name, or end that one")
			}
			if errors.Is(err, miner.ErrRefused) {
				return hinted(err, "choose another name with --name, and see the leader's log for what it found wrong")
			}
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
	cmd.Flags().StringVar(&servers, "servers", "", "addresses of servers, comma separated (default: those of this host)")
	cmd.Flags().IntVar(&threads, "threads", max(1, runtime.NumCPU()-1), "search threads")
	cmd.Flags().StringVar(&name, "name", "", "name of this miner, unique in the cluster (default: host name and process id)")
	addKernelFlag(cmd, &kernel)
	addStdinFlag(cmd, &withStdin)
	return cmd
}

// defaultMinerName returns the host's name and this process's id, in the characters that names may have.
func defaultMinerName() string {
	host, err := os.Hostname()
	if err != nil || fsm.CheckMinerName(host) != nil {
		host = "miner"
	}
	suffix := fmt.Sprintf("-%d", os.Getpid())
	return host[:min(len(host), fsm.MaxMinerName-len(suffix))] + suffix
}
