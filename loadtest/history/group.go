package history

import (
	"fmt"
	"sync"
)

// NoCommit is the committed offset of a partition of which a group has committed nothing.
const NoCommit int64 = -1

// Group is a consumer group of one topic whose members commit only what was delivered to them.
type Group struct {
	h     *History
	name  string
	topic *Topic
	parts []*groupPartition
}

type groupPartition struct {
	g *Group
	p *partition

	mu struct {
		sync.Mutex
		delivered []uint64 // one bit for each offset
		attempted int64    // the highest offset that any member tried to commit
		committed int64    // the last one that is known to be committed, or was read
		// doubtful are commits that may still take effect, later than ones that came after them: they failed, or took so long that the
		// client may have sent them twice. Reading one of them back is no going back.
		doubtful map[int64]bool
	}
}

// Group declares a group, or returns the one of that name.
func (h *History) Group(name string, t *Topic) *Group {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g := h.mu.groups[name]; g != nil {
		return g
	}
	g := &Group{h: h, name: name, topic: t}
	for _, p := range t.parts {
		gp := &groupPartition{g: g, p: p}
		gp.mu.attempted, gp.mu.committed, gp.mu.doubtful = NoCommit, NoCommit, map[int64]bool{}
		g.parts = append(g.parts, gp)
	}
	h.mu.groups[name] = g
	return g
}

func (gp *groupPartition) report(v Violation, format string, args ...any) {
	v.Where, v.At, v.Detail = gp.g.name+" "+gp.p.String(), gp.g.h.now(), fmt.Sprintf(format, args...)
	gp.g.h.bad.put(v)
}

// Commit is called before an offset is committed.
func (g *Group) Commit(partition int32, offset int64) Commit {
	gp := g.parts[partition]
	gp.mu.Lock()
	defer gp.mu.Unlock()
	gp.mu.attempted = max(gp.mu.attempted, offset)
	return Commit{gp, offset}
}

// Commit is one on its way.
type Commit struct {
	gp     *groupPartition
	offset int64
}

// Done notes that the commit succeeded; late says that the client may have sent it more than once, because an attempt had no answer.
func (c Commit) Done(late bool) {
	c.gp.mu.Lock()
	defer c.gp.mu.Unlock()
	if late {
		c.gp.mu.doubtful[c.offset] = true
	}
	c.gp.mu.committed = max(c.gp.mu.committed, c.offset)
}

// Failed notes that the commit failed, or that nobody knows.
func (c Commit) Failed() {
	c.gp.mu.Lock()
	defer c.gp.mu.Unlock()
	c.gp.mu.doubtful[c.offset] = true
}

// BeginFetch is called before a committed offset is asked for.
func (g *Group) BeginFetch(who string, partition int32) CommitFetch {
	gp := g.parts[partition]
	gp.mu.Lock()
	defer gp.mu.Unlock()
	return CommitFetch{gp, who, gp.mu.committed}
}

// CommitFetch is a question for the committed offset on its way.
type CommitFetch struct {
	gp     *groupPartition
	who    string
	before int64
}

// End notes the answer, NoCommit if nothing is committed.
func (f CommitFetch) End(offset int64) { f.gp.answered(f.who, f.before, offset) }

// answered judges a committed offset that somebody was told, who knew before asking that there was one of at least before.
func (gp *groupPartition) answered(who string, before, offset int64) {
	gp.mu.Lock()
	defer gp.mu.Unlock()
	switch {
	case offset < before && gp.mu.doubtful[offset]:
		gp.mu.committed = min(gp.mu.committed, offset)
		return
	case offset < before:
		gp.report(Violation{Kind: CommitBack, Offset: offset}, "%s was told %d, though %d had been committed before it asked", who, offset, before)
	case offset > gp.mu.attempted:
		gp.report(Violation{Kind: Invented, Offset: offset}, "%s was told %d as committed, though nobody has committed more than %d", who, offset, gp.mu.attempted)
	}
	gp.mu.committed = max(gp.mu.committed, offset)
}

// Member is one member of a group. It belongs to one goroutine.
type Member struct {
	g       *Group
	session *Session
	owned   map[int32]*owned
}

// owned is a partition that is assigned to a member.
type owned struct {
	next      int64 // -1 = nothing was delivered yet
	committed int64 // when it was assigned
}

// Member begins a member.
func (g *Group) Member(name string) *Member {
	return &Member{g: g, session: g.h.Session(name), owned: map[int32]*owned{}}
}

// Assigned is called when a partition has been assigned, before the member asks for its committed offset.
func (m *Member) Assigned(partition int32) {
	gp := m.g.parts[partition]
	gp.mu.Lock()
	defer gp.mu.Unlock()
	m.owned[partition] = &owned{next: -1, committed: gp.mu.committed}
	m.session.Seek(m.g.topic, partition, -1)
}

// Revoked is called when the member has given a partition up or lost it.
func (m *Member) Revoked(partition int32) { delete(m.owned, partition) }

// Delivered notes a record that the member's application was given.
func (m *Member) Delivered(partition int32, r Record) {
	gp := m.g.parts[partition]
	if o := m.owned[partition]; o != nil {
		m.inOrder(gp, o, r)
		o.next = r.Offset + 1
	}
	gp.p.read(m.session.name, r)
	gp.mu.Lock()
	defer gp.mu.Unlock()
	if r.Offset >= 0 && r.Offset < offsetsMax {
		setBit(&gp.mu.delivered, r.Offset)
	}
}

// inOrder checks that nothing is left out between what is committed and what is delivered.
func (m *Member) inOrder(gp *groupPartition, o *owned, r Record) {
	v := Violation{Kind: Skipped, Writer: r.Writer, Number: r.Number, Offset: r.Offset}
	if o.next >= 0 {
		if r.Offset < o.next || m.g.topic.options.Contiguous && r.Offset != o.next {
			gp.report(v, "%s was given offset %d where %d was due", m.session.name, r.Offset, o.next)
		}
		return
	}
	start := gp.p.startSeen()
	gp.mu.Lock()
	attempted, doubtful := gp.mu.attempted, gp.mu.doubtful[r.Offset]
	gp.mu.Unlock()
	if r.Offset > max(attempted, start, 0) && m.g.topic.options.Contiguous {
		gp.report(v, "%s begins at %d, but nobody has committed more than %d", m.session.name, r.Offset, attempted)
	}
	if r.Offset < o.committed && !doubtful {
		v.Kind = CommitBack
		gp.report(v, "%s begins at %d, though %d had been committed before the partition was assigned to it", m.session.name, r.Offset, o.committed)
	}
}

func (p *partition) startSeen() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.mu.start, p.mu.allowed)
}

func setBit(bits *[]uint64, i int64) {
	for int64(len(*bits)) <= i/64 {
		*bits = append(*bits, 0)
	}
	(*bits)[i/64] |= 1 << (i % 64)
}

func hasBit(bits []uint64, i int64) bool {
	return i/64 < int64(len(bits)) && bits[i/64]&(1<<(i%64)) != 0
}

// Left is how many acknowledged records have not been delivered to any member yet.
func (g *Group) Left() (n int64) {
	for _, gp := range g.parts {
		gp.missing(func(int64, *write, *Writer) { n++ })
	}
	return n
}
