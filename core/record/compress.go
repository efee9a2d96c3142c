package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// The pools hold coders between uses: making one costs tens of KB to MBs.
// They carry no state from one use to the next.
var (
	gzipReaders  sync.Pool
	lz4Readers   = sync.Pool{New: func() any { return lz4.NewReader(nil) }}
	zstdDecoders = sync.Pool{New: func() any { return newZstdDecoder() }}
)

// newZstdDecoder makes one that runs in the caller's goroutine only.
func newZstdDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(RecordsBytesMax))
	if err != nil {
		panic("BUG: zstd decoder options: " + err.Error())
	}
	return d
}

// decompress appends src, decompressed, to dst. Errors wrap ErrInvalid: the
// CRC has vouched for the bytes, so it is the producer who is wrong.
func decompress(dst []byte, c Codec, src []byte) ([]byte, error) {
	return decompressTo(dst, c, src, RecordsBytesMax)
}

// decompressTo is decompress with another limit, at most RecordsBytesMax.
func decompressTo(dst []byte, c Codec, src []byte, limit int) (out []byte, err error) {
	switch c {
	case None:
		out = append(dst, src...)
	case Gzip:
		out, err = gunzip(dst, src, limit)
	case Snappy:
		out, err = unsnappy(dst, src, limit)
	case LZ4:
		out, err = unlz4(dst, src, limit)
	case Zstd:
		out, err = unzstd(dst, src, limit)
	default:
		return dst, fmt.Errorf("%w: codec %d", ErrCodec, c)
	}
	if err != nil {
		return dst, fmt.Errorf("%w: decompress %s: %w", ErrInvalid, c, err)
	}
	return out, nil
}

func gunzip(dst, src []byte, limit int) ([]byte, error) {
	r, ok := gzipReaders.Get().(*gzip.Reader)
	if !ok {
		r = new(gzip.Reader)
	}
	defer gzipReaders.Put(r)
	if err := r.Reset(bytes.NewReader(src)); err != nil {
		return nil, err
	}
	return readAll(dst, r, limit)
}

func unlz4(dst, src []byte, limit int) ([]byte, error) {
	r := lz4Readers.Get().(*lz4.Reader)
	r.Reset(bytes.NewReader(src))
	out, err := readAll(dst, r, limit)
	if err != nil {
		return nil, err // the reader is not reused: its state after an error is its own affair
	}
	lz4Readers.Put(r)
	return out, nil
}

func unzstd(dst, src []byte, limit int) ([]byte, error) {
	d := zstdDecoders.Get().(*zstd.Decoder)
	defer zstdDecoders.Put(d)
	out, err := d.DecodeAll(src, dst) // within RecordsBytesMax
	if err == nil && len(out)-len(dst) > limit {
		return nil, ErrTooLarge
	}
	return out, err
}

