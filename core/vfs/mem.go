package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"
)

// memPage is the unit in which a crash tears a write that was not synced.
const memPage = 4096

// Mem is a file system in memory that remembers which of its changes would
// survive a crash, for tests. The zero value is not usable; see NewMem.
type Mem struct {
	life string
	mu   struct {
		sync.Mutex
		root   *memNode
		seq    uint64                // orders the changes that are not durable yet
		dirty  map[*memNode]struct{} // files with such changes
		dirOps []memDirOp            // changes of names, oldest first
		locks  map[string]struct{}
		free   uint64
	}
}

// memNode is a file or a directory, as an inode: names point to it.
type memNode struct {
	dir      bool
	entries  map[string]*memNode // as the running system sees the directory
	durable  map[string]*memNode // as a crash would leave it
	data     []byte              // the file as the running system sees it
	synced   []byte              // as of the last Sync
	pending  []memWrite          // since then
	modified time.Time
}

// memWrite is a write or, when truncate is set, a change of size to off.
type memWrite struct {
	seq      uint64
	off      int64
	data     []byte
	truncate bool
}

// memDirOp sets one name, removes one, or both (a rename), atomically.
type memDirOp struct {
	seq    uint64
	setIn  *memNode
	set    string
	node   *memNode
	dropIn *memNode
	drop   string
}

// NewMem returns an empty file system. Its root and the current directory
// are the same, and exist.
func NewMem() *Mem {
	m := &Mem{life: newLife()}
	m.mu.root = newMemDir()
	m.mu.dirty = map[*memNode]struct{}{}
	m.mu.locks = map[string]struct{}{}
	m.mu.free = math.MaxInt64
	return m
}

func newMemDir() *memNode {
	return &memNode{dir: true, entries: map[string]*memNode{}, durable: map[string]*memNode{}, modified: time.Now()}
}

// SetFree sets what Free answers.
func (m *Mem) SetFree(n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.free = n
}

