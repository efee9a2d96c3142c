package commitlog

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"sluice/core/vfs"
)

// Chunk is a range of whole batches in a segment file, which stays open until
// Release. It is for one goroutine. The methods of a nil Chunk say that it is
// empty.
type Chunk struct {
	h        *handle
	file     vfs.File
	position int64
	length   int64
	next     int64
	released bool
}

// copyBytes is the unit in which WriteTo copies what it cannot send directly.
const copyBytes = 64 << 10

// Len returns the size in bytes.
func (c *Chunk) Len() int64 {
	if c == nil {
		return 0
	}
	return c.length
}

// Next returns the offset after the last record, where the next read begins;
// -1 for a nil chunk.
func (c *Chunk) Next() int64 {
	if c == nil {
		return -1
	}
	return c.next
}

// Bytes returns a copy of the batches.
func (c *Chunk) Bytes() ([]byte, error) {
	if c == nil {
		return nil, nil
	}
	c.mustHold()
	p := make([]byte, c.length)
	if err := readFull(c.file, p, c.position); err != nil {
		return nil, err
	}
	return p, nil
}

// WriteTo writes the batches to w. From a file of the operating system to a
// *net.TCPConn the kernel copies (sendfile); the connection's write deadline
// holds. After an error n bytes have been written.
func (c *Chunk) WriteTo(w io.Writer) (n int64, err error) {
	if c == nil {
		return 0, nil
	}
	c.mustHold()
	if conn, ok := w.(*net.TCPConn); ok {
		if f, ok := c.file.(osFile); ok {
			return sendFile(conn, f.OSFile(), c.position, c.length)
		}
	}
	return c.copyTo(w)
}

func (c *Chunk) copyTo(w io.Writer) (n int64, err error) {
	buf := c.h.files.buffer()
	defer c.h.files.putBuffer(buf)
	if cap(*buf) < copyBytes {
		*buf = make([]byte, copyBytes)
	}
	for n < c.length {
		p := (*buf)[:min(copyBytes, c.length-n)]
		if err := readFull(c.file, p, c.position+n); err != nil {
			return n, err
		}
		written, err := w.Write(p)
		n += int64(written)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (c *Chunk) mustHold() {
	if c.released {
		panic("BUG: chunk used after its release")
	}
}

// Release lets go of the file. It may be called again.
func (c *Chunk) Release() {
	if c == nil || c.released {
		return
	}
	c.released = true
	c.h.release()
}

func readFull(file vfs.File, p []byte, off int64) error {
	n, err := file.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF || err == nil { //nolint:errorlint // ReaderAt returns it bare
		return fmt.Errorf("%w: %s ends at %d", ErrCorrupt, file.Name(), off+int64(n))
	}
	return unreadable(file, off, err)
}

// unreadable is the error of a read that failed. A sector that the disk cannot read is damage like any other.
func unreadable(file vfs.File, off int64, err error) error {
	if errors.Is(err, syscall.EIO) {
		return fmt.Errorf("%w: read %s at byte %d: %w", ErrCorrupt, file.Name(), off, err)
	}
	return fmt.Errorf("read %s at byte %d: %w", file.Name(), off, err)
}
