package raftlog

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"sluice/core/vfs"
)

const fileSuffix = ".rlog"

func fileName(life uint64) string { return fmt.Sprintf("%016x%s", life, fileSuffix) }

// parseFileName returns the life in a file's name.
func parseFileName(name string) (uint64, bool) {
	hex, ok := strings.CutSuffix(name, fileSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	life, err := strconv.ParseUint(hex, 16, 64)
	return life, err == nil && life > 0
}

// segment is one file. After its creation file, life and size do not change; the rest is guarded by
// Store.mu.
type segment struct {
	file vfs.File
	life uint64
	size int64 // bytes that exist; the last group of a file may go beyond them
	// made are the bytes that were there, durably, when the file was made; 0: none, or not known.
	made int64

	first   uint64   // index of offsets[0]
	offsets []uint32 // of the entries, in units of recordAlignment
	end     int64    // where the next record goes
	readers int
	dropped bool
}

func (g *segment) last() uint64 { return g.first + uint64(len(g.offsets)) - 1 }

func (g *segment) holds(index uint64) bool {
	return len(g.offsets) > 0 && index >= g.first && index <= g.last()
}

func (g *segment) add(index uint64, off int64) {
	if len(g.offsets) == 0 {
		g.first = index
	}
	g.offsets = append(g.offsets, uint32(off/recordAlignment))
}

// cut forgets entries above index.
func (g *segment) cut(index uint64) {
	switch {
	case len(g.offsets) == 0 || index >= g.last():
	case index < g.first:
		g.offsets = g.offsets[:0]
	default:
		g.offsets = g.offsets[:index-g.first+1]
	}
}

func (g *segment) offset(index uint64) int64 {
	return int64(g.offsets[index-g.first]) * recordAlignment
}

// bound returns where the record of an entry ends at the latest.
func (g *segment) bound(index uint64) int64 {
	if index < g.last() {
		return g.offset(index + 1)
	}
	return g.end
}

func (s *Store) path(life uint64) string { return path.Join(s.dir, fileName(life)) }

// segmentOfLocked returns the file that holds an entry.
func (s *Store) segmentOfLocked(index uint64) *segment {
	for i := len(s.mu.segments) - 1; i >= 0; i-- {
		if s.mu.segments[i].holds(index) {
			return s.mu.segments[i]
		}
	}
	return nil
}

// release ends a read. The last reader of a dropped file disposes of it.
func (s *Store) release(g *segment) {
	s.mu.Lock()
	g.readers--
	gone := g.dropped && g.readers == 0
	s.mu.Unlock()
	if gone {
		s.dispose(g)
	}
}

// dispose keeps a file that nobody needs any more to become a spare, or deletes it.
func (s *Store) dispose(g *segment) {
	s.mu.Lock()
	keep := len(s.mu.recycle) < recycleMax && !s.mu.closed && s.mu.err == nil && g.size >= s.nextSizeLocked()
	if keep {
		s.mu.recycle = append(s.mu.recycle, g)
	}
	s.mu.Unlock()
	if keep {
		return
	}
	if err := s.remove(g); err != nil {
		s.latch(err)
	}
}

func (s *Store) remove(g *segment) error {
	if err := g.file.Close(); err != nil {
		return fmt.Errorf("close dropped raft log file: %w", err)
	}
	if err := s.fs.Remove(s.path(g.life)); err != nil {
		return fmt.Errorf("remove dropped raft log file: %w", err)
	}
	return nil
}

// nextSizeLocked is the size of the file after the active one.
func (s *Store) nextSizeLocked() int64 {
	if len(s.mu.segments) == 0 {
		return s.o.FirstSegmentBytes
	}
	active := s.mu.segments[len(s.mu.segments)-1]
	return min(max(2*active.size, s.o.FirstSegmentBytes), s.o.SegmentBytes)
}

func (s *Store) newLife() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newLifeLocked()
}

func (s *Store) newLifeLocked() uint64 {
	life := s.mu.nextLife
	s.mu.nextLife++
	return life
}

// unneeded returns how many of the files, oldest first, come before the one that the state names as the oldest needed. It goes by
// their order: earlier builds could give a file a lower life than its predecessor's.
func unneeded(segments []*segment, st state) int {
	for i, g := range segments {
		if g.life == st.firstLife {
			return i
		}
	}
	n := 0
	for n < len(segments)-1 && segments[n].life < st.firstLife {
		n++
	}
	return n
}
