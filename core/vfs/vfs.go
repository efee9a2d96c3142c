// Package vfs is the seam between Sluice and the file system: every byte that
// must survive a crash goes through an FS.
//
// OS is the real thing. NewMem gives a file system in memory that can be
// cloned as a crash would leave it, and NewFault wraps any FS so that each
// call can be counted or made to fail. The package guarantees what POSIX
// does, and where POSIX leaves room it promises the least: data and size of a
// file are durable after File.Sync, a name after SyncDir of its directory.
// The one thing it promises beyond that is MkdirAll, whose directories are
// durable when it returns.
//
// It does not retry, cache or buffer anything.
package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
)

// ErrLocked is returned by FS.Lock when somebody else holds the lock.
var ErrLocked = errors.New("file is locked by another process")

// FS is a file system. Names are slash-separated paths as package filepath
// builds them. An FS may be used by several goroutines.
type FS interface {
	// Open opens an existing file for reading and writing. The error wraps
	// fs.ErrNotExist when there is none.
	Open(name string) (File, error)
	// Create opens a new or truncated file for reading and writing. The name
	// is durable after SyncDir.
	Create(name string) (File, error)
	// Remove unlinks a file or an empty directory. Open handles stay usable.
	Remove(name string) error
	// RemoveAll unlinks path and all below it; nothing there is no error.
	RemoveAll(path string) error
	// Rename moves a file or directory, replacing a file of the new name.
	Rename(oldName, newName string) error
	// MkdirAll creates dir and its missing parents, durably.
	MkdirAll(dir string) error
	// List returns the sorted base names in dir.
	List(dir string) ([]string, error)
	// Stat describes a file or directory.
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes all creations, removals and renames in dir durable.
	SyncDir(dir string) error
	// Free returns the bytes that may still be written below dir.
	Free(dir string) (uint64, error)
	// Lock takes an exclusive lock on the file name, creating it. It ends
	// with Close or with the process. ErrLocked when somebody has it.
	Lock(name string) (io.Closer, error)
}

// File is an open file. ReadAt, WriteAt and Sync may be called concurrently.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Size returns the length in bytes.
	Size() (int64, error)
	// Truncate cuts the file, or extends it with zeros.
	Truncate(size int64) error
	// Sync makes data and size durable (fdatasync). After an error the state
	// of everything written since the last Sync is unknown, and calling it
	// again proves nothing: the caller must stop using the file.
	Sync() error
	// Name returns the name the file was opened with.
	Name() string
}

// ReadFile returns the contents of a file.
func ReadFile(fsys FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("size of %s: %w", name, err)
	}
	data := make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if err != nil && !(errors.Is(err, io.EOF) && int64(n) == size) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

// WriteFile replaces the contents of a file: after a crash it has either the
// old contents or the new, and once WriteFile has returned nil the new.
// The temporary file beside it is named name + ".tmp".
func WriteFile(fsys FS, name string, data []byte) error {
	temp := name + ".tmp"
	if err := writeSynced(fsys, temp, data); err != nil {
		return fmt.Errorf("write %s: %w", temp, err)
	}
	if err := fsys.Rename(temp, name); err != nil {
		return fmt.Errorf("rename to %s: %w", name, err)
	}
	return fsys.SyncDir(filepath.Dir(name))
}

func writeSynced(fsys FS, name string, data []byte) error {
	f, err := fsys.Create(name)
	if err != nil {
		return err
	}
	if len(data) > 0 {
		_, err = f.WriteAt(data, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Allocate gives a file its size and, where the file system can, takes the space for it from the disk. What was not written reads as zeros.
func Allocate(f File, size int64) error {
	if a, ok := f.(interface{ allocate(size int64) error }); ok {
		return a.allocate(size)
	}
	return f.Truncate(size)
}