// readAll appends all of r to dst and stops above limit.
func readAll(dst []byte, r io.Reader, limit int) ([]byte, error) {
	start := len(dst)
	for {
		if len(dst) == cap(dst) {
			dst = append(dst, 0)[:len(dst)]
		}
		n, err := r.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		if len(dst)-start > limit {
			return nil, ErrTooLarge
		}
		if err == io.EOF {
			return dst, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// Xerial's framing, which Kafka's Java client puts around Snappy: this
// header, version and lowest compatible version (int32 each), then chunks, each
// an int32 length and a raw Snappy block.
var xerialMagic = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const (
	xerialHeaderBytes = 16
	xerialVersion     = 1
	// xerialChunkBytes is the uncompressed size of a chunk in the Java client.
	xerialChunkBytes = 32 << 10
)

// unsnappy reads Xerial's framing and, as librdkafka and others send it, one
// raw block.
func unsnappy(dst, src []byte, limit int) ([]byte, error) {
	if len(src) < xerialHeaderBytes || !bytes.Equal(src[:len(xerialMagic)], xerialMagic) {
		return unsnappyBlock(dst, src, limit)
	}
	start := len(dst)
	for src = src[xerialHeaderBytes:]; len(src) > 0; {
		if len(src) < 4 {
			return nil, io.ErrUnexpectedEOF
		}
		n := int64(binary.BigEndian.Uint32(src))
		src = src[4:]
		if n > int64(len(src)) {
			return nil, io.ErrUnexpectedEOF
		}
		var err error
		if dst, err = unsnappyBlock(dst, src[:n], limit-(len(dst)-start)); err != nil {
			return nil, err
		}
		src = src[n:]
	}
	return dst, nil
}

// snappyRatioMax is more than Snappy can compress: a copy of 64 bytes takes
// three. It keeps a small block from having a huge buffer made for it.
const snappyRatioMax = 32

func unsnappyBlock(dst, block []byte, limit int) ([]byte, error) {
	n, err := snappy.DecodedLen(block)
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, ErrTooLarge
	}
	if n/snappyRatioMax > len(block) {
		return nil, snappy.ErrCorrupt
	}
	dst = grow(dst, n)
	out, err := snappy.Decode(dst[len(dst):len(dst)+n:len(dst)+n], block)
	if err != nil {
		return nil, err
	}
	return dst[:len(dst)+len(out)], nil
}

// grow returns dst with room for n more bytes.
func grow(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst
	}
	return append(dst, make([]byte, n)...)[:len(dst)]
}

// compress appends src, compressed, to dst.
func compress(dst []byte, c Codec, level int, src []byte) ([]byte, error) {
	switch c {
	case None:
		return append(dst, src...), nil
	case Gzip:
		return gzipTo(dst, level, src)
	case Snappy:
		return snappyTo(dst, src), nil
	case LZ4:
		return lz4To(dst, level, src)
	case Zstd:
		return zstdTo(dst, level, src)
	}
	return nil, fmt.Errorf("%w: codec %d", ErrCodec, c)
}

// sliceWriter appends what is written to it.
type sliceWriter struct{ buf []byte }

func (w *sliceWriter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	return len(p), nil
}

var gzipWriters [gzip.BestCompression + 1]sync.Pool // by level; 0 is the default level

func gzipTo(dst []byte, level int, src []byte) ([]byte, error) {
	level = min(max(level, 0), gzip.BestCompression)
	out := &sliceWriter{buf: dst}
	w, ok := gzipWriters[level].Get().(*gzip.Writer)
	if ok {
		w.Reset(out)
	} else {
		codecLevel := level
		if level == DefaultLevel {
			codecLevel = gzip.DefaultCompression
		}
		var err error
		if w, err = gzip.NewWriterLevel(out, codecLevel); err != nil {
			return nil, err
		}
	}
	defer gzipWriters[level].Put(w)
	if _, err := w.Write(src); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	w.Reset(io.Discard) // the pool must not keep the output alive
	return out.buf, nil
}

func snappyTo(dst, src []byte) []byte {
	dst = append(dst, xerialMagic...)
	dst = binary.BigEndian.AppendUint32(dst, xerialVersion)
	dst = binary.BigEndian.AppendUint32(dst, xerialVersion)
	for len(src) > 0 {
		chunk := src[:min(len(src), xerialChunkBytes)]
		src = src[len(chunk):]
		dst = grow(dst, 4+snappy.MaxEncodedLen(len(chunk)))
		at := len(dst)
		block := snappy.Encode(dst[at+4:cap(dst)], chunk)
		dst = dst[:at+4+len(block)]
		binary.BigEndian.PutUint32(dst[at:], uint32(len(block)))
	}
	return dst
}

var lz4Levels = [...]lz4.CompressionLevel{
	lz4.Fast, lz4.Level1, lz4.Level2, lz4.Level3, lz4.Level4, lz4.Level5, lz4.Level6, lz4.Level7, lz4.Level8, lz4.Level9,
}

var lz4Writers = sync.Pool{New: func() any { return lz4.NewWriter(nil) }}

// lz4To writes an LZ4 frame as Kafka's Java client reads it: independent
// blocks of 64 KiB, no content checksum.
func lz4To(dst []byte, level int, src []byte) ([]byte, error) {
	out := &sliceWriter{buf: dst}
	w := lz4Writers.Get().(*lz4.Writer)
	defer lz4Writers.Put(w)
	w.Reset(out)
	err := w.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false), lz4.ConcurrencyOption(1),
		lz4.CompressionLevelOption(lz4Levels[min(max(level, 0), len(lz4Levels)-1)]))
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(src); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	w.Reset(io.Discard)
	return out.buf, nil
}

var zstdEncoders [zstd.SpeedBestCompression + 1]sync.Pool // by the library's level

func zstdTo(dst []byte, level int, src []byte) ([]byte, error) {
	speed := zstd.SpeedDefault
	if level != DefaultLevel {
		speed = zstd.EncoderLevelFromZstd(level)
	}
	e, ok := zstdEncoders[speed].Get().(*zstd.Encoder)
	if !ok {
		var err error
		if e, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(speed), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false)); err != nil {
			return nil, err
		}
	}
	defer zstdEncoders[speed].Put(e)
	return e.EncodeAll(src, dst), nil
}

// Recompress returns the batch with its records compressed by c: offsets,
// timestamps, producer and attributes but the codec stay. It returns b itself
// when that is its codec already. Errors as for Each.
func Recompress(b Batch, c Codec, level int) (Batch, error) {
	if b.Codec() == c {
		return b, nil
	}
	if c < None || c > Zstd {
		return nil, fmt.Errorf("%w: codec %d", ErrCodec, c)
	}
	records, release, err := b.records()
	if err != nil {
		return nil, err
	}
	defer release()
	out := append(make([]byte, 0, HeaderBytes+len(records)/2), b[:HeaderBytes]...)
	if out, err = compress(out, c, level, records); err != nil {
		return nil, err
	}
	batch := Batch(out)
	binary.BigEndian.PutUint32(batch[offLength:], uint32(len(batch)-LogOverheadBytes))
	binary.BigEndian.PutUint16(batch[offAttributes:], uint16(b.Attributes())&^attrCodec|uint16(c))
	batch.Seal()
	return batch, nil
}
