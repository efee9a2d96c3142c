package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// Memory for frames is counted as their bytes arrive, not as they are announced: who claims 100 MiB and sends nothing gets 4 KiB. It comes in lanes by the size
// of frames, so that large ones never stand in the way of small ones, and a frame passes from the first lane to its own: it never waits for a lane while it
// holds one that others need to get there.
//
//	bytes that are there   counted in
//	up to 4 KiB            nothing: the bound of connections bounds it
//	up to 64 KiB           small
//	more                   medium for frames up to 1 MiB, large for larger ones: the whole frame at once
//	decoded                control, for requests without records, until they are answered: their objects are larger than they are
const (
	// unmeteredFrameBytes is the size up to which frames are not counted: the bound of connections bounds them.
	unmeteredFrameBytes = 4 << 10
	smallFrameBytes     = 64 << 10
	mediumFrameBytes    = 1 << 20
	// memoryBytesDefault is shared by the lanes: an eighth for small frames, a quarter each for large ones and for requests, the rest for medium ones.
	memoryBytesDefault = 512 << 20
	// controlWeight is how many bytes of memory a byte of a request without records counts for: a partition of a Fetch takes 33 bytes on the wire
	// and a kilobyte while it is answered.
	controlWeight = 32
	// memoryWaitMax is how long a frame waits for memory that other frames hold before its connection is given up.
	memoryWaitMax = 30 * time.Second
	// While others wait for its lane, a frame must come at contendedBytesPerSecond after the first contendedGrace, or its connection is closed. Who really sends
	// is faster; a gateway behind a poor link has small frames.
	contendedGrace          = time.Second
	contendedBytesPerSecond = 128 << 10
)

var (
	// errNoMemory is returned when a frame got no memory for too long.
	errNoMemory = errors.New("no memory for the frame: other connections' frames hold it")
	// errTooSlow is returned when a frame comes slowly while others wait for the memory it holds.
	errTooSlow = errors.New("frame comes too slowly while others wait for its memory")
)

// A lane is the memory for some frames.
type lane struct {
	room    *semaphore.Weighted
	bytes   int64
	waiting atomic.Int32
}

func newLane(bytes int64) *lane { return &lane{room: semaphore.NewWeighted(bytes), bytes: bytes} }

// take waits for memory, for memoryWaitMax at most.
func (l *lane) take(ctx context.Context, n int64) error {
	if l.room.TryAcquire(n) {
		return nil
	}
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, memoryWaitMax)
	defer cancel()
	if err := l.room.Acquire(ctx, n); err != nil {
		return fmt.Errorf("%w (%d bytes)", errNoMemory, n)
	}
	return nil
}

// lanes are the memory of a server's frames.
type lanes struct{ small, medium, large, control *lane }

func newLanes(bytes int64) lanes {
	// The largest frame has to fit into its lane.
	large := max(bytes/4, frameBytesMax)
	return lanes{small: newLane(bytes / 8), medium: newLane(bytes - bytes/8 - 2*(bytes/4)), large: newLane(large), control: newLane(bytes / 4)}
}

// share is what of a weight is counted: the heaviest requests take half of the lane, so that one of them does not stop all others.
func (l *lane) share(weight int64) int64 { return min(weight, l.bytes/2) }

// of is the lane of a whole frame of more than smallFrameBytes.
func (l lanes) of(size int) *lane {
	if size <= mediumFrameBytes {
		return l.medium
	}
	return l.large
}

// hold is what somebody has of a lane.
type hold struct {
	lane  *lane
	bytes int64
}

func (h *hold) release() {
	if h.lane != nil {
		h.lane.room.Release(h.bytes)
		*h = hold{}
	}
}

// exchange takes n bytes of a lane and gives back what was held before.
func (h *hold) exchange(ctx context.Context, l *lane, n int64) error {
	if err := l.take(ctx, n); err != nil {
		return err
	}
	h.release()
	*h = hold{lane: l, bytes: n}
	return nil
}

// contended says whether somebody waits for what is held.
func (h *hold) contended() bool { return h.lane != nil && h.lane.waiting.Load() > 0 }
