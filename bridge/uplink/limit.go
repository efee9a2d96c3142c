package uplink

import (
	"fmt"
	"time"
)

// bucket limits bytes per second; rate 0 means no limit. It may go into debt by one request, which the next one waits for.
type bucket struct {
	rate  int64
	level float64
	at    time.Time
}

// wait tells how long until something may be sent; 0 = now.
func (b *bucket) wait(now time.Time) time.Duration {
	if b.rate == 0 {
		return 0
	}
	if !b.at.IsZero() {
		b.level = min(float64(b.rate), b.level+now.Sub(b.at).Seconds()*float64(b.rate))
	}
	b.at = now
	if b.level >= 0 {
		return 0
	}
	return time.Duration(-b.level / float64(b.rate) * float64(time.Second))
}

func (b *bucket) take(bytes int) {
	if b.rate != 0 {
		b.level -= float64(bytes)
	}
}

// Window is a span of the local day, in minutes from midnight, in which the uplink may send. From after To spans midnight.
type Window struct{ From, To int }

// ParseWindow reads "22:00-06:00".
func ParseWindow(s string) (Window, error) {
	var fh, fm, th, tm int
	if n, err := fmt.Sscanf(s, "%d:%d-%d:%d", &fh, &fm, &th, &tm); n != 4 || err != nil || len(s) > 11 ||
		fh < 0 || fh > 24 || th < 0 || th > 24 || fm < 0 || fm > 59 || tm < 0 || tm > 59 {
		return Window{}, fmt.Errorf("%q is not a window of the day such as 22:00-06:00", s)
	}
	return Window{fh*60 + fm, th*60 + tm}, nil
}

func (w Window) contains(t time.Time) bool {
	m := t.Hour()*60 + t.Minute()
	if w.From <= w.To {
		return m >= w.From && m < w.To
	}
	return m >= w.From || m < w.To
}

// open tells whether one of the windows contains t; no windows means always.
func open(windows []Window, t time.Time) bool {
	for _, w := range windows {
		if w.contains(t) {
			return true
		}
	}
	return len(windows) == 0
}
