package partition

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"sluice/core/commitlog"
)

const (
	// woundsMax damaged segments are kept in mind. A disk that has more is found out again by the next scrub; one list
	// entry is 100 bytes.
	woundsMax = 4096
	// A segment that could not be repaired is tried again after repairWait, doubling: what is missing may be a peer that
	// restarts, or one that comes next week.
	repairWait    = 200 * time.Millisecond
	repairWaitMax = time.Minute
)

// wound is a segment that is damaged here, or may be.
type wound struct {
	p    *Partition
	base int64
	// Guarded by wounds.mu.
	cause    error
	sure     bool // all of it was read and its checksum is wrong
	hopeless bool // every peer was asked and none has it whole
	reported bool
	due      time.Time
	wait     time.Duration
}

// wounds is what is known of damage since the set was opened. Reads and the scrubber add, the set's Run takes away.
type wounds struct {
	mu struct {
		sync.Mutex
		list []*wound
	}
	wake chan struct{} // buffered
}

func (w *wounds) init() { w.wake = make(chan struct{}, 1) }

// add notes damage and tells whether it was not known.
func (w *wounds) add(p *Partition, base int64, sure bool, cause error) (news bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := w.findLocked(p, base); i >= 0 {
		w.mu.list[i].sure = w.mu.list[i].sure || sure
		return false
	}
	if len(w.mu.list) >= woundsMax || p.Removed() {
		return false
	}
	w.mu.list = append(w.mu.list, &wound{p: p, base: base, sure: sure, cause: cause, wait: repairWait})
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return true
}

// sure tells whether all of the segment has been read since, or need not be.
func (w *wounds) sure(x *wound) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return x.sure
}

func (w *wounds) findLocked(p *Partition, base int64) int {
	return slices.IndexFunc(w.mu.list, func(x *wound) bool { return x.p == p && x.base == base })
}

func (w *wounds) has(p *Partition, base int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.findLocked(p, base) >= 0
}

func (w *wounds) healed(x *wound) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.list = slices.DeleteFunc(w.mu.list, func(y *wound) bool { return x == y })
}

// forget drops what is known of a partition that is deleted.
func (w *wounds) forget(p *Partition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.list = slices.DeleteFunc(w.mu.list, func(x *wound) bool { return x.p == p })
}

// change edits a wound.
func (w *wounds) change(x *wound, edit func(*wound)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	edit(x)
}

// healing counts the wounds that peers may still mend.
func (w *wounds) healing() int {
	n, hopeless := w.count()
	return n - hopeless
}

func (w *wounds) count() (all, hopeless int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.mu.list {
		if x.hopeless {
			hopeless++
		}
	}
	return len(w.mu.list), hopeless
}

// next returns the wound that is due first, and when.
func (w *wounds) next() (x *wound, due time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.mu.list) == 0 {
		return nil, time.Time{}
	}
	x = slices.MinFunc(w.mu.list, func(a, b *wound) int { return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.base, b.base)) })
	return x, x.due
}

// suspect is told by the logs of reads that found something wrong. A read looks at a part only: Run looks at the rest.
func (s *Set) suspect(p *Partition, base int64, cause error) {
	if s.wounds.add(p, base, false, cause) {
		s.metrics.damageSeen.Inc()
		s.log.Error("damaged segment found while reading", "partition", p.dir, "segment", base, "err", cause)
	}
}

// repair mends damaged segments one by one until ctx ends.
func (s *Set) repair(ctx context.Context) {
	for ctx.Err() == nil && s.Err() == nil {
		x, due := s.wounds.next()
		var timer <-chan time.Time
		if x != nil {
			if wait := time.Until(due); wait <= 0 {
				s.mend(ctx, x)
				continue
			} else {
				timer = time.After(wait)
			}
		}
		select {
		case <-s.wounds.wake:
		case <-timer:
		case <-ctx.Done():
		}
	}
}

