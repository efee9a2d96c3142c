package shard

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
)

// TestAStopIsNoWarning says what the library logs on every clean stop, and what must still be seen after it.
func TestAStopIsNoWarning(t *testing.T) {
	var out bytes.Buffer
	l := newRaftLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn})))
	l.Error("failed to decode incoming command", "error", &net.OpError{Op: "read", Net: "tcp", Err: net.ErrClosed})
	l.Error("failed to decode incoming command", "error", fmt.Errorf("msgpack: %s", net.ErrClosed))
	l.Error("failed to heartbeat to", "peer", "127.0.0.1:1", "error", errors.New(errStopping.Error()))
	if out.Len() > 0 {
		t.Errorf("a clean stop is logged: %s", &out)
	}
	l.Error("failed to decode incoming command", "error", errors.New("connection reset by peer"))
	l.Error("failed to heartbeat to", "error", errSlowDisk)
	if n := strings.Count(out.String(), "level=WARN"); n != 2 {
		t.Errorf("%d warnings, want two: %s", n, &out)
	}
}
