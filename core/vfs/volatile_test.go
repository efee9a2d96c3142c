package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// volatile is a Volatile over a file system in memory, and that.
func volatile(t testing.TB, o VolatileOptions) (*Volatile, *Mem) {
	t.Helper()
	mem := NewMem()
	v, err := NewVolatile(mem, "data", o)
	if err != nil {
		t.Fatal(err)
	}
	return v, mem
}

// tree reads everything below a directory: contents by path, directories with a slash.
func tree(fsys FS, dir string) (map[string]string, error) {
	out := map[string]string{}
	names, err := fsys.List(dir)
	for _, name := range names {
		at := filepath.Join(dir, name)
		if name == volatileDir {
			continue
		}
		info, err := fsys.Stat(at)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			p, err := ReadFile(fsys, at)
			if err != nil || int64(len(p)) != info.Size() {
				return nil, fmt.Errorf("%s: %d bytes, size %d: %w", at, len(p), info.Size(), err)
			}
			out[at] = string(p)
			continue
		}
		out[at+"/"] = ""
		below, err := tree(fsys, at)
		if err != nil {
			return nil, err
		}
		maps.Copy(out, below)
	}
	return out, err
}

func sameTree(t rapid.TB, what string, got, want FS) {
	t.Helper()
	g, err := tree(got, "data")
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	w, err := tree(want, "data")
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if !maps.Equal(g, w) {
		t.Fatalf("%s:\n got %q\nwant %q", what, g, w)
	}
}

// walk makes the same calls on a Volatile and on a Mem, which is the model: of what is there, and of what a crash leaves.
type volWalk struct {
	v     *Volatile
	disk  *Mem
	model *Mem
	files []volPair
	exact bool // nothing is written unasked, so that a crash leaves what the model says
	max   int64
	seed  uint64
}

type volPair struct{ v, model File }

func (w *volWalk) both(t *rapid.T, what string, do func(FS) error) bool {
	got, want := do(w.v), do(w.model)
	if (got == nil) != (want == nil) {
		t.Fatalf("%s: %v, the model says %v", what, got, want)
	}
	return got == nil
}

func (w *volWalk) open(t *rapid.T, name string, open func(FS) (File, error)) {
	var files []File
	if w.both(t, "open "+name, func(fsys FS) error {
		f, err := open(fsys)
		files = append(files, f)
		return err
	}) {
		w.files = append(w.files, volPair{files[0], files[1]})
	}
}

// names are few, so that they meet.
var volNames = rapid.SampledFrom([]string{"data/x", "data/y", "data/a/x", "data/a/y", "data/a", "data/b", "data/b/x", "data/a/c", "data/a/c/x"})

func (w *volWalk) file(t *rapid.T, do func(f File) error) {
	if len(w.files) == 0 {
		t.Skip("no file is open")
	}
	p := w.files[rapid.IntRange(0, len(w.files)-1).Draw(t, "file")]
	got, want := do(p.v), do(p.model)
	if (got == nil) != (want == nil) {
		t.Fatalf("%s: %v, the model says %v", p.v.Name(), got, want)
	}
}

func (w *volWalk) crash(t *rapid.T) {
	after := w.model.CrashClone(nil)
	v, err := NewVolatile(w.disk, "data", VolatileOptions{DirtyBytesMax: w.max, Seed: w.seed})
	if err != nil {
		t.Fatal(err)
	}
	if w.exact {
		sameTree(t, "after a crash", v, after)
	}
	// What survives is durable: both begin from what the disk has.
	w.v, w.model, w.files = v, NewMem(), nil
	if err := w.model.MkdirAll("data"); err != nil {
		t.Fatal(err)
	}
	copyTree(t, w.disk, w.model, "data")
}

