package commitlog

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"sluice/core/vfs"
)

// wholeLogs are n logs of which two may be open, on a file system that can be watched.
func wholeLogs(t *testing.T, n int) (*vfs.Mem, *vfs.Fault, *Files, []*Log) {
	t.Helper()
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	w, err := vfs.OpenWhole(fault, "/")
	if err != nil {
		t.Fatal(err)
	}
	files := NewFiles(2)
	files.UseWhole(w)
	var logs []*Log
	for i := range n {
		l, _, err := OpenAt(fault, fmt.Sprintf("/log-%d", i), Config{Files: files}, Manifest{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		logs = append(logs, l)
	}
	return mem, fault, files, logs
}

func appendAll(t *testing.T, logs []*Log) {
	t.Helper()
	for i, l := range logs {
		if _, err := l.Append(batch(fmt.Sprint(i), 1, 5), 1); err != nil {
			t.Fatal(err)
		}
	}
}

func none(t *testing.T) func(*Log, error) {
	return func(_ *Log, err error) { t.Errorf("a log was left out: %v", err) }
}

func TestSyncTogether(t *testing.T) {
	mem, fault, files, logs := wholeLogs(t, 10)
	fault.ResetCounts()
	appendAll(t, logs)
	appendAll(t, logs)
	if n := fault.Calls(vfs.OpSync); n != 0 {
		t.Errorf("closing files took %d syncs", n)
	}
	if err := files.SyncTogether(logs, none(t)); err != nil {
		t.Fatal(err)
	}
	if n := fault.Calls(vfs.OpSync) + fault.Calls(vfs.OpSyncDir); n != 1 {
		t.Errorf("%d syncs", n)
	}
	after := mem.CrashClone(nil)
	for i, l := range logs {
		if l.Synced() != 2 {
			t.Errorf("log %d is synced to %d", i, l.Synced())
		}
		back, missing, err := OpenAt(after, fmt.Sprintf("/log-%d", i), Config{}, l.Manifest())
		if err != nil || len(missing) > 0 {
			t.Fatalf("log %d after a crash: %v, %v", i, missing, err)
		}
		if got := values(t, back, 0, 1000); len(got) != 2 {
			t.Errorf("log %d after a crash: %q", i, got)
		}
		back.Close()
	}
}

// A file that was closed unsynced is synced with the whole file system: its own sync, after it was opened again, need not tell that it could
// not be written.
func TestLogClosedUnsyncedIsSyncedAsAWhole(t *testing.T) {
	_, fault, _, logs := wholeLogs(t, 3)
	appendAll(t, logs)
	var synced []string
	fault.SetHook(func(op vfs.Op, path string) error {
		if op == vfs.OpSync {
			synced = append(synced, path)
		}
		return nil
	})
	for _, i := range []int{2, 0} { // the one that is open, the one that is not
		if _, err := logs[i].Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if len(synced) != 2 || synced[0] == "/" || synced[1] != "/" {
		t.Errorf("synced were %q", synced)
	}
}

func TestFailedSyncTogetherIsFinal(t *testing.T) {
	_, fault, files, logs := wholeLogs(t, 3)
	appendAll(t, logs)
	fault.SetHook(func(op vfs.Op, _ string) error {
		if op == vfs.OpSync {
			return errBoom
		}
		return nil
	})
	if err := files.SyncTogether(logs, none(t)); !errors.Is(err, errBoom) {
		t.Fatalf("answered %v", err)
	}
	fault.SetHook(nil)
	for _, l := range logs {
		if _, err := l.Append(batch("x", 1, 5), 1); !errors.Is(err, errBoom) {
			t.Errorf("an append after it: %v", err)
		}
	}
	left := 0
	if err := files.SyncTogether(logs, func(*Log, error) { left++ }); !errors.Is(err, errBoom) || left != 3 {
		t.Errorf("again: %v, %d left out", err, left)
	}
}

func TestSyncTogetherPassesOverClosedLogs(t *testing.T) {
	_, _, files, logs := wholeLogs(t, 3)
	appendAll(t, logs)
	logs[1].Close()
	var left []*Log
	if err := files.SyncTogether(logs, func(l *Log, _ error) { left = append(left, l) }); err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 || left[0] != logs[1] || logs[2].Synced() != 1 {
		t.Errorf("%d logs were left out", len(left))
	}
}

// Those that ask while a sync runs share the next one.
func TestSyncsOfTheWholeAreShared(t *testing.T) {
	_, fault, files, logs := wholeLogs(t, 9)
	appendAll(t, logs)
	entered, release := make(chan struct{}), make(chan struct{})
	var first sync.Once
	fault.SetHook(func(op vfs.Op, _ string) error {
		if op == vfs.OpSync {
			first.Do(func() { close(entered); <-release })
		}
		return nil
	})
	fault.ResetCounts()
	var all sync.WaitGroup
	all.Go(func() { _ = files.SyncTogether(logs[:1], none(t)) })
	<-entered
	for i := range logs[1:] {
		all.Go(func() {
			if err := files.SyncTogether(logs[1+i:2+i], none(t)); err != nil {
				t.Error(err)
			}
		})
	}
	for files.whole.Load().asking.Load() < int64(len(logs)) {
		runtime.Gosched() // the others are on their way
	}
	close(release)
	all.Wait()
	if n := fault.Calls(vfs.OpSync); n != 2 {
		t.Errorf("%d syncs for %d callers", n, len(logs))
	}
}
