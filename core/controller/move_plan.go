package controller

import (
	"context"
	"fmt"
	"slices"

	"sluice/core/meta"
)

// Commands that move partitions, on their way to the metadata leader.
const (
	cmdReassign command = iota + 40
	cmdRestartMove
	cmdFinishMove
)

// Reassignment asks for the replicas of a partition to be on these nodes, the preferred leader first;
// nil cancels the move that is under way.
type Reassignment struct {
	Topic    string        `cbor:"1,keyasint"`
	Index    int32         `cbor:"2,keyasint"`
	Replicas []meta.NodeID `cbor:"3,keyasint,omitempty"`
	Cancel   bool          `cbor:"4,keyasint,omitempty"`
}

type reassignRequest struct {
	Items []Reassignment `cbor:"1,keyasint"`
	// KeepFactor refuses another number of replicas (KIP-860).
	KeepFactor bool `cbor:"2,keyasint,omitempty"`
}

// Reassign begins and cancels moves of partitions, each for itself, and answers when every live node
// knows. The errors are *meta.Error, nil for what was begun or cancelled. How far a move is, is in the
// image: it is over when the partition has none.
func (c *Controller) Reassign(ctx context.Context, items []Reassignment, keepFactor bool) []error {
	r := &commandRequest{Command: cmdReassign, Reassign: &reassignRequest{Items: items, KeepFactor: keepFactor}}
	res, err := c.submit(ctx, r)
	if err == nil && res.Err != nil {
		err = res.Err
	}
	return perItem(len(items), res.Errors, err)
}

// movePartitions commits a command that begins, cancels or ends moves.
func (l *lead) movePartitions(ctx context.Context, r *commandRequest) (meta.Result, []meta.ShardID, error) {
	l.askLevels(ctx)
	if err := l.checkLevel(meta.LevelMoves); err != nil {
		return meta.Result{Err: err}, nil, nil
	}
	switch {
	case r.Command == cmdReassign && r.Reassign != nil:
		p := newPlanner(l.c.Image(), l.live, l.c.o.Defaults)
		res, err := l.propose(ctx, r.ID, p.reassign(r.Reassign))
		return res, []meta.ShardID{}, err
	case r.Command == cmdRestartMove && r.Restart != nil:
		res, err := l.propose(ctx, r.ID, r.Restart)
		return res, nil, err
	case r.Command == cmdFinishMove && r.Finish != nil:
		res, err := l.propose(ctx, r.ID, r.Finish)
		return res, nil, err
	}
	return meta.Result{}, nil, fmt.Errorf("%w: command without a body", errRemote)
}

// reassign plans each partition for itself; those it refuses are in Refused.
func (p *planner) reassign(r *reassignRequest) *meta.ChangeMoves {
	c := &meta.ChangeMoves{Changes: make([]meta.MoveChange, len(r.Items)), Refused: make([]*meta.Error, len(r.Items))}
	type named struct {
		topic string
		index int32
	}
	seen := make(map[named]bool, len(r.Items))
	for i := range r.Items {
		item := &r.Items[i]
		if key := (named{item.Topic, item.Index}); seen[key] {
			c.Refused[i] = meta.Errorf(meta.CodeInvalidRequest, "Partition %d of topic %s is named more than once.", item.Index, item.Topic)
			continue
		} else {
			seen[key] = true
		}
		c.Refused[i] = p.reassignOne(item, r.KeepFactor, &c.Changes[i])
	}
	c.Shards = p.place.created
	return c
}

func (p *planner) reassignOne(item *Reassignment, keepFactor bool, change *meta.MoveChange) *meta.Error {
	topic := p.image.Topic(item.Topic)
	if topic == nil {
		return meta.Errorf(meta.CodeUnknownTopicOrPartition, "Unable to find a topic named %s.", item.Topic)
	}
	part := p.image.Partition(topic.ID, item.Index)
	if part == nil {
		return meta.Errorf(meta.CodeUnknownTopicOrPartition, "Unable to find partition %s:%d.", item.Topic, item.Index)
	}
	change.Topic, change.Index = topic.ID, item.Index
	if item.Cancel {
		if part.Move == nil {
			return meta.Errorf(meta.CodeNoReassignment, "No partition reassignment is in progress.")
		}
		return nil
	}
	if err := p.checkAssignment(item.Replicas, len(item.Replicas)); err != nil {
		return err
	}
	here := p.image.Shard(part.Shard)
	if have := len(here.Voters); keepFactor && have != len(item.Replicas) {
		return meta.Errorf(meta.CodeInvalidReplicationFactor, "The replication factor is changed from %d to %d", have, len(item.Replicas))
	}
	if p.image.HasLost(here) {
		return meta.Errorf(meta.CodeInvalidRequest, "The data of partition %s:%d is lost: there is nothing to move.", item.Topic, item.Index)
	}
	if slices.Equal(here.Nodes(), item.Replicas) {
		change.To = here.ID
		return nil
	}
	id, ok := p.place.exactly(item.Replicas)
	if !ok {
		return meta.Errorf(meta.CodePolicyViolation, "The cluster has %d different replica assignments already; use one of those.", shardsMax)
	}
	change.To = id
	return nil
}
