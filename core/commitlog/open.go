package commitlog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"sluice/core/vfs"
)

// files are the names found in a log's directory.
type found struct {
	bases   []int64 // of segment files, ascending
	indexes map[int64]bool
	parts   map[int64]bool
	fills   map[int64]bool  // that say how much of them is filled
	others  []string        // left by something that did not finish
	staged  map[string]bool // names of rewritten segments, whole or in part
}

func (l *Log) list() (found, error) {
	f := found{indexes: map[int64]bool{}, parts: map[int64]bool{}, fills: map[int64]bool{}, staged: map[string]bool{}}
	if err := l.fs.MkdirAll(l.dir); err != nil {
		return f, fmt.Errorf("create log directory: %w", err)
	}
	names, err := l.fs.List(l.dir) // sorted, and the names have one length
	if err != nil {
		return f, fmt.Errorf("list log directory: %w", err)
	}
	for _, name := range names {
		base, suffix, ok := parseName(name)
		staged, part := stagedKind(suffix)
		switch {
		case !ok: // not ours
		case suffix == dataSuffix:
			f.bases = append(f.bases, base)
		case suffix == indexSuffix:
			f.indexes[base] = true
		case suffix == partSuffix:
			f.parts[base] = true
		case suffix == fillMarkSuffix:
			f.fills[base] = true
			f.others = append(f.others, name)
		case suffix == fillSuffix, suffix == staleSuffix, suffix == repairSuffix, suffix == rewriteSuffix:
			f.others = append(f.others, name)
		case staged, part:
			f.staged[name] = true
		}
	}
	return f, nil
}

func parseName(name string) (base int64, suffix string, ok bool) {
	const digits = 20
	if len(name) <= digits {
		return 0, "", false
	}
	n, err := strconv.ParseUint(name[:digits], 10, 63)
	return int64(n), name[digits:], err == nil && strings.HasPrefix(name[digits:], ".")
}

