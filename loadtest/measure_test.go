package loadtest

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A system that stands still for a second must show in the latencies of all that was meant to begin meanwhile, not in one.
func TestNoCoordinatedOmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := newSchedule(100, 300, 0)
		if err != nil {
			t.Fatal(err)
		}
		m := NewMeter()
		for {
			at, n, ok := s.take(context.Background())
			if !ok {
				break
			}
			if n == 100 {
				time.Sleep(time.Second) // the system; the clock is synctest's
			}
			m.Done(0, at, 1)
		}
		r := m.Result("x", 100, nil)
		if r.Operations != 300 || r.LatencyMs["p90"] < 600 || r.LatencyMs["max"] < 999 || r.PauseMs < 999 {
			t.Errorf("result = %+v", r)
		}
		if r.LatencyMs["p50"] > 1 {
			t.Errorf("p50 = %v ms, though two thirds were not delayed", r.LatencyMs["p50"])
		}
	})
}

func TestScheduleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := newSchedule(10, 0, 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, _, ok := s.take(context.Background()); ok; _, _, ok = s.take(context.Background()) {
			n++
		}
		if n != 21 || time.Since(s.start) != 2*time.Second {
			t.Errorf("%d operations in %v", n, time.Since(s.start))
		}
		if _, err := newSchedule(10, 0, 0); err == nil {
			t.Error("a load without an end is accepted")
		}
	})
}
