package raftlog

import (
	"context"
	"fmt"
)

// zeroes is written in pieces of fillBytes; fillSyncBytes of them are synced at a time, so that the
// entries' own syncs never wait behind a whole file.
const (
	fillBytes     = 256 << 10
	fillSyncBytes = 2 << 20
)

var zeroes [fillBytes]byte

// Run prepares files ahead until ctx ends. An append to a file that is filled with zeros changes no
// metadata of the file system, so that its sync is one write; filling takes long and is done here.
// A failure is latched and returned.
func (s *Store) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.failed:
			return s.Err()
		case <-s.want:
			if err := s.prepare(); err != nil {
				return s.latch(err)
			}
		}
	}
}

// prepare makes the spare file, of the recycled one if there is one.
func (s *Store) prepare() error {
	s.mu.Lock()
	if s.mu.spare != nil || s.mu.closed {
		s.mu.Unlock()
		return nil
	}
	old, size := s.mu.recycle, s.nextSizeLocked()
	s.mu.recycle = nil
	s.mu.Unlock()
	if old != nil && old.size < size {
		if err := s.remove(old); err != nil {
			return err
		}
		old = nil
	}
	var spare *segment
	var err error
	if old == nil {
		spare, err = s.createFile(s.newLife(), size, true)
	} else {
		spare, err = s.rename(old)
	}
	if err != nil {
		return err
	}
	return s.offer(spare)
}

// offer publishes a spare. Its life must be above the active file's: if a write did not wait for it
// and made a file of its own meanwhile, the spare takes another name.
func (s *Store) offer(spare *segment) error {
	for {
		s.mu.Lock()
		if s.mu.closed {
			s.mu.Unlock()
			return spare.file.Close()
		}
		late := spare.life < s.mu.segments[len(s.mu.segments)-1].life
		if !late {
			s.mu.spare = spare
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		var err error
		if spare, err = s.rename(spare); err != nil {
			return err
		}
	}
}

// rename gives a file a new life. What it holds carries the old one and no longer counts.
func (s *Store) rename(g *segment) (*segment, error) {
	life := s.newLife()
	if err := s.fs.Rename(s.path(g.life), s.path(life)); err != nil {
		return nil, fmt.Errorf("rename spare raft log file: %w", err)
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return nil, fmt.Errorf("sync raft log directory: %w", err)
	}
	return &segment{file: g.file, life: life, size: g.size, end: fileHeaderBytes}, nil
}

// createFile makes a file whose name is synced, filled with zeros or empty.
func (s *Store) createFile(life uint64, size int64, fill bool) (*segment, error) {
	f, err := s.fs.Create(s.path(life))
	if err != nil {
		return nil, fmt.Errorf("create raft log file: %w", err)
	}
	g := &segment{file: f, life: life, size: size, end: fileHeaderBytes}
	if fill {
		err = g.fill()
	}
	if err == nil {
		if err = s.fs.SyncDir(s.dir); err != nil {
			err = fmt.Errorf("sync raft log directory: %w", err)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return g, nil
}

func (g *segment) fill() error {
	for off := int64(0); off < g.size; {
		n := min(fillBytes, g.size-off)
		if _, err := g.file.WriteAt(zeroes[:n], off); err != nil {
			return fmt.Errorf("fill raft log file: %w", err)
		}
		off += n
		if off%fillSyncBytes == 0 || off == g.size {
			if err := g.file.Sync(); err != nil {
				return fmt.Errorf("sync filled raft log file: %w", err)
			}
		}
	}
	return nil
}
