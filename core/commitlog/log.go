package commitlog

import (
	"fmt"
	"hash/crc32"
	"math"
	"path/filepath"
	"sort"
	"strconv"
	"sync"

	"sluice/core/record"
	"sluice/core/vfs"
)

// Suffixes of the files in a log's directory.
const (
	dataSuffix  = ".log"
	indexSuffix = ".slx"
	partSuffix  = ".log.part" // a closed segment being fetched: a prefix of it
	fillSuffix  = ".log.fill" // the last segment being fetched, and appended to meanwhile
	// fillMarkSuffix says how much of the .fill file is filled.
	fillMarkSuffix = ".log.filled"
	staleSuffix    = ".log.stale" // set aside by Adopt or Quarantine
	// repairSuffix is a copy of a damaged segment in the making.
	repairSuffix = ".log.repair"
)

// segment is one segment file and what is known of it.
type segment struct {
	base  int64
	data  *handle
	index *index

	// Guarded by Log.mu.
	tally
	synced  int64        // durable bytes
	recheck bool         // durable on the word of a manifest: the next Sync makes sure
	dropped bool         // no longer part of the log
	missing *missingPart // not nil until it has been fetched
	own     int64        // what lies from here on was appended by this process
	repair  *repairPart  // not nil when a copy of it has been begun

	// unsettled: its file has a name of its own, and the one that is called .log is what a crash may need. See SettleSwap.
	unsettled bool
}

// missingPart is what has to be fetched before a segment can be read.
type missingPart struct {
	want    SegmentInfo
	resume  int64 // bytes from the start that an earlier attempt left
	created bool  // the file to fill exists
	writing bool  // there is a SegmentWriter
}

// hint remembers where a read ended, for the next one from there.
type hint struct {
	offset   int64
	base     int64 // of the segment
	position int64
}

// hintsMax is how many readers of one log go on without an index look-up.
const hintsMax = 8

// Log is a commit log. Its methods may be called by several goroutines;
// Append, SetStart and Adopt wait for each other.
//
// Lock order: write, sync, index.io, mu, then those of Files. No I/O is done
// under mu.
type Log struct {
	fs    vfs.FS
	dir   string
	files *Files
	// scans is set by Open: the next Open takes the names in the directory for
	// true, so they must not become durable out of order.
	scans bool
	// epoch and damaged are Config's.
	epoch   func(offset int64) int32
	damaged func(base int64, err error)
	// fillSync is fillSyncBytes, but in tests.
	fillSync int64

	// write is held by whoever changes what the log consists of.
	write sync.Mutex
	moved bool // Adopt has renamed a file; guarded by write
	// sync is held while segments are made durable.
	sync  sync.Mutex
	dirty []dirtySegment // scratch of Sync, guarded by sync

	mu struct {
		sync.Mutex
		c        Config
		segments []*segment // ascending; the last is appended to
		start    int64
		end      int64
		synced   int64
		names    int64 // counts changes of names in dir
		named    int64 // of which these are durable
		hints    *[hintsMax]hint
		hintNext int
		err      error
		closed   bool
	}
}

// dirtySegment is a segment to be synced, as of the time Sync began.
type dirtySegment struct {
	s      *segment
	t      tally
	closed bool
}

func newLog(fsys vfs.FS, dir string, c Config) *Log {
	l := &Log{fs: fsys, dir: dir, files: c.Files, epoch: c.Epoch, damaged: c.Damaged, fillSync: fillSyncBytes}
	if l.files == nil {
		l.files = NewFiles(ownFiles)
	}
	c.Files, c.Epoch, c.Damaged = nil, nil, nil
	l.mu.c = c.withDefaults()
	return l
}

func (l *Log) path(base int64, suffix string) string {
	return filepath.Join(l.dir, fileName(base, suffix))
}

// fileName is Kafka's: the offset in 20 digits.
func fileName(base int64, suffix string) string {
	digits := strconv.FormatInt(base, 10)
	const zeros = "00000000000000000000"
	return zeros[len(digits):] + digits + suffix
}

