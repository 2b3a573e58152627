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

// raftTroubles are the library's messages that a person must see.
var raftTroubles = map[string]bool{
	"failed to commit logs":              true,
	"failed to append to logs":           true,
	"failed to clear log suffix":         true,
	"failed to get log":                  true,
	"failed to get last log index":       true,
	"failed to compact logs":             true,
	"failed to remove old logs":          true,
	"failed to persist vote":             true,
	"failed to take snapshot":            true,
	"failed to restore snapshot":         true,
	"failed to open snapshot":            true,
	"failed to list snapshots":           true,
	"failed to scan snapshot directory":  true,
	"failed to finalize snapshot":        true,
	"failed to move snapshot into place": true,
	"failed to reap snapshot":            true,
	"failed to write metadata":           true,
	"failed to create state file":        true,
	"failed to make snapshot directly":   true,
}

// raftElections are those that say why there is an election.
var raftElections = map[string]bool{
	"heartbeat timeout reached, starting election":     true, // this follower has not heard of its leader
	"failed to contact":                                true, // this leader has not heard of that follower
	"failed to contact quorum of nodes, stepping down": true,
	"peer has newer term, stopping replication":        true, // another calls one
	"Election timeout reached, restarting election":    true, // nobody won in time
}

func newRaftLogger(logger *slog.Logger) hclog.Logger {
	return raftLogger{Logger: hclog.NewNullLogger(), logger: logger}
}

func (l raftLogger) Log(level hclog.Level, message string, args ...any) {
	if level < hclog.Warn {
		return
	}
	to := slog.LevelDebug
	switch {
	case raftTroubles[message]:
		to = slog.LevelWarn
	case raftElections[message]:
		to = slog.LevelInfo
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
