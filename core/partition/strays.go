package partition

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"sluice/core/meta"
)

// StrayKeep is how long a directory that was set aside is kept, counted by the process that has seen it: for a person who wants to see
// what a power cut has left. A clock that jumps does not shorten it.
const StrayKeep = 24 * time.Hour

// RemoveStrays deletes directories that were set aside and have been seen for StrayKeep by this process. A set may still
// want one of its own, as long as it has not been opened: needed tells so of a shard, and of all shards of this node where it is not known whose
// a directory is (known is false). It returns the names of those that are gone.
func (d *Dirs) RemoveStrays(now time.Time, needed func(shard meta.ShardID, known bool) bool) (removed []string, err error) {
	names, err := d.fs.List(d.root)
	if err != nil {
		return nil, fmt.Errorf("list data directory: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	seen := make(map[string]time.Time)
	var errs []error
	for _, name := range names {
		if _, held := d.mu.claimed[name]; held || !strings.HasSuffix(name, straySuffix) {
			continue
		}
		since, ok := d.mu.strays[name]
		if !ok {
			since = now
		}
		seen[name] = since
		if now.Sub(since) < StrayKeep {
			continue
		}
		gone, err := d.removeStrayLocked(name, needed)
		if gone {
			removed = append(removed, name)
			delete(seen, name)
		}
		errs = append(errs, err)
	}
	d.mu.strays = seen
	return removed, errors.Join(errs...)
}

func (d *Dirs) removeStrayLocked(name string, needed func(meta.ShardID, bool) bool) (gone bool, err error) {
	path := filepath.Join(d.root, name)
	c, err := d.readMetadata(path)
	if err != nil && !errors.Is(err, errNoMetadata) {
		return false, err
	}
	if needed(c.shard, err == nil) {
		return false, nil
	}
	d.mu.changed = true
	if err := d.fs.RemoveAll(path); err != nil {
		return false, fmt.Errorf("remove what was set aside: %w", err)
	}
	return true, nil
}
