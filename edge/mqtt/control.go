package mqtt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"

	"sluice/edge/ingest"
)

// decode lets mochi's codec read a packet that is not on the hot path. A panic in it is a malformed packet of this connection.
func decode(pk *packets.Packet, first byte, body []byte, version byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: the decoder gave up: %v", packets.ErrMalformedPacket, r)
		}
	}()
	pk.ProtocolVersion = version
	pk.FixedHeader.Remaining = len(body)
	if err := pk.FixedHeader.Decode(first); err != nil {
		return err
	}
	body = bytes.Clone(body) // its strings alias what it reads, and the connection's buffer is used again
	switch pk.FixedHeader.Type {
	case packets.Connect:
		return pk.ConnectDecode(body)
	case packets.Subscribe:
		return pk.SubscribeDecode(body)
	case packets.Unsubscribe:
		return pk.UnsubscribeDecode(body)
	case packets.Disconnect:
		return pk.DisconnectDecode(body)
	}
	return packets.ErrProtocolViolation
}

// encode lets mochi's codec write a packet.
func encode(pk *packets.Packet) []byte {
	var buf bytes.Buffer
	var err error
	pk.Mods.AllowResponseInfo = true
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackEncode(&buf)
	case packets.Suback:
		err = pk.SubackEncode(&buf)
	case packets.Unsuback:
		err = pk.UnsubackEncode(&buf)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&buf)
	default:
		panic("BUG: no encoder for packet type")
	}
	if err != nil {
		panic("BUG: a packet of ours does not encode: " + err.Error())
	}
	return buf.Bytes()
}

// connectPacket is a CONNECT with what mochi's decoder does not say.
type connectPacket struct {
	packets.Packet
	will *message
}

// parseConnect checks a CONNECT more strictly than mochi does (flags, doubled properties, bytes after the payload), then has it decoded.
func parseConnect(first byte, body []byte) (*connectPacket, packets.Code) {
	version, code := checkConnect(first, body)
	if code != packets.CodeSuccess {
		return &connectPacket{Packet: packets.Packet{ProtocolVersion: version}}, code
	}
	p := &connectPacket{}
	if err := decode(&p.Packet, first, body, 0); err != nil {
		return p, packets.ErrMalformedPacket
	}
	if p.Connect.WillFlag {
		if strings.ContainsAny(p.Connect.WillTopic, "+#") || p.Connect.WillTopic == "" {
			return p, packets.ErrTopicNameInvalid
		}
		p.will = willOf(body, &p.Packet)
	}
	return p, packets.CodeSuccess
}

// checkConnect walks over the packet; version is 4 until a valid one is known.
func checkConnect(first byte, body []byte) (version byte, code packets.Code) {
	f := newField(body)
	name := f.binary()
	version = f.byte()
	if !f.ok || first != packets.Connect<<4 {
		return 4, packets.ErrMalformedPacket
	}
	if string(name) != "MQTT" && (string(name) != "MQIsdp" || version != 3) {
		return 4, packets.ErrProtocolViolationProtocolName
	}
	if version != 3 && version != 4 && version != 5 || version == 3 && string(name) != "MQIsdp" {
		return 4, packets.ErrUnsupportedProtocolVersion
	}
	flags := f.byte()
	f.uint16()
	if !f.ok || !validConnectFlags(flags, version) {
		return version, packets.ErrMalformedFlags
	}
	if version == 5 && !checkConnectProperties(&f) {
		return version, packets.ErrMalformedProperties
	}
	id := f.text()
	if !f.ok || len(id) > clientIDBytesMax {
		return version, packets.ErrClientIdentifierNotValid
	}
	if flags&4 != 0 {
		if version == 5 {
			f.properties(inWill, nil)
		}
		f.text()
		f.binary()
	}
	if flags&0x80 != 0 {
		f.text()
	}
	if flags&0x40 != 0 {
		f.binary()
	}
	if !f.end() {
		return version, packets.ErrMalformedPacket
	}
	return version, packets.CodeSuccess
}

// clientIDBytesMax bounds what every message of the device carries as a header.
const clientIDBytesMax = 1024

func validConnectFlags(flags, version byte) bool {
	will, qos, retain := flags&4 != 0, flags>>3&3, flags&0x20 != 0
	user, password := flags&0x80 != 0, flags&0x40 != 0
	switch {
	case flags&1 != 0, qos == 3, !will && (qos != 0 || retain):
		return false
	case version < 5 && password && !user: // MQTT-3.1.2-22
		return false
	}
	return true
}

// checkConnectProperties refuses values that MQTT 5 calls protocol errors.
func checkConnectProperties(f *field) bool {
	method, data, zero := false, false, false
	f.properties(in(packets.Connect), func(id byte, value []byte) {
		switch id {
		case packets.PropReceiveMaximum:
			zero = zero || binary.BigEndian.Uint16(value) == 0
		case packets.PropMaximumPacketSize:
			zero = zero || binary.BigEndian.Uint32(value) == 0
		case packets.PropAuthenticationMethod:
			method = true
		case packets.PropAuthenticationData:
			data = true
		}
	})
	return f.ok && !zero && (method || !data)
}

