package raftlog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"sluice/core/vfs"
)

// TestNothingBehindAFailedSyncIsBelieved lets a sync fail anywhere, as a disk does: the data stays in memory and reads as if
// it were there. Opened again with Durable the log ends where it was known to be synced, goes on, and loses nothing of
// that when the power goes.
func TestNothingBehindAFailedSyncIsBelieved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := vfs.NewMem()
		fault := vfs.NewFault(mem)
		s, err := Open(fault, "log", small)
		if err != nil {
			t.Fatal(err)
		}
		m := newModel()
		for life := range rapid.IntRange(1, 4).Draw(t, "lives") {
			for range rapid.IntRange(0, 12).Draw(t, "steps") {
				step(t, s, m)
			}
			broken := errors.New("input/output error")
			fault.SetHook(func(op vfs.Op, name string) error {
				if op == vfs.OpSync && strings.Contains(name, ".rlog") {
					return broken
				}
				return nil
			})
			next := m.last + 1
			if err := s.StoreLogs(entries(next, uint64(life+1), 400, rapid.IntRange(1, 3000).Draw(t, "size"))); !errors.Is(err, broken) {
				t.Fatal(err)
			}
			fault.SetHook(nil)
			o := small
			o.Durable = s.Durable()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(fault, "log", o); err != nil {
				t.Fatal(err)
			}
			if diff := m.diff(s); diff != "" {
				t.Fatalf("opened again: %s", diff)
			}
		}
		for range rapid.IntRange(0, 12).Draw(t, "last steps") {
			step(t, s, m)
		}
		after := mem.CrashClone(func() bool { return rapid.Bool().Draw(t, "kept") })
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for what, disk := range map[string]vfs.FS{"opened once more": mem, "after a power cut": after} {
			s, err := Open(disk, "log", small)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if diff := m.diff(s); diff != "" {
				t.Fatalf("%s: %s", what, diff)
			}
			s.Close()
		}
	})
}

// TestFullDiskStopsNoLogThatHasAFile: a spare file that cannot be made is asked for again; the log fails only when the
// active file is full, and can be opened again once there is space.
func TestFullDiskStopsNoLogThatHasAFile(t *testing.T) {
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	s := mustOpen(t, fault, Options{FirstSegmentBytes: 16 << 10})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	asked := make(chan struct{}, 100)
	fault.SetHook(func(op vfs.Op, name string) error {
		if op == vfs.OpCreate {
			select {
			case asked <- struct{}{}:
			default:
			}
			return fmt.Errorf("create: %w", syscall.ENOSPC)
		}
		return nil
	})
	index := uint64(1)
	var err error
	for ; err == nil; index++ {
		if err = s.StoreLog(&raft.Log{Index: index, Term: 1, Data: make([]byte, 1000)}); err == nil && index == 12 {
			<-asked
		}
	}
	if !errors.Is(err, syscall.ENOSPC) || index < 14 {
		t.Fatalf("entry %d: %v", index, err)
	}
	cancel()
	<-ran
	must(t, s.Close())
	o := Options{FirstSegmentBytes: 16 << 10, Durable: s.Durable()}
	if _, err := Open(fault, "log", o); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("opened on a full disk: %v", err)
	}
	fault.SetHook(nil)
	s = mustOpen(t, fault, o)
	if got := s.Info().Last; got != index-2 {
		t.Fatalf("the last entry is %d, want %d", got, index-2)
	}
	must(t, s.StoreLog(&raft.Log{Index: index - 1, Term: 1, Data: []byte("again")}))
}

// TestCutFileIsDamage: a file whose space was reserved is found to be shorter, also when only its unused end is gone, with
// which a synced record may have gone too.
func TestCutFileIsDamage(t *testing.T) {
	disk := vfs.NewMem()
	s := mustOpen(t, disk, small)
	for i := range 20 {
		must(t, s.prepare())
		must(t, s.StoreLogs(entries(uint64(i+1), 1, 700)))
	}
	must(t, s.Close())
	names, err := disk.List("log")
	must(t, err)
	cut := 0
	for _, name := range names {
		copyOf := disk.CrashClone(nil)
		f, err := copyOf.Open("log/" + name)
		must(t, err)
		size, err := f.Size()
		must(t, err)
		must(t, f.Truncate(size-1))
		must(t, f.Close())
		s, err := Open(copyOf, "log", small)
		switch {
		case errors.Is(err, ErrDamaged):
			cut++
		case err != nil:
			t.Fatal(err)
		default: // a spare
			s.Close()
		}
	}
	if cut < len(names)-1 || cut == 0 {
		t.Fatalf("%d of %d files", cut, len(names))
	}
}
