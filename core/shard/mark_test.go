package shard

import (
	"errors"
	"testing"

	"sluice/core/meta"
	"sluice/core/vfs"
)

// TestMarks: a replica that was removed is not founded again by itself, one whose directory is lost is damaged, and both may be
// forgotten when their shard begins anew.
func TestMarks(t *testing.T) {
	disk := vfs.NewMem()
	n := bareNode(t, disk)
	defer n.Close()
	voters := []meta.Server{n.o.Self}
	found := func() (*Group, error) {
		if err := n.Bootstrap(testShard, voters); err != nil {
			t.Fatal(err)
		}
		return n.Open(testShard, &kv{})
	}
	if _, err := found(); err != nil {
		t.Fatal(err)
	}
	if err := n.Remove(testShard); err != nil {
		t.Fatal(err)
	}
	g, err := found()
	if err != nil || len(g.Replicas()) != 0 {
		t.Fatalf("a removed replica was founded again: %v", err)
	}
	if err := n.Remove(testShard); err != nil {
		t.Fatal(err)
	}
	if err := n.Forget(testShard); err != nil {
		t.Fatal(err)
	}
	if g, err = found(); err != nil || len(g.Replicas()) != 1 {
		t.Fatalf("a forgotten replica was not founded: %v", err)
	}
	n.Stop(testShard)
	for _, lost := range []string{logDir, ""} {
		if err := disk.RemoveAll(n.dir(testShard) + "/" + lost); err != nil {
			t.Fatal(err)
		}
		if _, err := found(); !errors.Is(err, ErrDamaged) {
			t.Fatalf("opened without its log: %v", err)
		}
	}
}
