package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// volatileDir holds, inside the root, files whose names are not durable yet. What an earlier process left there is
	// removed: a crash has no use for a file without a name.
	volatileDir = ".volatile"
	// DefaultDirtyBytesMax bounds what a Volatile keeps in memory. A kernel's own bound is a share of the memory, of about this order.
	DefaultDirtyBytesMax = 128 << 20
	// writebackOneIn and syncOneIn are how often a Volatile with a seed writes something back although nobody asked.
	writebackOneIn, syncOneIn = 16, 8
)

// VolatileOptions of NewVolatile.
type VolatileOptions struct {
	// DirtyBytesMax bounds the written data that is kept in memory; the file that has waited longest is written beyond it, as a kernel
	// does. Zero is DefaultDirtyBytesMax.
	DirtyBytesMax int64
	// Seed, when not zero, has single pages and names written at moments it chooses, as a kernel does when it likes: then some of what was not
	// synced survives. With zero nothing does, within DirtyBytesMax.
	Seed uint64
}

// Volatile is an FS whose process can be killed as if the power had gone: what is written stays in memory until File.Sync, a name until
// SyncDir of its directory. It does for a process what Mem.CrashClone does for a test. All files below root must be used through it
// alone; what lies elsewhere is passed on. One thing is kinder than the worst disk: a kill in the midst of a SyncDir leaves whole renames.
type Volatile struct {
	inner FS
	root  string
	life  string
	max   int64
	dirty atomic.Int64 // bytes in memory
	room  atomic.Int64 // bytes that files may grow by before the disk is asked for its space again
	mu    struct {
		sync.Mutex
		root    *volNode
		staged  uint64
		waiting []*volNode // files with dirty pages, longest first; some are clean by now
		random  *rand.Rand // nil: nothing is written unasked
	}
}

// volNode is a file or directory as an inode. All but content belongs to Volatile.mu.
type volNode struct {
	dir bool
	// Where it is for the running process: parent is nil when it has no name any more.
	parent  *volNode
	name    string
	entries map[string]*volNode
	// Where it is on the disk: in a directory, else at staged, which is nowhere after a crash, else (a file removed while it is open) nowhere.
	diskParent *volNode
	diskName   string
	staged     string
	onDisk     map[string]*volNode
	loaded     bool // entries and onDisk are known

	users   int  // handles, and writes on behalf of others: inner is open while there are any
	queued  bool // in waiting
	content volContent
}

// NewVolatile wraps the files below root, which it creates.
func NewVolatile(inner FS, root string, o VolatileOptions) (*Volatile, error) {
	if o.DirtyBytesMax == 0 {
		o.DirtyBytesMax = DefaultDirtyBytesMax
	}
	v := &Volatile{inner: inner, root: filepath.Clean(root), life: newLife(), max: o.DirtyBytesMax}
	v.mu.root = &volNode{dir: true}
	if o.Seed != 0 {
		v.mu.random = rand.New(rand.NewPCG(o.Seed, 0))
	}
	stage := filepath.Join(v.root, volatileDir)
	if err := inner.RemoveAll(stage); err != nil {
		return nil, fmt.Errorf("remove files without names: %w", err)
	}
	if err := inner.MkdirAll(stage); err != nil {
		return nil, fmt.Errorf("make a place for files without names: %w", err)
	}
	return v, nil
}

// DirtyBytes is how much written data is in memory only.
func (v *Volatile) DirtyBytes() int64 { return v.dirty.Load() }

// inside returns the path below root, false when it lies elsewhere.
func (v *Volatile) inside(name string) (parts []string, ok bool) {
	rel, err := filepath.Rel(v.root, name)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return nil, false
	}
	return split(rel), true
}

// diskPath is where a node is in the file system beneath.
func (v *Volatile) diskPath(n *volNode) string {
	switch {
	case n == v.mu.root:
		return v.root
	case n.diskParent != nil:
		return filepath.Join(v.diskPath(n.diskParent), n.diskName)
	}
	return n.staged
}

