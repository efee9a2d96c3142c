package chaos

import (
	"slices"
	"sync"
	"time"
)

// timeline holds when writes were acknowledged, for every partition (or device) that is written to all the time.
type timeline struct {
	start time.Time
	mu    struct {
		sync.Mutex
		acks map[string][]time.Duration // since start, rising
	}
}

func newTimeline(start time.Time) *timeline {
	t := &timeline{start: start}
	t.mu.acks = map[string][]time.Duration{}
	return t
}

// heard notes an acknowledgement. Those of one partition may come from several clients at once, so a late one counts as now.
func (t *timeline) heard(who string, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	since := at.Sub(t.start)
	if acks := t.mu.acks[who]; len(acks) > 0 {
		since = max(since, acks[len(acks)-1])
	}
	t.mu.acks[who] = append(t.mu.acks[who], since)
}

// gap is a time without an acknowledged write.
type gap struct {
	Who  string        `json:"who"`
	At   time.Duration `json:"at"` // since the run began
	Long time.Duration `json:"long"`
}

// gaps returns the longest gap of everybody that touches the time from one moment to another, the longest first. A gap that began before the first
// moment counts whole, and so does one that goes on beyond the second; nothing is subtracted for what is usual.
func (t *timeline) gaps(from, to time.Duration) []gap {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []gap
	for who, acks := range t.mu.acks {
		out = append(out, longest(who, acks, from, to))
	}
	slices.SortFunc(out, func(a, b gap) int {
		if a.Long != b.Long {
			return int(b.Long - a.Long)
		}
		if a.Who < b.Who {
			return -1
		}
		return 1
	})
	return out
}

// longest looks at one partition. After its last acknowledgement the gap lasts at least until the end of the time looked at.
func longest(who string, acks []time.Duration, from, to time.Duration) gap {
	worst := gap{Who: who}
	first, _ := slices.BinarySearch(acks, from)
	for i := max(first-1, 0); i < len(acks) && acks[i] < to; i++ {
		end := max(to, acks[i])
		if i+1 < len(acks) {
			end = acks[i+1]
		}
		if end > from && end-acks[i] > worst.Long {
			worst.At, worst.Long = acks[i], end-acks[i]
		}
	}
	return worst
}

// silent names somebody who has had no acknowledgement for longer than the bound.
func (t *timeline) silent(now time.Time, bound time.Duration) (who string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for who, acks := range t.mu.acks {
		if now.Sub(t.start)-acks[len(acks)-1] > bound {
			return who, true
		}
	}
	return "", false
}

// count is how many acknowledgements there were of everybody.
func (t *timeline) count() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, acks := range t.mu.acks {
		n += len(acks)
	}
	return n
}
