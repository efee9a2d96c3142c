package chaos

import (
	"context"
	"testing"
	"time"
)

func TestStallsWithinAGap(t *testing.T) {
	s := &stalls{start: time.Now()}
	at := func(sec float64) time.Time { return s.start.Add(time.Duration(sec * 1e9)) }
	s.took(at(1), at(1.09), stallMin) // usual
	s.took(at(5), at(6.5), stallMin)
	s.took(at(2), at(3), stallMin)
	s.took(at(6), at(7), lateMin) // two looks at once
	for _, c := range []struct{ at, long, want float64 }{{0, 1.9, 0}, {1, 2, 1}, {2.5, 1, 0.5}, {2.5, 3, 1}, {5.5, 0.5, 0.5}, {0, 10, 3}} {
		g := gap{At: time.Duration(c.at * 1e9), Long: time.Duration(c.long * 1e9)}
		if got := s.within(g).Seconds(); got != c.want {
			t.Errorf("%v s at %v s: %v s, want %v s", c.long, c.at, got, c.want)
		}
	}
}

// What others take of the processors counts by its part, what is usual not at all, and never more than the bound.
func TestOthersWithinAGap(t *testing.T) {
	s := &stalls{start: time.Now()}
	at := func(sec float64, all, ours time.Duration) usage {
		return usage{s.start.Add(time.Duration(sec * 1e9)), all, ours}
	}
	s.note(at(0, 0, 0), at(2, 3*time.Second, 2200*time.Millisecond), 2)             // others had a fifth
	s.note(at(2, 3*time.Second, 0), at(4, 7*time.Second, 2*time.Second), 2)         // half
	s.note(at(4, 7*time.Second, 0), at(14, 27*time.Second, 0), 2)                   // all
	s.took(s.start.Add(3*time.Second), s.start.Add(3500*time.Millisecond), lateMin) // a quarter of the second part
	for _, c := range []struct{ at, long, want float64 }{{0, 2, 0}, {2, 2, 1.25}, {0, 3, 0.5}, {4, 1, 1}, {4, 9, excusedMax.Seconds()}} {
		g := gap{At: time.Duration(c.at * 1e9), Long: time.Duration(c.long * 1e9)}
		if got := s.within(g).Seconds(); got != c.want {
			t.Errorf("%v s at %v s: %v s, want %v s", c.long, c.at, got, c.want)
		}
	}
}

func TestProcessorTimes(t *testing.T) {
	if got, err := parseAll("cpu  100 10 50 9000 700 3 2 5 4 0\ncpu0 1"); err != nil || got != 1700*time.Millisecond {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "cpu 1 2 3", "cpu a b c d e f g h i", "intr 1 2 3 4 5 6 7 8 9"} {
		if _, err := parseAll(bad); err == nil {
			t.Errorf("%q is understood", bad)
		}
	}
	before, err := used(nil)
	if err != nil {
		t.Fatal(err)
	}
	for after := before; after.ours == before.ours; { // this process works until it is seen
		if after, err = used(nil); err != nil || after.at.Sub(before.at) > patience {
			t.Fatal(after, err)
		}
	}
}

func TestStallsLookAtTheMachine(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*stallEvery)
	defer cancel()
	if err := (&stalls{start: time.Now()}).run(ctx, t.TempDir(), nil); err != nil {
		t.Error(err)
	}
	if err := (&stalls{}).run(ctx, t.TempDir()+"/none", nil); err == nil {
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
