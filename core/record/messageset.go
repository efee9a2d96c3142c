package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// The layout of a message before Kafka 0.11 (magic 0 and 1):
//
//	 0  int64  offset
//	 8  int32  size of what follows
//	12  uint32 CRC32 (IEEE) of all that follows
//	16  int8   magic
//	17  int8   attributes: 0-2 codec, 3 timestamp type (magic 1)
//	18  int64  timestamp, ms (magic 1 only)
//	    int32  key length, key, int32 value length, value
//
// A message with a codec is a wrapper: its value is a compressed set of
// messages of the same magic.
const (
	messageBytesMin  = 26
	offMsgAttributes = 17
	offMsgBody       = 18
)

// message is one old message; key and value alias the set.
type message struct {
	magic      int8
	codec      Codec
	logAppend  bool
	timestamp  int64
	key, value []byte
}

// FromMessageSet makes one v2 batch, base offset 0, of a message set of magic
// 0 or 1, as Produce versions 0 to 2 carry it: keys, values and timestamps are
// kept, wrappers are opened, and the batch has the codec of the first wrapper.
// A set that mixes magics, or ends within a message, is refused.
func FromMessageSet(set []byte) (Batch, error) {
	c := converter{builder: NewBuilder(BuilderOptions{}), magic: -1}
	if err := c.set(set, false); err != nil {
		return nil, err
	}
	if c.builder.Len() == 0 {
		return nil, fmt.Errorf("%w: empty message set", ErrInvalid)
	}
	c.builder.o.Codec = c.codec
	return c.builder.Build(nil), nil
}

type converter struct {
	builder *Builder
	magic   int8 // of all messages; -1 before the first
	codec   Codec
	wrapper *message // of the messages being read, if any
}

func (c *converter) set(set []byte, inner bool) error {
	for i := 0; len(set) > 0; i++ {
		m, rest, err := nextMessage(set)
		if err == nil {
			err = c.message(m, inner)
		}
		if err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		set = rest
	}
	return nil
}

func (c *converter) message(m message, inner bool) error {
	if c.magic < 0 {
		c.magic = m.magic
	}
	switch {
	case m.magic != c.magic:
		return fmt.Errorf("%w: magic %d after %d", ErrInvalid, m.magic, c.magic)
	case m.codec == None:
		return c.record(m)
	case inner:
		return fmt.Errorf("%w: wrapper within a wrapper", ErrInvalid)
	}
	return c.open(m)
}

func (c *converter) record(m message) error {
	timestamp := m.timestamp
	if c.wrapper != nil && c.wrapper.logAppend {
		timestamp = c.wrapper.timestamp
	}
	c.builder.Add(timestamp, m.key, m.value, nil)
	if c.builder.Bytes() > RecordsBytesMax {
		return ErrTooLarge
	}
	return nil
}

func (c *converter) open(m message) error {
	if m.codec > LZ4 { // Zstandard came with v2
		return fmt.Errorf("%w: codec %d in magic %d", ErrCodec, m.codec, m.magic)
	}
	if c.codec == None {
		c.codec = m.codec
	}
	src := m.value
	if m.codec == LZ4 && m.magic == 0 {
		src = fixLZ4Header(src)
	}
	buf := buffers.get()
	defer buffers.put(buf)
	out, err := decompress((*buf)[:0], m.codec, src)
	if err != nil {
		return err
	}
	*buf = out
	c.wrapper = &m
	defer func() { c.wrapper = nil }()
	return c.set(out, true)
}

