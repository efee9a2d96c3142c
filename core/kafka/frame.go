package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A frame is a length and a message:
//
//	 0        4          6           8               12
//	+--------+----------+-----------+---------------+-----------------+----------+------+
//	| length | api key  | version   | correlation   | client id       | tags     | body |
//	| int32  | int16    | int16     | int32         | nullable string | flexible | ...  |
//	+--------+----------+-----------+---------------+-----------------+----------+------+
//
// The client id is in headers of version 1 and 2 (version 0 is ControlledShutdown's alone, which no client sends), the tags in version 2, which goes with flexible bodies (KIP-482).
const (
	lengthBytes      = 4
	fixedHeaderBytes = 8

	// frameBytesMaxUnauthenticated bounds what a stranger can make us read: no handshake is larger.
	frameBytesMaxUnauthenticated = 64 << 10
	// frameBytesMax is Kafka's default of socket.request.max.bytes. Smaller caps stall clients that batch per broker (trap 27).
	frameBytesMax = 100 << 20
	// groupFrameBytesMax bounds requests that carry opaque bytes of clients, the metadata and assignments of groups: the largest honest ones are a few MiB.
	groupFrameBytesMax = 16 << 20
	// controlFrameBytesMax bounds all others. They are lists, decoded into objects of up to about a hundred times their size when made to: 100,000
	// topics or partitions fit, with long names.
	controlFrameBytesMax = 8 << 20
	// produceTopicsMax and producePartitionsMax bound a Produce request before arrays are made for it.
	produceTopicsMax     = 100_000
	producePartitionsMax = 200_000
)

// Errors of frames. Each closes the connection that sent it.
var (
	// ErrFrameSize is returned when a frame's length is negative, too small for a header, or over the limit that applies.
	ErrFrameSize = errors.New("frame size out of bounds")
	// ErrUnknownKey is returned when a request's key is not served.
	ErrUnknownKey = errors.New("request of an unknown key")
	// ErrMalformed is returned when a request cannot be decoded.
	ErrMalformed = errors.New("malformed request")
	// ErrVersion is returned when a request's version is not served and no answer has its shape.
	ErrVersion = errors.New("request of an unsupported version")
)

// fixedHeader is the part of the header that all versions share.
type fixedHeader struct {
	key, version  int16
	correlationID int32
}

func parseFixedHeader(b []byte) fixedHeader {
	return fixedHeader{
		key:           int16(binary.BigEndian.Uint16(b)),
		version:       int16(binary.BigEndian.Uint16(b[2:])),
		correlationID: int32(binary.BigEndian.Uint32(b[4:])),
	}
}

// checkLength says whether a frame of that length may follow.
func checkLength(length int32, authenticated bool) error {
	limit := int32(frameBytesMax)
	if !authenticated {
		limit = frameBytesMaxUnauthenticated
	}
	if length < fixedHeaderBytes || length > limit {
		return fmt.Errorf("%w: %d bytes, allowed are %d to %d", ErrFrameSize, length, fixedHeaderBytes, limit)
	}
	return nil
}

// checkKey says whether a frame of that key may have that length.
func checkKey(key int16, length int32) error {
	limit := int32(controlFrameBytesMax)
	switch key {
	case keyProduce:
		return nil
	case keyOffsetCommit, keyJoinGroup, keySyncGroup:
		limit = groupFrameBytesMax
	}
	if length > limit {
		return fmt.Errorf("%w: %d bytes for key %d, allowed are %d", ErrFrameSize, length, key, limit)
	}
	return nil
}

// weight is how many bytes of memory a request of that key and size counts for while it is served: lists become objects.
func weight(key int16, size int) int64 {
	switch key {
	case keyJoinGroup, keySyncGroup:
		return 2 * int64(size)
	}
	return controlWeight * int64(size)
}

// decode decodes what follows the fixed header. The request's version is one of the table.
func decode(h fixedHeader, rest []byte) (*Request, error) {
	body := kmsg.RequestForKey(h.key)
	if body == nil {
		return nil, fmt.Errorf("%w: %d", ErrUnknownKey, h.key)
	}
	body.SetVersion(h.version)
	r := &Request{Key: h.key, Version: h.version, CorrelationID: h.correlationID, Body: body}
	src := kbin.Reader{Src: rest}
	if id := src.NullableString(); id != nil {
		r.ClientID = *id
	}
	if body.IsFlexible() {
		skipTags(&src)
	}
	if err := src.Complete(); err != nil {
		return nil, fmt.Errorf("%w: header of %s v%d: %w", ErrMalformed, kmsg.NameForKey(h.key), h.version, err)
	}
	if h.key == keyProduce {
		if err := checkProduce(src.Src, h.version); err != nil {
			return nil, err
		}
	}
	if err := body.ReadFrom(src.Src); err != nil {
		return nil, fmt.Errorf("%w: body of %s v%d: %w", ErrMalformed, kmsg.NameForKey(h.key), h.version, err)
	}
	return r, nil
}

func skipTags(src *kbin.Reader) {
	for n := src.Uvarint(); n > 0 && src.Ok(); n-- {
		src.Uvarint()
		src.Span(int(src.Uvarint()))
	}
}

// checkProduce walks a Produce request without keeping anything, so that arrays are made only for what is really there: a frame of 100 MiB could name
// 100 million empty topics.
func checkProduce(body []byte, version int16) error {
	src := kbin.Reader{Src: body}
	p := produceWalk{src: &src, flexible: version >= 9, version: version}
	if err := p.walk(); err != nil {
		return err
	}
	if err := src.Complete(); err != nil {
		return fmt.Errorf("%w: body of Produce v%d: %w", ErrMalformed, version, err)
	}
	return nil
}

type produceWalk struct {
	src        *kbin.Reader
	flexible   bool
	version    int16
	partitions int32
}

func (p *produceWalk) walk() error {
	if p.version >= 3 {
		p.skipString()
	}
	p.src.Span(2 + 4) // acks, timeout
	topics := p.arrayLen()
	if topics > produceTopicsMax {
		return fmt.Errorf("%w: Produce of %d topics, allowed are %d", ErrMalformed, topics, produceTopicsMax)
	}
	for ; topics > 0 && p.src.Ok(); topics-- {
		if err := p.topic(); err != nil {
			return err
		}
	}
	return nil
}

func (p *produceWalk) topic() error {
	if p.version >= 13 {
		p.src.Span(16)
	} else {
		p.skipString()
	}
	n := p.arrayLen()
	if p.partitions += max(n, 0); n > producePartitionsMax || p.partitions > producePartitionsMax {
		return fmt.Errorf("%w: Produce of more than %d partitions", ErrMalformed, producePartitionsMax)
	}
	for ; n > 0 && p.src.Ok(); n-- {
		p.src.Span(4)
		p.skipBytes()
		p.skipTags()
	}
	p.skipTags()
	return nil
}

func (p *produceWalk) arrayLen() int32 {
	if p.flexible {
		return p.src.CompactArrayLen()
	}
	return p.src.ArrayLen()
}

func (p *produceWalk) skipString() {
	n := 0
	if p.flexible {
		n = int(p.src.Uvarint()) - 1
	} else {
		n = int(p.src.Int16())
	}
	p.src.Span(max(n, 0))
}

func (p *produceWalk) skipBytes() {
	n := 0
	if p.flexible {
		n = int(p.src.Uvarint()) - 1
	} else {
		n = int(p.src.Int32())
	}
	p.src.Span(max(n, 0))
}

func (p *produceWalk) skipTags() {
	if p.flexible {
		skipTags(p.src)
	}
}
