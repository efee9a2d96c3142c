package controller

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"sluice/core/meta"
	"sluice/core/shard"
	"sluice/core/vfs"
)

func TestReserve(t *testing.T) {
	for _, c := range []struct {
		configured int64
		size       uint64
		replicas   int
		want       uint64
	}{
		{5 << 20, 1 << 40, 100, 5 << 20},                              // what is configured stands
		{0, 1 << 40, 0, 1 << 30},                                      // at most 1 GiB by size
		{0, 10 << 30, 0, 10 << 30 / 20},                               // a twentieth
		{0, 1 << 40, 20, 20 * shard.ReplicaInFlightBytes},             // at least what is in flight
		{0, 200 << 20, 8, 100 << 20},                                  // but a small disk is there to be used
		{0, math.MaxInt64, 1, 1 << 30},                                // a file system without end
		{0, 1 << 40, 1 << 10, (1 << 10) * shard.ReplicaInFlightBytes}, // more than an int32 holds
	} {
		if got := reserveOf(c.configured, c.size, c.replicas); got != c.want {
			t.Errorf("%+v: got %d", c, got)
		}
	}
}

// TestDiskStates walks a disk down and up again: each step names what is free, in percent of the reserve, and what that means.
func TestDiskStates(t *testing.T) {
	var d DiskState
	for _, step := range []struct {
		percent   uint64
		low, full bool
	}{
		{500, false, false}, {100, false, false}, {99, true, false}, {105, true, false}, {112, true, false}, {113, false, false},
		{100, false, false}, {80, true, false}, {25, true, false}, {24, true, true}, {27, true, true}, {29, true, false}, {25, true, false}, {10, true, true}, {1000, false, false},
	} {
		d = d.next(step.percent*1000, 100_000)
		if d.Low != step.low || d.Full != step.full || d.FreeBytes != step.percent*1000 {
			t.Errorf("%d %%: %+v", step.percent, d)
		}
		if near := step.percent < 400; d.near() != near {
			t.Errorf("%d %%: near is %v", step.percent, d.near())
		}
	}
}

// faulty returns the options of a node whose disk says what a test wants, over those given.
func faulty(o Options) (Options, *vfs.Fault) {
	disk := vfs.NewFault(o.FS)
	disk.SetFree(1 << 40)
	o.FS, o.ReserveBytes = disk, 64<<20
	return o, disk
}

func metricOf(m *member, name string) string {
	var out strings.Builder
	m.WritePrometheus(&out)
	for line := range strings.Lines(out.String()) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return "none"
}

// TestEveryVoterKnowsALowDisk has one of three disks run low, full, and get space again: all nodes know. When its node goes down it
// holds nobody up.
func TestEveryVoterKnowsALowDisk(t *testing.T) {
	beside(t)
	a := start(t, options(1))
	o, disk := faulty(options(2, a.Addr()))
	b := start(t, o)
	c := start(t, options(3, a.Addr()))
	all := []*member{a, b, c}
	a.eventually("three voters", func() bool { return voters(a) == 3 })
	a.create(plain("t"))
	id := a.Image().Topic("t").Partitions[0].Shard
	expect := func(what string, nodes []*member, low, full bool) {
		t.Helper()
		for _, m := range nodes {
			m.eventually(what, func() bool {
				at, isLow := m.LowDisk(id)
				_, isFull := m.FullDisk(id)
				return isLow == low && isFull == full && (!low || at.Node == 2)
			})
		}
	}
	expect("space", all, false, false)
	disk.SetFree(63 << 20)
	expect("a low disk", all, true, false)
	for _, want := range []struct {
		of           *member
		name, metric string
	}{
		{b, "sluice_controller_low_disk", "1"}, {b, "sluice_controller_free_bytes", "66060288"},
		{a, "sluice_controller_low_disk", "0"}, {a, "sluice_controller_low_disks", "1"},
	} {
		want.of.without("the metric of a low disk", func() string {
			if got := metricOf(want.of, want.name); got != want.metric {
				return fmt.Sprintf("%s is %s, want %s", want.name, got, want.metric)
			}
			return ""
		})
	}
	a.without("the disks in the status", func() string { // who was not heard of for a while is not in it
		disks := a.Status().(Status).Disks
		if len(disks) != 3 || !disks[1].Low || disks[1].ReserveBytes != 64<<20 || disks[0].Low {
			return fmt.Sprintf("%+v", disks)
		}
		return ""
	})
	disk.SetFree(15 << 20)
	expect("a full disk", all, true, true)
	disk.SetHook(func(op vfs.Op, _ string) error {
		if op == vfs.OpFree {
			return errors.New("no answer")
		}
		return nil
	})
	expect("a disk that says nothing is what it was", all, true, true)
	disk.SetHook(nil)
	disk.SetFree(70 << 20)
	expect("still low", all, true, false)
	disk.SetFree(80 << 20)
	expect("space again", all, false, false)
	disk.SetFree(15 << 20)
	expect("a full disk again", all, true, true)
	b.crash()
	expect("a node that is down holds nobody up", []*member{a, c}, false, false)
}

// TestADiskWithNothingLeftHoldsNobodyUp fills the disk of the node that leads: another leads then, and takes records, as a majority has space. With a
// second disk full nobody takes any.
func TestADiskWithNothingLeftHoldsNobodyUp(t *testing.T) {
	beside(t)
	o, first := faulty(options(1))
	a := start(t, o)
	o, second := faulty(options(2, a.Addr()))
	b := start(t, o)
	c := start(t, options(3, a.Addr()))
	a.eventually("three voters", func() bool { return voters(a) == 3 })
	a.create(plain("t"))
	id := a.Image().Topic("t").Partitions[0].Shard
	nodes := map[meta.NodeID]*member{1: a, 2: b, 3: c}
	takes := func(m *member) bool {
		_, low := m.LowDisk(id)
		_, full := m.FullDisk(id)
		return !low && !full
	}
	first.SetFree(3 << 20)
	a.eventually("a node with space to lead, and to take records", func() bool {
		leader, _, ok := c.LeaderOf(id)
		return ok && leader != 1 && takes(nodes[leader]) && !takes(a)
	})
	second.SetFree(3 << 20)
	c.eventually("nobody to take records", func() bool { return !takes(a) && !takes(b) && !takes(c) })
	first.SetFree(1 << 30)
	second.SetFree(1 << 30)
	c.eventually("everybody to take records", func() bool { return takes(a) && takes(b) && takes(c) })
}

// TestALowDiskGetsItsSpaceBack deletes a topic on a low disk: its files go without a record being written.
func TestALowDiskGetsItsSpaceBack(t *testing.T) {
	o, disk := faulty(options(1))
	m := start(t, o)
	m.create(plain("t"))
	disk.SetFree(1 << 20)
	id := m.Image().Topic("t").Partitions[0].Shard
	m.eventually("a low disk", func() bool { _, low := m.LowDisk(id); return low })
	if err := m.DeleteTopics(context.Background(), []meta.TopicID{m.Image().Topic("t").ID})[0]; err != nil {
		t.Fatal(err)
	}
	m.eventually("the topic's files to go", func() bool {
		names, err := disk.List("/data")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasPrefix(name, "t-") {
				return false
			}
		}
		return true
	})
}
