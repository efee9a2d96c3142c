package shard

import (
	"container/heap"
	"time"
)

// The window of a group is how many bytes of proposals may be in Raft at once. It is what keeps the queue in front of the disk short: everything that is
// in Raft is written before what comes next, so that a producer faster than the disk would make everybody wait for all that it may have in flight. The
// window shrinks when commits take longer than commitTarget, and grows while they do not and somebody waits.
const (
	windowMin     = 1 << 20   // below it a disk is no longer used well: a sync costs as much as writing so much
	windowInitial = 4 << 20   // what the first second may have in flight
	windowStep    = 512 << 10 // growth for each window of bytes that was committed in time
	// commitTarget is the time from being given to Raft to being applied beyond which the window shrinks: several syncs of a good disk, half of what
	// interactive users notice (whoever comes waits for one window before its own), and far below an election timeout, within which every write of
	// the log has to end (guard 8).
	commitTarget = 50 * time.Millisecond
	// entryCost is what an entry counts for besides its bytes when turns are given: tiny entries cost work too.
	entryCost = 4 << 10
	// lightBytes are kept beside the window for flows that take less than their share: they need not wait for room that others fill. An entry counts
	// for its entryCost here too.
	lightBytes = 1 << 20
	// flowsMax bounds how many callers are remembered as being ahead of the others; beyond it all start anew.
	flowsMax = 16_384
)

// Flow names who proposes, so that everybody who waits gets the same share of bytes: one caller's many entries do not delay another's few. A caller
// has one entry waiting at a time. FlowNone is for proposals of the node itself, which wait for nobody's share.
type Flow uint64

// FlowNone has no share to keep.
const FlowNone Flow = 0

// waiter is a proposal that waits for room.
type waiter struct {
	start int64 // its turn, in bytes of service (start-time fair queueing)
	seq   int64 // among equals the first
	bytes int64
	ready chan bool
}

// room is what an entry holds until it is answered.
type room struct {
	bytes int64
	light bool // of the light flows' room instead of the window's
}

type waiters []*waiter

func (w waiters) Len() int { return len(w) }
func (w waiters) Less(i, j int) bool {
	if w[i].start != w[j].start {
		return w[i].start < w[j].start
	}
	return w[i].seq < w[j].seq
}
func (w waiters) Swap(i, j int) { w[i], w[j] = w[j], w[i] }
func (w *waiters) Push(x any)   { *w = append(*w, x.(*waiter)) }
func (w *waiters) Pop() any {
	old := *w
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*w = old[:len(old)-1]
	return last
}

// admission decides who is next and how much is in flight. The lock of the proposals guards it.
type admission struct {
	window  int64
	count   int
	bytes   int64 // of the window
	light   int64 // of lightBytes
	waiting waiters
	seq     int64
	virtual int64          // the turn that is served
	flows   map[Flow]int64 // where the next turn of a flow begins, while that is ahead of virtual
	cut     time.Time      // when the window shrank last
}

func newAdmission() admission {
	return admission{window: windowInitial, flows: make(map[Flow]int64)}
}

// fits says whether an entry may go into the window now. One alone always may.
func (a *admission) fits(bytes int64) bool {
	return a.count < maxInFlightEntries && (a.bytes == 0 || a.bytes+bytes <= a.window)
}

// turn is where a flow's entry stands in the order, and moves the flow behind it. Light is one that has taken no more than its share so far.
func (a *admission) turn(flow Flow, bytes int64) (start int64, light bool) {
	if flow == FlowNone {
		return a.virtual, true
	}
	start = max(a.virtual, a.flows[flow])
	if len(a.flows) >= flowsMax {
		clear(a.flows)
	}
	a.flows[flow] = start + bytes + entryCost
	return start, start == a.virtual
}

// enter takes room for an entry, or queues it and returns what to wait for.
func (a *admission) enter(flow Flow, bytes int64) (room, *waiter) {
	start, light := a.turn(flow, bytes)
	switch {
	case len(a.waiting) == 0 && a.fits(bytes):
		a.take(start, bytes)
		return room{bytes: bytes}, nil
	case light && a.count < maxInFlightEntries && a.light+bytes+entryCost <= lightBytes:
		a.count++
		a.light += bytes + entryCost
		return room{bytes: bytes, light: true}, nil
	}
	a.seq++
	w := &waiter{start: start, seq: a.seq, bytes: bytes, ready: make(chan bool, 1)}
	heap.Push(&a.waiting, w)
	return room{bytes: bytes}, w
}

func (a *admission) take(start, bytes int64) {
	a.virtual = max(a.virtual, start)
	a.count++
	a.bytes += bytes
}

// leave gives room back and lets in who is next.
func (a *admission) leave(r room) {
	a.count--
	if r.light {
		a.light -= r.bytes + entryCost
	} else {
		a.bytes -= r.bytes
	}
	for len(a.waiting) > 0 && a.fits(a.waiting[0].bytes) {
		w := heap.Pop(&a.waiting).(*waiter)
		a.take(w.start, w.bytes)
		w.ready <- true
	}
	if a.count == 0 { // nobody is ahead of anybody
		a.virtual = 0
		clear(a.flows)
	}
}

// committed adapts the window to how long an entry took.
func (a *admission) committed(now time.Time, took time.Duration, bytes int64) {
	switch {
	case took > commitTarget:
		if now.Sub(a.cut) > took { // what was in flight when it shrank last says nothing new
			a.window, a.cut = max(a.window*3/4, windowMin), now
		}
	case len(a.waiting) > 0:
		a.window = min(a.window+bytes*windowStep/a.window, maxInFlightBytes)
	}
}

// dismiss turns everybody away who waits.
func (a *admission) dismiss() {
	for _, w := range a.waiting {
		w.ready <- false
	}
	a.waiting = nil
}
