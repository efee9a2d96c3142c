package vfs

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// Space returns the size of the operating system's file system that holds dir, and how much
// of it may still be written, in bytes. It is for reports; decisions use FS.Free.
func Space(dir string) (total, free uint64, err error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	block := uint64(stat.Bsize) //nolint:unconvert // the types differ between systems
	return uint64(stat.Blocks) * block, uint64(stat.Bavail) * block, nil
}

// Size returns the size in bytes of the file system that holds dir. Of an FS that does not know it, that is what is free.
func Size(fsys FS, dir string) (uint64, error) {
	if s, ok := fsys.(interface {
		size(dir string) (uint64, error)
	}); ok {
		return s.size(dir)
	}
	return fsys.Free(dir)
}

func (osFS) size(dir string) (uint64, error) {
	total, _, err := Space(dir)
	return total, err
}

func (f *Fault) size(dir string) (uint64, error) { return Size(f.inner, dir) }
