package shard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/core/meta"
)

func smallCheckpoints(_ meta.NodeID, o *Options) { o.CheckpointBytes = 16 << 10 }

func TestFollowerCatchesUpByLog(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	f := follower(c, leader)
	f.crash()
	for i := range 200 {
		leader.mustPut(fmt.Sprintf("k%d=v", i))
	}
	f.restart()
	c.until("the follower has caught up", c.same(leader, f))
	if n := f.sm.restores.Load(); n != 0 {
		t.Errorf("%d checkpoints were restored, want the log alone", n)
	}
}

func TestFollowerCatchesUpByCheckpoint(t *testing.T) {
	c := newCluster(t, 3, smallCheckpoints)
	leader := c.leader()
	f := follower(c, leader)
	f.crash()
	value := strings.Repeat("x", 1<<10)
	c.until("the log has dropped its head", func() bool {
		leader.mustPut("k=" + value)
		first, _ := leader.group.log.FirstIndex()
		return first > 50
	})
	f.restart()
	c.until("the follower has caught up", c.same(leader, f))
	if n := f.sm.restores.Load(); n == 0 {
		t.Error("no checkpoint was restored")
	}
	leader.mustPut("after=1")
	c.until("the follower goes on", c.same(leader, f))
	f.crash()
	f.restart()
	c.until("the follower is back after a crash", c.same(leader, f))
}

func TestCheckpointsAreTakenByBytes(t *testing.T) {
	c := newCluster(t, 1, smallCheckpoints)
	m := c.leader()
	value := strings.Repeat("x", 1<<10)
	for i := range 100 {
		m.mustPut(fmt.Sprintf("k%d=%s", i, value))
	}
	c.until("a checkpoint was taken", func() bool { index, _ := m.group.points.current(); return index > 50 })
	want := m.sm.all()
	m.crash()
	m.restart()
	c.leader()
	if !slices.Equal(m.sm.all(), want) {
		t.Error("the state differs after the crash")
	}
	if n := m.sm.applies.Load(); n > 60 {
		t.Errorf("%d entries were replayed", n)
	}
}

// A member that was away comes back with a tail of its own that is longer than the checkpoint it is
// sent. The library cannot reach such a member again by itself.
func TestCheckpointBelowTheEndOfTheLog(t *testing.T) {
	attempts(t, func() error { return checkpointBelowTheEnd(t) })
}

func checkpointBelowTheEnd(t *testing.T) error {
	c := newCluster(t, 3, smallCheckpoints)
	defer c.close()
	old := c.leader()
	old.mustPut("first=1")
	c.partition(old.id, true)
	for i := range 500 {
		old.group.Propose(fmt.Appendf(nil, "lost=%d", i))
	}
	next := c.leader(c.others(old.id)...)
	if last := old.group.raft().LastIndex(); last < 400 {
		return fmt.Errorf("only %d entries were appended before the lease ended", last)
	}
	value := strings.Repeat("x", 4<<10)
	for i := range 20 {
		next.mustPut(fmt.Sprintf("k%d=%s", i, value))
	}
	if err := next.group.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.until("the old leader cannot be reached by the log", func() bool { first, _ := next.group.log.FirstIndex(); return first >= 5 })
	c.partition(old.id, false)
	c.until("the old leader follows", c.same(old, next))
	if _, ok := old.sm.get("lost"); ok {
		t.Error("an uncommitted entry was applied")
	}
	next.mustPut("after=1")
	c.until("the old leader goes on", c.same(old, next))
	return nil
}

func TestJoinAndLeave(t *testing.T) {
	c := newCluster(t, 1, smallCheckpoints)
	leader := c.leader()
	value := strings.Repeat("x", 1<<10)
	for i := range 60 {
		leader.mustPut(fmt.Sprintf("k%d=%s", i, value))
	}
	changed := leader.group.Changed()
	for _, id := range []meta.NodeID{2, 3} {
		m := c.add(id)
		m.open()
		leader.insist("the member is added", func() error { return leader.group.AddNonvoter(context.Background(), m.self) })
		leader.insist("the member has a vote", func() error { return leader.group.AddVoter(context.Background(), m.self) })
		c.until("the member has caught up", c.same(leader, m))
	}
	select {
	case <-changed:
	case <-time.After(patience):
		t.Error("a change of members was not told")
	}
	for _, id := range []meta.NodeID{2, 3} {
		c.until("it is in sync", func() bool { return c.inSync(leader, c.nodes[id]) })
	}
	next := c.nodes[2]
	next.lead()
	next.insist("the old leader is removed", func() error { return next.group.RemoveServer(context.Background(), leader.self) })
	if err := leader.node.Remove(testShard); err != nil {
		t.Fatal(err)
	}
	next.mustPut("last=1")
	c.until("the others agree", c.same(c.nodes[2], c.nodes[3]))
	if names, _ := leader.disk.List("data/shards"); !slices.Equal(names, []string{"7.mark"}) {
		t.Errorf("the removed replica left %v", names)
	}
}

func TestTooLargeEntryIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	if _, err := m.group.Propose(make([]byte, MaxEntryBytes+1)).Wait(context.Background()); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("got %v", err)
	}
	if _, err := m.group.Propose(bytes.Repeat([]byte("x"), MaxEntryBytes)).Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestProposeIsBounded(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	release := m.sm.block()
	defer release()
	entry := bytes.Repeat([]byte("x"), windowInitial/2)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			m.group.Propose(entry)
		}
	}()
	c.until("the bound is reached", func() bool { _, n := m.group.queue.inFlight(); return n == windowInitial })
	select {
	case <-done:
		t.Error("more than the bound was accepted")
	default:
	}
	release()
	<-done
}

// TestHistory lets several writers propose while leaders are cut off, crash or stop cleanly, and
// compares what they were told with what every replica holds in the end.
func TestHistory(t *testing.T) {
	c := newCluster(t, 3, smallCheckpoints)
	c.leader()
	w := &writers{c: c, fate: map[string]error{}}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for id := range 4 {
		wg.Go(func() { w.run(id, stop) })
	}
	rng := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for round := range 8 {
		enough := w.count() + 100
		c.until("the writers get on", func() bool { return w.count() >= enough })
		m := c.nodes[meta.NodeID(rng.IntN(3)+1)]
		if round%2 == 0 {
			m = c.leader()
		}
		w.disturb(m, rng.IntN(3))
	}
	close(stop)
	wg.Wait()
	leader := c.leader()
	leader.mustPut("end=1")
	for _, m := range c.nodes {
		c.until("all replicas are equal", c.same(leader, m))
	}
	w.check(t, leader.sm.all())
}

type writers struct {
	c    *cluster
	lock sync.RWMutex // held while a node is replaced

	mu   sync.Mutex
	fate map[string]error
	acks int
}

func (w *writers) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acks
}

// run proposes at whatever node serves, in order, each entry once.
func (w *writers) run(id int, stop <-chan struct{}) {
	for n := 0; ; n++ {
		entry := fmt.Sprintf("writer%d=%d", id, n)
		var err error
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err = w.try(entry); !errors.Is(err, ErrNotLeader) {
				break
			}
			pause(context.Background(), time.Millisecond)
		}
		w.mu.Lock()
		w.fate[entry] = err
		if err == nil {
			w.acks++
		}
		w.mu.Unlock()
	}
}

func (w *writers) try(entry string) error {
	w.lock.RLock()
	var group *Group
	for _, m := range w.c.nodes {
		if _, ok := m.group.Serving(); ok {
			group = m.group
		}
	}
	w.lock.RUnlock()
	if group == nil {
		return ErrNotLeader
	}
	_, err := group.Propose([]byte(entry)).Wait(context.Background())
	return err
}

func (w *writers) disturb(m *member, how int) {
	if how == 0 {
		w.c.partition(m.id, true)
		w.c.leader(w.c.others(m.id)...)
		w.c.partition(m.id, false)
		return
	}
	w.lock.Lock()
	defer w.lock.Unlock()
	if how == 1 {
		m.crash()
	} else {
		m.stop()
	}
	w.c.leader(w.c.others(m.id)...)
	m.restart()
}

// check: acknowledged is there, once, in each writer's order; nothing is there that was refused.
func (w *writers) check(t *testing.T, history []string) {
	seen := map[string]int{}
	last := map[string]int{}
	for _, e := range history {
		seen[e]++
		writer, number, _ := strings.Cut(e, "=")
		n := 0
		fmt.Sscan(number, &n)
		if before, ok := last[writer]; ok && n <= before {
			t.Errorf("%s comes after %d", e, before)
		}
		last[writer] = n
	}
	unknown := 0
	for e, err := range w.fate {
		switch {
		case err == nil && seen[e] != 1:
			t.Errorf("acknowledged %s is there %d times", e, seen[e])
		case errors.Is(err, ErrUnknown) && seen[e] > 1:
			t.Errorf("%s of unknown fate is there %d times", e, seen[e])
		case errors.Is(err, ErrUnknown):
			unknown++
		}
	}
	t.Logf("%d acknowledged, %d of unknown fate", w.acks, unknown)
}
