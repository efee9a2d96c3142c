package raftlog

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"sluice/core/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustOpen(t *testing.T, fs vfs.FS, o Options) *Store {
	t.Helper()
	s, err := Open(fs, "log", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// filled returns a closed log of several files, some of them dropped, with a vote.
func filled(t *testing.T) (disk *vfs.Mem, m *model, last position) {
	t.Helper()
	disk, m = vfs.NewMem(), newModel()
	s := mustOpen(t, disk, small)
	must(t, s.SetUint64([]byte(keyCurrentTerm), 3))
	must(t, s.SetUint64([]byte(keyVoteTerm), 3))
	must(t, s.Set([]byte(keyVoteCand), []byte("2.x")))
	m.term, m.voteTerm, m.candidate = 3, 3, "2.x"
	for i := range 40 {
		logs := entries(uint64(2*i+1), 3, 100+i, 300)
		must(t, s.StoreLogs(logs))
		m.store(logs)
	}
	must(t, s.DeleteRange(1, 20))
	m.deleteRange(1, 20)
	must(t, s.DeleteRange(75, 80))
	m.deleteRange(75, 80)
	logs := entries(75, 4, 10, 10)
	last = s.write.pos
	must(t, s.StoreLogs(logs))
	m.store(logs)
	must(t, s.Close())
	return disk, m, last
}

func TestOneSyncPerCall(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	s := mustOpen(t, fault, Options{FirstSegmentBytes: 16 << 10})
	must(t, s.prepare())
	fault.ResetCounts()
	for i := range 25 { // crosses into the prepared file
		must(t, s.StoreLogs(entries(uint64(10*i+1), 1, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100)))
		if n := fault.Calls(vfs.OpSync); n != int64(i+1) {
			t.Fatalf("%d syncs after %d calls", n, i+1)
		}
	}
	if len(s.mu.segments) != 2 {
		t.Fatalf("%d files, want the prepared one to be used", len(s.mu.segments))
	}
	if n := fault.Calls(vfs.OpSyncDir); n != 0 {
		t.Fatalf("%d directory syncs, the prepared file needs none", n)
	}
}

func TestStableStore(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	s := mustOpen(t, fault, small)
	if v, err := s.Get([]byte(keyVoteCand)); v != nil || err != nil {
		t.Fatalf("candidate of an empty log: %q, %v", v, err)
	}
	must(t, s.SetUint64([]byte(keyCurrentTerm), 7))
	fault.ResetCounts()
	must(t, s.SetUint64([]byte(keyCurrentTerm), 7))
	must(t, s.SetUint64([]byte(keyVoteTerm), 7))
	if n := fault.Calls(vfs.OpWrite); n != 0 {
		t.Errorf("%d writes for an unchanged term and half a vote", n)
	}
	if v, _ := s.GetUint64([]byte(keyVoteTerm)); v != 0 {
		t.Errorf("half a vote is visible: %d", v)
	}
	must(t, s.Set([]byte(keyVoteCand), []byte("1.a")))
	if n := fault.Calls(vfs.OpSync); n != 1 {
		t.Errorf("%d syncs for a vote", n)
	}
	if err := s.Set([]byte("other"), nil); !errors.Is(err, errUnknownKey) {
		t.Errorf("another key: %v", err)
	}
}

// TestDamage flips single bits all over a log. What had been synced is never lost silently: the log
// is refused, or reads exactly as it was.
func TestDamage(t *testing.T) {
	disk, m, last := filled(t)
	names, err := disk.List("log")
	must(t, err)
	rng := rand.New(rand.NewPCG(5, 5))
	refused := 0
	for _, name := range names {
		path := "log/" + name
		data, err := vfs.ReadFile(disk, path)
		must(t, err)
		for range 150 {
			at := rng.IntN(len(data))
			bad := bytes.Clone(data)
			bad[at] ^= 1 << rng.IntN(8)
			copyOf := disk.CrashClone(nil)
			must(t, vfs.WriteFile(copyOf, path, bad))
			s, err := Open(copyOf, "log", small)
			if err != nil {
				if !errors.Is(err, ErrDamaged) && !strings.Contains(err.Error(), "version") {
					t.Fatalf("%s byte %d: %v", name, at, err)
				}
				refused++
				continue
			}
			d := m.diff(s)
			s.Close()
			// A bad record of the last group cannot be told from one that was being written when
			// the power went.
			if d != "" && (path != "log/"+fileName(last.segment.life) || int64(at) < last.off) {
				t.Fatalf("%s byte %d of %d: %s", name, at, len(data), d)
			}
		}
	}
	if refused == 0 {
		t.Fatal("no damage was found")
	}
}

func TestMissingFileIsDamage(t *testing.T) {
	disk, _, _ := filled(t)
	names, err := disk.List("log")
	must(t, err)
	if len(names) < 3 {
		t.Fatalf("only %d files", len(names))
	}
	for i, name := range names[:len(names)-1] {
		c := disk.CrashClone(nil)
		must(t, c.Remove("log/"+name))
		if _, err := Open(c, "log", small); !errors.Is(err, ErrDamaged) {
			t.Errorf("without file %d of %d: %v", i+1, len(names), err)
		}
	}
}

func TestNewerVersionIsRefused(t *testing.T) {
	disk := vfs.NewMem()
	mustOpen(t, disk, small).Close()
	data, err := vfs.ReadFile(disk, "log/"+fileName(1))
	must(t, err)
	h := fileHeader{life: 1, firstSeq: 1}.encode()
	h[8] = formatVersion + 1
	putUint32(h[60:], crc32.Checksum(h[:60], castagnoli))
	copy(data, h)
	must(t, vfs.WriteFile(disk, "log/"+fileName(1), data))
	if _, err := Open(disk, "log", small); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Fatalf("got %v", err)
	}
}

