package vfs

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"
)

func TestMkdir(t *testing.T) {
	for name, sys := range fileSystems(t) {
		t.Run(name, func(t *testing.T) {
			in := func(name string) string { return filepath.Join(sys.dir, name) }
			must(t, Mkdir(sys.fs, in("d")))
			must(t, Mkdir(sys.fs, in("d")))
			f, err := sys.fs.Create(in("d/f"))
			must(t, err)
			must(t, f.Close())
			if err := Mkdir(sys.fs, in("d/f")); err == nil {
				t.Error("a directory was made over a file")
			}
		})
	}
}

func TestMkdirIsDurableWithItsParent(t *testing.T) {
	m := NewMem()
	must(t, Mkdir(m, "/d"))
	if _, err := m.CrashClone(nil).Stat("/d"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the directory outlived the crash: %v", err)
	}
	must(t, m.SyncDir("/"))
	if _, err := m.CrashClone(nil).Stat("/d"); err != nil {
		t.Fatal(err)
	}
}

func TestWholeMakesAllDurable(t *testing.T) {
	m := NewMem()
	f := NewFault(m)
	whole, err := OpenWhole(f, "/")
	must(t, err)
	defer whole.Close()
	must(t, Mkdir(f, "/d"))
	a, err := f.Create("/d/a")
	must(t, err)
	mustWrite(t, a, "one", 0)
	must(t, a.Close()) // what is closed counts too
	must(t, f.Rename("/d/a", "/b"))
	f.ResetCounts()
	must(t, whole.Sync())
	if n := f.Calls(OpSync); n != 1 {
		t.Errorf("%d syncs were counted", n)
	}
	after := m.CrashClone(nil)
	if got, err := ReadFile(after, "/b"); err != nil || string(got) != "one" {
		t.Errorf("after the crash: %q, %v", got, err)
	}
	if names, err := after.List("/d"); err != nil || len(names) != 0 {
		t.Errorf("after the crash the directory has %q, %v", names, err)
	}
}

func TestWholeThatFails(t *testing.T) {
	f := NewFault(NewMem())
	whole, err := OpenWhole(f, "/")
	must(t, err)
	broken := errors.New("broken")
	f.SetHook(func(op Op, _ string) error {
		if op == OpSync {
			return broken
		}
		return nil
	})
	if err := whole.Sync(); !errors.Is(err, broken) {
		t.Errorf("sync answered %v", err)
	}
}

func TestWholeWhereItCannotBe(t *testing.T) {
	if _, err := OpenWhole(struct{ FS }{NewMem()}, "/"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("opened with %v", err)
	}
	whole, err := OpenWhole(OS, t.TempDir())
	if errors.Is(err, errors.ErrUnsupported) {
		return // the temporary directory lies on a file system of another kind
	}
	must(t, err)
	must(t, whole.Sync())
	must(t, whole.Close())
}
