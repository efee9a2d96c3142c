//go:build chaos

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"sluice/cmd/internal/chaos"
	"sluice/core/vfs"
)

// board is the process's switchboard. It stands for the machine, of which there is one, so it is the process's own and lives as
// long: a node that stops on a failing disk is a case to be tested too.
var board struct {
	sync.Once
	*chaos.Board
	err error
}

func openBoard(logger *slog.Logger) error {
	board.Do(func() {
		logger = logger.With("component", "chaos")
		board.Board = chaos.New(logger)
		path := os.Getenv(chaos.EnvSocket)
		if path == "" {
			return
		}
		l, err := chaos.Listen(path)
		if err != nil {
			board.err = err
			return
		}
		logger.Warn("this binary takes faults", "socket", path)
		go func() {
			if err := board.Serve(context.Background(), l); err != nil {
				logger.Error("switchboard has stopped", "error", err)
			}
		}()
	})
	return board.err
}

// disk is the file system for a data directory, with the switchboard before it.
func disk(logger *slog.Logger, dataDir string) (vfs.FS, error) {
	if err := openBoard(logger); err != nil {
		return nil, err
	}
	fs, err := board.FS(vfs.OS, dataDir, os.Getenv(chaos.EnvVolatile))
	if err != nil {
		return nil, fmt.Errorf("put the switchboard before %s: %w", dataDir, err)
	}
	return fs, nil
}

// wallClock is the clock that timestamps come from.
func wallClock() time.Time {
	if board.Board == nil {
		return time.Now()
	}
	return board.Now()
}
