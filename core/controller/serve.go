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
	Disk    *DiskState  `cbor:"3,keyasint,omitempty"`
	// Level is what the node can apply; a release that does not tell has none.
	Level uint8 `cbor:"4,keyasint,omitempty"`
}

// awaitRequest asks a node to wait until it has applied Index and knows a leader of each shard, in
// the term named there or a later one, and that leader's report.
type awaitRequest struct {
	Index  uint64        `cbor:"1,keyasint"`
	Shards []servedShard `cbor:"2,keyasint,omitempty"`
}

// awaitAnswer: Done when that has come true. Serving are the shards that the node leads and in
// which all is as the metadata wants it at Index.
type awaitAnswer struct {
	Done    bool          `cbor:"1,keyasint"`
	Serving []servedShard `cbor:"2,keyasint,omitempty"`
}

type servedShard struct {
	_    struct{} `cbor:",toarray"`
	ID   meta.ShardID
	Term uint64
}

// serveControl answers another node of the cluster.
func (c *Controller) serveControl(ctx context.Context, from meta.NodeID, conn net.Conn) {
	serveConn(ctx, conn, func(ctx context.Context, r *controlRequest) (any, error) {
		if r.Op == opRenew {
			return nil, c.serveRenew(ctx, from, r)
		}
		return c.answer(ctx, r)
	})
}

func (c *Controller) answer(ctx context.Context, r *controlRequest) (any, error) {
	switch r.Op {
	case opPing:
		return &pingAnswer{Server: c.id.server(), Leaving: c.leaving.Load(), Disk: c.disks.own(), Level: meta.Level}, nil
	case opOverview:
		return c.report(), nil
	case opElect:
		return c.serveElect(ctx, r)
	case opRemoved:
		c.removedOnce.Do(func() { close(c.removed) })
		return nil, nil
	case opIndex:
		return c.lead.readIndex(ctx)
	case opAwait:
		var a awaitRequest
		if err := wireDecoding.Unmarshal(r.Body, &a); err != nil {
			return nil, fmt.Errorf("decode wait: %w", err)
		}
		return c.await(ctx, &a), nil
	case opCommand:
		var cmd commandRequest
		if err := wireDecoding.Unmarshal(r.Body, &cmd); err != nil {
			return nil, fmt.Errorf("decode command: %w", err)
		}
		return c.lead.execute(ctx, &cmd)
	case opRegister:
		var reg meta.RegisterNode
		if err := wireDecoding.Unmarshal(r.Body, &reg); err != nil {
			return nil, fmt.Errorf("decode registration: %w", err)
		}
		return c.acceptMove(ctx, reg.Node)
	}
	return c.answerMove(ctx, r)
}

// awaitRecheck is how often a wait looks again by itself: leadership that only Raft knows of wakes
// nobody here.
const awaitRecheck = 20 * time.Millisecond

// await answers as soon as the request has come true, or this node has something to say about it,
// or after awaitSlice.
func (c *Controller) await(ctx context.Context, r *awaitRequest) awaitAnswer {
	ctx, cancel := context.WithTimeout(ctx, awaitSlice)
	defer cancel()
	recheck := time.NewTicker(awaitRecheck)
	defer recheck.Stop()
	for {
		changed, progress := c.Changed(), c.progress.wait()
		answer := c.look(r)
		if answer.Done || ctx.Err() != nil {
			return answer
		}
		select {
		case <-changed:
		case <-progress:
		case <-recheck.C:
		case <-ctx.Done():
		}
	}
}

func (c *Controller) look(r *awaitRequest) awaitAnswer {
	image := c.Image()
	answer := awaitAnswer{Done: image.Index() >= r.Index}
	if !answer.Done {
		return answer
	}
	for _, want := range r.Shards {
		leader, term, ok := c.LeaderOf(want.ID)
		if s := image.Shard(want.ID); !ok || term < want.Term || s != nil && s.Term < want.Term {
			answer.Done = false
			continue
		}
		if leader != c.Self() {
			continue
		}
		serving, ok := c.replica(want.ID).servesFrom(r.Index)
		if !ok {
			answer.Done = false
			continue
		}
		answer.Serving = append(answer.Serving, servedShard{ID: want.ID, Term: serving})
	}
	return answer
}

func compactShards(ids []meta.ShardID) []meta.ShardID {
	slices.Sort(ids)
	return slices.Compact(ids)
}
