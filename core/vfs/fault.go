package vfs

import (
	"errors"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"syscall"
)

// Op names a call of FS or File, for the hook of a Fault.
type Op uint8

// The calls a Fault sees.
const (
	OpOpen Op = iota
	OpCreate
	OpRemove
	OpRemoveAll
	OpRename
	OpMkdirAll
	OpList
	OpStat
	OpSyncDir
	OpFree
	OpLock
	OpRead
	OpWrite
	OpSize
	OpTruncate
	OpSync
	OpClose
	opCount
)

var opNames = [opCount]string{
	"open", "create", "remove", "removeall", "rename", "mkdirall", "list", "stat", "syncdir",
	"free", "lock", "read", "write", "size", "truncate", "sync", "close",
}

func (o Op) String() string { return opNames[o] }

// Changes says whether the call may change what is on the disk.
func (o Op) Changes() bool {
	switch o {
	case OpCreate, OpRemove, OpRemoveAll, OpRename, OpMkdirAll, OpSyncDir, OpWrite, OpTruncate, OpSync:
		return true
	}
	return false
}

// TornError, returned by a hook for OpWrite, makes the write fail after its
// first N bytes have been written, as a full disk does.
type TornError struct {
	N   int
	Err error
}

func (e *TornError) Error() string { return e.Err.Error() }
func (e *TornError) Unwrap() error { return e.Err }

// Hook is asked before each call. A non-nil error is returned to the caller
// and the call is not made (but see TornError). A Rename is reported with the
// new name. The hook may be called by several goroutines and may block.
type Hook func(op Op, path string) error

// Fault is an FS whose calls can be watched and made to fail: by a hook, which
// decides call by call, or by rules.
type Fault struct {
	inner FS
	mu    struct {
		sync.Mutex
		hook  Hook
		after Hook
		rules *Rules
	}
	calls [opCount]atomic.Int64
	bytes [opCount]atomic.Int64
	free  atomic.Int64 // -1: ask inner
}

// NewFault wraps inner; without a hook it only counts.
func NewFault(inner FS) *Fault {
	f := &Fault{inner: inner}
	f.free.Store(-1)
	return f
}

// SetHook replaces the hook; nil removes it.
func (f *Fault) SetHook(h Hook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.hook = h
}

// SetAfter replaces the hook that is asked after every call that has made something durable: OpSync, OpSyncDir, OpMkdirAll. Its
// error is returned to the caller though the call was made, as by a machine that lost its power before the answer came.
func (f *Fault) SetAfter(h Hook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.after = h
}

// SetRules replaces the rules; nil is a healthy disk. A call that a rule
// delays goes on with the rules it began with.
func (f *Fault) SetRules(r *Rules) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.rules = r
}

// SetFree makes Free answer n; a negative n asks the file system beneath.
func (f *Fault) SetFree(n int64) { f.free.Store(n) }

// Calls returns how often op has been called, refused calls included.
func (f *Fault) Calls(op Op) int64 { return f.calls[op].Load() }

// Bytes returns how many bytes OpRead or OpWrite have moved.
func (f *Fault) Bytes(op Op) int64 { return f.bytes[op].Load() }

// ResetCounts sets all counts to zero.
func (f *Fault) ResetCounts() {
	for i := range f.calls {
		f.calls[i].Store(0)
		f.bytes[i].Store(0)
	}
}

// always is for calls that need space whatever is on the disk.
func always() bool { return true }

// before counts a call and asks hook and rules. skip: answer success and do
// nothing. grows says whether the call needs space on the disk.
func (f *Fault) before(op Op, path string, grows func() bool) (skip bool, err error) {
	f.calls[op].Add(1)
	f.mu.Lock()
	hook, rules := f.mu.hook, f.mu.rules
	f.mu.Unlock()
	if hook != nil {
		if err := hook(op, path); err != nil {
			return false, err
		}
	}
	out := rules.apply(op, path, grows)
	return out.lie, out.err
}

// synced asks the hook for what comes after a sync.
func (f *Fault) synced(op Op, path string, err error) error {
	if err != nil {
		return err
	}
	f.mu.Lock()
	after := f.mu.after
	f.mu.Unlock()
	if after == nil {
		return nil
	}
	return after(op, path)
}

// check is before for calls that cannot be skipped.
func (f *Fault) check(op Op, path string) error {
	_, err := f.before(op, path, always)
	return err
}

func (f *Fault) file(op Op, name string, open func(string) (File, error)) (File, error) {
	if err := f.check(op, name); err != nil {
		return nil, err
	}
	inner, err := open(name)
	if err != nil {
		return nil, err
	}
	return &faultFile{File: inner, fault: f}, nil
}

// Open implements FS.
func (f *Fault) Open(name string) (File, error) { return f.file(OpOpen, name, f.inner.Open) }

// Create implements FS.
func (f *Fault) Create(name string) (File, error) { return f.file(OpCreate, name, f.inner.Create) }

