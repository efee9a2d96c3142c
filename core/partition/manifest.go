package partition

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"sluice/core/meta"
)

// A manifest is the body of a checkpoint: it names records and holds none.
//
//	offset  size  field
//	0       8     "SLUICEPM"
//	8       ...   frames: a header, then one per partition, ordered by key
//
// and each frame, integers big-endian:
//
//	0       4     n, bytes of the body
//	4       4     CRC32C of the body
//	8       n     body, CBOR
//
// FORMAT.md lists the bodies.
const (
	manifestMagic   = "SLUICEPM"
	manifestVersion = 3 // 1 without moves, 2 without compacted partitions

	frameHeaderBytes = 8
	// frameBytesMax refuses lengths that no partition's section has: MaxProducers
	// producers and a million segments are less.
	frameBytesMax = 256 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// manifestHeader is the body of the first frame.
type manifestHeader struct {
	_          struct{} `cbor:",toarray"`
	Version    uint16
	Shard      meta.ShardID
	Origin     []byte // of the data directory that it was taken in: see Dirs
	Partitions int64
	Deleted    []savedKey // the oldest first

	moves     []savedMove // of version 2
	compacted bool        // some section has 11 elements: version 3
}

type manifestWriter struct{ w *bufio.Writer }

func newManifestWriter(w io.Writer) manifestWriter {
	return manifestWriter{w: bufio.NewWriterSize(w, 64<<10)}
}

func (m manifestWriter) header(h manifestHeader) error {
	body := h.encode()
	if _, err := m.w.WriteString(manifestMagic); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return m.frame(body)
}

func (m manifestWriter) frame(body []byte) error {
	var head [frameHeaderBytes]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(body)))
	binary.BigEndian.PutUint32(head[4:], crc32.Checksum(body, castagnoli))
	_, err := m.w.Write(head[:])
	if err == nil {
		_, err = m.w.Write(body)
	}
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

func (m manifestWriter) flush() error {
	if err := m.w.Flush(); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

// readManifest reads and checks all of a manifest before anything is adopted.
func readManifest(r io.Reader, shard meta.ShardID) (manifestHeader, []*section, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	h, err := readManifestHeader(br)
	if err != nil {
		return h, nil, err
	}
	if h.Shard != shard {
		return h, nil, fmt.Errorf("%w: of shard %d, this is shard %d", ErrCorruptManifest, h.Shard, shard)
	}
	var sections []*section
	for i := int64(0); i < h.Partitions; i++ {
		body, err := readFrame(br)
		if err != nil {
			return h, nil, fmt.Errorf("partition %d of %d: %w", i, h.Partitions, err)
		}
		sec, err := decodeSection(body)
		if err != nil {
			return h, nil, err
		}
		sections = append(sections, sec)
	}
	loadMoves(sections, h.moves)
	return h, sections, nil
}

func readManifestHeader(r io.Reader) (h manifestHeader, err error) {
	magic := make([]byte, len(manifestMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return h, cutShort(err)
	}
	if string(magic) != manifestMagic {
		return h, fmt.Errorf("%w: begins with %q", ErrCorruptManifest, magic)
	}
	body, err := readFrame(r)
	if err != nil {
		return h, err
	}
	if err := h.decode(body); err != nil {
		return h, fmt.Errorf("%w: decode header: %w", ErrCorruptManifest, err)
	}
	if h.Version > manifestVersion {
		return h, fmt.Errorf("manifest has version %d: %w", h.Version, ErrVersion)
	}
	return h, nil
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [frameHeaderBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, cutShort(err)
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > frameBytesMax {
		return nil, fmt.Errorf("%w: frame of %d bytes", ErrCorruptManifest, n)
	}
	body, err := readExactly(r, n)
	if err != nil {
		return nil, cutShort(err)
	}
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
		return nil, fmt.Errorf("%w: checksum of a frame of %d bytes", ErrCorruptManifest, n)
	}
	return body, nil
}

// readExactly reads n bytes and trusts n only as far as bytes come.
func readExactly(r io.Reader, n int64) ([]byte, error) {
	const step = 1 << 20
	body := make([]byte, 0, min(n, step))
	for int64(len(body)) < n {
		have := len(body)
		body = append(body, make([]byte, min(n-int64(have), step))...)
		if _, err := io.ReadFull(r, body[have:]); err != nil {
			return nil, err
		}
	}
	return body, nil
}

func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: ends early", ErrCorruptManifest)
	}
	return fmt.Errorf("read manifest: %w", err)
}
