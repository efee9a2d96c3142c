package history

import (
	"testing"
	"time"
)

func TestGaps(t *testing.T) {
	r := newRig()
	began := r.clock
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	for i, ms := range []int{0, 100, 200, 1200, 1300, 4300, 4300, 4400} {
		r.clock = at(ms)
		r.write("a", 0, int64(i), 1)
	}
	d := r.h.Writer("device", r.t)
	for _, ms := range []int{4500, 4600} {
		r.clock = at(ms)
		d.Stored(d.Send(Anywhere, 0))
	}
	for name, c := range map[string]struct{ from, to, wantFrom, wantTo int }{
		"all":                           {0, 4400, 1300, 4300},
		"the first part":                {0, 1250, 200, 1200},
		"a window within a pause":       {2000, 3000, 1300, 4300},
		"a window that begins in it":    {2000, 4400, 1300, 4300},
		"a window that ends in it":      {1250, 2000, 1300, 4300},
		"a window behind everything":    {5000, 6000, 4400, 6000},
		"a window of an instant's size": {150, 151, 100, 200},
	} {
		var got *Pause
		for _, p := range r.h.Gaps(at(c.from), at(c.to)) {
			if p.Topic == "t" && p.Partition == 0 {
				got = &p
			}
		}
		if got == nil || !got.From.Equal(at(c.wantFrom)) || !got.To.Equal(at(c.wantTo)) {
			t.Errorf("%s: %+v, want %d to %d ms", name, got, c.wantFrom, c.wantTo)
		}
	}
	gaps := r.h.Gaps(at(4400), at(5000))
	if len(gaps) != 2 || gaps[0].Writer != "" || !gaps[0].Open || gaps[1].Writer != "device" || !gaps[1].Open || gaps[1].Length() != 400*time.Millisecond {
		t.Errorf("longest first: %+v", gaps)
	}
	if gaps := r.h.Gaps(at(10), at(10)); len(gaps) != 0 {
		t.Errorf("an empty window has %v", gaps)
	}
}
