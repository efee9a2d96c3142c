package partition

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"sluice/core/vfs"
)

// swapHistory drives one replica through three compactions, with appends and checkpoints between them.
type swapHistory struct {
	entries
	t     testing.TB
	r     *replica
	key   Key
	seq   int32
	mu    sync.Mutex
	known int             // entries that Raft has
	wants map[int]outcome // by how many entries were applied
	keep  bool            // wants are collected
	err   error
}

// applyAll applies what is new. The first error of a step ends the history.
func (h *swapHistory) applyAll() {
	if h.err != nil {
		return
	}
	h.mu.Lock()
	h.known = len(h.log)
	h.mu.Unlock()
	for _, result := range h.r.apply(h.log, len(h.log)) {
		if err, ok := result.(error); ok && err != nil {
			h.err = err
			return
		}
	}
	if h.keep {
		h.wants[len(h.log)] = h.r.outcome()
	}
}

func (h *swapHistory) write(n int) {
	for range n {
		b := testBatch{producer: 1, sequence: h.seq, count: 2, time: int64(h.seq), value: fmt.Sprintf("%d.", h.seq), keys: 1 + int(h.seq)%3, deletes: h.seq%5 == 0}
		h.seq += 2
		h.add(1, EncodeAppend([]Append{{Key: h.key, Batches: b.build()}}))
	}
	h.applyAll()
}

func (h *swapHistory) compact(now int64) {
	if h.err != nil {
		return
	}
	c, err := h.r.set.Compact(context.Background(), h.key, CompactOptions{NowMs: now, DeleteRetentionMs: 100, Throttle: unthrottled()})
	if h.err = err; err != nil {
		return
	}
	if len(c.Groups) == 0 {
		h.t.Fatal("nothing was compacted")
	}
	h.add(1, EncodeSwap(c.Swap))
	h.applyAll()
	c.Release()
}

func (h *swapHistory) run() {
	h.add(1, EncodeCreate(Create{Key: h.key, Name: "a", Config: LogConfig{SegmentBytes: 400}}))
	h.write(12)
	h.checkpoint()
	h.write(3)
	h.compact(10)
	h.write(8)
	h.compact(50) // before any checkpoint has seen the first
	h.checkpoint()
	h.write(8)
	h.checkpoint()
	h.compact(500)
	h.add(1, EncodeStart([]Start{{h.key, 20}}))
	h.applyAll()
	h.checkpoint()
	h.write(2)
}

func (h *swapHistory) checkpoint() {
	if h.err == nil {
		h.err = h.r.tryCheckpoint()
	}
}

// TestPowerCutAtEveryChangeOfASwap cuts the power before every call that changes the disk, from the rewriting to the last file that goes, and starts again from
// the entries that Raft had by then. All that the swaps promise is on this disk: nothing may be missing.
func TestPowerCutAtEveryChangeOfASwap(t *testing.T) {
	t.Run("each", func(t *testing.T) { powerCutAtEverySwap(t, nil) })
	t.Run("together", func(t *testing.T) { powerCutAtEverySwap(t, together) })
}

func powerCutAtEverySwap(t *testing.T, options func(*Options)) {
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	h := &swapHistory{t: t, key: Key{topicID("a"), 0}, keep: true, wants: map[int]outcome{}, r: &replica{tb: t, fs: fault, root: "/data", options: options}}
	h.r.open()
	type cut struct {
		crashed
		known int
	}
	var cuts []cut
	rnd := rand.New(rand.NewPCG(3, 4))
	fault.SetHook(func(op vfs.Op, path string) error {
		if !op.Changes() {
			return nil
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, keep := range []func() bool{nil, func() bool { return rnd.IntN(2) == 0 }, func() bool { return true }} {
			what := fmt.Sprintf("crash %d before %s of %s", len(cuts), op, path)
			cuts = append(cuts, cut{crashed{what, mem.CrashClone(keep), h.r.manifest, h.r.manifestAt}, h.known})
		}
		return nil
	})
	h.run()
	fault.SetHook(nil)
	if err := errors.Join(h.err, h.r.set.Close()); err != nil {
		t.Fatal(err)
	}
	if len(cuts) < 200 {
		t.Fatalf("only %d crashes", len(cuts))
	}
	for _, c := range cuts {
		again := &replica{tb: t, fs: c.fs, root: "/data", manifest: c.manifest, manifestAt: c.manifestAt, options: options}
		again.open()
		again.apply(h.log, c.known)
		if !again.set.Complete() {
			t.Fatalf("%s: incomplete: %+v", c.what, again.set.Status())
		}
		if want, ok := h.wants[c.known]; ok {
			want.compare(t, c.what, again)
		}
		again.checkpoint()
		if p, ok := again.set.Get(h.key); ok {
			readAll(t, p, false)
			again.onlySegments(p)
		}
		if err := again.set.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// onlySegments checks that a partition's directory holds no segment that the log does not have, under no name but the last one. What was staged for a swap
// that has not come stays.
func (r *replica) onlySegments(p *Partition) {
	r.tb.Helper()
	names, err := r.fs.List(p.dir)
	if err != nil {
		r.tb.Fatalf("list: %v", err)
	}
	for _, name := range names {
		if base, suffix, ok := splitSegmentName(name); ok && suffix == logSuffix && !contains(p.log.Segments(), base) {
			r.tb.Fatalf("%s is left of %+v", name, p.log.Segments())
		}
	}
	for _, seg := range p.log.Segments() {
		if name := fmt.Sprintf("%s/%020d.log", p.dir, seg.Base); p.segmentPath(seg.Base) != name {
			r.tb.Fatalf("segment %d is called %s after a checkpoint", seg.Base, p.segmentPath(seg.Base))
		}
	}
}

// TestEveryCallFailsInASwap lets one call after the other fail, from the first rewriting on. What was proposed holds after a start from what is on the disk.
func TestEveryCallFailsInASwap(t *testing.T) {
	clean := &swapHistory{t: t, key: Key{topicID("a"), 0}, keep: true, wants: map[int]outcome{}, r: newReplica(t, vfs.NewMem(), "/data")}
	clean.run()
	if err := errors.Join(clean.err, clean.r.set.Close()); err != nil {
		t.Fatal(err)
	}
	for n := 1; ; n++ {
		mem := vfs.NewMem()
		fault := vfs.NewFault(mem)
		h := &swapHistory{t: t, key: clean.key, r: newReplica(t, fault, "/data")}
		what := failCall(fault, n)
		h.run()
		fault.SetHook(nil)
		_ = h.r.set.Close()
		if what() == "" {
			break
		}
		if h.err != nil && !errors.Is(h.err, errInjected) && !errors.Is(h.err, ErrStopped) {
			t.Fatalf("%s: %v", what(), h.err)
		}
		again := &replica{tb: t, fs: mem.CrashClone(nil), root: "/data", manifest: h.r.manifest, manifestAt: h.r.manifestAt}
		again.open()
		again.apply(h.log, h.known)
		if !again.set.Complete() {
			t.Fatalf("%s: incomplete: %+v", what(), again.set.Status())
		}
		if want, ok := clean.wants[h.known]; ok {
			want.compare(t, what(), again)
		}
		if err := again.set.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