// Remove implements FS.
func (f *Fault) Remove(name string) error {
	if err := f.check(OpRemove, name); err != nil {
		return err
	}
	return f.inner.Remove(name)
}

// RemoveAll implements FS.
func (f *Fault) RemoveAll(path string) error {
	if err := f.check(OpRemoveAll, path); err != nil {
		return err
	}
	return f.inner.RemoveAll(path)
}

// Rename implements FS.
func (f *Fault) Rename(oldName, newName string) error {
	if err := f.check(OpRename, newName); err != nil {
		return err
	}
	return f.inner.Rename(oldName, newName)
}

// MkdirAll implements FS.
func (f *Fault) MkdirAll(dir string) error {
	if _, err := f.before(OpMkdirAll, dir, func() bool { return f.missing(dir) }); err != nil {
		return err
	}
	return f.synced(OpMkdirAll, dir, f.inner.MkdirAll(dir))
}

// mkdir is found by Mkdir. It counts as OpMkdirAll.
func (f *Fault) mkdir(dir string) error {
	if _, err := f.before(OpMkdirAll, dir, func() bool { return f.missing(dir) }); err != nil {
		return err
	}
	return Mkdir(f.inner, dir)
}

// faultWhole counts as OpSync of the directory that it was opened with.
type faultWhole struct {
	Whole
	fault *Fault
	dir   string
}

func (f *Fault) openWhole(dir string) (Whole, error) {
	w, err := OpenWhole(f.inner, dir)
	if err != nil {
		return nil, err
	}
	return &faultWhole{Whole: w, fault: f, dir: dir}, nil
}

func (w *faultWhole) Sync() error {
	if skip, err := w.fault.before(OpSync, w.dir, always); skip || err != nil {
		return err
	}
	return w.fault.synced(OpSync, w.dir, w.Whole.Sync())
}

// List implements FS.
func (f *Fault) List(dir string) ([]string, error) {
	if err := f.check(OpList, dir); err != nil {
		return nil, err
	}
	return f.inner.List(dir)
}

// Stat implements FS.
func (f *Fault) Stat(name string) (fs.FileInfo, error) {
	if err := f.check(OpStat, name); err != nil {
		return nil, err
	}
	return f.inner.Stat(name)
}

func (f *Fault) missing(name string) bool {
	_, err := f.inner.Stat(name)
	return err != nil
}

// SyncDir implements FS.
func (f *Fault) SyncDir(dir string) error {
	if skip, err := f.before(OpSyncDir, dir, always); skip || err != nil {
		return err
	}
	return f.synced(OpSyncDir, dir, f.inner.SyncDir(dir))
}

// Free implements FS.
func (f *Fault) Free(dir string) (uint64, error) {
	if err := f.check(OpFree, dir); errors.Is(err, syscall.ENOSPC) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	if n := f.free.Load(); n >= 0 {
		return uint64(n), nil
	}
	return f.inner.Free(dir)
}

// Lock implements FS.
func (f *Fault) Lock(name string) (io.Closer, error) {
	if err := f.check(OpLock, name); err != nil {
		return nil, err
	}
	return f.inner.Lock(name)
}

type faultFile struct {
	File
	fault *Fault
}

func (f *faultFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fault.check(OpRead, f.Name()); err != nil {
		return 0, err
	}
	n, err := f.File.ReadAt(p, off)
	f.fault.bytes[OpRead].Add(int64(n))
	return n, err
}

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	_, err := f.fault.before(OpWrite, f.Name(), func() bool { return f.shorter(off + int64(len(p))) })
	var torn *TornError
	if errors.As(err, &torn) {
		n, _ := f.File.WriteAt(p[:min(torn.N, len(p))], off)
		return n, err
	}
	if err != nil {
		return 0, err
	}
	n, err := f.File.WriteAt(p, off)
	f.fault.bytes[OpWrite].Add(int64(n))
	return n, err
}

func (f *faultFile) Size() (int64, error) {
	if err := f.fault.check(OpSize, f.Name()); err != nil {
		return 0, err
	}
	return f.File.Size()
}

func (f *faultFile) Truncate(size int64) error {
	if _, err := f.fault.before(OpTruncate, f.Name(), func() bool { return f.shorter(size) }); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// allocate is found by Allocate. It counts as a truncation.
func (f *faultFile) allocate(size int64) error {
	if _, err := f.fault.before(OpTruncate, f.Name(), func() bool { return f.shorter(size) }); err != nil {
		return err
	}
	return Allocate(f.File, size)
}

// shorter says whether the file ends before size.
func (f *faultFile) shorter(size int64) bool {
	now, err := f.File.Size()
	return err != nil || now < size
}

func (f *faultFile) Sync() error {
	if skip, err := f.fault.before(OpSync, f.Name(), always); skip || err != nil {
		return err
	}
	return f.fault.synced(OpSync, f.Name(), f.File.Sync())
}

// Close closes the file beneath in any case: a failed close frees its
// descriptor on every system we run on.
func (f *faultFile) Close() error {
	err := f.fault.check(OpClose, f.Name())
	return errors.Join(err, f.File.Close())
}
