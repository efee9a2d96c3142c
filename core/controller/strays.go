package controller

import (
	"time"

	"sluice/core/meta"
)

// strayInterval separates two looks at the directories that were set aside.
const strayInterval = time.Hour

// removeStrays deletes what was set aside long ago and that no replica of this node can want any more. It belongs to the reconciler.
func (c *Controller) removeStrays(now time.Time) {
	if !c.isCurrent() {
		return
	}
	removed, err := c.dirs.RemoveStrays(now, c.mayWant)
	for _, name := range removed {
		c.log.Info("removed a directory that was set aside", "directory", name)
	}
	if err != nil {
		c.log.Warn("could not remove what was set aside", "err", err)
	}
}

// mayWant tells whether the replica of a shard, or with known false any replica of this node, may still look for a directory: one that is open
// has claimed its own, and one that lacks data may be closed and opened again.
func (c *Controller) mayWant(id meta.ShardID, known bool) bool {
	if known {
		return c.isUnsettled(id)
	}
	for _, s := range c.Image().Shards() {
		if c.isUnsettled(s.ID) {
			return true
		}
	}
	for id := range c.onDisk {
		if c.isUnsettled(id) {
			return true
		}
	}
	return false
}

// isUnsettled tells whether a shard's replica belongs here, or lies here, and is not open with all its data.
func (c *Controller) isUnsettled(id meta.ShardID) bool {
	if id == meta.MetadataShard {
		return false // it has no partitions
	}
	if r := c.replica(id); r != nil {
		return r.group.Err() != nil || !r.set.Complete()
	}
	s := c.Image().Shard(id)
	return c.onDisk[id] || s != nil && s.Has(c.id.server())
}
