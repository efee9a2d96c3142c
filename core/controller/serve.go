package controller

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"sluice/core/meta"
)

type pingAnswer struct {
	Server  meta.Server `cbor:"1,keyasint"`
	Leaving bool        `cbor:"2,keyasint,omitempty"`
}

type awaitRequest struct {
	Index  uint64         `cbor:"1,keyasint"`
	Shards []meta.ShardID `cbor:"2,keyasint,omitempty"`
}

// serveControl answers another node of the cluster.
func (c *Controller) serveControl(ctx context.Context, _ meta.NodeID, conn net.Conn) {
	serveConn(ctx, conn, c.answer)
}

func (c *Controller) answer(ctx context.Context, r *controlRequest) (any, error) {
	switch r.Op {
	case opPing:
		return &pingAnswer{Server: c.id.server(), Leaving: c.leaving.Load()}, nil
	case opIndex:
		return c.lead.readIndex(ctx)
	case opAwait:
		var a awaitRequest
		if err := wireDecoding.Unmarshal(r.Body, &a); err != nil {
			return nil, fmt.Errorf("decode wait: %w", err)
		}
		ctx, cancel := context.WithTimeout(ctx, awaitSlice)
		defer cancel()
		return c.waitSettled(ctx, &a) == nil, nil
	case opCommand:
		var cmd commandRequest
		if err := wireDecoding.Unmarshal(r.Body, &cmd); err != nil {
			return nil, fmt.Errorf("decode command: %w", err)
		}
		return c.lead.execute(ctx, &cmd)
	}
	return nil, fmt.Errorf("unknown request %d", r.Op)
}

// settledRecheck is how often a wait looks again by itself: leadership that only Raft knows of
// wakes nobody here.
const settledRecheck = 50 * time.Millisecond

// waitSettled waits until this node has applied the index and knows a leader of each shard which,
// if it is this node, has done all that the metadata asks of it up to the index.
func (c *Controller) waitSettled(ctx context.Context, r *awaitRequest) error {
	recheck := time.NewTicker(settledRecheck)
	defer recheck.Stop()
	for {
		changed, progress := c.Changed(), c.progress.wait()
		if c.settled(r) {
			return nil
		}
		select {
		case <-changed:
		case <-progress:
		case <-recheck.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until metadata index %d is served: %w", r.Index, ctx.Err())
		}
	}
}

func (c *Controller) settled(r *awaitRequest) bool {
	image := c.Image()
	if image.Index() < r.Index {
		return false
	}
	return !slices.ContainsFunc(r.Shards, func(id meta.ShardID) bool { return !c.shardSettled(image.Shard(id), r.Index) })
}

func (c *Controller) shardSettled(s *meta.Shard, index uint64) bool {
	if s == nil || s.Lost {
		return true
	}
	leader, _, ok := c.LeaderOf(s.ID)
	if !ok || leader != c.Self() {
		return ok
	}
	r := c.replica(s.ID)
	return r != nil && r.done.Load() >= index
}

func compactShards(ids []meta.ShardID) []meta.ShardID {
	slices.Sort(ids)
	return slices.Compact(ids)
}
