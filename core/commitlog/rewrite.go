package commitlog

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"sluice/core/record"
	"sluice/core/vfs"
)

const (
	// keysMax is how many keys one rewriting remembers: 50 MiB of memory at most while it runs. Where the dirty part of a log has more, a round
	// ends there and the next goes on.
	keysMax = 1 << 20
	// rewriteBytes is read and written at a time.
	rewriteBytes = 256 << 10
)

// keyHash is what is remembered of a key. Keys come from strangers, who could make any weaker hash collide and so have each other's records dropped.
type keyHash [16]byte

func hashKey(key []byte) (h keyHash) {
	sum := sha256.Sum256(key)
	copy(h[:], sum[:])
	return h
}

// RewriteOptions say what Rewrite does.
type RewriteOptions struct {
	// Dirty is the first offset that was never compacted, Limit the offset below which whole segments may be rewritten.
	Dirty, Limit int64
	// NowMs is the wall clock. A tombstone that is kept for the first time goes DeleteRetentionMs after it (KIP-534).
	NowMs, DeleteRetentionMs int64
	// LastOf returns the offset of the last record of a producer that is still known, -1 for others. The batch with that offset is kept without
	// records when all of them go. Nil: no producer is known.
	LastOf func(producer int64) int64
	// Pace is called with what was read or written since the last call. It may wait, and its error ends the rewriting. Nil: nothing waits.
	Pace func(n int) error

	keys int // keysMax, but in tests
}

// SwapGroup is a run of segments and the one that takes their place.
type SwapGroup struct {
	Old []SegmentInfo
	New SegmentInfo // zero when nothing is left
}

// Rewritten is what Rewrite has made. Nothing of it is part of the log before Swap.
type Rewritten struct {
	Groups []SwapGroup
	// Dirty is the first offset after those whose keys were looked at.
	Dirty int64
	// BytesBefore and BytesAfter count all that was looked at, with what stays as it is; RecordsLost are those that are dropped.
	BytesBefore, BytesAfter, RecordsLost int64
}

// Rewrite reads the segments from the start of the log up to a limit and writes those that hold records whose key occurs again later without these
// records, under names that no recovery takes for segments. Neighbours are merged as long as they fit into one segment. The last segment is never touched.
// What it has read was compared with its checksums. What it returns is whole and synced.
//
// Records without a key go, as in Kafka. Transactional and control batches stay as they are. It must not run beside itself or DropStaged on one log.
func (l *Log) Rewrite(o RewriteOptions) (*Rewritten, error) {
	if o.keys == 0 {
		o.keys = keysMax
	}
	if o.Pace == nil {
		o.Pace = func(int) error { return nil }
	}
	if o.LastOf == nil {
		o.LastOf = func(int64) int64 { return -1 }
	}
	r := &rewriting{l: l, o: o, config: l.config(), table: make(map[keyHash]int64), out: &Rewritten{}}
	if err := r.run(); err != nil {
		r.abandon()
		return nil, fmt.Errorf("rewrite log: %w", err)
	}
	return r.out, nil
}

type rewriting struct {
	l      *Log
	o      RewriteOptions
	config Config
	start  int64
	table  map[keyHash]int64 // the last offset of each key in the dirty part
	upto   int64             // the first offset that is not in the table
	out    *Rewritten

	group   SwapGroup // being written
	changed bool      // its records are not all there
	w       *stagedFile
	scratch []byte
	unpaced int // bytes written since the last call of Pace
	// opaque: a batch has been passed that may hold any key and is kept as it is. Tombstones behind it stay: they may be for its records.
	opaque bool
}

func (r *rewriting) run() error {
	segments := r.closed()
	if err := r.remember(segments); err != nil {
		return err
	}
	r.out.Dirty = r.upto
	for _, s := range segments {
		if s.info.Base >= r.upto {
			break
		}
		if err := r.segment(s); err != nil {
			return err
		}
	}
	if err := r.endGroup(); err != nil {
		return err
	}
	return r.l.fs.SyncDir(r.l.dir)
}

// source is a segment that is read.
type source struct {
	s    *segment
	info SegmentInfo
}