func (l *Log) newSegment(base int64) *segment {
	return &segment{
		base:  base,
		own:   math.MaxInt64,
		tally: newTally(base),
		data:  l.files.handle(l.fs, l.path(base, dataSuffix)),
		index: newIndex(l.files.handle(l.fs, l.path(base, indexSuffix)), base),
	}
}

func (l *Log) config() Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.c
}

// Configure changes how segments are rolled from the next Append on. Replicas
// that must roll alike call it at the same place between Appends.
func (l *Log) Configure(c Config) {
	l.write.Lock()
	defer l.write.Unlock()
	c.Files, c.Epoch, c.Damaged = nil, nil, nil
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.c = c.withDefaults()
}

// Start returns the first offset that may be read.
func (l *Log) Start() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.start
}

// End returns the offset that the next record will have.
func (l *Log) End() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.end
}

// Synced returns the offset below which everything survives a crash.
func (l *Log) Synced() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.synced
}

// Bytes returns the size of all segments.
func (l *Log) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n int64
	for _, s := range l.mu.segments {
		n += s.bytes
	}
	return n
}

// Err returns the error that has stopped the log, if any.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.err
}

// Segments returns the segments that have bytes, ascending; the last is
// appended to. One that is missing appears as it will be.
func (l *Log) Segments() []SegmentInfo { return l.Manifest().Segments }

// Manifest returns what the log consists of, synced or not.
func (l *Log) Manifest() Manifest {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := Manifest{Start: l.mu.start, End: l.mu.end, Segments: make([]SegmentInfo, 0, len(l.mu.segments))}
	for _, s := range l.mu.segments {
		if s.bytes > 0 {
			m.Segments = append(m.Segments, s.info(s.base))
		}
	}
	return m
}

// Missing returns what has yet to be fetched with WriteSegment.
func (l *Log) Missing() []SegmentInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	var infos []SegmentInfo
	for _, s := range l.mu.segments {
		if s.missing != nil {
			infos = append(infos, s.missing.want)
		}
	}
	return infos
}

// fail stops the log with err, unless it has stopped already.
func (l *Log) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.err == nil {
		l.mu.err = err
	}
	return l.mu.err
}

func (l *Log) usable() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.closed {
		return ErrClosed
	}
	return l.mu.err
}

// Append writes sealed batches, one after the other in batches, and returns
// the offset of the first record. Each batch gets the offsets after the one
// before it, and leaderEpoch. The batches are not modified, nor kept. It is one write unless a
// segment ends within, and nothing is synced.
//
// Batches that cannot be taken apart are refused with record's errors and
// without effect; a CRC is not checked. An error of the file system stops the
// log.
func (l *Log) Append(batches []byte, leaderEpoch int32) (base int64, err error) {
	l.write.Lock()
	defer l.write.Unlock()
	buf := l.files.buffer()
	defer l.files.putBuffer(buf)
	*buf = append((*buf)[:0], batches...)
	return l.appendLocked(*buf, leaderEpoch)
}

// AppendInPlace is Append for a caller whose buffer may be written to: the
// offsets and the leader epoch are set in it, which spares a copy. It is not
// kept.
func (l *Log) AppendInPlace(batches []byte, leaderEpoch int32) (base int64, err error) {
	l.write.Lock()
	defer l.write.Unlock()
	return l.appendLocked(batches, leaderEpoch)
}

func (l *Log) appendLocked(batches []byte, leaderEpoch int32) (base int64, err error) {
	if err := l.usable(); err != nil {
		return 0, err
	}
	base = l.End()
	if err := stamp(batches, base, leaderEpoch); err != nil {
		return 0, err
	}
	for rest := batches; len(rest) > 0; {
		n, err := l.appendRun(rest)
		if err != nil {
			return 0, l.fail(err)
		}
		rest = rest[n:]
	}
	return base, nil
}

// stamp gives the batches their offsets and leader epoch.
func stamp(batches []byte, next int64, leaderEpoch int32) error {
	for rest := batches; len(rest) > 0; {
		var (
			b   record.Batch
			err error
		)
		if b, rest, err = record.Next(rest); err != nil {
			return fmt.Errorf("append: %w", err)
		}
		if b.LastOffsetDelta() < 0 {
			return fmt.Errorf("append: %w: last offset delta %d", record.ErrInvalid, b.LastOffsetDelta())
		}
		b.SetBaseOffset(next)
		b.SetLeaderEpoch(leaderEpoch)
		next = b.NextOffset()
	}
	return nil
}

