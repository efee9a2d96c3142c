package partition

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"sluice/core/vfs"
)

// openWith returns a replica with one partition `t-0` and its log so far.
func openWith(t testing.TB, fs vfs.FS) (*replica, *entries, *Partition) {
	t.Helper()
	r := newReplica(t, fs, "/data")
	e := &entries{}
	k := Key{topicID("t"), 0}
	r.apply(e.log, 0)
	e.add(1, EncodeCreate(Create{Key: k, Name: "t"}))
	r.apply(e.log, 1)
	p, ok := r.set.Get(k)
	if !ok {
		t.Fatal("created partition is not there")
	}
	return r, e, p
}

func plain(p *Partition, count int) []byte {
	b := testBatch{producer: -1, count: count, time: 1000, value: "value"}
	return EncodeAppend([]Append{{Key: p.Key(), Batches: b.build()}})
}

func TestWaiter(t *testing.T) {
	r, e, p := openWith(t, vfs.NewMem())
	woken := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	step := func(what string, entry []byte, want bool) {
		ch := p.Waiter()
		if p.Waiter() != ch {
			t.Errorf("%s: two who wait have two channels", what)
		}
		e.add(1, entry)
		r.apply(e.log, len(e.log))
		if woken(ch) != want {
			t.Errorf("%s: woken %v", what, !want)
		}
	}
	step("append", plain(p, 3), true)
	step("refused append", EncodeAppend([]Append{{Key: p.Key(), Batches: []byte("garbage")}}), false)
	step("start", EncodeStart([]Start{{p.Key(), 2}}), true)
	step("start that is there already", EncodeStart([]Start{{p.Key(), 1}}), false)
	step("configure", EncodeConfigure(p.Key(), LogConfig{SegmentBytes: 500}), false)
	step("delete", EncodeDelete(p.Key()), true)
	if !woken(p.Waiter()) || !p.Removed() {
		t.Error("who comes after the removal waits for ever")
	}
	if _, err := p.Read(2, 100, false); !errors.Is(err, ErrRemoved) {
		t.Errorf("read after removal: %v", err)
	}
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

func TestWakingNobodyAllocatesNothing(t *testing.T) {
	p := &Partition{}
	if n := testing.AllocsPerRun(100, p.wake); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCloseWakesReaders(t *testing.T) {
	r, _, p := openWith(t, vfs.NewMem())
	ch := p.Waiter()
	if err := r.set.Close(); err != nil {
		t.Fatal(err)
	}
	<-ch
	if results := r.set.ApplyBatch([]*raft.Log{{Data: plain(p, 1)}}); !errors.Is(results[0].(error), ErrClosed) {
		t.Errorf("closed set answered %v", results[0])
	}
	if err := r.set.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// TestEntriesBelongToRaft: they are neither changed nor kept.
func TestEntriesBelongToRaft(t *testing.T) {
	r, e, p := openWith(t, vfs.NewMem())
	for range 5 {
		e.add(3, plain(p, 2))
	}
	var before [][]byte
	for _, l := range e.log {
		before = append(before, bytes.Clone(l.Data))
	}
	r.apply(e.log, len(e.log))
	for i, l := range e.log {
		if !bytes.Equal(before[i], l.Data) {
			t.Errorf("entry %d was changed", i)
		}
		clear(l.Data)
	}
	e.add(3, plain(p, 1))
	r.apply(e.log, len(e.log))
	want := []string{"0+2", "2+2", "4+2", "6+2", "8+2", "10+1"}
	if diff := cmp.Diff(want, readAll(t, p, false)); diff != "" {
		t.Error(diff)
	}
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// TestOneWritePerPartition: what one ApplyBatch accepts for a partition is one
// write, however many entries and items it came in.
func TestOneWritePerPartition(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	r, e, p := openWith(t, fault)
	other := Key{topicID("u"), 3}
	e.add(1, EncodeCreate(Create{Key: other, Name: "u"}))
	for i := range 100 {
		b := testBatch{producer: -1, count: 1, time: 1000, value: fmt.Sprint(i)}.build()
		e.add(1, EncodeAppend([]Append{{Key: p.Key(), Batches: b}, {Key: other, Batches: b}, {Key: p.Key(), Batches: b}}))
	}
	r.apply(e.log, 2)
	fault.ResetCounts()
	r.apply(e.log, len(e.log))
	if n := fault.Calls(vfs.OpWrite); n != 2 {
		t.Errorf("%d writes for two partitions", n)
	}
	if n := fault.Calls(vfs.OpSync) + fault.Calls(vfs.OpSyncDir); n != 0 {
		t.Errorf("apply synced %d times", n)
	}
	if p.End() != 200 {
		t.Errorf("end is %d", p.End())
	}
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// TestUnchangedPartitionsCostNothing: a checkpoint syncs and encodes what has
// changed since the last one, also across a restart.
func TestUnchangedPartitionsCostNothing(t *testing.T) {
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	r, e, p := openWith(t, fault)
	for i := range int32(50) {
		k := Key{topicID("many"), i}
		b := testBatch{producer: 1, count: 1, time: 1000}.build()
		e.add(1, EncodeCreate(Create{Key: k, Name: "many"}))
		e.add(1, EncodeAppend([]Append{{Key: k, Batches: b}}))
	}
	r.apply(e.log, len(e.log))
	r.checkpoint()
	for _, what := range []string{"running", "restarted"} {
		e.add(1, plain(p, 1))
		r.apply(e.log, len(e.log))
		fault.ResetCounts()
		r.checkpoint()
		if n := fault.Calls(vfs.OpSync); n < 1 || n > 3 {
			t.Errorf("%s: %d syncs for one changed partition of 51", what, n)
		}
		r.restart(nil)
	}
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// TestReadersBesideApply reads with waiters while entries are applied and
// checkpoints taken; the race detector looks on.
func TestReadersBesideApply(t *testing.T) {
	r, e, p := openWith(t, vfs.NewMem())
	const batches = 300
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { follow(t, p, batches) })
	}
	for i := range batches {
		b := testBatch{producer: 1, sequence: int32(i), count: 1, time: int64(i), value: "value"}
		e.add(uint64(1+i/50), EncodeAppend([]Append{{Key: p.Key(), Batches: b.build()}}))
		r.apply(e.log, len(e.log))
		if i%100 == 50 {
			r.checkpoint()
		}
	}
	wg.Wait()
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// follow reads to an end as a consumer would.
func follow(t *testing.T, p *Partition, until int64) {
	for offset := int64(0); offset < until; {
		changed := p.Waiter()
		chunk, err := p.Read(offset, 200, true)
		if err != nil {
			t.Errorf("read %d: %v", offset, err)
			return
		}
		if chunk == nil {
			<-changed
			continue
		}
		data, err := chunk.Bytes()
		if err != nil || len(data) == 0 {
			t.Errorf("chunk at %d: %d bytes, %v", offset, len(data), err)
		}
		offset = chunk.Next()
		chunk.Release()
		_, _ = p.EpochEnd(3)
		_ = p.Producers()
		_ = p.Aborted(0, offset)
	}
}

func TestLookups(t *testing.T) {
	r, e, p := openWith(t, vfs.NewMem())
	for i := range 5 {
		b := testBatch{producer: -1, count: 2, time: int64(1000 * i)}
		e.add(4, EncodeAppend([]Append{{Key: p.Key(), Batches: b.build()}}))
	}
	e.add(4, EncodeConfigure(p.Key(), LogConfig{SegmentBytes: 777}))
	r.apply(e.log, len(e.log))
	if offset, ts, ok, err := p.LookupTime(2001); offset != 5 || ts != 2001 || !ok || err != nil {
		t.Errorf("time 2001: offset %d, time %d, %v, %v", offset, ts, ok, err)
	}
	if offset, ts, ok := p.MaxTimestamp(); offset != 9 || ts != 4001 || !ok {
		t.Errorf("max timestamp: offset %d, time %d, %v", offset, ts, ok)
	}
	if got := p.RetentionStart(100_000, -1, -1); got != 0 {
		t.Errorf("retention without limits starts at %d", got)
	}
	if got := p.RetentionStart(100_000, 1000, -1); got != 10 {
		t.Errorf("retention of a second starts at %d", got)
	}
	if p.LeaderEpoch(7) != 7 || p.Name() != "t" || p.Bytes() == 0 || p.Config().SegmentBytes != 777 {
		t.Errorf("epoch %d, name %s, %d bytes, %+v", p.LeaderEpoch(7), p.Name(), p.Bytes(), p.Config())
	}
	for _, offset := range []int64{-1, 11} {
		if _, err := p.Read(offset, 100, false); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("read at %d: %v", offset, err)
		}
	}
	if chunk, err := p.Read(10, 100, false); chunk.Len() != 0 || err != nil {
		t.Errorf("read at the end: %d bytes, %v", chunk.Len(), err)
	}
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

func TestStatusAndMetrics(t *testing.T) {
	r, e, p := openWith(t, vfs.NewMem())
	e.add(1, plain(p, 3))
	e.add(1, EncodeAppend([]Append{{Key: Key{topicID("none"), 0}, Batches: testBatch{producer: -1, count: 1}.build()}}))
	r.apply(e.log, len(e.log))
	text, err := json.Marshal(r.set.Status())
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`{"shard":7,"partitions":1,"producers":0,"bytes":%d,"complete":true,"missingSegments":0,"missingBytes":0,"waitingForCheckpoint":0}`, p.Bytes())
	if string(text) != want {
		t.Errorf("status %s, want %s", text, want)
	}
	var metrics bytes.Buffer
	r.set.WritePrometheus(&metrics)
	for _, line := range []string{
		`sluice_partition_entries_total{shard="7"} 3`,
		`sluice_partition_writes_total{shard="7"} 1`,
		`sluice_partition_refused_items_total{shard="7",reason="unknown_partition"} 1`,
		`sluice_partition_partitions{shard="7"} 1`,
	} {
		if !strings.Contains(metrics.String(), line) {
			t.Errorf("no line %s in\n%s", line, metrics.String())
		}
	}
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

func TestDestroyLeavesNothing(t *testing.T) {
	s := newScenario()
	r := newReplica(t, vfs.NewMem(), "/data")
	var answers []string
	if err := s.play(t, r, &answers); err != nil {
		t.Fatal(err)
	}
	for p := range r.set.All() {
		s.add(9, EncodeDelete(p.Key()))
		break
	}
	r.apply(s.log, len(s.log))
	if err := r.set.Destroy(); err != nil {
		t.Fatal(err)
	}
	if got := r.names(); got != originFile+"\n" {
		t.Errorf("left: %q", got)
	}
}

func TestOnlyCommandsMeanSomething(t *testing.T) {
	r, _, p := openWith(t, vfs.NewMem())
	results := r.set.ApplyBatch([]*raft.Log{
		{Type: raft.LogConfiguration, Data: plain(p, 1)},
		{Type: raft.LogCommand, Data: plain(p, 1)},
	})
	if results[0] != nil || results[1].([]AppendResult)[0].Base != 0 || p.End() != 1 {
		t.Errorf("answered %v, end %d", results, p.End())
	}
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// TestRunWaitsWithoutWork: an idle Run costs nothing and ends with its context;
// without peers it keeps trying in vain, ever more rarely.
func TestRunWaitsWithoutWork(t *testing.T) {
	srv := newServer(t, newScenario())
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		r := &replica{tb: t, fs: vfs.NewMem(), root: "/data", manifest: srv.manifest, manifestAt: srv.manifestAt}
		r.options = func(o *Options) {
			o.Peers = func() []Peer { asked++; return nil }
		}
		r.open()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := r.set.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
		if asked < 5 || asked > 40 {
			t.Errorf("asked for peers %d times in a minute", asked)
		}
		if err := r.set.Close(); err != nil {
			t.Error(err)
		}
	})
}

// BenchmarkApply applies 128 entries of 4 KiB a call to 12 partitions.
func BenchmarkApply(b *testing.B) {
	r := newReplica(b, vfs.OS, b.TempDir())
	e := &entries{}
	var keys []Key
	for i := range int32(12) {
		keys = append(keys, Key{topicID("t"), i})
		e.add(1, EncodeCreate(Create{Key: keys[i], Name: "t"}))
	}
	r.apply(e.log, len(e.log))
	batch := testBatch{producer: -1, count: 1, value: strings.Repeat("x", 4096)}.build()
	logs := make([]*raft.Log, 128)
	for i := range logs {
		logs[i] = &raft.Log{Term: 1, Data: EncodeAppend([]Append{{Key: keys[i%len(keys)], Batches: batch}})}
	}
	b.SetBytes(int64(len(logs) * len(batch)))
	b.ReportAllocs()
	for b.Loop() {
		r.set.ApplyBatch(logs)
	}
	if err := r.set.Close(); err != nil {
		b.Fatal(err)
	}
}
