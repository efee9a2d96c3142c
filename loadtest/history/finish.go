package history

import "fmt"

// Check judges everything. It is called when the writers have ended and a reader has read every partition to its end: an acknowledged record
// that nobody has read is lost, and one that no member of a group was given is undelivered. It may be called again later, after more reading.
func (h *History) Check() *Verdict {
	v := &Verdict{Counts: map[Kind]int64{}}
	h.bad.into(v)
	topics, writers := h.all()
	for _, w := range writers {
		w.forget()
	}
	for _, t := range topics {
		for _, p := range t.parts {
			p.check(v)
		}
	}
	for _, w := range writers {
		w.check(v)
	}
	for _, g := range h.groups() {
		for _, gp := range g.parts {
			gp.check(v)
		}
	}
	h.meta.check(v)
	v.sort()
	return v
}

func (h *History) groups() (out []*Group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.mu.groups {
		out = append(out, g)
	}
	return out
}

// forget makes ready for another Check.
func (w *Writer) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := range w.mu.next {
		w.atLocked(n).flags &^= found
	}
}

// check goes over a log from its start to its end: gaps, order per writer, and where each record lies.
func (p *partition) check(v *Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	highest := map[uint16]int64{}
	next := max(p.mu.start, p.mu.allowed)
	p.mu.entries.each(func(offset int64, e *entry) {
		if offset > next && p.t.options.Contiguous && offset > p.mu.allowed {
			v.put(Violation{Kind: Gap, Where: p.String(), Offset: next, Detail: fmt.Sprintf("nobody was given offsets %d to %d", next, offset-1)})
		}
		next = max(next, offset+1)
		v.Found++
		if e.writer == foreign {
			return
		}
		w, number := p.t.h.writerAt(e.writer-1), int64(e.number)
		again, moved := w.lies(p, offset, number, v)
		h, ok := highest[e.writer]
		if ok && number < h && !again && !moved {
			v.put(Violation{Kind: Reordered, Where: p.String(), Writer: w.name, Number: number, Offset: offset, Detail: fmt.Sprintf("comes after number %d of the same writer", h)})
		}
		highest[e.writer] = max(h, number)
	})
}

// lies notes where a record lies. again: it was found elsewhere before.
func (w *Writer) lies(p *partition, offset, number int64, v *Verdict) (again, moved bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if number >= w.mu.next {
		return false, false // invented, and reported when it was read
	}
	r := w.atLocked(number)
	what := Violation{Where: p.String(), Writer: w.name, Number: number, Offset: offset}
	again = r.flags&found != 0
	switch {
	case again && r.flags&resent != 0:
		v.Resent++
	case again:
		what.Kind, what.Detail = Doubled, "is there more than once"
		v.put(what)
	case r.state == acked && (int32(r.partition) != p.index || r.offset != offset):
		moved = true
		what.Kind, what.Detail = Moved, fmt.Sprintf("was acknowledged at partition %d offset %d", r.partition, r.offset)
		v.put(what)
	case r.partition != unplaced && int32(r.partition) != p.index:
		moved = true
		what.Kind, what.Detail = Moved, fmt.Sprintf("was sent to partition %d", r.partition)
		v.put(what)
	}
	r.flags |= found
	return again, moved
}

// check looks for what was acknowledged and not found.
func (w *Writer) check(v *Verdict) {
	allowed := make([]int64, len(w.topic.parts))
	for i, p := range w.topic.parts {
		allowed[i] = p.allowedStart()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := range w.mu.next {
		r := w.atLocked(n)
		v.Sent++
		isFound := r.flags&found != 0
		if r.state != acked && r.state != stored {
			if isFound {
				v.Unknown++
			}
			continue
		}
		v.Acked++
		if isFound || r.state == acked && r.offset < allowed[r.partition] {
			continue
		}
		lost := Violation{Kind: Lost, Where: w.topic.name, Writer: w.name, Number: n, Detail: "acknowledged, and nobody has read it"}
		if r.state == acked {
			lost.Where, lost.Offset = where(w.topic.name, int32(r.partition)), r.offset
		}
		v.put(lost)
	}
}

func (p *partition) allowedStart() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.allowed
}

func (gp *groupPartition) check(v *Verdict) {
	gp.missing(func(offset int64, _ *write, w *Writer) {
		v.put(Violation{Kind: Undelivered, Where: gp.g.name + " " + gp.p.String(), Writer: w.name, Offset: offset, Detail: "acknowledged and read, but no member of the group was given it"})
	})
}

// missing calls fn for each record of ours that was read and acknowledged, and not delivered to the group.
func (gp *groupPartition) missing(fn func(offset int64, r *write, w *Writer)) {
	gp.p.mu.Lock()
	defer gp.p.mu.Unlock()
	gp.mu.Lock()
	defer gp.mu.Unlock()
	gp.p.mu.entries.each(func(offset int64, e *entry) {
		if e.writer == foreign || offset < gp.p.mu.allowed || hasBit(gp.mu.delivered, offset) {
			return
		}
		w := gp.p.t.h.writerAt(e.writer - 1)
		if r, ok := w.what(int64(e.number)); ok && (r.state == acked || r.state == stored) {
			fn(offset, &r, w)
		}
	})
}
