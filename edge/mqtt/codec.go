package mqtt

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Property kinds, by how they are encoded (MQTT 5, 2.2.2).
const (
	kindByte = iota + 1
	kindUint16
	kindUint32
	kindVarint
	kindString
	kindBinary
	kindPair
)

// property says how a property is encoded, where it may be and whether more than once.
type property struct {
	kind byte
	in   uint16 // bit per packet type; bit 0 is a will
	many bool
}

const inWill = 1

func in(types ...byte) uint16 {
	var bits uint16
	for _, t := range types {
		bits |= 1 << t
	}
	return bits
}

// properties is table 2-4 of MQTT 5 as far as a server receives it.
var properties = [43]property{
	packets.PropPayloadFormat:          {kindByte, in(packets.Publish) | inWill, false},
	packets.PropMessageExpiryInterval:  {kindUint32, in(packets.Publish) | inWill, false},
	packets.PropContentType:            {kindString, in(packets.Publish) | inWill, false},
	packets.PropResponseTopic:          {kindString, in(packets.Publish) | inWill, false},
	packets.PropCorrelationData:        {kindBinary, in(packets.Publish) | inWill, false},
	packets.PropSubscriptionIdentifier: {kindVarint, in(packets.Subscribe), false},
	packets.PropSessionExpiryInterval:  {kindUint32, in(packets.Connect, packets.Disconnect), false},
	packets.PropAuthenticationMethod:   {kindString, in(packets.Connect, packets.Auth), false},
	packets.PropAuthenticationData:     {kindBinary, in(packets.Connect, packets.Auth), false},
	packets.PropRequestProblemInfo:     {kindByte, in(packets.Connect), false},
	packets.PropWillDelayInterval:      {kindUint32, inWill, false},
	packets.PropRequestResponseInfo:    {kindByte, in(packets.Connect), false},
	packets.PropReasonString:           {kindString, in(packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp, packets.Disconnect, packets.Auth), false},
	packets.PropReceiveMaximum:         {kindUint16, in(packets.Connect), false},
	packets.PropTopicAliasMaximum:      {kindUint16, in(packets.Connect), false},
	packets.PropTopicAlias:             {kindUint16, in(packets.Publish), false},
	packets.PropUser:                   {kindPair, in(packets.Connect, packets.Publish, packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp, packets.Subscribe, packets.Unsubscribe, packets.Disconnect, packets.Auth) | inWill, true},
	packets.PropMaximumPacketSize:      {kindUint32, in(packets.Connect), false},
}

// A field walks over a packet's body. The first error sticks.
type field struct {
	b  []byte
	at int
	ok bool
}

func newField(b []byte) field { return field{b: b, ok: true} }

func (f *field) take(n int) []byte {
	if !f.ok || n < 0 || n > len(f.b)-f.at {
		f.ok = false
		return nil
	}
	f.at += n
	return f.b[f.at-n : f.at]
}

