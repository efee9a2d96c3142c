package partition

import (
	"context"
	"time"
)

// DefaultCatchUpBytesPerSecond bounds catch-up in each direction: a quarter of
// what a common disk writes, so that live traffic keeps the rest.
const DefaultCatchUpBytesPerSecond = 64 << 20

// fixedThrottle has the default rate for 0.
func fixedThrottle(bytesPerSecond int64) *Throttle {
	if bytesPerSecond <= 0 {
		bytesPerSecond = DefaultCatchUpBytesPerSecond
	}
	return NewThrottle(func() int64 { return bytesPerSecond })
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
