package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"sluice/core/meta"
	"sluice/core/partition"
)

// TestShardsBeginAnewOnTheNodeThatLostThem: the replica that waited there is founded, and may be so again where a
// shard was once moved away from.
func TestShardsBeginAnewOnTheNodeThatLostThem(t *testing.T) {
	beside(t)
	all := briskTrio(t)
	all[0].create(meta.NewTopic{Name: "one", Partitions: 6, ReplicationFactor: 1})
	load(t, all, "one", 5)
	victim, rest := all[2], all[:2]
	victim.crash()
	fresh := start(t, brisk(options(3, rest[0].Addr())))
	all = []*member{rest[0], rest[1], fresh}
	rest[0].eventually("shards to be lost", func() bool { return len(lostShards(rest[0].Image())) > 0 })
	lost := lostShards(rest[0].Image())
	for _, id := range lost { // to where the empty replica waits
		cmd := &meta.RefoundShard{Shard: id, Voters: []meta.Server{fresh.id.server()}}
		rest[0].without("a lost shard to be founded", func() string {
			if s := rest[0].Image().Shard(id); !s.Lost {
				return "" // by a try that was not answered
			}
			res, err := leaderOf(t, all).lead.propose(context.Background(), meta.RequestID{}, cmd)
			if err != nil {
				return err.Error()
			}
			if res.Err != nil {
				t.Fatal(res.Err)
			}
			return ""
		})
	}
	led(all[0], lost)
	elsewhere(t, all, lost, rest[0])
	ids := written(t, all, lost, 7)
	for id, keys := range ids {
		for _, key := range keys {
			m := memberOf(all, id)
			p, _, ok := m.Local(key.Topic, key.Index)
			if !ok || p.End() != 7 {
				t.Errorf("shard %d: %s has not the records that were written after it began anew", id, key)
			}
		}
	}
}

