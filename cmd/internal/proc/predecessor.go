package proc

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"time"

	"sluice/core/vfs"
)

const (
	// predecessorTimeout is how long a process waits for one that is about to be gone. With many open files on a busy machine the kernel needs some tenths of a
	// second; a process that really serves there is reported soon enough.
	predecessorTimeout = 3 * time.Second
	// predecessorPoll is how often it looks.
	predecessorPoll = 20 * time.Millisecond
)

// AfterPredecessor calls open, and for some seconds again while an address or a directory that it wants is held by another process. One that was killed looks gone
// to whoever started it (its command line in /proc is empty, or it is a zombie) before the kernel has closed its sockets and given up its
// locks; the next one is started just then. open leaves nothing behind when it fails. The last error is returned, as is every other one at once.
func AfterPredecessor(ctx context.Context, logger *slog.Logger, open func() error) error {
	deadline := time.Now().Add(predecessorTimeout)
	err := open()
	if heldByOther(err) {
		logger.Info("another process holds what this one needs, waiting for its end", "error", err, "at_most", predecessorTimeout)
	}
	for heldByOther(err) && time.Now().Before(deadline) {
		select {
		case <-ctx.Done():
			return err
		case <-time.After(predecessorPoll):
		}
		err = open()
	}
	return err
}

func heldByOther(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, vfs.ErrLocked)
}
