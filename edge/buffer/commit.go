package buffer

import (
	"context"
	"fmt"
	"time"
)

// commitLoop writes what is queued until ctx ends and the queue is empty, or a write fails.
func (b *Buffer) commitLoop(ctx context.Context) error {
	var out []byte
	for {
		batches, more := b.takeQueued(ctx)
		if len(batches) == 0 {
			if !more {
				return nil
			}
			select {
			case <-b.wake:
				b.linger(ctx)
			case <-ctx.Done():
			}
			continue
		}
		var err error
		if out, err = b.write(batches, out[:0]); err != nil {
			b.fail(err)
			b.finish <- commit{batches, 0}
			b.refuseQueued()
			return b.Err()
		}
		b.finish <- commit{batches, b.Synced()}
		if cap(out) > commitBytesMax { // one huge message must not keep its size for ever
			out = nil
		}
	}
}

// linger lets more gather on disks where a sync is dear.
func (b *Buffer) linger(ctx context.Context) {
	if b.o.Linger <= 0 {
		return
	}
	select {
	case <-time.After(b.o.Linger):
	case <-ctx.Done():
	}
}

// takeQueued takes what one commit may hold; more is false when nothing will come any more.
func (b *Buffer) takeQueued(ctx context.Context) (batches []*batch, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ctx.Err() != nil {
		b.mu.stopping = true
		b.makeRoomLocked() // those who wait learn that it stops
	}
	var size int64
	n := 0
	for n < len(b.mu.sealed) && (n == 0 || size+b.mu.sealed[n].bytes <= commitBytesMax) {
		size += b.mu.sealed[n].bytes
		n++
	}
	batches = append(batches, b.mu.sealed[:n]...)
	b.mu.sealed = append(b.mu.sealed[:0], b.mu.sealed[n:]...)
	if len(b.mu.sealed) == 0 && b.mu.open.entries > 0 && (n == 0 || size+b.mu.open.bytes <= commitBytesMax) {
		batches = append(batches, b.mu.open)
		b.mu.open = b.takeFreeLocked()
	}
	return batches, !b.mu.stopping
}

// write appends the batches with one write and one sync. Only acknowledgements need neither.
func (b *Buffer) write(batches []*batch, out []byte) ([]byte, error) {
	records := 0
	for _, p := range batches {
		if len(p.notes) > 0 {
			p.builder.Add(time.Now().UnixMilli(), []byte(KeyJournal), p.notes, nil)
		}
		if n := p.builder.Len(); n > 0 {
			records += int(n)
			out = append(out, p.builder.Build(nil)...)
		}
	}
	if records == 0 {
		return out, nil
	}
	begin := time.Now()
	if _, err := b.log.Append(out, 0); err != nil {
		return out, fmt.Errorf("append to the buffer: %w", err)
	}
	end, err := b.log.Sync()
	if err != nil {
		return out, fmt.Errorf("sync the buffer: %w", err)
	}
	b.publish(end)
	b.metrics.committed(records, len(out), begin)
	return out, nil
}

// publish lets readers go up to end.
func (b *Buffer) publish(end int64) {
	b.synced.Store(end)
	b.mu.Lock()
	if b.mu.appended != nil {
		close(b.mu.appended)
		b.mu.appended = nil
	}
	b.mu.Unlock()
	if b.o.BudgetBytes > 0 && b.log.Bytes() > b.o.BudgetBytes {
		nudge(b.trim)
	}
}

// fail latches the first error: from here on nothing is acknowledged.
func (b *Buffer) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.err == nil {
		b.mu.err = fmt.Errorf("%w: %w", ErrFailed, err)
		close(b.failed)
		b.o.Logger.Error("the buffer failed: nothing is acknowledged any more", "error", err)
	}
	b.makeRoomLocked()
}

// refuseQueued tells the owners of what was still queued when the buffer failed.
func (b *Buffer) refuseQueued() {
	b.mu.Lock()
	rest := append(b.mu.sealed, b.mu.open)
	b.mu.sealed, b.mu.open = nil, newBatch()
	b.mu.Unlock()
	b.finish <- commit{rest, 0}
}

// commit is what one sync covered; next is the offset after it.
type commit struct {
	batches []*batch
	next    int64
}

// finishLoop delivers and tells, commit after commit, while the committer writes the next one.
func (b *Buffer) finishLoop() {
	var touched []*Owner
	for c := range b.finish {
		err := b.Err()
		for i, p := range c.batches {
			if last := i == len(c.batches)-1; err == nil && (last || len(p.locals) > 0) {
				b.deliver(p.locals, c.upTo(last))
			}
			for _, a := range p.acks {
				if len(a.owner.tags) == 0 {
					touched = append(touched, a.owner)
				}
				a.owner.tags = append(a.owner.tags, a.tag)
			}
		}
		for _, o := range touched {
			o.told(o.tags, err)
			o.tags = o.tags[:0]
		}
		clear(touched)
		touched = touched[:0]
		b.recycle(c.batches)
	}
}

// upTo is the offset that deliver may note: only with the last batch is all of the commit delivered.
func (c commit) upTo(last bool) int64 {
	if last {
		return c.next
	}
	return 0
}

// recycle gives the memory of batches back to the queue. The error of a commit reaches all that came with and after it,
// never one before: Err is latched before the failed batches are handed over, and earlier ones may be told the error too,
// which only makes their devices send again.
func (b *Buffer) recycle(batches []*batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.adaptLocked(time.Now(), batches)
	for _, p := range batches {
		b.mu.bytes -= p.bytes
		b.mu.entries -= p.entries
		if p.bytes > 4*b.o.BatchBytes || len(b.mu.free) >= finishing*2 {
			continue
		}
		p.reset()
		b.mu.free = append(b.mu.free, p)
	}
	if !b.crowdedLocked() {
		b.crowded.Store(false)
		b.makeRoomLocked()
	}
}

// adaptLocked lets the queue be as long as the disk takes within queueTarget: whoever comes waits for all that is before it, and a flood would put
// seconds in front of the others. It is never shorter than a few commits need on a slow card.
func (b *Buffer) adaptLocked(now time.Time, batches []*batch) {
	for _, p := range batches {
		if p.entries == 0 {
			continue
		}
		took := now.Sub(p.first) - b.o.Linger
		switch {
		case took > queueTarget && now.Sub(b.mu.cut) > took:
			fits := int64(float64(b.mu.limit) * float64(queueTarget) / float64(took))
			b.mu.limit, b.mu.cut = max(fits, min(queueBytesMin, b.o.QueueBytes)), now
		case took <= queueTarget && b.crowded.Load():
			b.mu.limit = min(b.mu.limit+queueStep, b.o.QueueBytes)
		}
	}
}
