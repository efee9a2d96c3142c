package chaos

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestScheduleIsOfItsSeed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed, n := rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 100).Draw(t, "n")
		c := Conditions{Switchboard: rapid.Bool().Draw(t, "switchboard"), Gateway: rapid.Bool().Draw(t, "gateway")}
		long := Schedule(seed, n+30, c)
		if diff := cmp.Diff(Schedule(seed, n, c), long[:n]); diff != "" {
			t.Fatalf("a longer schedule begins differently:\n%s", diff)
		}
		if n > 5 && cmp.Equal(Schedule(seed+1, n, c), long[:n]) {
			t.Fatal("another seed gives the same schedule")
		}
	})
}

func TestScheduleHasEveryKindInEveryRound(t *testing.T) {
	for _, c := range []Conditions{{}, {Gateway: true}, {Switchboard: true, Gateway: true}} {
		kinds := c.kinds()
		faults := Schedule(7, 3*len(kinds), c)
		for round := range 3 {
			seen := map[Kind]int{}
			for _, f := range faults[round*len(kinds):][:len(kinds)] {
				seen[f.Kind]++
			}
			for _, k := range kinds {
				if seen[k] != 1 {
					t.Errorf("%+v, round %d: %s comes %d times", c, round, k, seen[k])
				}
			}
		}
	}
}

func TestScheduleKeepsToItsConditions(t *testing.T) {
	for _, f := range Schedule(1, 200, Conditions{}) {
		switch f.Kind {
		case SlowDisk, FailSync, LyingSync, PowerCut, Blackout, Clock, GatewayCut, GatewayDie:
			t.Errorf("%s without what it needs", f.Kind)
		}
	}
	for _, f := range Schedule(1, 20, Conditions{Switchboard: true, Only: []Kind{Kill, Clock}}) {
		if f.Kind != Kill && f.Kind != Clock {
			t.Errorf("%s though only others are wanted", f.Kind)
		}
	}
	if got := Schedule(1, 5, Conditions{Only: []Kind{Clock}}); len(got) != 0 {
		t.Errorf("a schedule of nothing has %d faults", len(got))
	}
}

// What a kind can be is bounded: a fault that never ends or a loss of everything is another kind.
func TestScheduleValues(t *testing.T) {
	for _, f := range Schedule(3, 2000, Conditions{Switchboard: true, Gateway: true}) {
		for _, one := range []*Fault{&f, f.Also} {
			if one == nil {
				continue
			}
			switch v := one.Value; {
			case one.Kind == Lossy && (v < 5 || v > 30), one.Kind == Narrow && (v < 512 || v > 4096), one.Kind == Slow && (v < 20 || v >= 120), one.Kind == Clock && v == 0:
				t.Errorf("%s of %d", one.Kind, v)
			}
		}
		if f.For <= 0 || f.For > 20*time.Second || f.Wait < 500*time.Millisecond || f.Wait > 2*time.Second {
			t.Errorf("fault %d waits %v and lasts %v", f.Number, f.Wait, f.For)
		}
		nobody := []Kind{Blackout, GatewayCut, GatewayDie, Join, Move}
		if slices.Contains(nobody, f.Kind) != (f.Role == "") {
			t.Errorf("%s comes on %q", f.Kind, f.Role)
		}
		if f.Also != nil && f.judged() {
			t.Errorf("%v is judged though it is two", f)
		}
	}
}

func TestFaultText(t *testing.T) {
	f := Fault{Kind: Cut, Role: Leader, For: 2 * time.Second, Also: &Fault{Kind: Lossy, Value: 12}}
	if got, want := f.String(), "cut the leader for 2s while lossy 12 %"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := (Fault{Kind: Clock, Role: Follower, For: time.Second, Value: -3600}).String(), "clock the follower -3600 s for 1s"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
