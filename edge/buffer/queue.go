package buffer

import (
	"context"
	"time"

	"sluice/core/record"
)

// Message is one record for the core. Put copies all of it.
type Message struct {
	Topic       []byte // the core's topic
	Key, Value  []byte // nil is null
	Headers     []record.Header
	TimestampMs int64
}

// Tag is what an owner gets back; it means something to the owner only.
type Tag uint32

// Entry is what is acknowledged at once. All parts are optional: an entry without any is acknowledged after everything that
// was put before it.
type Entry struct {
	Messages []Message
	Note     []byte // becomes part of the batch's journal record
	OwnKey   string // with Own: a record that stays on the gateway
	Own      []byte
	Local    any // goes to OnDeliver after the sync
	Owner    *Owner
	Tag      Tag
}

// An Owner is told what is synced, all of one commit at a time. Its function runs on the buffer's goroutine: it must not
// wait, and the tags are the buffer's own again when it returns. A non-nil error says that they will never be synced.
type Owner struct {
	told func(tags []Tag, err error)
	tags []Tag // owned by the finisher
}

// NewOwner returns an owner that is told by fn.
func NewOwner(fn func(tags []Tag, err error)) *Owner { return &Owner{told: fn} }

type ack struct {
	owner *Owner
	tag   Tag
}

// A batch gathers entries. It becomes one v2 batch, or none when only acknowledgements are in it.
type batch struct {
	builder *record.Builder
	notes   []byte
	headers []record.Header // scratch
	locals  []any
	acks    []ack
	entries int64
	bytes   int64
	first   time.Time
}

func newBatch() *batch {
	return &batch{builder: record.NewBuilder(record.BuilderOptions{ProducerID: record.NoProducer, ProducerEpoch: -1, BaseSequence: -1})}
}

func (p *batch) reset() {
	p.builder.Reset()
	p.notes, p.headers, p.acks = p.notes[:0], p.headers[:0], p.acks[:0]
	clear(p.locals)
	p.locals, p.entries, p.bytes = p.locals[:0], 0, 0
}

func (p *batch) add(e *Entry) {
	for i := range e.Messages {
		m := &e.Messages[i]
		p.headers = appendHeaders(p.headers[:0], m.Topic, m.Headers)
		p.builder.Add(m.TimestampMs, m.Key, m.Value, p.headers)
	}
	if e.Own != nil {
		p.builder.Add(time.Now().UnixMilli(), []byte(e.OwnKey), e.Own, nil)
	}
	p.notes = append(p.notes, e.Note...)
	if e.Local != nil {
		p.locals = append(p.locals, e.Local)
	}
	if e.Owner != nil {
		p.acks = append(p.acks, ack{e.Owner, e.Tag})
	}
	p.entries++
}

func (e *Entry) bytes() int64 {
	n := int64(len(e.Note) + len(e.Own))
	for i := range e.Messages {
		m := &e.Messages[i]
		n += int64(len(m.Key)+len(m.Value)+len(m.Topic)) + entryOverheadBytes
		for _, h := range m.Headers {
			n += int64(len(h.Key)+len(h.Value)) + 2
		}
	}
	return n
}

// entryOverheadBytes is what a record weighs beside its parts, rounded up.
const entryOverheadBytes = 32

// Put queues e and returns at once; its owner is told later. It returns ErrFull for messages when the budget is used up, and
// the error of the buffer when it works no more; then the owner is not told.
func (b *Buffer) Put(e *Entry) error {
	if len(e.Messages) > 0 && b.Full() {
		b.metrics.refused.Inc()
		return ErrFull
	}
	return b.put(e)
}

func (b *Buffer) put(e *Entry) error {
	size := e.bytes()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.stateLocked(); err != nil {
		return err
	}
	p := b.mu.open
	if p.bytes > 0 && p.bytes+size > b.o.BatchBytes {
		b.mu.sealed = append(b.mu.sealed, p)
		p = b.takeFreeLocked()
		b.mu.open = p
	}
	if p.entries == 0 {
		nudge(b.wake)
		p.first = time.Now()
	}
	p.add(e)
	p.bytes += size
	b.mu.bytes += size
	b.mu.entries++
	if b.crowdedLocked() {
		b.crowded.Store(true)
	}
	return nil
}

func (b *Buffer) stateLocked() error {
	if b.mu.err != nil {
		return b.mu.err
	}
	if b.mu.stopping {
		return ErrStopped
	}
	return nil
}

func (b *Buffer) takeFreeLocked() *batch {
	if n := len(b.mu.free); n > 0 {
		p := b.mu.free[n-1]
		b.mu.free = b.mu.free[:n-1]
		return p
	}
	return newBatch()
}

// Full says that messages are refused now.
func (b *Buffer) Full() bool { return b.full.Load() || b.lowDisk.Load() }

// Crowded says that so much waits for the disk that whoever brings more should wait with Room first.
func (b *Buffer) Crowded() bool { return b.crowded.Load() }

// Jammed says that the queue is as long as it may ever be: nobody is let in any more.
func (b *Buffer) Jammed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.bytes >= b.o.QueueBytes || b.mu.entries >= queueEntriesMax
}

func (b *Buffer) crowdedLocked() bool {
	return b.mu.bytes >= b.mu.limit || b.mu.entries >= queueEntriesMax
}

// Room waits until the queue has room, and with space also until messages are taken again. The queue's bound is soft: everybody
// who was let in may bring one more entry.
func (b *Buffer) Room(ctx context.Context, space bool) error {
	for {
		b.mu.Lock()
		if err := b.stateLocked(); err != nil {
			b.mu.Unlock()
			return err
		}
		if !b.crowdedLocked() && !(space && b.Full()) {
			b.mu.Unlock()
			return nil
		}
		if b.mu.room == nil {
			b.mu.room = make(chan struct{})
		}
		room := b.mu.room
		b.mu.Unlock()
		select {
		case <-room:
		case <-b.failed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (b *Buffer) makeRoom() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.makeRoomLocked()
}

func (b *Buffer) makeRoomLocked() {
	if b.mu.room != nil {
		close(b.mu.room)
		b.mu.room = nil
	}
}

// A Ticket is waited for by those who have nothing else to do, as an HTTP request.
type Ticket struct {
	done chan struct{}
	err  error
}

// Append queues messages as one entry: all of them or none. It waits for room in the queue.
func (b *Buffer) Append(ctx context.Context, messages []Message) (*Ticket, error) {
	return b.PutTicket(ctx, &Entry{Messages: messages})
}

// PutTicket is Put for one who waits; e.Owner and e.Tag are set by it.
func (b *Buffer) PutTicket(ctx context.Context, e *Entry) (*Ticket, error) {
	if err := b.Room(ctx, false); err != nil {
		return nil, err
	}
	t := &Ticket{done: make(chan struct{})}
	e.Owner = NewOwner(func(_ []Tag, err error) {
		t.err = err
		close(t.done)
	})
	if err := b.Put(e); err != nil {
		return nil, err
	}
	return t, nil
}

// Done is closed when the messages are synced or will never be.
func (t *Ticket) Done() <-chan struct{} { return t.done }

// Wait returns nil when the messages are on disk.
func (t *Ticket) Wait(ctx context.Context) error {
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
