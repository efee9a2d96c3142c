package controller

import (
	"context"
	"slices"

	"sluice/core/meta"
	"sluice/core/shard"
)

// recoverRequest asks for a shard whose data is lost to begin anew, with empty partitions.
type recoverRequest struct {
	Shard    meta.ShardID `cbor:"1,keyasint"`
	LoseCopy bool         `cbor:"2,keyasint,omitempty"`
}

// RecoverShard begins a shard anew whose data is lost. Its partitions are empty afterwards. With loseCopy also if a node has a copy that it
// cannot lead alone: the shard was being moved to it.
func (c *Controller) RecoverShard(ctx context.Context, id meta.ShardID, loseCopy bool) error {
	return oneError(c.submit(ctx, &commandRequest{Command: cmdRecover, Recover: &recoverRequest{Shard: id, LoseCopy: loseCopy}}))
}

func (l *lead) recover(ctx context.Context, r *commandRequest) (meta.Result, error) {
	image := l.c.Image()
	s := image.Shard(r.Recover.Shard)
	switch {
	case s == nil:
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidRequest, "Shard %d does not exist.", r.Recover.Shard)}, nil
	case !image.HasLost(s):
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidRequest, "Shard %d has its data: there is nothing to recover from.", s.ID)}, nil
	case hasCopy(s) && !r.Recover.LoseCopy:
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidRequest, "Node %d, to which shard %d was being moved, has a copy of all of it, but cannot lead it without node %d's: bring that disk back, or give the copy up with --lose-copy.",
			s.Voters[0].Node, s.ID, s.Leaving[0].Node)}, nil
	}
	if err := l.checkLevel(refoundLevel(s)); err != nil {
		return meta.Result{Err: err}, nil
	}
	cmd := l.refound(s)
	if cmd == nil {
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidRequest, "No node can take shard %d now.", s.ID)}, nil
	}
	return l.propose(ctx, r.ID, cmd)
}

// hasCopy tells whether the server that a lost shard was being moved to had caught up: what was committed from then on needed both.
func hasCopy(s *meta.Shard) bool {
	return !s.Lost && s.Partitions > 0 && slices.Contains(s.ISR, s.Voters[0].Node)
}

// refoundLevel is the level that all nodes need for a shard without its data to begin anew.
func refoundLevel(s *meta.Shard) uint8 {
	if s.Lost {
		return meta.LevelRefound
	}
	return meta.LevelRefoundMoving
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
	return &meta.RefoundShard{Shard: s.ID, Voters: b.voters[s.ID], Moving: !s.Lost}
}

// refoundEmpty begins lost shards anew that have no partitions, and so have lost nothing. It tells whether there was one.
func (l *lead) refoundEmpty(ctx context.Context) (bool, error) {
	if !l.c.autoBalance() {
		return false, nil
	}
	image := l.c.Image()
	for _, s := range image.Shards() {
		if !image.HasLost(s) || s.Partitions > 0 || l.checkLevel(refoundLevel(s)) != nil {
			continue
		}
		if cmd := l.refound(s); cmd != nil {
			res, err := l.propose(ctx, meta.RequestID{}, cmd)
			return err == nil && res.Err == nil, err
		}
	}
	return false, nil
}

// foundAgain removes a replica of a shard that begins anew, when it is of the shard as it was: it is founded instead.
func (c *Controller) foundAgain(s *meta.Shard) error {
	r := c.replica(s.ID)
	if r == nil || !c.shallFound(s) || !ofThePast(c.Image(), s, r.group) {
		return nil
	}
	c.log.Info("the shard begins anew without what this replica had of it", "shard", s.ID)
	return c.removeReplica(s.ID)
}

// ofThePast tells whether a replica belongs to what a shard was before it began anew. One that was opened while the shard was lost
// has been given nothing. One that the shard was being moved to has a member that is gone, is no founder, and was needed for a leader.
func ofThePast(image *meta.Image, s *meta.Shard, g *shard.Group) bool {
	members := g.Replicas()
	if _, _, led := g.Leader(); led || s.Generation == 0 {
		return len(members) == 0
	}
	return len(members) == 0 || slices.ContainsFunc(members, func(m shard.Replica) bool {
		n, ok := image.Node(m.Server.Node)
		return m.Voter && (!ok || n.Server() != m.Server) && !slices.Contains(s.Founding, m.Server)
	})
}
