package kafka

import (
	"net"

	"golang.org/x/sys/unix"
)

// limitUnsent makes the kernel take no more than that many bytes of a connection beyond what it may send now. Unlike a bound of the whole send buffer (SO_SNDBUF) it
// leaves alone what is on its way, so a long and fast line is filled as before; who does not read gets no megabytes of the kernel's memory, which all share.
func limitUnsent(c *net.TCPConn, bytes int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	// A kernel that refuses the option (before 3.12) buffers more; nothing else depends on it.
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes) })
}
