package partition

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"sluice/core/commitlog"
	"sluice/core/vfs"
)

// eventually waits for what another goroutine does.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
		_ = sleep(t.Context(), time.Millisecond)
	}
}

// running runs a set until the test ends.
func running(t *testing.T, s *Set) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		_ = s.Close()
	})
}

func flipByte(t *testing.T, fsys vfs.FS, name string, at int64, mask byte) {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= mask
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

func scrubberOf(s *Set) *Scrubber {
	return NewScrubber(ScrubOptions{Sets: func() []*Set { return []*Set{s} }, BytesPerSecond: 1 << 40})
}

// longScenario has a partition of several closed segments.
func longScenario() (*scenario, Key) {
	s := newScenario()
	b := Key{topicID("b"), 1}
	s.appends(6, 26, 40, b)
	s.applyAll()
	return s, b
}

// TestFlippedBytesAreRepaired flips bytes of every segment of a running replica, has them found by the scrub or by a read,
// and compares all files with the peer's afterwards.
func TestFlippedBytesAreRepaired(t *testing.T) {
	s, key := longScenario()
	srv := newServer(t, s)
	want := srv.outcome()
	mem := vfs.NewMem()
	r := newFetcher(t, mem, srv, srv.peer())
	running(t, r.set)
	<-r.set.Completed()
	p, _ := r.set.Get(key)
	segments := p.log.Segments()
	if len(segments) < 4 {
		t.Fatal(segments)
	}
	scrubber := scrubberOf(r.set)
	for i, seg := range segments {
		for at := int64(i); at < seg.Bytes; at += 7 {
			flipByte(t, mem, p.segmentPath(seg.Base), at, 1<<(at%8))
			if at%2 == 0 {
				if err := scrubber.Pass(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else if !readsAnError(t, p) {
				t.Fatalf("segment %d byte %d: reads find nothing wrong", seg.Base, at)
			}
			eventually(t, "the repair", r.set.Complete)
			want.compare(t, "repaired", r)
			readAll(t, p, false)
		}
	}
	if n := r.set.metrics.repaired.Get(); n == 0 || n > r.set.metrics.damageSeen.Get() { // a read beside a repair may see the old file
		t.Errorf("%d of %d repaired", r.set.metrics.repaired.Get(), r.set.metrics.damageSeen.Get())
	}
}

// readsAnError reads from every offset and tells whether any read failed.
func readsAnError(t *testing.T, p *Partition) (failed bool) {
	t.Helper()
	for offset := p.Start(); offset < p.End(); offset++ {
		chunk, err := p.Read(offset, 1, false)
		if err != nil && !errors.Is(err, commitlog.ErrCorrupt) {
			t.Fatal(err)
		}
		failed = failed || err != nil
		chunk.Release()
	}
	return failed
}

// TestLostAndShortFilesAreRepaired: files that vanish or shrink under a running replica.
func TestLostAndShortFilesAreRepaired(t *testing.T) {
	s, key := longScenario()
	srv := newServer(t, s)
	want := srv.outcome()
	mem := vfs.NewMem()
	r := newFetcher(t, mem, srv, srv.peer())
	running(t, r.set)
	<-r.set.Completed()
	p, _ := r.set.Get(key)
	segments := p.log.Segments()
	if err := mem.Remove(p.segmentPath(segments[0].Base)); err != nil {
		t.Fatal(err)
	}
	cutFile(t, mem, p.segmentPath(segments[1].Base), segments[1].Bytes/2)
	cutFile(t, mem, p.segmentPath(segments[len(segments)-1].Base), 3)
	if err := scrubberOf(r.set).Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the repair", r.set.Complete)
	want.compare(t, "repaired", r)
	if n := r.set.metrics.repaired.Get(); n != 3 {
		t.Errorf("%d segments repaired", n)
	}
}

func cutFile(t *testing.T, fsys vfs.FS, name string, size int64) {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

// TestDamageWithoutAPeer: with nobody to ask the file stays, what is good of it is read, and the set says so and serves.
func TestDamageWithoutAPeer(t *testing.T) {
	s, key := longScenario()
	srv := newServer(t, s)
	running(t, srv.set)
	p, _ := srv.set.Get(key)
	seg := p.log.Segments()[1]
	flipByte(t, srv.fs, p.segmentPath(seg.Base), seg.Bytes-1, 1)
	if !readsAnError(t, p) {
		t.Fatal("the damage is not seen")
	}
	eventually(t, "the report", func() bool { _, n := srv.set.wounds.count(); return n == 1 })
	if !srv.set.Servable() || !srv.set.Complete() {
		t.Error("a set that nobody can mend does not serve")
	}
	st := srv.set.Status().(Status)
	if len(st.Damaged) != 1 || !st.Damaged[0].Hopeless || !strings.HasSuffix(st.Damaged[0].File, ".log") {
		t.Errorf("%+v", st.Damaged)
	}
	if chunk, err := p.Read(seg.Base, 1, false); err != nil {
		t.Errorf("read of a good batch of the damaged segment: %v", err)
	} else {
		chunk.Release()
	}
	// The file becomes whole again (a cable was loose): the next try sees it.
	flipByte(t, srv.fs, p.segmentPath(seg.Base), seg.Bytes-1, 1)
	readAll(t, p, false)
}

// TestBothDamaged: two replicas lack different segments, and mend each other; the same one is beyond help until a third has
// it.
func TestBothDamaged(t *testing.T) {
	s, key := longScenario()
	srv := newServer(t, s)
	want := srv.outcome()
	mem := vfs.NewMem()
	r := newFetcher(t, mem, srv, srv.peer())
	twin := &server{replica: r}
	srv.set.o.Peers = func() []Peer { return []Peer{twin.peer()} }
	running(t, r.set)
	running(t, srv.set)
	t.Cleanup(twin.wg.Wait)
	<-r.set.Completed()
	ours, _ := r.set.Get(key)
	theirs, _ := srv.set.Get(key)
	segments := ours.log.Segments()
	flipByte(t, mem, ours.segmentPath(segments[0].Base), 20, 1)
	flipByte(t, srv.fs, theirs.segmentPath(segments[1].Base), 20, 1)
	for _, set := range []*Set{r.set, srv.set} {
		if err := scrubberOf(set).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both repairs", func() bool { return r.set.Complete() && srv.set.Complete() })
	want.compare(t, "one", r)
	want.compare(t, "other", srv.replica)
	flipByte(t, mem, ours.segmentPath(segments[2].Base), 30, 1)
	flipByte(t, srv.fs, theirs.segmentPath(segments[2].Base), 90, 1)
	for _, set := range []*Set{r.set, srv.set} {
		if err := scrubberOf(set).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "giving up", func() bool {
		_, a := r.set.wounds.count()
		_, b := srv.set.wounds.count()
		return a == 1 && b == 1
	})
	if !r.set.Servable() || !srv.set.Servable() {
		t.Error("nobody serves")
	}
}

// TestScrubPace: no more bytes a second than asked for, and no file at all with a negative rate.
func TestScrubPace(t *testing.T) {
	srv := newServer(t, newScenario())
	fast := scrubberOf(srv.set)
	if err := fast.Pass(t.Context()); err != nil || fast.Status().Segments == 0 || fast.Status().Passes != 1 {
		t.Fatalf("%v %+v", err, fast.Status())
	}
	slow := NewScrubber(ScrubOptions{Sets: func() []*Set { return []*Set{srv.set} }, BytesPerSecond: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := slow.Pass(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a pass at a byte a second: %v", err)
	}
	off := NewScrubber(ScrubOptions{Sets: func() []*Set { return []*Set{srv.set} }, BytesPerSecond: -1, Interval: time.Nanosecond})
	off.Run(ctx)
	if off.Status().Bytes != 0 {
		t.Error("scrubbed although it is off")
	}
}
