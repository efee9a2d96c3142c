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
