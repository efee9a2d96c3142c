package controller

import (
	"sluice/core/meta"
	"sluice/core/partition"
)

// MoveStatus is a partition on its way to another shard, as this node sees it.
type MoveStatus struct {
	Topic     string
	Partition int32
	Move      uint64
	From, To  meta.ShardID
	Replicas  []meta.NodeID // those it will have
	Restarts  int32         `json:",omitempty"`
	// Copies are what the new replicas have: of all of them on the leader of the target, of its own elsewhere.
	Copies []CopyStatus `json:",omitempty"`
	// Error says why the last try to switch over came to nothing; only the leader of the target knows.
	Error string `json:",omitempty"`
}

// CopyStatus is how far one new replica is.
type CopyStatus struct {
	Node      meta.NodeID
	Bytes     int64
	BytesLeft int64
	Error     string `json:",omitempty"`
}

// Moves lists the partitions that are being moved.
func (c *Controller) Moves() []MoveStatus {
	image := c.Image()
	var out []MoveStatus
	for m := range image.Moves() {
		move := m.Partition.Move
		s := MoveStatus{
			Topic: m.Topic.Name, Partition: m.Partition.Index, Move: move.ID, From: m.Partition.Shard, To: move.To, Restarts: move.Restarts,
		}
		if to := image.Shard(move.To); to != nil {
			s.Replicas = to.Nodes()
		}
		s.Copies, s.Error = c.copiesOf(keyOf(m), move.To)
		out = append(out, s)
	}
	return out
}

func (c *Controller) copiesOf(key stageKey, to meta.ShardID) (copies []CopyStatus, failure string) {
	if r := c.replica(to); r != nil {
		if _, leads := r.group.Serving(); leads {
			return r.copiesOf(key)
		}
	}
	if stage := c.stages.get(key); stage != nil {
		p := stage.Progress()
		copies = []CopyStatus{{Node: c.Self(), Bytes: p.Bytes, BytesLeft: p.Left, Error: p.Error}}
	}
	return copies, ""
}

func (r *replica) copiesOf(key stageKey) (copies []CopyStatus, failure string) {
	st := &r.moving.status
	st.Lock()
	defer st.Unlock()
	if s := r.c.Image().Shard(r.id); s != nil {
		for _, node := range s.Nodes() {
			if x, ok := st.copies[node][key]; ok {
				copies = append(copies, CopyStatus{Node: node, Bytes: x.Bytes, BytesLeft: x.Left, Error: x.Error})
			}
		}
	}
	return copies, st.errs[key]
}

// CopiedBytes returns how much of a partition this node has copied for a move that is under way.
func (c *Controller) CopiedBytes(topic meta.TopicID, index int32) (bytes int64, ok bool) {
	p := c.Image().Partition(topic, index)
	if p == nil || p.Move == nil {
		return 0, false
	}
	stage := c.stages.get(stageKey{partition.Key{Topic: topic, Index: index}, p.Move.ID})
	if stage == nil {
		return 0, false
	}
	return stage.Progress().Bytes, true
}
