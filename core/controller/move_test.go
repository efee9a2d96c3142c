package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/record"
	"sluice/core/vfs"
)

// reassign asks for the replicas of a partition to be elsewhere and waits until they are.
func reassign(t *testing.T, all []*member, topic string, index int32, replicas ...meta.NodeID) {
	t.Helper()
	begin(t, all[0], Reassignment{Topic: topic, Index: index, Replicas: replicas})
	moved(t, all, topic, index, replicas...)
}

func begin(t *testing.T, m *member, items ...Reassignment) {
	t.Helper()
	m.without("the move to be taken", func() string {
		for i, err := range m.Reassign(context.Background(), items, false) {
			if err != nil {
				return fmt.Sprintf("%+v: %v", items[i], err)
			}
		}
		return ""
	})
}

// moved waits until a partition has its replicas there, for everybody, and is led.
func moved(t *testing.T, all []*member, topic string, index int32, replicas ...meta.NodeID) {
	t.Helper()
	for _, m := range all {
		m.eventually("partition moved", func() bool {
			p := m.Image().Topic(topic).Partitions[index]
			nodes := m.Image().Shard(p.Shard).Nodes()
			if p.Move != nil || len(nodes) != len(replicas) {
				return false
			}
			for i := range nodes {
				if nodes[i] != replicas[i] {
					return false
				}
			}
			return true
		})
	}
}

// leaderReplica waits until a replica leads a partition and returns it.
func leaderReplica(t *testing.T, all []*member, topic string, index int32) (leader *member, part *partition.Partition) {
	t.Helper()
	all[0].eventually("a leader", func() bool {
		for _, m := range all {
			p, g, ok := m.Local(m.Image().Topic(topic).ID, index)
			if !ok {
				continue
			}
			if _, serves := g.Serving(); serves {
				leader, part = m, p
				return true
			}
		}
		return false
	})
	return leader, part
}

func TestIdlePartitionMoves(t *testing.T) {
	all := trio(t)
	a := all[0]
	a.create(meta.NewTopic{Name: "t", Partitions: -1, ReplicationFactor: -1, Assignments: map[int32][]meta.NodeID{0: {1}, 1: {1}}})
	topic := a.Image().Topic("t")
	key := partition.Key{Topic: topic.ID, Index: 0}
	appendRecords(t, []*member{a}, key, 100, 1000)
	reassign(t, all, "t", 0, 2)
	leader, p := leaderReplica(t, all, "t", 0)
	if leader.Self() != 2 || p.End() != 100 {
		t.Fatalf("node %d leads, the partition ends at %d", leader.Self(), p.End())
	}
	appendRecords(t, all[1:2], key, 5, 2000)
	if p.End() != 105 {
		t.Fatalf("ends at %d", p.End())
	}
	a.eventually("the source lets go", func() bool {
		_, ok := a.replica(topic.Partitions[1].Shard).set.Get(key)
		return !ok && len(a.Image().Removals(topic.Partitions[1].Shard)) == 0
	})
}

// moveLoad appends numbered records to a partition, one after the other, as an idempotent producer does:
// what is not answered is sent again with its sequence, to whoever leads then.
type moveLoad struct {
	t, whole *testing.T // the latter ends with the cluster
	key      partition.Key
	mu       sync.Mutex
	all      map[meta.NodeID]*member
	next     int32 // the first sequence that is not acknowledged
	gap      time.Duration
	last     time.Time
}

// run appends until ctx ends.
func (l *moveLoad) run(ctx context.Context) {
	l.last = time.Now()
	for ctx.Err() == nil {
		if l.try(ctx) {
			l.mu.Lock()
			l.next++
			l.gap, l.last = max(l.gap, time.Since(l.last)), time.Now()
			l.mu.Unlock()
		} else {
			pause(ctx, 5*time.Millisecond)
		}
	}
}

func (l *moveLoad) members() []*member {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.all))
}

