package buffer

import (
	"context"
	"math"
	"sync/atomic"
	"time"
)

const (
	// keepEvery is how often age and the disk's free space are looked at.
	keepEvery = time.Second
	// noHold is held's value while the uplink has no open round.
	noHold = math.MaxInt64
)

// Confirm says that the uplink is done with everything below offset: it may go. The buffer does not remember it over a
// restart, the uplink's journal does.
func (b *Buffer) Confirm(offset int64) {
	for {
		old := b.confirmed.Load()
		if offset <= old {
			return
		}
		if b.confirmed.CompareAndSwap(old, offset) {
			nudge(b.trim)
			return
		}
	}
}

// Confirmed is the highest offset given to Confirm, or where the log began.
func (b *Buffer) Confirmed() int64 { return b.confirmed.Load() }

// Hold says that an open round of the uplink begins at offset: what lies from there on is not dropped however full the
// buffer is. A negative offset ends it.
func (b *Buffer) Hold(offset int64) {
	if offset < 0 {
		offset = noHold
	}
	b.dropping.Lock()
	defer b.dropping.Unlock()
	b.held.Store(offset)
}

// A Floor keeps the log from its offset on for someone's recovery.
type Floor struct {
	b  *Buffer
	at atomic.Int64
}

// NewFloor keeps the log from offset on. Call it before Run.
func (b *Buffer) NewFloor(offset int64) *Floor {
	f := &Floor{b: b}
	f.at.Store(offset)
	b.floors = append(b.floors, f)
	return f
}

// Set moves the floor: what lies below is not needed any more.
func (f *Floor) Set(offset int64) {
	f.at.Store(offset)
	nudge(f.b.trim)
}

// floor is the lowest of all floors.
func (b *Buffer) floor() int64 {
	lowest := int64(math.MaxInt64)
	for _, f := range b.floors {
		lowest = min(lowest, f.at.Load())
	}
	return lowest
}

// keep trims what is confirmed and watches budget, age and disk until ctx ends.
func (b *Buffer) keep(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	b.watchDisk()
	for {
		b.look(ctx)
		select {
		case <-b.trim:
		case now := <-tick.C:
			b.watchDisk()
			if b.o.BudgetAge > 0 {
				b.dropAged(ctx, now)
			}
		case <-ctx.Done():
			return
		}
	}
}

// look gives back what may go.
func (b *Buffer) look(ctx context.Context) {
	b.trimConfirmed()
	over := b.overBudget()
	if over && b.o.WhenFull == DropOldest {
		b.dropOldest(ctx)
		over = b.overBudget()
	}
	b.setFlag(&b.full, over, "the buffer's budget is used up by messages that the core has not confirmed")
}

func (b *Buffer) overBudget() bool {
	return b.o.BudgetBytes > 0 && b.log.Bytes() > b.o.BudgetBytes
}

// flag is what setFlag needs of an atomic.Bool.
type flag interface{ Swap(bool) bool }

// setFlag logs the change, and lets those wait no longer who may go on.
func (b *Buffer) setFlag(f flag, now bool, what string) {
	was := f.Swap(now)
	switch {
	case now && !was:
		b.o.Logger.Warn("messages are refused", "cause", what, "bytes", b.log.Bytes())
	case was && !now:
		b.o.Logger.Info("messages are taken again", "was", what)
		b.makeRoom()
	}
}

func (b *Buffer) watchDisk() {
	free, err := b.o.FS.Free(b.o.Dir)
	if err != nil {
		b.o.Logger.Warn("cannot see how much disk is free", "dir", b.o.Dir, "error", err)
		return
	}
	b.setFlag(&b.lowDisk, free < uint64(b.o.ReserveBytes), "the disk has less than its reserve left")
}

// trimConfirmed removes whole segments below what the uplink confirmed and the gateway's recovery needs.
func (b *Buffer) trimConfirmed() {
	b.removeBelow(min(b.confirmed.Load(), b.floor()))
}

func (b *Buffer) removeBelow(offset int64) {
	start := b.log.Start()
	for _, s := range b.log.Segments() {
		if s.Next > offset || s.Next == b.log.End() { // the last segment is being written
			break
		}
		start = s.Next
	}
	if start == b.log.Start() {
		return
	}
	dropped := b.log.SetStart(start)
	if err := b.log.Unlink(dropped); err != nil {
		b.o.Logger.Error("cannot remove segments of the buffer", "error", err)
		return
	}
	for _, s := range dropped {
		b.metrics.trimmed.Add(int(s.Bytes))
	}
}
