package broker

import (
	"context"
	"fmt"

	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/record"
	"sluice/core/shard"
)

// topic returns the topic that a request names by name or, when the name is empty, by id; nil and Kafka's code when there is none.
func (b *Broker) topic(name string, id meta.TopicID) (*meta.Topic, int16) {
	image := b.ctl.Image()
	if name != "" {
		if t := image.Topic(name); t != nil {
			return t, codeNone
		}
		return nil, codeUnknownTopicOrPartition
	}
	if id.IsZero() {
		return nil, codeUnknownTopicOrPartition
	}
	if t := image.TopicByID(id); t != nil {
		return t, codeNone
	}
	return nil, codeUnknownTopicID
}

// leaderFor returns this node's replica of a partition and its group when this node leads it and may answer for it; else Kafka's code.
func (b *Broker) leaderFor(topic *meta.Topic, index int32) (*partition.Partition, *shard.Group, int16) {
	p, g, code := b.replicaFor(topic, index)
	if code != codeNone {
		return nil, nil, code
	}
	if _, ok := g.Serving(); !ok {
		return nil, nil, codeNotLeaderOrFollower
	}
	return p, g, codeNone
}

// replicaFor returns this node's replica of a partition, whoever leads it.
func (b *Broker) replicaFor(topic *meta.Topic, index int32) (*partition.Partition, *shard.Group, int16) {
	if index < 0 || int(index) >= len(topic.Partitions) {
		return nil, nil, codeUnknownTopicOrPartition
	}
	p, g, ok := b.ctl.Local(topic.ID, index)
	if !ok {
		return nil, nil, codeNotLeaderOrFollower
	}
	return p, g, codeNone
}

// leader returns who leads a partition and in which leader epoch, as far as this node knows; NoNode and the last known epoch when nobody does.
func (b *Broker) leader(p *meta.Partition) (meta.NodeID, int32) {
	node, term, ok := b.ctl.LeaderOf(p.Shard)
	if s := b.ctl.Image().Shard(p.Shard); !ok && s != nil {
		node, term = meta.NoNode, s.Term // an epoch that went back would make clients ignore the answer
	}
	return node, p.EpochBase + int32(term)
}

// currentEpoch checks the leader epoch that a client believes in against the one that this node serves in; -1 is not checked (KIP-320).
func currentEpoch(claimed, current int32) int16 {
	switch {
	case claimed < 0 || claimed == current:
		return codeNone
	case claimed < current:
		return codeFencedLeaderEpoch
	}
	return codeUnknownLeaderEpoch
}

// rack returns a node's rack as responses carry it.
func rack(n meta.Node) *string {
	if n.Rack == "" {
		return nil
	}
	return &n.Rack
}

// appendBatch appends one sealed batch to a partition that this node leads and waits until it is committed and applied. It is how coordinators write their own
// topics. The batch is copied. err says what code stands for.
func (b *Broker) appendBatch(ctx context.Context, key partition.Key, batch record.Batch) (base int64, code int16, err error) {
	_, g, ok := b.ctl.Local(key.Topic, key.Index)
	if !ok {
		return -1, codeNotLeaderOrFollower, fmt.Errorf("append to %v: %w", key, shard.ErrNotLeader)
	}
	entry := partition.EncodeAppend([]partition.Append{{Key: key, Batches: batch}})
	result, err := g.Propose(entry).Wait(ctx)
	if err != nil {
		return -1, errorCode(err), fmt.Errorf("append to %v: %w", key, err)
	}
	r, ok := result.([]partition.AppendResult)
	if !ok || len(r) != 1 {
		panic(fmt.Sprintf("BUG: append answered with %T", result))
	}
	if r[0].Err != nil {
		return r[0].Base, errorCode(r[0].Err), fmt.Errorf("append to %v: %w", key, r[0].Err)
	}
	return r[0].Base, codeNone, nil
}
