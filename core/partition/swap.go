package partition

import (
	"fmt"
	"slices"

	"sluice/core/commitlog"
	"sluice/core/meta"
)

// kindSwap puts rewritten segments in the place of those that they were made of. It is only proposed once every replica knows it.
const kindSwap = 6

// Swap is what a compaction has come to. It is refused when the partition is not what it was made of any more.
type Swap struct {
	Key Key
	// From is the first dirty offset when it was made, To the one from then on.
	From, To int64
	Groups   []commitlog.SwapGroup
}

type swapBody struct {
	_        struct{} `cbor:",toarray"`
	Topic    meta.TopicID
	Index    int32
	From, To int64
	Groups   []commitlog.SwapGroup
}

// EncodeSwap returns the entry that makes a compaction count.
func EncodeSwap(w Swap) []byte {
	return encodeBody(kindSwap, swapBody{Topic: w.Key.Topic, Index: w.Key.Index, From: w.From, To: w.To, Groups: w.Groups})
}

func (s *Set) applySwap(body []byte) any {
	var b swapBody
	if err := sectionDecoding.Unmarshal(body, &b); err != nil {
		return s.refuseEntry(fmt.Errorf("%w: %w", ErrInvalidEntry, err))
	}
	p := s.partitions[Key{b.Topic, b.Index}]
	switch {
	case p == nil:
		return ErrUnknownPartition
	case p.frozen.Load() != 0:
		return ErrFrozen
	}
	s.write(p) // which segment is the last must not depend on how entries are grouped
	if s.Err() != nil {
		return nil
	}
	if p.dirty.Load() != b.From || b.To < b.From || b.To > p.next || !p.log.Fits(b.Groups) {
		return ErrChanged
	}
	if _, err := p.log.Swap(b.Groups); err != nil {
		s.fail(fmt.Errorf("swap segments of %s-%d: %w", p.name, p.key.Index, err))
		return nil
	}
	p.dirty.Store(b.To)
	s.replaced(p, b.Groups)
	p.version++
	s.touch(p)
	return nil
}

// replaced takes from the lists of what is to be done what a swap has settled, and adds what it lacks.
func (s *Set) replaced(p *Partition, groups []commitlog.SwapGroup) {
	for _, g := range groups {
		for _, old := range g.Old {
			s.wounds.drop(p, old.Base)
			s.metrics.swappedBefore.AddInt64(old.Bytes)
		}
		s.metrics.swappedAfter.AddInt64(g.New.Bytes)
	}
	s.catchUp.replaced(p, groups)
	s.metrics.swaps.Inc()
	if len(groups) > 0 {
		s.doomed.add(doomed{partition: p, swapped: groups})
	}
}

// replaced makes the work for p what it is after a swap.
func (c *catchUp) replaced(p *Partition, groups []commitlog.SwapGroup) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := incomplete{p: p}
	if known := c.mu.work[p.key]; known != nil && known.p == p {
		w = *known
	}
	// Under the lock: a segment that is there by now is taken off the list after it got its name.
	w.missing = p.log.Missing()
	w.unverified = slices.DeleteFunc(slices.Clone(w.unverified), func(seg commitlog.SegmentInfo) bool {
		return slices.ContainsFunc(groups, func(g commitlog.SwapGroup) bool { return contains(g.Old, seg.Base) })
	})
	c.addLocked(w)
}

// drop forgets a wound of a segment that is no longer part of the log.
func (w *wounds) drop(p *Partition, base int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.list = slices.DeleteFunc(w.mu.list, func(x *wound) bool { return x.p == p && x.base == base })
}

// Unsettled returns how many swaps wait for a checkpoint: until then the files that they have replaced take up room.
func (s *Set) Unsettled() int {
	s.doomed.Lock()
	defer s.doomed.Unlock()
	n := 0
	for _, d := range s.doomed.list {
		if d.swapped != nil {
			n++
		}
	}
	return n
}

// Dirty returns the first offset that was never compacted, 0 when none was.
func (p *Partition) Dirty() int64 { return p.dirty.Load() }
