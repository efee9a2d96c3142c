package shard

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tune closes the connection when the far end does not acknowledge for userTimeout: without it a
// machine that lost its power is noticed by TCP after a quarter of an hour.
func tune(c net.Conn) {
	tcp, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	// A kernel that refuses the option leaves the deadlines of each request.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
}
