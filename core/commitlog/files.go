package commitlog

import (
	"errors"
	"sync"
	"sync/atomic"

	"sluice/core/vfs"
)

const (
	// DefaultFiles is a limit for the logs of a node: half of what a process
	// may have where the operator has set 10,000 or more.
	DefaultFiles = 4096
	// ownFiles is the limit of a log that was given no Files.
	ownFiles = 16
)

// Files keeps files open between uses, for many logs together, and closes the
// least recently used when there are more than its limit. Files in use (being
// appended to this moment, or held by a Chunk) are never closed; should they
// alone exceed the limit, then so does the number of open files.
type Files struct {
	limit   int
	turns   turns
	buffers sync.Pool             // *[]byte, for appends and copies
	whole   atomic.Pointer[whole] // nil: files are synced before they are closed
	mu      struct {
		sync.Mutex
		open int
		idle handle // ring: idle.next is the most recent
	}
}

// NewFiles returns a cache of at most limit idle open files.
func NewFiles(limit int) *Files {
	f := &Files{limit: max(limit, 1), turns: newTurns()}
	f.mu.idle.prev, f.mu.idle.next = &f.mu.idle, &f.mu.idle
	return f
}

// Open returns how many files are open now.
func (f *Files) Open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.open
}

func (f *Files) buffer() *[]byte {
	if buf, ok := f.buffers.Get().(*[]byte); ok {
		return buf
	}
	return new([]byte)
}

func (f *Files) putBuffer(buf *[]byte) {
	if cap(*buf) <= bufferKeptMax {
		f.buffers.Put(buf)
	}
}

// handle is one file, open or not.
//
// Lock order: handle.mu, then Files.mu. A handle is closed by trim under
// handle.mu after it has seen, under Files.mu, that nobody has it pinned. Who
// pins it after that look waits for handle.mu and opens it again; who pinned
// it before is seen.
type handle struct {
	files *Files
	fs    vfs.FS
	mu    sync.Mutex // opening, closing, and:
	path  string
	file  vfs.File
	err   error // of a sync before closing: the file must not be written to again
	dirty bool  // written since the last sync
	blind bool  // closed since then: a sync of the file itself need not tell that writing it failed

	// Guarded by files.mu.
	pins       int
	isOpen     bool
	dropped    bool // close at the last release
	prev, next *handle
}

func (f *Files) handle(fsys vfs.FS, path string) *handle {
	return &handle{files: f, fs: fsys, path: path}
}

// pin keeps the file open, if it is, until release.
func (h *handle) pin() {
	h.files.mu.Lock()
	defer h.files.mu.Unlock()
	h.pins++
	h.unlinkIdle()
}

func (h *handle) unlinkIdle() {
	if h.prev != nil {
		h.prev.next, h.next.prev = h.next, h.prev
		h.prev, h.next = nil, nil
	}
}

// acquire pins the handle and returns its file, opened. The caller releases
// it unless there is an error.
func (h *handle) acquire() (vfs.File, error) {
	h.pin()
	return h.opened(false)
}

// create is acquire of a new or truncated file.
func (h *handle) create() (vfs.File, error) {
	h.pin()
	return h.opened(true)
}

// opened returns the file of a pinned handle; on an error the pin is gone.
func (h *handle) opened(create bool) (vfs.File, error) {
	file, err := h.openLocked(create)
	if err != nil {
		h.release()
		return nil, err
	}
	return file, nil
}

func (h *handle) openLocked(create bool) (file vfs.File, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file != nil {
		return h.file, nil
	}
	if create {
		file, err = h.fs.Create(h.path)
	} else {
		file, err = h.fs.Open(h.path)
	}
	if err != nil {
		return nil, err
	}
	h.file = file
	h.files.mu.Lock()
	h.files.mu.open++
	h.isOpen = true
	h.files.mu.Unlock()
	return file, nil
}

// wrote notes that the file has to be synced before it may be closed. It is
// called before a write, which must not happen when it returns an error.
func (h *handle) wrote() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dirty = true
	return h.err
}

// sync makes the file durable. It does not block acquire.
func (h *handle) sync() error {
	file, err := h.acquire()
	if err != nil {
		return err
	}
	defer h.release()
	blind, err := h.syncing()
	if err != nil {
		return err
	}
	if blind {
		return h.files.whole.Load().sync()
	}
	return file.Sync()
}

// syncing is called before the file is made durable: what is written from here on makes it dirty again. blind tells
// whether that has to be done with the whole file system.
func (h *handle) syncing() (blind bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	blind = h.blind
	h.dirty, h.blind = false, false
	return blind, h.err
}

// release undoes one pin.
func (h *handle) release() {
	f := h.files
	f.mu.Lock()
	h.pins--
	if h.pins < 0 {
		panic("BUG: file released more often than acquired")
	}
	idle := h.pins == 0 && h.isOpen
	if idle && !h.dropped {
		h.prev, h.next = &f.mu.idle, f.mu.idle.next
		h.prev.next, h.next.prev = h, h
	}
	closing := idle && h.dropped
	f.mu.Unlock()
	if closing {
		h.closeIdle(false)
		return
	}
	f.trim()
}

// trim closes idle files until the limit is kept.
func (f *Files) trim() {
	for {
		f.mu.Lock()
		victim := f.mu.idle.prev
		if f.mu.open <= f.limit || victim == &f.mu.idle {
			f.mu.Unlock()
			return
		}
		victim.unlinkIdle()
		f.mu.Unlock()
		victim.closeIdle(true)
	}
}

// closeIdle closes the file unless somebody has pinned it. A file that has
// unsynced writes is synced first: after close the kernel would have nobody
// to tell that they failed. Where the whole file system tells that, it is not.
func (h *handle) closeIdle(sync bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.files.mu.Lock()
	inUse := h.pins > 0 || !h.isOpen
	h.files.mu.Unlock()
	if inUse {
		return
	}
	switch {
	case sync && h.dirty && h.files.whole.Load() != nil:
		h.blind = true
	case sync && h.dirty:
		h.err = h.file.Sync()
		h.dirty = false
	}
	if err := h.file.Close(); sync {
		h.err = errors.Join(h.err, err)
	}
	h.file = nil
	h.files.mu.Lock()
	h.files.mu.open--
	h.isOpen = false
	h.files.mu.Unlock()
}

// drop closes the file for good once nobody uses it; unsynced writes may be
// lost.
func (h *handle) drop() {
	h.files.mu.Lock()
	h.dropped = true
	h.unlinkIdle()
	idle := h.pins == 0 && h.isOpen
	h.files.mu.Unlock()
	if idle {
		h.closeIdle(false)
	}
}

// name is the path under which the file is.
func (h *handle) name() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.path
}

// rename moves the file; whoever has it open keeps it.
func (h *handle) rename(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.fs.Rename(h.path, path); err != nil {
		return err
	}
	h.path = path
	return nil
}
