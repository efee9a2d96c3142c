package controller

import (
	"context"
	"slices"

	"sluice/core/meta"
)

// recoverRequest asks for a shard whose data is lost to begin anew, with empty partitions.
type recoverRequest struct {
	Shard meta.ShardID `cbor:"1,keyasint"`
}

// RecoverShard begins a shard anew whose data is lost. Its partitions are empty afterwards.
func (c *Controller) RecoverShard(ctx context.Context, id meta.ShardID) error {
	return oneError(c.submit(ctx, &commandRequest{Command: cmdRecover, Recover: &recoverRequest{Shard: id}}))
}

func (l *lead) recover(ctx context.Context, r *commandRequest) (meta.Result, error) {
	if err := l.checkLevel(meta.LevelRefound); err != nil {
		return meta.Result{Err: err}, nil
	}
	s := l.c.Image().Shard(r.Recover.Shard)
	switch {
	case s == nil:
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidRequest, "Shard %d does not exist.", r.Recover.Shard)}, nil
	case !s.Lost:
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidRequest, "Shard %d has its data: there is nothing to recover from.", s.ID)}, nil
	}
	cmd := l.refound(s)
	if cmd == nil {
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidRequest, "No node can take shard %d now.", s.ID)}, nil
	}
	return l.propose(ctx, r.ID, cmd)
}

// refound plans the new members of a lost shard: the nodes with the fewest replicas. It returns nil when there is none.
func (l *lead) refound(s *meta.Shard) *meta.RefoundShard {
	b := l.balancer()
	b.begin()
	fresh := *s
	fresh.Voters, fresh.Leaving = nil, nil
	b.voters[s.ID] = nil
	for range int(s.ReplicationFactor) {
		to, ok := b.candidate(&fresh, len(b.voters[s.ID]))
		if !ok {
			break
		}
		b.voters[s.ID] = append(slices.Clone(b.voters[s.ID]), to)
	}
	if len(b.voters[s.ID]) == 0 {
		return nil
	}
	return &meta.RefoundShard{Shard: s.ID, Voters: b.voters[s.ID]}
}

// refoundEmpty begins lost shards anew that have no partitions, and so have lost nothing. It tells whether there was one.
func (l *lead) refoundEmpty(ctx context.Context) (bool, error) {
	if !l.c.autoBalance() || l.checkLevel(meta.LevelRefound) != nil {
		return false, nil
	}
	for _, s := range l.c.Image().Shards() {
		if !s.Lost || s.Partitions > 0 {
			continue
		}
		if cmd := l.refound(s); cmd != nil {
			res, err := l.propose(ctx, meta.RequestID{}, cmd)
			return err == nil && res.Err == nil, err
		}
	}
	return false, nil
}

// foundAgain removes a replica that was opened while its shard was lost, and has been given nothing: it is founded instead.
func (c *Controller) foundAgain(s *meta.Shard) error {
	r := c.replica(s.ID)
	if r == nil || !c.shallFound(s) || len(r.group.Replicas()) > 0 {
		return nil
	}
	return c.removeReplica(s.ID)
}