// appendRun writes as many whole batches as belong in one segment and returns
// their size.
func (l *Log) appendRun(batches []byte) (int64, error) {
	s, err := l.segmentFor(batches)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	t, c := s.tally, l.mu.c
	l.mu.Unlock()
	run := batches[:fitting(s.base, t, c, batches)]
	file, err := l.openAppend(s)
	if err != nil {
		return 0, fmt.Errorf("append: open segment: %w", err)
	}
	defer s.data.release()
	if err := s.data.wrote(); err != nil {
		return 0, fmt.Errorf("append: segment was not synced: %w", err)
	}
	if _, err := file.WriteAt(run, t.bytes); err != nil {
		return 0, fmt.Errorf("append: write segment: %w", err)
	}
	l.publish(s, run, crc32.Update(t.crc, castagnoli, run))
	return int64(len(run)), nil
}

// fitting returns the size of the batches that go into the segment of tally
// t: the first in any case, the others until one has to be rolled.
func fitting(base int64, t tally, c Config, batches []byte) int64 {
	var n int64
	for rest := batches; len(rest) > 0; {
		b, after, err := record.Next(rest)
		if err != nil {
			panic("BUG: stamped batches do not parse: " + err.Error())
		}
		if n > 0 && mustRoll(base, t, c, b) {
			break
		}
		t.add(b, int64(len(b)))
		n += int64(len(b))
		rest = after
	}
	return n
}

// mustRoll decides as Kafka does, but by the data alone.
func mustRoll(base int64, t tally, c Config, b record.Batch) bool {
	switch {
	case t.bytes == 0:
		return false
	case t.bytes+int64(len(b)) > c.SegmentBytes:
		return true
	case b.LastOffset()-base > math.MaxInt32: // what an index entry holds, here and in Kafka
		return true
	}
	return t.firstTs >= 0 && b.MaxTimestamp() >= 0 && b.MaxTimestamp()-t.firstTs > c.SegmentMs
}

// segmentFor returns the segment that the first of the batches goes to: the
// last, or a new one.
func (l *Log) segmentFor(batches []byte) (*segment, error) {
	first, _, err := record.Next(batches)
	if err != nil {
		panic("BUG: stamped batches do not parse: " + err.Error())
	}
	l.mu.Lock()
	var s *segment
	if n := len(l.mu.segments); n > 0 {
		s = l.mu.segments[n-1]
	}
	fits := s != nil && !mustRoll(s.base, s.tally, l.mu.c, first)
	l.mu.Unlock()
	if fits {
		return s, nil
	}
	if s != nil {
		if err := l.endSegment(s); err != nil {
			return nil, err
		}
	}
	return l.roll()
}

// endSegment is called before a new segment follows s.
func (l *Log) endSegment(s *segment) error {
	l.flush(s.index)
	l.mu.Lock()
	dirty := 0
	for _, s := range l.mu.segments {
		if s.synced < s.bytes {
			dirty++
		}
	}
	l.mu.Unlock()
	if dirty <= dirtySegmentsMax {
		return nil
	}
	_, err := l.Sync()
	return err
}

