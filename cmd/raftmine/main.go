// Command raftmine is a Raft-backed replicated coordinator for proof-of-work search: its servers, its miners, the block
// web service, and the commands that look at them.
//
// This package alone knows flags, exit codes, standard streams and child processes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// version is the software version: it stands in every log entry that this binary proposes.
const version = "0.1.0"

// Exit codes. Scripts rely on them.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// errInterrupted is what a command comes to that was told to end before its work was done. What runs until it is told to
// end, as servers, miners and "run" do, ends with exit code 0 instead.
var errInterrupted = errors.New("interrupted")

// secondSignal is how long after the first signal another one still counts as the same.
const secondSignal = time.Second

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	// The first signal asks for an orderly end, a later one ends the process at once. Some programs send two in a row
	// for one: those count as one.
	context.AfterFunc(ctx, func() { time.AfterFunc(secondSignal, stop) })
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	running := false // false while cobra is still judging the command line: its errors are the caller's mistakes
	root := newRootCommand()
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := refuseEmptyFlags(cmd); err != nil {
			return usageError{err}
		}
		if err := flagsFromEnvironment(cmd); err != nil {
			return usageError{err}
		}
		running = true
		return nil
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errInterrupted // where it was met, and what was hinted there, says nothing
	}
	said, hint := err.Error(), hintFor(err)
	if before, names, found := strings.Cut(said, "\n\nDid you mean this?"); found { // cobra's
		said, hint = before, "did you mean "+strings.Join(strings.Fields(names), " or ")+"?"
	}
	if variable := variableBlamed(cmd, said); variable != "" {
		said := "that is from the environment variable " + variable
		var own hintedError
		hint = choose(errors.As(err, &own), said+"; "+hint, said)
	}
	fmt.Fprintf(stderr, "raftmine: %s\n", oneLine(said))
	if hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", oneLine(hint))
	}
	var usage usageError
	if !running || errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "raftmine",
		Short: "A Raft-backed replicated coordinator for proof-of-work search",
		Long: `raftmine is a Raft-backed replicated coordinator for proof-of-work search.

Start here: "raftmine run" mines on this machine with a web service, three servers and two miners.
Every flag can also be given by the environment variable RAFTMINE_<FLAG>, such as RAFTMINE_DATA_DIR for --data-dir.`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringP("output", "o", "text", "how to print: text or json")
	root.PersistentFlags().String("environment", "", "folder in which running processes find each other (default: a per-user folder)")
	root.PersistentFlags().String("log-level", "warn", "what to log on standard error: debug, info, warn or error")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{wantedNumber(err)} })
	root.AddCommand(newRunCommand(), newServerCommand(), newMinerCommand(), newWebServiceCommand(),
		newStatusCommand(), newWatchCommand(), newBlocksCommand(), newEnvCommand(), newDrillCommand(), newBenchCommand(), newAuditCommand(), newProofCommand())
	root.InitDefaultHelpFlag() // before cobra looks for the command: else it takes what follows --help for one
	root.InitDefaultVersionFlag()
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.RunE = helpAbout
	}
	return root
}

// helpAbout is cobra's help command, for which a command that there is not is an error too.
func helpAbout(cmd *cobra.Command, args []string) error {
	about, _, err := cmd.Root().Find(args)
	if err != nil {
		return usageError{err}
	}
	about.InitDefaultHelpFlag()
	return about.Help()
}
