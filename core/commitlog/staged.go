package commitlog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"strings"

	"sluice/core/record"
	"sluice/core/vfs"
)

// A segment that was rewritten lies beside the one it replaces until that one is not needed any more, under a name that says which one of all that ever had its
// base it is: `<base>.log.<bytes>-<crc>.staged`. It has that name only when it is whole, compared and synced. A replica that lacks it fills
// `<base>.log.<bytes>-<crc>.part`, whose name alone says that what is called `<base>.log` is another one.
const (
	stagedSuffix     = ".staged"
	stagedPartSuffix = ".part"
	// rewriteSuffix is a segment that is being rewritten.
	rewriteSuffix = ".log.rewrite"
)

// identity tells a segment from others with its base.
func identity(info SegmentInfo) string {
	return fmt.Sprintf("%s.%d-%08x", dataSuffix, info.Bytes, info.CRC)
}

func stagedName(info SegmentInfo) string { return fileName(info.Base, identity(info)+stagedSuffix) }

func stagedPartName(info SegmentInfo) string {
	return fileName(info.Base, identity(info)+stagedPartSuffix)
}

func (l *Log) stagedPath(info SegmentInfo) string { return filepath.Join(l.dir, stagedName(info)) }

func (l *Log) stagedPartPath(info SegmentInfo) string {
	return filepath.Join(l.dir, stagedPartName(info))
}

// stagedKind tells what a suffix that begins a name of an identity is.
func stagedKind(suffix string) (staged, part bool) {
	if !strings.HasPrefix(suffix, dataSuffix+".") || suffix == partSuffix {
		return false, false
	}
	return strings.HasSuffix(suffix, stagedSuffix), strings.HasSuffix(suffix, stagedPartSuffix)
}

// stagedFile is a segment in the making. It is for one goroutine.
type stagedFile struct {
	l    *Log
	base int64
	name string
	file vfs.File
	t    tally
	buf  []byte

	unsynced int64
}

func (l *Log) createRewrite(base int64) (*stagedFile, error) {
	w := &stagedFile{l: l, base: base, name: l.path(base, rewriteSuffix), t: newTally(base)}
	var err error
	if w.file, err = l.fs.Create(w.name); err != nil {
		return nil, fmt.Errorf("create rewritten segment: %w", err)
	}
	return w, nil
}

func (w *stagedFile) append(b record.Batch) error {
	w.t.add(b, int64(len(b)))
	w.buf = append(w.buf, b...)
	if len(w.buf) < rewriteBytes {
		return nil
	}
	return w.flush()
}

func (w *stagedFile) flush() error {
	at := w.t.bytes - int64(len(w.buf))
	if _, err := w.file.WriteAt(w.buf, at); err != nil {
		return fmt.Errorf("write rewritten segment: %w", err)
	}
	w.t.crc = crc32.Update(w.t.crc, castagnoli, w.buf)
	w.unsynced += int64(len(w.buf))
	w.buf = w.buf[:0]
	if w.unsynced < fillSyncBytes { // so that no sync at the end stands before live traffic
		return nil
	}
	return w.sync()
}

func (w *stagedFile) sync() error {
	w.unsynced = 0
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("sync rewritten segment: %w", err)
	}
	return nil
}

// finish gives the segment its name. The directory is the caller's to sync.
func (w *stagedFile) finish() (SegmentInfo, error) {
	err := w.flush()
	if err == nil {
		err = w.sync()
	}
	if err = errors.Join(err, w.file.Close()); err != nil {
		return SegmentInfo{}, errors.Join(err, w.l.fs.Remove(w.name))
	}
	info := w.t.info(w.base)
	if err := w.l.fs.Rename(w.name, w.l.stagedPath(info)); err != nil {
		return SegmentInfo{}, fmt.Errorf("name rewritten segment: %w", err)
	}
	return info, nil
}

func (w *stagedFile) discard() error {
	return errors.Join(w.file.Close(), w.l.fs.Remove(w.name))
}

// StageSegment makes a segment that was rewritten elsewhere: next returns its bytes piece by piece, from a position on, valid until the next call. It is compared with
// its checksum, synced and named; the names are durable after SyncStaged. One that is there already is left. The error wraps
// ErrCorrupt when other bytes came.
func (l *Log) StageSegment(info SegmentInfo, next func(from int64) ([]byte, error)) error {
	if _, err := l.fs.Stat(l.stagedPath(info)); err == nil {
		return nil
	}
	w := &stagedFile{l: l, base: info.Base, name: l.path(info.Base, rewriteSuffix)}
	var err error
	if w.file, err = l.fs.Create(w.name); err != nil {
		return fmt.Errorf("stage segment %d: %w", info.Base, err)
	}
	for w.t.bytes < info.Bytes {
		p, err := next(w.t.bytes)
		if err == nil && (len(p) == 0 || int64(len(p)) > info.Bytes-w.t.bytes) {
			err = fmt.Errorf("%w: piece of %d bytes", ErrCorrupt, len(p))
		}
		if err == nil {
			w.t.bytes += int64(len(p))
			w.buf = append(w.buf, p...)
			err = w.flush()
		}
		if err != nil {
			return fmt.Errorf("stage segment %d: %w", info.Base, errors.Join(err, w.discard()))
		}
	}
	if w.t.crc != info.CRC {
		err := fmt.Errorf("%w: CRC %08x, want %08x", ErrCorrupt, w.t.crc, info.CRC)
		return fmt.Errorf("stage segment %d: %w", info.Base, errors.Join(err, w.discard()))
	}
	if _, err := w.finish(); err != nil {
		return fmt.Errorf("stage segment %d: %w", info.Base, err)
	}
	return nil
}

// SyncStaged makes the names of staged segments durable.
func (l *Log) SyncStaged() error { return l.fs.SyncDir(l.dir) }

// ReadStaged returns bytes of a staged segment, for a peer. ErrMissing when there is none.
func (l *Log) ReadStaged(info SegmentInfo, position, length int64) (*Chunk, error) {
	h := l.files.handle(l.fs, l.stagedPath(info))
	file, err := h.acquire()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("read staged segment: %w", err)
	}
	h.drop() // closed with the chunk
	length = min(length, info.Bytes-position)
	if position < 0 || length < 0 {
		h.release()
		return nil, ErrOutOfRange
	}
	return &Chunk{h: h, file: file, position: position, length: length, next: -1}, nil
}

// DropStaged removes what was staged and is no part of the log: no swap that names it can come any more.
func (l *Log) DropStaged() error {
	names, err := l.fs.List(l.dir)
	if err != nil {
		return fmt.Errorf("list log directory: %w", err)
	}
	l.write.Lock()
	defer l.write.Unlock()
	if err := l.usable(); err != nil { // the directory's name may be another log's by now
		return err
	}
	used := l.stagedInUse()
	var gone []string
	for _, name := range names {
		_, suffix, ok := parseName(name)
		staged, part := stagedKind(suffix)
		if ok && (staged || part || suffix == rewriteSuffix) && !used[name] {
			gone = append(gone, name)
		}
	}
	return l.removeOthers(gone)
}

func (l *Log) stagedInUse() map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	used := map[string]bool{}
	for _, s := range l.mu.segments {
		if s.unsettled || s.missing != nil {
			info := s.info(s.base)
			used[stagedName(info)], used[stagedPartName(info)] = true, true
		}
	}
	return used
}