// Open opens the log in dir, or makes an empty one, and takes what is on the
// disk for true: it reads the tail of the log from the last point known to be
// synced, and cuts it off where it stops making sense. The start is the first
// file's base.
//
// What is damaged before that point is not cut off, it is reported by Read.
// The offsets must be contiguous: a compacted log is opened with OpenAt.
func Open(fsys vfs.FS, dir string, c Config) (*Log, error) {
	l := newLog(fsys, dir, c)
	l.scans = true
	f, err := l.list()
	if err != nil {
		return nil, err
	}
	for base := range f.parts {
		f.others = append(f.others, fileName(base, partSuffix))
	}
	f.others = slices.AppendSeq(f.others, maps.Keys(f.staged))
	r := recovery{l: l, f: f, safe: -1}
	if err := r.run(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// recovery is what Open does.
type recovery struct {
	l     *Log
	f     found
	sizes []int64
	marks []tally // zero where there is none
	safe  int     // the last segment with a mark: those before it were synced whole
}

func (r *recovery) run() error {
	if err := r.survey(); err != nil {
		return err
	}
	last := len(r.f.bases) - 1
	for i := range r.f.bases {
		intact, err := r.segment(i)
		if err != nil {
			return err
		}
		if !intact {
			last = i
			break
		}
	}
	for last > 0 && r.l.mu.segments[last].bytes == 0 {
		last-- // created, and never written to: whether it is needed, the next append decides
	}
	if err := r.removeAfter(last); err != nil {
		return err
	}
	return r.finish()
}

// survey finds the sizes and marks of all segments.
func (r *recovery) survey() error {
	r.sizes, r.marks = make([]int64, len(r.f.bases)), make([]tally, len(r.f.bases))
	for i, base := range r.f.bases {
		info, err := r.l.fs.Stat(r.l.path(base, dataSuffix))
		if err != nil {
			return fmt.Errorf("stat segment: %w", err)
		}
		r.sizes[i] = info.Size()
		s := r.l.newSegment(base)
		if r.f.indexes[base] {
			if mark, ok := s.index.mark(r.sizes[i]); ok {
				r.marks[i] = mark
				r.safe = i
			}
		}
		r.l.mu.segments = append(r.l.mu.segments, s)
	}
	return nil
}

// segment recovers one segment. It is not intact when the log ends in it
// although there are files after it.
func (r *recovery) segment(i int) (intact bool, err error) {
	s, mark := r.l.mu.segments[i], r.marks[i]
	if mark.bytes > 0 {
		s.tally = mark
	}
	if s.bytes < r.sizes[i] {
		if err := r.scan(s, r.sizes[i]); err != nil {
			return false, err
		}
	}
	isLast := i == len(r.f.bases)-1
	whole := s.bytes == r.sizes[i]
	if !isLast && (!whole || s.next > r.f.bases[i+1]) && i < r.safe {
		// A segment after this one has been synced, so this one was whole once: it
		// is damaged, not torn. Cutting here would throw good data away.
		s.bytes, s.next = r.sizes[i], r.f.bases[i+1]
		s.synced = s.bytes
		return true, nil
	}
	if whole {
		s.synced = s.bytes
		return isLast || s.next == r.f.bases[i+1], nil
	}
	return false, r.cut(s)
}

// scan moves the segment's tally over the batches that are intact.
func (r *recovery) scan(s *segment, size int64) error {
	data, err := s.data.acquire()
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer s.data.release()
	scan := scanner{file: data, pos: s.bytes, limit: size}
	for {
		b, err := scan.batch()
		if err == io.EOF || errors.Is(err, ErrCorrupt) { //nolint:errorlint // batch returns it bare at the limit
			return nil
		}
		if err != nil {
			return err
		}
		if b.BaseOffset() != s.next { // outside the CRC
			return nil
		}
		s.add(b, int64(len(b)))
		s.crc = crc32.Update(s.crc, castagnoli, b)
		scan.skip(int64(len(b)))
	}
}

// cut truncates the file to what was recovered, durably: were a later append
// to survive a crash that the truncation did not, then old batches after it
// would look like part of the log.
func (r *recovery) cut(s *segment) error {
	data, err := s.data.acquire()
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer s.data.release()
	if err := data.Truncate(s.bytes); err != nil {
		return fmt.Errorf("cut torn segment: %w", err)
	}
	if err := data.Sync(); err != nil {
		return fmt.Errorf("sync segment: %w", err)
	}
	s.synced = s.bytes
	return nil
}

// removeAfter removes the files after the segment in which the log ends.
func (r *recovery) removeAfter(last int) error {
	for i := len(r.f.bases) - 1; i > last; i-- {
		s := r.l.mu.segments[i]
		s.data.drop()
		s.index.h.drop()
		if err := r.l.removeFile(r.f.bases[i], dataSuffix); err != nil {
			return fmt.Errorf("remove segment after a torn one: %w", err)
		}
		if err := r.l.removeFile(r.f.bases[i], indexSuffix); err != nil {
			return err
		}
	}
	r.l.mu.segments = r.l.mu.segments[:last+1]
	return r.l.removeOthers(r.f.others)
}

func (l *Log) removeOthers(names []string) error {
	for _, name := range names {
		if err := l.fs.Remove(l.dir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove leftover: %w", err)
		}
	}
	return nil
}

// finish makes what was recovered durable, since all of it will be served,
// and prepares the last segment for appends.
func (r *recovery) finish() error {
	l := r.l
	if n := len(l.mu.segments); n > 0 {
		last := l.mu.segments[n-1]
		l.mu.start, l.mu.end = l.mu.segments[0].base, last.next
		for i := max(r.safe, 0); i < n; i++ {
			if err := l.mu.segments[i].data.sync(); err != nil {
				return fmt.Errorf("sync recovered segment: %w", err)
			}
		}
		if err := l.prepareLast(last); err != nil {
			return err
		}
	}
	l.mu.synced = l.mu.end
	if err := l.fs.SyncDir(l.dir); err != nil {
		return fmt.Errorf("sync log directory: %w", err)
	}
	return nil
}

// prepareLast brings the index of the segment that will be appended to up to
// its end. An index in the way of that is removed and made anew.
func (l *Log) prepareLast(s *segment) error {
	loaded, err := s.index.load(s.bytes)
	if err != nil {
		s.index.h.drop()
		s.index = newIndex(l.files.handle(l.fs, l.path(s.base, indexSuffix)), s.base)
		if err := l.removeFile(s.base, indexSuffix); err != nil {
			return fmt.Errorf("remove damaged index: %w", err)
		}
		loaded.exists, loaded.count, loaded.last = false, 0, 0
	}
	l.setIndex(s.index, loaded, nil)
	if err := l.catchUp(s); err != nil && !errors.Is(err, errIndex) && !errors.Is(err, ErrCorrupt) {
		return err
	}
	return nil
}

// OpenAt opens the log in dir as exactly what the manifest says: the last
// segment is cut to its size, files that the manifest does not name are
// removed. Segments whose files are absent or too short are returned, to be
// fetched with WriteSegment; the log is open and can be appended to, but a
// read there returns ErrMissing. Nothing is scanned; what is inside a file of
// the right size is for Verify to find out. That all of it is durable is
// believed too, as far as Synced is concerned, but the first Sync syncs every
// file, in case the manifest came from elsewhere.
func OpenAt(fsys vfs.FS, dir string, c Config, m Manifest) (*Log, []SegmentInfo, error) {
	if err := m.validate(); err != nil {
		return nil, nil, err
	}
	l := newLog(fsys, dir, c)
	f, err := l.list()
	if err != nil {
		return nil, nil, err
	}
	if err := l.restore(f, m); err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, l.Missing(), nil
}

func (l *Log) restore(f found, m Manifest) error {
	named := map[int64]bool{}
	for i, info := range m.Segments {
		named[info.Base] = true
		s := l.newSegment(info.Base)
		s.tally, s.synced, s.recheck = tallyOf(info), info.Bytes, true
		l.mu.segments = append(l.mu.segments, s)
		if err := l.restoreSegment(f, s, info, i == len(m.Segments)-1); err != nil {
			return err
		}
	}
	l.mu.start, l.mu.end, l.mu.synced = m.Start, m.End, m.End
	return l.removeUnnamed(f, named)
}

func (l *Log) restoreSegment(f found, s *segment, info SegmentInfo, last bool) error {
	whole, err := l.restoreStaged(f, s, info)
	if err != nil {
		return err
	}
	if whole {
		delete(f.indexes, s.base)
	}
	stat, err := l.fs.Stat(l.path(s.base, dataSuffix))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l.restoreMissing(f, s, info, last, 0)
	case err != nil:
		return fmt.Errorf("stat segment: %w", err)
	case stat.Size() < info.Bytes:
		return l.restoreMissing(f, s, info, last, stat.Size())
	case stat.Size() > info.Bytes && !last:
		return l.restoreOther(f, s, info)
	case stat.Size() > info.Bytes:
		if err := l.truncate(s, info.Bytes); err != nil {
			return fmt.Errorf("cut segment: %w", err)
		}
	}
	if !last {
		return nil // its index is looked at by the first read that needs it
	}
	if !f.indexes[s.base] && s.bytes < markBytes {
		s.index.ready = true
		return nil
	}
	return l.prepareLast(s)
}

// restoreOther prepares a closed segment to be fetched whose file is another one's: closed segments do not grow, so one that is larger was
// rewritten since, or not yet (a copy for a move that was made before its source was compacted).
func (l *Log) restoreOther(f found, s *segment, info SegmentInfo) error {
	s.data.drop()
	if err := l.fs.Rename(l.path(s.base, dataSuffix), l.path(s.base, staleSuffix)); err != nil {
		return fmt.Errorf("set another segment aside: %w", err)
	}
	if err := l.syncRenames(); err != nil {
		return err
	}
	return l.restoreMissing(f, s, info, false, 0)
}

func (l *Log) truncate(s *segment, size int64) error {
	data, err := s.data.acquire()
	if err != nil {
		return err
	}
	defer s.data.release()
	return data.Truncate(size)
}

// restoreMissing prepares a segment to be fetched. short is the size of the
// file that should have been longer, if there is one: its prefix is kept.
func (l *Log) restoreMissing(f found, s *segment, info SegmentInfo, last bool, short int64) error {
	if err := l.removeFile(s.base, indexSuffix); err != nil {
		return err
	}
	suffix, resume := partSuffix, int64(0)
	if last {
		suffix = fillSuffix
	}
	s.data.drop()
	switch {
	case short > 0:
		if err := l.fs.Rename(l.path(s.base, dataSuffix), l.path(s.base, suffix)); err != nil {
			return fmt.Errorf("set short segment aside: %w", err)
		}
		if err := l.syncRenames(); err != nil {
			return err
		}
		resume = short
	case f.parts[s.base]:
		n, err := l.adoptPart(s.base, suffix)
		if err != nil {
			return err
		}
		resume = n
	case f.fills[s.base]:
		n, err := l.adoptFill(s.base, suffix)
		if err != nil {
			return err
		}
		resume = n
	}
	s.data = l.files.handle(l.fs, l.path(s.base, suffix))
	l.setMissing(s, info, resume)
	return nil
}

// adoptPart gives what an earlier fetch left the suffix it has now.
func (l *Log) adoptPart(base int64, suffix string) (int64, error) {
	if suffix != partSuffix {
		if err := l.fs.Rename(l.path(base, partSuffix), l.path(base, suffix)); err != nil {
			return 0, fmt.Errorf("take up partial segment: %w", err)
		}
	}
	stat, err := l.fs.Stat(l.path(base, suffix))
	if err != nil {
		return 0, fmt.Errorf("stat partial segment: %w", err)
	}
	return stat.Size(), nil
}

// adoptFill is adoptPart for a file that was appended to while it was fetched: only what its mark counts is kept. The mark stays while the file has its
// name, and is removed with what else was left when it gets another.
func (l *Log) adoptFill(base int64, suffix string) (int64, error) {
	mark, err := vfs.ReadFile(l.fs, l.path(base, fillMarkSuffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read mark of partial segment: %w", err)
	}
	stat, err := l.fs.Stat(l.path(base, fillSuffix))
	filled := decodeFillMark(mark)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && (filled == 0 || stat.Size() < filled):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("stat partial segment: %w", err)
	}
	old := l.files.handle(l.fs, l.path(base, fillSuffix))
	defer old.drop()
	file, err := old.acquire()
	if err != nil {
		return 0, fmt.Errorf("open partial segment: %w", err)
	}
	defer old.release()
	if err := file.Truncate(filled); err != nil {
		return 0, fmt.Errorf("cut partial segment: %w", err)
	}
	if suffix != fillSuffix {
		if err := old.rename(l.path(base, suffix)); err != nil {
			return 0, fmt.Errorf("take up partial segment: %w", err)
		}
	}
	return filled, nil
}

func (l *Log) setMissing(s *segment, want SegmentInfo, resume int64) {
	s.index.off = true
	s.recheck = false // there is no file yet; Commit syncs what is fetched
	s.missing = &missingPart{want: want, resume: min(resume, want.Bytes), created: resume > 0}
}

// resumed tells whether a file is one that is filled further, or its mark.
func (l *Log) resumed(name string) bool {
	base, suffix, _ := parseName(name)
	if suffix != fillSuffix && suffix != fillMarkSuffix {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, s := l.segmentLocked(base)
	return s != nil && s.base == base && s.missing != nil && s.missing.resume > 0 && s.data.path == l.path(base, fillSuffix)
}

// removeUnnamed removes the files of segments that are not in named, and what
// was left unfinished.
func (l *Log) removeUnnamed(f found, named map[int64]bool) error {
	gone := slices.DeleteFunc(f.others, l.resumed)
	for _, base := range f.bases {
		if !named[base] {
			gone = append(gone, fileName(base, dataSuffix))
		}
	}
	for name := range f.staged { // those that are whole stay: the swap that names them may be replayed
		if _, suffix, _ := parseName(name); !strings.HasSuffix(suffix, stagedSuffix) {
			gone = append(gone, name)
		}
	}
	for base := range f.indexes {
		if !named[base] {
			gone = append(gone, fileName(base, indexSuffix))
		}
	}
	for base := range f.parts {
		if !named[base] {
			gone = append(gone, fileName(base, partSuffix))
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := l.removeOthers(gone); err != nil {
		return err
	}
	return l.fs.SyncDir(l.dir)
}
