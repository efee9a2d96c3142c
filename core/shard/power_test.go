package shard

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"

	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/vfs"
)

// TestPowerCutAtEverySync is described at powerLab.
func TestPowerCutAtEverySync(t *testing.T) {
	l := newPowerLab(t)
	for id := range meta.NodeID(3) {
		l.add(id + 1)
	}
	l.founders = l.servers()
	for id := range meta.NodeID(3) {
		l.power(l.nodes[id+1])
	}
	t.Cleanup(l.stopMembers)
	a, b, c, d := powerKey("a"), powerKey("b"), powerKey("c"), powerKey("d")
	l.create(a)
	l.create(b)
	ctx, cancel := context.WithCancel(context.Background())
	var producers sync.WaitGroup
	defer producers.Wait()
	defer cancel()
	producers.Go(func() { l.produce(ctx, 1, a, b) })
	producers.Go(func() { l.produce(ctx, 2, a) })
	for _, act := range []struct {
		name string
		do   func()
	}{
		{"in calm", func() {}},
		{"leadership is handed over", l.handOver},
		{"a follower loses its power", func() { l.outage(1) }},
		{"a majority loses its power", func() { l.outage(2) }},
		{"all lose their power", func() { l.outage(3) }},
		{"the leader is cut off", l.cutOff},
		{"a partition is deleted, another made", func() { l.create(c); l.drop(b); producers.Go(func() { l.produce(ctx, 3, c) }) }},
		{"retention", func() { l.retain(a, 30); l.retain(c, 5) }},
		{"a follower comes back behind the log", l.longOutage},
		{"a node is added", func() { l.join(4) }},
		{"a node is removed", l.leave},
		{"all lose their power again", func() { l.outage(len(l.members)) }},
		{"a follower stops cleanly", l.cleanStop},
		{"the last partition is made", func() { l.create(d); l.retain(a, 20) }},
	} {
		l.at(act.name)
		act.do()
		l.enough(25)
		if t.Failed() {
			return
		}
	}
	l.atRandom(a, c)
	cancel()
	producers.Wait()
	l.at("at the end")
	l.level(slices.Collect(maps.Keys(l.members))...)
	t.Logf("%d cuts, %d entries acknowledged", l.cuts, l.total.Load())
	l.stopMembers()
	for _, p := range l.kept {
		l.wake(p)
	}
}

// atRandom goes on with as many acts as POWER_ACTS says, in any order.
func (l *powerLab) atRandom(keys ...partition.Key) {
	more, _ := strconv.Atoi(os.Getenv("POWER_ACTS"))
	acts := []func(){
		l.handOver, l.cutOff, l.longOutage, l.cleanStop, func() { l.outage(1) }, func() { l.outage(2) }, func() { l.outage(len(l.members)) },
		func() { l.retain(keys[l.random.IntN(len(keys))], l.random.Int64N(40)) },
		func() {
			if len(l.members) > 3 {
				l.leave()
			} else {
				l.join(meta.NodeID(len(l.nodes) + 1))
			}
		},
	}
	for n := range more {
		l.mu.Lock()
		act := l.random.IntN(len(acts))
		l.mu.Unlock()
		l.at(fmt.Sprintf("act %d, of kind %d", n, act))
		acts[act]()
		l.enough(25)
		if l.t.Failed() {
			return
		}
	}
}

func (l *powerLab) stopMembers() {
	for _, p := range l.members {
		p.node.Close()
		p.member.stop()
		p.stop()
	}
}

func (l *powerLab) handOver() {
	leader := l.lead()
	l.level(l.followers(leader)...)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := leader.group.Transfer(ctx, l.followers(leader)[0]); err != nil {
		l.t.Log("not handed over:", err)
	}
}

// outage takes the power of n nodes, the leader among them when they are more than one.
func (l *powerLab) outage(n int) {
	leader := l.lead()
	ids := append([]meta.NodeID{leader.id}, l.followers(leader)...)
	if n == 1 {
		ids = ids[1:]
	}
	ids = ids[:min(n, len(ids))]
	l.crash(ids...)
	if n == 1 {
		l.enough(20)
	}
	l.start(ids...)
	l.lead()
}

// cutOff lets a leader go on by itself with what nobody else hears of.
func (l *powerLab) cutOff() {
	leader := l.lead()
	l.partition(leader.id, true)
	l.lead(l.followers(leader)...)
	l.enough(20)
	l.partition(leader.id, false)
}