// loadLocked reads a directory when it is looked at for the first time.
func (v *Volatile) loadLocked(d *volNode) error {
	if d.loaded {
		return nil
	}
	at := v.diskPath(d)
	names, err := v.inner.List(at)
	if err != nil {
		return err
	}
	d.entries, d.onDisk = map[string]*volNode{}, map[string]*volNode{}
	for _, name := range names {
		if d == v.mu.root && name == volatileDir {
			continue
		}
		info, err := v.inner.Stat(filepath.Join(at, name))
		if err != nil {
			return err
		}
		n := &volNode{dir: info.IsDir(), parent: d, name: name, diskParent: d, diskName: name}
		n.content.found(info)
		d.entries[name], d.onDisk[name] = n, n
	}
	d.loaded = true
	return nil
}

// lookupLocked finds what the running process has under a name.
func (v *Volatile) lookupLocked(op, name string, parts []string) (*volNode, error) {
	n := v.mu.root
	for _, part := range parts {
		if !n.dir {
			return nil, &fs.PathError{Op: op, Path: name, Err: syscall.ENOTDIR}
		}
		if err := v.loadLocked(n); err != nil {
			return nil, err
		}
		if n = n.entries[part]; n == nil {
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
	}
	if n.dir {
		return n, v.loadLocked(n)
	}
	return n, nil
}

// parentLocked finds the directory of a name.
func (v *Volatile) parentLocked(op, name string, parts []string) (d *volNode, base string, err error) {
	if len(parts) == 0 {
		return nil, "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	last := len(parts) - 1
	d, err = v.lookupLocked(op, name, parts[:last])
	if err == nil && !d.dir {
		err = &fs.PathError{Op: op, Path: name, Err: syscall.ENOTDIR}
	}
	return d, parts[last], err
}

// linkLocked gives a node a name for the running process.
func (n *volNode) linkLocked(d *volNode, name string) {
	n.unlinkLocked()
	n.parent, n.name = d, name
	d.entries[name] = n
}

// unlinkLocked takes the name away.
func (n *volNode) unlinkLocked() {
	if n.parent != nil {
		delete(n.parent.entries, n.name)
		n.parent, n.name = nil, ""
	}
}

// settleLocked forgets a file or directory that nobody can reach any more, now or after a crash.
func (v *Volatile) settleLocked(n *volNode) error {
	if n.dir && n.parent == nil && n.diskParent == nil && n.staged != "" {
		return v.dropLocked(n)
	}
	if n.dir || n.parent != nil || n.diskParent != nil || n.users > 0 {
		return nil
	}
	v.dirty.Add(-n.content.drop())
	if n.staged == "" {
		return nil
	}
	staged := n.staged
	n.staged = ""
	return v.inner.Remove(staged)
}

func (v *Volatile) stagePathLocked() string {
	v.mu.staged++
	return filepath.Join(v.root, volatileDir, strconv.FormatUint(v.mu.staged, 10))
}

// Open implements FS.
func (v *Volatile) Open(name string) (File, error) {
	parts, ok := v.inside(name)
	if !ok {
		return v.inner.Open(name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	n, err := v.lookupLocked("open", name, parts)
	if err != nil {
		return nil, err
	}
	if n.dir {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	}
	return v.handleLocked(n, name)
}

// Create implements FS.
func (v *Volatile) Create(name string) (File, error) {
	parts, ok := v.inside(name)
	if !ok {
		return v.inner.Create(name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	d, base, err := v.parentLocked("create", name, parts)
	if err != nil {
		return nil, err
	}
	if n := d.entries[base]; n != nil {
		if n.dir {
			return nil, &fs.PathError{Op: "create", Path: name, Err: syscall.EISDIR}
		}
		v.dirty.Add(n.content.truncate(0))
		return v.handleLocked(n, name)
	}
	n := &volNode{staged: v.stagePathLocked()}
	if n.content.inner, err = v.inner.Create(n.staged); err != nil {
		return nil, err
	}
	n.content.modified = time.Now()
	n.linkLocked(d, base)
	n.users = 1
	return &volFile{v: v, n: n, name: name}, nil
}

// Remove implements FS.
func (v *Volatile) Remove(name string) error {
	parts, ok := v.inside(name)
	if !ok {
		return v.inner.Remove(name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	d, base, err := v.parentLocked("remove", name, parts)
	if err != nil {
		return err
	}
	n := d.entries[base]
	if n == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if n.dir {
		if err := v.loadLocked(n); err != nil {
			return err
		}
	}
	if len(n.entries) > 0 {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	n.unlinkLocked()
	if err := v.settleLocked(n); err != nil {
		return err
	}
	return v.unaskedLocked(d)
}

// RemoveAll implements FS.
func (v *Volatile) RemoveAll(path string) error {
	parts, ok := v.inside(path)
	if !ok {
		return v.inner.RemoveAll(path)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	d, base, err := v.parentLocked("removeall", path, parts)
	if err != nil || d.entries[base] == nil {
		return nil
	}
	return v.removeTreeLocked(d.entries[base])
}

func (v *Volatile) removeTreeLocked(n *volNode) error {
	if n.dir {
		if err := v.loadLocked(n); err != nil {
			return err
		}
		for _, name := range sortedKeys(n.entries) {
			if err := v.removeTreeLocked(n.entries[name]); err != nil {
				return err
			}
		}
	}
	n.unlinkLocked()
	return v.settleLocked(n)
}

// Rename implements FS.
func (v *Volatile) Rename(oldName, newName string) error {
	from, fromInside := v.inside(oldName)
	to, toInside := v.inside(newName)
	if !fromInside && !toInside {
		return v.inner.Rename(oldName, newName)
	}
	if fromInside != toInside {
		return &fs.PathError{Op: "rename", Path: newName, Err: syscall.EXDEV}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	n, err := v.lookupLocked("rename", oldName, from)
	if err != nil {
		return err
	}
	d, base, err := v.parentLocked("rename", newName, to)
	if err != nil {
		return err
	}
	if old := d.entries[base]; old != nil && old != n {
		if err := v.replaceLocked(old, n, newName); err != nil {
			return err
		}
	}
	n.linkLocked(d, base)
	return v.unaskedLocked(d)
}

// replaceLocked takes the name away from old, for n to have it.
func (v *Volatile) replaceLocked(old, n *volNode, name string) error {
	if old.dir {
		if err := v.loadLocked(old); err != nil {
			return err
		}
	}
	if old.dir != n.dir || len(old.entries) > 0 {
		return &fs.PathError{Op: "rename", Path: name, Err: fs.ErrExist}
	}
	old.unlinkLocked()
	return v.settleLocked(old)
}

// List implements FS.
func (v *Volatile) List(dir string) ([]string, error) {
	parts, ok := v.inside(dir)
	if !ok {
		return v.inner.List(dir)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	n, err := v.lookupLocked("list", dir, parts)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, &fs.PathError{Op: "list", Path: dir, Err: syscall.ENOTDIR}
	}
	return sortedKeys(n.entries), nil
}

// Stat implements FS.
func (v *Volatile) Stat(name string) (fs.FileInfo, error) {
	parts, ok := v.inside(name)
	if !ok {
		return v.inner.Stat(name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	n, err := v.lookupLocked("stat", name, parts)
	if err != nil {
		return nil, err
	}
	return n.content.info(filepath.Base(name), n.dir), nil
}

// Free implements FS. What is in memory has its space on the disk already, as far as anybody is told.
func (v *Volatile) Free(dir string) (uint64, error) {
	if _, ok := v.inside(dir); !ok {
		return v.inner.Free(dir)
	}
	free, err := v.inner.Free(v.root)
	return free - min(free, uint64(v.dirty.Load())), err
}

func (v *Volatile) size(dir string) (uint64, error) {
	if _, ok := v.inside(dir); !ok {
		return Size(v.inner, dir)
	}
	return Size(v.inner, v.root)
}

// Lock implements FS. The file of a lock is on the disk at once.
func (v *Volatile) Lock(name string) (io.Closer, error) {
	parts, ok := v.inside(name)
	if !ok {
		return v.inner.Lock(name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	d, base, err := v.parentLocked("lock", name, parts)
	if err != nil {
		return nil, err
	}
	if d.entries[base] == nil && d.onDisk[base] == nil {
		n := &volNode{diskParent: d, diskName: base}
		n.linkLocked(d, base)
		d.onDisk[base] = n
	}
	return v.inner.Lock(filepath.Join(v.diskPath(d), base))
}
