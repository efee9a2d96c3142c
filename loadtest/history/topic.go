package history

import (
	"fmt"
	"sync"
)

// TopicOptions say what a topic's log promises.
type TopicOptions struct {
	Partitions int32
	// Contiguous: offsets have no gaps (true for a topic without compaction and transactions).
	Contiguous bool
	// Shared: others write to the topic too. What no Writer here claims is remembered for comparison only.
	Shared bool
}

// Topic is a log of partitions.
type Topic struct {
	h       *History
	name    string
	options TopicOptions
	parts   []*partition
}

// Topic declares a topic, or returns the one of that name.
func (h *History) Topic(name string, o TopicOptions) *Topic {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.mu.topics[name]; t != nil {
		return t
	}
	t := &Topic{h: h, name: name, options: o}
	for i := range o.Partitions {
		t.parts = append(t.parts, &partition{t: t, index: i})
	}
	h.mu.topics[name] = t
	return t
}

// Name of the topic.
func (t *Topic) Name() string { return t.name }

// Partitions is how many the topic was declared with.
func (t *Topic) Partitions() int32 { return t.options.Partitions }

// AllowStart is called before records below the offset are asked to be deleted.
func (t *Topic) AllowStart(partition int32, offset int64) {
	p := t.parts[partition]
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.allowed = max(p.mu.allowed, offset)
}

// partition is what is known of one log.
type partition struct {
	t     *Topic
	index int32

	mu struct {
		sync.Mutex
		entries entries
		acked   int64 // behind the highest acknowledged offset
		seen    int64 // the highest end anybody saw
		start   int64 // the highest start anybody saw
		allowed int64 // what the start may be
		times   []uint32
	}
}

func (p *partition) String() string { return where(p.t.name, p.index) }

// entry is what lies at an offset: 12 bytes.
type entry struct {
	number uint32
	sum    uint32
	writer uint16 // index + 1; 0 = not read yet, foreign = nobody we know
	flags  uint16
}

// foreign stands for all writers of a shared topic that are not ours.
const foreign = 1<<16 - 1

// entries are a log in pieces, so that growing copies nothing.
type entries []*[entriesPerPiece]entry

const (
	// entriesPerPiece makes a piece 48 KiB.
	entriesPerPiece = 4096
	// offsetsMax bounds what may be an offset: a reader that is given nonsense must not take all memory. With nothing in them pieces cost 2 MiB at most.
	offsetsMax = 1 << 30
)

// at returns the entry of an offset, nil when it is out of bounds.
func (e *entries) at(offset int64) *entry {
	if offset < 0 || offset >= offsetsMax {
		return nil
	}
	for int64(len(*e))*entriesPerPiece <= offset {
		*e = append(*e, nil)
	}
	piece := &(*e)[offset/entriesPerPiece]
	if *piece == nil {
		*piece = new([entriesPerPiece]entry)
	}
	return &(*piece)[offset%entriesPerPiece]
}

// each calls fn for every offset that was read, in order.
func (e entries) each(fn func(offset int64, e *entry)) {
	for i, piece := range e {
		if piece == nil {
			continue
		}
		for j := range piece {
			if piece[j].writer != 0 {
				fn(int64(i)*entriesPerPiece+int64(j), &piece[j])
			}
		}
	}
}

func (p *partition) report(v Violation, format string, args ...any) {
	v.Where, v.At, v.Detail = p.String(), p.t.h.now(), fmt.Sprintf(format, args...)
	p.t.h.bad.put(v)
}