// TestEveryCallFails lets each call of the file system fail in turn. The first error is latched,
// nothing is written after it, and the log opens again with all that was acknowledged.
func TestEveryCallFails(t *testing.T) {
	broken := errors.New("input/output error")
	for n := 0; ; n++ {
		disk := vfs.NewMem()
		fault := vfs.NewFault(disk)
		left, after := n, 0
		fault.SetHook(func(op vfs.Op, _ string) error {
			if left == 0 && op != vfs.OpClose {
				left--
				return broken
			}
			if left < 0 && (op == vfs.OpWrite || op == vfs.OpSync) {
				after++
			}
			if left > 0 {
				left--
			}
			return nil
		})
		m, failed := scenario(t, fault, broken)
		if after > 0 && failed {
			t.Fatalf("call %d failed and %d writes followed", n, after)
		}
		s, err := Open(disk, "log", small)
		if err != nil {
			t.Fatalf("after call %d failed: %v", n, err)
		}
		checkAcknowledged(t, s, m)
		must(t, s.Close())
		if left > 0 {
			return
		}
	}
}

// scenario uses a log until something fails and returns what was acknowledged.
func scenario(t *testing.T, fs vfs.FS, broken error) (*model, bool) {
	m := newModel()
	s, err := Open(fs, "log", small)
	if err != nil {
		return m, true
	}
	defer s.Close()
	for i := range 12 {
		logs := entries(m.last+1, 1, 700, 30)
		if err = s.StoreLogs(logs); err != nil {
			break
		}
		m.store(logs)
		if i == 6 {
			if err = s.DeleteRange(1, 8); err != nil {
				break
			}
			m.deleteRange(1, 8)
		}
		if err = s.prepare(); err != nil {
			s.latch(err)
			break
		}
	}
	if err == nil {
		return m, false
	}
	if !errors.Is(err, broken) || !errors.Is(s.Err(), broken) {
		t.Fatalf("failed with %v, latched %v", err, s.Err())
	}
	<-s.Failed()
	if err := s.StoreLogs(entries(m.last+1, 1, 1)); !errors.Is(err, broken) {
		t.Fatalf("a write after the failure: %v", err)
	}
	if err := s.SetUint64([]byte(keyCurrentTerm), 99); !errors.Is(err, broken) {
		t.Fatalf("a term after the failure: %v", err)
	}
	return m, true
}

// checkAcknowledged: nothing acknowledged is missing; the call that failed may have had its effect.
func checkAcknowledged(t *testing.T, s *Store, m *model) {
	t.Helper()
	first, _ := s.FirstIndex()
	last, _ := s.LastIndex()
	if last < m.last || (m.last > 0 && first > max(m.first, 9)) {
		t.Fatalf("log holds %d to %d, acknowledged %d to %d", first, last, m.first, m.last)
	}
	for i := max(first, m.first); i <= m.last && i > 0; i++ {
		var l raft.Log
		must(t, s.GetLog(i, &l))
		if !bytes.Equal(l.Data, m.entries[i].Data) {
			t.Fatalf("entry %d differs", i)
		}
	}
}

func TestRefusals(t *testing.T) {
	s := mustOpen(t, vfs.NewMem(), small)
	must(t, s.StoreLogs(entries(1, 1, 10)))
	if err := s.StoreLog(&raft.Log{Index: 2, Data: make([]byte, MaxEntryBytes+1)}); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("too large: %v", err)
	}
	if s.Err() != nil {
		t.Fatal("a refused entry stopped the log")
	}
	must(t, s.StoreLog(&raft.Log{Index: 2, Data: make([]byte, MaxEntryBytes)}))
	if err := s.StoreLog(&raft.Log{Index: 9}); err == nil || s.Err() == nil {
		t.Fatalf("a gap: %v, latched %v", err, s.Err())
	}
}

