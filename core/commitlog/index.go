package commitlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"sort"
	"sync"

	"sluice/core/record"
	"sluice/core/vfs"
)

// The layout of an index, `<base offset>.slx` (integers big-endian, CRCs
// CRC32C):
//
//	  0  "SLIX"
//	  4  uint8  version = 1, 3 bytes of zeros
//	  8  int64  base offset of the segment
//	 16  uint32 CRC of bytes 0 to 15, 12 bytes of zeros
//	 32  mark 0
//	 80  mark 1
//	128  entries, each 20 bytes
//
// A mark says: up to here the segment had been synced when this was written,
// and this is its tally. The two are written in turn, so that one is whole.
//
//	 0 int64 position, 8 int64 next offset, 16 int64 first timestamp, 24 int64 max timestamp,
//	32 int64 max timestamp offset, 40 uint32 CRC of the segment up to position, 44 uint32 CRC
//
// An entry says: at this position begins the batch with this offset, and the
// batches before it have this largest timestamp.
//
//	0 uint32 offset - base, 4 uint32 position, 8 int64 max timestamp before, 16 uint32 CRC
//
// The CRCs of marks and entries also cover the base offset.
const (
	indexMagic       = "SLIX"
	indexVersion     = 1
	indexHeaderBytes = 128
	indexFixedBytes  = 16
	markAt           = 32
	markSize         = 48
	entrySize        = 20
	// indexBlock is how many entries a search reads at once in the end.
	indexBlock = 128
)

// errIndex is returned when an index is not what it was written as.
var errIndex = errors.New("damaged index")

// entry is an index entry in memory.
type entry struct {
	offset   int64
	position int64
	maxTs    int64 // of the batches before position
}

// index is the sidecar of one segment.
type index struct {
	h    *handle
	base int64
	seed uint32 // CRC of base
	// io serialises creation and rebuilding of the file.
	io sync.Mutex

	// Guarded by Log.mu.
	ready    bool    // count is known
	off      bool    // given up until the log is opened again: look-ups scan
	count    int64   // entries in the file
	last     int64   // position of the last entry
	pending  []entry // not in the file yet
	markPos  int64   // position of the last mark written
	markSlot int64   // which is next
	exists   bool    // the file is there, with a header
	wrong    bool    // the file was found wrong: it is made anew before it is used
	rebuilds int     // how often that was
}

func newIndex(h *handle, base int64) *index {
	return &index{h: h, base: base, seed: crc32.Checksum(binary.BigEndian.AppendUint64(nil, uint64(base)), castagnoli)}
}

func (x *index) check(p []byte) uint32 { return crc32.Update(x.seed, castagnoli, p) }

func (x *index) appendEntry(dst []byte, e entry) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, uint32(e.offset-x.base))
	dst = binary.BigEndian.AppendUint32(dst, uint32(e.position))
	dst = binary.BigEndian.AppendUint64(dst, uint64(e.maxTs))
	return binary.BigEndian.AppendUint32(dst, x.check(dst[start:]))
}

func (x *index) parseEntry(p []byte) (entry, bool) {
	if x.check(p[:entrySize-4]) != binary.BigEndian.Uint32(p[entrySize-4:]) {
		return entry{}, false
	}
	return entry{
		offset:   x.base + int64(binary.BigEndian.Uint32(p)),
		position: int64(binary.BigEndian.Uint32(p[4:])),
		maxTs:    int64(binary.BigEndian.Uint64(p[8:])),
	}, true
}

func (x *index) appendMark(dst []byte, t tally) []byte {
	start := len(dst)
	for _, v := range [...]int64{t.bytes, t.next, t.firstTs, t.maxTs, t.maxTsOffset} {
		dst = binary.BigEndian.AppendUint64(dst, uint64(v))
	}
	dst = binary.BigEndian.AppendUint32(dst, t.crc)
	return binary.BigEndian.AppendUint32(dst, x.check(dst[start:]))
}

func (x *index) parseMark(p []byte) (tally, bool) {
	if x.check(p[:markSize-4]) != binary.BigEndian.Uint32(p[markSize-4:]) {
		return tally{}, false
	}
	at := func(i int) int64 { return int64(binary.BigEndian.Uint64(p[i*8:])) }
	t := tally{bytes: at(0), next: at(1), firstTs: at(2), maxTs: at(3), maxTsOffset: at(4), crc: binary.BigEndian.Uint32(p[40:])}
	return t, t.bytes > 0 && t.next > x.base
}

func (x *index) appendHeader(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, indexMagic...)
	dst = append(dst, indexVersion, 0, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, uint64(x.base))
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
	return append(dst, make([]byte, indexHeaderBytes-(len(dst)-start))...)
}

