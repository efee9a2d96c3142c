package commitlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"sluice/core/vfs"
)

// SegmentWriter fills a missing segment. It is for one goroutine.
type SegmentWriter interface {
	io.WriterAt
	// Resume returns how many bytes from the start are there, from this or an
	// earlier attempt.
	Resume() int64
	// Commit checks that all bytes are there and have the CRC they should,
	// makes them durable and the segment readable. When the CRC is wrong, the
	// error wraps ErrCorrupt and Resume is 0 again.
	Commit() error
	// Close ends the writing without installing the segment; a later writer resumes behind what was written.
	Close() error
}

// WriteSegment opens the writer of a missing segment; info is one of Missing.
// A segment that is there is set aside first, as Quarantine does: to fetch it
// again is to say that it is damaged. There is one writer for a segment at a
// time. The error wraps ErrOutOfRange when the log has no such segment (any
// more).
func (l *Log) WriteSegment(info SegmentInfo) (SegmentWriter, error) {
	if l.isHere(info) {
		if _, err := l.Quarantine(info.Base); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	_, s := l.segmentLocked(info.Base)
	switch {
	case l.mu.closed:
		l.mu.Unlock()
		return nil, ErrClosed
	case s == nil || s.missing == nil || s.missing.want != info:
		l.mu.Unlock()
		return nil, fmt.Errorf("write segment %d: %w", info.Base, errReplaced)
	case s.missing.writing:
		l.mu.Unlock()
		return nil, fmt.Errorf("write segment %d: it is being written", info.Base)
	}
	s.missing.writing = true
	part := s.missing
	l.mu.Unlock()
	// Append may have to make the same file.
	l.write.Lock()
	defer l.write.Unlock()
	file, err := l.openAppend(s)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		part.writing = false
		return nil, fmt.Errorf("write segment %d: %w", info.Base, err)
	}
	return &segmentWriter{l: l, s: s, part: part, file: file}, nil
}

func (l *Log) isHere(info SegmentInfo) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, s := l.segmentLocked(info.Base)
	return s != nil && s.missing == nil && s.info(s.base) == info
}

type segmentWriter struct {
	l        *Log
	s        *segment
	part     *missingPart
	file     vfs.File
	unsynced int64 // bytes written since the last sync
	closed   bool
}

// fillSyncBytes are synced, and counted as filled after a crash, at a time while a segment is filled: a gigabyte left to the sync at the end would stand before every other write of
// the disk, those of live traffic among them, for seconds.
const fillSyncBytes = 8 << 20

func (w *segmentWriter) Resume() int64 {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	return w.part.resume
}

// currentLocked says whether the segment is still to be filled by this writer.
func (w *segmentWriter) currentLocked() error {
	switch {
	case w.closed || w.l.mu.closed:
		return ErrClosed
	case w.s.dropped || w.s.missing != w.part:
		return errReplaced
	}
	return nil
}

func (w *segmentWriter) current() error {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	return w.currentLocked()
}

func (w *segmentWriter) WriteAt(p []byte, off int64) (int, error) {
	if err := w.current(); err != nil {
		return 0, err
	}
	if off < 0 || off+int64(len(p)) > w.part.want.Bytes {
		return 0, fmt.Errorf("write segment %d: %d bytes at %d are beyond its %d", w.s.base, len(p), off, w.part.want.Bytes)
	}
	if err := w.s.data.wrote(); err != nil {
		return 0, err
	}
	n, err := w.file.WriteAt(p, off)
	w.l.mu.Lock()
	if off <= w.part.resume && err == nil {
		w.part.resume = max(w.part.resume, off+int64(n))
	}
	w.l.mu.Unlock()
	if w.unsynced += int64(n); err != nil || w.unsynced < w.l.fillSync {
		return n, err
	}
	return n, w.keep()
}

// keep makes durable what was filled so far, and, for a file that is appended to meanwhile and does not tell by its size, how much that is.
func (w *segmentWriter) keep() error {
	w.unsynced = 0
	have := w.Resume()
	if err := w.s.data.sync(); err != nil {
		return fmt.Errorf("write segment %d: sync: %w", w.s.base, err)
	}
	if !strings.HasSuffix(w.file.Name(), fillSuffix) {
		return nil
	}
	if err := vfs.WriteFile(w.l.fs, w.l.path(w.s.base, fillMarkSuffix), encodeFillMark(have)); err != nil {
		return fmt.Errorf("write segment %d: mark: %w", w.s.base, err)
	}
	return nil
}

