package commitlog

import (
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// osFile is a file of vfs.OS.
type osFile interface{ OSFile() *os.File }

// sendBytesMax is what one sendfile call is asked for: so much that the call
// costs nothing, and within an int on 32 bits.
const sendBytesMax = 4 << 20

// sendFile sends a range of f. It names the offset in every call: the readers
// of a segment share its descriptor, and net's own sendfile would move its
// position under them.
func sendFile(conn *net.TCPConn, f *os.File, offset, length int64) (n int64, err error) {
	out, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	in := int(f.Fd())
	var sendErr error
	err = out.Write(func(fd uintptr) (done bool) {
		for n < length {
			at := offset + n
			sent, err := unix.Sendfile(int(fd), in, &at, int(min(length-n, sendBytesMax)))
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return false // called again when the connection takes more
			case err != nil:
				sendErr = fmt.Errorf("sendfile: %w", err)
				return true
			case sent == 0:
				sendErr = fmt.Errorf("%w: %s ends at %d: %w", ErrCorrupt, f.Name(), at, io.ErrUnexpectedEOF)
				return true
			}
			n += int64(sent)
		}
		return true
	})
	if err == nil {
		err = sendErr
	}
	return n, err
}