func (x *index) parseHeader(p []byte) bool {
	if len(p) < indexHeaderBytes || string(p[:4]) != indexMagic || p[4] != indexVersion {
		return false
	}
	return int64(binary.BigEndian.Uint64(p[8:])) == x.base &&
		binary.BigEndian.Uint32(p[indexFixedBytes:]) == crc32.Checksum(p[:indexFixedBytes], castagnoli)
}

// read returns the header and the size of the file. errIndex when it is not
// an index of this segment, fs.ErrNotExist when there is none.
func (x *index) read(file vfs.File) (header []byte, size int64, err error) {
	if size, err = file.Size(); err != nil {
		return nil, 0, err
	}
	header = make([]byte, indexHeaderBytes)
	if _, err := file.ReadAt(header, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	if size < indexHeaderBytes || !x.parseHeader(header) {
		return nil, 0, fmt.Errorf("%w: %s: header", errIndex, file.Name())
	}
	return header, size, nil
}

// mark returns the furthest mark at or below limit; ok is false when there is
// none that can be trusted, for whatever reason.
func (x *index) mark(limit int64) (t tally, ok bool) {
	file, err := x.h.acquire()
	if err != nil {
		return t, false
	}
	defer x.h.release()
	header, _, err := x.read(file)
	if err != nil {
		return t, false
	}
	for slot := range int64(2) {
		m, valid := x.parseMark(header[markAt+slot*markSize:][:markSize])
		if valid && m.bytes <= limit && m.bytes > t.bytes {
			t, ok = m, true
			x.markPos, x.markSlot = m.bytes, 1-slot
		}
	}
	return t, ok
}

// create makes the file with its header if there is none, and pins it.
func (x *index) create(exists bool) (vfs.File, error) {
	if exists {
		return x.h.acquire()
	}
	file, err := x.h.create()
	if err != nil {
		return nil, err
	}
	if _, err := file.WriteAt(x.appendHeader(nil), 0); err != nil {
		x.h.release()
		return nil, err
	}
	return file, nil
}

// search returns the last entry for which before is true, of entries for
// which it is true and then false; the zero position with offset base when
// there is none. errIndex when the file is damaged.
func (l *Log) search(x *index, before func(entry) bool) (entry, error) {
	none := entry{offset: x.base, maxTs: record.NoTimestamp}
	l.mu.Lock()
	count, pending := x.count, x.pending
	i := sort.Search(len(pending), func(i int) bool { return !before(pending[i]) })
	if i > 0 {
		none = pending[i-1]
		count = 0
	}
	l.mu.Unlock()
	if count == 0 {
		return none, nil
	}
	file, err := x.h.acquire()
	if err != nil {
		return none, err
	}
	defer x.h.release()
	return x.searchFile(file, count, none, before)
}

// searchFile narrows the entries down by probing, then reads a block.
func (x *index) searchFile(file vfs.File, count int64, none entry, before func(entry) bool) (entry, error) {
	buf := x.h.files.buffer()
	defer x.h.files.putBuffer(buf)
	lo, hi := int64(0), count // the first entry that is not before is in [lo, hi]
	for hi-lo > indexBlock {
		mid := lo + (hi-lo)/2
		block, err := x.readEntries(file, buf, mid, 1)
		if err != nil {
			return none, err
		}
		e, ok := x.parseEntry(block)
		if !ok {
			return none, fmt.Errorf("%w: %s: entry %d", errIndex, file.Name(), mid)
		}
		if before(e) {
			lo = mid
		} else {
			hi = mid
		}
	}
	block, err := x.readEntries(file, buf, lo, hi-lo)
	if err != nil {
		return none, err
	}
	for i := lo; i < hi; i++ {
		e, ok := x.parseEntry(block[(i-lo)*entrySize:][:entrySize])
		if !ok {
			return none, fmt.Errorf("%w: %s: entry %d", errIndex, file.Name(), i)
		}
		if !before(e) {
			break
		}
		none = e
	}
	return none, nil
}

func (x *index) readEntries(file vfs.File, buf *[]byte, first, n int64) ([]byte, error) {
	if int64(cap(*buf)) < n*entrySize {
		*buf = make([]byte, indexBlock*entrySize)
	}
	block := (*buf)[:n*entrySize]
	if _, err := file.ReadAt(block, indexHeaderBytes+first*entrySize); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: %s: ends before entry %d", errIndex, file.Name(), first+n-1)
		}
		return nil, err
	}
	return block, nil
}

