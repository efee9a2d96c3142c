package proc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"sluice/core/vfs"
)

// TestAfterPredecessor checks what is waited for, and how long.
func TestAfterPredecessor(t *testing.T) {
	discard := slog.New(slog.DiscardHandler)
	other := errors.New("another error")
	for _, held := range []error{fmt.Errorf("listen: %w", syscall.EADDRINUSE), fmt.Errorf("lock: %w", vfs.ErrLocked)} {
		for _, c := range []struct {
			name  string
			after time.Duration // held so long
			then  error
			want  error
			took  time.Duration // at most
		}{
			{"free", 0, nil, nil, 0},
			{"soon free", time.Second, nil, nil, time.Second + predecessorPoll},
			{"other error", time.Second, other, other, time.Second + predecessorPoll},
			{"stays", time.Hour, nil, held, predecessorTimeout + predecessorPoll},
		} {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				err := AfterPredecessor(t.Context(), discard, func() error {
					if time.Since(began) < c.after {
						return held
					}
					return c.then
				})
				if took := time.Since(began); !errors.Is(err, c.want) || took > c.took {
					t.Errorf("%s, %v: %v after %v", c.name, held, err, took)
				}
			})
		}
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if err := AfterPredecessor(ctx, discard, func() error { return vfs.ErrLocked }); !errors.Is(err, vfs.ErrLocked) || time.Since(began) > time.Second {
			t.Errorf("a stop was answered with %v after %v", err, time.Since(began))
		}
	})
}

// TestHeldByOther checks that real sockets and locks are recognised.
func TestHeldByOther(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := net.Listen("tcp", l.Addr().String()); !heldByOther(err) {
		t.Errorf("a taken address: %v", err)
	}
	name := filepath.Join(t.TempDir(), "lock")
	lock, err := vfs.OS.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := vfs.OS.Lock(name); !heldByOther(err) {
		t.Errorf("a taken lock: %v", err)
	}
	if _, err := net.Listen("tcp", "127.0.0.1:99999"); err == nil || heldByOther(err) {
		t.Errorf("a wrong address: %v", err)
	}
}