// roll adds an empty segment at the end.
func (l *Log) roll() (*segment, error) {
	s := l.newSegment(l.End())
	s.index.ready = true
	if _, err := s.data.create(); err != nil {
		return nil, fmt.Errorf("create segment: %w", err)
	}
	s.data.release()
	l.mu.Lock()
	l.mu.names++
	names := l.mu.names
	l.mu.Unlock()
	if l.scans {
		if err := l.syncNames(names); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.segments = append(l.mu.segments, s)
	return s, nil
}

// openAppend returns the file to append to, which is made if the segment is
// one that is still to be filled.
func (l *Log) openAppend(s *segment) (vfs.File, error) {
	l.mu.Lock()
	create := s.missing != nil && !s.missing.created
	l.mu.Unlock()
	if !create {
		return s.data.acquire()
	}
	file, err := s.data.create()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.missing.created = true
	l.mu.names++
	return file, nil
}

// publish makes a written run readable.
func (l *Log) publish(s *segment, run []byte, crc uint32) {
	l.mu.Lock()
	indexed := s.missing == nil
	s.own = min(s.own, s.bytes)
	for rest := run; len(rest) > 0; {
		b, after, err := record.Next(rest)
		if err != nil {
			panic("BUG: stamped batches do not parse: " + err.Error())
		}
		if indexed {
			s.index.noteLocked(&s.tally, b.BaseOffset(), l.mu.c.IndexIntervalBytes)
		}
		s.add(b, int64(len(b)))
		rest = after
	}
	s.crc = crc
	l.mu.end = s.next
	full := len(s.index.pending) >= indexPendingMax
	l.mu.Unlock()
	if full {
		l.flush(s.index)
	}
}

// Sync makes everything appended before the call durable and returns the
// offset after it. Appends may go on meanwhile. After an error the log has
// stopped: what of the unsynced part survived is not known.
func (l *Log) Sync() (end int64, err error) {
	l.sync.Lock()
	defer l.sync.Unlock()
	if err := l.usable(); err != nil {
		return 0, err
	}
	end, names := l.captureDirty()
	for _, d := range l.dirty {
		if err := d.s.data.sync(); err != nil && !l.isDropped(d.s) {
			return 0, l.fail(fmt.Errorf("sync segment: %w", err))
		}
	}
	if err := l.syncNames(names); err != nil {
		return 0, l.fail(err)
	}
	l.markSynced(l.dirty)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settleLocked(l.dirty, end)
	clear(l.dirty)
	return end, nil
}

// settleLocked notes what has been made durable.
func (l *Log) settleLocked(dirty []dirtySegment, end int64) {
	for _, d := range dirty {
		d.s.synced, d.s.recheck = max(d.s.synced, d.t.bytes), false
	}
	l.mu.synced = max(l.mu.synced, end)
}

// markSynced writes how far segments are durable into their indexes.
func (l *Log) markSynced(dirty []dirtySegment) {
	for _, d := range dirty {
		if ahead := d.t.bytes - d.s.index.markPos; ahead >= markBytes || d.closed && ahead > 0 {
			l.writeMark(d.s.index, d.t, d.closed) // does nothing for an index that is not in use
		}
	}
}

// captureDirty fills l.dirty, oldest first.
func (l *Log) captureDirty() (end, names int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dirty = l.dirty[:0]
	for i, s := range l.mu.segments {
		if s.synced < s.bytes || s.recheck {
			l.dirty = append(l.dirty, dirtySegment{s: s, t: s.tally, closed: i < len(l.mu.segments)-1 && s.missing == nil})
		}
	}
	return l.mu.end, l.mu.names
}

func (l *Log) isDropped(s *segment) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return s.dropped
}

// syncNames makes the names of the directory durable as of names.
func (l *Log) syncNames(names int64) error {
	l.mu.Lock()
	done := l.mu.named >= names
	l.mu.Unlock()
	if done {
		return nil
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.named = max(l.mu.named, names)
	return nil
}

// findLocked returns the segment that has offset, or the first one after it.
func (l *Log) findLocked(offset int64) *segment {
	i := sort.Search(len(l.mu.segments), func(i int) bool { return l.mu.segments[i].next > offset })
	if i == len(l.mu.segments) {
		return nil
	}
	return l.mu.segments[i]
}

// Close lets go of the files. It does not sync: what Synced does not cover
// may be lost. Chunks stay readable until they are released.
func (l *Log) Close() error {
	l.write.Lock()
	defer l.write.Unlock()
	l.sync.Lock()
	defer l.sync.Unlock()
	l.mu.Lock()
	if l.mu.closed {
		l.mu.Unlock()
		return nil
	}
	l.mu.closed = true
	segments := l.mu.segments
	l.mu.Unlock()
	for i, s := range segments {
		l.flush(s.index)
		if t := s.tally; i == len(segments)-1 && s.synced == t.bytes && s.missing == nil && t.bytes-s.index.markPos >= markBytes/4 {
			l.writeMark(s.index, t, false)
		}
		s.data.drop()
		s.index.h.drop()
	}
	return nil
}
