package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"raftmine/raftnode/registry"
	"raftmine/rpc/webservice"
)

func newWebServiceCommand() *cobra.Command {
	var (
		listen    string
		zeros     int
		blockTime time.Duration
		dataDir   string
		insecure  bool
		withStdin bool
	)
	cmd := &cobra.Command{
		Use:   "webservice",
		Short: "Serve the block web service: what to search, and the verdict on solutions",
		Long: `Serve the block web service over HTTP. It gives the hash of the last block and the number of leading zeroes, takes a
nonce and a timestamp back, and keeps its chain in DATA-DIR. Its address is stored in the local environment, where
servers without --web-service find it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := checkListen(listen, insecure); err != nil {
				return err
			}
			if zeros < 1 || zeros > 64 {
				return usageError{fmt.Errorf("--zeros %d: want 1 to 64 hex digits", zeros)}
			}
			if blockTime < 0 {
				return usageError{fmt.Errorf("--block-time %s: want 0 (fixed difficulty) or more", blockTime)}
			}
			out, err := newPrinter(cmd)
			if err != nil {
				return err
			}
			logger, err := newLogger(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			env, err := openEnvironment(cmd)
			if err != nil {
				return err
			}
			if dataDir == "" {
				dataDir = filepath.Join(env.Dir(), "webservice")
			}
			if err := refuseForeign(dataDir, webservice.ChainFile); err != nil {
				return err
			}
			ctx, cancel := withParent(cmd.Context(), withStdin)
			defer cancel()

			service, err := webservice.OpenServer(webservice.ServerConfig{DataDir: dataDir, Zeros: zeros, BlockTime: blockTime, Logger: logger})
			if err != nil {
				return hinted(err, "choose another folder with --data-dir DIR")
			}
			defer func() { err = errors.Join(err, service.Close()) }()
			listener, err := net.Listen("tcp", listen)
			if err != nil {
				return hinted(err, "choose another port with --listen, or 127.0.0.1:0 for a free one")
			}
			base := "http://" + listener.Addr().String()
			published, err := env.Publish(registry.Entry{Role: registry.RoleWebService, Address: base, DataDir: dataDir,
				PID: os.Getpid(), StartedUnixMilli: uint64(time.Now().UnixMilli())})
			if err != nil {
				listener.Close()
				return err
			}
			defer func() { err = errors.Join(err, published.Remove()) }()
			out.processStarted(processStarted{Role: "webservice", PID: os.Getpid(), Address: base, DataDir: dataDir})
			return service.Serve(ctx, listener)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "address to serve HTTP on")
	cmd.Flags().IntVar(&zeros, "zeros", 6, "leading zero hex digits that a block needs (4 bits each)")
	cmd.Flags().DurationVar(&blockTime, "block-time", 0, "move the difficulty by one bit a block towards this pace; 0 keeps it fixed")
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "folder of the chain (default: webservice in the local environment)")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "allow an address that other machines can reach")
	addStdinFlag(cmd, &withStdin)
	return cmd
}

// addStdinFlag adds the hidden flag by which a child ends with its parent.
func addStdinFlag(cmd *cobra.Command, value *bool) {
	cmd.Flags().BoolVar(value, stopOnStdinEnd, false, "end when standard input ends")
	_ = cmd.Flags().MarkHidden(stopOnStdinEnd)
}
