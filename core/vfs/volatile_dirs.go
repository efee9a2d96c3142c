package vfs

import (
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"syscall"
)

// This file moves names from the running process to the disk. On the way the disk has at each moment a state that a sequence of whole
// renames and removals leads to; a rename between two directories is durable when either is synced.

func sortedKeys(m map[string]*volNode) []string { return slices.Sorted(maps.Keys(m)) }

// MkdirAll implements FS.
func (v *Volatile) MkdirAll(dir string) error {
	parts, ok := v.inside(dir)
	if !ok {
		return v.inner.MkdirAll(dir)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	d := v.mu.root
	for _, part := range parts {
		if err := v.loadLocked(d); err != nil {
			return err
		}
		next := d.entries[part]
		if next == nil {
			next = &volNode{dir: true, loaded: true, entries: map[string]*volNode{}, onDisk: map[string]*volNode{}}
			next.linkLocked(d, part)
			if err := v.settleDirLocked(d); err != nil {
				return err
			}
		}
		if !next.dir {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
		d = next
	}
	return nil
}

// mkdir is found by Mkdir.
func (v *Volatile) mkdir(name string) error {
	parts, ok := v.inside(name)
	if !ok {
		return Mkdir(v.inner, name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	d, base, err := v.parentLocked("mkdir", name, parts)
	if err != nil {
		return err
	}
	if there := d.entries[base]; there != nil {
		if !there.dir {
			return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
		}
		return nil
	}
	n := &volNode{dir: true, loaded: true, entries: map[string]*volNode{}, onDisk: map[string]*volNode{}, staged: v.stagePathLocked()}
	if err := Mkdir(v.inner, n.staged); err != nil {
		return err
	}
	n.linkLocked(d, base)
	return v.unaskedLocked(d)
}

// volWhole is the Whole of a Volatile.
type volWhole struct {
	Whole // of the file system beneath
	v     *Volatile
}

// openWhole is found by OpenWhole, where the file system beneath has one.
func (v *Volatile) openWhole(dir string) (Whole, error) {
	w, err := OpenWhole(v.inner, dir)
	if err != nil {
		return nil, err
	}
	return volWhole{w, v}, nil
}

// Sync writes all that was changed, data before names.
func (w volWhole) Sync() error {
	w.v.mu.Lock()
	err := w.v.eachLocked(w.v.mu.root, func(n *volNode) error {
		if n.dir {
			return nil
		}
		w.v.writeBackLocked(n)
		return n.content.trouble()
	})
	if err == nil {
		err = w.v.eachLocked(w.v.mu.root, func(n *volNode) error {
			if !n.dir {
				return nil
			}
			return w.v.settleDirLocked(n)
		})
	}
	w.v.mu.Unlock()
	if err != nil {
		return err
	}
	return w.Whole.Sync()
}

// eachLocked calls fn for everything that has a name and was looked at; the rest has not changed.
func (v *Volatile) eachLocked(n *volNode, fn func(*volNode) error) error {
	if err := fn(n); err != nil {
		return err
	}
	for _, name := range sortedKeys(n.entries) {
		if err := v.eachLocked(n.entries[name], fn); err != nil {
			return err
		}
	}
	return nil
}

// SyncDir implements FS.
func (v *Volatile) SyncDir(dir string) error {
	parts, ok := v.inside(dir)
	if !ok {
		return v.inner.SyncDir(dir)
	}
	at, err := v.settleDir(dir, parts)
	if err != nil {
		return err
	}
	return v.inner.SyncDir(at) // without the lock: a disk takes its time
}

// settleDir returns where the directory is on the disk.
func (v *Volatile) settleDir(dir string, parts []string) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	d, err := v.lookupLocked("syncdir", dir, parts)
	if err != nil {
		return "", err
	}
	if !d.dir {
		return "", &fs.PathError{Op: "syncdir", Path: dir, Err: syscall.ENOTDIR}
	}
	return v.diskPath(d), v.settleDirLocked(d)
}

// settleDirLocked makes the directory on the disk what the running process sees.
func (v *Volatile) settleDirLocked(d *volNode) error {
	for _, name := range sortedKeys(d.entries) {
		if err := v.placeLocked(d.entries[name], nil); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(d.onDisk) {
		n := d.onDisk[name]
		if n == nil || n.parent == d && n.name == name {
			continue
		}
		if err := v.leaveLocked(n); err != nil {
			return err
		}
	}
	return nil
}

// leaveLocked takes a node from a place on the disk that it has no more: to the one it has, or away.
func (v *Volatile) leaveLocked(n *volNode) error {
	if n.parent != nil {
		return v.placeLocked(n, nil)
	}
	return v.dropLocked(n)
}

// placeLocked moves a node on the disk to the name it has for the running process. moving are nodes whose move waits for this one.
func (v *Volatile) placeLocked(n *volNode, moving []*volNode) error {
	d, name := n.parent, n.name
	if n.diskParent == d && n.diskName == name {
		return nil
	}
	old := d.onDisk[name]
	if old != nil {
		if err := v.makeWayLocked(old, n, append(moving, n)); err != nil {
			return err
		}
	}
	to, from := filepath.Join(v.diskPath(d), name), v.diskPath(n)
	var err error
	if from == "" { // a directory that is new
		err = v.inner.MkdirAll(to)
	} else {
		err = v.inner.Rename(from, to)
	}
	if err != nil {
		return err
	}
	v.detachLocked(n)
	n.staged, n.diskParent, n.diskName = "", d, name
	if old != nil && old.diskParent == d && old.diskName == name { // it was renamed over
		old.diskParent = nil
		err = v.settleLocked(old)
	}
	d.onDisk[name] = n
	return err
}

func (v *Volatile) detachLocked(n *volNode) {
	if n.diskParent != nil && n.diskParent.onDisk[n.diskName] == n {
		delete(n.diskParent.onDisk, n.diskName)
	}
	n.diskParent, n.diskName = nil, ""
}

// makeWayLocked has old leave its place for n. A removed file stays until it is renamed over, so that the name is never missing; what lives under
// another name goes there first, or to the stage when the two wait for each other.
func (v *Volatile) makeWayLocked(old, n *volNode, moving []*volNode) error {
	switch {
	case old.parent == nil && !old.dir && !n.dir:
		return nil
	case old.parent == nil:
		return v.dropLocked(old)
	case !slices.Contains(moving, old):
		return v.placeLocked(old, moving)
	}
	stage := v.stagePathLocked()
	if err := v.inner.Rename(v.diskPath(old), stage); err != nil {
		return err
	}
	v.detachLocked(old)
	old.staged = stage
	return nil
}

// dropLocked removes a node from the disk; what is below it and lives under another name goes there first.
func (v *Volatile) dropLocked(n *volNode) error {
	if n.dir {
		if err := v.loadLocked(n); err != nil {
			return err
		}
		for _, name := range sortedKeys(n.onDisk) {
			if child := n.onDisk[name]; child != nil {
				if err := v.leaveLocked(child); err != nil {
					return err
				}
			}
		}
	}
	if err := v.inner.RemoveAll(v.diskPath(n)); err != nil {
		return err
	}
	v.detachLocked(n)
	n.staged = ""
	return v.settleLocked(n)
}

// unaskedLocked makes names durable now and then although nobody asked.
func (v *Volatile) unaskedLocked(d *volNode) error {
	if v.mu.random == nil || v.mu.random.IntN(syncOneIn) > 0 {
		return nil
	}
	return v.settleDirLocked(d)
}
