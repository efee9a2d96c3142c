package chaos

import (
	"testing"
	"time"
)

func timelineOf(acks map[string][]float64) *timeline {
	start := time.Now()
	t := newTimeline(start)
	for who, times := range acks {
		for _, at := range times {
			t.heard(who, start.Add(time.Duration(at*float64(time.Second))))
		}
	}
	return t
}

func TestGapsAreAttributed(t *testing.T) {
	acks := []float64{1, 2, 2.5, 6, 6.5, 7, 9, 9.5}
	for name, c := range map[string]struct {
		from, to, at, long float64
	}{
		"within":                           {2.2, 7, 2.5, 3.5},
		"began before":                     {4, 6.2, 2.5, 3.5},
		"goes on beyond":                   {6.8, 7.5, 7, 2},
		"covers all":                       {3, 5, 2.5, 3.5},
		"only what is usual":               {6.1, 6.9, 6, 0.5},
		"none after the last":              {9.2, 12, 9.5, 2.5},
		"one that ended before is another": {6, 6.4, 6, 0.5},
		"everything":                       {0, 10, 2.5, 3.5},
	} {
		got := timelineOf(map[string][]float64{"p": acks}).gaps(time.Duration(c.from*1e9), time.Duration(c.to*1e9))
		if len(got) != 1 || got[0].At.Seconds() != c.at || got[0].Long.Seconds() != c.long {
			t.Errorf("%s: %v, want %v s at %v s", name, got, c.long, c.at)
		}
	}
}

func TestGapsOfEverybodyTheLongestFirst(t *testing.T) {
	tl := timelineOf(map[string][]float64{"a": {1, 2, 3, 4}, "b": {1, 4}, "c": {1, 2.5, 4}})
	got := tl.gaps(1500*time.Millisecond, 3500*time.Millisecond)
	if len(got) != 3 || got[0].Who != "b" || got[1].Who != "c" || got[2].Who != "a" {
		t.Errorf("%v", got)
	}
	if tl.count() != 9 {
		t.Errorf("%d acknowledgements, want 9", tl.count())
	}
}

func TestSilent(t *testing.T) {
	tl := timelineOf(map[string][]float64{"a": {1, 2}, "b": {1, 4}})
	if who, ok := tl.silent(tl.start.Add(4*time.Second), time.Second); !ok || who != "a" {
		t.Errorf("%q, %v", who, ok)
	}
	if who, ok := tl.silent(tl.start.Add(4*time.Second), 2*time.Second); ok {
		t.Errorf("%q is silent", who)
	}
}

// Clients of one partition may tell their acknowledgements in another order than they had them.
func TestLateNewsDoNotGoBack(t *testing.T) {
	tl := timelineOf(map[string][]float64{"a": {1, 3, 2, 4}})
	if got := tl.gaps(0, 5*time.Second); got[0].Long != 2*time.Second {
		t.Errorf("%v", got)
	}
}
