package shard

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// repeatInterval is how long one message of Raft is not logged again: while a peer is down it
// reports every failed heartbeat.
const repeatInterval = 10 * time.Second

// raftLogger gives Raft's messages to slog. Only its errors are above debug, and those at most once
// in repeatInterval; what matters to a person (leaders, members, failures) the group logs itself.
type raftLogger struct {
	hclog.Logger // the null logger, for what is not overridden
	to           *slog.Logger
	recent       *recentMessages
}

type recentMessages struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func newRaftLogger(to *slog.Logger) *raftLogger {
	return &raftLogger{
		Logger: hclog.NewNullLogger(), to: to,
		recent: &recentMessages{last: map[string]time.Time{}},
	}
}

func (l *raftLogger) put(level slog.Level, msg string, args []any) {
	if !l.to.Enabled(context.Background(), level) {
		return
	}
	if level > slog.LevelDebug && (isWanted(args) || !l.recent.first(msg)) {
		level = slog.LevelDebug
	}
	l.to.Log(context.Background(), level, msg, args...)
}

// isWanted tells whether a message is about what somebody wanted: this side has closed the connection, the replica on the other one says that
// it stops, or this one takes no part in an election. Texts are compared because the library and the wire keep no more of an error.
func isWanted(args []any) bool {
	return slices.ContainsFunc(args, func(arg any) bool {
		err, ok := arg.(error)
		return ok && slices.ContainsFunc(wanted, func(w error) bool { return strings.Contains(err.Error(), w.Error()) })
	})
}

var wanted = []error{net.ErrClosed, errStopping, errDoubtful, errYields}

func (r *recentMessages) first(msg string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Sub(r.last[msg]) < repeatInterval {
		return false
	}
	r.last[msg] = now
	return true
}

// Log implements hclog.Logger.
func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	if level >= hclog.Error && level < hclog.Off {
		l.put(slog.LevelWarn, msg, args)
		return
	}
	l.put(slog.LevelDebug, msg, args)
}

// Trace implements hclog.Logger; the messages are dropped.
func (l *raftLogger) Trace(string, ...any) {}

// Debug implements hclog.Logger.
func (l *raftLogger) Debug(msg string, args ...any) { l.put(slog.LevelDebug, msg, args) }

// Info implements hclog.Logger.
func (l *raftLogger) Info(msg string, args ...any) { l.put(slog.LevelDebug, msg, args) }

// Warn implements hclog.Logger.
func (l *raftLogger) Warn(msg string, args ...any) { l.put(slog.LevelDebug, msg, args) }

// Error implements hclog.Logger.
func (l *raftLogger) Error(msg string, args ...any) { l.put(slog.LevelWarn, msg, args) }

// IsTrace implements hclog.Logger.
func (l *raftLogger) IsTrace() bool { return false }

// IsDebug implements hclog.Logger.
func (l *raftLogger) IsDebug() bool { return l.to.Enabled(context.Background(), slog.LevelDebug) }

// IsInfo implements hclog.Logger.
func (l *raftLogger) IsInfo() bool { return l.IsDebug() }

// IsWarn implements hclog.Logger.
func (l *raftLogger) IsWarn() bool { return l.IsDebug() }

// IsError implements hclog.Logger.
func (l *raftLogger) IsError() bool { return true }

// With implements hclog.Logger.
func (l *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{Logger: l.Logger, to: l.to.With(args...), recent: l.recent}
}

// Named implements hclog.Logger; names are dropped.
func (l *raftLogger) Named(string) hclog.Logger { return l }

// ResetNamed implements hclog.Logger.
func (l *raftLogger) ResetNamed(string) hclog.Logger { return l }
