package vfs

import "golang.org/x/sys/unix"

// uncache is posix_fadvise(2). It is advice: an error changes nothing.
func (f osFile) uncache(off, n int64) {
	conn, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) { _ = unix.Fadvise(int(fd), off, n, unix.FADV_DONTNEED) })
}