// CrashClone returns the file system as a crash now could leave it, for a new
// start from there; m itself goes on unharmed. All that was synced is there.
// For every change that was not, in the order they were made, keep says
// whether it survived; nil keeps none. A write is asked for once for each
// page of 4096 bytes it touches, so that it may be torn, and what is missing
// before a page that survived reads as zeros. Locks are free in the clone.
func (m *Mem) CrashClone(keep func() bool) *Mem {
	if keep == nil {
		keep = func() bool { return false }
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clone := NewMem()
	clone.mu.free = m.mu.free
	c := &memCloner{nodes: map[*memNode]*memNode{}}
	for _, op := range m.pendingLocked() {
		op(c, keep)
	}
	clone.mu.root = c.node(m.mu.root)
	c.finish()
	return clone
}

// pendingLocked returns what is not durable yet, oldest first.
func (m *Mem) pendingLocked() []func(*memCloner, func() bool) {
	type change struct {
		seq uint64
		do  func(*memCloner, func() bool)
	}
	var changes []change
	for node := range m.mu.dirty {
		for _, w := range node.pending {
			changes = append(changes, change{w.seq, func(c *memCloner, keep func() bool) { c.write(node, w, keep) }})
		}
	}
	for _, op := range m.mu.dirOps {
		changes = append(changes, change{op.seq, func(c *memCloner, keep func() bool) {
			if keep() {
				c.rename(op)
			}
		}})
	}
	slices.SortFunc(changes, func(a, b change) int { return int(int64(a.seq) - int64(b.seq)) })
	ordered := make([]func(*memCloner, func() bool), len(changes))
	for i, c := range changes {
		ordered[i] = c.do
	}
	return ordered
}

// memCloner copies the nodes it is asked for, once each.
type memCloner struct{ nodes map[*memNode]*memNode }

func (c *memCloner) node(n *memNode) *memNode {
	if n == nil {
		return nil
	}
	if copied, ok := c.nodes[n]; ok {
		return copied
	}
	copied := &memNode{dir: n.dir, modified: n.modified, data: slices.Clone(n.synced)}
	c.nodes[n] = copied
	if n.dir {
		copied.durable = map[string]*memNode{}
		for name, child := range n.durable {
			copied.durable[name] = c.node(child)
		}
	}
	return copied
}

func (c *memCloner) write(n *memNode, w memWrite, keep func() bool) {
	copied := c.node(n)
	if w.truncate {
		if keep() {
			copied.data = resized(copied.data, w.off)
		}
		return
	}
	for start := int64(0); start < int64(len(w.data)); {
		end := min(int64(len(w.data)), (w.off+start)/memPage*memPage+memPage-w.off)
		if keep() {
			copied.data = written(copied.data, w.data[start:end], w.off+start)
		}
		start = end
	}
}

func (c *memCloner) rename(op memDirOp) {
	if op.setIn != nil {
		c.node(op.setIn).durable[op.set] = c.node(op.node)
	}
	if op.dropIn != nil {
		delete(c.node(op.dropIn).durable, op.drop)
	}
}

// finish makes what was copied the running state of the clone.
func (c *memCloner) finish() {
	for _, n := range c.nodes {
		n.synced = slices.Clone(n.data)
		if n.dir {
			n.entries = map[string]*memNode{}
			for name, child := range n.durable {
				n.entries[name] = child
			}
		}
	}
}

func resized(data []byte, size int64) []byte {
	if size <= int64(len(data)) {
		return data[:size]
	}
	return append(data, make([]byte, size-int64(len(data)))...)
}

func written(data, p []byte, off int64) []byte {
	if end := off + int64(len(p)); end > int64(len(data)) {
		data = resized(data, end)
	}
	copy(data[off:], p)
	return data
}

func split(name string) []string {
	name = strings.Trim(filepath.ToSlash(filepath.Clean(name)), "/")
	if name == "." || name == "" {
		return nil
	}
	return strings.Split(name, "/")
}

func (m *Mem) lookupLocked(op, name string) (*memNode, error) {
	node := m.mu.root
	for _, part := range split(name) {
		next := node.entries[part]
		if next == nil {
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
		node = next
	}
	return node, nil
}

func (m *Mem) parentLocked(op, name string) (*memNode, string, error) {
	if len(split(name)) == 0 {
		return nil, "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	dir, err := m.lookupLocked(op, filepath.Dir(filepath.Clean(name)))
	if err != nil {
		return nil, "", err
	}
	if !dir.dir {
		return nil, "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return dir, filepath.Base(name), nil
}

func (m *Mem) nextLocked() uint64 {
	m.mu.seq++
	return m.mu.seq
}

func (m *Mem) dirOpLocked(op memDirOp) {
	op.seq = m.nextLocked()
	if op.setIn != nil {
		op.setIn.entries[op.set] = op.node
	}
	if op.dropIn != nil {
		delete(op.dropIn.entries, op.drop)
	}
	m.mu.dirOps = append(m.mu.dirOps, op)
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.lookupLocked("open", name)
	if err != nil {
		return nil, err
	}
	if node.dir {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return &memFile{m: m, node: node, name: name}, nil
}

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parentLocked("create", name)
	if err != nil {
		return nil, err
	}
	node := dir.entries[base]
	switch {
	case node == nil:
		node = &memNode{modified: time.Now()}
		m.dirOpLocked(memDirOp{setIn: dir, set: base, node: node})
	case node.dir:
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	default:
		m.writeLocked(node, memWrite{truncate: true})
	}
	return &memFile{m: m, node: node, name: name}, nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.lookupLocked("remove", name)
	if err != nil {
		return err
	}
	dir, base, err := m.parentLocked("remove", name)
	if err != nil {
		return err
	}
	if node.dir && len(node.entries) > 0 {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrExist}
	}
	m.dirOpLocked(memDirOp{dropIn: dir, drop: base})
	return nil
}

// RemoveAll implements FS.
func (m *Mem) RemoveAll(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parentLocked("removeall", path)
	if err != nil || dir.entries[base] == nil {
		return nil
	}
	m.dropAllLocked(dir, base)
	return nil
}

func (m *Mem) dropAllLocked(dir *memNode, base string) {
	node := dir.entries[base]
	for _, name := range sortedNames(node.entries) {
		m.dropAllLocked(node, name)
	}
	m.dirOpLocked(memDirOp{dropIn: dir, drop: base})
}

// Rename implements FS.
func (m *Mem) Rename(oldName, newName string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.lookupLocked("rename", oldName)
	if err != nil {
		return err
	}
	from, oldBase, err := m.parentLocked("rename", oldName)
	if err != nil {
		return err
	}
	to, newBase, err := m.parentLocked("rename", newName)
	if err != nil {
		return err
	}
	if from == to && oldBase == newBase {
		return nil
	}
	if old := to.entries[newBase]; old != nil && (old.dir != node.dir || len(old.entries) > 0) {
		return &fs.PathError{Op: "rename", Path: newName, Err: fs.ErrExist}
	}
	m.dirOpLocked(memDirOp{setIn: to, set: newBase, node: node, dropIn: from, drop: oldBase})
	return nil
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	node := m.mu.root
	for _, part := range split(dir) {
		next := node.entries[part]
		if next == nil {
			m.syncDirLocked(node) // as OS does, and so that no older change of this name comes after it
			next = newMemDir()
			node.entries[part] = next
			node.durable[part] = next
		}
		if !next.dir {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: fs.ErrExist}
		}
		node = next
	}
	return nil
}

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.lookupLocked("list", dir)
	if err != nil {
		return nil, err
	}
	if !node.dir {
		return nil, &fs.PathError{Op: "list", Path: dir, Err: fs.ErrInvalid}
	}
	return sortedNames(node.entries), nil
}

func sortedNames(entries map[string]*memNode) []string {
	names := make([]string, 0, len(entries))
	for name := range entries {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Stat implements FS.
func (m *Mem) Stat(name string) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.lookupLocked("stat", name)
	if err != nil {
		return nil, err
	}
	return memInfo{name: filepath.Base(name), size: int64(len(node.data)), dir: node.dir, modified: node.modified}, nil
}

// SyncDir implements FS. A rename between two directories is durable when
// either is synced.
func (m *Mem) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.lookupLocked("syncdir", dir)
	if err != nil {
		return err
	}
	m.syncDirLocked(node)
	return nil
}

func (m *Mem) syncDirLocked(node *memNode) {
	rest := m.mu.dirOps[:0]
	for _, op := range m.mu.dirOps {
		if op.setIn != node && op.dropIn != node {
			rest = append(rest, op)
			continue
		}
		op.settle()
	}
	clear(m.mu.dirOps[len(rest):])
	m.mu.dirOps = rest
}

// settle makes the change durable.
func (op memDirOp) settle() {
	if op.setIn != nil {
		op.setIn.durable[op.set] = op.node
	}
	if op.dropIn != nil {
		delete(op.dropIn.durable, op.drop)
	}
}

// Free implements FS.
func (m *Mem) Free(string) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.free, nil
}

