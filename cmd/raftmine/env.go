package main

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"raftmine/raftnode/registry"
)

func newEnvCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "env",
		Short: "Print the servers of this host for the shell",
		Long: `Print the addresses of the servers that run on this host, for the shell:

    eval "$(raftmine env)"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := jsonOutput(cmd)
			if err != nil {
				return err
			}
			addresses, err := localServers(cmd)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"servers": addresses})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "export RAFTMINE_SERVERS=%s\n", strings.Join(addresses, ","))
			return err
		},
	}
}

// localServers returns the addresses of the servers that the local environment lists, lowest id first. None is an
// error: every caller needs one.
func localServers(cmd *cobra.Command) ([]string, error) {
	env, err := findEnvironment(cmd)
	if err != nil {
		return nil, err
	}
	addresses, err := serversIn(env)
	if len(addresses) == 0 && err != nil {
		return nil, hintForPermission(err)
	}
	if err != nil {
		logger, levelErr := newLogger(cmd, cmd.ErrOrStderr())
		if levelErr != nil {
			return nil, levelErr
		}
		(&environmentTrouble{logger: logger}).tell(err)
	}
	if len(addresses) == 0 {
		return nil, hinted(fmt.Errorf("no server runs in the environment %s", env.Dir()),
			"start one with \"raftmine server\", or name servers with --servers ADDR,... or another environment with --environment DIR")
	}
	return addresses, nil
}

// serversIn lists the servers that run in env, lowest id first. As with Entries, an error may come with those that
// could be read.
func serversIn(env *registry.Environment) ([]string, error) {
	entries, err := env.Entries()
	var addresses []string
	for _, entry := range entries {
		if entry.Role == registry.RoleServer && entry.ServerID != 0 {
			addresses = append(addresses, entry.Address)
		}
	}
	return addresses, err
}

// environmentTrouble tells what cannot be read in the local environment, each thing once. Work goes on with the rest.
type environmentTrouble struct {
	logger *slog.Logger

	mu   sync.Mutex
	told string
}

func (t *environmentTrouble) tell(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && err.Error() != t.told {
		t.told = err.Error()
		t.logger.Warn("going on without a part of the local environment", "error", err)
	}
}

// serversFlag returns the addresses of --servers, or those of the local environment when it is empty.
func serversFlag(cmd *cobra.Command, flag string) ([]string, error) {
	if flag != "" {
		return splitList(flag), checkAddresses("servers", flag)
	}
	return localServers(cmd)
}
