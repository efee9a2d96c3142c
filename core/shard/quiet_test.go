package shard

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

func TestIdle(t *testing.T) {
	var i idle
	at := time.Unix(1000, 0)
	look := func(leads bool, last uint64, after time.Duration, want bool) {
		t.Helper()
		at = at.Add(after)
		if got := i.look(leads, last, at) >= quietAfter; got != want {
			t.Errorf("at %v with last %d: idle is %v", at, last, got)
		}
	}
	look(true, 7, 0, false)
	look(true, 7, quietAfter-1, false)
	look(true, 7, 1, true)
	look(true, 8, time.Second, false) // an entry
	look(true, 8, quietAfter, true)
	look(false, 8, time.Second, false) // another one leads
	look(true, 8, time.Hour, false)
	look(true, 8, quietAfter, true)
}

// sent is a pipeline that counts.
type sent struct {
	raft.AppendPipeline
	n int
}

func (s *sent) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	s.n++
	return nil, nil
}

func TestPipelineRepeatsNothing(t *testing.T) {
	c := newCluster(t, 1, nil)
	g := c.leader().group
	under := &sent{}
	p := &pipeline{AppendPipeline: under, t: g.cur.Load().trans, to: "2-x"}
	send := func(a raft.AppendEntriesRequest, want int) {
		t.Helper()
		before := under.n
		if _, err := p.AppendEntries(&a, nil); err != nil {
			t.Fatal(err)
		}
		if got := under.n - before; got != want {
			t.Errorf("%+v was sent %d times", a, got)
		}
	}
	at := func(prev, commit uint64) raft.AppendEntriesRequest {
		return raft.AppendEntriesRequest{Term: 3, PrevLogEntry: prev, LeaderCommitIndex: commit}
	}
	with := at(7, 7)
	with.Entries = []*raft.Log{{Index: 8}}
	send(with, 1)
	send(at(8, 7), 0) // said with the entry
	send(at(8, 8), 1) // committed
	send(at(8, 8), 0)
	send(with, 1) // entries are never left out
	send(with, 1)
	send(at(8, 8), 1)
	send(at(8, 8), 0)
	g.peers.missed("2-x") // it may have been away
	send(at(8, 8), 1)
	send(at(8, 8), 0)
	p.at = p.at.Add(-repeatAfter)
	send(at(8, 8), 1)
}

// A follower is told what is committed, and then nothing for as long as nothing happens; asked whether it has everything, it says so
// all the same.
func TestIdleFollowerIsLeftAlone(t *testing.T) {
	attempts(t, func() error { return idleFollowerIsLeftAlone(t) })
}

func idleFollowerIsLeftAlone(t *testing.T) error {
	c := newCluster(t, 3, nil)
	defer c.close()
	leader := c.leader()
	leader.mustPut("a=1")
	f := follower(c, leader)
	c.until("the follower has the entry", c.same(leader, f))
	if err := f.group.Settled(t.Context()); err != nil {
		return err
	}
	times := func() uint64 {
		f.group.mu.Lock()
		defer f.group.mu.Unlock()
		return f.group.mu.heard.times
	}
	before, began := times(), time.Now()
	for range 4 {
		if err := f.group.Settled(t.Context()); err != nil {
			return err
		}
	}
	if most := 1 + uint64(time.Since(began)/repeatAfter); times()-before > most+1 {
		return fmt.Errorf("%d messages within %v of idleness", times()-before, time.Since(began))
	}
	return nil
}

// calm is a heartbeat timeout with which a busy machine keeps its leader.
const calm = 3 * time.Second

// resting tells whether a leader's group is idle and the library's goroutines that send to its followers wait. A leader that has lost its place
// gets it back: nobody else's group is looked at.
func resting(m *member) func() bool {
	return func() bool {
		m.lead()
		m.group.news.mu.Lock()
		defer m.group.news.mu.Unlock()
		return m.group.beats.quiet.Load() && m.group.news.is != nil
	}
}

