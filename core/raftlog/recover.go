package raftlog

import (
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"

	"github.com/hashicorp/raft"
)

// found is a file as recovery finds it.
type found struct {
	*segment
	header fileHeader
	active bool // its header says that it is or was written to
}

// recover reads all files, decides what is the end of the log, and writes a record of its own
// behind it. That record's sync covers everything that was read, and because it counts the opens,
// no leftover of a torn write can ever continue it.
func (s *Store) recover() error {
	if err := s.fs.MkdirAll(s.dir); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	files, err := s.find()
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return s.createFirst()
	}
	chain, rest, err := s.chain(files)
	if err != nil {
		return err
	}
	if chain, err = s.distrust(chain); err != nil {
		return err
	}
	if err := s.replay(chain); err != nil {
		return err
	}
	s.write.fresh = s.o.Durable > 0
	if err := s.settle(chain, rest); err != nil {
		return err
	}
	s.write.Lock()
	defer s.write.Unlock()
	return s.change(func(n *state) { n.opens++ })
}

// find opens the files of the directory, in the order of their lives. Leftovers of a first file
// that was never named are removed.
func (s *Store) find() ([]*found, error) {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	var files []*found
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") {
			if err := s.fs.Remove(path.Join(s.dir, name)); err != nil {
				return files, fmt.Errorf("remove leftover: %w", err)
			}
			continue
		}
		life, ok := parseFileName(name)
		if !ok {
			continue
		}
		s.mu.nextLife = max(s.mu.nextLife, life+1)
		f, err := s.openFile(life)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	sort.Slice(files, func(i, j int) bool { return files[i].life < files[j].life })
	return files, nil
}

func (s *Store) openFile(life uint64) (*found, error) {
	file, err := s.fs.Open(s.path(life))
	if err != nil {
		return nil, fmt.Errorf("open file: %w", err)
	}
	f := &found{segment: &segment{file: file, life: life, end: fileHeaderBytes}}
	s.mu.segments = append(s.mu.segments, f.segment) // so that a failed Open closes it
	if f.size, err = file.Size(); err != nil {
		return nil, fmt.Errorf("size of %s: %w", file.Name(), err)
	}
	b, err := (&window{file: file, size: f.size}).at(0, fileHeaderBytes)
	if err != nil {
		return nil, err
	}
	h, ok, err := decodeFileHeader(b)
	if err != nil {
		return nil, fmt.Errorf("header of %s: %w", file.Name(), err)
	}
	f.header, f.active = h, ok && h.life == life
	if f.active {
		f.made = h.size
	}
	return f, nil
}

// chain returns the files that continue each other up to the newest one, oldest first, and all
// others. The newest is the one that begins with the highest sequence. A file behind it is a spare,
// unless it holds records that were synced in it.
func (s *Store) chain(files []*found) (chain, rest []*found, err error) {
	byLife := map[uint64]*found{}
	var last *found
	for _, f := range files {
		if f.active {
			byLife[f.life] = f
			if last == nil || f.header.firstSeq >= last.header.firstSeq {
				last = f
			}
		}
	}
	if last == nil {
		return nil, nil, fmt.Errorf("%w: no file has a header", ErrDamaged)
	}
	for f := last; f != nil; f = byLife[f.header.prevLife] {
		chain = append([]*found{f}, chain...)
		delete(byLife, f.life)
		if len(chain) > 1 && f.header.firstSeq >= chain[1].header.firstSeq {
			return nil, nil, fmt.Errorf("%w: %s continues itself", ErrDamaged, f.file.Name())
		}
	}
	inChain := map[uint64]bool{}
	for _, f := range chain {
		inChain[f.life] = true
	}
	for _, f := range files {
		if inChain[f.life] {
			continue
		}
		if f.life > last.life {
			w := &window{file: f.file, size: f.size}
			if lost, err := w.syncedAfter(0, f.life, 1); err != nil {
				return nil, nil, err
			} else if lost {
				if whole, err := s.unsyncedFirstGroup(f, last); err != nil || !whole {
					return nil, nil, errors.Join(fmt.Errorf("%w: %s lost its header", ErrDamaged, f.file.Name()), err)
				}
			}
		}
		rest = append(rest, f)
	}
	return chain, rest, nil
}

