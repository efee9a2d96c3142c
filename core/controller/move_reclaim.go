package controller

import (
	"context"
	"time"

	"sluice/core/meta"
)

// reclaimInterval separates two checkpoints that a shard takes only to be rid of partitions that were
// moved away or deleted: their files go with the next one, and an idle shard has none for an hour.
const reclaimInterval = 30 * time.Second

// reclaim has this node's replicas let go of the files of partitions that they no longer have, and those that came take their names.
func (c *Controller) reclaim(ctx context.Context) {
	taken := make(map[meta.ShardID]time.Time)
	tick := time.NewTicker(reclaimInterval / 10)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := c.dirs.GivePlainNames(); err != nil {
			c.log.Debug("partition directories keep their names", "err", err)
		}
		for id, r := range c.replicaMap() {
			if r.set.Dropped() == 0 || time.Since(taken[id]) < reclaimInterval {
				continue
			}
			taken[id] = time.Now()
			if err := r.group.Checkpoint(ctx); err != nil {
				c.log.Debug("no checkpoint to reclaim space", "shard", id, "err", err)
			}
		}
	}
}