// try sends the next record to the leader and tells whether it was acknowledged.
func (l *moveLoad) try(ctx context.Context) bool {
	for _, m := range l.members() {
		_, g, ok := m.Local(l.key.Topic, l.key.Index)
		if !ok {
			continue
		}
		if _, ok := g.Serving(); !ok {
			continue
		}
		b := record.NewBuilder(record.BuilderOptions{})
		b.SetProducer(7, 0, l.next)
		b.Add(time.Now().UnixMilli(), nil, fmt.Appendf(nil, "%d", l.next), nil)
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		result, err := g.Propose(partition.EncodeAppend([]partition.Append{{Key: l.key, Batches: b.Build(nil)}})).Wait(ctx)
		if err != nil {
			return false
		}
		r := result.([]partition.AppendResult)[0]
		if r.Err == nil && r.Base != int64(l.next) {
			l.t.Errorf("record %d was acknowledged at %d", l.next, r.Base)
		}
		if errors.Is(r.Err, partition.ErrOutOfOrderSequence) {
			l.t.Errorf("record %d: %v", l.next, r.Err)
		}
		return r.Err == nil
	}
	return false
}

func (l *moveLoad) acked() int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

// lacks says what a node does not have yet: one that was away knows the end of the log before it has all of it.
func (l *moveLoad) lacks(m *member) string {
	p, _, ok := m.Local(l.key.Topic, l.key.Index)
	if !ok {
		return "no replica"
	}
	if p.End() < int64(l.acked()) {
		return fmt.Sprintf("it ends at %d of %d", p.End(), l.acked())
	}
	for _, s := range m.Sets() {
		if !s.Complete() {
			return fmt.Sprintf("segments are missing: %+v", s.Status())
		}
	}
	return ""
}

// check reads the partition on a node: every acknowledged record, once, in order, and perhaps one more
// that was not answered.
func (l *moveLoad) check(m *member) {
	l.t.Helper()
	p, _, ok := m.Local(l.key.Topic, l.key.Index)
	if !ok {
		l.t.Fatalf("node %d does not have %s", m.Self(), l.key)
	}
	n := int64(0)
	for n < p.End() {
		chunk, err := p.Read(n, 1<<20, false)
		if err != nil {
			l.t.Fatalf("node %d: read %d: %v", m.Self(), n, err)
		}
		data, err := chunk.Bytes()
		if err != nil {
			l.t.Fatal(err)
		}
		for len(data) > 0 {
			b, rest, err := record.Next(data)
			if err != nil {
				l.t.Fatal(err)
			}
			_ = b.Each(func(r record.Record) error {
				if string(r.Value) != strconv.FormatInt(n, 10) {
					l.t.Fatalf("node %d: record %q at %d", m.Self(), r.Value, n)
				}
				n++
				return nil
			})
			data = rest
		}
		chunk.Release()
	}
	if acked := int64(l.acked()); n < acked || n > acked+1 {
		l.t.Fatalf("node %d has %d records of %d acknowledged", m.Self(), n, acked)
	}
}

// powerCut ends a node as if its power had gone: what was not synced is lost. It comes back at once.
func (l *moveLoad) powerCut(m *member) *member {
	clone := m.o.FS.(*vfs.Mem).CrashClone(func() bool { return false })
	l.mu.Lock()
	delete(l.all, m.Self())
	l.mu.Unlock()
	m.crash()
	o := m.o
	o.FS = clone
	back := launch(l.whole, o)
	l.mu.Lock()
	l.all[back.Self()] = back
	l.mu.Unlock()
	return back.awaitReady()
}

