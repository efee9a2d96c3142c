package meta

import (
	"iter"
	"slices"
)

// kindChangeMoves and the following are the commands that move partitions between shards.
const (
	kindChangeMoves kind = iota + 30
	kindRestartMove
	kindFinishMove
)

// Move is a partition on its way into another shard. Its replicas are that shard's voters then.
//
// The metadata decide whether a move comes about: what the two shards do of it, freezing here and
// adopting there, can be taken back until FinishMove is committed, and has to be when the move is
// no longer here.
type Move struct {
	// ID is the log index of the command that began the move, so that an image of that index or a
	// later one without the move says that it is over.
	ID uint64  `cbor:"1,keyasint"`
	To ShardID `cbor:"2,keyasint"`
	// Restarts counts how often the move had to begin anew, because the shards did not get from
	// the freeze to the switch in time.
	Restarts int32 `cbor:"3,keyasint,omitempty"`
}

// ChangeMoves begins and cancels moves, each change for itself. Refused holds, for each change,
// why the leader did not let it pass; nil or a missing one means that it is made.
type ChangeMoves struct {
	Shards  []ShardSpec  `cbor:"1,keyasint,omitempty"`
	Changes []MoveChange `cbor:"2,keyasint"`
	Refused []*Error     `cbor:"3,keyasint,omitempty"`
}

// MoveChange asks for a partition to be moved into a shard, in place of a move that is under way.
// Naming the shard that it is in, or MetadataShard, cancels that move.
type MoveChange struct {
	Topic TopicID `cbor:"1,keyasint"`
	Index int32   `cbor:"2,keyasint"`
	To    ShardID `cbor:"3,keyasint,omitempty"`
}

// RestartMove begins a move anew, under another id: what was frozen or adopted under the old one
// must be taken back. It changes nothing when the move is over.
type RestartMove struct {
	Topic TopicID `cbor:"1,keyasint"`
	Index int32   `cbor:"2,keyasint"`
	Move  uint64  `cbor:"3,keyasint"`
}

// FinishMove puts the partition into the shard that it was moved to, which has adopted it with that
// epoch base. It is refused when the move is over.
type FinishMove struct {
	Topic     TopicID `cbor:"1,keyasint"`
	Index     int32   `cbor:"2,keyasint"`
	Move      uint64  `cbor:"3,keyasint"`
	EpochBase int32   `cbor:"4,keyasint"`
}

func (*ChangeMoves) kind() kind { return kindChangeMoves }
func (*RestartMove) kind() kind { return kindRestartMove }
func (*FinishMove) kind() kind  { return kindFinishMove }

// Moving is a move with the partition that it moves.
type Moving struct {
	Topic     *Topic
	Partition *Partition
}

// MovesTo walks the moves into a shard.
func (i *Image) MovesTo(id ShardID) iter.Seq[Moving] { return i.movesFrom(shardKey(id)) }

// Moves walks all moves.
func (i *Image) Moves() iter.Seq[Moving] { return i.movesFrom("") }

// MoveCount returns how many partitions are being moved.
func (i *Image) MoveCount() int { return i.moves.len() }

func (i *Image) movesFrom(prefix string) iter.Seq[Moving] {
	const topicAt, indexAt = 4, 4 + len(TopicID{})
	return func(yield func(Moving) bool) {
		for key := range i.moves.from(prefix) {
			if key[:len(prefix)] != prefix {
				return
			}
			topic, ok := i.topicsByID.get(key[topicAt:indexAt])
			if !ok {
				panic("BUG: a move names a topic that does not exist")
			}
			index := int32(key[indexAt])<<24 | int32(key[indexAt+1])<<16 | int32(key[indexAt+2])<<8 | int32(key[indexAt+3])
			if !yield(Moving{Topic: topic, Partition: &topic.Partitions[index]}) {
				return
			}
		}
	}
}

// Partition returns a partition of a topic that is there, or nil.
func (i *Image) Partition(id TopicID, index int32) *Partition {
	t := i.TopicByID(id)
	if t == nil || index < 0 || int(index) >= len(t.Partitions) {
		return nil
	}
	return &t.Partitions[index]
}

// restoreMoves rebuilds the index of moves while a snapshot is read.
func (t *transition) restoreMoves(topic *Topic) {
	for i := range topic.Partitions {
		if p := &topic.Partitions[i]; p.Move != nil {
			t.moves = t.moves.put(partitionKey(p.Move.To, topic.ID, p.Index), struct{}{})
		}
	}
}

// dropMove ends a move, if there is one: what the target has of it is to be removed. The partition
// itself is changed by the caller.
func (t *transition) dropMove(topic *Topic, p *Partition) {
	m := p.Move
	if m == nil {
		return
	}
	t.moves = t.moves.drop(partitionKey(m.To, topic.ID, p.Index))
	t.addRemoval(Removal{Shard: m.To, Topic: topic.ID, Index: p.Index, Move: m.ID})
}