// distrust removes the files whose first record is not known to be synced, see Options.Durable.
func (s *Store) distrust(chain []*found) ([]*found, error) {
	if s.o.Durable == 0 {
		return chain, nil
	}
	for len(chain) > 1 && chain[len(chain)-1].header.firstSeq > s.o.Durable {
		last := chain[len(chain)-1]
		chain = chain[:len(chain)-1]
		if err := s.remove(last.segment); err != nil {
			return nil, err
		}
	}
	return chain, nil
}

// stop returns the first sequence number that does not count in a file of the chain: its successor begins with it, or
// it is not known to be synced. 0: there is none.
func (s *Store) stop(chain []*found, i int) uint64 {
	switch {
	case i+1 < len(chain):
		return chain[i+1].header.firstSeq
	case s.o.Durable > 0:
		return s.o.Durable + 1
	}
	return 0
}

// unsyncedFirstGroup tells whether everything in a file without a header can be the group that was
// being written when the machine stopped: then nothing in it was written after a sync of it.
func (s *Store) unsyncedFirstGroup(f, last *found) (bool, error) {
	end, err := lastSequence(last)
	if err != nil {
		return false, err
	}
	w := &window{file: f.file, size: f.size}
	lost, err := w.syncedAfter(0, f.life, end+1)
	return !lost, err
}

// lastSequence returns the sequence of the last whole record of a file.
func lastSequence(f *found) (uint64, error) {
	w := &window{file: f.file, size: f.size}
	seq, off := f.header.firstSeq, int64(fileHeaderBytes)
	for {
		h, _, err := w.record(off, f.life)
		if errors.Is(err, errBadRecord) || (err == nil && h.seq != seq) {
			return seq - 1, nil
		}
		if err != nil {
			return 0, err
		}
		off += recordSpace(int64(h.length))
		seq++
	}
}

// replay applies the records of all files of the chain.
func (s *Store) replay(chain []*found) error {
	s.mu.segments = s.mu.segments[:0]
	known := false // a state has been read
	for i, f := range chain {
		if f.size < f.header.size {
			return fmt.Errorf("%w: %s has %d bytes, and had %d when it was begun", ErrDamaged, f.file.Name(), f.size, f.header.size)
		}
		s.mu.segments = append(s.mu.segments, f.segment)
		pos := position{segment: f.segment, off: fileHeaderBytes, seq: f.header.firstSeq, prevCRC: f.header.prevCRC}
		if i > 0 && (pos.seq != s.write.pos.seq || pos.prevCRC != s.write.pos.prevCRC) {
			return fmt.Errorf("%w: %s ends at sequence %d, %s begins at %d", ErrDamaged,
				chain[i-1].file.Name(), s.write.pos.seq-1, f.file.Name(), pos.seq)
		}
		s.write.pos = pos
		if err := s.replayFile(f, s.stop(chain, i), &known); err != nil {
			return err
		}
	}
	if !known {
		return fmt.Errorf("%w: no state was read", ErrDamaged)
	}
	return nil
}

// replayFile applies the records of one file up to the sequence number stop, if that is not 0. What follows there was not
// known to be synced when the next file was begun, and does not count.
func (s *Store) replayFile(f *found, stop uint64, known *bool) error {
	w := &window{file: f.file, size: f.size}
	for {
		p := &s.write.pos
		if p.seq == stop {
			return nil
		}
		h, payload, err := w.record(p.off, f.life)
		if err == nil && (h.seq != p.seq || h.prevCRC != p.prevCRC) {
			err = errBadRecord
		}
		if errors.Is(err, errBadRecord) {
			return s.endOfFile(w, f)
		}
		if err != nil {
			return err
		}
		if err := s.replayRecord(f, h, payload, known); err != nil {
			return fmt.Errorf("%w: %s at %d: %w", ErrDamaged, f.file.Name(), p.off, err)
		}
		p.off += recordSpace(int64(h.length))
		p.seq++
		p.prevCRC = h.crc
		f.end = p.off
	}
}

