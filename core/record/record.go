// Package record is Kafka's record batch, format v2, the one format of a
// record between a gateway's disk and a consumer's socket.
//
// A Batch is a view of bytes: reading a field, validating, setting base offset
// and leader epoch (both outside the CRC) neither copy nor decompress it.
// Builder makes batches, Each reads their records, Recompress changes the
// codec, FromMessageSet lifts what producers older than Kafka 0.11 send.
//
// Every function is safe on hostile bytes: it returns an error, and allocates
// no more than RecordsBytesMax on their word. The byte layout is in FORMAT.md;
// its source is Kafka's DefaultRecordBatch (KIP-98) and the protocol guide.
// The package knows nothing of offsets' meaning, producers' states or topics.
package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Errors. All but ErrShort and ErrCorrupt wrap ErrInvalid.
var (
	// ErrShort is returned when the buffer ends within a batch.
	ErrShort = errors.New("incomplete record batch")
	// ErrCorrupt is returned when the bytes are damaged: a CRC is wrong or a
	// length impossible. Kafka's CORRUPT_MESSAGE.
	ErrCorrupt = errors.New("corrupt record batch")
	// ErrInvalid is returned when an intact batch says what it must not.
	// Kafka's INVALID_RECORD.
	ErrInvalid = errors.New("invalid record batch")
	// ErrMagic is returned for a batch or message that is not of format v2.
	ErrMagic = fmt.Errorf("%w: unsupported format", ErrInvalid)
	// ErrCodec is returned for a compression codec that Kafka does not have.
	// Kafka's UNSUPPORTED_COMPRESSION_TYPE.
	ErrCodec = fmt.Errorf("%w: unknown compression codec", ErrInvalid)
	// ErrTooLarge is returned when records decompress to more than
	// RecordsBytesMax.
	ErrTooLarge = fmt.Errorf("%w: records too large when decompressed", ErrInvalid)
)

// RecordsBytesMax bounds the decompressed records of one batch: above the
// largest frame (100 MiB), so that whatever was sent uncompressed is read
// compressed too, and low enough for a bomb to be survived.
const RecordsBytesMax = 128 << 20

// MaxDecompressedBytes is RecordsBytesMax under its older name.
const MaxDecompressedBytes = RecordsBytesMax

// Record is one record of a batch. Its slices alias a buffer that is valid
// during the call that received it.
type Record struct {
	OffsetDelta    int32
	TimestampDelta int64  // ms, to Batch.FirstTimestamp; see Batch.Timestamp
	Key, Value     []byte // nil = null
	Headers        []Header
}

// Header is a header of a record. Keys may repeat; their order is kept.
type Header struct {
	Key   string
	Value []byte // nil = null
}

// Timestamp returns the time of a record of the batch, in milliseconds.
func (b Batch) Timestamp(r Record) int64 {
	if b.TimestampType() == LogAppendTime {
		return b.MaxTimestamp()
	}
	return b.FirstTimestamp() + r.TimestampDelta
}

// Each calls fn for the records of the batch in order, until it returns an
// error, which Each then returns. Record and all it holds are valid during the
// call only. Other errors wrap ErrCorrupt or ErrInvalid.
func (b Batch) Each(fn func(Record) error) error {
	records, release, err := b.records()
	if err != nil {
		return err
	}
	defer release()
	var d decoder
	for i := range b.Count() {
		if records, err = d.frame(records); err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
		r := d.record()
		if d.err != nil {
			return fmt.Errorf("record %d: %w", i, d.err)
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	if len(records) != 0 {
		return fmt.Errorf("%w: %d bytes after the last record", ErrInvalid, len(records))
	}
	return nil
}

// records returns the batch's records uncompressed, valid until release.
func (b Batch) records() (records []byte, release func(), err error) {
	if b.Codec() == None || len(b) == HeaderBytes { // compaction may leave a batch without records
		return b[HeaderBytes:], func() {}, nil
	}
	buf := buffers.get()
	out, err := decompress((*buf)[:0], b.Codec(), b[HeaderBytes:])
	if err != nil {
		buffers.put(buf)
		return nil, nil, err
	}
	*buf = out
	return out, func() { buffers.put(buf) }, nil
}

// decoder reads one record's body. After an error all reads return zeros; the
// error is in err.
type decoder struct {
	body    []byte
	headers []Header // reused
	err     error
}

// frame takes the next record's body from buf and returns what follows it.
func (d *decoder) frame(buf []byte) ([]byte, error) {
	n, used := binary.Varint(buf)
	if used <= 0 || n < 0 || n > int64(len(buf)-used) {
		return nil, fmt.Errorf("%w: length of record", ErrInvalid)
	}
	d.err = nil
	d.body = buf[used : used+int(n)]
	return buf[used+int(n):], nil
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrInvalid, what)
	}
	d.body = nil
}

func (d *decoder) varint(what string) int64 {
	n, used := binary.Varint(d.body)
	if used <= 0 {
		d.fail(what)
		return 0
	}
	d.body = d.body[used:]
	return n
}

func (d *decoder) varint32(what string) int32 {
	n := d.varint(what)
	if n < math.MinInt32 || n > math.MaxInt32 {
		d.fail(what)
		return 0
	}
	return int32(n)
}

// bytes reads a nullable, length-prefixed field.
func (d *decoder) bytes(what string) []byte {
	n := d.varint(what)
	if n == -1 || d.err != nil {
		return nil
	}
	if n < 0 || n > int64(len(d.body)) {
		d.fail(what)
		return nil
	}
	field := d.body[:n:n]
	d.body = d.body[n:]
	return field
}

func (d *decoder) record() Record {
	d.attributes()
	r := Record{TimestampDelta: d.varint("timestamp delta"), OffsetDelta: d.varint32("offset delta")}
	r.Key, r.Value = d.bytes("key"), d.bytes("value")
	r.Headers = d.readHeaders()
	d.end()
	return r
}

func (d *decoder) attributes() {
	if len(d.body) == 0 {
		d.fail("attributes")
		return
	}
	d.body = d.body[1:]
}

func (d *decoder) end() {
	if len(d.body) != 0 {
		d.fail("bytes after the last header")
	}
}

// headerBytesMin is an empty key's length and a null value's.
const headerBytesMin = 2

func (d *decoder) headerCount() int {
	n := d.varint("header count")
	if n < 0 || n > int64(len(d.body)/headerBytesMin) {
		d.fail("header count")
		return 0
	}
	return int(n)
}

func (d *decoder) readHeaders() []Header {
	n := d.headerCount()
	if n == 0 {
		return nil
	}
	d.headers = d.headers[:0]
	for range n {
		key := d.headerKey()
		d.headers = append(d.headers, Header{Key: string(key), Value: d.bytes("header value")})
	}
	return d.headers
}

func (d *decoder) headerKey() []byte {
	key := d.bytes("header key")
	if key == nil {
		d.fail("header key")
	}
	return key
}

// skipTo walks the record without building it and returns its offset delta.
func (d *decoder) skipTo() int32 {
	d.attributes()
	d.varint("timestamp delta")
	delta := d.varint32("offset delta")
	d.bytes("key")
	d.bytes("value")
	for range d.headerCount() {
		d.headerKey()
		d.bytes("header value")
	}
	d.end()
	return delta
}
