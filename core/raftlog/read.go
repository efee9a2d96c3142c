package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

func putUint32(b []byte, v uint32) { binary.LittleEndian.PutUint32(b, v) }

// FirstIndex returns the index of the oldest entry, 0 if there is none.
func (s *Store) FirstIndex() (uint64, error) { return s.snapshot().first, nil }

// LastIndex returns the index of the newest synced entry, 0 if there is none.
func (s *Store) LastIndex() (uint64, error) { return s.snapshot().last, nil }

// GetLog fills l with an entry. It returns raft.ErrLogNotFound, bare as Raft compares it, for an
// entry that the log does not hold, and an error wrapping ErrDamaged for one that cannot be read
// as it was written; that one is latched. The data may be shared and must not be changed.
func (s *Store) GetLog(index uint64, l *raft.Log) error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	if index == 0 || index < s.mu.state.first || index > s.mu.state.last {
		s.mu.Unlock()
		return raft.ErrLogNotFound
	}
	if s.mu.cache.get(index, l) {
		s.mu.Unlock()
		return nil
	}
	g := s.segmentOfLocked(index)
	off, end := g.offset(index), g.bound(index)
	g.readers++
	s.mu.Unlock()
	defer s.release(g)
	if err := readEntry(g, off, end, index, l); err != nil {
		return s.latch(err)
	}
	return nil
}

// GetHead is GetLog for who wants to know what an entry is, and not pay for its data: an entry that is not in memory is returned
// without Data and Extensions, and unchecked. whole tells whether they are there.
func (s *Store) GetHead(index uint64, l *raft.Log) (whole bool, err error) {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return false, ErrClosed
	}
	if index == 0 || index < s.mu.state.first || index > s.mu.state.last {
		s.mu.Unlock()
		return false, raft.ErrLogNotFound
	}
	if s.mu.cache.get(index, l) {
		s.mu.Unlock()
		return true, nil
	}
	g := s.segmentOfLocked(index)
	off := g.offset(index)
	g.readers++
	s.mu.Unlock()
	defer s.release(g)
	var b [recordHeaderBytes + entryHeaderBytes]byte
	if _, err := g.file.ReadAt(b[:], off); err != nil {
		return false, s.latch(fmt.Errorf("read raft log entry %d in %s at %d: %w", index, g.file.Name(), off, err))
	}
	h := decodeRecordHeader(b[:])
	clear(b[recordHeaderBytes+24:]) // no extensions: they are not here
	if err := decodeEntry(b[recordHeaderBytes:], h.raftType, l); err != nil || h.kind != kindEntry || l.Index != index {
		return false, s.latch(fmt.Errorf("read raft log entry %d in %s at %d: %w", index, g.file.Name(), off, ErrDamaged))
	}
	l.Data = nil
	return false, nil
}

func readEntry(g *segment, off, end int64, index uint64, l *raft.Log) error {
	b := make([]byte, min(end-off, recordSpace(maxPayloadBytes)))
	n, err := g.file.ReadAt(b, off)
	if n < len(b) && !errors.Is(err, io.EOF) { // a torn file may end before a record's padding
		return fmt.Errorf("read raft log entry %d in %s at %d: %w", index, g.file.Name(), off, err)
	}
	h, p, err := parseRecord(b[:n], g.life)
	if err == nil && h.kind == kindEntry {
		err = decodeEntry(p, h.raftType, l)
	}
	if err != nil || h.kind != kindEntry || l.Index != index {
		return fmt.Errorf("read raft log entry %d in %s at %d: %w", index, g.file.Name(), off, ErrDamaged)
	}
	return nil
}

// Span returns the bytes that the entries after index from up to index to occupy, as far as the log
// holds them.
func (s *Store) Span(from, to uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum int64
	for _, g := range s.mu.segments {
		if len(g.offsets) == 0 {
			continue
		}
		lo, hi := max(from+1, g.first), min(to, g.last())
		if lo <= hi {
			sum += g.bound(hi) - g.offset(lo)
		}
	}
	return sum
}

// Back returns the largest index so that the entries after it occupy at least that many bytes, 0 if
// the log holds less.
func (s *Store) Back(bytes int64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.mu.segments) - 1; i >= 0; i-- {
		g := s.mu.segments[i]
		if len(g.offsets) == 0 {
			continue
		}
		if size := g.end - g.offset(g.first); size < bytes {
			bytes -= size
			continue
		}
		lo, hi := 0, len(g.offsets)-1 // the last whose distance to the end is enough
		for lo < hi {
			mid := (lo + hi + 1) / 2
			if g.end-int64(g.offsets[mid])*recordAlignment >= bytes {
				lo = mid
			} else {
				hi = mid - 1
			}
		}
		return g.first + uint64(lo) - 1
	}
	return 0
}

// Info describes a log for a status page.
type Info struct {
	First, Last uint64
	Term        uint64
	Files       int
	Bytes       int64 // of the files, prepared ones included
	CacheBytes  int64
	Error       string `json:",omitempty"`
}

// Info returns what the log holds.
func (s *Store) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := Info{
		First: s.mu.state.first, Last: s.mu.state.last, Term: s.mu.state.term,
		Files: len(s.mu.segments), CacheBytes: s.mu.cache.bytes,
	}
	for _, g := range s.mu.segments {
		i.Bytes += max(g.size, g.end)
	}
	if s.mu.spare != nil {
		i.Files++
		i.Bytes += s.mu.spare.size
	}
	if s.mu.err != nil {
		i.Error = s.mu.err.Error()
	}
	return i
}
