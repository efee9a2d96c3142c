package vfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// allocate is fallocate(2); file systems that cannot do it get a file with a hole.
func allocate(f *os.File, size int64) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = conn.Control(func(fd uintptr) {
		for {
			callErr = unix.Fallocate(int(fd), 0, 0, size)
			if callErr != unix.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	if errors.Is(callErr, unix.EOPNOTSUPP) {
		return f.Truncate(size)
	}
	if callErr != nil {
		return fmt.Errorf("allocate %s: %w", f.Name(), callErr)
	}
	return nil
}
