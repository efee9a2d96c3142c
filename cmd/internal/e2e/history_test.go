//go:build e2e

package e2e

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"sluice/loadtest/history"
	"sluice/loadtest/workload"
)

// workTime is how long the workloads run against a cluster that nothing happens to, and longer until each has done workMin things.
const (
	workTime = 10 * time.Second
	workMin  = 20
)

// All workloads at once find nothing wrong with a healthy cluster, its stopped replicas are equal, and a changed bit in one of them is found.
func TestWorkloadsOnAHealthyCluster(t *testing.T) {
	c := startCluster(t, t.TempDir())
	h := history.New(nil)
	set, err := workload.New(workload.Config{Brokers: brokers, Gateways: []string{mqtt}, History: h})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	defer cancel()
	if err := set.Setup(ctx); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	work, stop := context.WithCancel(ctx)
	defer stop()
	worked := make(chan struct{})
	go func() {
		defer close(worked)
		for n := 0; work.Err() == nil && (time.Since(began) < workTime || n < workMin); {
			select {
			case <-work.Done():
			case <-time.After(100 * time.Millisecond):
			}
			_, n = least(set.Stats())
		}
		stop()
	}()
	err = errors.Join(set.Run(work), set.Finish(ctx))
	stop()
	<-worked
	if err != nil {
		t.Fatal(err)
	}
	v := h.Check()
	for _, violation := range v.Violations {
		t.Error(violation)
	}
	s := set.Stats()
	t.Logf("%d sent, %d acknowledged, %d read, %d delivered, %d commits, %d rebalances, %d questions, %d device messages, %d operations on topics (%d unknown), %d errors; longest pauses %v",
		s.Sent.Load(), s.Acked.Load(), s.Read.Load(), s.Delivered.Load(), s.Commits.Load(), s.Rebalances.Load(), s.Asked.Load(), s.DeviceAcked.Load(),
		s.MetadataOperations.Load(), s.MetadataUnknown.Load(), s.Errors.Load(), h.Gaps(began, began.Add(workTime))[:1])
	if what, n := least(s); n < workMin {
		t.Errorf("%s: only %d", what, n)
	}
	c.stop(syscall.SIGTERM)
	nodes := []string{filepath.Join(c.data, "core-1"), filepath.Join(c.data, "core-2"), filepath.Join(c.data, "core-3")}
	if bad := compare(t, nodes, set.Topic()); len(bad) > 0 {
		t.Errorf("replicas differ: %v", bad)
	}
	tamper(t, filepath.Join(nodes[1], set.Topic()+"-0"))
	bad := compare(t, nodes, set.Topic())
	if !slices.ContainsFunc(bad, func(v history.Violation) bool { return v.Kind == history.Diverged }) ||
		!slices.ContainsFunc(bad, func(v history.Violation) bool { return v.Kind == history.Corrupt }) {
		t.Errorf("a changed bit is not found: %v", bad)
	}
}

// least is what the workloads did least of.
func least(s *workload.Stats) (what string, n int) {
	n = math.MaxInt
	for name, count := range map[string]int64{"acknowledged": s.Acked.Load(), "read": s.Read.Load(), "delivered": s.Delivered.Load(), "asked": s.Asked.Load(), "devices": s.DeviceAcked.Load(),
		"commits": s.Commits.Load(), "metadata": s.MetadataOperations.Load() - s.MetadataUnknown.Load()} {
		if int(count) < n {
			what, n = name, int(count)
		}
	}
	return what, n
}

// compare compares all replicas on stopped nodes.
func compare(t *testing.T, nodes []string, topic string) (bad []history.Violation) {
	t.Helper()
	replicas, err := history.FindReplicas(nodes...)
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, r := range replicas {
		report, err := history.CompareReplicas(r)
		if err != nil {
			t.Fatal(err)
		}
		bad = append(bad, report.Violations...)
		if len(r.Dirs) == 3 && report.Batches > 0 && r.Name[:len(r.Name)-2] == topic {
			compared++
		}
	}
	if compared < 6 {
		t.Errorf("%d partitions of %s have three replicas with something in them", compared, topic)
	}
	return bad
}

// tamper changes one bit in the middle of a segment.
func tamper(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no segments in %s: %v", dir, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil || len(b) < 100 {
		t.Fatalf("%s: %d bytes, %v", files[0], len(b), err)
	}
	b[len(b)/2+40] ^= 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
}
