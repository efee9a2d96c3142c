package mqtt

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// message is what subscribers get. It is immutable once it is made; its slices are its own.
type message struct {
	Topic     string `cbor:"1,keyasint"`
	Payload   []byte `cbor:"2,keyasint,omitempty"`
	Props     []byte `cbor:"3,keyasint,omitempty"` // MQTT 5, encoded; without expiry, alias and identifiers
	QoS       byte   `cbor:"4,keyasint,omitempty"`
	Retain    bool   `cbor:"5,keyasint,omitempty"`
	ExpiresMs int64  `cbor:"6,keyasint,omitempty"` // since 1970; 0: never
	From      string `cbor:"7,keyasint,omitempty"` // client id, for No Local

	expiry    uint32 // of a will: counts from its publication
	hasExpiry bool
}

func (m *message) bytes() int64 {
	return int64(len(m.Topic) + len(m.Payload) + len(m.Props) + messageOverheadBytes)
}

// messageOverheadBytes is about what a waiting message costs beside its content.
const messageOverheadBytes = 200

// expired messages are not delivered (MQTT-3.3.2-5).
func (m *message) expired(nowMs int64) bool { return m.ExpiresMs != 0 && nowMs >= m.ExpiresMs }

// States of a message on its way to a subscriber.
const (
	waiting  = iota // not sent, or not on this connection
	sent            // PUBLISH sent, PUBACK or PUBREC awaited
	released        // PUBREC came: PUBREL sent, PUBCOMP awaited
)

// outbound is one message on its way to one subscriber.
type outbound struct {
	msg     *message
	qos     byte
	retain  bool
	ids     []int
	seq     uint64 // order within the session, and the key in the store
	id      uint16 // 0: never sent
	state   byte
	counted bool // holds a place in the window
	stored  bool // the store has it
	changed bool // since it was stored
}

// A session outlives its connections when the client asks for it. Two mutexes, so that what comes in never waits for what goes out:
// in guards what the device publishes, out what subscribers get. Order: Server.mu, in, out, conn.w.
type session struct {
	id     string
	server *Server
	lasts  atomic.Bool // has an expiry: survives its connection and the gateway's restart
	conn   atomic.Pointer[conn]

	// Guarded by Server.mu.
	holder *conn  // the connection that attached last; conn follows when its CONNACK is on the way
	expiry uint32 // seconds; expiryNever
	until  time.Time
	will   *message
	willAt time.Time // zero: no will waits
	delay  uint32    // of the will, seconds
	gone   bool
	// recovered: read from the store, not yet connected again.
	recovered bool

	in  inbound
	out struct {
		sync.Mutex
		subs     map[string]*subscription // by the name the client used
		resend   []*outbound              // sent on an earlier connection, oldest first
		queue    []*outbound
		inflight map[uint16]*outbound
		window   int // places of this connection
		used     int
		nextID   uint16
		nextSeq  uint64
		bytes    int64
		dirty    bool // subscriptions, expiry or will differ from the store
		deleted  []uint64
		starved  bool // the connection had more to send than its bound
	}
}

// expiryNever is the session expiry that means for ever (MQTT 5, 3.1.2.11.2).
const expiryNever = 0xFFFFFFFF

func newSession(s *Server, id string) *session {
	sess := &session{id: id, server: s}
	sess.out.subs = map[string]*subscription{}
	sess.out.inflight = map[uint16]*outbound{}
	return sess
}

func (s *session) online() bool { return s.conn.Load() != nil }

// send gives a message to the subscriber: now, or later when the window is full or nobody is connected.
func (s *session) send(m *message, qos byte, retain bool, ids []int) {
	o := &outbound{msg: m, qos: min(qos, m.QoS), retain: retain, ids: ids}
	c := s.conn.Load()
	if o.qos == 0 {
		if c != nil && !c.publish(o, false, true) {
			s.server.metrics.dropped.Inc()
		}
		return
	}
	s.out.Lock()
	defer s.out.Unlock()
	if c == nil && !s.lasts.Load() {
		return
	}
	if len(s.out.queue) >= s.server.config.QueueMessages || s.out.bytes+m.bytes() > s.server.config.QueueBytes {
		s.server.metrics.dropped.Inc()
		return
	}
	s.out.nextSeq++
	o.seq = s.out.nextSeq
	s.out.queue = append(s.out.queue, o)
	s.out.bytes += m.bytes()
	s.touchLocked()
	s.pumpLocked()
}

// touchLocked has the store look at the session.
func (s *session) touchLocked() {
	if s.lasts.Load() {
		s.server.store.touch(s)
	}
}

// pump sends what the window and the connection take.
func (s *session) pump() {
	s.out.Lock()
	defer s.out.Unlock()
	s.pumpLocked()
}

func (s *session) pumpLocked() {
	c := s.conn.Load()
	if c == nil {
		return
	}
	now := time.Now().UnixMilli()
	for s.out.used < s.out.window {
		o, again := s.headLocked()
		if o == nil {
			return
		}
		if o.msg.expired(now) && !again {
			s.popLocked(again)
			s.forgetLocked(o)
			continue
		}
		if o.id == 0 {
			if o.id = s.freeIDLocked(); o.id == 0 {
				return
			}
		}
		if !c.room() {
			s.out.starved = true
			return
		}
		s.popLocked(again)
		s.transmitLocked(c, o, again)
	}
}

