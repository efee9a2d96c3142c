package partition

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/hashicorp/raft"

	"sluice/core/vfs"
)

// many is a log that creates n partitions and writes a record to each, twice.
func many(n int) []*raft.Log {
	var e entries
	for i := range n {
		e.add(1, EncodeCreate(Create{Key: Key{topicID("many"), int32(i)}, Name: "many", Config: LogConfig{SegmentBytes: 1 << 20}}))
	}
	for round := range 2 {
		for i := range n {
			batch := testBatch{producer: -1, count: 1, time: 5, value: fmt.Sprint("round ", round)}.build()
			e.add(1, EncodeAppend([]Append{{Key: Key{topicID("many"), int32(i)}, Batches: batch}}))
		}
	}
	return e.log
}

// What is applied is not synced, however many partitions are created and written to, and a checkpoint of them takes one sync.
func TestManyPartitionsTakeFewSyncs(t *testing.T) {
	const n = 300
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	r := &replica{tb: t, fs: fault, root: "/data", options: together}
	r.open()
	log := many(n)
	fault.ResetCounts()
	r.apply(log, len(log))
	if syncs := fault.Calls(vfs.OpSync) + fault.Calls(vfs.OpSyncDir); syncs != 0 {
		t.Errorf("applying took %d syncs", syncs)
	}
	if open := r.set.o.Files.Open(); open > 2 {
		t.Errorf("%d files are open", open)
	}
	var manifest bytes.Buffer
	c, err := r.set.Capture()
	if err != nil {
		t.Fatal(err)
	}
	fault.ResetCounts()
	if err := c.Persist(&manifest); err != nil {
		t.Fatal(err)
	}
	c.Release()
	if files, dirs := fault.Calls(vfs.OpSync), fault.Calls(vfs.OpSyncDir); files != 1 || dirs > 1 {
		t.Errorf("a checkpoint took %d syncs, and %d of directories", files, dirs)
	}
	want := r.outcome()
	after := &replica{tb: t, fs: mem.CrashClone(nil), root: "/data", manifest: manifest.Bytes(), manifestAt: len(log), options: together}
	after.open()
	want.compare(t, "after a power cut", after)
	for _, r := range []*replica{r, after} {
		if err := r.set.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A write that failed is told once, to whoever syncs the file system then: the set stops for good.
func TestFailedSyncTogetherStopsTheSet(t *testing.T) {
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	r := &replica{tb: t, fs: fault, root: "/data", options: together}
	r.open()
	log := many(5)
	r.apply(log, len(log))
	fault.SetHook(func(op vfs.Op, _ string) error {
		if op == vfs.OpSync {
			return errInjected
		}
		return nil
	})
	if err := r.tryCheckpoint(); !errors.Is(err, errInjected) {
		t.Fatalf("the checkpoint answered %v", err)
	}
	fault.SetHook(nil)
	if err := r.tryCheckpoint(); !errors.Is(err, ErrStopped) {
		t.Fatalf("another checkpoint answered %v", err)
	}
	if r.manifest != nil {
		t.Fatal("there is a manifest")
	}
	_ = r.set.Close()
}
