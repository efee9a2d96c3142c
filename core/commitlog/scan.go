package commitlog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"sluice/core/record"
	"sluice/core/vfs"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// scanBytes is how much a scanner reads ahead: an index interval and a little.
const scanBytes = 8 << 10

// tally is what is known of a segment's batches up to some position.
type tally struct {
	next        int64 // offset after the last batch
	bytes       int64
	firstTs     int64
	maxTs       int64
	maxTsOffset int64
	crc         uint32
}

func newTally(base int64) tally {
	return tally{next: base, firstTs: record.NoTimestamp, maxTs: record.NoTimestamp, maxTsOffset: -1}
}

// add counts a batch of which only the header needs to be there; the CRC is
// the caller's.
func (t *tally) add(header record.Batch, size int64) {
	if t.bytes == 0 {
		t.firstTs = header.MaxTimestamp()
	}
	if ts := header.MaxTimestamp(); ts > t.maxTs {
		t.maxTs, t.maxTsOffset = ts, header.LastOffset()
	}
	t.next = header.NextOffset()
	t.bytes += size
}

func (t *tally) info(base int64) SegmentInfo {
	return SegmentInfo{
		Base: base, Next: t.next, Bytes: t.bytes, FirstTimestamp: t.firstTs,
		MaxTimestamp: t.maxTs, MaxTimestampOffset: t.maxTsOffset, CRC: t.crc,
	}
}

func tallyOf(i SegmentInfo) tally {
	return tally{
		next: i.Next, bytes: i.Bytes, firstTs: i.FirstTimestamp,
		maxTs: i.MaxTimestamp, maxTsOffset: i.MaxTimestampOffset, crc: i.CRC,
	}
}

// scanner walks the batches of a file.
type scanner struct {
	file  vfs.File
	pos   int64  // of the next batch
	limit int64  // end of what may be read
	buf   []byte // grows to the largest batch wanted whole
	have  []byte // part of buf: the bytes at havePos
	at    int64
}

// bytes returns n bytes at pos, valid until the next call.
func (s *scanner) bytes(n int64) ([]byte, error) {
	skip := s.pos - s.at
	if skip >= 0 && skip+n <= int64(len(s.have)) {
		return s.have[skip : skip+n], nil
	}
	want := min(max(n, scanBytes), s.limit-s.pos)
	if int64(cap(s.buf)) < want {
		s.buf = make([]byte, want)
	}
	got, err := s.file.ReadAt(s.buf[:want], s.pos)
	s.have, s.at = s.buf[:got], s.pos
	if int64(got) >= n {
		return s.have[:n], nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, err
}

// header returns the header of the batch at pos and the batch's size, without
// moving on. The error is io.EOF at the limit, and wraps ErrCorrupt when there
// is no batch.
func (s *scanner) header() (record.Batch, int64, error) {
	if s.pos >= s.limit {
		return nil, 0, io.EOF
	}
	if s.limit-s.pos < record.HeaderBytes {
		return nil, 0, s.corrupt(record.ErrShort)
	}
	head, err := s.bytes(record.HeaderBytes)
	if err != nil {
		return nil, 0, s.failed(err)
	}
	size, err := record.Size(head)
	if err == nil && size > s.limit-s.pos {
		err = record.ErrShort
	}
	if err == nil && record.Batch(head).LastOffsetDelta() < 0 {
		err = fmt.Errorf("last offset delta %d", record.Batch(head).LastOffsetDelta())
	}
	if err != nil {
		return nil, 0, s.corrupt(err)
	}
	return head, size, nil
}

// batch returns the whole batch at pos, its CRC checked.
func (s *scanner) batch() (record.Batch, error) {
	_, size, err := s.header()
	if err != nil {
		return nil, err
	}
	whole, err := s.bytes(size)
	if err != nil {
		return nil, s.failed(err)
	}
	b := record.Batch(whole)
	if err := b.CheckCRC(); err != nil {
		return nil, s.corrupt(err)
	}
	return b, nil
}

func (s *scanner) skip(size int64) { s.pos += size }

func (s *scanner) corrupt(cause error) error {
	return fmt.Errorf("%w: %s at byte %d: %w", ErrCorrupt, s.file.Name(), s.pos, cause)
}

// failed tells a file that ends early, which is damage, from one that cannot
// be read.
func (s *scanner) failed(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return s.corrupt(err)
	}
	return unreadable(s.file, s.pos, err)
}
