package history

// Record is a record as a reader found it. Writer is "" for what the reader cannot attribute to a Writer of this history.
type Record struct {
	Offset int64
	Writer string
	Number int64
	Sum    uint32
}

// Session is one reader of logs: what it sees of a partition never goes back. A Session belongs to one goroutine; a reader that begins anew
// (another connection to another replica, another assignment) is another Session, or says Seek.
type Session struct {
	h    *History
	name string
	seen map[*partition]*progress
}

type progress struct {
	next  int64 // offset that is due; -1 = any
	end   int64
	start int64
}

// Session begins a reader.
func (h *History) Session(name string) *Session {
	return &Session{h: h, name: name, seen: map[*partition]*progress{}}
}

func (s *Session) at(p *partition) *progress {
	if s.seen[p] == nil {
		s.seen[p] = &progress{next: -1}
	}
	return s.seen[p]
}

// Seek tells that the next record of a partition may be any one from the offset on; -1 forgets the position.
func (s *Session) Seek(t *Topic, partition int32, offset int64) {
	s.at(t.parts[partition]).next = offset
}

// Ends notes what an answer says of a log's end (high watermark) and start; -1 for what it does not say.
// For readers that do not know when their request left; those that do use Call.
func (s *Session) Ends(t *Topic, partition int32, end, start int64) {
	p := t.parts[partition]
	g := s.at(p)
	if end >= 0 && end < g.end {
		p.report(Violation{Kind: EndBack, Offset: end}, "%s saw the end at %d, and now at %d", s.name, g.end, end)
	}
	if start >= 0 && start < g.start {
		p.report(Violation{Kind: StartBack, Offset: start}, "%s saw the start at %d, and now at %d", s.name, g.start, start)
	}
	g.end, g.start = max(g.end, end), max(g.start, start)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.seen = max(p.mu.seen, end)
	p.startsLocked(s.name, start)
}

// startsLocked notes a log's start that somebody saw.
func (p *partition) startsLocked(who string, start int64) {
	if start > p.mu.start && start > p.mu.allowed {
		p.report(Violation{Kind: Trimmed, Offset: start}, "%s saw the start at %d; nothing above %d was asked to be removed", who, start, p.mu.allowed)
	}
	p.mu.start = max(p.mu.start, start)
}

// OutOfRange notes that the reader was told that its position is out of range, and forgets the position.
func (s *Session) OutOfRange(t *Topic, partition int32) {
	p := t.parts[partition]
	g := s.at(p)
	if g.next >= p.startSeen() {
		p.report(Violation{Kind: Stale, Offset: g.next}, "%s had read up to %d and was told that this is out of range", s.name, g.next)
	}
	g.next = -1
}

// Read notes a record. Records of a partition come in the log's order.
func (s *Session) Read(t *Topic, partition int32, r Record) {
	p := t.parts[partition]
	g := s.at(p)
	if g.next >= 0 && (r.Offset < g.next || t.options.Contiguous && r.Offset != g.next) {
		p.report(Violation{Kind: Gap, Writer: r.Writer, Number: r.Number, Offset: r.Offset}, "%s was given offset %d where %d was due", s.name, r.Offset, g.next)
	}
	g.next = r.Offset + 1
	p.read(s.name, r)
}

// read compares with what others read at the offset, and with what was sent.
func (p *partition) read(who string, r Record) {
	e := p.t.h.entryOf(p.t, r)
	if first := p.remember(who, r, e); !first || e.writer == foreign && p.t.options.Shared {
		return
	}
	v := Violation{Writer: r.Writer, Number: r.Number, Offset: r.Offset}
	w := p.t.h.writerNamed(r.Writer)
	if w == nil || w.topic != p.t {
		v.Kind = Invented
		p.report(v, "%s was given a record of a writer that does not write here", who)
		return
	}
	sent, ok := w.wasRead(r.Number)
	switch {
	case !ok:
		v.Kind = Invented
		p.report(v, "%s was given a record that was not sent", who)
	case sent.sum != r.Sum:
		v.Kind = Corrupt
		p.report(v, "%s was given other bytes than were sent: sum %08x, not %08x", who, r.Sum, sent.sum)
	}
}

