//go:build !linux

package commitlog

import (
	"io"
	"net"
	"os"
)

// osFile is a file of vfs.OS.
type osFile interface{ OSFile() *os.File }

// sendFile copies: the readers of a segment share its descriptor, whose
// position the system's own sendfile would move.
func sendFile(conn *net.TCPConn, f *os.File, offset, length int64) (int64, error) {
	return io.Copy(conn, io.NewSectionReader(f, offset, length))
}
