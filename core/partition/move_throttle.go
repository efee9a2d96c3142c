package partition

import (
	"context"
	"sync"
	"time"
)

// throttleRecheck is how often one that waits looks whether the rate has changed.
const throttleRecheck = 500 * time.Millisecond

// Throttle lets bytes pass at a rate that may change at any time. What was not used is not saved up.
type Throttle struct {
	rate func() int64 // bytes per second
	mu   struct {
		sync.Mutex
		debt float64 // bytes that have passed and are not paid for yet
		at   time.Time
	}
}

// NewThrottle returns a throttle whose rate, in bytes per second, is asked for anew whenever it is
// used; 0 and less let nothing pass.
func NewThrottle(rate func() int64) *Throttle { return &Throttle{rate: rate} }

// Wait blocks until bytes may pass.
func (t *Throttle) Wait(ctx context.Context, bytes int64) error {
	for {
		wait := t.pass(time.Now(), bytes)
		if wait <= 0 {
			return ctx.Err()
		}
		if err := sleep(ctx, min(wait, throttleRecheck)); err != nil {
			return err
		}
	}
}

// Piece returns how many bytes to ask for at a time, so that a low rate is kept evenly.
func (t *Throttle) Piece(most int64) int64 { return max(1, min(most, t.rate()/4)) }

// pass lets the bytes through when nothing is owed, or returns how long that will take.
func (t *Throttle) pass(now time.Time, bytes int64) time.Duration {
	rate := float64(t.rate())
	t.mu.Lock()
	defer t.mu.Unlock()
	if elapsed := now.Sub(t.mu.at); elapsed > 0 {
		t.mu.debt = max(0, t.mu.debt-elapsed.Seconds()*max(rate, 0))
		t.mu.at = now
	}
	switch {
	case t.mu.debt <= 0 && rate > 0:
		t.mu.debt = float64(bytes)
		return 0
	case rate <= 0:
		return throttleRecheck
	}
	return time.Duration(t.mu.debt / rate * float64(time.Second))
}
