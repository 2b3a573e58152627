package raftnode

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger passes what the Raft library logs to slog. The library warns of every dial that fails, so its warnings and
// errors are for debugging, but for those that say that this server's disk does not do its work, and those that say why
// leadership moves.
type raftLogger struct {
	hclog.Logger // does nothing: for what is not overridden
	logger       *slog.Logger
}

// raftLevels are the levels of the library's messages that are not for debugging alone.
var raftLevels = map[string]slog.Level{
	// What a person must see. A log or vote that cannot be written or read is not among it: that ends the server, with an
	// error that names the file (diskGuard).
	"failed to get last log index":       slog.LevelWarn,
	"failed to take snapshot":            slog.LevelWarn,
	"failed to restore snapshot":         slog.LevelWarn,
	"failed to open snapshot":            slog.LevelWarn,
	"failed to list snapshots":           slog.LevelWarn,
	"failed to scan snapshot directory":  slog.LevelWarn,
	"failed to finalize snapshot":        slog.LevelWarn,
	"failed to move snapshot into place": slog.LevelWarn,
	"failed to reap snapshot":            slog.LevelWarn,
	"failed to write metadata":           slog.LevelWarn,
	"failed to create state file":        slog.LevelWarn,
	"failed to make snapshot directly":   slog.LevelWarn,

	// Why there is an election.
	"heartbeat timeout reached, starting election":     slog.LevelInfo, // this follower has not heard of its leader
	"failed to contact":                                slog.LevelInfo, // this leader has not heard of that follower
	"failed to contact quorum of nodes, stepping down": slog.LevelInfo,
	"peer has newer term, stopping replication":        slog.LevelInfo, // another calls one
	"Election timeout reached, restarting election":    slog.LevelInfo, // nobody won in time
}

func newRaftLogger(logger *slog.Logger) hclog.Logger {
	return raftLogger{Logger: hclog.NewNullLogger(), logger: logger}
}

func (l raftLogger) Log(level hclog.Level, message string, args ...any) {
	if level < hclog.Warn {
		return
	}
	to, listed := raftLevels[message]
	if !listed {
		to = slog.LevelDebug
	}
	if !l.logger.Enabled(context.Background(), to) {
		return
	}
	attrs := []any{slog.String("message", message)}
	for i := 0; i+1 < len(args); i += 2 {
		attrs = append(attrs, slog.String(fmt.Sprint(args[i]), fmt.Sprint(args[i+1])))
	}
	l.logger.Log(context.Background(), to, "raft library", attrs...)
}

func (l raftLogger) Warn(message string, args ...any)  { l.Log(hclog.Warn, message, args...) }
func (l raftLogger) Error(message string, args ...any) { l.Log(hclog.Error, message, args...) }
func (l raftLogger) IsWarn() bool                      { return true }
func (l raftLogger) IsError() bool                     { return true }
func (l raftLogger) With(...any) hclog.Logger          { return l }
func (l raftLogger) Named(string) hclog.Logger         { return l }
func (l raftLogger) ResetNamed(string) hclog.Logger    { return l }
