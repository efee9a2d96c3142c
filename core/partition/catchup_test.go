package partition

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sluice/core/commitlog"
	"sluice/core/vfs"
)

// server is a replica that serves its segments over pipes.
type server struct {
	*replica
	wrap func(net.Conn) net.Conn
	wg   sync.WaitGroup
}

func (s *server) peer() Peer {
	return Peer{Name: "server", Dial: func(ctx context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		if s.wrap != nil {
			theirs = s.wrap(theirs)
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer ours.Close()
			_ = s.set.ServeSegments(context.Background(), ours)
		}()
		return theirs, nil
	}}
}

// newServer plays the scenario and ends with a checkpoint at its end.
func newServer(t *testing.T, s *scenario) *server {
	t.Helper()
	srv := &server{replica: newReplica(t, vfs.NewMem(), "/data")}
	var answers []string
	if err := s.play(t, srv.replica, &answers); err != nil {
		t.Fatal(err)
	}
	srv.checkpoint()
	t.Cleanup(func() {
		srv.wg.Wait()
		_ = srv.set.Close()
	})
	return srv
}

// newFetcher opens a replica that starts from the server's checkpoint.
func newFetcher(t *testing.T, fs vfs.FS, srv *server, peers ...Peer) *replica {
	r := &replica{tb: t, fs: fs, root: "/data", manifest: srv.manifest, manifestAt: srv.manifestAt}
	r.options = func(o *Options) {
		o.Peers = func() []Peer { return peers }
		o.FetchBytesPerSecond = 1 << 40
	}
	r.open()
	return r
}

// run runs the set until it is complete, while do runs beside it.
func run(t *testing.T, r *replica, do func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- r.set.Run(ctx) }()
	if do != nil {
		do()
	}
	select {
	case <-r.set.Completed():
		cancel()
	case <-ctx.Done():
	case err := <-ended:
		t.Fatalf("Run ended: %v", err)
	}
	if err := <-ended; err != nil || !r.set.Complete() {
		t.Fatalf("Run: %v; %+v", err, r.set.Status())
	}
}