func TestCacheIsBounded(t *testing.T) {
	s := mustOpen(t, vfs.NewMem(), Options{CacheBytes: 4 << 10})
	for i := range 100 {
		must(t, s.StoreLogs(entries(uint64(i+1), 1, 300)))
		if n := s.Info().CacheBytes; n > 4<<10 {
			t.Fatalf("%d bytes are cached", n)
		}
	}
	must(t, s.StoreLogs(entries(101, 1, 10<<10)))
	var l raft.Log
	for _, i := range []uint64{1, 50, 100, 101} {
		must(t, s.GetLog(i, &l))
	}
	if n := len(s.mu.cache.entries) - s.mu.cache.head; n != 0 {
		t.Fatalf("%d entries are cached behind one that is too large", n)
	}
}

func TestFilesAreRecycled(t *testing.T) {
	disk := vfs.NewMem()
	s := mustOpen(t, disk, Options{FirstSegmentBytes: 4 << 10, SegmentBytes: 4 << 10})
	for i := range 400 {
		last := uint64(i + 1)
		must(t, s.StoreLogs(entries(last, 1, 200)))
		if i%20 == 19 {
			must(t, s.DeleteRange(1, last-10))
		}
		must(t, s.prepare())
	}
	names, err := disk.List("log")
	must(t, err)
	if len(names) > 6 {
		t.Errorf("%d files for ten entries", len(names))
	}
	if first, _ := s.FirstIndex(); first != 391 {
		t.Errorf("the log begins at %d", first)
	}
	must(t, s.Close())
	s = mustOpen(t, disk, small)
	if first, _ := s.FirstIndex(); first != 391 {
		t.Errorf("after reopening the log begins at %d", first)
	}
}

func TestReadersBesideWriters(t *testing.T) {
	s := mustOpen(t, vfs.NewMem(), small)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for range 3 {
		wg.Go(func() {
			var l raft.Log
			for ctx.Err() == nil {
				first, _ := s.FirstIndex()
				last, _ := s.LastIndex()
				for i := first; i <= last && i > 0; i++ {
					err := s.GetLog(i, &l)
					if err == nil && (l.Index != i || !bytes.Equal(l.Data, entries(i, 1, 200)[0].Data)) {
						t.Errorf("entry %d reads as %d", i, l.Index)
					}
					if err != nil && err != raft.ErrLogNotFound {
						t.Error(err)
					}
				}
			}
		})
	}
	for i := range 1500 {
		last := uint64(i + 1)
		must(t, s.StoreLogs(entries(last, 1, 200)))
		if i%50 == 49 {
			must(t, s.DeleteRange(1, last-20))
		}
	}
	cancel()
	wg.Wait()
}

func TestSpanAndBack(t *testing.T) {
	s := mustOpen(t, vfs.NewMem(), small)
	for i := range 60 {
		must(t, s.StoreLogs(entries(uint64(i+1), 1, 200)))
	}
	each := recordSpace(entryHeaderBytes + 200)
	if got := s.Span(0, 10); got < 10*each || got > 10*each+recordSpace(100) {
		t.Errorf("ten entries span %d bytes", got)
	}
	for _, n := range []int64{1, 5, 20, 50} {
		index := s.Back(n * each)
		if got := s.Span(index, 60); got < n*each {
			t.Errorf("%d entries behind %d span %d bytes, want %d", 60-index, index, got, n*each)
		}
		if int64(60-index) > n {
			t.Errorf("%d entries for the bytes of %d", 60-index, n)
		}
	}
	if index := s.Back(1 << 30); index != 0 {
		t.Errorf("back to %d", index)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte{}, uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, life uint64) {
		h, p, err := parseRecord(b, life)
		if err != nil {
			return
		}
		var l raft.Log
		if h.kind == kindEntry {
			_ = decodeEntry(p, h.raftType, &l)
		} else {
			_, _ = decodeState(p)
		}
	})
}

// A write that was cut inside a record's padding leaves a whole record at the end of a file whose space was not reserved: one
// that a write made because no spare was there.
func TestRecordWithoutPadding(t *testing.T) {
	disk := vfs.NewMem()
	s := mustOpen(t, disk, small)
	must(t, s.StoreLogs(entries(1, 1, 3000))) // does not fit in the first file
	must(t, s.StoreLogs(entries(2, 1, 1)))
	must(t, s.Close())
	path := "log/" + fileName(2)
	data, err := vfs.ReadFile(disk, path)
	must(t, err)
	end := s.write.pos.off - recordSpace(entryHeaderBytes+1) + recordHeaderBytes + entryHeaderBytes + 1
	must(t, vfs.WriteFile(disk, path, data[:end]))
	s = mustOpen(t, disk, small)
	var l raft.Log
	must(t, s.GetLog(2, &l))
}
