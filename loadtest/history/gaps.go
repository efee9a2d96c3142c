package history

import (
	"cmp"
	"slices"
	"time"
)

// Stream is what acknowledgements are counted by: a partition, or a writer whose acknowledgements name no partition.
type Stream struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`        // Anywhere for a writer
	Writer    string `json:"writer,omitempty"` // "" for a partition
}

// Pause is a time in which a stream had no acknowledged write.
type Pause struct {
	Stream
	From time.Time `json:"from"` // the acknowledgement before it, or the beginning of the window where there is none
	To   time.Time `json:"to"`   // the acknowledgement after it, or the end of the window
	// Open: there is no acknowledgement after it, as far as the history goes.
	Open bool `json:"open,omitempty"`
}

// Length of the pause.
func (p Pause) Length() time.Duration { return p.To.Sub(p.From) }

// Gaps returns for each stream that ever had an acknowledged write the longest time without one that began or ended within the window, or
// covers it: the first one longest. It is exact to a millisecond. Ends outside of the window are told as they are, so that a pause that two
// faults share can be recognised. A stream is only as busy as its writers: choose them so that they write to every partition all the time.
func (h *History) Gaps(from, to time.Time) []Pause {
	topics, writers := h.all()
	var out []Pause
	for _, t := range topics {
		for _, p := range t.parts {
			p.mu.Lock()
			times := p.mu.times
			p.mu.Unlock()
			out = h.longest(out, Stream{Topic: t.name, Partition: p.index}, times, from, to)
		}
	}
	for _, w := range writers {
		w.mu.Lock()
		times := w.mu.times
		w.mu.Unlock()
		out = h.longest(out, Stream{Topic: w.topic.name, Partition: Anywhere, Writer: w.name}, times, from, to)
	}
	slices.SortStableFunc(out, func(a, b Pause) int { return cmp.Compare(b.Length(), a.Length()) })
	return out
}

// longest appends the longest pause of a stream; times only grow, so what was read of the slice under its lock stays as it is.
func (h *History) longest(out []Pause, s Stream, times []uint32, from, to time.Time) []Pause {
	if len(times) == 0 || !from.Before(to) {
		return out
	}
	at := func(i int) time.Time { return h.start.Add(time.Duration(times[i]) * time.Millisecond) }
	first, _ := slices.BinarySearchFunc(times, from, func(ms uint32, t time.Time) int {
		return h.start.Add(time.Duration(ms) * time.Millisecond).Compare(t)
	})
	best := Pause{Stream: s, From: from, To: from}
	last := from
	if first > 0 {
		last = at(first - 1)
	}
	for i := first; ; i++ {
		next, open := to, true
		if i < len(times) {
			next, open = at(i), false
		}
		if p := (Pause{Stream: s, From: last, To: next, Open: open}); p.Length() > best.Length() {
			best = p
		}
		if open || !next.Before(to) {
			return append(out, best)
		}
		last = next
	}
}

// all returns the topics and writers, in the order of their names.
func (h *History) all() (topics []*Topic, writers []*Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.mu.topics {
		topics = append(topics, t)
	}
	slices.SortFunc(topics, func(a, b *Topic) int { return cmp.Compare(a.name, b.name) })
	return topics, slices.Clone(h.mu.list)
}
