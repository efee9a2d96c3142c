package vfs

import (
	"os"

	"golang.org/x/sys/unix"
)

// fdatasync flushes data and the metadata needed to read it (size), but not
// times: half the journal writes of fsync.
func fdatasync(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var syncErr error
	err = conn.Control(func(fd uintptr) {
		for {
			syncErr = unix.Fdatasync(int(fd))
			if syncErr != unix.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return syncErr
}