func (t *transition) addRemoval(r Removal) {
	if s := t.Shard(r.Shard); s == nil || s.Lost {
		return // nobody is left to be told
	}
	t.removals = t.removals.put(r.key(), r)
	t.touchShard(r.Shard)
}

// changePartition replaces a topic by a copy in which change has worked on one partition.
func (t *transition) changePartition(topic *Topic, index int32, change func(*Topic, *Partition)) {
	changed := *topic
	changed.Partitions = slices.Clone(topic.Partitions)
	change(&changed, &changed.Partitions[index])
	t.putTopic(&changed)
}

func (t *transition) beginMove(topic *Topic, index int32, to ShardID, restarts int32) {
	t.changePartition(topic, index, func(_ *Topic, p *Partition) {
		p.Move = &Move{ID: t.index, To: to, Restarts: restarts}
	})
	t.moves = t.moves.put(partitionKey(to, topic.ID, index), struct{}{})
	t.touchShard(to)
}

func (c *ChangeMoves) apply(t *transition) Result {
	t.addShards(c.Shards)
	r := Result{Errors: make([]*Error, len(c.Changes))}
	for i := range c.Changes {
		if i < len(c.Refused) && c.Refused[i] != nil {
			r.Errors[i] = c.Refused[i]
			continue
		}
		r.Errors[i] = t.changeMove(&c.Changes[i])
	}
	return r
}

func (t *transition) changeMove(c *MoveChange) *Error {
	p := t.Partition(c.Topic, c.Index)
	switch {
	case p == nil:
		return Errorf(CodeUnknownTopicOrPartition, "This server does not host this topic-partition.")
	case c.To == MetadataShard && p.Move == nil:
		return Errorf(CodeNoReassignment, "No partition reassignment is in progress.")
	case c.To != MetadataShard && t.Shard(c.To) == nil:
		return Errorf(CodeUnknownServerError, "Shard %d does not exist.", c.To)
	case p.Move != nil && p.Move.To == c.To:
		return nil
	case p.Move != nil && p.Move.ID == t.index:
		return Errorf(CodeInvalidRequest, "The partition is named twice.")
	}
	if p.Move != nil {
		t.cancelMove(t.TopicByID(c.Topic), p)
	}
	if c.To != MetadataShard && c.To != p.Shard {
		t.beginMove(t.TopicByID(c.Topic), c.Index, c.To, 0)
	}
	return nil
}

// cancelMove ends a move of a topic that stays. The source is touched too: it has to take a freeze back.
func (t *transition) cancelMove(topic *Topic, p *Partition) {
	t.dropMove(topic, p)
	t.changePartition(topic, p.Index, func(_ *Topic, p *Partition) { p.Move = nil })
	t.touchShard(p.Shard)
}

// moveOf returns the partition while it is being moved under that id.
func (t *transition) moveOf(id TopicID, index int32, move uint64) *Partition {
	p := t.Partition(id, index)
	if p == nil || p.Move == nil || p.Move.ID != move {
		return nil
	}
	return p
}

var errMoveOver = Errorf(CodeNoReassignment, "The move is over.")

func (c *RestartMove) apply(t *transition) Result {
	p := t.moveOf(c.Topic, c.Index, c.Move)
	if p == nil {
		return Result{Err: errMoveOver}
	}
	t.cancelMove(t.TopicByID(c.Topic), p)
	t.beginMove(t.TopicByID(c.Topic), c.Index, p.Move.To, p.Move.Restarts+1)
	return Result{}
}

func (c *FinishMove) apply(t *transition) Result {
	p := t.moveOf(c.Topic, c.Index, c.Move)
	if p == nil {
		return Result{Err: errMoveOver}
	}
	topic, from, to := t.TopicByID(c.Topic), p.Shard, p.Move.To
	t.moves = t.moves.drop(partitionKey(to, c.Topic, c.Index))
	t.addRemoval(Removal{Shard: from, Topic: c.Topic, Index: c.Index, Move: c.Move})
	t.changePartition(topic, c.Index, func(topic *Topic, p *Partition) {
		p.Shard, p.EpochBase, p.Arrived, p.Move = to, c.EpochBase, c.Move, nil
		topic.ReplicationFactor = t.Shard(topic.Partitions[0].Shard).ReplicationFactor
	})
	t.changeShard(from, func(s *Shard) { s.Partitions--; s.ModIndex = t.index })
	t.changeShard(to, func(s *Shard) { s.Partitions++; s.ModIndex = t.index })
	if !slices.Contains(t.TopicByID(c.Topic).shards(), from) {
		t.shardTopics = t.shardTopics.drop(shardTopicKey(from, c.Topic))
	}
	t.shardTopics = t.shardTopics.put(shardTopicKey(to, c.Topic), struct{}{})
	return Result{}
}
