package commitlog

import (
	"context"
	"runtime"

	"golang.org/x/sync/semaphore"
)

const (
	// turnBytes is how much a read compares with its checksums before it lets others: half a millisecond's work.
	turnBytes = 1 << 20
	// turnFreeBytes is the size up to which a read waits for nobody: it is done sooner than a turn.
	turnFreeBytes = 128 << 10
)

// turns bounds how many reads compare checksums at the same time, to half of the processors: hundreds of them, each with megabytes to compare, would otherwise stand
// in the scheduler's queue before whoever appends a few bytes. Those that wait get their turns in the order in which they came.
type turns struct{ room *semaphore.Weighted }

func newTurns() turns {
	return turns{room: semaphore.NewWeighted(int64(max(runtime.GOMAXPROCS(0)/2, 1)))}
}

// turn is one read's; the zero one waits for nobody.
type turn struct {
	of    *turns
	held  bool
	spent int64
}

// spend is called before that many bytes are read and compared.
func (t *turn) spend(bytes int64) {
	if t.of == nil {
		return
	}
	if t.spent >= turnBytes {
		t.end()
	}
	if !t.held {
		_ = t.of.room.Acquire(context.Background(), 1) // fails only when its context ends
		t.held, t.spent = true, 0
	}
	t.spent += bytes
}

// end gives the turn to the next.
func (t *turn) end() {
	if t.held {
		t.of.room.Release(1)
		t.held, t.spent = false, 0
	}
}