// longOutage lets the log go on until it no longer reaches back to a follower that is away.
func (l *powerLab) longOutage() {
	leader := l.lead()
	away := l.followers(leader)[0]
	last, _ := l.members[away].group.log.LastIndex()
	l.crash(away)
	l.until("the log has dropped its head", func() bool {
		if p := l.serving(); p != nil {
			leader = p
		}
		first, _ := leader.group.log.FirstIndex()
		return first > last+1 || l.t.Failed()
	})
	l.start(away)
	l.level(away)
}

func (l *powerLab) join(id meta.NodeID) {
	m := l.add(id)
	l.swap.Lock()
	p := l.power(m)
	l.swap.Unlock()
	l.change(func(ctx context.Context, g *Group) error { return g.AddNonvoter(ctx, m.self) })
	l.until("it has caught up", func() bool {
		leader := l.serving()
		return l.t.Failed() || leader != nil && leader.group.inSync(m.self) && p.set.Complete()
	})
	l.change(func(ctx context.Context, g *Group) error { return g.AddVoter(ctx, m.self) })
	l.level(id)
}

// change repeats a change of members until a leader has made it.
func (l *powerLab) change(do func(context.Context, *Group) error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	l.until("the members are changed", func() bool {
		leader := l.serving()
		return l.t.Failed() || leader != nil && do(ctx, leader.group) == nil
	})
}

func (l *powerLab) leave() {
	leader := l.lead()
	gone := l.members[l.followers(leader)[0]]
	l.change(func(ctx context.Context, g *Group) error { return g.RemoveServer(ctx, gone.self) })
	l.swap.Lock()
	defer l.swap.Unlock()
	if err := gone.node.Remove(testShard); err != nil {
		l.t.Fatal(err)
	}
	gone.group = nil
	gone.stop()
	gone.member.stop()
	l.mu.Lock()
	l.alive[gone.id] = nil // its disk is thrown away
	delete(l.alive, gone.id)
	delete(l.images, gone.id)
	delete(l.synced, gone.id)
	l.mu.Unlock()
	delete(l.members, gone.id)
}

func (l *powerLab) cleanStop() {
	leader := l.lead()
	p := l.members[l.followers(leader)[0]]
	l.swap.Lock()
	p.member.stop()
	p.stop()
	l.swap.Unlock()
	l.enough(10)
	l.start(p.id)
	l.level(p.id)
}

// wake starts the nodes of a photograph, all of them after the cut, and lets them elect a leader and go on.
func (l *powerLab) wake(p photograph) {
	w := newPowerLab(l.t)
	w.moment, w.founders = "after "+p.what, l.founders
	l.t.Log(w.moment)
	for id, disk := range p.disks {
		w.nodes[id] = &member{c: w.cluster, id: id, disk: disk, fault: vfs.NewFault(disk), self: l.nodes[id].self}
	}
	defer w.stopMembers()
	w.acked = p.acked
	for k := range l.starts {
		w.starts[k] = l.starts[k]
	}
	for id := range p.disks {
		w.start(id)
	}
	leader := w.lead()
	w.create(powerKey("after"))
	w.level(w.followers(leader)...)
	for k, list := range p.acked {
		part, ok := leader.set.Get(k)
		if !ok {
			if len(list) > 0 && !l.gone[k] {
				l.t.Errorf("%s: %v is lost", w.moment, k)
			}
			continue
		}
		c, err := readContents(part)
		if err == nil {
			err = checkAcked(c, list, w.starts[k])
		}
		if err != nil {
			l.t.Errorf("%s: %v: %v", w.moment, k, err)
		}
	}
}

// TestLyingDisk: a follower whose disk says that it has synced, and has not, loses its power. While the leader lives the others miss nothing, and it is told
// again what it had.
func TestLyingDisk(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	leader.mustPut("honest=1")
	liar := follower(c, leader)
	c.until("all have it", c.same(leader, liar))
	lie, err := vfs.NewRules("", []vfs.Rule{{Mode: vfs.Lie}})
	if err != nil {
		t.Fatal(err)
	}
	liar.fault.SetRules(lie)
	for i := range 50 {
		leader.mustPut(fmt.Sprintf("k%d=v", i))
	}
	c.until("it has said that it has all", c.same(leader, liar))
	c.partition(liar.id, true) // nobody tells it again before it was looked at
	liar.crash()
	leader.mustPut("meanwhile=1")
	liar.restart()
	if got := liar.sm.all(); len(got) > 1 {
		t.Fatalf("%d entries survived on a disk that lies", len(got))
	}
	c.partition(liar.id, false)
	c.until("it has been told again", c.same(leader, liar))
	leader.mustPut("after=1")
	c.until("it goes on", c.same(leader, liar))
}
