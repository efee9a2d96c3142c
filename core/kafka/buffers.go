package kafka

import (
	"bufio"
	"io"
	"net"
	"sync"
	"time"
)

// decode decodes a frame; large requests without records one at a time.
func (s *Server) decode(f *frame) (*Request, error) {
	if f.key != keyProduce && len(f.rest) > controlExclusiveBytes {
		s.control.Lock()
		defer s.control.Unlock()
	}
	return decode(f.fixedHeader, f.rest)
}

// controlExclusiveBytes is the size from which requests without records are decoded one at a time in the process.
const controlExclusiveBytes = 256 << 10

const (
	// writeBufferBytes joins the head of a response with small payloads into one write.
	writeBufferBytes = 16 << 10
	// copiedPayloadBytes is the size up to which a payload goes through that buffer; larger ones are written to the socket by themselves (sendfile).
	copiedPayloadBytes = 8 << 10
	// keptEncodeBytes is the largest buffer for encoded responses that goes back to the pool.
	keptEncodeBytes = 1 << 20
	// writeStallTimeout and frameBytesPerSecondMin bound how long a slow reader may take for what it asked.
	writeStallTimeout = 60 * time.Second
)

var (
	encodePool = sync.Pool{New: func() any { return new([]byte) }}
	writerPool = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, writeBufferBytes) }}
)

// frameWriter writes frames to a connection: small pieces through a buffer that is held only while a frame is written, large payloads directly.
type frameWriter struct {
	nc   net.Conn
	conn *Conn // whose responses are counted; nil in tests
	bw   *bufio.Writer
}

func newFrameWriter(nc net.Conn, c *Conn) *frameWriter { return &frameWriter{nc: nc, conn: c} }

func (w *frameWriter) free() {
	if w.bw != nil {
		w.bw.Reset(nil)
		writerPool.Put(w.bw)
		w.bw = nil
	}
}

// response encodes and writes one response and returns the bytes sent.
func (w *frameWriter) response(correlationID int32, resp Response) (int64, error) {
	buf := encodePool.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= keptEncodeBytes {
			encodePool.Put(buf)
		}
	}()
	frame, cuts, err := appendResponse((*buf)[:0], correlationID, resp)
	if err != nil {
		return 0, err
	}
	*buf = frame
	resp = nil // a large one's objects need not live until it is written
	if w.conn != nil && len(frame) > meteredResponseBytes {
		defer w.conn.server.responses.begin(w.conn, int64(len(frame)))()
	}
	w.deadline(int64(len(frame)))
	if len(cuts) == 0 {
		n, err := w.nc.Write(frame)
		return int64(n), err
	}
	return w.stream(frame, cuts)
}

// stream writes a response with payloads, and notes how fast it was taken.
func (w *frameWriter) stream(frame []byte, cuts []Cut) (int64, error) {
	began := time.Now()
	w.bw = writerPool.Get().(*bufio.Writer)
	w.bw.Reset(w.nc)
	defer w.free()
	n, err := writeFrame(w, frame, cuts)
	if err != nil {
		return n, err
	}
	if w.conn != nil {
		w.conn.window.answered(n-int64(len(frame)), time.Since(began))
	}
	return n, w.bw.Flush()
}

// Write writes to the buffer.
func (w *frameWriter) Write(b []byte) (int, error) { return w.bw.Write(b) }

// payload writes one payload: a small one into the buffer, a large one to the connection itself, which takes it from the file.
func (w *frameWriter) payload(p Payload) (int64, error) {
	w.deadline(p.Len())
	if p.Len() <= copiedPayloadBytes {
		return p.WriteTo(onlyWriter{w.bw})
	}
	if err := w.bw.Flush(); err != nil {
		return 0, err
	}
	return p.WriteTo(w.nc)
}

// onlyWriter hides that a bufio.Writer can read from a file: it would go round the buffer.
type onlyWriter struct{ io.Writer }

func (w *frameWriter) deadline(bytes int64) {
	w.nc.SetWriteDeadline(time.Now().Add(writeStallTimeout + time.Duration(bytes)*time.Second/frameBytesPerSecondMin))
}
