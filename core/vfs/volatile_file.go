package vfs

import (
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// volPage is the unit in which data is kept and written back. 4096 bytes, as a disk tears writes.
const volPage = memPage

// volRunMax bounds the memory for one write of neighbouring pages.
const volRunMax = 1 << 20

// volContent is the data of a file: what the file beneath has, up to valid, under the pages in memory.
type volContent struct {
	sync.RWMutex
	inner     File // open while the node has users
	size      int64
	innerSize int64
	valid     int64 // bytes of inner that still count; beyond it a file reads as zeros where no page is
	allocated bool  // space was asked for, not only length
	pages     map[int64][]byte
	modified  time.Time
	failed    error // of a write that nobody waited for; the next Sync says so
}

// found sets what the disk said about the file.
func (c *volContent) found(info fs.FileInfo) {
	c.size, c.innerSize, c.valid, c.modified = info.Size(), info.Size(), info.Size(), info.ModTime()
}

func (c *volContent) info(name string, dir bool) fs.FileInfo {
	c.RLock()
	defer c.RUnlock()
	return memInfo{name: name, size: c.size, dir: dir, modified: c.modified}
}

// drop forgets all pages and returns their size.
func (c *volContent) drop() int64 {
	c.Lock()
	defer c.Unlock()
	n := int64(len(c.pages)) * volPage
	c.pages = nil
	return n
}

// page returns a page in memory for writing. fresh says that it was made; whole that all of it will be overwritten.
func (c *volContent) page(i int64, whole bool) (p []byte, fresh bool, err error) {
	if p = c.pages[i]; p != nil {
		return p, false, nil
	}
	p = make([]byte, volPage)
	if n := min(c.valid-i*volPage, volPage); n > 0 && !whole {
		if err := readAll(c.inner, p[:n], i*volPage); err != nil {
			return nil, false, err
		}
	}
	if c.pages == nil {
		c.pages = make(map[int64][]byte)
	}
	c.pages[i] = p
	return p, true, nil
}

func readAll(f File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// write returns by how much the pages in memory have grown.
func (c *volContent) write(p []byte, off int64) (grown int64, err error) {
	c.Lock()
	defer c.Unlock()
	for done := 0; done < len(p); {
		at := off + int64(done)
		in := int(at % volPage)
		n := min(volPage-in, len(p)-done)
		page, fresh, err := c.page(at/volPage, n == volPage)
		if err != nil {
			return grown, err
		}
		if fresh {
			grown += volPage
		}
		copy(page[in:], p[done:done+n])
		done += n
		c.size = max(c.size, at+int64(n))
	}
	c.modified = time.Now()
	return grown, nil
}

// truncate returns by how much the pages in memory have grown, which is never more than 0.
func (c *volContent) truncate(size int64) (grown int64) {
	c.Lock()
	defer c.Unlock()
	for i, p := range c.pages {
		if i*volPage >= size {
			delete(c.pages, i)
			grown -= volPage
		} else if in := size - i*volPage; in < volPage {
			clear(p[in:])
		}
	}
	c.size, c.valid, c.modified = size, min(c.valid, size), time.Now()
	return grown
}

func (c *volContent) read(p []byte, off int64) (int, error) {
	c.RLock()
	defer c.RUnlock()
	if off >= c.size {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), c.size-off))
	for done := 0; done < want; {
		n, err := c.readRun(p[done:want], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// readRun reads the rest of one page in memory, or up to the next one.
func (c *volContent) readRun(p []byte, off int64) (int, error) {
	if page := c.pages[off/volPage]; page != nil {
		return copy(p, page[off%volPage:]), nil
	}
	end := off/volPage*volPage + volPage
	for len(c.pages) > 0 && end < off+int64(len(p)) && c.pages[end/volPage] == nil {
		end += volPage
	}
	if len(c.pages) > 0 {
		p = p[:min(int64(len(p)), end-off)]
	}
	valid := int(max(0, min(int64(len(p)), c.valid-off)))
	clear(p[valid:])
	if valid == 0 {
		return len(p), nil
	}
	return len(p), readAll(c.inner, p[:valid], off)
}

// flush writes the given pages, in order, and returns by how much the pages in memory have grown: never more than 0. The caller holds the lock.
func (c *volContent) flush(list []int64) (grown int64, err error) {
	if c.innerSize > c.valid {
		if err := c.inner.Truncate(c.valid); err != nil {
			return 0, err
		}
		c.innerSize = c.valid
	}
	var run []byte
	for at := 0; at < len(list); {
		first := list[at]
		run = run[:0]
		for ; at < len(list) && list[at] == first+int64(len(run)/volPage) && len(run) < volRunMax; at++ {
			run = append(run, c.pages[list[at]]...)
		}
		start := first * volPage
		end := min(start+int64(len(run)), c.size)
		if _, err := c.inner.WriteAt(run[:end-start], start); err != nil {
			return grown, err
		}
		for i := first; i*volPage < end; i++ {
			delete(c.pages, i)
			grown -= volPage
		}
		c.innerSize = max(c.innerSize, end)
		c.valid = c.innerSize
	}
	return grown, nil
}

// flushAll writes everything, length included.
func (c *volContent) flushAll() (grown int64, err error) {
	c.Lock()
	defer c.Unlock()
	if err := c.failed; err != nil {
		return 0, err
	}
	grown, err = c.flush(slices.Sorted(maps.Keys(c.pages)))
	if err != nil || c.innerSize == c.size {
		return grown, err
	}
	if c.allocated {
		err = Allocate(c.inner, c.size)
	} else {
		err = c.inner.Truncate(c.size)
	}
	if err == nil {
		c.innerSize, c.valid = c.size, c.size
	}
	return grown, err
}

// handleLocked is a new handle of a file.
func (v *Volatile) handleLocked(n *volNode, name string) (File, error) {
	if err := v.useLocked(n); err != nil {
		return nil, err
	}
	return &volFile{v: v, n: n, name: name}, nil
}

// useLocked opens the file beneath for as long as somebody uses it.
func (v *Volatile) useLocked(n *volNode) (err error) {
	if n.users == 0 {
		inner, err := v.inner.Open(v.diskPath(n))
		if err != nil {
			return err
		}
		n.content.opened(inner)
	}
	n.users++
	return nil
}

func (c *volContent) opened(inner File) {
	c.Lock()
	defer c.Unlock()
	c.inner = inner
}

// beneath is the open file beneath.
func (c *volContent) beneath() File {
	c.RLock()
	defer c.RUnlock()
	return c.inner
}

func (v *Volatile) releaseLocked(n *volNode) error {
	n.users--
	if n.users > 0 {
		return nil
	}
	err := n.content.beneath().Close()
	if e := v.settleLocked(n); err == nil {
		err = e
	}
	return err
}

// account notes how much a file's pages have grown, and writes back what is too much or what chance says.
func (v *Volatile) account(n *volNode, grown int64) {
	total := v.dirty.Add(grown)
	v.mu.Lock()
	defer v.mu.Unlock()
	if grown > 0 && !n.queued {
		n.queued = true
		v.mu.waiting = append(v.mu.waiting, n)
	}
	if v.mu.random != nil && v.mu.random.IntN(writebackOneIn) == 0 {
		v.writePageLocked(n)
	}
	for total > v.max && len(v.mu.waiting) > 0 {
		oldest := v.mu.waiting[0]
		v.mu.waiting[0] = nil
		v.mu.waiting = v.mu.waiting[1:]
		oldest.queued = false
		v.writeBackLocked(oldest)
		total = v.dirty.Load()
	}
}

// reserve refuses what the disk will have no place for when it is synced: a write answers for that, not the sync.
func (v *Volatile) reserve(c *volContent, off int64, n int) error {
	c.RLock()
	grows := off+int64(n) > c.size
	c.RUnlock()
	if !grows || v.room.Add(-int64(n)) >= 0 {
		return nil
	}
	free, err := v.Free(v.root)
	if err != nil {
		return err
	}
	if free < uint64(n)+volPage {
		return syscall.ENOSPC
	}
	v.room.Store(int64(min(free-uint64(n)-volPage, volRunMax)))
	return nil
}

// writeBackLocked writes a whole file.
func (v *Volatile) writeBackLocked(n *volNode) {
	if n.content.clean() || n.parent == nil && n.diskParent == nil && n.users == 0 { // as a file is that is gone
		return
	}
	if err := v.useLocked(n); err != nil {
		n.content.fail(err)
		return
	}
	grown, err := n.content.flushAll()
	v.dirty.Add(grown)
	n.content.fail(err)
	n.content.fail(v.releaseLocked(n))
}

// writePageLocked writes one page of a file that is open.
func (v *Volatile) writePageLocked(n *volNode) {
	c := &n.content
	c.Lock()
	defer c.Unlock()
	if len(c.pages) == 0 || n.users == 0 {
		return
	}
	pages := slices.Sorted(maps.Keys(c.pages))
	grown, err := c.flush([]int64{pages[v.mu.random.IntN(len(pages))]})
	v.dirty.Add(grown)
	if c.failed == nil {
		c.failed = err
	}
}

func (c *volContent) clean() bool {
	c.RLock()
	defer c.RUnlock()
	return len(c.pages) == 0 && c.size == c.innerSize && c.valid == c.innerSize
}

// trouble is what a write that nobody waited for came to.
func (c *volContent) trouble() error {
	c.RLock()
	defer c.RUnlock()
	return c.failed
}

func (c *volContent) fail(err error) {
	c.Lock()
	defer c.Unlock()
	if c.failed == nil {
		c.failed = err
	}
}

// volFile is an open handle of a file of Volatile. It has no OSFile: what the kernel has of the file is not what was written.
type volFile struct {
	v      *Volatile
	n      *volNode
	name   string
	closed atomic.Bool
}

func (f *volFile) check(op string) error {
	if f.closed.Load() {
		return &fs.PathError{Op: op, Path: f.name, Err: fs.ErrClosed}
	}
	return nil
}

func (f *volFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.check("read"); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, &fs.PathError{Op: "read", Path: f.name, Err: fs.ErrInvalid}
	}
	return f.n.content.read(p, off)
}

func (f *volFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.check("write"); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, &fs.PathError{Op: "write", Path: f.name, Err: fs.ErrInvalid}
	}
	if err := f.v.reserve(&f.n.content, off, len(p)); err != nil {
		return 0, &fs.PathError{Op: "write", Path: f.name, Err: err}
	}
	grown, err := f.n.content.write(p, off)
	f.v.account(f.n, grown)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *volFile) Size() (int64, error) {
	c := &f.n.content
	c.RLock()
	defer c.RUnlock()
	return c.size, f.check("size")
}

func (f *volFile) Truncate(size int64) error {
	if err := f.check("truncate"); err != nil {
		return err
	}
	if size < 0 {
		return &fs.PathError{Op: "truncate", Path: f.name, Err: fs.ErrInvalid}
	}
	f.v.dirty.Add(f.n.content.truncate(size))
	return nil
}

// allocate is found by Allocate. The space is taken when the file is synced.
func (f *volFile) allocate(size int64) error {
	c := &f.n.content
	c.Lock()
	c.allocated = true
	grow := size > c.size
	c.Unlock()
	if !grow {
		return f.check("allocate")
	}
	return f.Truncate(size)
}

func (f *volFile) Sync() error {
	if err := f.check("sync"); err != nil {
		return err
	}
	grown, err := f.n.content.flushAll()
	f.v.dirty.Add(grown)
	if err != nil {
		return err
	}
	return f.n.content.beneath().Sync()
}

func (f *volFile) Close() error {
	if f.closed.Swap(true) {
		return &fs.PathError{Op: "close", Path: f.name, Err: fs.ErrClosed}
	}
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	return f.v.releaseLocked(f.n)
}

func (f *volFile) Name() string { return f.name }
