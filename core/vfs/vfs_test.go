package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// fileSystems are all of them, each with an empty directory.
func fileSystems(t *testing.T) map[string]struct {
	fs  FS
	dir string
} {
	dir := t.TempDir()
	return map[string]struct {
		fs  FS
		dir string
	}{
		"os":             {OS, t.TempDir()},
		"mem":            {NewMem(), "/"},
		"fault":          {NewFault(NewMem()), ""},
		"volatile":       {newVolatile(t, NewMem(), ""), ""},
		"volatile of os": {newVolatile(t, OS, dir), dir},
	}
}

func mustWrite(t *testing.T, f File, p string, off int64) {
	t.Helper()
	if n, err := f.WriteAt([]byte(p), off); err != nil || n != len(p) {
		t.Fatal(n, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestConformance does the same on every file system.
func TestConformance(t *testing.T) {
	for name, sys := range fileSystems(t) {
		t.Run(name, func(t *testing.T) {
			in := func(name string) string { return filepath.Join(sys.dir, name) }
			must(t, sys.fs.MkdirAll(in("a/b")))
			must(t, sys.fs.MkdirAll(in("a/b")))
			if _, err := sys.fs.Open(in("a/x")); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("open of nothing: %v", err)
			}
			if _, err := sys.fs.Create(in("no/x")); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("create in nothing: %v", err)
			}
			f, err := sys.fs.Create(in("a/x"))
			must(t, err)
			if f.Name() != in("a/x") {
				t.Fatalf("name %q", f.Name())
			}
			mustWrite(t, f, "hello", 3)
			checkContent(t, f, "\x00\x00\x00hello")
			must(t, f.Truncate(5))
			checkContent(t, f, "\x00\x00\x00he")
			must(t, f.Truncate(7))
			checkContent(t, f, "\x00\x00\x00he\x00\x00")
			must(t, f.Sync())
			must(t, f.Close())
			if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
				t.Fatalf("read after close: %v", err)
			}
			checkNames(t, sys.fs, in, f)
		})
	}
}

func checkContent(t *testing.T, f File, want string) {
	t.Helper()
	size, err := f.Size()
	if err != nil || size != int64(len(want)) {
		t.Fatalf("size %d %v, want %d", size, err, len(want))
	}
	p := make([]byte, len(want)+1)
	n, err := f.ReadAt(p, 0)
	if !errors.Is(err, io.EOF) || string(p[:n]) != want {
		t.Fatalf("%q %v, want %q", p[:n], err, want)
	}
	if n, err := f.ReadAt(p[:len(want)-1], 1); err != nil || string(p[:n]) != want[1:] {
		t.Fatalf("%q %v, want %q", p[:n], err, want[1:])
	}
	if n, err := f.ReadAt(p, size); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatal(n, err)
	}
}

func checkNames(t *testing.T, fsys FS, in func(string) string, f File) {
	t.Helper()
	must(t, WriteFile(fsys, in("a/w"), []byte("one")))
	must(t, WriteFile(fsys, in("a/w"), []byte("two")))
	if p, err := ReadFile(fsys, in("a/w")); err != nil || string(p) != "two" {
		t.Fatal(string(p), err)
	}
	must(t, WriteFile(fsys, in("a/empty"), nil))
	if p, err := ReadFile(fsys, in("a/empty")); err != nil || len(p) != 0 {
		t.Fatal(p, err)
	}
	names, err := fsys.List(in("a"))
	if err != nil || !slices.Equal(names, []string{"b", "empty", "w", "x"}) {
		t.Fatal(names, err)
	}
	open, err := fsys.Open(in("a/x"))
	must(t, err)
	must(t, fsys.Rename(in("a/w"), in("a/x")))
	checkContent(t, open, "\x00\x00\x00he\x00\x00") // the replaced file lives on
	must(t, open.Close())
	if p, err := ReadFile(fsys, in("a/x")); err != nil || string(p) != "two" {
		t.Fatal(string(p), err)
	}
	must(t, fsys.Rename(in("a"), in("c")))
	info, err := fsys.Stat(in("c/x"))
	if err != nil || info.Size() != 3 || info.IsDir() || info.Name() != "x" {
		t.Fatal(info, err)
	}
	if info, err := fsys.Stat(in("c")); err != nil || !info.IsDir() {
		t.Fatal(info, err)
	}
	if err := fsys.Remove(in("c")); err == nil {
		t.Fatal("removed a directory with files")
	}
	must(t, fsys.Remove(in("c/x")))
	if err := fsys.Remove(in("c/x")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("remove of nothing: %v", err)
	}
	must(t, fsys.RemoveAll(in("c")))
	must(t, fsys.RemoveAll(in("c")))
	if _, err := fsys.List(in("c")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("list of nothing: %v", err)
	}
	checkLock(t, fsys, in)
}

func checkLock(t *testing.T, fsys FS, in func(string) string) {
	t.Helper()
	lock, err := fsys.Lock(in("lock"))
	must(t, err)
	if _, err := fsys.Lock(in("lock")); !errors.Is(err, ErrLocked) {
		t.Fatalf("second lock: %v", err)
	}
	must(t, lock.Close())
	lock, err = fsys.Lock(in("lock"))
	must(t, err)
	must(t, lock.Close())
	free, err := fsys.Free(in(""))
	if err != nil || free == 0 {
		t.Fatal(free, err)
	}
	if n, err := Size(NewFault(fsys), in("")); err != nil || n < free>>1 {
		t.Fatal(n, err)
	}
}

func content(t *testing.T, fsys FS, name string) string {
	t.Helper()
	p, err := ReadFile(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "none"
	}
	must(t, err)
	return string(p)
}

