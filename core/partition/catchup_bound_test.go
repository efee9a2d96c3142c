package partition

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"sluice/core/vfs"
)

// newBigScenario has a partition of several segments of some megabytes, and one with a single large segment: many pieces, which newScenario's segments are
// too small for.
func newBigScenario() *scenario {
	s := &scenario{}
	value := strings.Repeat("v", 200<<10)
	for p, size := range []int64{5 << 20, 1 << 30} {
		k := Key{topicID(fmt.Sprint("big", p)), int32(p)}
		s.add(1, EncodeCreate(Create{Key: k, Name: fmt.Sprint("big", p), Config: LogConfig{SegmentBytes: size}}))
		for seq := range int32(40 + 80*p) {
			b := testBatch{producer: 1, sequence: seq, count: 1, time: int64(1000 + seq), value: value}
			s.add(1, EncodeAppend([]Append{{Key: k, Batches: b.build()}}))
		}
	}
	s.applyAll()
	return s
}

// countedConn is the fetcher's end: it counts what comes, and the most that came for one request.
type countedConn struct {
	net.Conn
	total   *atomic.Int64
	most    *atomic.Int64
	request int64
	left    int64 // cut after so many bytes; negative: never
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.request = 0
	return c.Conn.Write(p)
}

func (c *countedConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, errors.New("cable cut")
	}
	if c.left > 0 {
		p = p[:min(int64(len(p)), c.left)]
	}
	n, err := c.Conn.Read(p)
	if c.left > 0 {
		c.left -= int64(n)
	}
	c.total.Add(int64(n))
	if c.request += int64(n); c.request > c.most.Load() {
		c.most.Store(c.request)
	}
	return n, err
}

// TestCatchUpGoesOnAfterAKill kills a replica in the middle of its catch-up, more than once and within a segment, and checks that what was here is not fetched
// again: only the piece that was under way. What is in flight is one piece at any time.
func TestCatchUpGoesOnAfterAKill(t *testing.T) {
	s := newBigScenario()
	srv := newServer(t, s)
	want := srv.outcome()
	var size int64
	for _, data := range want.segments {
		size += int64(len(data))
	}
	var total, most atomic.Int64
	disk := vfs.NewMem()
	const kills = 3
	for i := range kills {
		// It dies when the connection does: a killed process writes nothing any more, and what it has written stays.
		ctx, cancel := context.WithCancel(t.Context())
		left := size/(kills+1) + int64(i)*100_001
		dialled := false
		srv.wrap = func(c net.Conn) net.Conn {
			if dialled {
				cancel()
				return &countedConn{Conn: c, total: &total, most: &most}
			}
			dialled = true
			return &countedConn{Conn: c, total: &total, most: &most, left: left}
		}
		r := newFetcher(t, disk, srv, srv.peer())
		if err := r.set.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if r.set.Complete() {
			t.Fatal("complete before the last life")
		}
		if err := r.set.Close(); err != nil {
			t.Fatal(err)
		}
	}
	srv.wrap = func(c net.Conn) net.Conn { return &countedConn{Conn: c, total: &total, most: &most, left: -1} }
	r := newFetcher(t, disk, srv, srv.peer())
	run(t, r, nil)
	want.compare(t, "caught up after kills", r)
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
	const messages = 64 << 10        // of all requests and answers
	const notCounted = 8<<20 + 1<<20 // of a segment that is appended to meanwhile: what was not synced yet, and the piece under way
	if got := total.Load(); got > size+kills*notCounted+messages {
		t.Errorf("%d bytes came for segments of %d: more than what was under way came twice", got, size)
	}
	if got := most.Load(); got > pieceBytesMax+messageBytesMax {
		t.Errorf("%d bytes came for one request", got)
	}
}

// TestCatchUpBehindWhatRetentionRemoved lets the peer drop segments that the fetcher was told of: they are not waited for once the start entry is applied,
// and everything above is fetched.
func TestCatchUpBehindWhatRetentionRemoved(t *testing.T) {
	s := newBigScenario()
	srv := newServer(t, s)
	r := newFetcher(t, vfs.NewMem(), srv, srv.peer())
	k := Key{topicID("big0"), 0}
	s.add(1, EncodeStart([]Start{{k, 30}}))
	srv.apply(s.log, len(s.log))
	srv.checkpoint() // the removed segments are unlinked with it
	run(t, r, func() { r.apply(s.log, len(s.log)) })
	srv.outcome().compare(t, "caught up", r)
	p, _ := r.set.Get(k)
	if p.Start() != 30 {
		t.Errorf("begins at %d, want 30", p.Start())
	}
	if _, err := p.Read(p.Start(), 1<<20, false); err != nil {
		t.Error(err)
	}
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}
