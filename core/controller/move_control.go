package controller

import (
	"context"
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"sluice/core/meta"
	"sluice/core/partition"
)

// Requests between the leaders and replicas of the two shards of a move.
const (
	opMoveCopies op = iota + 60 // what a node has copied for the moves into a shard
	opMoveFreeze                // the leader of the source is to freeze a partition and say in which state
	opMoveSeal                  // a node is to bring a copy to that state
)

type copiesRequest struct {
	Shard meta.ShardID `cbor:"1,keyasint"`
}

type copyState struct {
	Topic meta.TopicID `cbor:"1,keyasint"`
	Index int32        `cbor:"2,keyasint"`
	Move  uint64       `cbor:"3,keyasint"`
	Bytes int64        `cbor:"4,keyasint"`
	Left  int64        `cbor:"5,keyasint"`
	End   int64        `cbor:"6,keyasint"`
	Known bool         `cbor:"7,keyasint,omitempty"`
	Error string       `cbor:"8,keyasint,omitempty"`
}

type copiesAnswer struct {
	Copies []copyState `cbor:"1,keyasint,omitempty"`
}

type freezeRequest struct {
	Shard meta.ShardID `cbor:"1,keyasint"`
	Topic meta.TopicID `cbor:"2,keyasint"`
	Index int32        `cbor:"3,keyasint"`
	Move  uint64       `cbor:"4,keyasint"`
}

func (q *freezeRequest) key() partition.Key { return partition.Key{Topic: q.Topic, Index: q.Index} }

// freezeAnswer is the state of the frozen partition, and the leader epoch that clients have been told.
type freezeAnswer struct {
	Section     []byte `cbor:"1,keyasint"`
	LeaderEpoch int32  `cbor:"2,keyasint"`
}

type sealRequest struct {
	Topic   meta.TopicID `cbor:"1,keyasint"`
	Index   int32        `cbor:"2,keyasint"`
	Move    uint64       `cbor:"3,keyasint"`
	Section []byte       `cbor:"4,keyasint"`
}

// answerMove answers a request that has to do with segments that are copied.
func (c *Controller) answerMove(ctx context.Context, r *controlRequest) (any, error) {
	switch r.Op {
	case opMoveCopies:
		return decoded(r.Body, func(q *copiesRequest) (any, error) { return c.stages.copies(q), nil })
	case opMoveFreeze:
		return decoded(r.Body, func(q *freezeRequest) (any, error) { return c.freezeHere(ctx, q) })
	case opCompactStage:
		return decoded(r.Body, func(q *stageRequest) (any, error) { return c.compact.serveStage(ctx, q) })
	case opMoveSeal:
		return decoded(r.Body, func(q *sealRequest) (any, error) { return nil, c.stages.seal(ctx, q) })
	}
	return nil, fmt.Errorf("unknown request %d", r.Op)
}

func decoded[Q any](body cbor.RawMessage, serve func(*Q) (any, error)) (any, error) {
	q := new(Q)
	if err := wireDecoding.Unmarshal(body, q); err != nil {
		return nil, fmt.Errorf("decode request of a move: %w", err)
	}
	return serve(q)
}

// copies tells how far the copies for a shard are.
func (s *stages) copies(q *copiesRequest) *copiesAnswer {
	a := &copiesAnswer{}
	for _, r := range s.all() {
		if r.shard != q.Shard {
			continue
		}
		p := r.Progress()
		a.Copies = append(a.Copies, copyState{
			Topic: r.Key().Topic, Index: r.Key().Index, Move: r.Move(),
			Bytes: p.Bytes, Left: p.Left, End: p.End, Known: p.Known, Error: p.Error,
		})
	}
	slices.SortFunc(a.Copies, func(x, y copyState) int { return int(min(1, max(-1, int64(x.Move)-int64(y.Move)))) })
	return a
}

// seal brings a copy here to the state of the frozen partition. Nil means that all of it is on disk.
func (s *stages) seal(ctx context.Context, q *sealRequest) error {
	r := s.get(stageKey{partition.Key{Topic: q.Topic, Index: q.Index}, q.Move})
	if r == nil {
		return fmt.Errorf("%w: node %d has no copy for move %d", errMissing, s.c.Self(), q.Move)
	}
	return r.Seal(ctx, q.Section)
}

// copiesOn asks a node how far its copies for a shard are.
func (c *Controller) copiesOn(ctx context.Context, node meta.NodeID, q *copiesRequest) (*copiesAnswer, error) {
	if node == c.Self() {
		return c.stages.copies(q), nil
	}
	a := &copiesAnswer{}
	return a, c.pool.call(ctx, node, opMoveCopies, q, a)
}

func (c *Controller) sealOn(ctx context.Context, node meta.NodeID, q *sealRequest) error {
	if node == c.Self() {
		return c.stages.seal(ctx, q)
	}
	return c.pool.call(ctx, node, opMoveSeal, q, nil)
}

// freeze has the leader of a shard freeze a partition, whoever that is.
func (c *Controller) freeze(ctx context.Context, q *freezeRequest) (*freezeAnswer, error) {
	leader, _, ok := c.LeaderOf(q.Shard)
	switch {
	case !ok:
		return nil, fmt.Errorf("freeze: shard %d has no leader", q.Shard)
	case leader == c.Self():
		return c.freezeHere(ctx, q)
	}
	a := &freezeAnswer{}
	return a, c.pool.call(ctx, leader, opMoveFreeze, q, a)
}

// freezeHere freezes a partition of a shard that this node leads. Asked again, it only tells the state.
func (c *Controller) freezeHere(ctx context.Context, q *freezeRequest) (*freezeAnswer, error) {
	r := c.replica(q.Shard)
	if r == nil {
		return nil, fmt.Errorf("%w: shard %d is not on node %d", errMissing, q.Shard, c.Self())
	}
	if err := c.waitIndex(ctx, q.Move); err != nil { // the asker knows of the move already
		return nil, err
	}
	section, err := r.set.Frozen(q.key(), q.Move)
	if err != nil {
		if err := r.freeze(ctx, q); err != nil {
			return nil, fmt.Errorf("freeze partition %s: %w", q.key(), err)
		}
		section, err = r.set.Frozen(q.key(), q.Move)
	}
	if err != nil {
		return nil, fmt.Errorf("state of frozen partition %s: %w", q.key(), err)
	}
	term, ok := r.group.Serving()
	p, there := r.set.Get(q.key())
	if !ok || !there {
		return nil, fmt.Errorf("freeze partition %s: node %d does not lead shard %d", q.key(), c.Self(), q.Shard)
	}
	return &freezeAnswer{Section: section, LeaderEpoch: p.LeaderEpoch(term)}, nil
}
