package raftlog

import "fmt"

// DeleteRange deletes the entries from index lo to hi, which must be a prefix or a suffix of the
// log, or all of it. It is synced when it returns. Whole files of a deleted prefix are removed.
func (s *Store) DeleteRange(lo, hi uint64) error {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.Lock()
	st := s.mu.state
	s.mu.Unlock()
	switch {
	case st.last == 0 || hi < st.first || lo > st.last || lo > hi:
		return nil
	case lo <= st.first && hi >= st.last:
		return s.truncate(func(n *state) { n.first, n.last = 0, 0 })
	case lo <= st.first:
		life := s.lifeOf(hi + 1)
		return s.truncate(func(n *state) { n.first, n.firstLife = hi+1, life })
	case hi >= st.last:
		return s.truncate(func(n *state) { n.last = lo - 1 })
	}
	return s.latch(fmt.Errorf("delete entries %d to %d of %d to %d: only a prefix or a suffix can go", lo, hi, st.first, st.last))
}

func (s *Store) lifeOf(index uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.segmentOfLocked(index).life
}

// truncate makes a change of the log's ends durable first and lets files go afterwards: after a
// crash between the two they are older than the oldest needed file, and are removed then.
func (s *Store) truncate(fn func(*state)) error {
	if err := s.change(fn); err != nil {
		return err
	}
	for _, g := range s.forget() {
		s.dispose(g)
	}
	return s.Err()
}

// forget takes what the state no longer names out of the readers' view and returns the files that
// nobody reads any more.
func (s *Store) forget() (unused []*segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.mu.state
	s.mu.cache.keep(st.first, st.last)
	first := unneeded(s.mu.segments, st)
	for _, g := range s.mu.segments[:first] {
		g.dropped = true
		if g.readers == 0 {
			unused = append(unused, g)
		}
	}
	s.mu.segments = append([]*segment(nil), s.mu.segments[first:]...)
	for _, g := range s.mu.segments {
		g.cut(st.last)
	}
	return unused
}
