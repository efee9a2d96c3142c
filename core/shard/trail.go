package shard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// retryCheckpoint is the pause after a checkpoint that failed, for example because a change of
// members was under way.
const retryCheckpoint = time.Second

// tellFailures in a row are more than a change of members explains.
const tellFailures = 5

// checkpointWhenDue takes a checkpoint whenever enough log was written since the last.
func (g *Group) checkpointWhenDue() {
	failures := 0
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-g.due:
		}
		if g.sinceBytes.Load() < g.node.o.CheckpointBytes {
			continue
		}
		err := g.Checkpoint(g.ctx)
		if err == nil || g.ctx.Err() != nil {
			if failures >= tellFailures {
				g.slog.Info("checkpoint taken after failures", "failures", failures)
			}
			failures = 0
			continue
		}
		if failures++; failures == tellFailures {
			g.slog.Warn("checkpoints fail, the log grows", "err", err)
		}
		pause(g.ctx, retryCheckpoint)
		signal(g.due)
	}
}

// Checkpoint takes a checkpoint now, unless nothing was applied since the last, and lets the log
// drop its head. One at a time is taken; a checkpoint from the leader is not installed meanwhile.
func (g *Group) Checkpoint(ctx context.Context) error {
	g.checkpointing.Lock()
	defer g.checkpointing.Unlock()
	if err := errors.Join(ctx.Err(), g.Err()); err != nil {
		return fmt.Errorf("checkpoint of shard %d: %w", g.id, err)
	}
	if index, _ := g.points.current(); g.fsm.applied.Load() <= index {
		return nil
	}
	r := g.cur.Load()
	since, trailing := g.sinceBytes.Load(), g.trailing()
	if err := r.set(func(c *raft.ReloadableConfig) { c.TrailingLogs = trailing }); err != nil {
		return fmt.Errorf("checkpoint of shard %d: %w", g.id, err)
	}
	err := r.raft.Snapshot().Error()
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("checkpoint of shard %d: %w", g.id, err)
	}
	g.sinceBytes.Add(-since)
	return nil
}

// trailing is how many entries the log keeps behind the end: one checkpoint interval of bytes, so
// that a follower that was away for a moment is not sent the checkpoint, and as much as a member
// that still answers needs, up to trailingFactor intervals. It is never 0.
func (g *Group) trailing() uint64 {
	last := g.raft().LastIndex()
	keep := g.log.Back(g.node.o.CheckpointBytes)
	least := g.log.Back(trailingFactor * g.node.o.CheckpointBytes)
	for _, s := range g.raft().GetConfiguration().Configuration().Servers {
		if answers, _, _, index := g.peers.get(s.ID); answers && index < keep {
			keep = max(index, least)
		}
	}
	return max(last-min(keep, last), 1)
}