// nextMessage cuts the first message from set, its CRC checked.
func nextMessage(set []byte) (m message, rest []byte, err error) {
	if len(set) < messageBytesMin {
		return m, nil, fmt.Errorf("%w: %d bytes left", ErrCorrupt, len(set))
	}
	n := int64(int32(binary.BigEndian.Uint32(set[offLength:]))) + LogOverheadBytes
	if n < messageBytesMin || n > int64(len(set)) {
		return m, nil, fmt.Errorf("%w: message of %d bytes, %d left", ErrCorrupt, n, len(set))
	}
	whole := set[:n]
	crc := binary.BigEndian.Uint32(whole[LogOverheadBytes:])
	if sum := crc32.ChecksumIEEE(whole[offMagic:]); sum != crc {
		return m, nil, fmt.Errorf("%w: CRC %08x, computed %08x", ErrCorrupt, crc, sum)
	}
	m, err = readMessage(whole)
	return m, set[n:], err
}

func readMessage(whole []byte) (m message, err error) {
	attributes := whole[offMsgAttributes]
	m = message{magic: int8(whole[offMagic]), codec: Codec(attributes & attrCodec), timestamp: NoTimestamp}
	body := whole[offMsgBody:]
	switch m.magic {
	case 0:
	case 1:
		if len(body) < 8 {
			return m, fmt.Errorf("%w: timestamp", ErrInvalid)
		}
		m.timestamp = int64(binary.BigEndian.Uint64(body))
		m.logAppend = attributes&attrLogAppend != 0
		body = body[8:]
	default:
		return m, fmt.Errorf("%w: magic %d in a message set", ErrMagic, m.magic)
	}
	if m.key, body, err = messageField(body, "key"); err != nil {
		return m, err
	}
	if m.value, body, err = messageField(body, "value"); err != nil {
		return m, err
	}
	if len(body) != 0 {
		return m, fmt.Errorf("%w: %d bytes after the value", ErrInvalid, len(body))
	}
	return m, nil
}

func messageField(body []byte, what string) (field, rest []byte, err error) {
	if len(body) < 4 {
		return nil, nil, fmt.Errorf("%w: %s", ErrInvalid, what)
	}
	n := int64(int32(binary.BigEndian.Uint32(body)))
	body = body[4:]
	if n == -1 {
		return nil, body, nil
	}
	if n < 0 || n > int64(len(body)) {
		return nil, nil, fmt.Errorf("%w: %s of %d bytes, %d left", ErrInvalid, what, n, len(body))
	}
	return body[:n:n], body[n:], nil
}

var lz4FrameMagic = []byte{0x04, 0x22, 0x4d, 0x18}

// fixLZ4Header returns the frame with a right header checksum. Clients of
// magic 0 computed it over the frame's magic too (KAFKA-3160), and no LZ4
// library takes that.
func fixLZ4Header(frame []byte) []byte {
	const flagsAt, hasSize, hasDict = 4, 0x08, 0x01
	if len(frame) <= flagsAt || !bytes.Equal(frame[:flagsAt], lz4FrameMagic) {
		return frame
	}
	end := flagsAt + 2
	if frame[flagsAt]&hasSize != 0 {
		end += 8
	}
	if frame[flagsAt]&hasDict != 0 {
		end += 4
	}
	if len(frame) <= end {
		return frame
	}
	fixed := bytes.Clone(frame)
	fixed[end] = byte(xxh32Short(frame[flagsAt:end]) >> 8)
	return fixed
}

// xxh32Short is XXH32 with seed 0 of fewer than 16 bytes.
func xxh32Short(p []byte) uint32 {
	const (
		prime1 uint32 = 2654435761
		prime2 uint32 = 2246822519
		prime3 uint32 = 3266489917
		prime4 uint32 = 668265263
		prime5 uint32 = 374761393
	)
	h := prime5 + uint32(len(p))
	for ; len(p) >= 4; p = p[4:] {
		h = bits.RotateLeft32(h+binary.LittleEndian.Uint32(p)*prime3, 17) * prime4
	}
	for _, b := range p {
		h = bits.RotateLeft32(h+uint32(b)*prime5, 11) * prime1
	}
	h = (h ^ h>>15) * prime2
	h = (h ^ h>>13) * prime3
	return h ^ h>>16
}