// headLocked is what goes next: what was sent before comes first, in its order (MQTT-4.6.0-1).
func (s *session) headLocked() (o *outbound, again bool) {
	if len(s.out.resend) > 0 {
		return s.out.resend[0], true
	}
	if len(s.out.queue) > 0 {
		return s.out.queue[0], false
	}
	return nil, false
}

func (s *session) popLocked(again bool) {
	q := &s.out.queue
	if again {
		q = &s.out.resend
	}
	(*q)[0] = nil
	if *q = (*q)[1:]; len(*q) == 0 {
		*q = nil
	}
}

func (s *session) transmitLocked(c *conn, o *outbound, again bool) {
	if again && o.state == released {
		s.out.inflight[o.id] = o
		c.write(func(b []byte) []byte { return appendAck(b, packets.Pubrel, o.id, c.version, 0) })
		return
	}
	o.state, o.changed = sent, true
	if !c.publish(o, again, false) { // larger than the client takes: as if it had been delivered (MQTT-3.1.2-25)
		s.forgetLocked(o)
		return
	}
	s.out.inflight[o.id] = o
	o.counted = true
	s.out.used++
}

// freeIDLocked finds a packet id that is not in use; 0 when all are.
func (s *session) freeIDLocked() uint16 {
	for range 65535 {
		if s.out.nextID++; s.out.nextID == 0 {
			s.out.nextID = 1
		}
		if s.out.inflight[s.out.nextID] == nil {
			return s.out.nextID
		}
	}
	return 0
}

// forgetLocked ends a delivery.
func (s *session) forgetLocked(o *outbound) {
	delete(s.out.inflight, o.id)
	s.out.bytes -= o.msg.bytes()
	if o.counted {
		o.counted = false
		s.out.used--
	}
	if o.stored {
		s.out.deleted = append(s.out.deleted, o.seq)
		s.touchLocked()
	}
}

// acked takes a subscriber's PUBACK, PUBREC or PUBCOMP and reports whether it belongs to a delivery.
func (s *session) acked(c *conn, kind byte, id uint16, reason byte) bool {
	s.out.Lock()
	defer s.out.Unlock()
	o := s.out.inflight[id]
	if o == nil {
		return false
	}
	switch {
	case kind == packets.Puback && o.qos == 1, kind == packets.Pubcomp && o.state == released, kind == packets.Pubrec && o.qos == 2 && reason >= 0x80:
		s.forgetLocked(o)
		s.pumpLocked()
		return true
	case kind == packets.Pubrec && o.qos == 2:
		o.state, o.changed = released, true
		if o.stored {
			s.touchLocked()
		}
		c.write(func(b []byte) []byte { return appendAck(b, packets.Pubrel, id, c.version, 0) })
		return true
	}
	return false
}

// resume makes the session's deliveries those of a new connection.
func (s *session) resume(c *conn, window int) {
	s.out.Lock()
	defer s.out.Unlock()
	if c.dead.Load() { // taken over meanwhile: leave came before or comes after, but not in between
		return
	}
	s.collectLocked()
	s.out.window = window
	s.conn.Store(c)
}

// collectLocked puts what is in flight in front, oldest first: the connection that knows of it is gone.
func (s *session) collectLocked() {
	for _, o := range s.out.inflight {
		o.counted = false
		s.out.resend = append(s.out.resend, o)
	}
	slices.SortFunc(s.out.resend, func(a, b *outbound) int { return cmp.Compare(a.seq, b.seq) })
	s.out.resend = slices.Compact(s.out.resend)
	s.out.used = 0
}

// leave takes the connection away; what is in flight stays for the next one.
func (s *session) leave() {
	s.out.Lock()
	defer s.out.Unlock()
	s.conn.Store(nil)
	s.out.starved = false
}

// drained goes on where the connection's bound had stopped it.
func (s *session) drained() {
	s.out.Lock()
	defer s.out.Unlock()
	if s.out.starved {
		s.out.starved = false
		s.pumpLocked()
	}
}

// subscribe replaces a subscription of the same name and reports whether there was one.
func (s *session) subscribe(sub *subscription) (existed bool) {
	s.out.Lock()
	s.out.subs[sub.name] = sub
	s.out.dirty = true
	s.touchLocked()
	s.out.Unlock()
	return s.server.subs.add(s, sub)
}

func (s *session) unsubscribe(name string) bool {
	s.out.Lock()
	sub := s.out.subs[name]
	delete(s.out.subs, name)
	s.out.dirty = true
	s.touchLocked()
	s.out.Unlock()
	return sub != nil && s.server.subs.remove(s, sub)
}

// unsubscribeAll takes the session out of the index.
func (s *session) unsubscribeAll() {
	s.out.Lock()
	defer s.out.Unlock()
	for _, sub := range s.out.subs {
		s.server.subs.remove(s, sub)
	}
	clear(s.out.subs)
}