// willOf makes the message of a will, with its properties as they came.
func willOf(body []byte, pk *packets.Packet) *message {
	m := &message{
		Topic: pk.Connect.WillTopic, Payload: bytes.Clone(pk.Connect.WillPayload), QoS: pk.Connect.WillQos,
		Retain: pk.Connect.WillRetain, From: pk.Connect.ClientIdentifier,
	}
	if pk.ProtocolVersion < 5 {
		return m
	}
	f := newField(body)
	f.binary()
	f.take(4)
	f.properties(in(packets.Connect), nil)
	f.text()
	f.properties(inWill, func(id byte, value []byte) {
		switch id {
		case packets.PropWillDelayInterval:
		case packets.PropMessageExpiryInterval:
			m.expiry, m.hasExpiry = binary.BigEndian.Uint32(value), true
		default:
			m.Props = append(append(m.Props, id), value...)
		}
	})
	return m
}

// subscription is one filter of a session.
type subscription struct {
	Filter            string `cbor:"1,keyasint"` // without $share/name/
	Share             string `cbor:"2,keyasint,omitempty"`
	QoS               byte   `cbor:"3,keyasint,omitempty"`
	NoLocal           bool   `cbor:"4,keyasint,omitempty"`
	RetainAsPublished bool   `cbor:"5,keyasint,omitempty"`
	Identifier        int    `cbor:"6,keyasint,omitempty"`

	retainHandling byte
	name           string // the filter as the client wrote it
}

// parseSubscribe reads a SUBSCRIBE. A filter that is not one is granted nothing: its subscription is nil.
func parseSubscribe(first byte, body []byte, version byte) (id uint16, subs []*subscription, code packets.Code) {
	if !checkFilters(first, body, version, packets.Subscribe, true) {
		return 0, nil, packets.ErrMalformedPacket
	}
	var pk packets.Packet
	if err := decode(&pk, first, body, version); err != nil || pk.SubscribeValidate() != packets.CodeSuccess {
		return 0, nil, packets.ErrMalformedPacket
	}
	for _, f := range pk.Filters {
		s := &subscription{
			Filter: f.Filter, name: f.Filter, QoS: f.Qos, NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished,
			Identifier: f.Identifier, retainHandling: f.RetainHandling,
		}
		if version == 5 && !s.splitShare() {
			s = nil
		} else if s.Share != "" && s.NoLocal { // MQTT-3.8.3-4
			return 0, nil, packets.ErrProtocolViolationInvalidSharedNoLocal
		} else if ingest.ValidFilter(s.Filter) != nil {
			s = nil
		}
		subs = append(subs, s)
	}
	return pk.PacketID, subs, packets.CodeSuccess
}

// splitShare takes $share/name/ off (MQTT 5, 4.8.2).
func (s *subscription) splitShare() bool {
	rest, shared := strings.CutPrefix(s.Filter, "$share/")
	if !shared {
		return s.Filter != "$share"
	}
	name, filter, ok := strings.Cut(rest, "/")
	s.Share, s.Filter = name, filter
	return ok && name != "" && filter != "" && !strings.ContainsAny(name, "+#")
}

// checkFilters walks over SUBSCRIBE and UNSUBSCRIBE.
func checkFilters(first byte, body []byte, version, kind byte, options bool) bool {
	if first != kind<<4|2 {
		return false
	}
	f := newField(body)
	if f.uint16() == 0 {
		return false
	}
	if version == 5 {
		zero := false
		f.properties(in(kind), func(id byte, value []byte) {
			zero = zero || id == packets.PropSubscriptionIdentifier && value[0] == 0
		})
		if !f.ok || zero {
			return false
		}
	}
	n := 0
	for ; f.ok && f.at < len(body); n++ {
		f.text()
		if options && !validOptions(f.byte(), version) {
			return false
		}
	}
	return f.ok && n > 0
}

func validOptions(o, version byte) bool {
	if version < 5 {
		return o <= 2
	}
	return o&3 != 3 && o>>4&3 != 3 && o&0xC0 == 0
}

// parseUnsubscribe reads an UNSUBSCRIBE.
func parseUnsubscribe(first byte, body []byte, version byte) (id uint16, names []string, ok bool) {
	if !checkFilters(first, body, version, packets.Unsubscribe, false) {
		return 0, nil, false
	}
	var pk packets.Packet
	if err := decode(&pk, first, body, version); err != nil {
		return 0, nil, false
	}
	for _, f := range pk.Filters {
		names = append(names, f.Filter)
	}
	return pk.PacketID, names, true
}

// parseAck reads PUBACK, PUBREC, PUBREL and PUBCOMP of a client.
func parseAck(first byte, body []byte, version byte) (id uint16, reason byte, ok bool) {
	flags := byte(0)
	if first>>4 == packets.Pubrel {
		flags = 2
	}
	f := newField(body)
	id = f.uint16()
	if first&15 != flags || !f.ok || id == 0 {
		return 0, 0, false
	}
	if version == 5 && len(body) > 2 {
		reason = f.byte()
		if len(body) > 3 {
			f.properties(in(first>>4), nil)
		}
	}
	return id, reason, f.end()
}

// parseDisconnect reads a DISCONNECT; expiry is nil when the client does not change it.
func parseDisconnect(first byte, body []byte, version byte) (reason byte, expiry *uint32, ok bool) {
	if first != packets.Disconnect<<4 || version < 5 && len(body) > 0 {
		return 0, nil, false
	}
	f := newField(body)
	if len(body) > 0 {
		reason = f.byte()
	}
	if len(body) > 1 {
		f.properties(in(packets.Disconnect), func(id byte, value []byte) {
			if id == packets.PropSessionExpiryInterval {
				n := binary.BigEndian.Uint32(value)
				expiry = &n
			}
		})
	}
	return reason, expiry, f.end()
}
