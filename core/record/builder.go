package record

import (
	"encoding/binary"
	"math"
)

// DefaultLevel is the codec's own default compression level.
const DefaultLevel = 0

// BuilderOptions say what a Builder's batches are like.
type BuilderOptions struct {
	Codec Codec
	Level int // of compression; DefaultLevel, or as the codec counts
	// ProducerID is 0 or NoProducer for none. Kafka does hand out id 0: who
	// may hold it calls SetProducer, which takes every id literally.
	ProducerID    int64
	ProducerEpoch int16
	BaseSequence  int32
	Transactional bool
	Control       bool
	LogAppend     bool // the largest timestamp counts for all records
	LeaderEpoch   int32
}

// Builder collects records and makes batches of them. It may be used again
// after Reset, and then allocates nothing once its buffer has grown.
type Builder struct {
	o       BuilderOptions
	records []byte
	count   int32
	firstMs int64
	maxMs   int64
}

// NewBuilder returns an empty builder.
func NewBuilder(o BuilderOptions) *Builder {
	if o.ProducerID == 0 {
		o.ProducerID = NoProducer
	}
	if o.ProducerID == NoProducer {
		o.ProducerEpoch, o.BaseSequence = -1, NoSequence
	}
	return &Builder{o: o}
}

// SetProducer sets producer id, epoch and the sequence of the first record for
// the batches built from now on.
func (b *Builder) SetProducer(id int64, epoch int16, baseSequence int32) {
	b.o.ProducerID, b.o.ProducerEpoch, b.o.BaseSequence = id, epoch, baseSequence
}

// Add appends a record; nil key or value is null. Nothing is kept of the
// arguments. A batch holds at most 2^31-1 records and BatchBytesMax bytes: the
// caller looks at Bytes.
func (b *Builder) Add(timestampMs int64, key, value []byte, headers []Header) {
	if b.count == math.MaxInt32 {
		panic("BUG: record batch overflows its count")
	}
	if b.count == 0 {
		b.firstMs, b.maxMs = timestampMs, timestampMs
	}
	b.maxMs = max(b.maxMs, timestampMs)
	r := Record{OffsetDelta: b.count, TimestampDelta: timestampMs - b.firstMs, Key: key, Value: value, Headers: headers}
	b.records = appendRecord(b.records, r)
	b.count++
}

// Len returns the number of records added since Reset.
func (b *Builder) Len() int { return int(b.count) }

// Bytes returns the size of the batch if it were built uncompressed.
func (b *Builder) Bytes() int { return HeaderBytes + len(b.records) }

// Reset forgets the records; the options stay.
func (b *Builder) Reset() {
	b.records, b.count = b.records[:0], 0
	b.firstMs, b.maxMs = 0, 0
}

// Build appends the batch to dst and returns it, sealed, with base offset 0;
// the result aliases dst's array where that has room, and starts with the
// batch, not with dst. The builder keeps its records. It panics when it is
// empty.
func (b *Builder) Build(dst []byte) Batch {
	if b.count == 0 {
		panic("BUG: building a batch of no records")
	}
	start := len(dst)
	dst = append(dst, make([]byte, HeaderBytes)...)
	dst, err := compress(dst, b.o.Codec, b.o.Level, b.records)
	if err != nil {
		panic("BUG: compress to memory: " + err.Error())
	}
	batch := Batch(dst[start:])
	b.header(batch)
	return batch
}

func (b *Builder) header(batch Batch) {
	batch.SetBaseOffset(0)
	binary.BigEndian.PutUint32(batch[offLength:], uint32(len(batch)-LogOverheadBytes))
	batch.SetLeaderEpoch(b.o.LeaderEpoch)
	batch[offMagic] = magicV2
	binary.BigEndian.PutUint16(batch[offAttributes:], b.attributes())
	binary.BigEndian.PutUint32(batch[offLastDelta:], uint32(b.count-1))
	binary.BigEndian.PutUint64(batch[offFirstTime:], uint64(b.firstMs))
	binary.BigEndian.PutUint64(batch[offMaxTime:], uint64(b.maxMs))
	batch.SetProducer(b.o.ProducerID, b.o.ProducerEpoch, b.o.BaseSequence)
	binary.BigEndian.PutUint32(batch[offCount:], uint32(b.count))
	batch.Seal()
}

func (b *Builder) attributes() uint16 {
	attrs := uint16(b.o.Codec)
	if b.o.LogAppend {
		attrs |= attrLogAppend
	}
	if b.o.Transactional {
		attrs |= attrTransactional
	}
	if b.o.Control {
		attrs |= attrControl
	}
	return attrs
}

// appendRecord appends the wire form of r:
//
//	varint length, int8 attributes = 0, varint timestamp delta, varint offset delta,
//	varint key length, key, varint value length, value, varint headers,
//	each: varint key length, key, varint value length, value
//
// Varints are zigzag; a length of -1 is null.
func appendRecord(dst []byte, r Record) []byte {
	dst = binary.AppendVarint(dst, int64(recordBytes(r)))
	dst = append(dst, 0)
	dst = binary.AppendVarint(dst, r.TimestampDelta)
	dst = binary.AppendVarint(dst, int64(r.OffsetDelta))
	dst = appendBytes(dst, r.Key)
	dst = appendBytes(dst, r.Value)
	dst = binary.AppendVarint(dst, int64(len(r.Headers)))
	for _, h := range r.Headers {
		dst = binary.AppendVarint(dst, int64(len(h.Key)))
		dst = append(dst, h.Key...)
		dst = appendBytes(dst, h.Value)
	}
	return dst
}

func appendBytes(dst, p []byte) []byte {
	if p == nil {
		return binary.AppendVarint(dst, -1)
	}
	dst = binary.AppendVarint(dst, int64(len(p)))
	return append(dst, p...)
}

// recordBytes returns the length of r's body, which precedes it.
func recordBytes(r Record) int {
	n := 1 + varintBytes(r.TimestampDelta) + varintBytes(int64(r.OffsetDelta))
	n += fieldBytes(r.Key) + fieldBytes(r.Value) + varintBytes(int64(len(r.Headers)))
	for _, h := range r.Headers {
		n += varintBytes(int64(len(h.Key))) + len(h.Key) + fieldBytes(h.Value)
	}
	return n
}

func fieldBytes(p []byte) int {
	if p == nil {
		return varintBytes(-1)
	}
	return varintBytes(int64(len(p))) + len(p)
}

func varintBytes(v int64) int {
	u := uint64(v<<1) ^ uint64(v>>63)
	n := 1
	for u >= 0x80 {
		u >>= 7
		n++
	}
	return n
}
