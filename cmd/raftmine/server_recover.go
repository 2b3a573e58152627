package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"raftmine/raftnode"
	"raftmine/raftnode/registry"
)

func newServerRecoverCommand() *cobra.Command {
	var dataDir string
	var yes bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Make one stopped server the only voter of its group",
		Long: `Make one stopped server the only voter of its group, so that it can go on without the others.

On one host a server does this by itself once the locks of all other voters are free. This command is for voters that
this host cannot look at: those of another machine, or whose data directory is gone. It reads the log of every voter that
it finds, takes the best one, keeps these voters from ever using their old logs again, and gives up the rest.

It also is the way out for a server that was left behind by one that went on alone, when that one is lost or its directory
cannot tell what became of that: what it alone acknowledged is given up then. While it is there, start it instead.

It says first what it would do and what that may lose, and changes nothing before that is confirmed: on a terminal by
typing "yes", elsewhere with --yes.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			logger, err := newLogger(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			env, err := findEnvironment(cmd)
			if err != nil && (dataDir == "" || !errors.Is(err, errNoEnvironment)) {
				return hinted(err, "name the folder of the server that goes on with --data-dir DIR, or another environment with --environment DIR")
			}
			ctx := cmd.Context()
			confirm := func(raftnode.RecoveryPlan) bool { return true }
			if !yes {
				var terminal io.Reader
				if file, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(file.Fd())) {
					terminal = file
				}
				confirm = func(plan raftnode.RecoveryPlan) bool {
					return confirmRecovery(ctx, plan, out, terminal, cmd.ErrOrStderr())
				}
			}
			return recoverServer(ctx, env, dataDir, confirm, out, logger)
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "folder of the server that goes on (default: the only one in the local environment)")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it without asking; needed where there is no terminal")
	return cmd
}

func recoverServer(ctx context.Context, env *registry.Environment, path string, confirm func(raftnode.RecoveryPlan) bool,
	out *printer, logger *slog.Logger) (err error) {
	if path == "" {
		if path, err = onlyDataDir(env); err != nil {
			return err
		}
	} else if path, err = existingDataDir(path); err != nil {
		return err
	}
	dir, err := raftnode.OpenDataDir(path)
	if err != nil {
		if errors.Is(err, raftnode.ErrDataDirInUse) {
			return hinted(err, "stop that server first: kill PID")
		}
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	var plan raftnode.RecoveryPlan
	done := false
	err = raftnode.Recover(raftnode.RecoverConfig{DataDir: dir, Environment: env, Logger: logger}, func(p raftnode.RecoveryPlan) bool {
		plan, done = p, ctx.Err() == nil && confirm(p)
		return done
	})
	if err != nil {
		return err
	}
	switch {
	case !done && ctx.Err() != nil:
		return fmt.Errorf("%w: nothing was changed", errInterrupted)
	case !done:
		return hinted(errors.New("nothing was changed"), "repeat the command with --yes to do it")
	}
	view := recoveryViewOf(plan)
	view.Event = "recovered"
	out.print(view, "server %d is the only voter now, with everything up to entry %d: start it with \"raftmine server --data-dir %s\"",
		plan.ServerID, plan.Index, plan.DataDir)
	return nil
}

// confirmRecovery explains the plan and asks for a "yes". Without a terminal, nil, the answer is no, and so it is when ctx
// ends before there is one. The voters that were read stay locked until then.
func confirmRecovery(ctx context.Context, plan raftnode.RecoveryPlan, out *printer, terminal io.Reader, prompt io.Writer) bool {
	view := recoveryViewOf(plan)
	view.Event = "recovery_plan"
	out.print(view, "%s", strings.TrimSpace(explainRecovery(plan)))
	if terminal == nil || out.json {
		return false
	}
	fmt.Fprint(prompt, `Type "yes" to do it: `)
	typed := make(chan string, 1)
	go func() { // a read of a terminal cannot be interrupted: it ends with the process
		answer, _ := bufio.NewReader(terminal).ReadString('\n') // its end is a no
		typed <- answer
	}()
	select {
	case answer := <-typed:
		return strings.TrimSpace(answer) == "yes"
	case <-ctx.Done():
		fmt.Fprintln(prompt)
		return false
	}
}

// recoveryView is the plan of a recovery, and what was done.
type recoveryView struct {
	Event   string       `json:"event"`
	ID      uint64       `json:"id"`
	DataDir string       `json:"data_dir"`
	Index   uint64       `json:"index"`
	Term    uint64       `json:"term"`
	LogOf   uint64       `json:"log_of"`
	Voters  []uint64     `json:"voters"`
	Read    []uint64     `json:"read"`
	NotRead []unreadView `json:"not_read"`
	Doubts  []string     `json:"doubts,omitempty"`
	MayLose bool         `json:"may_lose"`
}

type unreadView struct {
	ID      uint64 `json:"id"`
	Address string `json:"address,omitempty"`
	DataDir string `json:"data_dir,omitempty"`
	Why     string `json:"why"`
}

func recoveryViewOf(plan raftnode.RecoveryPlan) recoveryView {
	view := recoveryView{ID: plan.ServerID, DataDir: plan.DataDir, Index: plan.Index, Term: plan.Term, LogOf: plan.LogOf,
		Voters: plan.Voters, Read: plan.Read, NotRead: []unreadView{}, Doubts: plan.Doubts, MayLose: plan.MayLose()}
	for _, lost := range plan.NotRead {
		view.NotRead = append(view.NotRead, unreadView(lost))
	}
	return view
}

// explainRecovery says in plain words what a recovery does and what it may lose.
func explainRecovery(plan raftnode.RecoveryPlan) string {
	var text strings.Builder
	fmt.Fprintf(&text, "Server %d would go on as the only voter, with everything up to entry %d of term %d, which is the log of server %d.\n",
		plan.ServerID, plan.Index, plan.Term, plan.LogOf)
	others := slices.DeleteFunc(slices.Clone(plan.Read), func(id uint64) bool { return id == plan.ServerID })
	if len(others) > 0 {
		fmt.Fprintf(&text, "Other voters whose logs were read: %s. They never use these logs again: they keep them in their archive folders and join\nanew under their ids when they start.\n",
			idList(others))
	}
	if len(plan.NotRead) == 0 && !plan.MayLose() {
		text.WriteString("Every voter was read: nothing that was acknowledged is lost.\n")
		return text.String()
	}
	if len(plan.NotRead) > 0 {
		text.WriteString("Voters that were not looked at:\n")
	}
	for _, lost := range plan.NotRead {
		fmt.Fprintf(&text, "  server %d, last at %s in %s: %s\n", lost.ID, orUnknown(lost.Address), orUnknown(lost.DataDir), lost.Why)
	}
	if !plan.MayLose() {
		text.WriteString("They are too few to have acknowledged anything without the voters that were read: nothing that was acknowledged is\nlost, and they are taken in again when they start.\n")
		return text.String()
	}
	for _, doubt := range plan.Doubts {
		fmt.Fprintf(&text, "The log of a voter that was read may be an old one: %s.\n", doubt)
	}
	text.WriteString(`WHAT THIS MAY LOSE: they are enough to have gone on without the voters that were read. What they acknowledged alone
is lost: answers of miners, so ranges are searched again; solutions; the record that a block was submitted, so it may be
submitted again.
BEFORE THEY START AGAIN, move their data directories away. On their old logs they might elect a leader of their own, and
there would be two clusters of one name. Start them on new directories: they join as new servers.
`)
	return text.String()
}

func idList(ids []uint64) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(ids), "[]"), " ", ", ")
}

func orUnknown(text string) string {
	if text == "" {
		return "an unknown place"
	}
	return text
}

// existingDataDir refuses a folder in which OpenDataDir would begin a new server.
func existingDataDir(path string) (string, error) {
	_, err := os.Stat(path)
	if err == nil {
		var has bool
		if has, err = raftnode.HasServer(path); err == nil && !has {
			err = fmt.Errorf("%s has no server yet", path)
		}
	}
	if err != nil {
		return "", hinted(fmt.Errorf("--data-dir: %w", err), "name the data directory of the server that is to go on")
	}
	return path, nil
}

// onlyDataDir returns the data directory of the environment's only server.
func onlyDataDir(env *registry.Environment) (string, error) {
	infos, err := raftnode.OtherDataDirs(env, nil)
	if err != nil {
		return "", err
	}
	var paths []string
	for _, info := range infos {
		if info.Identity.ServerID != 0 {
			paths = append(paths, info.Path)
		}
	}
	if len(paths) == 1 {
		return paths[0], nil
	}
	found := "none"
	if len(paths) > 0 {
		found = strings.Join(paths, ", ")
	}
	return "", usageError{fmt.Errorf("the environment %s holds not one data directory but %s: name one with --data-dir DIR", env.Dir(), found)}
}
