package partition

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"sluice/core/meta"
	"sluice/core/vfs"
)

// frozenSource is a replica with a partition of some segments that is frozen for move 9.
func frozenSource(t *testing.T) (r *replica, key Key, section []byte) {
	t.Helper()
	var log entries
	key = Key{topicID("t"), 3}
	r = newReplica(t, vfs.NewMem(), "/data")
	log.add(1, EncodeCreate(Create{Key: key, Name: "t", EpochBase: 4, Config: LogConfig{SegmentBytes: 300}}))
	for seq := range int32(9) {
		b := testBatch{producer: 1, sequence: seq, count: 1, time: 1000, value: "some value"}
		log.add(2, EncodeAppend([]Append{{Key: key, Batches: b.build()}}))
	}
	log.add(2, EncodeFreeze(key, 9))
	r.apply(log.log, len(log.log))
	section, err := r.set.Frozen(key, 9)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.set.Close() })
	return r, key, section
}

// stageOf opens the copy of the partition for shard 8 on a file system.
func stageOf(t *testing.T, fs vfs.FS, key Key, peers ...Peer) (*Stage, *Dirs) {
	t.Helper()
	dirs, err := NewDirs(fs, "/data")
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenStage(StageOptions{
		FS: fs, Dirs: dirs, Key: key, Name: "t", Shard: testShard + 1, From: testShard, Move: 9,
		Sources: func() []Peer { return peers }, Throttle: unthrottled(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, dirs
}

func (r *replica) movePeer(wrap func(net.Conn) net.Conn) Peer {
	return pipePeer(func(conn net.Conn) {
		lookup := func(id meta.ShardID) (*Set, bool) { return r.set, id == testShard }
		_ = ServeMove(context.Background(), wrap(conn), lookup, unthrottled())
	})
}

func asIs(c net.Conn) net.Conn { return c }

// run runs the stage until it has come to the section.
func (s *Stage) runUntilSealed(t *testing.T, section []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()
	if err := s.Seal(ctx, section); err != nil {
		t.Fatalf("%v; %+v", err, s.Progress())
	}
	cancel()
	<-ended
}

func adoptFrom(t *testing.T, fs vfs.FS, dirs *Dirs, section []byte) *replica {
	t.Helper()
	set, err := Open(Options{FS: fs, Dirs: dirs, Shard: testShard + 1})
	if err != nil {
		t.Fatal(err)
	}
	var log entries
	log.add(5, EncodeAdopt(Adopt{Move: 9, EpochBase: 100, Section: section}))
	r := &replica{tb: t, fs: fs, root: "/data", set: set}
	if result := r.apply(log.log, 1); result[0] != nil {
		t.Fatalf("adopt: %v", result[0])
	}
	t.Cleanup(func() { _ = set.Close() })
	return r
}

// TestCopyOverBadConnections: a copy goes on where it was, and takes nothing that is not what it should be.
func TestCopyOverBadConnections(t *testing.T) {
	src, key, section := frozenSource(t)
	cut := 0
	bad := src.movePeer(func(c net.Conn) net.Conn {
		cut += 150
		return &cutWriter{Conn: c, left: cut}
	})
	mem := vfs.NewMem()
	s, dirs := stageOf(t, mem, key, bad)
	s.runUntilSealed(t, section)
	target := adoptFrom(t, mem, dirs, section)
	if !target.set.Complete() || !s.Taken() {
		t.Fatalf("a sealed copy is incomplete: %+v", target.set.Status())
	}
	if diff := cmp.Diff(src.segments(), target.segments()); diff != "" {
		t.Fatal(diff)
	}
	p, _ := target.set.Get(key)
	if p.Arrived() != 9 || p.EpochBase() != 100 || p.Frozen() || p.End() != 9 {
		t.Fatalf("arrived by %d with base %d, frozen %v, end %d", p.Arrived(), p.EpochBase(), p.Frozen(), p.End())
	}
}

// cutWriter fails after some bytes were written.
type cutWriter struct {
	net.Conn
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if c.left < len(p) {
		_ = c.Conn.Close()
		return 0, errors.New("cable cut")
	}
	c.left -= len(p)
	return c.Conn.Write(p)
}

// TestCopySurvivesPowerCuts: the power goes at every change of the copy's file system and nothing that was
// not synced survives, or all of it does. What is sealed is there afterwards; the rest is copied again.
func TestCopySurvivesPowerCuts(t *testing.T) {
	src, key, section := frozenSource(t)
	want := src.segments()
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	var clones []*vfs.Mem
	fault.SetAfter(func(op vfs.Op, _ string) error {
		if op != vfs.OpRead && op != vfs.OpOpen {
			clones = append(clones, mem.CrashClone(nil), mem.CrashClone(func() bool { return true }))
		}
		return nil
	})
	s, _ := stageOf(t, fault, key, src.movePeer(asIs))
	s.runUntilSealed(t, section)
	fault.SetAfter(nil)
	s.Close()
	for _, clone := range append(clones, mem.CrashClone(nil)) {
		again, dirs := stageOf(t, clone, key, src.movePeer(asIs))
		again.runUntilSealed(t, section)
		target := adoptFrom(t, clone, dirs, section)
		if diff := cmp.Diff(want, target.segments()); !target.set.Complete() || diff != "" {
			t.Fatalf("complete %v: %s", target.set.Complete(), diff)
		}
	}
	if dirs, err := NewDirs(mem.CrashClone(nil), "/data"); err != nil {
		t.Fatal(err)
	} else if target := adoptFrom(t, dirs.fs, dirs, section); !target.set.Complete() {
		t.Fatal("a sealed copy did not survive the loss of all that was not synced")
	}
}

// TestUnsealedCopyIsFetched: a replica that did not seal its copy adopts what it has and is incomplete.
func TestUnsealedCopyIsFetched(t *testing.T) {
	src, key, section := frozenSource(t)
	mem := vfs.NewMem()
	s, dirs := stageOf(t, mem, key, src.movePeer(asIs))
	if _, err := s.round(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if p := s.Progress(); !p.Known || p.Left != 0 || p.End != 9 || p.Bytes == 0 {
		t.Fatalf("%+v", p)
	}
	target := adoptFrom(t, mem, dirs, section)
	if st := target.set.Status().(Status); st.Complete || st.MissingSegments != 1 {
		t.Fatalf("%+v", st)
	}
	if err := s.Discard(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(target.names(), "t-3\n") {
		t.Fatalf("discarding a copy that was adopted took its directory: %s", target.names())
	}
}

func TestLeftoverCopies(t *testing.T) {
	src, key, _ := frozenSource(t)
	mem := vfs.NewMem()
	s, dirs := stageOf(t, mem, key, src.movePeer(asIs))
	if left, err := dirs.Leftovers(); err != nil || len(left) != 0 {
		t.Fatalf("one that is open is left over: %v %v", left, err)
	}
	s.Close()
	if err := mem.MkdirAll(filepath.Join("/data", "torn-move")); err != nil {
		t.Fatal(err)
	}
	left, err := dirs.Leftovers()
	if err != nil || len(left) != 1 || left[0].Key != key || left[0].Move != 9 || left[0].Shard != testShard+1 {
		t.Fatalf("%+v %v", left, err)
	}
	if err := dirs.RemoveLeftover(left[0]); err != nil {
		t.Fatal(err)
	}
	if names, _ := mem.List("/data"); slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, moveSuffix) }) {
		t.Fatal(names)
	}
}

// TestMoveEntriesComeLate: entries of a move that is over, or that never was, change nothing.
func TestMoveEntriesComeLate(t *testing.T) {
	src, key, section := frozenSource(t)
	var log entries
	log.log = make([]*raft.Log, src.applied)
	log.add(2, EncodeFreeze(key, 8))           // an earlier move
	log.add(2, EncodeUnfreeze(key, 8))         //
	log.add(2, EncodeDrop(key, 8))             //
	log.add(2, EncodeFreeze(key, 9))           // again
	log.add(2, EncodeStart([]Start{{key, 4}})) // while it is frozen
	log.add(2, EncodeAppend([]Append{{Key: key, Batches: testBatch{producer: -1, count: 1}.build()}}))
	log.add(2, EncodeAdopt(Adopt{Move: 9, Section: section}))
	log.add(2, EncodeAdopt(Adopt{Move: 10, Section: section[:len(section)/2]}))
	log.add(2, EncodeDrop(Key{topicID("none"), 0}, 9))
	log.add(2, EncodeUnfreeze(key, 9))
	results := src.apply(log.log, len(log.log))
	want := []error{ErrConflict, nil, nil, nil, ErrFrozen, ErrFrozen, ErrConflict, ErrInvalidEntry, ErrUnknownPartition, nil}
	for i, w := range want {
		var got error
		switch x := results[i].(type) {
		case error:
			got = x
		case []StartResult:
			got = x[0].Err
		case []AppendResult:
			got = x[0].Err
		}
		if !errors.Is(got, w) {
			t.Errorf("entry %d: %v, expected %v", i, got, w)
		}
	}
	if p, ok := src.set.Get(key); !ok || p.Frozen() || p.Start() != 0 || p.End() != 9 || len(src.set.AllFrozen()) != 0 {
		t.Fatal("the partition is not as before")
	}
}

// TestManifestOfMovedPartitions: a manifest without moves is what older releases read; with them it brings
// back who is frozen and who arrived.
func TestManifestOfMovedPartitions(t *testing.T) {
	src, key, section := frozenSource(t)
	src.checkpoint()
	h, sections, err := readManifest(bytes.NewReader(src.manifest), testShard)
	if err != nil || h.Version != 2 || sections[0].frozen != 9 || sections[0].arrived != 0 {
		t.Fatalf("%+v %v", h, err)
	}
	src.restart(nil)
	if again, err := src.set.Frozen(key, 9); err != nil || !bytes.Equal(again, section) {
		t.Fatalf("frozen state after a restart: %v", err)
	}
	var log entries
	log.log = make([]*raft.Log, src.applied)
	log.add(2, EncodeUnfreeze(key, 9))
	src.apply(log.log, len(log.log))
	src.checkpoint()
	if h, _, err := readManifest(bytes.NewReader(src.manifest), testShard); err != nil || h.Version != 1 {
		t.Fatalf("version %d without moves: %v", h.Version, err)
	}
}

// TestClosedCopyIsNotSealed: a node that stops while a seal waits has promised nothing, though it has the copy on disk in part.
func TestClosedCopyIsNotSealed(t *testing.T) {
	_, key, section := frozenSource(t)
	for _, end := range []func(*Stage){(*Stage).Close, func(s *Stage) { _ = s.Discard() }} {
		s, _ := stageOf(t, vfs.NewMem(), key)
		waiting := make(chan error, 1)
		go func() { waiting <- s.Seal(t.Context(), section) }()
		<-s.wake // it is asked for
		end(s)
		if err := <-waiting; !errors.Is(err, errStageClosed) {
			t.Errorf("a seal of a copy that was closed: %v", err)
		}
		if err := s.Seal(t.Context(), section); !errors.Is(err, errStageClosed) {
			t.Errorf("a seal after the close: %v", err)
		}
	}
}