// TestPowerCutsWhilePartitionsMove: at each step of a switch the leader of the source, that of the target
// or that of the metadata loses its power, under load.
func TestPowerCutsWhilePartitionsMove(t *testing.T) {
	beside(t)
	all := trio(t)
	var index int32
	steps, victims := []string{"freeze", "seal", "adopt", "finish", "finished"}, []string{"source", "target", "metadata"}
	assignments := make(map[int32][]meta.NodeID)
	for i := range len(steps) * len(victims) {
		assignments[int32(i)] = []meta.NodeID{3, 1, 2}
	}
	all[0].create(meta.NewTopic{Name: "t", Partitions: -1, ReplicationFactor: -1, Assignments: assignments, Configs: map[string]string{"segment.bytes": "1048576"}})
	for _, step := range steps {
		for _, victim := range victims {
			whole := t
			if !t.Run(step+"/"+victim, func(t *testing.T) { all = moveWithPowerCut(t, whole, all, index, step, victim) }) {
				t.FailNow()
			}
			index++
		}
	}
}

func moveWithPowerCut(t, whole *testing.T, all []*member, index int32, step, victim string) []*member {
	l := &moveLoad{t: t, whole: whole, key: partition.Key{Topic: all[0].Image().Topic("t").ID, Index: index}, all: make(map[meta.NodeID]*member)}
	reached := make(chan string, 1)
	resume := make(chan struct{})
	goOn := sync.OnceFunc(func() { close(resume) })
	defer goOn() // of a test that fails as well
	for _, m := range all {
		m.t = t
		l.all[m.Self()] = m
		hook := func(at string) {
			if at != step {
				return
			}
			select {
			case reached <- at:
				<-resume
			default:
			}
		}
		m.moveStep.Store(&hook)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.run(ctx) })
	all[0].eventually("some load", func() bool { return l.acked() > 20 })
	shard := all[0].Image().Topic("t").Partitions[index].Shard
	begin(t, all[0], Reassignment{Topic: "t", Index: index, Replicas: []meta.NodeID{2, 1, 3}})
	select {
	case <-reached:
	case <-time.After(patience):
		for _, m := range all {
			t.Logf("node %d: %+v", m.Self(), m.Moves())
			for _, s := range m.Image().Shards() {
				if r := m.replica(s.ID); r != nil {
					term, ok := r.group.Serving()
					t.Logf("   shard %d: %+v; serving %v %v done %d of %d; set %+v", s.ID, r.group.Status(), term, ok, r.doneTerm.Load(), r.done.Load(), r.set.Status())
				}
			}
		}
		t.Fatalf("the switch does not come to %s", step)
	}
	var who meta.NodeID
	all[0].eventually("a leader to be known", func() bool {
		ok := true
		switch victim {
		case "metadata":
			who, ok = all[0].Leader()
		case "source":
			who, _, ok = all[0].LeaderOf(shard)
		case "target":
			who = 2
		}
		return ok
	})
	at := slices.IndexFunc(all, func(m *member) bool { return m.Self() == who })
	goOn()
	all[at] = l.powerCut(all[at])
	moved(t, all, "t", index, 2, 1, 3)
	before := l.acked()
	all[at].eventually("load after the move", func() bool { return l.acked() > before+20 })
	cancel()
	wg.Wait()
	for _, m := range all {
		m.without("a whole log", func() string { return l.lacks(m) })
		l.check(m)
	}
	t.Logf("node %d cut at %s: %d records, longest pause %v", who, step, l.acked(), l.gap)
	return all
}

// TestMovedPartitionsGiveTheirSpaceBack: the files of the source go without anybody asking for a checkpoint.
func TestMovedPartitionsGiveTheirSpaceBack(t *testing.T) {
	all := trio(t)
	a := all[0]
	a.create(meta.NewTopic{Name: "t", Partitions: -1, ReplicationFactor: -1, Assignments: map[int32][]meta.NodeID{0: {1}}})
	key := partition.Key{Topic: a.Image().Topic("t").ID}
	appendRecords(t, []*member{a}, key, 10, time.Now().UnixMilli())
	reassign(t, all, "t", 0, 2)
	a.eventually("no directory of the topic", func() bool {
		names, err := a.o.FS.List(a.o.DataDir)
		return err == nil && !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, "t-") })
	})
}
