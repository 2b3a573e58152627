package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"raftmine/raftnode/registry"
)

// environmentVariable returns the variable that stands for a flag.
func environmentVariable(flag string) string {
	return "RAFTMINE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// refuseEmptyFlags refuses a flag that the command line names and gives nothing, as a script does whose variable is not
// set: what it asked for would silently not be done.
func refuseEmptyFlags(cmd *cobra.Command) error {
	var failed error
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		if value := flag.Value.String(); failed == nil && (strings.TrimSpace(value) == "" || flag.Value.Type() == "stringSlice" && value == "[]") {
			failed = fmt.Errorf("--%s is given without a value", flag.Name)
		}
	})
	return failed
}

// flagsFromEnvironment gives every flag that the command line leaves alone the value of its environment variable.
func flagsFromEnvironment(cmd *cobra.Command) error {
	var failed error
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		value, found := os.LookupEnv(environmentVariable(flag.Name))
		if flag.Changed || !found || failed != nil || flag.Name == "help" || flag.Name == "version" {
			return
		}
		// RAFTMINE_SERVERS is the list of addresses that "raftmine env" exports; run's --servers is a number.
		if flag.Name == "servers" && flag.Value.Type() == "int" && checkAddresses("servers", value) == nil {
			return
		}
		if err := cmd.Flags().Set(flag.Name, value); err != nil {
			failed = fmt.Errorf("environment variable %s: %w", environmentVariable(flag.Name), wantedNumber(err))
			return
		}
		flag.Annotations = map[string][]string{annotationEnvironment: nil}
	})
	return failed
}

// wantedNumber says of a flag's value that cannot be parsed which number it wants, in place of which function failed.
func wantedNumber(err error) error {
	var invalid *pflag.InvalidValueError
	var number *strconv.NumError
	if !errors.As(err, &invalid) || !errors.As(err, &number) {
		return err
	}
	want := "a number"
	switch kind := invalid.GetFlag().Value.Type(); {
	case kind == "bool":
		want = "true or false"
	case strings.HasPrefix(kind, "uint"):
		want = "a whole number from 0 on"
	case strings.HasPrefix(kind, "int"):
		want = "a whole number"
	}
	said, _, _ := strings.Cut(err.Error(), ": strconv.")
	return fmt.Errorf("%s: want %s%s", said, want, choose(errors.Is(number, strconv.ErrRange), ", and not so large a one", ""))
}

const annotationEnvironment = "raftmine_environment"

// fromEnvironment reports whether a flag has its value from an environment variable.
func fromEnvironment(cmd *cobra.Command, flag string) bool {
	_, found := cmd.Flag(flag).Annotations[annotationEnvironment]
	return found
}

// variableBlamed returns the environment variable that gave a flag the value which an error complains of; empty: none did.
func variableBlamed(cmd *cobra.Command, said string) (variable string) {
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		rest, begins := strings.CutPrefix(said, "--"+flag.Name)
		if begins && (strings.HasPrefix(rest, " ") || strings.HasPrefix(rest, ":")) && fromEnvironment(cmd, flag.Name) {
			variable = environmentVariable(flag.Name)
		}
	})
	return variable
}

// given reports whether the command line itself has a flag.
func given(cmd *cobra.Command, flag string) bool {
	return cmd.Flags().Changed(flag) && !fromEnvironment(cmd, flag)
}

// jsonOutput reports whether --output json was asked for.
func jsonOutput(cmd *cobra.Command) (bool, error) {
	switch value, _ := cmd.Flags().GetString("output"); value {
	case "text":
		return false, nil
	case "json":
		return true, nil
	default:
		return false, usageError{fmt.Errorf("--output %q: want text or json", value)}
	}
}

// openEnvironment opens the local environment that the command line names, and makes it if it is not there.
func openEnvironment(cmd *cobra.Command) (*registry.Environment, error) {
	env, err := registry.Open(environmentDir(cmd))
	return env, hinted(err, "choose another folder with --environment DIR")
}

var errNoEnvironment = errors.New("there is no such folder")

// findEnvironment is openEnvironment for who starts nothing there: a folder that is not there is not made.
func findEnvironment(cmd *cobra.Command) (*registry.Environment, error) {
	dir := environmentDir(cmd)
	env, err := registry.Find(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("no server runs in the environment %s: %w", dir, errNoEnvironment)
	}
	return env, hinted(err, "start a server there with \"raftmine server\", or name servers with --servers ADDR,... or another environment with --environment DIR")
}

func environmentDir(cmd *cobra.Command) string {
	dir, _ := cmd.Flags().GetString("environment")
	return cmp.Or(dir, registry.DefaultDir())
}

// newLogger logs to w at the level that the command line names.
func newLogger(cmd *cobra.Command, w io.Writer) (*slog.Logger, error) {
	text, _ := cmd.Flags().GetString("log-level")
	var level slog.Level
	if err := level.UnmarshalText([]byte(text)); err != nil {
		return nil, usageError{fmt.Errorf("--log-level %q: want debug, info, warn or error", text)}
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})), nil
}

// checkListen refuses a listen address that other machines could reach: nothing on the wire is encrypted or
// authenticated.
func checkListen(address string, insecure bool) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return usageError{fmt.Errorf("--listen %q: want HOST:PORT", address)}
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return usageError{fmt.Errorf("--listen %q: port %q is not a number from 0 to 65535", address, port)}
	}
	if !insecure {
		return checkLoopback("listen", address)
	}
	return nil
}

// checkLoopback refuses an address that other machines could reach.
func checkLoopback(flag, address string) error {
	host, _, _ := net.SplitHostPort(address)
	if ip := net.ParseIP(host); host == "localhost" || (ip != nil && ip.IsLoopback()) {
		return nil
	}
	return hinted(usageError{fmt.Errorf("--%s %s is not a loopback address, and connections are neither encrypted nor authenticated", flag, address)},
		"use 127.0.0.1, or add --insecure on a network where every machine is trusted")
}

// checkAddresses refuses a flag's value that is not a list of addresses. Empty is none.
func checkAddresses(flag, text string) error {
	list := splitList(text)
	if len(list) == 0 && text != "" {
		return usageError{fmt.Errorf("--%s %q: it names no address", flag, text)}
	}
	for _, address := range list {
		host, port, err := net.SplitHostPort(address)
		if err != nil || host == "" {
			return usageError{fmt.Errorf("--%s %q: want HOST:PORT", flag, address)}
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return usageError{fmt.Errorf("--%s %q: port %q is not a number from 1 to 65535", flag, address, port)}
		}
	}
	return nil
}

// checkDialable refuses to tell others an address that is none: that of all interfaces.
func checkDialable(flag, address string) error {
	host, _, _ := net.SplitHostPort(address)
	if ip := net.ParseIP(host); host != "" && !(ip != nil && ip.IsUnspecified()) {
		return nil
	}
	return hinted(usageError{fmt.Errorf("--%s %s: no other server can dial that address", flag, address)},
		"name one that the others reach with --advertise HOST:PORT")
}

// splitList splits a comma-separated flag; spaces and empty parts do not count.
func splitList(text string) []string {
	var list []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list
}
