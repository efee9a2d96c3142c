package history

import "sync"

// Writer is one producer, or one device, of numbered records. Numbers begin at 0 and rise by one, in the order of Send.
type Writer struct {
	h     *History
	name  string
	index uint16 // + 1
	topic *Topic

	mu struct {
		sync.Mutex
		next   int64
		pieces []*[writesPerPiece]write
		times  []uint32 // of acknowledgements that name no place
	}
}

// write is what is known of one record: 16 bytes.
type write struct {
	offset    int64 // acknowledged; until then what was visible of its partition when it was sent
	sum       uint32
	partition uint16 // unplaced = unknown
	state     state
	flags     flags
}

type (
	state uint8
	flags uint8
)

const (
	pending state = iota // sent, and nothing heard
	unknown              // its writer gave it up: it may be there or not
	acked                // with a place
	stored               // acknowledged without a place (MQTT, HTTP)
)

const (
	resent flags = 1 << iota // sent again by the writer itself
	found                    // in Check: read somewhere
	read                     // some reader was given it
)

const (
	writesPerPiece = 4096
	unplaced       = 1<<16 - 1
	// Anywhere is the partition of a record whose partition its writer does not choose.
	Anywhere int32 = -1
)

// Writer declares a writer to a topic, or returns the one of that name. There are at most 65,000.
func (h *History) Writer(name string, t *Topic) *Writer {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.mu.writers[name]; w != nil {
		return w
	}
	if len(h.mu.list) >= foreign-1 {
		panic("BUG: more writers than a history can hold")
	}
	w := &Writer{h: h, name: name, index: uint16(len(h.mu.list) + 1), topic: t}
	h.mu.writers[name] = w
	h.mu.list = append(h.mu.list, w)
	return w
}

// Name of the writer.
func (w *Writer) Name() string { return w.name }

// Next is the number that the next Send returns: for writers that put the number into the bytes they hand to Send. Only one goroutine may send.
func (w *Writer) Next() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.next
}

// Send notes a record that is about to be sent, to a partition or Anywhere, and returns its number. sum is the Sum of its bytes.
func (w *Writer) Send(partition int32, sum uint32) int64 {
	r := write{sum: sum, partition: unplaced}
	if partition != Anywhere {
		r.partition, r.offset = uint16(partition), w.topic.parts[partition].visible()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.mu.next
	if n%writesPerPiece == 0 {
		w.mu.pieces = append(w.mu.pieces, new([writesPerPiece]write))
	}
	*w.atLocked(n) = r
	w.mu.next++
	return n
}

// visible is the end of the log as far as anybody knows.
func (p *partition) visible() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.mu.acked, p.mu.seen)
}

func (w *Writer) atLocked(n int64) *write { return &w.mu.pieces[n/writesPerPiece][n%writesPerPiece] }

// Resent notes that the writer sends a record again of its own accord (MQTT QoS 1): it may be there twice.
func (w *Writer) Resent(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.atLocked(n).flags |= resent
}

// Failed notes that the writer has given a record up: it may be there or not.
func (w *Writer) Failed(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.atLocked(n).state = unknown
}

// Stored notes an acknowledgement that says nothing of a place.
func (w *Writer) Stored(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.atLocked(n).state = stored
	w.mu.times = appendTime(w.mu.times, w.h.sinceStart())
}

// Acked notes an acknowledgement.
func (w *Writer) Acked(n int64, partition int32, offset int64) {
	before, chosen := w.acknowledge(n, partition, offset)
	p := w.topic.parts[partition]
	v := Violation{Writer: w.name, Number: n, Offset: offset}
	if chosen != unplaced && int32(chosen) != partition {
		v.Kind = Moved
		p.report(v, "acknowledged in partition %d, but sent to %d", partition, chosen)
	} else if chosen != unplaced && offset < before {
		v.Kind = Backdated
		p.report(v, "acknowledged at an offset below %d, which was visible before it was sent", before)
	}
	now := w.h.sinceStart()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.acked = max(p.mu.acked, offset+1)
	p.mu.times = appendTime(p.mu.times, now)
}

// acknowledge changes the write and returns what it was sent with.
func (w *Writer) acknowledge(n int64, partition int32, offset int64) (before int64, chosen uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.atLocked(n)
	before, chosen = r.offset, r.partition
	r.state, r.partition, r.offset = acked, uint16(partition), offset
	return before, chosen
}

// what returns a copy of a write; ok is false for a number that was not sent.
func (w *Writer) what(n int64) (r write, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n < 0 || n >= w.mu.next {
		return write{}, false
	}
	return *w.atLocked(n), true
}

// wasRead is what, for a reader that was given the record.
func (w *Writer) wasRead(n int64) (r write, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n < 0 || n >= w.mu.next {
		return write{}, false
	}
	w.atLocked(n).flags |= read
	return *w.atLocked(n), true
}

// Unread is how many acknowledged records no reader has been given yet.
func (h *History) Unread() (n int64) {
	_, writers := h.all()
	for _, w := range writers {
		w.mu.Lock()
		for i := range w.mu.next {
			if r := w.atLocked(i); r.flags&read == 0 && (r.state == acked || r.state == stored) {
				n++
			}
		}
		w.mu.Unlock()
	}
	return n
}

// appendTime keeps one time a millisecond, in order.
func appendTime(times []uint32, now uint32) []uint32 {
	if n := len(times); n > 0 && times[n-1] >= now {
		return times
	}
	return append(times, now)
}