// wordOf is what an error says, "" without one.
func wordOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func lostShards(image *meta.Image) (ids []meta.ShardID) {
	for _, s := range image.Shards() {
		if s.Lost {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// led waits until the wanted member of each shard is known to lead it.
func led(m *member, ids []meta.ShardID) {
	m.t.Helper()
	m.eventually("leaders of the shards that begin anew", func() bool {
		return !slices.ContainsFunc(ids, func(id meta.ShardID) bool {
			s := m.Image().Shard(id)
			leader, _, ok := m.LeaderOf(id)
			return !ok || s.Term == 0 || s.Leader != s.Preferred() || leader != s.Preferred()
		})
	})
}

// elsewhere moves shards to another node.
func elsewhere(t *testing.T, all []*member, ids []meta.ShardID, to *member) {
	t.Helper()
	for _, id := range ids {
		all[0].eventually("the move to be taken", func() bool {
			return all[0].MoveShard(context.Background(), id, []meta.NodeID{to.Self()}) == nil
		})
	}
	all[0].eventually("the shards elsewhere", func() bool {
		return !slices.ContainsFunc(ids, func(id meta.ShardID) bool {
			s := all[0].Image().Shard(id)
			return !s.Has(to.id.server()) || len(s.Leaving) > 0 || s.Leader != to.Self()
		})
	})
	led(all[0], ids)
}

// written appends records to all partitions of shards.
func written(t *testing.T, all []*member, ids []meta.ShardID, n int) map[meta.ShardID][]partition.Key {
	t.Helper()
	out := make(map[meta.ShardID][]partition.Key)
	for _, id := range ids {
		for topic := range all[0].Image().ShardTopics(id) {
			for _, p := range topic.Partitions {
				if p.Shard != id {
					continue
				}
				m, key := memberOf(all, id), partition.Key{Topic: topic.ID, Index: p.Index}
				m.eventually("the partition", func() bool { return serves(all, m, topic.Name, p.Index) })
				appendRecords(t, []*member{m}, key, n, 0)
				out[id] = append(out[id], key)
			}
		}
	}
	return out
}

func memberOf(all []*member, id meta.ShardID) *member {
	return all[all[0].Image().Shard(id).Preferred()-1]
}

// TestMovedReplicaIsNotRemovedByForce: while a shard is being moved, the node that it leaves may have the only whole copy.
func TestMovedReplicaIsNotRemovedByForce(t *testing.T) {
	beside(t)
	all := briskTrio(t)
	ctx := context.Background()
	all[0].create(meta.NewTopic{Name: "one", Partitions: 6, ReplicationFactor: 1})
	load(t, all, "one", 5)
	victim, rest := all[2], all[:2]
	victim.crash()
	rest[0].eventually("fenced", func() bool { n, _ := rest[0].Image().Node(3); return n.Fenced })
	for _, s := range rest[0].Image().Shards() {
		if len(s.Voters) == 1 && s.Has(victim.id.server()) {
			rest[0].without("the move to be taken", func() string { return wordOf(rest[0].MoveShard(ctx, s.ID, []meta.NodeID{1})) })
		}
	}
	if err := rest[0].RemoveNode(ctx, 3, true, false); err == nil {
		t.Fatal("the node with the only copies was removed by force")
	}
	all[2] = start(t, victim.o)
	all[0].eventually("the shards moved", func() bool { return still(all[0].Image()) && len(lostShards(all[0].Image())) == 0 })
	holds(t, all, "one", 5)
}

// TestShardBeginsAnewThatWasLostWhileMoving: the node that it was moved to may be left with an empty replica, or with one that waits
// for a majority that will never be.
func TestShardBeginsAnewThatWasLostWhileMoving(t *testing.T) {
	all := briskTrio(t)
	ctx := context.Background()
	all[0].create(meta.NewTopic{Name: "one", Partitions: 6, ReplicationFactor: 1})
	load(t, all, "one", 5)
	victim, rest := all[2], all[:2]
	victim.crash()
	rest[0].eventually("fenced", func() bool { n, _ := rest[0].Image().Node(3); return n.Fenced })
	var lost []meta.ShardID
	for _, s := range rest[0].Image().Shards() {
		if len(s.Voters) != 1 || !s.Has(victim.id.server()) {
			continue
		}
		if lost = append(lost, s.ID); len(lost) == 1 { // the vote had come, and no more
			if err := rest[0].node.Bootstrap(s.ID, []meta.Server{victim.id.server(), rest[0].id.server()}); err != nil {
				t.Fatal(err)
			}
		}
		rest[0].without("the move to be taken", func() string { return wordOf(rest[0].MoveShard(ctx, s.ID, []meta.NodeID{1})) })
	}
	if len(lost) == 0 {
		t.Fatal("node 3 had nothing alone")
	}
	if err := rest[0].RecoverShard(ctx, lost[0], true); err == nil {
		t.Fatal("a shard began anew whose data may come back")
	}
	rest[0].eventually("the replica it was moved to", func() bool {
		r := rest[0].replica(lost[0])
		return r != nil && len(r.group.Replicas()) == 2
	})
	all = []*member{rest[0], rest[1], start(t, brisk(options(3, rest[0].Addr())))}
	for _, id := range lost {
		all[0].without("the shard to be lost, while it moves", func() string {
			if s := all[0].Image().Shard(id); s.Lost || !all[0].Image().HasLost(s) {
				return fmt.Sprintf("%+v", s)
			}
			return ""
		})
		if id != lost[0] {
			all[0].eventually("the shard to begin anew", func() bool { return all[0].RecoverShard(ctx, id, true) == nil })
			continue
		}
		cmd := &meta.RefoundShard{Shard: id, Voters: []meta.Server{all[0].id.server()}, Moving: true} // to where the old replica waits
		all[0].without("the shard to be founded", func() string {
			if s := all[0].Image().Shard(id); !all[0].Image().HasLost(s) {
				return "" // by a try that was not answered
			}
			res, err := leaderOf(t, all).lead.propose(ctx, meta.RequestID{}, cmd)
			if err == nil && res.Err != nil {
				t.Fatal(res.Err)
			}
			return wordOf(err)
		})
	}
	led(all[0], lost)
	written(t, all, lost, 7)
}

// TestStraysAreNotWantedByOpenReplicas: what was set aside may be removed when every replica of the node is open and whole.
func TestStraysAreNotWantedByOpenReplicas(t *testing.T) {
	all := briskTrio(t)
	all[0].create(meta.NewTopic{Name: "one", Partitions: 6, ReplicationFactor: 1})
	load(t, all, "one", 5)
	m := all[0]
	var here, elsewhere meta.ShardID
	for _, s := range m.Image().Shards() {
		if s.Has(m.id.server()) {
			here = s.ID
		} else {
			elsewhere = s.ID
		}
	}
	if m.mayWant(here, true) || m.mayWant(elsewhere, true) || m.mayWant(0, false) {
		t.Fatal("open replicas want what was set aside")
	}
	// The same node, seen as if that replica was not open yet; the running one would open it.
	c := &Controller{o: m.Controller.o, id: m.id, machine: m.machine}
	rest := maps.Clone(m.replicaMap())
	delete(rest, here)
	c.replicas.Store(&rest)
	if !c.mayWant(here, true) || !c.mayWant(0, false) || c.mayWant(elsewhere, true) {
		t.Error("a replica that is not open yet wants nothing")
	}
}
