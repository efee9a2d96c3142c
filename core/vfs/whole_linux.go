package vfs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// btrfsMagic is BTRFS_SUPER_MAGIC as statfs shows it, which does not fit a 32-bit int.
const btrfsMagic = 0x9123683e

// osWhole is syncfs(2).
type osWhole struct{ f *os.File }

// openWhole keeps the directory open, because the kernel tells a descriptor of write errors since it was opened (Linux 5.8), also those in
// files that have been closed and forgotten. It is believed of file systems that are known to write everything to the disk in syncfs
// and to flush the disk's cache; others, FUSE and NFS among them, leave that to their servers.
func (osFS) openWhole(dir string) (Whole, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("ask for the kernel's release: %w", err)
	}
	if release := unix.ByteSliceToString(name.Release[:]); !tellsOfErrors(release) {
		return nil, fmt.Errorf("sync all of the file system of %s on Linux %s: %w", dir, release, errors.ErrUnsupported)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	switch kind := uint32(stat.Type); kind { //nolint:gosec // the type differs between systems; all magics are 32 bits
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, btrfsMagic:
	default:
		return nil, fmt.Errorf("sync all of the file system of %s (type %#x): %w", dir, kind, errors.ErrUnsupported)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return osWhole{f}, nil
}

// tellsOfErrors tells whether syncfs of a kernel does: from 5.8 on.
func tellsOfErrors(release string) bool {
	major, rest, _ := strings.Cut(release, ".")
	minor, _, _ := strings.Cut(rest, ".")
	if end := strings.IndexFunc(minor, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		minor = minor[:end]
	}
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	return errA == nil && errB == nil && (a > 5 || a == 5 && b >= 8)
}

func (w osWhole) Sync() error {
	conn, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	var syncErr error
	err = conn.Control(func(fd uintptr) { syncErr = unix.Syncfs(int(fd)) })
	if err = errors.Join(err, syncErr); err != nil {
		return &os.PathError{Op: "syncfs", Path: w.f.Name(), Err: err}
	}
	return nil
}

func (w osWhole) Close() error { return w.f.Close() }
