package partition

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"sluice/core/commitlog"
)

// syncWorkers partitions are synced at once by Persist, so that the file system
// can commit several with one flush of the disk. More would only queue there,
// in front of the Raft log.
const syncWorkers = 4

// syncTogetherFrom changed partitions on a checkpoint syncs the file system and
// not each of them: measured on ext4, 1,000 files take 10 to 20 ms so, 120 to
// 150 ms each for itself. Below, other programs' files may be what takes long.
const syncTogetherFrom = 32

// Checkpoint is a captured state, as package shard wants it. It is an alias of
// an unnamed interface so that neither package needs the other.
type Checkpoint = interface {
	Persist(w io.Writer) error
	Release()
}

// checkpoint holds references, not records.
type checkpoint struct {
	set    *Set
	seq    uint64
	origin []byte // empty: what it names need not be whole here
	parts  []capturedPartition

	deleted   []Key
	moves     []savedMove
	compacted bool // some partition is
}

type capturedPartition struct {
	p       *Partition
	version uint64
	section *section // nil when saved is still right
	saved   []byte
}

// Capture takes the state between two applies. A partition unchanged since the
// last checkpoint costs a pointer, a changed one a copy of its segment list and
// producers.
func (s *Set) Capture() (Checkpoint, error) {
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStopped, err)
	}
	c := &checkpoint{
		set: s, seq: s.doomed.capture(),
		parts:   make([]capturedPartition, 0, len(s.partitions)),
		deleted: s.deleted.order,
	}
	if s.catchUp.verified() {
		c.origin = s.o.Dirs.Origin()
	}
	for _, p := range s.partitions {
		part := capturedPartition{p: p, version: p.version}
		if saved := p.saved.Load(); saved != nil && saved.version == p.version {
			part.saved = saved.bytes
		} else {
			part.section = capture(p)
		}
		c.parts = append(c.parts, part)
		if m := (savedMove{p.key.Topic, p.key.Index, p.arrived, p.frozen.Load()}); m.Arrived != 0 || m.Frozen != 0 {
			c.moves = append(c.moves, m)
		}
		c.compacted = c.compacted || p.dirty.Load() > 0
	}
	return c, nil
}

// Persist makes durable all that the checkpoint names, then writes the
// manifest. A failed sync stops the set; a failed w does not.
func (c *checkpoint) Persist(w io.Writer) error {
	if err := c.sync(); err != nil {
		c.set.fail(err)
		return err
	}
	slices.SortFunc(c.parts, func(a, b capturedPartition) int { return compareKeys(a.p.key, b.p.key) })
	m := newManifestWriter(w)
	h := manifestHeader{
		Shard: c.set.o.Shard, Origin: c.origin,
		Partitions: int64(len(c.parts)), Deleted: saveKeys(c.deleted), moves: sortedMoves(c.moves), compacted: c.compacted,
	}
	if err := m.header(h); err != nil {
		return err
	}
	for i := range c.parts {
		if err := m.frame(c.parts[i].encode()); err != nil {
			return err
		}
	}
	c.set.metrics.checkpoints.Inc()
	return m.flush()
}

// encode returns the section's bytes and keeps small ones for the next
// checkpoint: what they name is synced now.
func (part *capturedPartition) encode() []byte {
	if part.section == nil {
		return part.saved
	}
	b := part.section.encode()
	part.section = nil
	part.saved = b
	if len(b) <= savedSectionMax {
		part.p.saved.Store(&savedSection{version: part.version, bytes: b})
	}
	return b
}

func (c *checkpoint) sync() error {
	var changed []*Partition
	for i := range c.parts {
		if part := &c.parts[i]; part.section != nil && len(part.section.Log.Segments) > 0 {
			changed = append(changed, part.p)
		}
	}
	do := c.set.syncEach
	if len(changed) >= c.set.o.together && c.set.o.Files.SyncsTogether() {
		do = c.set.syncTogether
	}
	if err := do(changed); err != nil {
		return err
	}
	return c.set.o.Dirs.Sync()
}

func (s *Set) syncEach(changed []*Partition) error {
	var g errgroup.Group
	g.SetLimit(syncWorkers)
	for _, p := range changed {
		g.Go(func() error { return s.syncPartition(p) })
	}
	return g.Wait()
}

// syncTogether is syncEach with one sync of the file system, which makes the
// names and the metadata files durable too.
func (s *Set) syncTogether(changed []*Partition) error {
	logs, of := make([]*commitlog.Log, len(changed)), make(map[*commitlog.Log]*Partition, len(changed))
	for i, p := range changed {
		logs[i], of[p.log] = p.log, p
	}
	var errs []error
	err := s.o.Files.SyncTogether(logs, func(l *commitlog.Log, err error) {
		if p := of[l]; !p.Removed() {
			errs = append(errs, fmt.Errorf("sync %s-%d for a checkpoint: %w", p.name, p.key.Index, err))
		}
	})
	if err != nil {
		return fmt.Errorf("sync %d partitions for a checkpoint: %w", len(changed), err)
	}
	for _, p := range changed {
		p.named.Store(true)
	}
	return errors.Join(errs...)
}

// syncPartition makes a partition's segments and its name durable. One that was
// deleted meanwhile needs none of it: replaying from the checkpoint comes to
// the delete entry.
func (s *Set) syncPartition(p *Partition) error {
	err := s.syncFiles(p)
	if err != nil && p.Removed() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sync %s-%d for a checkpoint: %w", p.name, p.key.Index, err)
	}
	return nil
}

func (s *Set) syncFiles(p *Partition) error {
	if _, err := p.log.Sync(); err != nil {
		return err
	}
	if p.named.Load() {
		return nil
	}
	if err := s.o.Dirs.syncMetadata(p.dir); err != nil {
		return err
	}
	p.named.Store(true)
	return nil
}

// Durable tells the set that the manifest written by Persist can no longer be
// lost: what it does not name is removed from disk. Package shard calls it.
func (c *checkpoint) Durable() {
	for i := range c.parts {
		c.parts[i].p.listed.Store(true)
	}
	if err := c.set.sweep(c.seq); err != nil {
		c.set.metrics.sweepErrors.Inc()
		c.set.log.Warn("could not remove what is no longer needed", "err", err)
	}
}

// Release forgets the captured state.
func (c *checkpoint) Release() { c.parts = nil }
