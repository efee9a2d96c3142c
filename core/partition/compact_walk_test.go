package partition

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"testing"

	"pgregory.net/rapid"

	"sluice/core/meta"
	"sluice/core/record"
)

// movesPeer serves the move protocol for one replica.
func movesPeer(r *replica) Peer {
	lookup := func(meta.ShardID) (*Set, bool) { return r.set, true }
	return pipePeer(func(conn net.Conn) { _ = ServeMove(context.Background(), conn, lookup, unthrottled()) })
}

// compact has a replica rewrite a partition as its leader would, the other one stage it or not, and adds the entry that swaps.
func (w *walk) compact(leader, other *replica) {
	w.apply(leader, len(w.log.log))
	k := w.keys[rapid.IntRange(0, len(w.keys)-1).Draw(w.t, "compacted")]
	if _, ok := leader.set.Get(k); !ok || !leader.set.Complete() {
		return
	}
	if !leader.set.Listed(k) {
		leader.checkpoint()
	}
	c, err := leader.set.Compact(context.Background(), k, CompactOptions{
		NowMs: int64(rapid.IntRange(0, 2000).Draw(w.t, "now")), DeleteRetentionMs: int64(rapid.IntRange(0, 500).Draw(w.t, "delete retention")),
		Throttle: unthrottled(),
	})
	if err != nil {
		w.t.Fatalf("compact: %v", err)
	}
	defer c.Release()
	if rapid.Bool().Draw(w.t, "staged") {
		w.apply(other, len(w.log.log))
		if !other.set.Listed(k) {
			other.checkpoint()
		}
		ctx, cancel := context.WithCancel(context.Background())
		err := other.set.StageCompacted(ctx, movesPeer(leader), StageRequest{Key: k, Segments: c.Staged(), Throttle: unthrottled()})
		cancel()
		if err != nil {
			w.t.Fatalf("stage: %v", err)
		}
	}
	if rapid.IntRange(0, 4).Draw(w.t, "in time") == 0 {
		w.log.add(w.term, w.entry()) // that may make it come too late
	}
	if rapid.IntRange(0, 9).Draw(w.t, "proposed") > 0 {
		w.log.add(w.term, EncodeSwap(c.Swap))
	}
}

// collect notes the records of a batch by offset. Those of transactions and markers count as they are.
func collect(t *rapid.T, b record.Batch, base int64, into map[int64]string) {
	err := b.Each(func(r record.Record) error {
		into[base+int64(r.OffsetDelta)] = fmt.Sprintf("%q=%q@%d", r.Key, r.Value, b.Timestamp(r))
		return nil
	})
	if err != nil {
		t.Fatalf("records at %d: %v", base, err)
	}
}

// compareKeys checks that nothing is there that was not written, that nothing is gone that was not compacted, and that the last record of each key is there unless it
// is a tombstone.
func (w *walk) compareKeys(m *logModel, p *Partition, got map[int64]string) {
	want, last, keep := make(map[int64]string), make(map[string]int64), make(map[int64]bool)
	for base, data := range m.batches {
		b := record.Batch(bytes.Clone(data))
		collect(w.t, b, base, want)
		_ = b.Each(func(r record.Record) error {
			at := base + int64(r.OffsetDelta)
			switch {
			case b.IsTransactional() || b.IsControl() || at >= p.Dirty():
				keep[at] = true
			case r.Key != nil && r.Value == nil:
				last[string(r.Key)] = max(last[string(r.Key)], at) // may be gone, and hides what is before it
			case r.Key != nil && at >= last[string(r.Key)]:
				last[string(r.Key)] = at
			}
			return nil
		})
	}
	for _, at := range last {
		keep[at] = keep[at] || !isTombstone(m, at)
	}
	for at, r := range got {
		if want[at] != r {
			w.t.Fatalf("%s: record %d is %s, was written as %s", p.dir, at, r, want[at])
		}
	}
	for at := range keep {
		if _, ok := got[at]; keep[at] && !ok && at >= p.Start() {
			w.t.Fatalf("%s: record %d is gone: %s; dirty from %d", p.dir, at, want[at], p.Dirty())
		}
	}
}

// isTombstone tells whether the record at an offset has a key and no value.
func isTombstone(m *logModel, offset int64) (yes bool) {
	for base, data := range m.batches {
		_ = record.Batch(data).Each(func(r record.Record) error {
			if base+int64(r.OffsetDelta) == offset {
				yes = r.Key != nil && r.Value == nil
			}
			return nil
		})
	}
	return yes
}

// TestCompactWalk is TestRandomWalk with two partitions that are there from the beginning, so that more of it is compaction.
func TestCompactWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWalk(t)
		w.keys, w.names = w.keys[:2], w.names[:2]
		for i, k := range w.keys {
			w.log.add(w.term, EncodeCreate(Create{Key: k, Name: w.names[i], Config: LogConfig{SegmentBytes: int64(rapid.IntRange(1, 8).Draw(t, "segment") * 100)}}))
		}
		for range rapid.IntRange(10, 40).Draw(t, "steps") {
			w.step()
		}
		w.finish()
	})
}
