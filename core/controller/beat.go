package controller

import (
	"context"
	"time"

	"sluice/core/shard"
)

// beatInterval is how often everything here that looks regularly does so: the leader of the metadata after the other nodes and at
// its group's members, the leader of a shard at its members and partitions, the balancer. They do it at the same moment, and at
// moments when idle shards send their heartbeats, so that an idle process is woken once for all of them. It is 532 ms.
const beatInterval = 4 * shard.Moment

func (c *Controller) keepBeat(ctx context.Context) {
	tick := time.NewTimer(shard.UntilEven(beatInterval))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			tick.Reset(shard.UntilEven(beatInterval))
			c.beat.notify()
		case <-ctx.Done():
			return
		}
	}
}