// A fill mark says how much of a .fill file is filled from its beginning.
//
//	0  8  bytes, big-endian
//	8  4  CRC32C of the bytes before
const fillMarkBytes = 12

func encodeFillMark(filled int64) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, fillMarkBytes), uint64(filled))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeFillMark returns 0 for what is no mark: the filling begins anew then.
func decodeFillMark(b []byte) int64 {
	if len(b) != fillMarkBytes || binary.BigEndian.Uint32(b[8:]) != crc32.Checksum(b[:8], castagnoli) {
		return 0
	}
	return max(int64(binary.BigEndian.Uint64(b)), 0)
}

func (w *segmentWriter) Commit() error {
	if err := w.current(); err != nil {
		return err
	}
	if have := w.Resume(); have < w.part.want.Bytes {
		return fmt.Errorf("commit segment %d: %d of %d bytes are there", w.s.base, have, w.part.want.Bytes)
	}
	if err := w.verify(); err != nil {
		return fmt.Errorf("commit segment %d: %w", w.s.base, err)
	}
	if err := w.s.data.sync(); err != nil {
		return fmt.Errorf("commit segment %d: sync: %w", w.s.base, errors.Join(err, w.discard()))
	}
	if err := w.install(); err != nil {
		return fmt.Errorf("commit segment %d: %w", w.s.base, err)
	}
	return w.Close()
}

// discard empties the file after a failed sync: what was written may be in memory only, for ever, and read as if it were on
// the disk. What is fetched next is written again.
func (w *segmentWriter) discard() error {
	w.l.mu.Lock()
	w.part.resume = 0
	grown := w.s.bytes > w.part.want.Bytes
	w.l.mu.Unlock()
	if grown {
		return nil // the last segment: opened again, it is begun anew
	}
	return w.file.Truncate(0)
}

func (w *segmentWriter) verify() error {
	sum, err := checksum(w.l.files, w.file, w.part.want.Bytes, nil)
	if err == nil && sum != w.part.want.CRC {
		err = fmt.Errorf("%w: %s: CRC %08x, want %08x", ErrCorrupt, w.file.Name(), sum, w.part.want.CRC)
	}
	if errors.Is(err, ErrCorrupt) {
		w.l.mu.Lock()
		defer w.l.mu.Unlock()
		w.part.resume = 0
	}
	return err
}

// install gives the file its name and makes the segment readable. What was
// appended behind the missing part meanwhile is made durable with it.
func (w *segmentWriter) install() error {
	l, s := w.l, w.s
	l.write.Lock()
	defer l.write.Unlock()
	l.sync.Lock()
	defer l.sync.Unlock()
	if err := w.current(); err != nil {
		return err
	}
	if err := s.data.sync(); err != nil {
		return l.fail(fmt.Errorf("sync segment: %w", err))
	}
	if err := s.data.rename(l.settledName(s, w.part.want)); err != nil {
		return l.fail(err)
	}
	if err := l.removeFile(s.base, fillMarkSuffix); err != nil {
		return l.fail(err)
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return l.fail(err)
	}
	l.mu.Lock()
	s.missing = nil
	s.synced = s.bytes
	s.index.off = false
	last := s == l.mu.segments[len(l.mu.segments)-1]
	l.mu.Unlock()
	if last {
		l.ensure(s)
	}
	return nil
}

func (w *segmentWriter) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	w.s.data.release()
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	w.part.writing = false
	return nil
}

// ReadSegment returns bytes of a segment file as they are, for a peer that
// fills its own with them: up to length, from position on; Next is -1.
// ErrMissing when the log does not have that segment.
func (l *Log) ReadSegment(base, position, length int64) (*Chunk, error) {
	l.mu.Lock()
	_, s := l.segmentLocked(base)
	if s == nil || s.missing != nil || l.mu.closed {
		l.mu.Unlock()
		return nil, ErrMissing
	}
	length = min(length, s.bytes-position)
	if position < 0 || length < 0 {
		l.mu.Unlock()
		return nil, ErrOutOfRange
	}
	s.data.pin()
	l.mu.Unlock()
	file, err := s.data.opened(false)
	if err != nil {
		return nil, fmt.Errorf("read segment %d: %w", base, err)
	}
	return &Chunk{h: s.data, file: file, position: position, length: length, next: -1}, nil
}