func TestCatchUpFromNothing(t *testing.T) {
	s := newScenario()
	srv := newServer(t, s)
	want := srv.outcome()
	r := newFetcher(t, vfs.NewMem(), srv, srv.peer())
	if r.set.Complete() {
		t.Fatal("complete with an empty disk")
	}
	b, _ := r.set.Get(Key{topicID("b"), 1})
	if _, err := b.Read(b.Start(), 1000, false); !errors.Is(err, ErrMissing) {
		t.Errorf("read of what is missing: %v", err)
	}
	if diff := cmp.Diff(want.sections, r.sections()); diff != "" {
		t.Errorf("state before the data: %s", diff)
	}
	run(t, r, nil)
	want.compare(t, "caught up", r)
	readAll(t, b, false)
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// TestCatchUpWhileApplying: the group goes on, and checkpoints, while segments
// come in.
func TestCatchUpWhileApplying(t *testing.T) {
	s := newScenario()
	srv := newServer(t, s)
	b := Key{topicID("b"), 1}
	s.appends(6, 26, 40, b)
	r := newFetcher(t, vfs.NewMem(), srv, srv.peer())
	r.apply(s.log, r.applied+3)
	r.checkpoint()
	run(t, r, func() {
		for r.applied < len(s.log) {
			r.apply(s.log, r.applied+1)
			r.checkpoint()
		}
	})
	srv.apply(s.log, len(s.log))
	srv.outcome().compare(t, "caught up while applying", r)
	r.restart(nil)
	if !r.set.Complete() {
		t.Errorf("incomplete after a restart: %+v", r.set.Status())
	}
	srv.outcome().compare(t, "after a restart", r)
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// TestCatchUpOfRunningSet: a replica that was too far behind gets a checkpoint
// while it runs, and keeps what matches.
func TestCatchUpOfRunningSet(t *testing.T) {
	s := newScenario()
	srv := newServer(t, s)
	r := &replica{tb: t, fs: vfs.NewMem(), root: "/data"}
	r.options = func(o *Options) { o.Peers = func() []Peer { return []Peer{srv.peer()} } }
	r.open()
	r.apply(s.log, 12)
	a, _ := r.set.Get(Key{topicID("a"), 0})
	b, _ := r.set.Get(Key{topicID("b"), 1})
	gone, grown := a.Waiter(), b.Waiter()
	if err := r.set.Restore(uint64(srv.manifestAt), bytes.NewReader(srv.manifest)); err != nil {
		t.Fatal(err)
	}
	r.applied = srv.manifestAt
	for what, ch := range map[string]<-chan struct{}{"deleted": gone, "grown": grown} {
		select {
		case <-ch:
		default:
			t.Errorf("waiter of the %s partition was not woken", what)
		}
	}
	if _, err := a.Read(0, 100, false); !errors.Is(err, ErrRemoved) {
		t.Errorf("read of a partition that the checkpoint does not name: %v", err)
	}
	run(t, r, nil)
	srv.outcome().compare(t, "caught up", r)
	r.checkpoint()
	checkDirs(t, r)
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// cutConn fails after some bytes were read.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("cable cut")
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func TestCatchUpOverBadConnections(t *testing.T) {
	s := newScenario()
	srv := newServer(t, s)
	cut := 0
	srv.wrap = func(c net.Conn) net.Conn {
		cut += 100
		return &cutConn{Conn: c, left: cut}
	}
	dead := Peer{Name: "dead", Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("nobody there") }}
	empty := &server{replica: newReplica(t, vfs.NewMem(), "/data")}
	r := newFetcher(t, vfs.NewMem(), srv, dead, empty.peer(), srv.peer())
	run(t, r, nil)
	srv.outcome().compare(t, "caught up", r)
	empty.wg.Wait()
	for _, set := range []*Set{r.set, empty.set} {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	}
}

// lyingConn flips a bit of what it carries, once.
type lyingConn struct {
	net.Conn
	after int
}

func (c *lyingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.after > 0 && n >= c.after {
		p[c.after-1] ^= 1
		c.after = 0
	}
	return n, err
}

func TestCatchUpChecksWhatComes(t *testing.T) {
	s := newScenario()
	srv := newServer(t, s)
	first := true
	srv.wrap = func(c net.Conn) net.Conn {
		if !first {
			return c
		}
		first = false
		return &lyingConn{Conn: c, after: 120} // within a piece: messages are shorter
	}
	r := newFetcher(t, vfs.NewMem(), srv, srv.peer())
	run(t, r, nil)
	srv.outcome().compare(t, "caught up", r)
	if n := r.set.metrics.fetchErrors.Get(); n == 0 {
		t.Error("the flipped bit was not noticed")
	}
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// TestCatchUpVerifiesAfterCrash: a crash during catch-up leaves a file of the
// right size and wrong contents, which must not be believed.
func TestCatchUpVerifiesAfterCrash(t *testing.T) {
	s := newScenario()
	srv := newServer(t, s)
	mem := vfs.NewMem()
	r := newFetcher(t, mem, srv, srv.peer())
	run(t, r, nil)
	b, _ := r.set.Get(Key{topicID("b"), 1})
	damaged := b.log.Segments()[0]
	path := b.segmentPath(damaged.Base)
	if err := r.set.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := mem.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, damaged.Bytes/2); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	if r.set.Complete() {
		t.Error("another replica's checkpoint was believed without looking")
	}
	b, _ = r.set.Get(b.Key())
	if _, err := b.Read(b.Start(), 1000, false); !errors.Is(err, ErrMissing) {
		t.Errorf("read of what was not verified: %v", err)
	}
	// A checkpoint taken now must not make the damage trusted.
	r.checkpoint()
	r.restart(nil)
	run(t, r, nil)
	srv.outcome().compare(t, "repaired", r)
	r.checkpoint()
	r.restart(nil)
	if !r.set.Complete() {
		t.Error("own checkpoint is not believed")
	}
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// TestStartOvertakesCatchUp: retention drops what is still missing, at the peers
// too, and the replica is complete without it.
func TestStartOvertakesCatchUp(t *testing.T) {
	s := newScenario()
	srv := newServer(t, s)
	r := newFetcher(t, vfs.NewMem(), srv)
	for p := range r.set.All() {
		s.add(7, EncodeStart([]Start{{p.Key(), -1}}))
	}
	r.apply(s.log, len(s.log))
	if n := r.set.catchUp.segments(); n != 0 {
		t.Errorf("waits for %d segments that are no longer part of the log", n)
	}
	run(t, r, nil)
	r.checkpoint()
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// TestPowerCutDuringCatchUp cuts the power before every change of the disk
// during catch-up and goes on from there.
func TestPowerCutDuringCatchUp(t *testing.T) {
	s := newScenario()
	srv := newServer(t, s)
	want := srv.outcome()
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	r := newFetcher(t, mem, srv, srv.peer())
	if err := r.set.Close(); err != nil {
		t.Fatal(err)
	}
	r.fs = fault
	crashes := watch(fault, mem, r)
	r.open()
	run(t, r, nil)
	r.checkpoint()
	fault.SetHook(nil)
	if err := r.set.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range *crashes {
		again := newFetcher(t, c.fs, srv, srv.peer())
		again.manifest, again.manifestAt = c.manifest, c.manifestAt
		again.restart(nil)
		if !again.set.Complete() {
			run(t, again, nil)
		}
		want.compare(t, c.what, again)
		if err := again.set.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEveryCallFailsDuringCatchUp: the set stops, or comes to the same end.
func TestEveryCallFailsDuringCatchUp(t *testing.T) {
	s := newScenario()
	srv := newServer(t, s)
	want := srv.outcome()
	for n := 1; ; n++ {
		mem := vfs.NewMem()
		fault := vfs.NewFault(mem)
		r := newFetcher(t, fault, srv, srv.peer())
		what := failCall(fault, n)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		ended := make(chan error, 1)
		go func() { ended <- r.set.Run(ctx) }()
		select {
		case <-r.set.Completed():
			cancel()
			if err := <-ended; err != nil {
				t.Fatalf("%s: Run: %v", what(), err)
			}
			fault.SetHook(nil)
			want.compare(t, what(), r)
		case err := <-ended:
			if !errors.Is(err, errInjected) {
				t.Fatalf("%s: Run: %v, %+v", what(), err, r.set.Status())
			}
		}
		cancel()
		_ = r.set.Close()
		if what() == "" {
			t.Logf("%d calls failed", n-1)
			return
		}
	}
}

func TestServeRefuses(t *testing.T) {
	s := newScenario()
	srv := newServer(t, s)
	b, _ := srv.set.Get(Key{topicID("b"), 1})
	seg := b.log.Segments()[0]
	whole := pieceRequest{Topic: b.key.Topic, Index: 1, Base: seg.Base, Bytes: seg.Bytes, Max: pieceBytesMax}
	if piece, err := srv.set.readPiece(&whole); err != nil || piece.Len() != seg.Bytes {
		t.Fatalf("whole segment: %d bytes, %v", piece.Len(), err)
	} else {
		piece.Release()
	}
	for what, change := range map[string]func(*pieceRequest){
		"unknown topic":    func(q *pieceRequest) { q.Topic[0]++ },
		"unknown index":    func(q *pieceRequest) { q.Index++ },
		"unknown segment":  func(q *pieceRequest) { q.Base += 1000 },
		"more than exists": func(q *pieceRequest) { q.From, q.Bytes = seg.Bytes, 1<<40 },
		"negative":         func(q *pieceRequest) { q.From = -1 },
		"behind the end":   func(q *pieceRequest) { q.From = seg.Bytes },
		"nothing":          func(q *pieceRequest) { q.Max = 0 },
		"less than asked":  func(q *pieceRequest) { q.Bytes = seg.Bytes + 1 },
	} {
		q := whole
		change(&q)
		if piece, err := srv.set.readPiece(&q); err == nil {
			t.Errorf("%s: served %d bytes", what, piece.Len())
		}
	}
}

func TestServeAnotherShard(t *testing.T) {
	srv := newServer(t, newScenario())
	conn, err := srv.peer().Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	other := &Set{o: Options{Shard: testShard + 1}}
	if err := other.greet(conn); !errors.Is(err, ErrPeer) {
		t.Errorf("greeted another shard: %v", err)
	}
}

func TestHostileMessages(t *testing.T) {
	for what, sent := range map[string][]byte{
		"too long":  {0xff, 0xff},
		"not CBOR":  {0, 3, 0xff, 0xff, 0xff},
		"cut short": {0, 100, 1},
	} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Write(sent)
			_ = theirs.Close()
		}()
		var h hello
		if err := readMessage(ours, &h); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", what, err)
		}
		_ = ours.Close()
	}
}

func TestThrottleHoldsBack(t *testing.T) {
	rate := int64(1000)
	p := NewThrottle(func() int64 { return rate })
	now := time.Unix(100, 0)
	if wait := p.pass(now, 500); wait > 0 {
		t.Errorf("first turn in %v", wait)
	}
	if wait := p.pass(now, 1); wait != 500*time.Millisecond {
		t.Errorf("second turn in %v", wait)
	}
	rate = 10_000
	if wait := p.pass(now, 1); wait != 50*time.Millisecond {
		t.Errorf("second turn at the new rate in %v", wait)
	}
	later := now.Add(time.Hour)
	if wait := p.pass(later, 1); wait > 0 {
		t.Errorf("an idle hour was not forgotten: %v", wait)
	}
}

func TestManifestIsCheckedBeforeItCounts(t *testing.T) {
	srv := newServer(t, newScenario())
	whole := srv.manifest
	for n := range len(whole) {
		if _, _, err := readManifest(bytes.NewReader(whole[:n]), testShard); !errors.Is(err, ErrCorruptManifest) {
			t.Fatalf("%d of %d bytes: %v", n, len(whole), err)
		}
		flipped := bytes.Clone(whole)
		flipped[n] ^= 0x10
		if _, _, err := readManifest(bytes.NewReader(flipped), testShard); err == nil {
			t.Fatalf("flipped bit in byte %d went unseen", n)
		}
	}
	if _, _, err := readManifest(bytes.NewReader(whole), testShard+1); !errors.Is(err, ErrCorruptManifest) {
		t.Errorf("another shard's manifest: %v", err)
	}
	if _, sections, err := readManifest(bytes.NewReader(whole), testShard); err != nil || len(sections) != 2 {
		t.Errorf("%d sections, %v", len(sections), err)
	}
	before := srv.outcome()
	if err := srv.set.Restore(1, bytes.NewReader(whole[:len(whole)-1])); err == nil {
		t.Error("restored a cut manifest")
	}
	before.compare(t, "after a refused restore", srv.replica)
	if srv.set.Err() != nil {
		t.Errorf("a bad manifest stopped the set: %v", srv.set.Err())
	}
}

func TestNothingLackingIsComplete(t *testing.T) {
	var c catchUp
	c.init(nil, nil)
	select {
	case <-c.completed():
	default:
		t.Error("an empty list is not complete")
	}
	p := &Partition{key: Key{topicID("t"), 1}}
	c.add(incomplete{p: p, missing: []commitlog.SegmentInfo{{Base: 0, Next: 5}, {Base: 5, Next: 9}}})
	done := c.completed()
	c.update(p, func(w *incomplete) { w.missing = without(w.missing, 5) })
	if c.complete() || c.segments() != 1 {
		t.Errorf("%d segments", c.segments())
	}
	c.forget(p)
	<-done
}
