package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kgo"
)

var codecs = []Codec{None, Gzip, Snappy, LZ4, Zstd}

// payloads are small, large, compressible and not.
func payloads() [][]byte {
	noise := make([]byte, 300_000)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	return [][]byte{{1}, []byte("hello"), bytes.Repeat([]byte("temperature=21.5;"), 20_000), noise, noise[:xerialChunkBytes], noise[:xerialChunkBytes+1]}
}

// TestCodecsWithOthers exchanges compressed records with franz-go's codecs,
// both ways.
func TestCodecsWithOthers(t *testing.T) {
	for _, c := range codecs[1:] {
		other, err := kgo.DefaultCompressor([]kgo.CompressionCodec{0: {}, 1: kgo.GzipCompression(), 2: kgo.SnappyCompression(), 3: kgo.Lz4Compression(), 4: kgo.ZstdCompression()}[c])
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range payloads() {
			ours, err := compress([]byte("before"), c, DefaultLevel, p)
			if err != nil || string(ours[:6]) != "before" {
				t.Fatal(c, err)
			}
			back, err := kgo.DefaultDecompressor().Decompress(ours[6:], kgo.CompressionCodecType(c))
			if err != nil || !bytes.Equal(back, p) {
				t.Fatalf("%s: franz-go reads %d of %d bytes: %v", c, len(back), len(p), err)
			}
			theirs, codec := other.Compress(new(bytes.Buffer), p)
			if codec != kgo.CompressionCodecType(c) {
				t.Fatalf("franz-go used codec %d for %s", codec, c)
			}
			back, err = decompress([]byte("before"), c, theirs)
			if err != nil || !bytes.Equal(back[6:], p) {
				t.Fatalf("%s: we read %d of %d bytes: %v", c, len(back)-6, len(p), err)
			}
		}
	}
}

// TestSnappyFraming: what we write is Xerial's framing as the Java client's
// SnappyInputStream checks it, and what librdkafka sends (one raw block) is
// read too.
func TestSnappyFraming(t *testing.T) {
	p := bytes.Repeat([]byte("abcdef"), 20_000)
	framed, err := compress(nil, Snappy, DefaultLevel, p)
	if err != nil {
		t.Fatal(err)
	}
	header := append([]byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}, 0, 0, 0, 1, 0, 0, 0, 1)
	if !bytes.HasPrefix(framed, header) {
		t.Fatalf("header % x", framed[:16])
	}
	var plain []byte
	for rest := framed[16:]; len(rest) > 0; {
		n := binary.BigEndian.Uint32(rest)
		block, err := snappy.Decode(nil, rest[4:4+n])
		if err != nil || len(block) > xerialChunkBytes {
			t.Fatal(err, len(block))
		}
		plain = append(plain, block...)
		rest = rest[4+n:]
	}
	if !bytes.Equal(plain, p) {
		t.Fatal("framed blocks do not hold the payload")
	}
	raw, err := decompress(nil, Snappy, snappy.Encode(nil, p))
	if err != nil || !bytes.Equal(raw, p) {
		t.Fatal("raw block", err)
	}
	for cut := 17; cut < len(framed); cut += 97 {
		if _, err := decompress(nil, Snappy, framed[:cut]); err == nil {
			// A cut between two chunks cannot be seen here; the record count shows it.
			if got, _ := decompress(nil, Snappy, framed[:cut]); len(got)%xerialChunkBytes != 0 {
				t.Fatalf("cut at %d passed", cut)
			}
		}
	}
}

// TestLZ4Frame: the frame is one that the Java client reads: version 1,
// independent blocks, blocks of 64 KiB.
func TestLZ4Frame(t *testing.T) {
	out, err := compress(nil, LZ4, DefaultLevel, []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	const version, independent, contentChecksum, blocks64K = 0x40, 0x20, 0x04, 0x40
	if !bytes.HasPrefix(out, lz4FrameMagic) || out[4]&0xc0 != version || out[4]&independent == 0 || out[4]&contentChecksum != 0 || out[5] != blocks64K {
		t.Fatalf("frame header % x", out[:7])
	}
	if byte(xxh32Short(out[4:6])>>8) != out[6] {
		t.Fatalf("header checksum %02x, xxh32Short says %08x", out[6], xxh32Short(out[4:6]))
	}
}

// TestBombs: what decompresses to more than the bound is refused, whatever it
// says of itself, and a small lie is not believed.
func TestBombs(t *testing.T) {
	const limit = 1 << 20
	for _, c := range codecs[1:] {
		for over, want := range []error{nil, ErrInvalid} {
			bomb, err := compress(nil, c, DefaultLevel, make([]byte, limit+over))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := decompressTo(make([]byte, 77), c, bomb, limit); !errors.Is(err, want) {
				t.Errorf("%s: %d bytes became %d: %v", c, len(bomb), limit+over, err)
			}
		}
	}
	// Zstandard's bound is its decoder's own.
	bomb, err := compress(nil, Zstd, DefaultLevel, make([]byte, RecordsBytesMax+1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decompress(nil, Zstd, bomb); !errors.Is(err, ErrInvalid) {
		t.Errorf("zstd: %d bytes became more than %d: %v", len(bomb), RecordsBytesMax, err)
	}
	lie := append(binary.AppendUvarint(nil, RecordsBytesMax-1), 0, 0)
	if _, err := decompress(nil, Snappy, lie); !errors.Is(err, ErrInvalid) {
		t.Errorf("snappy length: %v", err)
	}
}

// TestZstdOfStreams: a frame without its content size, as streaming encoders
// write it.
func TestZstdOfStreams(t *testing.T) {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat([]byte("x1y2"), 100_000)
	fmt.Fprintf(w, "%s", p[:10])
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	w.Write(p[10:])
	w.Close()
	got, err := decompress(nil, Zstd, out.Bytes())
	if err != nil || !bytes.Equal(got, p) {
		t.Fatal(err)
	}
}

// TestDamagedStreams flips bits and cuts compressed batches: an error or the
// right number of records, never a panic.
func TestDamagedStreams(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, c := range codecs[1:] {
		good := sample(c, "some value", "another value", string(bytes.Repeat([]byte("z"), 5000)))
		for range 500 {
			bad := Batch(bytes.Clone(good))
			for range 1 + rng.IntN(3) {
				bad[HeaderBytes+rng.IntN(len(bad)-HeaderBytes)] ^= byte(1 << rng.IntN(8))
			}
			if rng.IntN(2) == 0 {
				bad = bad[:HeaderBytes+rng.IntN(len(bad)-HeaderBytes)]
				binary.BigEndian.PutUint32(bad[offLength:], uint32(len(bad)-LogOverheadBytes))
			}
			bad.Seal()
			n := int32(0)
			err := bad.Each(func(Record) error { n++; return nil })
			if err == nil && n != bad.Count() {
				t.Fatalf("%s: %d records of %d and no error", c, n, bad.Count())
			}
			if err != nil && !errors.Is(err, ErrInvalid) {
				t.Fatalf("%s: error of no kind: %v", c, err)
			}
		}
	}
}

func TestEmptyCompressedBatch(t *testing.T) {
	b := Batch(bytes.Clone(sample(Gzip, "a")[:HeaderBytes])) // as Kafka's cleaner leaves behind
	binary.BigEndian.PutUint32(b[offLength:], HeaderBytes-LogOverheadBytes)
	binary.BigEndian.PutUint32(b[offCount:], 0)
	b.Seal()
	if err := b.Each(func(Record) error { return errors.New("a record") }); err != nil {
		t.Fatal(err)
	}
}