func copyTree(t rapid.TB, from, to FS, dir string) {
	all, err := tree(from, dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if name[len(name)-1] == '/' {
			err = to.MkdirAll(name)
		} else {
			err = WriteFile(to, name, []byte(all[name]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (w *volWalk) actions() map[string]func(*rapid.T) {
	offset := rapid.Int64Range(0, 3*volPage)
	return map[string]func(*rapid.T){
		"": func(t *rapid.T) { sameTree(t, "running", w.v, w.model) },
		"create": func(t *rapid.T) {
			name := volNames.Draw(t, "name")
			w.open(t, name, func(fsys FS) (File, error) { return fsys.Create(name) })
		},
		"open": func(t *rapid.T) {
			name := volNames.Draw(t, "name")
			w.open(t, name, func(fsys FS) (File, error) { return fsys.Open(name) })
		},
		"write": func(t *rapid.T) {
			p := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, rapid.IntRange(1, 2*volPage).Draw(t, "n"))
			at := offset.Draw(t, "at")
			w.file(t, func(f File) error { _, err := f.WriteAt(p, at); return err })
		},
		"truncate": func(t *rapid.T) {
			size := offset.Draw(t, "size")
			w.file(t, func(f File) error { return f.Truncate(size) })
		},
		"sync":  func(t *rapid.T) { w.file(t, func(f File) error { return f.Sync() }) },
		"close": func(t *rapid.T) { w.file(t, func(f File) error { return f.Close() }) },
		"remove": func(t *rapid.T) {
			name := volNames.Draw(t, "name")
			w.both(t, "remove "+name, func(fsys FS) error { return fsys.Remove(name) })
		},
		"removeAll": func(t *rapid.T) {
			name := volNames.Draw(t, "name")
			w.both(t, "remove all "+name, func(fsys FS) error { return fsys.RemoveAll(name) })
		},
		"rename": func(t *rapid.T) {
			from, to := volNames.Draw(t, "from"), volNames.Draw(t, "to")
			if to == from || len(to) > len(from) && to[:len(from)+1] == from+"/" {
				t.Skip("into itself")
			}
			if w.exact && filepath.Dir(from) != filepath.Dir(to) {
				t.Skip("Mem is kinder than it must be to renames between directories")
			}
			w.both(t, "rename "+from+" to "+to, func(fsys FS) error { return fsys.Rename(from, to) })
		},
		"mkdir": func(t *rapid.T) {
			dir := rapid.SampledFrom([]string{"data/a", "data/b", "data/a/c"}).Draw(t, "dir")
			w.both(t, "mkdir "+dir, func(fsys FS) error { return fsys.MkdirAll(dir) })
		},
		"mkdir one": func(t *rapid.T) {
			dir := rapid.SampledFrom([]string{"data/a", "data/b", "data/a/c"}).Draw(t, "dir")
			w.both(t, "mkdir one "+dir, func(fsys FS) error { return Mkdir(fsys, dir) })
		},
		"sync whole": func(t *rapid.T) {
			w.both(t, "sync whole", func(fsys FS) error {
				whole, err := OpenWhole(fsys, "data")
				if err != nil {
					return err
				}
				return whole.Sync()
			})
		},
		"syncDir": func(t *rapid.T) {
			dir := rapid.SampledFrom([]string{"data", "data/a", "data/b", "data/a/c"}).Draw(t, "dir")
			if info, err := w.model.Stat(dir); err != nil || !info.IsDir() {
				t.Skip("no such directory")
			}
			w.both(t, "sync "+dir, func(fsys FS) error { return fsys.SyncDir(dir) })
		},
		"crash": w.crash,
	}
}

// TestVolatileIsTheModel: a Volatile is a file system as Mem is one, and a kill leaves of it what a crash leaves of Mem.
func TestVolatileIsTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &volWalk{disk: NewMem(), model: NewMem(), exact: true}
		w.begin(t)
		t.Repeat(w.actions())
	})
}

// TestVolatileWritesBack: also when pages and names are written unasked the running process sees what it wrote.
func TestVolatileWritesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &volWalk{disk: NewMem(), model: NewMem(), max: rapid.Int64Range(1, 5*volPage).Draw(t, "max"), seed: rapid.Uint64().Draw(t, "seed")}
		w.begin(t)
		t.Repeat(w.actions())
	})
}

func (w *volWalk) begin(t *rapid.T) {
	if err := w.model.MkdirAll("data"); err != nil {
		t.Fatal(err)
	}
	v, err := NewVolatile(w.disk, "data", VolatileOptions{DirtyBytesMax: w.max, Seed: w.seed})
	if err != nil {
		t.Fatal(err)
	}
	w.v = v
}

