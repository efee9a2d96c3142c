// Package raftlog keeps the log, the term and the vote of one Raft replica on disk: it is the
// raft.LogStore and raft.StableStore of package shard.
//
// It guarantees that what a call stored is synced before the call returns, with one fdatasync for
// all entries of a call; that after a crash everything synced is read again, entries exactly as
// they were, and nothing that was truncated comes back; that damage of what had been synced is
// reported as [ErrDamaged] and never mistaken for the end of the log; and that after the first
// error of any call no further write is tried.
//
// It does not share files between replicas, and it does not repair: a damaged log is given up and
// its replica joins again. FORMAT.md has the bytes, DESIGN.md the reasons.
package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/vfs"
)

const (
	// MaxEntryBytes is the largest data (with extensions) of an entry. Larger ones are refused.
	MaxEntryBytes = 16 << 20
	// maxPayloadBytes is what recovery accepts as the length of a record.
	maxPayloadBytes = MaxEntryBytes + entryHeaderBytes

	// recycleMax files that were dropped are kept to be written again: as many as a checkpoint drops at once.
	recycleMax = 4
	// defaultFirstSegmentBytes is the first file's size: small, because there are many small logs.
	defaultFirstSegmentBytes = 1 << 20
	// defaultSegmentBytes is what files grow to, doubling: large enough that a new one is rare,
	// small enough that a checkpoint frees space soon.
	defaultSegmentBytes = 32 << 20
	// defaultCacheBytes holds what followers in sync and the state machine read back: some tens of
	// milliseconds of log.
	defaultCacheBytes = 8 << 20
	// stagingBytes is gathered before it is written; larger entries are written from where they are.
	stagingBytes = 256 << 10
)

var (
	// ErrDamaged is returned by Open, and latched by reads, when something that had been synced is
	// missing or altered.
	ErrDamaged = errors.New("raft log is damaged")
	// ErrTooLarge is returned when an entry is larger than MaxEntryBytes.
	ErrTooLarge = errors.New("raft log entry is too large")
	// ErrClosed is returned by calls after Close.
	ErrClosed = errors.New("raft log is closed")
)

// Options configure a Store. The zero value is good.
type Options struct {
	// FirstSegmentBytes is the size of the first file (0: 1 MiB); each later one is twice as large
	// as the one before, up to SegmentBytes (0: 32 MiB).
	FirstSegmentBytes, SegmentBytes int64
	// CacheBytes bounds the entries kept in memory (0: 8 MiB).
	CacheBytes int64
	// Durable is what Durable said of the Store that had this log open before in this process and failed; 0: nothing is
	// known. A sync that failed may leave records in the system's memory that are not on the disk and never will be: they
	// read as if they were there. Nothing behind Durable is believed then, and the file that holds it is not written to
	// again.
	Durable uint64
	// Observe is called after every write that was synced, with the time that writing and syncing
	// took and the bytes written. It must not block. Nil: nobody is told.
	Observe func(took time.Duration, bytes int64)
	// Logger gets what a person should know; nil discards it.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.FirstSegmentBytes <= 0 {
		o.FirstSegmentBytes = defaultFirstSegmentBytes
	}
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = defaultCacheBytes
	}
	if o.Observe == nil {
		o.Observe = func(time.Duration, int64) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Store is the log of one replica. Its methods may be called concurrently.
type Store struct {
	fs   vfs.FS
	dir  string
	o    Options
	born time.Time

	// writeSince is when the write that runs began, in ns after born; 0 when none runs.
	writeSince atomic.Int64
	failed     chan struct{}
	want       chan struct{} // a spare file is wanted

	// write is owned by whoever holds its mutex, which is held during syncs. It is locked before mu.
	write struct {
		sync.Mutex
		pos        position // of the next record
		stagedVote uint64   // LastVoteTerm waiting for its LastVoteCand
		fresh      bool     // the next record goes into a new file
		buf        []byte
	}
	// mu guards what readers see. It is never held during a call of the file system.
	mu struct {
		sync.Mutex
		err      error // the latch
		state    state
		segments []*segment // the last one is written to
		cache    cache
		spare    *segment
		recycle  []*segment // dropped, to become the next spares; recycleMax at most
		nextLife uint64
		newest   uint64 // life of the newest file, which may be on its way to its first sync
		closed   bool
	}
}

var (
	_ raft.LogStore          = (*Store)(nil)
	_ raft.StableStore       = (*Store)(nil)
	_ raft.MonotonicLogStore = (*Store)(nil)
)

// Open recovers the log in dir, or creates it. Nothing runs in the background until Run. It returns
// an error wrapping ErrDamaged when the replica must be given up.
func Open(fs vfs.FS, dir string, o Options) (*Store, error) {
	s := &Store{
		fs: fs, dir: dir, o: o.withDefaults(), born: time.Now(),
		failed: make(chan struct{}), want: make(chan struct{}, 1),
	}
	s.mu.cache.limit = s.o.CacheBytes
	if err := s.recover(); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("open raft log %s: %w", dir, err)
	}
	return s, nil
}

// IsMonotonic tells Raft that entries have no gaps: after a restored checkpoint it deletes the
// whole log.
func (s *Store) IsMonotonic() bool { return true }

// Failed is closed when the first error was latched.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Err returns the latched error. All writes return it from then on.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.err
}

// Busy returns how long the write that runs now has been running, 0 when none does.
func (s *Store) Busy() time.Duration {
	since := s.writeSince.Load()
	if since == 0 {
		return 0
	}
	return time.Since(s.born) - time.Duration(since)
}

// Durable returns the sequence number of the last record that is known to be synced.
func (s *Store) Durable() uint64 {
	s.write.Lock()
	defer s.write.Unlock()
	return s.write.pos.seq - 1
}

// latch keeps the first error and returns it wrapped, for all callers alike.
func (s *Store) latch(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.err == nil {
		s.mu.err = err
		close(s.failed)
	}
	return s.mu.err
}

// Close releases the files. A write that runs is waited for. It may be called more than once.
func (s *Store) Close() error {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.Lock()
	done := s.mu.closed
	s.mu.closed = true
	s.mu.Unlock()
	if done {
		return nil
	}
	return s.closeFiles()
}

func (s *Store) closeFiles() error {
	s.mu.Lock()
	segments := append([]*segment{}, s.mu.segments...)
	if s.mu.spare != nil {
		segments = append(segments, s.mu.spare)
	}
	if len(s.mu.recycle) > 0 {
		segments = append(segments, s.mu.recycle...)
	}
	s.mu.segments, s.mu.spare, s.mu.recycle = nil, nil, nil
	s.mu.Unlock()
	var first error
	for _, g := range segments {
		if err := g.file.Close(); err != nil && first == nil {
			first = fmt.Errorf("close raft log: %w", err)
		}
	}
	return first
}

// usableLocked returns the reason why nothing may be done any more.
func (s *Store) usableLocked() error {
	if s.mu.closed {
		return ErrClosed
	}
	return s.mu.err
}
