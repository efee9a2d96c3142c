package record

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// The layout of a batch (all integers big-endian):
//
//	 0  int64  base offset             \ outside the CRC,
//	 8  int32  length of what follows   | set by the log
//	12  int32  partition leader epoch  /
//	16  int8   magic = 2
//	17  uint32 CRC32C of all that follows
//	21  int16  attributes: 0-2 codec, 3 timestamp type, 4 transactional, 5 control, 6 delete horizon
//	23  int32  last offset delta
//	27  int64  first (base) timestamp, ms
//	35  int64  max timestamp, ms
//	43  int64  producer id, -1 none
//	51  int16  producer epoch
//	53  int32  base sequence
//	57  int32  record count
//	61         records, compressed together
const (
	// LogOverheadBytes is what precedes the part that the length field counts.
	LogOverheadBytes = 12
	// HeaderBytes is the length of a batch without its records.
	HeaderBytes = 61
	// BatchBytesMax bounds one batch. Frames end at 100 MiB, so nothing
	// legitimate comes near; it keeps a hostile length from overflowing.
	BatchBytesMax = 256 << 20

	magicV2 = 2

	offLength     = 8
	offEpoch      = 12
	offMagic      = 16
	offCRC        = 17
	offAttributes = 21
	offLastDelta  = 23
	offFirstTime  = 27
	offMaxTime    = 35
	offProducerID = 43
	offProdEpoch  = 51
	offBaseSeq    = 53
	offCount      = 57
)

// Attribute bits.
const (
	attrCodec         = 0x07
	attrLogAppend     = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20
	attrDeleteHorizon = 0x40
)

// What absent values are on the wire.
const (
	// NoProducer is the producer id of a batch without one.
	NoProducer = -1
	// NoSequence is its base sequence.
	NoSequence = -1
	// NoTimestamp is the timestamp of a record that has none.
	NoTimestamp = -1
)

