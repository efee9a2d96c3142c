package commitlog

import (
	"errors"
	"fmt"
	"hash/crc32"

	"sluice/core/vfs"
)

// repairPart is a copy of a damaged segment in the making.
type repairPart struct {
	want    SegmentInfo
	resume  int64
	created bool
	writing bool
}

// Info returns the segment with that base as it is now; ok is false when the log has none, or misses it.
func (l *Log) Info(base int64) (info SegmentInfo, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, s := l.segmentLocked(base)
	if s == nil || s.missing != nil || l.mu.closed {
		return SegmentInfo{}, false
	}
	return s.info(base), true
}

// RepairSegment opens the writer of a copy that takes the place of a damaged segment once it is whole. Until then the
// segment stays as it is: what of it is good is read, and Read refuses the rest. info is what Info said when the damage
// was found; what has been appended since is taken from the damaged file, and has to be good. A later writer with the
// same info resumes, within one life of the log. Commit returns ErrCorrupt when the copy, or what was appended since, is
// not what was once written.
func (l *Log) RepairSegment(info SegmentInfo) (SegmentWriter, error) {
	l.mu.Lock()
	_, s := l.segmentLocked(info.Base)
	switch {
	case l.mu.closed:
		l.mu.Unlock()
		return nil, ErrClosed
	case s == nil || s.missing != nil || s.bytes < info.Bytes:
		l.mu.Unlock()
		return nil, fmt.Errorf("repair segment %d: %w", info.Base, errReplaced)
	case s.repair != nil && s.repair.writing:
		l.mu.Unlock()
		return nil, fmt.Errorf("repair segment %d: it is being repaired", info.Base)
	}
	if s.repair == nil || s.repair.want != info {
		s.repair = &repairPart{want: info}
	}
	part := s.repair
	part.writing = true
	l.mu.Unlock()
	file, err := l.openRepair(part)
	if err != nil {
		l.endRepair(part)
		return nil, fmt.Errorf("repair segment %d: %w", info.Base, err)
	}
	return &repairWriter{l: l, s: s, part: part, file: file}, nil
}

func (l *Log) openRepair(part *repairPart) (vfs.File, error) {
	name := l.path(part.want.Base, repairSuffix)
	if part.created {
		return l.fs.Open(name)
	}
	file, err := l.fs.Create(name)
	part.created = err == nil
	return file, err
}

func (l *Log) endRepair(part *repairPart) {
	l.mu.Lock()
	defer l.mu.Unlock()
	part.writing = false
}

type repairWriter struct {
	l      *Log
	s      *segment
	part   *repairPart
	file   vfs.File
	closed bool
}

func (w *repairWriter) Resume() int64 { return w.part.resume }

func (w *repairWriter) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > w.part.want.Bytes {
		return 0, fmt.Errorf("repair segment %d: %d bytes at %d are beyond its %d", w.s.base, len(p), off, w.part.want.Bytes)
	}
	n, err := w.file.WriteAt(p, off)
	if off <= w.part.resume && err == nil {
		w.part.resume = max(w.part.resume, off+int64(n))
	}
	return n, err
}

func (w *repairWriter) Commit() error {
	if err := w.commit(); err != nil {
		return fmt.Errorf("repair segment %d: %w", w.s.base, err)
	}
	return w.Close()
}

func (w *repairWriter) commit() error {
	if w.part.resume < w.part.want.Bytes {
		return fmt.Errorf("%d of %d bytes are there", w.part.resume, w.part.want.Bytes)
	}
	sum, err := checksum(w.l.files, w.file, w.part.want.Bytes, nil)
	if err == nil && sum != w.part.want.CRC {
		err = fmt.Errorf("%w: %s: CRC %08x, want %08x", ErrCorrupt, w.file.Name(), sum, w.part.want.CRC)
	}
	if errors.Is(err, ErrCorrupt) {
		w.part.resume = 0
	}
	if err != nil {
		return err
	}
	t := tallyOf(w.part.want)
	if err := w.copyTail(&t); err != nil { // most of it, while appends go on
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	return w.install(&t)
}

// sync makes the copy durable. After a failure it is begun anew: what was written may be in memory only.
func (w *repairWriter) sync() error {
	err := w.file.Sync()
	if err == nil {
		return nil
	}
	w.part.resume, w.part.created = 0, false
	return fmt.Errorf("sync: %w", err)
}

// copyTail copies what was appended since t from the damaged file.
func (w *repairWriter) copyTail(t *tally) error {
	w.l.mu.Lock()
	end := w.s.bytes
	w.l.mu.Unlock()
	if t.bytes == end {
		return nil
	}
	from, err := w.s.data.acquire()
	if err != nil {
		return err
	}
	defer w.s.data.release()
	buf := make([]byte, min(verifyBytes, end-t.bytes))
	for t.bytes < end {
		p := buf[:min(int64(len(buf)), end-t.bytes)]
		if err := readFull(from, p, t.bytes); err != nil {
			return err
		}
		if _, err := w.file.WriteAt(p, t.bytes); err != nil {
			return err
		}
		t.crc = crc32.Update(t.crc, castagnoli, p)
		t.bytes += int64(len(p))
	}
	return nil
}

// install puts the copy in the segment's place. Readers that hold a chunk of the old file keep it.
func (w *repairWriter) install(t *tally) error {
	l, s := w.l, w.s
	l.write.Lock()
	defer l.write.Unlock()
	l.sync.Lock()
	defer l.sync.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	if l.isDropped(s) {
		return errReplaced
	}
	if err := w.copyTail(t); err != nil {
		return err
	}
	if t.crc != s.crc { // no append runs
		return fmt.Errorf("%w: %s: what was appended since the damage was found is damaged too", ErrCorrupt, w.file.Name())
	}
	if err := w.sync(); err != nil {
		return err
	}
	if err := l.fs.Rename(l.path(s.base, repairSuffix), s.data.name()); err != nil {
		return err
	}
	if err := l.removeFile(s.base, indexSuffix); err != nil {
		return l.fail(err)
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return l.fail(err)
	}
	w.part.created = false
	l.exchange(s)
	return nil
}

// exchange makes the log use the file that has taken the name of s's.
func (l *Log) exchange(s *segment) {
	l.mu.Lock()
	i, _ := l.segmentLocked(s.base)
	fresh := l.newSegment(s.base)
	fresh.tally, fresh.synced = s.tally, s.bytes
	if s.unsettled {
		fresh.unsettled, fresh.data = true, l.files.handle(l.fs, s.data.name())
	}
	s.dropped = true
	l.mu.segments[i] = fresh
	l.mu.hints = nil
	last := i == len(l.mu.segments)-1
	l.mu.Unlock()
	s.data.drop()
	s.index.h.drop()
	if last {
		l.ensure(fresh) // appends go on with its index
	}
}

func (w *repairWriter) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	err := w.file.Close()
	w.l.endRepair(w.part)
	return err
}