// TestVolatileKeepsWhatIsSynced on the real file system, across the death of a Volatile that closes nothing.
func TestVolatileKeepsWhatIsSynced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	in := func(name string) string { return filepath.Join(dir, name) }
	v, err := NewVolatile(OS, dir, VolatileOptions{})
	must(t, err)
	must(t, WriteFile(v, in("kept"), []byte("one")))
	f, err := v.Create(in("log"))
	must(t, err)
	must(t, Allocate(f, 3*volPage))
	mustWrite(t, f, "synced", 0)
	must(t, f.Sync())
	must(t, v.SyncDir(dir))
	mustWrite(t, f, "lost", 6)
	must(t, writeSynced(v, in("nameless"), []byte("x")))
	must(t, v.Remove(in("kept")))
	if _, ok := f.(interface{ OSFile() any }); ok {
		t.Fatal("the kernel does not have what is written")
	}
	lock, err := v.Lock(in("lock"))
	must(t, err)
	if _, err := v.Lock(in("lock")); !errors.Is(err, ErrLocked) {
		t.Fatal(err)
	}
	must(t, lock.Close())

	v, err = NewVolatile(OS, dir, VolatileOptions{})
	must(t, err)
	names, err := v.List(dir)
	must(t, err)
	if !slices.Equal(names, []string{"kept", "lock", "log"}) {
		t.Fatal(names)
	}
	p, err := ReadFile(v, in("log"))
	must(t, err)
	if len(p) != 3*volPage || string(p[:10]) != "synced\x00\x00\x00\x00" {
		t.Fatalf("%d bytes, %q", len(p), p[:10])
	}
	if names, err := OS.List(in(volatileDir)); err != nil || len(names) > 0 {
		t.Fatal(names, err)
	}
}

func TestVolatileIsBounded(t *testing.T) {
	const bound = 16 * volPage
	v, mem := volatile(t, VolatileOptions{DirtyBytesMax: bound})
	var last File
	for i := range 20 {
		f, err := v.Create(fmt.Sprintf("data/%d", i))
		must(t, err)
		for page := range int64(4) {
			mustWrite(t, f, "x", page*volPage)
			if n := v.DirtyBytes(); n > bound {
				t.Fatalf("%d bytes in memory", n)
			}
		}
		if i%2 == 0 {
			must(t, f.Close())
			must(t, v.Remove(f.Name()))
		}
		last = f
	}
	must(t, last.Sync())
	if n := v.DirtyBytes(); n >= bound {
		t.Fatalf("%d bytes in memory after a sync", n)
	}
	must(t, v.RemoveAll("data/1"))
	must(t, v.SyncDir("data"))
	names, err := mem.List("data")
	must(t, err)
	if len(names) != 10 { // nine of the odd ones, and the stage
		t.Fatal(names)
	}
}

// TestVolatileOnAFullDisk: the write is refused, not the sync.
func TestVolatileOnAFullDisk(t *testing.T) {
	v, mem := volatile(t, VolatileOptions{})
	f, err := v.Create("data/x")
	must(t, err)
	mustWrite(t, f, "hello", 0)
	mem.SetFree(2 * volPage)
	v.room.Store(0)
	if n, err := v.Free("data"); err != nil || n != volPage {
		t.Fatal(n, err)
	}
	if _, err := f.WriteAt(make([]byte, volPage), 5); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	mustWrite(t, f, "howdy", 0)
	must(t, f.Sync())
}

// TestVolatileReportsFailedWriteback: what nobody waited for is told to who syncs.
func TestVolatileReportsFailedWriteback(t *testing.T) {
	fault := NewFault(NewMem())
	v, err := NewVolatile(fault, "data", VolatileOptions{DirtyBytesMax: 1})
	must(t, err)
	f, err := v.Create("data/x")
	must(t, err)
	broken := errors.New("broken")
	fault.SetHook(func(op Op, _ string) error {
		if op == OpWrite {
			return broken
		}
		return nil
	})
	mustWrite(t, f, "x", 0)
	fault.SetHook(nil)
	if err := f.Sync(); !errors.Is(err, broken) {
		t.Fatal(err)
	}
}

func newVolatile(t testing.TB, inner FS, root string) *Volatile {
	t.Helper()
	v, err := NewVolatile(inner, root, VolatileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}