// Lock implements FS.
func (m *Mem) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = filepath.Clean(name)
	if _, held := m.mu.locks[name]; held {
		return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	m.mu.locks[name] = struct{}{}
	return &memLock{m: m, name: name}, nil
}

type memLock struct {
	m    *Mem
	name string
	once sync.Once
}

func (l *memLock) Close() error {
	l.once.Do(func() {
		l.m.mu.Lock()
		defer l.m.mu.Unlock()
		delete(l.m.mu.locks, l.name)
	})
	return nil
}

func (m *Mem) writeLocked(n *memNode, w memWrite) {
	w.seq = m.nextLocked()
	n.modified = time.Now()
	if w.truncate {
		n.data = resized(n.data, w.off)
	} else {
		n.data = written(n.data, w.data, w.off)
	}
	n.pending = append(n.pending, w)
	m.mu.dirty[n] = struct{}{}
}

func (m *Mem) syncLocked(n *memNode) {
	for _, w := range n.pending {
		if w.truncate {
			n.synced = resized(n.synced, w.off)
		} else {
			n.synced = written(n.synced, w.data, w.off)
		}
	}
	clear(n.pending)
	n.pending = n.pending[:0]
	delete(m.mu.dirty, n)
}

type memInfo struct {
	name     string
	size     int64
	dir      bool
	modified time.Time
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) ModTime() time.Time { return i.modified }
func (i memInfo) IsDir() bool        { return i.dir }
func (i memInfo) Sys() any           { return nil }
func (i memInfo) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | dirPerm
	}
	return filePerm
}
