package record

import "sync"

// Codec is a compression codec of Kafka, as in a batch's attributes.
type Codec int8

// The codecs.
const (
	None Codec = iota
	Gzip
	Snappy
	LZ4
	Zstd
)

func (c Codec) String() string {
	switch c {
	case None:
		return "none"
	case Gzip:
		return "gzip"
	case Snappy:
		return "snappy"
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	}
	return "unknown"
}

// bufferKeptMax is the largest buffer that goes back to a pool: one huge batch
// must not stay in memory for ever.
const bufferKeptMax = 4 << 20

type bufferPool struct{ pool sync.Pool }

// buffers are shared by all decoders. They carry no state.
var buffers bufferPool

func (p *bufferPool) get() *[]byte {
	if buf, ok := p.pool.Get().(*[]byte); ok {
		return buf
	}
	return new([]byte)
}

func (p *bufferPool) put(buf *[]byte) {
	if cap(*buf) <= bufferKeptMax {
		p.pool.Put(buf)
	}
}

func decompress(dst []byte, c Codec, src []byte) ([]byte, error) { panic("BUG: not yet") }
func compress(dst []byte, c Codec, level int, src []byte) ([]byte, error) {
	panic("BUG: not yet")
}

const messageBytesMin = 26

func FromMessageSet(set []byte) (Batch, error)              { panic("BUG: not yet") }
func Recompress(b Batch, c Codec, level int) (Batch, error) { panic("BUG: not yet") }
