package mqtt

import (
	"slices"

	"github.com/mochi-mqtt/server/v2/packets"
)

// filtersMax bounds the subscriptions of one session.
const filtersMax = 10_000

// handleSubscribe grants filters, then sends what is retained for them. Of a session that lasts they are stored before the SUBACK.
func (c *conn) handleSubscribe(first byte, body []byte) error {
	id, subs, code := parseSubscribe(first, body, c.version)
	if code != packets.CodeSuccess {
		return violation(code)
	}
	if c.version < 5 && slices.Contains(subs, nil) { // 3.1.1: MQTT-4.7.3-1 and others are violations; 0x80 is for what is refused
		return violation(packets.ErrTopicFilterInvalid)
	}
	codes := make([]byte, len(subs))
	existed := make([]bool, len(subs))
	s := c.server
	// Nothing is handed out between a filter's begin and the look at what is retained: a message comes either way, not both.
	s.delivery.Lock()
	for i, sub := range subs {
		if codes[i] = c.grant(sub); codes[i] < 0x80 {
			existed[i] = c.session.subscribe(sub)
		}
	}
	var found [][]*message
	for i, sub := range subs {
		if codes[i] < 0x80 && sub.wantsRetained(existed[i]) {
			found = append(found, s.retained.match(sub.Filter))
		} else {
			found = append(found, nil)
		}
	}
	wait := c.session.lasts.Load()
	s.delivery.Unlock()
	if wait {
		if err := s.store.wait(c.ctx); err != nil {
			return err
		}
	}
	ack := &packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Suback}, ProtocolVersion: c.version, PacketID: id, ReasonCodes: codes}
	c.write(func(b []byte) []byte { return append(b, encode(ack)...) })
	for i, sub := range subs {
		for _, m := range found[i] {
			if !(sub.NoLocal && m.From == c.session.id) {
				c.session.send(m, sub.QoS, true, sub.ids())
			}
		}
	}
	return nil
}

// grant returns the SUBACK code of one filter.
func (c *conn) grant(sub *subscription) byte {
	c.session.out.Lock()
	n := len(c.session.out.subs)
	c.session.out.Unlock()
	switch {
	case sub == nil:
		return packets.ErrTopicFilterInvalid.Code
	case n >= filtersMax && c.version == 5:
		return packets.ErrQuotaExceeded.Code
	case n >= filtersMax:
		return 0x80
	case !c.user.MaySubscribe(c.session.id, sub.Filter) && c.version == 5:
		return packets.ErrNotAuthorized.Code
	case !c.user.MaySubscribe(c.session.id, sub.Filter):
		return 0x80
	}
	return sub.QoS
}

// wantsRetained is Retain Handling (MQTT 5, 3.8.3.1); shared subscriptions get none.
func (sub *subscription) wantsRetained(existed bool) bool {
	return sub.Share == "" && (sub.retainHandling == 0 || sub.retainHandling == 1 && !existed)
}

func (sub *subscription) ids() []int {
	if sub.Identifier == 0 {
		return nil
	}
	return []int{sub.Identifier}
}

func (c *conn) handleUnsubscribe(first byte, body []byte) error {
	id, names, ok := parseUnsubscribe(first, body, c.version)
	if !ok {
		return violation(packets.ErrMalformedPacket)
	}
	ack := &packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsuback}, ProtocolVersion: c.version, PacketID: id}
	for _, name := range names {
		code := packets.CodeSuccess.Code
		if !c.session.unsubscribe(name) {
			code = packets.CodeNoSubscriptionExisted.Code
		}
		ack.ReasonCodes = append(ack.ReasonCodes, code)
	}
	if c.session.lasts.Load() {
		if err := c.server.store.wait(c.ctx); err != nil {
			return err
		}
	}
	c.write(func(b []byte) []byte { return append(b, encode(ack)...) })
	return nil
}
