package shard

import (
	"context"
	"errors"
	"testing"
	"time"
)

// admit drains the queue in the order in which turns are given, one entry at a time.
func admit(a *admission, held room, queued map[*waiter]string) []string {
	var order []string
	for len(a.waiting) > 0 {
		next := a.waiting[0]
		a.leave(held)
		held = room{bytes: next.bytes}
		order = append(order, queued[next])
	}
	return order
}

// TestTurnsGoByBytes checks that a caller with few bytes does not wait behind another's many.
func TestTurnsGoByBytes(t *testing.T) {
	a := newAdmission()
	queued := map[*waiter]string{}
	held, w := a.enter(1, a.window)
	if w != nil {
		t.Fatal("the first entry had to wait")
	}
	enter := func(name string, flow Flow, bytes int64) {
		if _, w := a.enter(flow, bytes); w != nil {
			queued[w] = name
		} else {
			t.Fatalf("%s did not have to wait", name)
		}
	}
	big := a.window
	enter("heavy 1", 1, big)
	enter("heavy 2", 1, big)
	enter("other 1", 2, big)
	enter("other 2", 2, big)
	enter("newcomer", 3, big)
	got := admit(&a, held, queued)
	want := []string{"other 1", "newcomer", "heavy 1", "other 2", "heavy 2"}
	for i := range want {
		if len(got) != len(want) || got[i] != want[i] {
			t.Fatalf("turns %v, want %v", got, want)
		}
	}
}

// TestLightFlowsHaveRoomOfTheirOwn checks that a full window does not stop who takes little, and that this room is bounded too.
func TestLightFlowsHaveRoomOfTheirOwn(t *testing.T) {
	a := newAdmission()
	a.enter(1, a.window)
	if _, w := a.enter(1, 1); w == nil {
		t.Fatal("a full window let its own flow in")
	}
	var holds []room
	for flow := Flow(2); ; flow++ {
		held, w := a.enter(flow, 60<<10)
		if w != nil {
			break
		}
		holds = append(holds, held)
	}
	if n := len(holds); n != lightBytes/(60<<10+entryCost) {
		t.Errorf("%d light entries were let in", n)
	}
	if _, w := a.enter(FlowNone, 0); w == nil {
		t.Error("the room of light flows is full, but an entry was let in")
	}
	for _, h := range holds {
		a.leave(h)
	}
	if a.light != 0 {
		t.Errorf("%d bytes of the light flows' room did not come back", a.light)
	}
}

func TestWindowFollowsTheDisk(t *testing.T) {
	a := newAdmission()
	now := time.Unix(1000, 0)
	for range 100 {
		now = now.Add(time.Second)
		a.committed(now, 2*commitTarget, 1<<20)
	}
	if a.window != windowMin {
		t.Errorf("window %d behind a slow disk, want %d", a.window, windowMin)
	}
	a.committed(now, commitTarget/2, 1<<20)
	if a.window != windowMin {
		t.Error("the window grew though nobody waited")
	}
	a.enter(1, a.window)
	a.enter(1, 1)
	for range 1000 {
		a.committed(now, commitTarget/2, 1<<20)
	}
	if a.window != maxInFlightBytes {
		t.Errorf("window %d before a fast disk, want %d", a.window, maxInFlightBytes)
	}
	a.committed(now, 2*commitTarget, 1)
	once := a.window
	a.committed(now, 2*commitTarget, 1)
	if a.window != once {
		t.Error("the window shrank twice for the entries of one moment")
	}
}

func TestGivingUpWaitingForRoom(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	release := m.sm.block()
	defer release()
	first := m.group.Propose(make([]byte, windowInitial))
	ctx, cancel := context.WithCancel(context.Background())
	answered := make(chan error, 1)
	go func() {
		_, err := m.group.ProposeFor(ctx, 7, make([]byte, windowInitial)).Wait(context.Background())
		answered <- err
	}()
	c.until("the second entry waits", func() bool { return m.group.queue.queued() == 1 })
	cancel()
	if err := <-answered; !errors.Is(err, ErrNotLeader) || !errors.Is(err, context.Canceled) {
		t.Errorf("given up with %v", err)
	}
	if n := m.group.queue.queued(); n != 0 {
		t.Errorf("%d entries still wait", n)
	}
	release()
	if _, err := first.Wait(context.Background()); err != nil {
		t.Error(err)
	}
}

func (q *proposals) queued() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}
