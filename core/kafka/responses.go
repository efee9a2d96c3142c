package kafka

import (
	"sync"
	"time"
)

const (
	// meteredResponseBytes is the size from which an encoded response counts while it is written; payloads never do, as they stay in their files.
	meteredResponseBytes = 64 << 10
	// responseBytesMax of them may be held by clients that do not read. It is kept by closing whose response has been waiting longest.
	responseBytesMax = 128 << 20
	// responseGrace is how long a client has to read a large response, however short memory is.
	responseGrace = time.Second
)

// responses are the large encoded responses that are being written. Their clients may be as slow as they like while there is memory.
type responses struct {
	mu struct {
		sync.Mutex
		bytes   int64
		writing []*writing // oldest first
	}
}

type writing struct {
	conn  *Conn
	bytes int64
	since time.Time
}

// begin counts a response until the returned function is called, and closes connections of slow readers when there is too much.
func (r *responses) begin(c *Conn, bytes int64) (end func()) {
	w := &writing{conn: c, bytes: bytes, since: time.Now()}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.writing = append(r.mu.writing, w)
	r.mu.bytes += bytes
	r.evictLocked(w.since)
	return func() { r.end(w) }
}

// evictLocked closes connections until what the others hold is within the bound. Their memory comes back when their writes have failed.
func (r *responses) evictLocked(now time.Time) {
	left := r.mu.bytes
	for _, w := range r.mu.writing {
		if left <= responseBytesMax || now.Sub(w.since) < responseGrace {
			return
		}
		left -= w.bytes
		if !w.conn.evicted.Swap(true) {
			w.conn.nc.Close()
		}
	}
}

func (r *responses) end(w *writing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.bytes -= w.bytes
	for i, other := range r.mu.writing {
		if other == w {
			r.mu.writing = append(r.mu.writing[:i], r.mu.writing[i+1:]...)
			return
		}
	}
}