// Whatever happens to a group that has been idle for long is known to everybody as soon as in another one.
func TestRestingGroup(t *testing.T) {
	c := newCluster(t, 3, func(_ meta.NodeID, o *Options) {
		o.quietAfter, o.quietBeat, o.Heartbeat = time.Second, 150*time.Millisecond, calm
	})
	leader := c.leader()
	f := follower(c, leader)
	leader.mustPut("a=1")
	c.until("the group rests", resting(leader))
	leader.mustPut("b=2")
	c.until("the followers have the entry", c.same(leader, f))
	c.until("the group rests again", resting(leader))
	f.crash() // comes back without knowing what is committed
	f.restart()
	c.until("the follower has both entries", c.same(leader, f))
	c.until("the group rests beside it", resting(leader))
	leader.insist("a resting leader proves itself", func() error { return leader.group.Verify(t.Context()) })
	c.until("the follower is in sync", func() bool { return leader.group.inSync(f.group.node.o.Self) })
	f.mustPut("c=3") // leadership moves
	c.until("the old leader has what the new one wrote", c.same(f, leader))
	c.until("the new leader rests", resting(f)) // until the end of the test
}

// The library waits a tenth to a fifth of the heartbeat timeout after each heartbeat. Those of idle groups are sent at every moment all the same, here 10 ms apart.
func TestIdleHeartbeatsComeAtEveryMoment(t *testing.T) {
	c := newCluster(t, 3, func(_ meta.NodeID, o *Options) {
		o.quietAfter, o.quietBeat, o.Heartbeat = time.Millisecond, 10*time.Millisecond, calm
	})
	leader := c.leader()
	leader.mustPut("a=1")
	c.until("the group rests", resting(leader))
	const some, librarys = 10, calm / 10
	began, turn := time.Now(), leader.group.beats.turn.Load()
	c.until("heartbeats come faster than by the library's timer", func() bool {
		leader.lead()
		now := leader.group.beats.turn.Load()
		if now < turn+some {
			return false
		}
		took := time.Since(began)
		began, turn = time.Now(), now
		return took < some*librarys/2
	})
	c.until("the heartbeat timeout is what it was", func() bool {
		return leader.group.raft().ReloadableConfig().HeartbeatTimeout == leader.group.heartbeat
	})
}

func TestBeatsWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every = 150 * time.Millisecond
		var b beats
		m := &moments{every: every}
		var first atomic.Int32
		var all sync.WaitGroup
		var sent [3]time.Time
		for i := range sent {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 20 * time.Millisecond) // the library's timers
				if b.wait(t.Context(), m) {
					first.Add(1)
				}
				sent[i] = time.Now()
			})
		}
		all.Wait()
		if sent[0] != sent[1] || sent[1] != sent[2] || sent[0].UnixNano()%int64(every) != 0 {
			t.Errorf("sent at %v", sent)
		}
		if n := first.Load(); n != 1 {
			t.Errorf("%d heartbeats were the first of their group", n)
		}
	})
}

func TestBeatsHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b beats
		m := &moments{every: time.Hour}
		began := time.Now()
		var waiting sync.WaitGroup
		waiting.Go(func() { b.wait(t.Context(), m) })
		synctest.Wait()
		done := b.hurry()
		waiting.Wait()
		b.wait(t.Context(), m) // the check is still waiting
		if took := time.Since(began); took > 0 {
			t.Errorf("heartbeats waited for %v", took)
		}
		done()
		b.wait(t.Context(), m)
		if took := time.Since(began); took == 0 {
			t.Error("the next did not wait")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		before := time.Now()
		b.wait(ctx, m)
		if took := time.Since(before); took > 0 {
			t.Errorf("after the end one waited for %v", took)
		}
	})
}

// Whoever asks an idle group's leader to prove itself does not wait for the moment of its heartbeats.
func TestVerifyOfAnIdleGroupDoesNotWait(t *testing.T) {
	attempts(t, func() error { return verifyDoesNotWait(t) })
}

func verifyDoesNotWait(t *testing.T) error {
	c := newCluster(t, 3, nil)
	defer c.close()
	leader := c.leader()
	leader.mustPut("a=1")
	g := leader.group
	waits := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // a heartbeat that waits for an hour
		defer close(waits)
		g.beats.wait(ctx, &moments{every: time.Hour})
	}()
	c.until("the heartbeat waits", func() bool {
		g.beats.mu.Lock()
		defer g.beats.mu.Unlock()
		return g.beats.mu.now != nil
	})
	if err := g.Verify(t.Context()); err != nil {
		return err
	}
	<-waits
	return nil
}
