package controller

import (
	"context"
	"testing"

	"sluice/core/meta"
	"sluice/core/partition"
)

// reassign asks for the replicas of a partition to be elsewhere and waits until they are.
func reassign(t *testing.T, all []*member, topic string, index int32, replicas ...meta.NodeID) {
	t.Helper()
	begin(t, all[0], Reassignment{Topic: topic, Index: index, Replicas: replicas})
	moved(t, all, topic, index, replicas...)
}

func begin(t *testing.T, m *member, items ...Reassignment) {
	t.Helper()
	for i, err := range m.Reassign(context.Background(), items, false) {
		if err != nil {
			t.Fatalf("%+v: %v", items[i], err)
		}
	}
}

// moved waits until a partition has its replicas there, for everybody, and is led.
func moved(t *testing.T, all []*member, topic string, index int32, replicas ...meta.NodeID) {
	t.Helper()
	for _, m := range all {
		m.eventually("partition moved", func() bool {
			p := m.Image().Topic(topic).Partitions[index]
			nodes := m.Image().Shard(p.Shard).Nodes()
			if p.Move != nil || len(nodes) != len(replicas) {
				return false
			}
			for i := range nodes {
				if nodes[i] != replicas[i] {
					return false
				}
			}
			return true
		})
	}
}

// leaderReplica returns the replica that leads a partition.
func leaderReplica(t *testing.T, all []*member, topic string, index int32) (*member, *partition.Partition) {
	t.Helper()
	for _, m := range all {
		p, g, ok := m.Local(m.Image().Topic(topic).ID, index)
		if !ok {
			continue
		}
		if _, serves := g.Serving(); serves {
			return m, p
		}
	}
	return nil, nil
}

func TestIdlePartitionMoves(t *testing.T) {
	all := trio(t)
	a := all[0]
	a.create(meta.NewTopic{Name: "t", Partitions: -1, ReplicationFactor: -1, Assignments: map[int32][]meta.NodeID{0: {1}, 1: {1}}})
	topic := a.Image().Topic("t")
	key := partition.Key{Topic: topic.ID, Index: 0}
	appendRecords(t, a, key, 100, 1000)
	reassign(t, all, "t", 0, 2)
	leader, p := leaderReplica(t, all, "t", 0)
	if leader == nil || leader.Self() != 2 || p.End() != 100 {
		t.Fatalf("%v %v", leader, p)
	}
	appendRecords(t, all[1], key, 5, 2000)
	if p.End() != 105 {
		t.Fatalf("ends at %d", p.End())
	}
	a.eventually("the source lets go", func() bool {
		_, ok := a.replica(topic.Partitions[1].Shard).set.Get(key)
		return !ok && len(a.Image().Removals(topic.Partitions[1].Shard)) == 0
	})
}
