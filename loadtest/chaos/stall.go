package chaos

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	// stallEvery is the pause between two looks at the disk, wakeEvery the sleep by which is seen whether one is given the processor.
	stallEvery = 50 * time.Millisecond
	wakeEvery  = 10 * time.Millisecond
	// stallMin is what counts as a stall of the disk; one that others use too takes tens of milliseconds for a sync. lateMin is what counts as waking late.
	stallMin = 100 * time.Millisecond
	lateMin  = 50 * time.Millisecond
	// excusedMax bounds what the machine can excuse of one gap: what is twice too long is an outage, whatever the machine did.
	excusedMax = unavailableMax
)

// stalls are times in which this machine itself did nothing for the cluster: a write of 4 KiB and its sync, on the disk that all nodes share, took long,
// nobody was given the processor, or others had it (see others.go). No cluster on this machine could have acknowledged writes as fast as on a quiet one.
type stalls struct {
	start time.Time
	mu    struct {
		sync.Mutex
		list  []stall
		taken []taken // by others; they do not overlap
	}
}

type stall struct{ from, to time.Duration } // since the run began

// taken is a time of which others had a part of the processors.
type taken struct {
	stall
	part float64
}

// run looks at the machine until ctx ends. ours are the processes of the cluster.
func (s *stalls) run(ctx context.Context, dir string, ours []*process) error {
	f, err := os.Create(filepath.Join(dir, "stall"))
	if err != nil {
		return fmt.Errorf("look at the machine: %w", err)
	}
	defer f.Close()
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { s.wake(ctx) })
	all.Go(func() { s.others(ctx, ours) })
	block := make([]byte, 4096)
	for ctx.Err() == nil {
		_ = sleep(ctx, stallEvery) // the loop looks at ctx
		begun := time.Now()
		if _, err := f.WriteAt(block, 0); err != nil {
			return fmt.Errorf("look at the machine: %w", err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("look at the machine: %w", err)
		}
		s.took(begun, time.Now(), stallMin)
	}
	return nil
}

// wake sleeps for a moment, again and again, and notes when it wakes late.
func (s *stalls) wake(ctx context.Context) {
	for due := time.Now().Add(wakeEvery); sleep(ctx, time.Until(due)) == nil; due = time.Now().Add(wakeEvery) {
		s.took(due, time.Now(), lateMin)
	}
}

// took notes what has lasted at least so long.
func (s *stalls) took(from, to time.Time, least time.Duration) {
	if to.Sub(from) < least {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.list = append(s.mu.list, stall{from.Sub(s.start), to.Sub(s.start)})
}

// within is how much of a gap the machine stood still or was taken by others, up to excusedMax.
func (s *stalls) within(g gap) time.Duration { return min(s.lost(g), excusedMax) }

// lost is within without a bound.
func (s *stalls) lost(g gap) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	still := union(s.mu.list, g)
	var others float64
	for _, t := range s.mu.taken {
		others += t.part * float64(t.in(g))
	}
	if g.Long > 0 { // while it stood still nobody had it
		others *= float64(g.Long-still) / float64(g.Long)
	}
	return still + time.Duration(others)
}

// in is how much of a gap it covers.
func (s stall) in(g gap) time.Duration { return max(0, min(s.to, g.At+g.Long)-max(s.from, g.At)) }

// union is how much of a gap is covered; what two looks have seen at the same time counts once.
func union(list []stall, g gap) (sum time.Duration) {
	sorted := slices.SortedFunc(slices.Values(list), func(a, b stall) int { return cmp.Compare(a.from, b.from) })
	var end time.Duration
	for _, x := range sorted {
		sum += stall{max(x.from, end), x.to}.in(g)
		end = max(end, x.to)
	}
	return sum
}