// closed returns the segments that may be rewritten.
func (r *rewriting) closed() []source {
	l := r.l
	l.mu.Lock()
	defer l.mu.Unlock()
	r.start = l.mu.start
	r.upto = max(r.o.Dirty, r.start)
	var list []source
	for i, s := range l.mu.segments {
		if i == len(l.mu.segments)-1 || s.next > r.o.Limit || s.missing != nil {
			break
		}
		list = append(list, source{s, s.info(s.base)})
	}
	return list
}

var errTableFull = errors.New("table of keys is full")

// remember fills the table from the dirty part.
func (r *rewriting) remember(segments []source) error {
	for _, s := range segments {
		if s.info.Next <= r.upto {
			continue
		}
		err := r.read(s, func(b record.Batch) error { return r.rememberBatch(b) })
		if errors.Is(err, errTableFull) {
			return nil
		}
		if err != nil {
			return err
		}
		r.upto = s.info.Next
	}
	return nil
}

func (r *rewriting) rememberBatch(b record.Batch) error {
	if b.NextOffset() <= r.upto {
		return nil
	}
	if !filterable(b) || b.Each(func(record.Record) error { return nil }) != nil { // what cannot be read stands for no key
		r.upto = b.NextOffset()
		return nil
	}
	err := b.Each(func(rec record.Record) error {
		offset := b.BaseOffset() + int64(rec.OffsetDelta)
		if offset < r.upto || rec.Key == nil {
			return nil
		}
		h := hashKey(rec.Key)
		if _, ok := r.table[h]; !ok && len(r.table) >= r.o.keys {
			r.upto = offset
			return errTableFull
		}
		r.table[h] = offset
		return nil
	})
	if err != nil {
		return err
	}
	r.upto = b.NextOffset()
	return nil
}

// filterable tells whether records of a batch may be dropped.
func filterable(b record.Batch) bool { return !b.IsControl() && !b.IsTransactional() && b.Count() > 0 }

// read calls fn for the batches of a segment and compares the file with its checksum.
func (r *rewriting) read(s source, fn func(record.Batch) error) error {
	file, err := s.s.data.acquire()
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer s.s.data.release()
	err = eachBatch(file, s.info, r.o.Pace, fn)
	if errors.Is(err, ErrCorrupt) && !r.l.gone(s.s) {
		r.l.suspect(s.info.Base, err)
	}
	return err
}

// eachBatch reads a segment's file from its beginning. The checksum of the whole is only compared when fn has returned nil for all batches; each batch is
// compared with its own before that.
func eachBatch(file vfs.File, info SegmentInfo, pace func(int) error, fn func(record.Batch) error) error {
	var (
		buf  []byte // what is read and not yet given to fn
		sum  uint32
		pos  int64
		want int64 = rewriteBytes
	)
	for pos < info.Bytes || len(buf) > 0 {
		n := min(max(want-int64(len(buf)), 0), info.Bytes-pos)
		have := len(buf)
		buf = append(buf, make([]byte, n)...)
		if err := readFull(file, buf[have:], pos); err != nil {
			return err
		}
		sum = crc32.Update(sum, castagnoli, buf[have:])
		pos += n
		if err := pace(int(n)); err != nil {
			return err
		}
		rest, err := takeBatches(file, buf, pos, fn)
		if err != nil {
			return err
		}
		if len(rest) > 0 && pos == info.Bytes {
			return fmt.Errorf("%w: %s ends within a batch", ErrCorrupt, file.Name())
		}
		want = rewriteBytes
		if size, err := record.Size(rest); err == nil {
			want = max(want, size)
		}
		buf = append(buf[:0], rest...)
	}
	if sum != info.CRC {
		return fmt.Errorf("%w: %s: CRC %08x, want %08x", ErrCorrupt, file.Name(), sum, info.CRC)
	}
	return nil
}

// takeBatches calls fn for the whole batches in buf, which ends at byte end of the file, and returns what is left.
func takeBatches(file vfs.File, buf []byte, end int64, fn func(record.Batch) error) (rest []byte, err error) {
	for rest = buf; len(rest) > 0; {
		b, after, err := record.Next(rest)
		if errors.Is(err, record.ErrShort) {
			return rest, nil
		}
		if err == nil {
			err = b.CheckCRC()
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s at byte %d: %w", ErrCorrupt, file.Name(), end-int64(len(rest)), err)
		}
		if err := fn(b); err != nil {
			return nil, err
		}
		rest = after
	}
	return nil, nil
}

