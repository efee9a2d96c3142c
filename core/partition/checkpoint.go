package partition

import (
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"
)

// syncWorkers partitions are synced at once by Persist, so that the file system
// can commit several with one flush of the disk. More would only queue there,
// in front of the Raft log.
const syncWorkers = 4

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

	deleted []Key
	moves   []savedMove
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
		Partitions: int64(len(c.parts)), Deleted: saveKeys(c.deleted), moves: sortedMoves(c.moves),
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
	var g errgroup.Group
	g.SetLimit(syncWorkers)
	for i := range c.parts {
		if part := &c.parts[i]; part.section != nil && len(part.section.Log.Segments) > 0 {
			g.Go(func() error { return c.set.syncPartition(part.p) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return c.set.o.Dirs.Sync()
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
	if err := c.set.sweep(c.seq); err != nil {
		c.set.metrics.sweepErrors.Inc()
		c.set.log.Warn("could not remove what is no longer needed", "err", err)
	}
}

// Release forgets the captured state.
func (c *checkpoint) Release() { c.parts = nil }
