package partition

import (
	"slices"
	"sync"
	"sync/atomic"

	"sluice/core/commitlog"
)

// incomplete is what a partition lacks since a checkpoint was restored.
type incomplete struct {
	p          *Partition
	missing    []commitlog.SegmentInfo // to be fetched
	unverified []commitlog.SegmentInfo // here, but perhaps not whole: to be compared with their checksum
	unsynced   bool                    // here, but perhaps not on disk
}

func (w *incomplete) done() bool {
	return len(w.missing) == 0 && len(w.unverified) == 0 && !w.unsynced
}

// catchUp is the work between adopting a manifest and having all that it names.
// Restore and apply add and take away, Run works it off.
type catchUp struct {
	mu struct {
		sync.Mutex
		work map[Key]*incomplete
		done chan struct{} // nil while nobody waits
	}
	wake  chan struct{} // buffered: there may be work
	fetch *Throttle
	serve *Throttle
	slots chan struct{} // connections being served
	// partial is how much is here of the segment that is being fetched.
	partial atomic.Int64
}

func (c *catchUp) init(fetch, serve *Throttle) {
	c.mu.work = make(map[Key]*incomplete)
	c.wake = make(chan struct{}, 1)
	c.fetch, c.serve = fetch, serve
	c.slots = make(chan struct{}, maxServed)
}

// add replaces what is known of a partition.
func (c *catchUp) add(w incomplete) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addLocked(w)
}

func (c *catchUp) addLocked(w incomplete) {
	w.p.doubtful.Store(len(w.unverified) > 0)
	if w.done() {
		c.finishLocked(w.p)
		return
	}
	c.mu.work[w.p.key] = &w
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// finishLocked takes a partition off the list.
func (c *catchUp) finishLocked(p *Partition) {
	delete(c.mu.work, p.key)
	if len(c.mu.work) == 0 && c.mu.done != nil {
		close(c.mu.done)
		c.mu.done = nil
	}
}

// completed returns a channel that is closed once nothing is lacking.
func (c *catchUp) completed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.mu.work) == 0 {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	if c.mu.done == nil {
		c.mu.done = make(chan struct{})
	}
	return c.mu.done
}

// forget drops the work for a deleted partition.
func (c *catchUp) forget(p *Partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finishLocked(p)
}

// trim drops the work for segments that are no longer part of the log. One that
// was the last when the checkpoint was taken, and was appended to since, can be
// part of it though all that is missing of it lies below the start.
func (c *catchUp) trim(p *Partition) {
	missing, segments := p.log.Missing(), p.log.Segments()
	c.update(p, func(w *incomplete) {
		w.missing = slices.DeleteFunc(w.missing, func(seg commitlog.SegmentInfo) bool {
			return !contains(missing, seg.Base)
		})
		w.unverified = slices.DeleteFunc(w.unverified, func(seg commitlog.SegmentInfo) bool {
			return !contains(segments, seg.Base)
		})
	})
}

// update changes what is known of p, if anything.
func (c *catchUp) update(p *Partition, change func(*incomplete)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.mu.work[p.key]
	if w == nil || w.p != p {
		return
	}
	change(w)
	w.p.doubtful.Store(len(w.unverified) > 0)
	if w.done() {
		c.finishLocked(p)
	}
}

// list copies the work, in the order of the keys.
func (c *catchUp) list() []incomplete {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]incomplete, 0, len(c.mu.work))
	for _, w := range c.mu.work {
		list = append(list, incomplete{
			p: w.p, unsynced: w.unsynced,
			missing: slices.Clone(w.missing), unverified: slices.Clone(w.unverified),
		})
	}
	slices.SortFunc(list, func(a, b incomplete) int { return compareKeys(a.p.key, b.p.key) })
	return list
}

func (c *catchUp) complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.mu.work) == 0
}

// verified tells whether every segment that is here is known to be whole.
func (c *catchUp) verified() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.mu.work {
		if len(w.unverified) > 0 {
			return false
		}
	}
	return true
}

// unverified returns the segments of p that are not known to be whole.
func (c *catchUp) unverified(p *Partition) []commitlog.SegmentInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.mu.work[p.key]; w != nil && w.p == p {
		return slices.Clone(w.unverified)
	}
	return nil
}

func (c *catchUp) segments() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, w := range c.mu.work {
		n += len(w.missing)
	}
	return n
}

func (c *catchUp) bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var n int64
	for _, w := range c.mu.work {
		for _, seg := range w.missing {
			n += seg.Bytes
		}
	}
	return max(0, n-c.partial.Load())
}

// Complete tells whether all data named by the restored checkpoint is here and
// synced. Until then reads of what is missing fail with ErrMissing.
// What is damaged is not here; but what no peer can mend is not waited for.
func (s *Set) Complete() bool { return s.catchUp.complete() && s.wounds.healing() == 0 }

// Servable tells whether the set may be led from: nothing is lacking. Damaged segments are not served and not
// lacking: what of them is good is read.
func (s *Set) Servable() bool { return s.catchUp.complete() }

// Completed returns a channel that is closed once Complete is true. A later
// Restore may make it false again.
func (s *Set) Completed() <-chan struct{} { return s.catchUp.completed() }

// Lacks returns how many bytes of segments are still to be fetched.
func (s *Set) Lacks() int64 { return s.catchUp.bytes() }

// Fetched returns how many bytes have been fetched from peers since the start.
func (s *Set) Fetched() uint64 { return s.metrics.fetchedBytes.Get() }
