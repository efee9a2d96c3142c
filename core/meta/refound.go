package meta

import "slices"

// RefoundShard begins a shard anew whose data is lost: with new founders, and with its partitions empty.
type RefoundShard struct {
	Shard  ShardID  `cbor:"1,keyasint"`
	Voters []Server `cbor:"2,keyasint"`
	// Moving also begins a shard anew that GoneWhileMoving tells of.
	Moving bool `cbor:"3,keyasint,omitempty"`
}

// GoneWhileMoving tells whether a shard has lost its data though it is not marked as Lost: it was being moved away from the only
// server that had all of it and led it, and that server's directory is gone. When the new server leads after all, its report says so.
func (i *Image) GoneWhileMoving(s *Shard) bool {
	if s.Lost || len(s.Voters) != 1 || len(s.Leaving) != 1 || s.Leader != s.Leaving[0].Node {
		return false
	}
	n, ok := i.Node(s.Leader)
	return !ok || n.Server() != s.Leaving[0]
}

// HasLost tells whether a shard is without its data, so that nobody can lead it.
func (i *Image) HasLost(s *Shard) bool { return s.Lost || i.GoneWhileMoving(s) }

func (c *RefoundShard) apply(t *transition) Result {
	s := t.Shard(c.Shard)
	switch {
	case s == nil:
		return Result{Err: Errorf(CodeInvalidRequest, "Shard %d does not exist.", c.Shard)}
	case s.Lost || c.Moving && t.GoneWhileMoving(s):
	case slices.Equal(s.Founding, c.Voters):
		return Result{}
	default:
		return Result{Err: Errorf(CodeInvalidRequest, "Shard %d has its data.", c.Shard)}
	}
	if err := t.checkVoters(&ShardAssignment{Shard: c.Shard, Voters: c.Voters}); err != nil {
		return Result{Err: err}
	}
	if err := t.emptyPartitions(s); err != nil {
		return Result{Err: err}
	}
	for _, r := range t.Removals(c.Shard) { // there is nothing left to delete
		t.removals = t.removals.drop(r.key())
	}
	t.changeShard(c.Shard, func(s *Shard) {
		s.Leaving = slices.DeleteFunc(slices.Clone(s.Voters), func(x Server) bool { return slices.Contains(c.Voters, x) })
		s.Founding, s.Voters = slices.Clone(c.Voters), slices.Clone(c.Voters)
		s.Leader, s.Term, s.ISR = NoNode, 0, nil
		if len(s.Leaving) == 0 {
			s.Leaving = nil
		}
		s.Lost, s.ModIndex = false, t.index
		s.Generation++
	})
	return Result{}
}

// emptyPartitions lets the partitions of a shard begin anew. The terms of the new group begin at 1, so what is added to them has to
// be more than all leader epochs that clients have seen.
func (t *transition) emptyPartitions(s *Shard) *Error {
	for m := range t.MovesTo(s.ID) {
		return Errorf(CodeInvalidRequest, "Partition %s-%d moves into the shard: cancel its reassignment first.", m.Topic.Name, m.Partition.Index)
	}
	var changed []*Topic
	for topic := range t.ShardTopics(s.ID) {
		next := *topic
		next.Partitions = slices.Clone(topic.Partitions)
		for i := range next.Partitions {
			p := &next.Partitions[i]
			switch {
			case p.Shard != s.ID:
				continue
			case p.Move != nil:
				return Errorf(CodeInvalidRequest, "Partition %s-%d moves: cancel its reassignment first.", topic.Name, p.Index)
			}
			p.EpochBase += int32(s.Term) + 1
			p.Arrived = 0
		}
		changed = append(changed, &next)
	}
	for _, topic := range changed {
		t.putTopic(topic)
	}
	return nil
}
