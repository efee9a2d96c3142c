package partition

import (
	"context"
	"sync"
	"time"
)

// DefaultCatchUpBytesPerSecond bounds catch-up in each direction: a quarter of
// what a common disk writes, so that live traffic keeps the rest.
const DefaultCatchUpBytesPerSecond = 64 << 20

// pacer lets bytes pass at a bounded rate. What was not used is not saved up.
type pacer struct {
	rate int64 // bytes per second
	mu   struct {
		sync.Mutex
		free time.Time // when the next bytes may pass
	}
}

func (p *pacer) init(bytesPerSecond int64) {
	if bytesPerSecond <= 0 {
		bytesPerSecond = DefaultCatchUpBytesPerSecond
	}
	p.rate = bytesPerSecond
}

// wait blocks until n bytes may pass.
func (p *pacer) wait(ctx context.Context, n int64) error {
	return sleep(ctx, time.Until(p.reserve(time.Now(), n)))
}

// reserve takes the next turn and returns when it is.
func (p *pacer) reserve(now time.Time, n int64) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.free.Before(now) {
		p.mu.free = now
	}
	turn := p.mu.free
	p.mu.free = turn.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	return turn
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
