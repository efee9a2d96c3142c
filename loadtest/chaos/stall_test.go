package chaos

import (
	"context"
	"testing"
	"time"
)

func TestStallsWithinAGap(t *testing.T) {
	s := &stalls{start: time.Now()}
	at := func(sec float64) time.Time { return s.start.Add(time.Duration(sec * 1e9)) }
	s.took(at(1), at(1.1)) // usual
	s.took(at(2), at(3))
	s.took(at(5), at(7))
	for _, c := range []struct{ at, long, want float64 }{{0, 1.9, 0}, {1, 2, 1}, {2.5, 1, 0.5}, {2.5, 3, 1}, {5.5, 0.5, 0.5}, {0, 10, 3}} {
		g := gap{At: time.Duration(c.at * 1e9), Long: time.Duration(c.long * 1e9)}
		if got := s.within(g).Seconds(); got != c.want {
			t.Errorf("%v s at %v s: %v s, want %v s", c.long, c.at, got, c.want)
		}
	}
}

func TestStallsLookAtTheMachine(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*stallEvery)
	defer cancel()
	if err := (&stalls{start: time.Now()}).run(ctx, t.TempDir()); err != nil {
		t.Error(err)
	}
	if err := (&stalls{}).run(ctx, t.TempDir()+"/none"); err == nil {
		t.Error("it looks where nothing is")
	}
}

func TestAStalledMachineExcuses(t *testing.T) {
	o := outcome(Kill, 4*time.Second)
	if !o.over() {
		t.Error("4 s are allowed")
	}
	o.Stalled = 1500 * time.Millisecond
	if o.over() || !o.excused() {
		t.Error("4 s with 1.5 s of a machine that stood still are too long")
	}
	o.Worst.Long = 5 * time.Second
	if !o.over() || o.excused() {
		t.Error("the machine excuses more than its part")
	}
}
