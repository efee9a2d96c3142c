package shard

import (
	"context"
	"time"
)

// Settled waits until this replica has applied what its log holds now, or until ctx ends. A
// follower that has the last entries of an idle shard learns only commitTimeout later that they
// are committed; who compares replicas with what was acknowledged waits for that.
func (g *Group) Settled(ctx context.Context) error {
	r := g.raft()
	last := r.LastIndex()
	tick := time.NewTicker(inSyncPoll)
	defer tick.Stop()
	for r.AppliedIndex() < last || r.Stats()["fsm_pending"] != "0" {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
