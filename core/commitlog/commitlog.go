// Package commitlog is a segmented log of sealed record batches on disk.
//
// A log is a directory of segment files, `<base offset>.log`, byte for byte
// what Kafka writes: v2 batches, one after the other, and nothing else. Append
// assigns offsets and writes, Sync makes durable, Read hands out ranges of
// files that can be sent without copying. Beside a segment may lie an index,
// `<base offset>.slx`; it only makes things fast, and is rebuilt when it is
// absent or wrong (FORMAT.md).
//
// Guarantees:
//   - What is between Start and End is never changed. One goroutine may
//     append while any number read, look up, sync and trim.
//   - After Sync returned n, everything below n survives a crash. Open finds
//     at least that; OpenAt restores exactly what a Manifest says.
//   - When segments are rolled depends on nothing but the configuration and
//     the batches, so replicas that append the same have the same files.
//   - The cost of opening does not grow with the bytes in the log.
//   - After a failed write or sync the log stops: every further Append and
//     Sync returns that error. What was readable stays readable.
//
// It starts no goroutines, has no clock, and does not know of producers,
// transactions or replicas. DESIGN.md says why it is as it is.
package commitlog

import (
	"errors"
	"fmt"
	"math"
)

// Errors of a Log.
var (
	// ErrOutOfRange is returned by Read for an offset below Start or above End.
	ErrOutOfRange = errors.New("offset out of range")
	// ErrMissing is returned when the data asked for has yet to be fetched
	// with WriteSegment.
	ErrMissing = errors.New("segment is missing")
	// ErrCorrupt is returned when a file does not contain what was written.
	ErrCorrupt = errors.New("corrupt segment")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("log is closed")
	// ErrManifest is returned for a manifest that contradicts itself.
	ErrManifest = errors.New("inconsistent manifest")
)

// Defaults and bounds.
const (
	defaultSegmentBytes  = 1 << 30
	defaultSegmentMs     = 7 * 24 * 3600 * 1000
	defaultIndexInterval = 4096

	// segmentBytesMax keeps positions of batch starts within the 32 bits an
	// index entry has for them.
	segmentBytesMax = math.MaxInt32
	// indexPendingMax is how many index entries wait in memory to be written
	// together: 1.5 KB.
	indexPendingMax = 64
	// markBytes is how far data may be synced beyond the last mark in the
	// index: what Open scans at most after a clean stop.
	markBytes = 256 << 10
	// dirtySegmentsMax is how many rolled segments may wait for Sync. One
	// more, and Append syncs.
	dirtySegmentsMax = 4
	// bufferKeptMax is the largest buffer kept for the next use.
	bufferKeptMax = 1 << 20
)

// Config says how a log is cut into segments; zero values mean the default.
type Config struct {
	SegmentBytes       int64 // 1 GiB; a larger single batch gets a segment of its own
	SegmentMs          int64 // 7 days, between a segment's first and last batch, by their timestamps
	IndexIntervalBytes int64 // 4096
	// Gaps says that offsets may be missing, as compaction leaves them. Otherwise a gap is damage.
	Gaps bool
	// Only Open looks at the rest.
	Files *Files // shared by all logs of a process; nil: a small one of its own
	// Epoch returns the leader epoch that the batch at an offset should have, -1 when it is not known; nil: it never is.
	// A batch's CRC does not cover it.
	Epoch func(offset int64) int32
	// Damaged is told of each read that found a segment damaged; it must not call the log. Nil: nobody is told.
	Damaged func(base int64, err error)
}

func (c Config) withDefaults() Config {
	if c.SegmentBytes <= 0 {
		c.SegmentBytes = defaultSegmentBytes
	}
	c.SegmentBytes = min(c.SegmentBytes, segmentBytesMax)
	if c.SegmentMs <= 0 {
		c.SegmentMs = defaultSegmentMs
	}
	if c.IndexIntervalBytes <= 0 {
		c.IndexIntervalBytes = defaultIndexInterval
	}
	return c
}

// SegmentInfo describes a segment file. Timestamps are in milliseconds.
type SegmentInfo struct {
	Base  int64 `cbor:"1,keyasint"` // offset of the first batch, names the file
	Next  int64 `cbor:"2,keyasint"` // offset after the last batch
	Bytes int64 `cbor:"3,keyasint"`
	// FirstTimestamp is the first batch's largest timestamp: rolling by time
	// counts from it.
	FirstTimestamp     int64  `cbor:"4,keyasint"`
	MaxTimestamp       int64  `cbor:"5,keyasint"`
	MaxTimestampOffset int64  `cbor:"6,keyasint"` // last offset of the first batch with it
	CRC                uint32 `cbor:"7,keyasint"` // CRC32C of the first Bytes bytes of the file
}

// Manifest says what a log consists of.
type Manifest struct {
	Start    int64         `cbor:"1,keyasint"`
	End      int64         `cbor:"2,keyasint"`
	Segments []SegmentInfo `cbor:"3,keyasint,omitempty"` // those with bytes, ascending; the last is appended to
}

func (m Manifest) validate() error {
	next := int64(0)
	for i, s := range m.Segments {
		if s.Base < next || s.Next <= s.Base || s.Bytes <= 0 {
			return fmt.Errorf("%w: segment %d: base %d, next %d, %d bytes", ErrManifest, i, s.Base, s.Next, s.Bytes)
		}
		next = s.Next
	}
	if m.Start < 0 || m.Start > m.End || next > m.End {
		return fmt.Errorf("%w: start %d, end %d, segments to %d", ErrManifest, m.Start, m.End, next)
	}
	return nil
}
