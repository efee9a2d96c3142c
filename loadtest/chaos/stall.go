package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// stallEvery is the pause between two looks at the machine.
	stallEvery = 50 * time.Millisecond
	// stallMin is what counts as a stall; a disk that others use too takes tens of milliseconds for a sync.
	stallMin = 200 * time.Millisecond
)

// stalls are times in which this machine itself did nothing: a write of 4 KiB and its sync, on the disk that all nodes share, took so long, or nobody
// was given the processor. No cluster on this machine could have acknowledged a write meanwhile.
type stalls struct {
	start time.Time
	mu    struct {
		sync.Mutex
		list []stall
	}
}

type stall struct{ from, to time.Duration } // since the run began

// run looks at the machine until ctx ends.
func (s *stalls) run(ctx context.Context, dir string) error {
	f, err := os.Create(filepath.Join(dir, "stall"))
	if err != nil {
		return fmt.Errorf("look at the machine: %w", err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	for ctx.Err() == nil {
		begun := time.Now()
		_ = sleep(ctx, stallEvery) // the loop looks at ctx
		if _, err := f.WriteAt(block, 0); err != nil {
			return fmt.Errorf("look at the machine: %w", err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("look at the machine: %w", err)
		}
		s.took(begun.Add(stallEvery), time.Now())
	}
	return nil
}

// took notes how long a look has lasted.
func (s *stalls) took(from, to time.Time) {
	if to.Sub(from) < stallMin {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.list = append(s.mu.list, stall{from.Sub(s.start), to.Sub(s.start)})
}

// within is how much of a gap the machine stalled.
func (s *stalls) within(g gap) (sum time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.mu.list {
		sum += max(0, min(x.to, g.At+g.Long)-max(x.from, g.At))
	}
	return sum
}
