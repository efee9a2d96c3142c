// Package ingest decides what becomes of a message: which core topic, key, headers and time. MQTT and HTTP hand their
// messages to a Door, which routes them and puts them into the buffer; what comes back comes back from the buffer.
//
// It guarantees that every message goes somewhere (the last rule matches everything) and that a payload which cannot be
// normalised is forwarded as it came, with the reason in a header. It knows nothing of connections and acknowledgements.
package ingest

import (
	"context"
	"strconv"
	"time"

	"sluice/core/record"
	"sluice/edge/buffer"
)

// Headers that every record carries unless its rule says otherwise.
const (
	HeaderClient = "mqtt.client"
	HeaderTopic  = "mqtt.topic"
	HeaderQoS    = "mqtt.qos"
	HeaderTime   = "gateway.time" // milliseconds since 1970, decimal
	HeaderError  = "ingest.error" // why the payload was not normalised
	HeaderType   = "content-type" // of a normalised payload, and of an HTTP body
)

// DefaultTopic is where everything goes without rules.
const DefaultTopic = "mqtt"

// Input is one message as a device sent it. Topic and Payload belong to the caller and are copied when they are kept.
type Input struct {
	Client      string
	Topic       string
	Payload     []byte
	QoS         byte
	Retain      bool
	Properties  []byte // MQTT 5, encoded, without the length before them
	ContentType string // "" when the device does not say
	Time        time.Time
	Expires     time.Time // MQTT 5 message expiry; zero: never
}

// Local serves subscribers of the gateway itself. Prepare is called for every message before it is queued. A nil local means
// that nobody wants it; own, when not nil, is kept in the log so that a restart can hand it out again.
type Local interface {
	Prepare(in *Input) (local any, own []byte)
}

// OwnLocal is the key of the gateway's own record made of what Prepare returned.
const OwnLocal = "sluice.local"

// Door is where messages come in.
type Door struct {
	router *Router
	buffer *buffer.Buffer
	local  Local
}

// NewDoor joins router and buffer.
func NewDoor(r *Router, b *buffer.Buffer) *Door { return &Door{router: r, buffer: b} }

// Serve sets who serves local subscribers. Call it before the first message.
func (d *Door) Serve(l Local) { d.local = l }

// Buffer is what the door puts into.
func (d *Door) Buffer() *buffer.Buffer { return d.buffer }

// Scratch is memory that one goroutine reuses from message to message.
type Scratch struct {
	Entry   buffer.Entry
	headers []record.Header
	digits  []byte
	key     []byte
	topic   []byte
}

// Put routes in and queues it with what is already in s.Entry (Note, Owner, Tag). It does not wait.
func (d *Door) Put(in *Input, s *Scratch) error {
	d.fill(in, s)
	return d.buffer.Put(&s.Entry)
}

func (d *Door) fill(in *Input, s *Scratch) {
	s.Entry.Messages = d.router.Route(in, s)
	s.Entry.OwnKey, s.Entry.Own, s.Entry.Local = "", nil, nil
	if d.local != nil {
		if s.Entry.Local, s.Entry.Own = d.local.Prepare(in); s.Entry.Own != nil {
			s.Entry.OwnKey = OwnLocal
		}
	}
}

// PutAll queues all inputs as one: all of them will be on disk or none, and the ticket tells. It waits for room in the queue,
// and returns buffer.ErrFull when the buffer is full.
func (d *Door) PutAll(ctx context.Context, inputs []Input, note []byte) (*buffer.Ticket, error) {
	e := buffer.Entry{Note: note}
	var locals []any
	var owns []byte
	for i := range inputs {
		var s Scratch // every message keeps its own memory until all of them are queued
		d.fill(&inputs[i], &s)
		e.Messages = append(e.Messages, s.Entry.Messages...)
		if s.Entry.Local != nil {
			locals = append(locals, s.Entry.Local)
		}
		owns = append(owns, s.Entry.Own...)
	}
	if len(locals) > 0 {
		e.Local = locals
	}
	if len(owns) > 0 {
		e.OwnKey, e.Own = OwnLocal, owns
	}
	return d.buffer.PutTicket(ctx, &e)
}

func appendDecimal(b []byte, n int64) []byte { return strconv.AppendInt(b, n, 10) }