// Timestamp types.
const (
	CreateTime    = 0
	LogAppendTime = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Batch is a view of exactly one v2 batch. It owns nothing: it aliases the
// buffer it was cut from, and setters write there. The getters need at least
// HeaderBytes, which Next guarantees.
type Batch []byte

// Getters of the header's fields; timestamps are in milliseconds.

func (b Batch) BaseOffset() int64  { return int64(binary.BigEndian.Uint64(b)) }
func (b Batch) LeaderEpoch() int32 { return int32(binary.BigEndian.Uint32(b[offEpoch:])) }
func (b Batch) Magic() int8        { return int8(b[offMagic]) }
func (b Batch) CRC() uint32        { return binary.BigEndian.Uint32(b[offCRC:]) }
func (b Batch) Attributes() int16  { return int16(binary.BigEndian.Uint16(b[offAttributes:])) }
func (b Batch) Codec() Codec       { return Codec(b.Attributes() & attrCodec) }

func (b Batch) FirstTimestamp() int64 { return int64(binary.BigEndian.Uint64(b[offFirstTime:])) }
func (b Batch) MaxTimestamp() int64   { return int64(binary.BigEndian.Uint64(b[offMaxTime:])) }
func (b Batch) ProducerID() int64     { return int64(binary.BigEndian.Uint64(b[offProducerID:])) }
func (b Batch) ProducerEpoch() int16  { return int16(binary.BigEndian.Uint16(b[offProdEpoch:])) }
func (b Batch) BaseSequence() int32   { return int32(binary.BigEndian.Uint32(b[offBaseSeq:])) }
func (b Batch) Count() int32          { return int32(binary.BigEndian.Uint32(b[offCount:])) }

func (b Batch) LastOffsetDelta() int32 { return int32(binary.BigEndian.Uint32(b[offLastDelta:])) }
func (b Batch) LastOffset() int64      { return b.BaseOffset() + int64(b.LastOffsetDelta()) }
func (b Batch) NextOffset() int64      { return b.LastOffset() + 1 }

func (b Batch) IsTransactional() bool { return b.Attributes()&attrTransactional != 0 }
func (b Batch) IsControl() bool       { return b.Attributes()&attrControl != 0 }

// TimestampType returns CreateTime or LogAppendTime.
func (b Batch) TimestampType() int8 {
	if b.Attributes()&attrLogAppend != 0 {
		return LogAppendTime
	}
	return CreateTime
}

// LastSequence returns the sequence of the last record, which wraps from
// 2^31-1 to 0, or NoSequence.
func (b Batch) LastSequence() int32 {
	first := b.BaseSequence()
	if first < 0 {
		return NoSequence
	}
	return int32((int64(first) + int64(b.LastOffsetDelta())) % (math.MaxInt32 + 1))
}

// SetBaseOffset writes the base offset in place; it is outside the CRC.
func (b Batch) SetBaseOffset(offset int64) { binary.BigEndian.PutUint64(b, uint64(offset)) }

// SetLeaderEpoch writes the leader epoch in place; it is outside the CRC.
func (b Batch) SetLeaderEpoch(epoch int32) { binary.BigEndian.PutUint32(b[offEpoch:], uint32(epoch)) }

// SetLogAppendTime makes ms the time of every record and seals the batch.
func (b Batch) SetLogAppendTime(ms int64) {
	binary.BigEndian.PutUint16(b[offAttributes:], uint16(b.Attributes())|attrLogAppend)
	binary.BigEndian.PutUint64(b[offMaxTime:], uint64(ms))
	b.Seal()
}

// SetProducer writes producer id, epoch and base sequence in place. They are
// inside the CRC: call Seal when done.
func (b Batch) SetProducer(id int64, epoch int16, baseSequence int32) {
	binary.BigEndian.PutUint64(b[offProducerID:], uint64(id))
	binary.BigEndian.PutUint16(b[offProdEpoch:], uint16(epoch))
	binary.BigEndian.PutUint32(b[offBaseSeq:], uint32(baseSequence))
}

// Seal computes the CRC after edits.
func (b Batch) Seal() {
	binary.BigEndian.PutUint32(b[offCRC:], crc32.Checksum(b[offAttributes:], castagnoli))
}

// size returns the length of the batch that begins buf, which has at least
// LogOverheadBytes, and whether it can be that of a v2 batch.
func size(buf []byte) (int64, bool) {
	n := int64(int32(binary.BigEndian.Uint32(buf[offLength:]))) + LogOverheadBytes
	return n, n >= HeaderBytes && n <= BatchBytesMax
}

// Size returns the length in bytes of the batch whose header begins buf, for
// readers that have only the header. Errors as for Next; ErrShort when buf has
// not even a header.
func Size(buf []byte) (int64, error) {
	if len(buf) <= offMagic {
		return 0, ErrShort
	}
	n, ok := size(buf)
	magic := int8(buf[offMagic])
	switch {
	case (magic == 0 || magic == 1) && n >= messageBytesMin && n <= BatchBytesMax:
		return 0, fmt.Errorf("%w: magic %d", ErrMagic, magic)
	case !ok:
		return 0, fmt.Errorf("%w: batch of %d bytes", ErrCorrupt, n)
	case magic != magicV2:
		return 0, fmt.Errorf("%w: magic %d", ErrMagic, magic)
	case len(buf) < HeaderBytes:
		return 0, ErrShort
	}
	return n, nil
}

// Next cuts the first batch from buf. The error is ErrShort when buf ends
// within it, as at the end of a fetch (an empty buf included), ErrMagic when
// it is of another format, and ErrCorrupt when no batch can look like this.
// The CRC is not checked.
func Next(buf []byte) (b Batch, rest []byte, err error) {
	n, err := Size(buf)
	if err != nil {
		return nil, buf, err
	}
	if int64(len(buf)) < n {
		return nil, buf, ErrShort
	}
	return Batch(buf[:n:n]), buf[n:], nil
}

// CheckCRC returns an error that wraps ErrCorrupt when the CRC is wrong.
func (b Batch) CheckCRC() error {
	if sum := crc32.Checksum(b[offAttributes:], castagnoli); sum != b.CRC() {
		return fmt.Errorf("%w: CRC %08x, computed %08x", ErrCorrupt, b.CRC(), sum)
	}
	return nil
}

// Validate checks a batch as a producer must have built it: length, magic,
// CRC, codec, count equal to the span of offsets, and of an uncompressed batch
// the framing of its records. It allocates nothing unless it fails. Errors
// wrap ErrCorrupt where bytes were damaged and ErrInvalid where the producer
// is wrong. Compressed records are not looked into: Each does.
func (b Batch) Validate() error {
	n, err := Size(b)
	if err != nil {
		return err
	}
	if n != int64(len(b)) {
		return fmt.Errorf("%w: %d bytes, header says %d", ErrCorrupt, len(b), n)
	}
	if err := b.CheckCRC(); err != nil {
		return err
	}
	switch {
	case b.Codec() > Zstd:
		return fmt.Errorf("%w: codec %d", ErrCodec, b.Codec())
	case b.Count() <= 0:
		return fmt.Errorf("%w: %d records", ErrInvalid, b.Count())
	case int64(b.LastOffsetDelta()) != int64(b.Count())-1:
		return fmt.Errorf("%w: %d records but last offset delta %d", ErrInvalid, b.Count(), b.LastOffsetDelta())
	case b.ProducerID() >= 0 && b.BaseSequence() < 0 && !b.IsControl():
		return fmt.Errorf("%w: producer id without sequence", ErrInvalid)
	case b.Codec() == None:
		return b.validateFraming()
	}
	return nil
}

// validateFraming walks the records of an uncompressed batch.
func (b Batch) validateFraming() error {
	rest := []byte(b[HeaderBytes:])
	for i := range b.Count() {
		var (
			d   decoder
			err error
		)
		rest, err = d.frame(rest)
		if err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
		if delta := d.skipTo(); delta != i {
			return fmt.Errorf("%w: record %d has offset delta %d", ErrInvalid, i, delta)
		}
		if d.err != nil {
			return fmt.Errorf("record %d: %w", i, d.err)
		}
	}
	if len(rest) != 0 {
		return fmt.Errorf("%w: %d bytes after the last record", ErrInvalid, len(rest))
	}
	return nil
}