// endOfFile decides what a bad record is. That a file before the last one ends where its successor
// begins is checked there.
func (s *Store) endOfFile(w *window, f *found) error {
	p := s.write.pos
	lost, err := w.syncedAfter(p.off, f.life, p.seq)
	if err != nil {
		return err
	}
	if lost {
		return fmt.Errorf("%w: %s at %d: a record that had been synced is bad", ErrDamaged, f.file.Name(), p.off)
	}
	return nil
}

func (s *Store) replayRecord(f *found, h recordHeader, payload []byte, known *bool) error {
	if h.kind == kindState {
		st, err := decodeState(payload)
		if err != nil {
			return err
		}
		if *known && st.last > s.mu.state.last {
			return fmt.Errorf("state names entry %d, the last is %d", st.last, s.mu.state.last)
		}
		for _, g := range s.mu.segments {
			g.cut(st.last)
		}
		s.mu.state, *known = st, true
		return nil
	}
	var l raft.Log
	if err := decodeEntry(payload, h.raftType, &l); err != nil {
		return err
	}
	st := &s.mu.state
	if !*known || (st.last != 0 && l.Index != st.last+1) || l.Index == 0 {
		return fmt.Errorf("entry %d follows %d", l.Index, st.last)
	}
	if st.last == 0 {
		st.first, st.firstLife = l.Index, f.life
	}
	st.last = l.Index
	f.add(l.Index, s.write.pos.off)
	return nil
}

// settle checks that the files hold every entry that the state names, keeps those that are needed
// and one spare, and removes the rest.
func (s *Store) settle(chain, rest []*found) error {
	st := s.mu.state
	next, first := st.first, unneeded(s.mu.segments, st)
	rest = append(rest, chain[:first]...)
	kept := append([]*segment(nil), s.mu.segments[first:]...)
	for _, f := range kept {
		if st.last != 0 && f.holds(next) {
			next = f.last() + 1
		}
	}
	s.mu.segments, s.mu.newest = kept, kept[len(kept)-1].life
	if st.last != 0 && next != st.last+1 {
		return fmt.Errorf("%w: entry %d of %d to %d is missing", ErrDamaged, next, st.first, st.last)
	}
	for _, f := range rest {
		spare := f.life > kept[len(kept)-1].life && f.size >= s.nextSizeLocked()
		if spare && s.mu.spare == nil {
			s.mu.spare = f.segment
			continue
		}
		if err := s.remove(f.segment); err != nil {
			return err
		}
	}
	if active := kept[len(kept)-1]; s.mu.spare == nil && active.end > active.size/2 {
		s.wake()
	}
	return nil
}

// createFirst makes the first file under a temporary name, so that a file in the directory always
// has a header or is a spare.
func (s *Store) createFirst() error {
	const life = 1
	tmp := s.path(life) + ".tmp"
	f, err := s.fs.Create(tmp)
	if err != nil {
		return fmt.Errorf("create first file: %w", err)
	}
	seg := &segment{file: f, life: life, size: s.o.FirstSegmentBytes, end: fileHeaderBytes}
	s.mu.segments = []*segment{seg}
	s.mu.nextLife, s.mu.newest = life+1, life
	if err := seg.fill(); err != nil {
		return err
	}
	if _, err := f.WriteAt(fileHeader{life: life, firstSeq: 1, size: seg.size}.encode(), 0); err != nil {
		return fmt.Errorf("write first header: %w", err)
	}
	s.write.pos = position{segment: seg, off: fileHeaderBytes, seq: 1}
	s.write.Lock()
	err = s.change(func(n *state) { n.opens = 1 })
	s.write.Unlock()
	if err != nil {
		return err
	}
	if err := s.fs.Rename(tmp, s.path(life)); err != nil {
		return fmt.Errorf("name first file: %w", err)
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}
