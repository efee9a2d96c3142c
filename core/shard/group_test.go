package shard

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"sluice/core/internal/leaks"
	"sluice/core/meta"
)

func TestMain(m *testing.M) { leaks.Main(m, patience) }

func TestSingleReplica(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	for i := range 100 {
		result, err := m.group.Propose(fmt.Appendf(nil, "k%d=v%d", i, i)).Wait(context.Background())
		if err != nil || result != i+1 {
			t.Fatalf("proposal %d: %v, %v", i, result, err)
		}
	}
	if err := m.group.Verify(context.Background()); err != nil {
		t.Fatal(err)
	}
	want := m.sm.all()
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	m.restart()
	c.leader()
	if got := m.sm.all(); !slices.Equal(got, want) {
		t.Fatalf("after the restart: %d entries, want %d", len(got), len(want))
	}
	if n := m.sm.applies.Load(); n != 0 {
		t.Fatalf("%d entries were replayed after a clean stop", n)
	}
}

func TestSingleReplicaAfterCrash(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	for i := range 50 {
		m.mustPut(fmt.Sprintf("k%d=v", i))
	}
	want := m.sm.all()
	m.crash()
	m.restart()
	c.leader()
	if got := m.sm.all(); !slices.Equal(got, want) {
		t.Fatalf("after the crash: %d entries, want %d", len(got), len(want))
	}
}

func TestLeaderStops(t *testing.T) {
	c := newCluster(t, 3, nil)
	old := c.leader()
	for i := range 20 {
		old.mustPut(fmt.Sprintf("before%d=x", i))
	}
	old.crash()
	since := time.Now()
	next := c.leader(c.others(old.id)...)
	t.Logf("new leader after %v", time.Since(since))
	for i := range 20 {
		next.mustPut(fmt.Sprintf("after%d=x", i))
	}
	old.restart()
	c.until("the old leader has caught up", func() bool { return slices.Equal(old.sm.all(), next.sm.all()) })
	if got := len(next.sm.all()); got != 40 {
		t.Fatalf("%d entries, want 40", got)
	}
}

func TestCleanStopHandsOver(t *testing.T) {
	attempts(t, func() error { return cleanStopHandsOver(t) })
}

func cleanStopHandsOver(t *testing.T) error {
	c := newCluster(t, 3, func(_ meta.NodeID, o *Options) { o.Heartbeat = 2 * time.Second })
	defer c.close()
	old := c.leader()
	if old.id != 1 {
		return fmt.Errorf("node %d leads the new shard, want the preferred leader 1", old.id)
	}
	old.mustPut("a=1", "b=2")
	c.until("all are in sync", func() bool {
		for _, r := range old.group.Replicas() {
			if !r.InSync {
				return false
			}
		}
		return true
	})
	since := time.Now()
	if err := old.stop(); err != nil {
		t.Fatal(err)
	}
	next := c.leader(c.others(old.id)...)
	if took := time.Since(since); took > 2*time.Second {
		return fmt.Errorf("leadership was not handed over, it took %v", took)
	}
	next.mustPut("c=3")
	old.restart()
	c.until("the stopped node follows", func() bool { return slices.Equal(old.sm.all(), next.sm.all()) })
	if n := old.sm.applies.Load(); n != 1 {
		return fmt.Errorf("the stopped node applied %d entries, want only the one it had not", n)
	}
	return nil
}
