package partition

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"sluice/core/meta"
)

// openStage finds or makes the directory of a copy. Its name and its owner are durable when it returns.
func (d *Dirs) openStage(s *Stage) (path string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := s.claim()
	if d.mu.stages[c] != nil {
		return "", fmt.Errorf("%s is being copied already", c.key)
	}
	for _, holder := range d.mu.claimed {
		if holder == c {
			return "", errTaken
		}
	}
	dir := ownDir(c, s.o.Name) + moveSuffix
	path = filepath.Join(d.root, dir)
	if owner, err := d.readMetadata(path); err != nil || owner != c {
		if err != nil && !errors.Is(err, errNoMetadata) {
			return "", err
		}
		if err := d.makeStage(path, c); err != nil {
			return "", err
		}
	}
	d.mu.stages[c] = s
	return path, nil
}

func (d *Dirs) makeStage(path string, c claim) error {
	if err := d.fs.RemoveAll(path); err != nil {
		return fmt.Errorf("empty stage: %w", err)
	}
	if err := d.fs.MkdirAll(path); err != nil {
		return fmt.Errorf("make stage: %w", err)
	}
	if err := d.writeMetadata(path, c); err != nil {
		return err
	}
	return syncMetadata(d.fs, path)
}

func (d *Dirs) closeStage(s *Stage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := s.claim(); d.mu.stages[c] == s {
		delete(d.mu.stages, c)
	}
}

// Leftover is the directory of a copy that nobody has open.
type Leftover struct {
	Key   Key
	Shard meta.ShardID
	Move  uint64
	path  string
}

// Leftovers returns the copies that an earlier run has left. Those without a readable owner were
// never more than a name and are removed here.
func (d *Dirs) Leftovers() ([]Leftover, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names, err := d.fs.List(d.root)
	if err != nil {
		return nil, fmt.Errorf("list data directory: %w", err)
	}
	var left []Leftover
	for _, name := range names {
		if !strings.HasSuffix(name, moveSuffix) {
			continue
		}
		path := filepath.Join(d.root, name)
		c, err := d.readMetadata(path)
		switch {
		case errors.Is(err, errNoMetadata):
			d.mu.changed = true
			if err := d.fs.RemoveAll(path); err != nil {
				return nil, fmt.Errorf("remove unfinished stage: %w", err)
			}
		case err != nil:
			return nil, err
		case d.mu.stages[c] == nil:
			left = append(left, Leftover{Key: c.key, Shard: c.shard, Move: c.move, path: path})
		}
	}
	return left, nil
}

// RemoveLeftover removes a copy that the metadata no longer wants.
func (d *Dirs) RemoveLeftover(l Leftover) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.stages[claim{key: l.Key, shard: l.Shard, move: l.Move}] != nil {
		return nil
	}
	d.mu.changed = true
	if err := d.fs.RemoveAll(l.path); err != nil {
		return fmt.Errorf("remove leftover stage: %w", err)
	}
	return nil
}
