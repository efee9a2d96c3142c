package mqtt

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"sluice/edge/buffer"
	"sluice/edge/ingest"
)

// serve is the reader's goroutine. A panic in it costs this connection only.
func (c *conn) serve() {
	err := c.guarded()
	if c.session != nil {
		c.server.detach(c)
	}
	if c.server.stopping.Load() { // acknowledgements are still to come: closeConns ends it after them
		return
	}
	var why *stop
	switch {
	case errors.As(err, &why):
		c.server.metrics.violations.Inc()
		if why.tell {
			c.disconnect(why.code)
		} else {
			c.finish(nil)
		}
	case errors.Is(err, errDone):
		c.finish(nil)
	default: // the network: a device that only closed its half may still read its acknowledgements
		c.closeAfterAcks()
	}
}

func (c *conn) guarded() (err error) {
	defer func() {
		if r := recover(); r != nil {
			c.server.metrics.panics.Inc()
			c.server.logger.Error("a connection's packet caused a panic", "client", c.clientID(), "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = violation(packets.ErrImplementationSpecificError)
		}
	}()
	if err := c.hello(); err != nil {
		return err
	}
	for {
		first, body, err := c.next()
		if err != nil {
			return err
		}
		if err := c.handle(first, body); err != nil {
			return err
		}
	}
}

func (c *conn) clientID() string {
	if c.session == nil {
		return ""
	}
	return c.session.id
}

// hello waits for the CONNECT, no longer than the configuration allows.
func (c *conn) hello() error {
	c.nc.SetReadDeadline(time.Now().Add(c.server.config.ConnectTimeout))
	first, body, err := c.next()
	if err != nil {
		return err
	}
	if first>>4 != packets.Connect {
		return violation(packets.ErrProtocolViolationRequireFirstConnect)
	}
	c.nc.SetReadDeadline(time.Time{})
	return c.connect(first, body)
}

func (c *conn) handle(first byte, body []byte) error {
	switch first >> 4 {
	case packets.Publish:
		return c.handlePublish(first, body)
	case packets.Pubrel:
		return c.handlePubrel(first, body)
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		return c.handleAck(first, body)
	case packets.Subscribe:
		return c.handleSubscribe(first, body)
	case packets.Unsubscribe:
		return c.handleUnsubscribe(first, body)
	case packets.Pingreq:
		if first&15 != 0 || len(body) != 0 {
			return violation(packets.ErrMalformedPacket)
		}
		c.write(func(b []byte) []byte { return append(b, packets.Pingresp<<4, 0) })
		return nil
	case packets.Disconnect:
		return c.handleDisconnect(first, body)
	case packets.Connect:
		return violation(packets.ErrProtocolViolationSecondConnect)
	}
	return violation(packets.ErrProtocolViolation)
}

// handlePublish checks a message and puts it into the buffer; the answer comes from there.
func (c *conn) handlePublish(first byte, body []byte) error {
	p, code, ok := parsePublish(first, body, c.version, c.props)
	if !ok {
		return violation(code)
	}
	if p.props != nil {
		c.props = p.props[:0]
	}
	topic, err := c.topicOf(&p)
	if err != nil {
		return err
	}
	c.server.metrics.received.Inc()
	if err := c.flow(&p); err != nil {
		return err
	}
	if !topic.allowed {
		return c.refuse(&p, packets.ErrNotAuthorized)
	}
	c.input = ingest.Input{
		Client: c.session.id, Topic: topic.name, Payload: p.payload, QoS: p.qos, Retain: p.retain,
		Properties: p.props, ContentType: string(p.contentType), Time: time.Now(),
	}
	if p.hasExpiry {
		c.input.Expires = c.input.Time.Add(time.Duration(p.expiry) * time.Second)
	}
	return c.store(&p)
}

// topicOf resolves the alias and checks name and permission, once per topic and connection.
func (c *conn) topicOf(p *publishPacket) (*knownTopic, error) {
	if p.hasAlias && (p.alias == 0 || int(p.alias) > c.server.config.TopicAliasMaximum) {
		return nil, violation(packets.ErrTopicAliasInvalid)
	}
	if len(p.topic) == 0 {
		if t := c.aliases[p.alias]; p.hasAlias && t != nil {
			return t, nil
		}
		return nil, violation(packets.ErrProtocolViolationNoTopic)
	}
	t := c.topics[string(p.topic)]
	if t == nil {
		for _, b := range p.topic {
			if b == '+' || b == '#' {
				return nil, violation(packets.ErrProtocolViolationSurplusWildcard)
			}
		}
		name := string(p.topic)
		t = &knownTopic{name, c.user.MayPublish(c.session.id, name)}
		if c.topics == nil || len(c.topics) >= topicsMax {
			c.topics = map[string]*knownTopic{}
		}
		c.topics[name] = t
	}
	if p.hasAlias {
		if c.aliases == nil {
			c.aliases = map[uint16]*knownTopic{}
		}
		c.aliases[p.alias] = t
	}
	return t, nil
}

// flow keeps Receive Maximum, and waits where the buffer's queue is full. Nothing is locked while it waits.
func (c *conn) flow(p *publishPacket) error {
	most := int32(c.server.config.ReceiveMaximum)
	switch p.qos {
	case 1:
		if c.version == 5 && c.unacked.Load()+int32(len(c.open2)) >= most {
			return violation(packets.ErrReceiveMaximum)
		}
		for c.unacked.Load() >= most { // 3.1.1 has no way to tell: it is not read further
			select {
			case <-c.resume:
			case <-c.ctx.Done():
				return c.ctx.Err()
			}
		}
	case 2:
		if c.open2 == nil {
			c.open2 = map[uint16]struct{}{}
		}
		c.open2[p.id] = struct{}{}
		if c.version == 5 && c.unacked.Load()+int32(len(c.open2)) > most {
			return violation(packets.ErrReceiveMaximum)
		}
	}
	b := c.server.door.Buffer()
	space := p.qos == 0 || c.version < 5 // only MQTT 5 can refuse a message
	if b.Crowded() && !(c.light(len(p.topic)+len(p.payload), time.Now()) && !b.Jammed()) || space && b.Full() {
		return b.Room(c.ctx, space)
	}
	return nil
}

// A device that publishes no more than lightBytes in lightPeriod while the queue is crowded does not wait for those that crowd it.
const (
	lightBytes  = 16 << 10
	lightPeriod = time.Second
)

// light counts a message that came while the queue was crowded, and says whether its device is not to blame.
func (c *conn) light(bytes int, now time.Time) bool {
	if now.Sub(c.crowd.since) > lightPeriod {
		c.crowd.since, c.crowd.bytes = now, 0
	}
	c.crowd.bytes += bytes
	return c.crowd.bytes <= lightBytes
}

// refuse answers without storing, in the order of all answers. Before MQTT 5 there is no way to say no: the connection ends.
func (c *conn) refuse(p *publishPacket, code packets.Code) error {
	c.server.metrics.refused.Inc()
	if p.qos == 0 {
		return nil
	}
	if c.version < 5 {
		return violation(code)
	}
	kind := byte(packets.Puback)
	if p.qos == 2 {
		kind = packets.Pubrec
		delete(c.open2, p.id) // the exchange ends with this answer
	} else {
		c.unacked.Add(1)
	}
	return c.answer(kind, code.Code, p.id, nil)
}

// answer sends an acknowledgement after the sync of all that was put before it, and of note.
func (c *conn) answer(kind, reason byte, id uint16, note []byte) error {
	return c.server.door.Buffer().Put(&buffer.Entry{Note: note, Owner: c.owner, Tag: tagOf(kind, reason, id)})
}

// store puts the message into the buffer unless it is there already.
func (c *conn) store(p *publishPacket) error {
	in := &c.session.in
	in.Lock()
	defer in.Unlock()
	if c.dead.Load() {
		return errDone
	}
	e := &c.scratch.Entry
	e.Owner, e.Note = nil, e.Note[:0]
	switch p.qos {
	case 0:
		err := c.server.door.Put(&c.input, &c.scratch)
		if errors.Is(err, buffer.ErrFull) { // it became full after flow had looked
			return c.refuse(p, packets.ErrQuotaExceeded)
		}
		return err
	case 1:
		return c.store1(p, in)
	}
	return c.store2(p, in)
}

func (c *conn) store1(p *publishPacket, in *inbound) error {
	c.unacked.Add(1)
	lasts := c.session.lasts.Load()
	var hash uint64
	if lasts {
		hash = hashOf(c.input.Topic, p.payload)
		if p.dup && in.last.find(p.id, hash) {
			c.server.metrics.resent.Inc()
			return c.answer(packets.Puback, 0, p.id, nil)
		}
	}
	e := &c.scratch.Entry
	e.Owner, e.Tag = c.owner, tagOf(packets.Puback, 0, p.id)
	if lasts {
		e.Note = noteQoS1(e.Note, c.session.id, p.id, hash)
	}
	err := c.server.door.Put(&c.input, &c.scratch)
	if errors.Is(err, buffer.ErrFull) {
		c.unacked.Add(-1)
		return c.refuse(p, packets.ErrQuotaExceeded)
	}
	if err == nil && lasts {
		in.last.add(c.server.config.ReceiveMaximum, p.id, hash)
	}
	return err
}

// store2 takes the id until PUBREL. With the flag DUP or without, an id that is taken is the same message (MQTT-4.3.3-10).
func (c *conn) store2(p *publishPacket, in *inbound) error {
	if _, taken := in.taken[p.id]; taken {
		c.server.metrics.resent.Inc()
		return c.answer(packets.Pubrec, 0, p.id, nil)
	}
	e := &c.scratch.Entry
	e.Owner, e.Tag = c.owner, tagOf(packets.Pubrec, 0, p.id)
	if c.session.lasts.Load() {
		e.Note = noteID(e.Note, opQoS2, c.session.id, p.id)
	}
	err := c.server.door.Put(&c.input, &c.scratch)
	if errors.Is(err, buffer.ErrFull) {
		return c.refuse(p, packets.ErrQuotaExceeded)
	}
	if err == nil {
		in.take(p.id)
	}
	return err
}

// handlePubrel gives the id free; PUBCOMP goes out when that is on disk. Otherwise a power cut could bring the id back, and the
// next message with it would be taken for a resend.
func (c *conn) handlePubrel(first byte, body []byte) error {
	id, _, ok := parseAck(first, body, c.version)
	if !ok {
		return violation(packets.ErrMalformedPacket)
	}
	in := &c.session.in
	in.Lock()
	defer in.Unlock()
	if c.dead.Load() {
		return errDone
	}
	delete(c.open2, id)
	if _, taken := in.taken[id]; !taken {
		return c.answer(packets.Pubcomp, packets.ErrPacketIdentifierNotFound.Code, id, nil)
	}
	var note []byte
	if c.session.lasts.Load() {
		note = noteID(nil, opRelease, c.session.id, id)
	}
	if err := c.answer(packets.Pubcomp, 0, id, note); err != nil {
		return err
	}
	delete(in.taken, id)
	return nil
}

// handleAck takes a subscriber's answer.
func (c *conn) handleAck(first byte, body []byte) error {
	id, reason, ok := parseAck(first, body, c.version)
	if !ok {
		return violation(packets.ErrMalformedPacket)
	}
	if !c.session.acked(c, first>>4, id, reason) && first>>4 == packets.Pubrec && reason < 0x80 {
		// A PUBREC for what we do not know any more still gets its PUBREL, so that the client can end the exchange.
		c.write(func(b []byte) []byte {
			return appendAck(b, packets.Pubrel, id, c.version, packets.ErrPacketIdentifierNotFound.Code)
		})
	}
	return nil
}

func (c *conn) handleDisconnect(first byte, body []byte) error {
	reason, expiry, ok := parseDisconnect(first, body, c.version)
	if !ok {
		return violation(packets.ErrMalformedPacket)
	}
	if expiry != nil && !c.server.changeExpiry(c, *expiry) {
		return violation(packets.ErrProtocolViolationZeroNonZeroExpiry)
	}
	c.normal = reason != packets.CodeDisconnectWillMessage.Code
	return errDone
}