// noteLocked adds an entry for the batch that begins where t ends, if the last
// one is far enough back. Called with Log.mu.
func (x *index) noteLocked(t *tally, offset, interval int64) {
	if !x.off && t.bytes-x.last >= interval {
		x.pending = append(x.pending, entry{offset: offset, position: t.bytes, maxTs: t.maxTs})
		x.last = t.bytes
	}
}

// flush writes the pending entries. Only the holder of Log.write calls it. An
// index that cannot be written is given up, not the log.
func (l *Log) flush(x *index) {
	l.mu.Lock()
	pending, at := x.pending, indexHeaderBytes+x.count*entrySize
	l.mu.Unlock()
	if len(pending) == 0 {
		return
	}
	buf := l.files.buffer()
	defer l.files.putBuffer(buf)
	block := (*buf)[:0]
	for _, e := range pending {
		block = x.appendEntry(block, e)
	}
	*buf = block
	err := l.writeIndex(x, block, at)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		x.giveUpLocked()
		return
	}
	x.count += int64(len(pending))
	if cap(x.pending) > indexPendingMax {
		x.pending = nil // after one large append: do not keep its memory
	} else {
		x.pending = x.pending[:0]
	}
}

func (x *index) giveUpLocked() {
	x.off, x.count, x.pending = true, 0, nil
}

// writeIndex writes to the file, which it makes first if there is none.
func (l *Log) writeIndex(x *index, p []byte, at int64) error {
	x.io.Lock() // Append and Sync may both be the first
	defer x.io.Unlock()
	l.mu.Lock()
	exists := x.exists
	l.mu.Unlock()
	file, err := x.create(exists)
	if err != nil {
		return err
	}
	defer x.h.release()
	l.mu.Lock()
	x.exists = true
	l.mu.Unlock()
	_, err = file.WriteAt(p, at)
	return err
}

// writeMark notes in the index that the segment is durable up to t. Only the
// holder of Log.sync calls it. With seal, the index is made durable too.
func (l *Log) writeMark(x *index, t tally, seal bool) {
	l.mu.Lock()
	unused, slot := x.off || !x.ready, x.markSlot
	l.mu.Unlock()
	if unused {
		return
	}
	err := l.writeIndex(x, x.appendMark(nil, t), markAt+slot*markSize)
	if err == nil && seal {
		err = x.h.sync()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		x.giveUpLocked()
		return
	}
	x.markPos, x.markSlot = t.bytes, 1-slot
}

// loaded is what load found.
type loaded struct {
	exists bool
	count  int64
	last   int64
}

// load reads how much of the file is good for a segment of limit bytes: the
// entries up to the last one that is whole and within. What follows it is cut
// off, and the marks beyond limit are overwritten, durably, so that nothing
// written for bytes that are gone can ever be taken for true.
// The caller holds x.io or has the log to itself.
func (x *index) load(limit int64) (found loaded, err error) {
	file, err := x.h.acquire()
	if errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	if err != nil {
		return found, err
	}
	defer x.h.release()
	header, size, err := x.read(file)
	if err != nil {
		return found, err
	}
	found.exists = true
	found.count, found.last, err = x.lastEntry(file, (size-indexHeaderBytes)/entrySize, limit)
	if err != nil {
		return found, err
	}
	return found, x.cut(file, header, size, indexHeaderBytes+found.count*entrySize, limit)
}

// cut removes what load found to be stale.
func (x *index) cut(file vfs.File, header []byte, size, goodSize, limit int64) error {
	stale := size != goodSize
	if stale {
		if err := file.Truncate(goodSize); err != nil {
			return err
		}
	}
	for slot := range int64(2) {
		if m, ok := x.parseMark(header[markAt+slot*markSize:][:markSize]); ok && m.bytes > limit {
			stale = true
			if _, err := file.WriteAt(make([]byte, markSize), markAt+slot*markSize); err != nil {
				return err
			}
		}
	}
	if !stale {
		return nil
	}
	return file.Sync()
}

// lastEntry walks back from entry n-1 to one that is whole and within limit.
func (x *index) lastEntry(file vfs.File, n, limit int64) (count, last int64, err error) {
	buf := x.h.files.buffer()
	defer x.h.files.putBuffer(buf)
	for n > 0 {
		first := max(0, n-indexBlock)
		block, err := x.readEntries(file, buf, first, n-first)
		if err != nil {
			return 0, 0, err
		}
		for ; n > first; n-- {
			e, ok := x.parseEntry(block[(n-1-first)*entrySize:][:entrySize])
			if ok && e.position < limit {
				return n, e.position, nil
			}
		}
	}
	return 0, 0, nil
}
