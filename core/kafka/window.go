package kafka

import (
	"sync/atomic"
	"time"
)

const (
	// windowMin is the first window of a connection: a consumer's usual max.partition.fetch.bytes.
	windowMin = 1 << 20
	// windowMax is beyond what any answer holds: there the window bounds nothing.
	windowMax = 64 << 20
	// An answer that filled its window and was taken within windowGrowWithin doubles it; one that took longer than windowShrinkBeyond halves it. So a reader of
	// any speed gets about what it reads in one to four seconds, of which a round trip is a small part.
	windowGrowWithin   = time.Second
	windowShrinkBeyond = 4 * time.Second
)

// window is how many bytes of records one answer of a connection shall hold. What goes out has been read from the disk and compared with its checksums before
// its first byte is sent; without a window a client that asks for all and reads nothing makes the node do that for 55 MiB. Zero is a new connection's.
type window struct{ bytes atomic.Int64 }

// size is the window in bytes.
func (w *window) size() int64 { return max(w.bytes.Load(), windowMin) }

// answered notes that an answer with that many bytes of records has been written, and how long that took.
func (w *window) answered(bytes int64, took time.Duration) {
	size := w.size()
	switch {
	case took > windowShrinkBeyond:
		w.bytes.Store(max(size/2, windowMin))
	case took <= windowGrowWithin && bytes > size/2:
		w.bytes.Store(min(2*size, windowMax))
	}
}

// AnswerBytes is how many bytes of records the next answer on this connection shall hold at most, but for one batch: few until the client is seen to read what it
// asked for, then what it reads in some seconds. It is meant for a Reply, which is called when all answers before it are written.
func (c *Conn) AnswerBytes() int64 { return c.window.size() }