// mend tries to repair one segment.
func (s *Set) mend(ctx context.Context, x *wound) {
	info, ok := x.p.log.Info(x.base)
	if !ok || x.p.Removed() { // dropped, or about to be fetched whole
		s.wounds.healed(x)
		return
	}
	if !s.confirm(ctx, x) || ctx.Err() != nil {
		return
	}
	hopeless, err := s.mendFrom(ctx, x, info)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		s.metrics.repaired.Inc()
		s.wounds.healed(x)
		s.log.Info("segment repaired from a peer", "partition", x.p.dir, "segment", x.base, "bytes", info.Bytes)
		x.p.wake()
		return
	}
	s.metrics.repairErrors.Inc()
	s.postpone(x, hopeless, err)
}

// confirm reads all of a segment of which a read has found a part wrong. It returns false when the wound is none.
func (s *Set) confirm(ctx context.Context, x *wound) bool {
	if s.wounds.sure(x) {
		return true
	}
	err := x.p.log.Verify(x.base, false, func(n int) error { return s.catchUp.fetch.Wait(ctx, int64(n)) })
	switch {
	case ctx.Err() != nil:
		return false
	case err == nil, errors.Is(err, commitlog.ErrMissing), errors.Is(err, commitlog.ErrClosed):
		s.wounds.healed(x)
		s.log.Warn("segment is whole after all", "partition", x.p.dir, "segment", x.base)
		return false
	}
	s.wounds.change(x, func(x *wound) { x.sure = true })
	return true
}

func (s *Set) postpone(x *wound, hopeless bool, err error) {
	s.wounds.change(x, func(x *wound) {
		x.hopeless, x.cause = hopeless, err
		x.sure = !hopeless // what nobody can mend may have been a loose cable: it is read again
		x.due = time.Now().Add(x.wait)
		x.wait = min(2*x.wait, repairWaitMax)
		if !hopeless || x.reported {
			return
		}
		x.reported = true
		s.log.Error("damaged segment cannot be repaired: no other replica has it whole; its damaged records are not served, the file is kept",
			"partition", x.p.dir, "segment", x.base, "err", err,
			"hint", "bring back a replica that has it, or let the log start behind it (DeleteRecords)")
	})
}

// errNoPeer is returned when there is nobody to repair from.
var errNoPeer = errors.New("there is no other replica")

// mendFrom asks one peer after the other. It is hopeless when all have answered that they cannot.
func (s *Set) mendFrom(ctx context.Context, x *wound, info commitlog.SegmentInfo) (hopeless bool, err error) {
	var peers []Peer
	if s.o.Peers != nil {
		peers = s.o.Peers()
	}
	hopeless, err = true, errNoPeer
	for _, peer := range peers {
		if err = s.mendWith(ctx, peer, x.p, info); err == nil || ctx.Err() != nil {
			return false, err
		}
		s.log.Info("segment not repaired from peer", "peer", peer.Name, "partition", x.p.dir, "segment", x.base, "err", err)
		hopeless = hopeless && errors.Is(err, ErrPeer)
	}
	return hopeless, err
}

func (s *Set) mendWith(ctx context.Context, peer Peer, p *Partition, info commitlog.SegmentInfo) error {
	conn, err := peer.Dial(ctx)
	if err != nil {
		return fmt.Errorf("dial peer: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := s.greet(conn); err != nil {
		return err
	}
	w, err := p.log.RepairSegment(info)
	if err != nil {
		return err
	}
	defer w.Close()
	failed := func(err error) error { return err } // the damaged file is still there
	if err := s.fetchPieces(ctx, conn, p, info, w, failed); err != nil {
		return err
	}
	if err := w.Commit(); errors.Is(err, commitlog.ErrCorrupt) && w.Resume() == 0 {
		return fmt.Errorf("%w: what came is damaged: %w", ErrPeer, err)
	} else if err != nil {
		return err
	}
	return nil
}