// entryOf is how a record is remembered.
func (h *History) entryOf(t *Topic, r Record) entry {
	e := entry{number: uint32(r.Number), sum: r.Sum, writer: foreign}
	if w := h.writerNamed(r.Writer); w != nil {
		e.writer = w.index
	}
	return e
}

// remember keeps the entry, or compares it with the one that is known; first is true if the offset was not known.
func (p *partition) remember(who string, r Record, e entry) (first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.seen = max(p.mu.seen, r.Offset+1)
	known := p.mu.entries.at(r.Offset)
	v := Violation{Kind: Diverged, Writer: r.Writer, Number: r.Number, Offset: r.Offset}
	switch {
	case known == nil:
		v.Kind = Invented
		p.report(v, "%s was given an offset that cannot be", who)
	case known.writer == 0:
		*known = e
		return true
	case known.writer != e.writer || known.number != e.number || known.sum != e.sum:
		p.report(v, "%s was given another record than was read there before (writer %s number %d sum %08x)", who, p.t.h.nameOf(known.writer), known.number, known.sum)
	}
	return false
}

func (h *History) nameOf(writer uint16) string {
	if writer == foreign || writer == 0 {
		return "?"
	}
	return h.writerAt(writer - 1).name
}

// Call is a request about a partition's ends that a leader answers, from before it leaves until its answer is here.
type Call struct {
	p           *partition
	who         string
	acked, seen int64
	start       int64
}

// Begin is called before the request leaves.
func (t *Topic) Begin(who string, partition int32) Call {
	p := t.parts[partition]
	p.mu.Lock()
	defer p.mu.Unlock()
	return Call{p: p, who: who, acked: p.mu.acked, seen: p.mu.seen, start: p.mu.start}
}

// End notes the end that ListOffsets answered. Whoever answers has made sure that it leads, so it goes back for nobody.
func (c Call) End(end int64) {
	switch v := (Violation{Offset: end}); {
	case end < c.acked:
		v.Kind = Stale
		c.p.report(v, "%s asked for the end and was told %d, though offset %d had been acknowledged before it asked", c.who, end, c.acked-1)
	case end < c.seen:
		v.Kind = EndBack
		c.p.report(v, "%s asked for the end and was told %d, though %d had been seen before it asked", c.who, end, c.seen)
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.p.mu.seen = max(c.p.mu.seen, end)
}

// Start notes the start that was answered (ListOffsets earliest, or the log start of a Fetch).
func (c Call) Start(start int64) {
	if start < c.start {
		c.p.report(Violation{Kind: StartBack, Offset: start}, "%s asked for the start and was told %d, though %d had been seen before it asked", c.who, start, c.start)
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.p.startsLocked(c.who, start)
}

// Fetched notes that a Fetch from an offset was answered without an error: n records came, and the high watermark that came with them.
// A fetch of an offset that was acknowledged before it left has to bring it.
func (c Call) Fetched(from int64, n int, end int64) {
	if n == 0 && from < c.acked && from >= c.start {
		c.p.report(Violation{Kind: Stale, Offset: from}, "%s fetched from %d and was given nothing, though offset %d had been acknowledged before it asked", c.who, from, c.acked-1)
	}
	// A fetch is answered without a round to the other replicas, and one of them may have shown its own readers more by then: only what was acknowledged
	// has to be below the high watermark here. That one reader's view never goes back is what Session checks.
	if end < c.acked {
		c.p.report(Violation{Kind: Stale, Offset: end}, "%s fetched and was told the end %d, though offset %d had been acknowledged before it asked", c.who, end, c.acked-1)
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.p.mu.seen = max(c.p.mu.seen, end)
}

// OutOfRange notes that a Fetch was answered OFFSET_OUT_OF_RANGE.
func (c Call) OutOfRange(from int64) {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if from < max(c.acked, c.seen) && from >= max(p.mu.start, p.mu.allowed) {
		p.report(Violation{Kind: Stale, Offset: from}, "%s fetched from %d and was told that it is out of range, though the end had been %d before it asked", c.who, from, max(c.acked, c.seen))
	}
}
