package controller

import (
	"context"
	"sync"

	"sluice/core/meta"
	"sluice/core/shard"
)

// HandOver gives every shard that this node leads to the voter that is most up to date, where one
// is in sync. A node that is about to let its clients go does it first, so that they find the new
// leaders while it still tells them. It returns when all that could be handed over is, or with ctx.
func (c *Controller) HandOver(ctx context.Context) {
	var wg sync.WaitGroup
	for _, r := range c.replicaMap() {
		if _, leads := r.group.Serving(); !leads {
			continue
		}
		if to := successor(r.group, c.Self()); to != meta.NoNode {
			wg.Go(func() {
				if err := r.group.Transfer(ctx, to); err != nil {
					c.log.Info("shard not handed over", "shard", r.id, "to", to, "err", err)
				}
			})
		}
	}
	wg.Wait()
}

// successor returns the node of the voter in sync, other than self, whose log is longest.
func successor(g *shard.Group, self meta.NodeID) meta.NodeID {
	best, last := meta.NoNode, uint64(0)
	for _, r := range g.Replicas() {
		if r.Voter && r.InSync && r.Server.Node != self && (best == meta.NoNode || r.LastIndex > last) {
			best, last = r.Server.Node, r.LastIndex
		}
	}
	return best
}
