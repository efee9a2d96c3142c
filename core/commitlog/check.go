package commitlog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"sluice/core/record"
	"sluice/core/vfs"
)

const (
	// trustedTail is how far behind the end of the segment being appended to a read is not checked: those bytes were
	// written by this process a moment ago and lie in memory. Whoever reads along with the writers pays nothing.
	trustedTail = 16 << 20
	// crcFrom is where the part of a batch begins that its CRC covers.
	crcFrom = 21
)

// check reads what a chunk is about to carry and compares each batch with its CRC, its place and its leader epoch, which
// lie outside the CRC. What is wrong ends the chunk before it; a chunk that would begin with it is refused with
// ErrCorrupt. Either way the log's owner is told.
func (l *Log) check(c *Chunk, v view, offset int64) error {
	if v.trusted >= 0 && c.position >= v.trusted {
		return nil
	}
	buf := l.files.buffer()
	defer l.files.putBuffer(buf)
	k := checker{
		file: c.file, pos: c.position, end: c.position + c.length, limit: v.bytes, limitNext: v.next,
		gaps: v.gaps, epoch: l.epoch, want: offset, next: -1, buf: (*buf)[:0],
	}
	if c.length > turnFreeBytes {
		k.turn.of = &l.files.turns
	}
	defer k.turn.end() // also when it panics: a client's connection recovers, and the others still need their turns
	err := k.run()
	k.turn.end()
	*buf = k.buf[:0]
	if err == nil {
		return nil
	}
	if !errors.Is(err, ErrCorrupt) {
		return err
	}
	l.suspect(v.s.base, err)
	if k.next < 0 || k.pos == c.position {
		return err
	}
	c.length, c.next = k.pos-c.position, k.next
	return nil
}

// suspect tells the log's owner of damage.
func (l *Log) suspect(base int64, err error) {
	if l.damaged != nil {
		l.damaged(base, err)
	}
}

// checker walks over the batches of a range and believes nothing that it has not compared.
type checker struct {
	file      vfs.File
	pos, end  int64 // where the next batch begins, and where the range ends
	limit     int64 // end of the segment, whose last record is before limitNext
	limitNext int64
	gaps      bool
	epoch     func(offset int64) int32
	want      int64 // the offset asked for
	next      int64 // offset after the batches that were found good; -1: none yet
	turn      turn

	buf  []byte
	have []byte // part of buf: the bytes at havePos
	at   int64
}

// run leaves pos and next behind the last good batch.
func (k *checker) run() error {
	last := k.pos // where the last good batch begins
	before := int64(-1)
	for k.pos < k.end {
		next, size, err := k.batch()
		if err != nil {
			return err
		}
		before, last = k.next, k.pos
		k.next = next
		k.pos += size
	}
	if err := k.follow(); err != nil {
		k.pos, k.next = last, before // either of the two is wrong
		return err
	}
	return nil
}

// batch checks the one at pos.
func (k *checker) batch() (next, size int64, err error) {
	head, err := k.bytes(k.pos, record.HeaderBytes)
	if err != nil {
		return 0, 0, err
	}
	size, err = record.Size(head)
	b := record.Batch(head)
	switch {
	case err != nil:
		return 0, 0, k.corrupt(err)
	case size > k.end-k.pos:
		return 0, 0, k.corrupt(record.ErrShort)
	case b.LastOffsetDelta() < 0:
		return 0, 0, k.corrupt(fmt.Errorf("last offset delta %d", b.LastOffsetDelta()))
	}
	if err := k.place(b); err != nil {
		return 0, 0, k.corrupt(err)
	}
	next = b.NextOffset()
	want := b.CRC() // head is gone when more is read
	sum, err := k.sum(k.pos+crcFrom, k.pos+size)
	if err == nil && sum != want {
		err = k.corrupt(fmt.Errorf("CRC %08x, want %08x", sum, want))
	}
	return next, size, err
}

// place compares what lies outside of a batch's CRC with what is known.
func (k *checker) place(b record.Batch) error {
	base, expected := b.BaseOffset(), k.next
	if expected < 0 { // the first holds the offset asked for
		if base > k.want && !k.gaps || b.NextOffset() <= k.want {
			return fmt.Errorf("offsets %d to %d where %d was looked for", base, b.LastOffset(), k.want)
		}
	} else if base < expected || base > expected && !k.gaps {
		return fmt.Errorf("base offset %d, want %d", base, expected)
	}
	if k.epoch == nil {
		return nil
	}
	if want := k.epoch(base); want >= 0 && b.LeaderEpoch() != want {
		return fmt.Errorf("leader epoch %d, want %d", b.LeaderEpoch(), want)
	}
	return nil
}

// follow checks that the range ends where the next batch begins.
func (k *checker) follow() error {
	next := k.limitNext
	if k.pos < k.limit {
		head, err := k.bytes(k.pos, min(record.HeaderBytes, k.limit-k.pos))
		if err != nil || int64(len(head)) < record.HeaderBytes {
			return k.corrupt(errors.Join(err, record.ErrShort))
		}
		next = record.Batch(head).BaseOffset()
	}
	if next == k.next || next > k.next && k.gaps {
		return nil
	}
	return k.corrupt(fmt.Errorf("base offset %d, want %d", next, k.next))
}

// sum is the CRC32C of a range of the file, however long a damaged length says that it is.
func (k *checker) sum(from, to int64) (sum uint32, err error) {
	for from < to {
		p, err := k.some(from, to-from)
		if err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, castagnoli, p)
		from += int64(len(p))
	}
	return sum, nil
}

// bytes returns n bytes, few enough for the buffer, valid until the next call.
func (k *checker) bytes(at, n int64) ([]byte, error) {
	if skip := at - k.at; skip < 0 || skip+n > int64(len(k.have)) {
		if err := k.fill(at); err != nil {
			return nil, err
		}
	}
	skip := at - k.at
	if skip+n > int64(len(k.have)) {
		return nil, k.corrupt(io.ErrUnexpectedEOF)
	}
	return k.have[skip : skip+n], nil
}

// some returns at least one byte and at most n.
func (k *checker) some(at, n int64) ([]byte, error) {
	skip := at - k.at
	if skip < 0 || skip >= int64(len(k.have)) {
		if err := k.fill(at); err != nil {
			return nil, err
		}
		skip = 0
	}
	return k.have[skip:min(skip+n, int64(len(k.have)))], nil
}

// fill reads ahead from at: the rest of the range with the header that follows it, or as much as the buffer takes.
func (k *checker) fill(at int64) error {
	want := min(verifyBytes, k.end+record.HeaderBytes-at, k.limit-at)
	if want <= 0 {
		return k.corrupt(io.ErrUnexpectedEOF)
	}
	if int64(cap(k.buf)) < want {
		k.buf = make([]byte, want)
	}
	k.turn.spend(want)
	n, err := k.file.ReadAt(k.buf[:want], at)
	k.have, k.at = k.buf[:n], at
	switch {
	case n > 0:
		return nil // a file that ends early is found out when the rest is wanted
	case err == nil || errors.Is(err, io.EOF):
		return k.corrupt(io.ErrUnexpectedEOF)
	}
	return unreadable(k.file, at, err)
}

func (k *checker) corrupt(cause error) error {
	return fmt.Errorf("%w: %s at byte %d: %w", ErrCorrupt, k.file.Name(), k.pos, cause)
}
