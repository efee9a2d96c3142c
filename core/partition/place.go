package partition

import (
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"sluice/core/vfs"
)

// place is the file system of a partition that does not live under its plain name `<topic>-<index>`, because somebody else had it. It is
// given that name when it becomes free, while the partition is in use: the directory is renamed below its log, which goes on using
// the path that it was opened with. No call of the file system is under way meanwhile; open files do not mind.
type place struct {
	vfs.FS
	path string // as the log knows it
	want string // the plain name
	mu   struct {
		sync.RWMutex // held for reading during each call
		now          string
	}
}

func newPlace(fsys vfs.FS, path, want string) *place {
	p := &place{FS: fsys, path: path, want: want}
	p.mu.now = path
	return p
}

// atLocked is where a file really is.
func (p *place) atLocked(name string) string {
	if rest, ok := strings.CutPrefix(name, p.path); ok && (rest == "" || rest[0] == filepath.Separator) {
		return p.mu.now + rest
	}
	return name
}

func (p *place) now() string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.mu.now
}

// move renames the directory.
func (p *place) move(path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.FS.Rename(p.mu.now, path); err != nil {
		return fmt.Errorf("give partition directory its plain name: %w", err)
	}
	p.mu.now = path
	return nil
}

func at[T any](p *place, name string, do func(string) (T, error)) (T, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return do(p.atLocked(name))
}

func (p *place) on(name string, do func(string) error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return do(p.atLocked(name))
}

// Open implements vfs.FS, as do the following.
func (p *place) Open(name string) (vfs.File, error)    { return at(p, name, p.FS.Open) }
func (p *place) Create(name string) (vfs.File, error)  { return at(p, name, p.FS.Create) }
func (p *place) List(dir string) ([]string, error)     { return at(p, dir, p.FS.List) }
func (p *place) Stat(name string) (fs.FileInfo, error) { return at(p, name, p.FS.Stat) }
func (p *place) Free(dir string) (uint64, error)       { return at(p, dir, p.FS.Free) }
func (p *place) Lock(name string) (io.Closer, error)   { return at(p, name, p.FS.Lock) }
func (p *place) Remove(name string) error              { return p.on(name, p.FS.Remove) }
func (p *place) RemoveAll(path string) error           { return p.on(path, p.FS.RemoveAll) }
func (p *place) MkdirAll(dir string) error             { return p.on(dir, p.FS.MkdirAll) }
func (p *place) SyncDir(dir string) error              { return p.on(dir, p.FS.SyncDir) }
func (p *place) Rename(oldName, newName string) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.FS.Rename(p.atLocked(oldName), p.atLocked(newName))
}

// settleAtLocked notes which file system the log of a partition has that was given the directory at a path.
func (d *Dirs) settleAtLocked(c claim, name, path string) {
	delete(d.mu.places, path)
	if plain := preferredDir(c.key, name); filepath.Base(path) != plain {
		d.mu.places[path] = newPlace(d.fs, path, plain)
	}
}

// leaveLocked returns the name of the directory that was claimed at a path, which stays what it is from now on.
func (d *Dirs) leaveLocked(path string) string {
	if p := d.mu.places[path]; p != nil {
		delete(d.mu.places, path)
		path = p.now()
	}
	return filepath.Base(path)
}

// at returns the file system for a path that was claimed, below which a directory may get another name.
func (d *Dirs) at(path string) vfs.FS {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.mu.places[path]; p != nil {
		return p
	}
	return d.fs
}

// where returns the path at which a directory that was claimed lies now.
func (d *Dirs) where(path string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.mu.places[path]; p != nil {
		return p.now()
	}
	return path
}

// GivePlainNames renames the directories of partitions that had to take another name than `<topic>-<index>`, where that name has become
// free: who moved away, or was deleted, has had its own directory set aside. A restart would do the same; what a crash leaves of it is
// one name or the other, and the partition is found under both.
func (d *Dirs) GivePlainNames() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ready []*place
	for _, p := range d.mu.places {
		free, err := d.freeLocked(p.want)
		if err != nil {
			return err
		}
		if free && filepath.Base(p.now()) != p.want {
			ready = append(ready, p)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	if err := d.syncLocked(); err != nil { // see settleLocked: who had the name must be elsewhere for good
		return err
	}
	for _, p := range ready {
		if err := d.giveLocked(p); err != nil {
			return err
		}
	}
	return d.syncLocked()
}

func (d *Dirs) freeLocked(name string) (bool, error) {
	if _, held := d.mu.claimed[name]; held {
		return false, nil
	}
	there, err := d.exists(name)
	return !there, err
}

func (d *Dirs) giveLocked(p *place) error {
	if free, err := d.freeLocked(p.want); err != nil || !free { // another life has just got it
		return err
	}
	from := filepath.Base(p.now())
	d.mu.changed, d.mu.renamed[from], d.mu.renamed[p.want] = true, true, true
	if err := p.move(filepath.Join(d.root, p.want)); err != nil {
		return err
	}
	d.mu.claimed[p.want] = d.mu.claimed[from]
	delete(d.mu.claimed, from)
	return nil
}