func TestCrashKeepsWhatWasSynced(t *testing.T) {
	m := NewMem()
	must(t, m.MkdirAll("d"))
	f, err := m.Create("d/f")
	must(t, err)
	mustWrite(t, f, "synced", 0)
	must(t, f.Sync())
	if got := content(t, m.CrashClone(nil), "d/f"); got != "none" {
		t.Fatalf("name survived without SyncDir: %q", got)
	}
	must(t, m.SyncDir("d"))
	mustWrite(t, f, "SY", 0)
	must(t, f.Truncate(4))
	if got := content(t, m.CrashClone(nil), "d/f"); got != "synced" {
		t.Fatalf("%q", got)
	}
	if got := content(t, m.CrashClone(func() bool { return true }), "d/f"); got != "SYnc" {
		t.Fatalf("%q", got)
	}
	if got := content(t, m, "d/f"); got != "SYnc" {
		t.Fatalf("the clone changed the original: %q", got)
	}
	must(t, m.Rename("d/f", "d/g"))
	must(t, f.Sync())
	clone := m.CrashClone(nil)
	if got := content(t, clone, "d/f") + " " + content(t, clone, "d/g"); got != "SYnc none" {
		t.Fatalf("%q", got)
	}
	must(t, m.SyncDir("d"))
	must(t, m.Remove("d/g"))
	if got := content(t, m.CrashClone(nil), "d/g"); got != "SYnc" {
		t.Fatalf("%q", got)
	}
	must(t, m.SyncDir("d"))
	if got := content(t, m.CrashClone(nil), "d/g"); got != "none" {
		t.Fatalf("%q", got)
	}
}

func TestCrashTearsWritesAtPages(t *testing.T) {
	m := NewMem()
	f, err := m.Create("f")
	must(t, err)
	must(t, m.SyncDir("."))
	mustWrite(t, f, string(bytes.Repeat([]byte("x"), 3*memPage)), 100)
	asked := 0
	clone := m.CrashClone(func() bool { asked++; return asked == 3 })
	if asked != 4 {
		t.Fatalf("asked %d times for a write over 4 pages", asked)
	}
	want := append(make([]byte, 2*memPage), bytes.Repeat([]byte("x"), memPage)...)
	if got := content(t, clone, "f"); got != string(want) {
		t.Fatalf("%d bytes", len(got))
	}
}

// TestWriteFileAtEveryCrash: at each change, and with each of the changes that
// are not durable kept or not, the file is whole: old or, once WriteFile is
// done, new.
func TestWriteFileAtEveryCrash(t *testing.T) {
	for kept := range 16 {
		m := NewMem()
		must(t, WriteFile(m, "f", []byte("old")))
		fault := NewFault(m)
		crash := func(context string, allowed ...string) {
			i := -1
			clone := m.CrashClone(func() bool { i++; return kept>>(i%4)&1 == 1 })
			if got := content(t, clone, "f"); !slices.Contains(allowed, got) {
				t.Fatalf("%s, kept %04b: %q", context, kept, got)
			}
		}
		fault.SetHook(func(op Op, path string) error {
			crash(fmt.Sprint("before ", op, " ", path), "old", "new")
			return nil
		})
		must(t, WriteFile(fault, "f", []byte("new")))
		crash("after", "new")
	}
}

// TestWriteFileWithEveryCallFailing: an error is reported, and the file is
// old or new.
func TestWriteFileWithEveryCallFailing(t *testing.T) {
	boom := errors.New("boom")
	for n := 0; ; n++ {
		m := NewMem()
		must(t, WriteFile(m, "f", []byte("old")))
		fault := NewFault(m)
		calls := 0
		fault.SetHook(func(Op, string) error {
			calls++
			if calls == n+1 {
				return boom
			}
			return nil
		})
		err := WriteFile(fault, "f", []byte("new"))
		if calls <= n {
			must(t, err)
			if n < 6 {
				t.Fatalf("only %d calls", n)
			}
			return
		}
		if !errors.Is(err, boom) {
			t.Fatalf("call %d failed, WriteFile says %v", n, err)
		}
		if got := content(t, m, "f"); got != "old" && got != "new" {
			t.Fatalf("%q", got)
		}
	}
}

func TestFaultTearsAndCounts(t *testing.T) {
	full := errors.New("disk full")
	fault := NewFault(NewMem())
	f, err := fault.Create("f")
	must(t, err)
	fault.SetHook(func(op Op, _ string) error {
		if op == OpWrite {
			return &TornError{N: 2, Err: full}
		}
		return nil
	})
	if n, err := f.WriteAt([]byte("abcd"), 0); n != 2 || !errors.Is(err, full) {
		t.Fatal(n, err)
	}
	checkContent(t, f, "ab")
	fault.SetHook(nil)
	mustWrite(t, f, "xyz", 0)
	if fault.Calls(OpWrite) != 2 || fault.Bytes(OpWrite) != 3 {
		t.Fatal(fault.Calls(OpWrite), fault.Bytes(OpWrite))
	}
	fault.SetFree(12)
	if n, err := fault.Free("."); err != nil || n != 12 {
		t.Fatal(n, err)
	}
}

func TestOSFileIsOffered(t *testing.T) {
	f, err := OS.Create(filepath.Join(t.TempDir(), "f"))
	must(t, err)
	defer f.Close()
	beneath, ok := f.(interface{ OSFile() *os.File })
	if !ok || beneath.OSFile().Name() != f.Name() {
		t.Fatal("no *os.File beneath")
	}
}
