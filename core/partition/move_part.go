package partition

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"

	"sluice/core/commitlog"
	"sluice/core/vfs"
)

// part is the segment that is being copied.
type part struct {
	base int64
	file vfs.File // nil: there is none
	have int64    // bytes from the start
	crc  uint32   // of these

	prepared int64 // bytes
}

func (s *Stage) copySegment(ctx context.Context, conn *sourceConn, m commitlog.Manifest, seg commitlog.SegmentInfo, closed bool) (copied int64, err error) {
	if done, ok := s.sealedSegment(seg.Base); ok {
		if done.Bytes == seg.Bytes && (done.CRC == 0 || done.CRC == seg.CRC) || !closed && done.Bytes > seg.Bytes {
			return 0, nil // the latter: this source is behind the last one
		}
		if err := s.reopen(seg.Base); err != nil { // it has grown, or was written anew by its source
			return 0, err
		}
	}
	if !closed && s.ahead(seg) {
		return 0, nil
	}
	if err := s.openPart(seg); err != nil {
		return 0, err
	}
	buf := make([]byte, min(pieceBytesMax, max(seg.Bytes-s.have(), 1)))
	for s.have() < seg.Bytes {
		n, urgent, err := s.pace(ctx, min(int64(len(buf)), seg.Bytes-s.have()))
		if err != nil {
			return copied, err
		}
		piece, err := conn.piece(seg, s.have(), buf[:n], urgent)
		if err != nil {
			return copied, err
		}
		if err := s.write(piece, m); err != nil {
			return copied, err
		}
		copied += int64(len(piece))
	}
	if closed {
		return copied, s.closeSegment(seg)
	}
	return copied, s.prepare(seg)
}

// prepare does as much as can be done of a seal and of adopting before the partition is frozen: it syncs
// what has been copied of the last segment, and indexes it, which apply would read from its start otherwise.
func (s *Stage) prepare(seg commitlog.SegmentInfo) error {
	s.mu.Lock()
	p := &s.mu.part
	file := p.file
	due := !s.mu.taken && s.mu.seal == nil && file != nil && p.base == seg.Base && p.have == seg.Bytes && p.have-p.prepared >= stagePrepareBytes
	if due {
		p.prepared = p.have
	}
	s.mu.Unlock()
	if !due {
		return nil
	}
	if err := file.Sync(); err != nil {
		return s.failedSync(err)
	}
	s.index(seg)
	return nil
}

func (s *Stage) index(seg commitlog.SegmentInfo) {
	name := filepath.Base(s.path(seg.Base, partSuffix))
	if err := commitlog.IndexPart(s.o.FS, s.dir, name, seg.Base, seg.Bytes, commitlog.Config{}); err != nil {
		s.log.Debug("a copy was not indexed", "err", err)
	}
}

// pace waits until the next piece may be asked for. While a partition is frozen nobody waits.
func (s *Stage) pace(ctx context.Context, most int64) (n int64, urgent bool, err error) {
	if want, _ := s.sealing(); want != nil {
		return most, true, nil
	}
	n = min(most, s.o.Throttle.Piece(most))
	return n, false, s.o.Throttle.Wait(ctx, n)
}

func (s *Stage) sealedSegment(base int64) (commitlog.SegmentInfo, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, ok := s.mu.sealed[base]
	return info, ok
}

func (s *Stage) have() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.part.have
}

// ahead tells whether the part has all that a source has of its segment: this source may be behind the
// last one.
func (s *Stage) ahead(seg commitlog.SegmentInfo) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.part.file != nil && s.mu.part.base == seg.Base && s.mu.part.have >= seg.Bytes
}

// reopen makes a part of a whole segment again.
func (s *Stage) reopen(base int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.taken {
		return errTaken
	}
	delete(s.mu.sealed, base)
	s.mu.done = nil
	return s.o.FS.Rename(s.path(base, logSuffix), s.path(base, partSuffix))
}

