package http

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync"

	"github.com/klauspost/compress/gzip"

	"sluice/edge/ingest"
)

// journalKind is the kind of our notes in the journal: key (16 bytes), number of messages (uvarint).
const journalKind = 'h'

// keysMax bounds the window of Idempotency-Key: about an hour of repeats at three requests with a key a second.
const keysMax = 10_000

// key is the digest of an Idempotency-Key with who sent it and where to.
type key [16]byte

func keyOf(name []byte, client, topic string) key {
	h := sha256.New()
	for _, part := range [][]byte{name, []byte(client), []byte(topic)} {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		h.Write(size[:])
		h.Write(part)
	}
	return key(h.Sum(nil)[:16])
}

func noteOf(k key, n int) []byte {
	return ingest.AppendNote(nil, journalKind, binary.AppendUvarint(k[:], uint64(n)))
}

// request is one that has a key. done is closed when n and err are final.
type request struct {
	done chan struct{}
	n    int
	err  error
}

func (r *request) wait(ctx context.Context) (int, error) {
	select {
	case <-r.done:
		return r.n, r.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// keys remembers the last requests with a key, also over a restart: it is a ledger of the journal.
type keys struct {
	mu    sync.Mutex
	known map[key]*request
	order []key // oldest first, of those that are settled
}

func newKeys() *keys { return &keys{known: map[key]*request{}} }

// claim returns the request that came first with the key, and whether that is the caller's.
func (k *keys) claim(id key) (r *request, mine bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r := k.known[id]; r != nil {
		return r, false
	}
	r = &request{done: make(chan struct{})}
	k.known[id] = r
	return r, true
}

// settle ends a claim. One that failed is forgotten, so that it can be sent again; those who waited for it learn the error. A
// request whose fate is not known (the wait was given up) stays known as failed only until then, too: sent again it may be stored
// twice, which is said in its answer.
func (k *keys) settle(id key, r *request, n int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r.n, r.err = n, err
	close(r.done)
	if err != nil {
		delete(k.known, id)
		return
	}
	k.rememberLocked(id)
}

func (k *keys) rememberLocked(id key) {
	k.order = append(k.order, id)
	if len(k.order) > keysMax {
		delete(k.known, k.order[0])
		k.order = k.order[1:]
	}
}

// Apply implements ingest.Ledger.
func (k *keys) Apply(note []byte) error {
	if len(note) < 17 {
		return errors.New("http note: too short")
	}
	n, size := binary.Uvarint(note[16:])
	if size <= 0 {
		return errors.New("http note: cut off")
	}
	id := key(note[:16])
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.known[id] != nil {
		return nil
	}
	r := &request{done: make(chan struct{}), n: int(n)}
	close(r.done)
	k.known[id] = r
	k.rememberLocked(id)
	return nil
}

// Dump implements ingest.Ledger.
func (k *keys) Dump(put func(note []byte) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range k.order {
		if err := put(binary.AppendUvarint(bytes.Clone(id[:]), uint64(k.known[id].n))); err != nil {
			return err
		}
	}
	return nil
}

func newGzipReader(packed []byte) (*gzip.Reader, error) {
	return gzip.NewReader(bytes.NewReader(packed))
}
