package controller

import (
	"context"
	"time"

	"sluice/core/shard"
)

// beatInterval is how often everything here that looks regularly does so: the leader of the metadata after the other nodes and at
// its group's members, the leader of a shard at its members and partitions, the balancer. They do it at the same moment, and at
// moments when the shards look after their leaders, so that an idle process is woken once for all of them.
const beatInterval = 500 * time.Millisecond

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