// openPart opens the file that a segment is copied to, and reads what an earlier attempt has left in
// it. The lock is not held meanwhile: apply may be waiting for it, to adopt the directory.
func (s *Stage) openPart(seg commitlog.SegmentInfo) error {
	s.mu.Lock()
	if p := &s.mu.part; p.file != nil && p.base == seg.Base && p.have <= seg.Bytes || s.mu.taken {
		defer s.mu.Unlock()
		if s.mu.taken {
			return errTaken
		}
		return nil
	}
	s.closePartLocked()
	s.mu.Unlock()
	name := s.path(seg.Base, partSuffix)
	file, err := s.o.FS.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		file, err = s.o.FS.Create(name)
	}
	if err != nil {
		return fmt.Errorf("open part: %w", err)
	}
	opened := part{base: seg.Base, file: file}
	if err := opened.resume(seg.Bytes); err != nil {
		return errors.Join(fmt.Errorf("resume part: %w", err), file.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.taken {
		return errors.Join(errTaken, file.Close())
	}
	s.mu.part = opened
	return nil
}

// resume takes over what is in the file, up to limit.
func (p *part) resume(limit int64) error {
	size, err := p.file.Size()
	if err == nil && size > limit {
		size, err = limit, p.file.Truncate(limit)
	}
	if err != nil {
		return err
	}
	buf := make([]byte, min(pieceBytesMax, size))
	for p.have < size {
		n, err := p.file.ReadAt(buf[:min(int64(len(buf)), size-p.have)], p.have)
		if n == 0 {
			return err
		}
		p.crc = crc32.Update(p.crc, castagnoli, buf[:n])
		p.have += int64(n)
	}
	return nil
}

func (s *Stage) write(piece []byte, m commitlog.Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.taken {
		return errTaken
	}
	p := &s.mu.part
	if _, err := p.file.WriteAt(piece, p.have); err != nil {
		s.closePartLocked()
		return fmt.Errorf("write part: %w", err)
	}
	p.crc = crc32.Update(p.crc, castagnoli, piece)
	p.have += int64(len(piece))
	s.measureLocked(m)
	return nil
}

// closeSegment gives a segment that is all there its name, after it was compared and synced.
func (s *Stage) closeSegment(seg commitlog.SegmentInfo) error {
	s.mu.Lock()
	file, crc := s.mu.part.file, s.mu.part.crc
	taken := s.mu.taken
	s.mu.Unlock()
	if taken {
		return errTaken
	}
	if crc != seg.CRC {
		return s.startAgain(crc, seg)
	}
	if err := file.Sync(); err != nil {
		return s.failedSync(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.taken {
		return errTaken
	}
	s.closePartLocked()
	if err := s.o.FS.Rename(s.path(seg.Base, partSuffix), s.path(seg.Base, logSuffix)); err != nil {
		return fmt.Errorf("name segment: %w", err)
	}
	s.mu.sealed[seg.Base] = seg
	return nil
}

// startAgain empties a part that did not become the segment: an earlier attempt's bytes were lost by
// a crash, or the source has compacted the segment meanwhile.
func (s *Stage) startAgain(crc uint32, seg commitlog.SegmentInfo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.taken {
		return errTaken
	}
	s.closePartLocked()
	if err := errors.Join(s.o.FS.Remove(s.path(seg.Base, partSuffix)), commitlog.DropIndex(s.o.FS, s.dir, seg.Base)); err != nil {
		return fmt.Errorf("remove part: %w", err)
	}
	return fmt.Errorf("%w: what came has CRC %08x, not %08x", ErrPeer, crc, seg.CRC)
}

// failedSync removes a part whose sync failed: what of it is on disk is not known any more.
func (s *Stage) failedSync(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	base := s.mu.part.base
	if s.mu.taken {
		return errTaken
	}
	s.closePartLocked()
	return errors.Join(fmt.Errorf("sync part: %w", err), s.o.FS.Remove(s.path(base, partSuffix)))
}
