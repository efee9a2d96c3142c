//go:build !chaos

package main

import (
	"log/slog"
	"time"

	"sluice/core/vfs"
)

// disk is the file system for a data directory.
func disk(*slog.Logger, string) (vfs.FS, error) { return vfs.OS, nil }

// wallClock is the clock that timestamps come from.
func wallClock() time.Time { return time.Now() }
