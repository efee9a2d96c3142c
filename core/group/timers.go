package group

import (
	"container/heap"
	"time"
)

// timer is one deadline and what happens at it.
type timer struct {
	at    time.Time
	order uint64 // of scheduling: decides between equal deadlines, so that replays agree
	index int    // in the heap, -1 when not scheduled
	fire  func(now time.Time)
}

// timers holds the deadlines of a coordinator, earliest first.
type timers struct {
	heap  timerHeap
	order uint64
}

func (t *timers) next() (time.Time, bool) {
	if len(t.heap) == 0 {
		return time.Time{}, false
	}
	return t.heap[0].at, true
}

// schedule arms a timer that is not armed.
func (t *timers) schedule(at time.Time, fire func(now time.Time)) *timer {
	t.order++
	e := &timer{at: at, order: t.order, fire: fire}
	heap.Push(&t.heap, e)
	return e
}

// stop disarms a timer; nil and disarmed ones are left alone.
func (t *timers) stop(e *timer) {
	if e != nil && e.index >= 0 {
		heap.Remove(&t.heap, e.index)
	}
}

// move gives an armed timer a new deadline, or arms it again.
func (t *timers) move(e *timer, at time.Time) {
	t.order++
	e.at, e.order = at, t.order
	if e.index >= 0 {
		heap.Fix(&t.heap, e.index)
		return
	}
	heap.Push(&t.heap, e)
}

// due takes the earliest timer whose deadline has come.
func (t *timers) due(now time.Time) *timer {
	if len(t.heap) == 0 || t.heap[0].at.After(now) {
		return nil
	}
	return heap.Pop(&t.heap).(*timer)
}

type timerHeap []*timer

func (h timerHeap) Len() int { return len(h) }

func (h timerHeap) Less(i, j int) bool {
	if !h[i].at.Equal(h[j].at) {
		return h[i].at.Before(h[j].at)
	}
	return h[i].order < h[j].order
}

func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *timerHeap) Push(x any) {
	e := x.(*timer)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *timerHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}