func (f *field) byte() byte {
	if b := f.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (f *field) uint16() uint16 {
	if b := f.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (f *field) uint32() uint32 {
	if b := f.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// varint reads a variable byte integer of at most four bytes.
func (f *field) varint() int {
	n := 0
	for shift := 0; shift < 28; shift += 7 {
		b := f.byte()
		n |= int(b&127) << shift
		if b < 128 {
			return n
		}
	}
	f.ok = false
	return 0
}

func (f *field) binary() []byte { return f.take(int(f.uint16())) }

// text is a UTF-8 string as MQTT allows it: no surrogates, no overlong forms, no null character.
func (f *field) text() []byte {
	b := f.binary()
	if !validText(b) {
		f.ok = false
	}
	return b
}

func validText(b []byte) bool {
	for _, c := range b { // most topics are plain: one pass decides
		if c == 0 || c >= utf8.RuneSelf {
			return utf8.Valid(b) && !strings.ContainsRune(string(b), 0)
		}
	}
	return true
}

func (f *field) end() bool { return f.ok && f.at == len(f.b) }

// properties reads a property section and checks every property: known, allowed in the packet, not doubled, well encoded.
// fn may be nil; value is what follows the identifier, as encoded.
func (f *field) properties(packet uint16, fn func(id byte, value []byte)) []byte {
	section := f.take(f.varint())
	if !f.ok {
		return nil
	}
	var seen uint64
	p := newField(section)
	for p.at < len(section) && p.ok {
		id := p.byte()
		if int(id) >= len(properties) || properties[id].in&packet == 0 || (seen>>id&1 == 1 && !properties[id].many) {
			f.ok = false
			return nil
		}
		seen |= 1 << id
		from := p.at
		p.value(properties[id].kind)
		if p.ok && fn != nil {
			fn(id, section[from:p.at])
		}
	}
	f.ok = p.ok
	return section
}

func (f *field) value(kind byte) {
	switch kind {
	case kindByte:
		if f.byte() > 1 { // every byte property that a client sends is a yes or no
			f.ok = false
		}
	case kindUint16:
		f.uint16()
	case kindUint32:
		f.uint32()
	case kindVarint:
		f.varint()
	case kindString:
		f.text()
	case kindBinary:
		f.binary()
	case kindPair:
		f.text()
		f.text()
	}
}

// publishPacket is a PUBLISH as read; its slices alias the connection's buffer.
type publishPacket struct {
	qos         byte
	dup, retain bool
	topic       []byte
	id          uint16
	alias       uint16
	hasAlias    bool
	expiry      uint32 // seconds
	hasExpiry   bool
	props       []byte // what goes on to subscribers: all but alias and expiry
	contentType []byte
	payload     []byte
}

// parsePublish reads a PUBLISH. scratch is memory for props.
func parsePublish(first byte, body []byte, version byte, scratch []byte) (p publishPacket, code packets.Code, ok bool) {
	p.qos, p.dup, p.retain = first>>1&3, first&8 != 0, first&1 != 0
	if p.qos == 3 || p.qos == 0 && p.dup {
		return p, packets.ErrMalformedFlags, false
	}
	f := newField(body)
	p.topic = f.text()
	if p.qos > 0 {
		if p.id = f.uint16(); f.ok && p.id == 0 {
			return p, packets.ErrProtocolViolationNoPacketID, false
		}
	}
	if version == 5 {
		p.readProperties(&f, scratch)
	}
	if !f.ok {
		return p, packets.ErrMalformedProperties, false
	}
	p.payload = body[f.at:]
	return p, packets.CodeSuccess, true
}

func (p *publishPacket) readProperties(f *field, scratch []byte) {
	if f.at < len(f.b) && f.b[f.at] == 0 { // the common case: none
		f.at++
		return
	}
	p.props = scratch[:0]
	wild := false
	f.properties(in(packets.Publish), func(id byte, value []byte) {
		switch id {
		case packets.PropTopicAlias:
			p.alias, p.hasAlias = binary.BigEndian.Uint16(value), true
			return
		case packets.PropMessageExpiryInterval:
			p.expiry, p.hasExpiry = binary.BigEndian.Uint32(value), true
			return
		case packets.PropContentType:
			p.contentType = value[2:]
		case packets.PropResponseTopic:
			wild = strings.ContainsAny(string(value[2:]), "+#")
		}
		p.props = append(append(p.props, id), value...)
	})
	if wild { // MQTT-3.3.2-14
		f.ok = false
	}
}

func appendVarint(b []byte, n int) []byte {
	for n >= 128 {
		b = append(b, byte(n)|128)
		n >>= 7
	}
	return append(b, byte(n))
}

func varintBytes(n int) int {
	switch {
	case n < 1<<7:
		return 1
	case n < 1<<14:
		return 2
	case n < 1<<21:
		return 3
	}
	return 4
}

// outgoing is a PUBLISH to a subscriber.
type outgoing struct {
	topic       string
	payload     []byte
	props       []byte // encoded; MQTT 5 only, without expiry and identifiers
	identifiers []int
	expiry      uint32
	hasExpiry   bool
	qos         byte
	dup, retain bool
	id          uint16
}

// appendPublish encodes p. size is what it takes on the wire; nothing is appended when that is more than most (0: no bound).
func appendPublish(b []byte, p *outgoing, version byte, most uint32) (out []byte, size int) {
	props := 0
	body := 2 + len(p.topic) + len(p.payload)
	if p.qos > 0 {
		body += 2
	}
	if version == 5 {
		props = len(p.props)
		if p.hasExpiry {
			props += 5
		}
		for _, id := range p.identifiers {
			props += 1 + varintBytes(id)
		}
		body += varintBytes(props) + props
	}
	size = 1 + varintBytes(body) + body
	if most > 0 && int64(size) > int64(most) || body > packetBytesMax {
		return b, size
	}
	b = append(b, packets.Publish<<4|flag(p.dup)<<3|p.qos<<1|flag(p.retain))
	b = appendVarint(b, body)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.topic)))
	b = append(b, p.topic...)
	if p.qos > 0 {
		b = binary.BigEndian.AppendUint16(b, p.id)
	}
	if version == 5 {
		b = appendVarint(b, props)
		if p.hasExpiry {
			b = append(b, packets.PropMessageExpiryInterval)
			b = binary.BigEndian.AppendUint32(b, p.expiry)
		}
		for _, id := range p.identifiers {
			b = appendVarint(append(b, packets.PropSubscriptionIdentifier), id)
		}
		b = append(b, p.props...)
	}
	return append(b, p.payload...), size
}

func flag(on bool) byte {
	if on {
		return 1
	}
	return 0
}

// appendAck encodes PUBACK, PUBREC, PUBREL and PUBCOMP. The reason goes out in MQTT 5 only, and only when it is not success.
func appendAck(b []byte, kind byte, id uint16, version byte, reason byte) []byte {
	first := kind << 4
	if kind == packets.Pubrel {
		first |= 2
	}
	if version == 5 && reason != 0 {
		return append(b, first, 3, byte(id>>8), byte(id), reason)
	}
	return append(b, first, 2, byte(id>>8), byte(id))
}
