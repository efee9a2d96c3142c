package shard

import (
	"context"
	"time"
)

// settledAfter is how long a leader that has nothing new to tell may say nothing, and time for the message to come.
const settledAfter = repeatAfter + 2*commitTimeout + 100*time.Millisecond

// heard is what leaders have told of their commit index: how often, and the last.
type heard struct{ times, index uint64 }

// hears notes the commit index that came with entries, or with their absence; heartbeats carry none.
func (g *Group) hears(index uint64) {
	if index == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.heard.times++
	g.mu.heard.index = index
}

// Settled waits until this replica has applied what was committed when it was asked, or until ctx
// ends. A follower waits for the next word of the leader: up to settledAfter in an idle group, after which there is nobody who could tell.
// It is for those who compare replicas with what was acknowledged.
func (g *Group) Settled(ctx context.Context) error {
	tick := time.NewTicker(inSyncPoll)
	defer tick.Stop()
	g.mu.Lock()
	before := g.mu.heard.times
	g.mu.Unlock()
	asked := time.Now()
	for !g.settled(before, time.Since(asked) >= settledAfter) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (g *Group) settled(before uint64, late bool) bool {
	g.mu.Lock()
	told := g.mu.heard
	g.mu.Unlock()
	r := g.raft()
	if _, leads := g.leads(); leads {
		told = heard{before + 1, r.CommitIndex()}
	}
	return (late || told.times > before) && r.AppliedIndex() >= told.index && r.Stats()["fsm_pending"] == "0"
}