// segment writes what is to be kept of one segment.
func (r *rewriting) segment(s source) error {
	if !r.fits(s.info) {
		if err := r.endGroup(); err != nil {
			return err
		}
	}
	if r.w == nil {
		w, err := r.l.createRewrite(s.info.Base)
		if err != nil {
			return err
		}
		r.w = w
	}
	r.group.Old = append(r.group.Old, s.info)
	return r.read(s, r.keepOf)
}

// fits tells whether a segment can be merged into the one that is being written, whatever is kept of it.
func (r *rewriting) fits(info SegmentInfo) bool {
	return r.w == nil || r.w.t.bytes+info.Bytes <= r.config.SegmentBytes && info.Next-1-r.w.base <= math.MaxInt32
}

// horizon is when tombstones go that are seen for the first time.
func (r *rewriting) horizon() int64 {
	if r.o.DeleteRetentionMs > math.MaxInt64-r.o.NowMs {
		return record.NoHorizon // never
	}
	return r.o.NowMs + r.o.DeleteRetentionMs
}

// keepOf writes what is kept of a batch.
func (r *rewriting) keepOf(b record.Batch) error {
	if !filterable(b) {
		if b.Count() == 0 && !r.isLast(b) && !b.IsControl() {
			r.changed = true
			return nil
		}
		r.opaque = r.opaque || b.IsTransactional() && !b.IsControl()
		return r.write(b)
	}
	horizon, old := b.DeleteHorizon()
	f, err := b.Filter(r.scratch[:0], r.horizon(), func(rec record.Record) bool {
		offset := b.BaseOffset() + int64(rec.OffsetDelta)
		switch {
		case offset >= r.upto:
			return true
		case rec.Key == nil, rec.Value == nil && old && horizon <= r.o.NowMs && !r.opaque:
			return false
		}
		last, ok := r.table[hashKey(rec.Key)]
		return !ok || offset >= last
	})
	if err != nil { // its checksum is right: it came like this, when nobody looked into it, and stays
		r.opaque = true
		return r.write(b)
	}
	if f.Same {
		return r.write(b)
	}
	r.changed = true
	r.out.RecordsLost += int64(f.Lost)
	if f.Batch == nil && r.isLast(b) {
		f.Batch = b.Emptied(r.scratch)
	}
	if f.Batch == nil {
		return nil
	}
	r.scratch = f.Batch[:0]
	return r.write(f.Batch)
}

// isLast tells whether the batch is what is left to tell a producer's last sequence.
func (r *rewriting) isLast(b record.Batch) bool {
	return b.ProducerID() >= 0 && r.o.LastOf(b.ProducerID()) == b.LastOffset()
}

func (r *rewriting) write(b record.Batch) error {
	if err := r.w.append(b); err != nil {
		return err
	}
	if r.unpaced += len(b); r.unpaced < rewriteBytes { // waits for single batches would be mostly the timer's
		return nil
	}
	n := r.unpaced
	r.unpaced = 0
	return r.o.Pace(n)
}

// endGroup finishes the segment that is being written. One that would take the place of its like is thrown away.
func (r *rewriting) endGroup() error {
	w, g := r.w, r.group
	if w == nil {
		return nil
	}
	r.w, r.group = nil, SwapGroup{}
	for _, old := range g.Old {
		r.out.BytesBefore += old.Bytes
	}
	r.out.BytesAfter += w.t.bytes
	changed := r.changed || len(g.Old) > 1
	r.changed = false
	if !changed || w.t.bytes == 0 {
		if err := w.discard(); err != nil {
			return err
		}
		if changed {
			r.out.Groups = append(r.out.Groups, g)
		}
		return nil
	}
	info, err := w.finish()
	if err != nil {
		return err
	}
	g.New = info
	r.out.Groups = append(r.out.Groups, g)
	return nil
}

// abandon removes what was written.
func (r *rewriting) abandon() {
	if r.w != nil {
		_ = r.w.discard() // the next rewriting, or the next opening, removes it
	}
	for _, g := range r.out.Groups {
		if g.New.Bytes > 0 {
			_ = r.l.fs.Remove(r.l.stagedPath(g.New))
		}
	}
}
