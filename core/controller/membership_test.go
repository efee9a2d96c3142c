package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"sluice/core/meta"
)

// grow starts a further node that takes replicas at once.
func grow(t *testing.T, all []*member, id meta.NodeID) []*member {
	t.Helper()
	m := start(t, brisk(options(id, all[0].Addr())))
	return append(slices.Clone(all), m)
}

// brisk makes a node that does not wait before it moves replicas and leaders.
func brisk(o Options) Options {
	o.JoinStable, o.PreferredDelay = time.Millisecond, 200*time.Millisecond
	return o
}

func briskTrio(t *testing.T) []*member {
	t.Helper()
	a := start(t, brisk(options(1)))
	all := []*member{a}
	for id := range 2 {
		all = grow(t, all, meta.NodeID(id+2))
	}
	a.eventually("three voters", func() bool { return voters(a) == 3 })
	return all
}

// replicasOn counts the wanted and remaining replicas of a node.
func replicasOn(image *meta.Image, id meta.NodeID) int {
	n, _ := image.Node(id)
	return replicaCount(image, n.Server())
}

// still tells whether no replica is on its way and everybody is in sync.
func still(image *meta.Image) bool {
	for _, s := range image.Shards() {
		if len(s.Leaving) > 0 || !s.Lost && len(s.ISR) != len(s.Voters) {
			return false
		}
	}
	return image.BalanceRequest() == 0
}

// load appends n records to each partition once nothing moves and the preferred leaders lead.
func load(t *testing.T, all []*member, topic string, n int) {
	t.Helper()
	all[0].eventually("preferred leaders", func() bool {
		for _, s := range all[0].Image().Shards() {
			leader, _, ok := all[0].LeaderOf(s.ID)
			if !s.Lost && (!ok || leader != s.Preferred() || s.Leader != leader) {
				return false
			}
		}
		return still(all[0].Image())
	})
	fill(t, all, topic, n)
}

func balanced(image *meta.Image, nodes ...meta.NodeID) bool {
	least, most, leads := 1<<30, 0, map[meta.NodeID]int{}
	for _, s := range image.Shards() {
		leads[s.Leader]++
	}
	for _, id := range nodes {
		n := replicasOn(image, id)
		least, most = min(least, n), max(most, n)
		if leads[id] == 0 {
			return false
		}
	}
	return still(image) && most-least <= 1
}

// holds waits until every replica of a topic has the same n records in each partition. What a node shall have is asked anew each time: its image
// may be late, and replicas move.
func holds(t *testing.T, all []*member, topic string, n int64) {
	t.Helper()
	for _, m := range all {
		m.without(fmt.Sprintf("%d records in each partition of %s", n, topic), func() string {
			image := m.Image()
			tp := image.Topic(topic)
			if tp == nil {
				return "it is not known"
			}
			for _, p := range tp.Partitions {
				if s := image.Shard(p.Shard); s == nil || !s.Has(m.id.server()) {
					continue
				}
				part, _, ok := m.Local(tp.ID, p.Index)
				if !ok {
					return fmt.Sprintf("no replica of %s-%d", topic, p.Index)
				}
				if part.End() != n {
					return fmt.Sprintf("%s-%d ends at %d", topic, p.Index, part.End())
				}
			}
			return ""
		})
	}
}

func TestFourthNodeGetsReplicasAndLeaders(t *testing.T) {
	beside(t)
	all := briskTrio(t)
	all[0].create(meta.NewTopic{Name: "t", Partitions: 6, ReplicationFactor: 3}, meta.NewTopic{Name: "one", Partitions: 6, ReplicationFactor: 1})
	load(t, all, "t", 20)
	load(t, all, "one", 5)
	all = grow(t, all, 4)
	fourth := all[3]
	fourth.eventually("its share of replicas and leaders", func() bool { return balanced(fourth.Image(), 1, 2, 3, 4) })
	fourth.eventually("a shard with partitions to lead", func() bool {
		return slices.ContainsFunc(fourth.Image().Shards(), func(s *meta.Shard) bool { return s.Leader == 4 && s.Partitions > 0 })
	})
	holds(t, all, "t", 20)
	holds(t, all, "one", 5)
	for _, m := range all {
		m.eventually("only wanted replicas", func() bool { return len(m.replicaMap()) == replicasOn(m.Image(), m.Self()) })
		onlyWanted(t, m)
	}
	served(t, all, "t")
	load(t, all, "t", 5)
	holds(t, all, "t", 25)
}

// patientTrio are three nodes, with shards on them, that give replicas to no node before it has been alive for so long.
func patientTrio(t *testing.T, stable time.Duration) []*member {
	t.Helper()
	var all []*member
	for id := range meta.NodeID(3) {
		o := options(id + 1)
		if len(all) > 0 {
			o = options(id+1, all[0].Addr())
		}
		o.JoinStable = stable
		all = append(all, start(t, o))
	}
	all[0].eventually("three voters", func() bool { return voters(all[0]) == 3 })
	all[0].create(meta.NewTopic{Name: "t", Partitions: 6, ReplicationFactor: 3})
	all[0].eventually("shards at rest", func() bool { return still(all[0].Image()) })
	return all
}

// A node that has just joined is noticed while it is empty, though it gets its share later: a topic that is made meanwhile gives it something.
func TestNewNodeIsNoticedAtOnce(t *testing.T) {
	beside(t)
	all := patientTrio(t, time.Hour)
	all = append(all, start(t, options(4, all[0].Addr())))
	all[0].eventually("a request to balance", func() bool { return all[0].Image().BalanceRequest() != 0 })
}

func TestRequestToBalanceWaitsForANewNode(t *testing.T) {
	beside(t)
	all := patientTrio(t, 2*time.Second)
	off := meta.ConfigChange{Type: meta.ResourceBroker, Set: map[string]string{meta.AutoBalanceEnable: "false"}}
	all[0].without("an answer to the change of a setting", func() string {
		return wordOf(all[0].AlterConfigs(context.Background(), []meta.ConfigChange{off})[0])
	})
	all = append(all, start(t, options(4, all[0].Addr())))
	all[0].create(meta.NewTopic{Name: "meanwhile", Partitions: 8, ReplicationFactor: 3})
	if err := all[0].Balance(t.Context()); err != nil {
		t.Fatal(err)
	}
	all[0].eventually("a share for the new node", func() bool { return balanced(all[0].Image(), 1, 2, 3, 4) && all[0].Image().BalanceRequest() == 0 })
}

// onlyWanted waits until a node has the directories of the partitions whose replicas it shall have, and no others.
func onlyWanted(t *testing.T, m *member) {
	t.Helper()
	m.without("only wanted directories", func() string {
		names, err := m.o.FS.List("/data")
		if err != nil {
			t.Fatal(err)
		}
		for tp := range m.Image().Topics() {
			for _, p := range tp.Partitions {
				has := m.Image().Shard(p.Shard).Has(m.id.server())
				if dir := fmt.Sprintf("%s-%d", tp.Name, p.Index); slices.Contains(names, dir) != has {
					return fmt.Sprintf("node %d: replica of %s wanted: %t, there: %t", m.Self(), dir, has, !has)
				}
			}
		}
		return ""
	})
}

func TestDrainAndRemove(t *testing.T) {
	beside(t)
	all := grow(t, briskTrio(t), 4)
	all[3].create(meta.NewTopic{Name: "t", Partitions: 8, ReplicationFactor: 3}, meta.NewTopic{Name: "one", Partitions: 4, ReplicationFactor: 1})
	load(t, all, "t", 20)
	load(t, all, "one", 5)
	ctx := context.Background()
	first, rest := all[0], all[1:]
	if err := first.RemoveNode(ctx, 1, false, false); err == nil {
		t.Fatal("a node with replicas was removed")
	}
	rest[0].without("the drain to begin", func() string { return wordOf(rest[0].Drain(ctx, 1, false)) })
	rest[0].eventually("node 1 to be empty", func() bool { return replicasOn(rest[0].Image(), 1) == 0 && still(rest[0].Image()) })
	holds(t, rest, "t", 20)
	holds(t, rest, "one", 5)
	onlyWanted(t, first)
	rest[0].eventually("node 1 to be removed", func() bool { return rest[1].RemoveNode(ctx, 1, false, false) == nil })
	select {
	case <-first.done:
	case <-time.After(patience):
		t.Fatal("the removed node goes on")
	}
	rest[0].eventually("three voters", func() bool {
		leader := leaderOf(t, rest)
		return voters(leader) == 3 && len(leader.group().Replicas()) == 3
	})
	rest[2].create(plain("after"))
	served(t, rest, "after")
	load(t, rest, "t", 5)
	holds(t, rest, "t", 25)
}

func TestDeadNodeIsReplaced(t *testing.T) {
	beside(t)
	all := grow(t, briskTrio(t), 4)
	all[0].create(meta.NewTopic{Name: "t", Partitions: 8, ReplicationFactor: 3})
	load(t, all, "t", 20)
	change := meta.ConfigChange{Type: meta.ResourceBroker, Set: map[string]string{meta.AutoBalanceDeadMs: "1000"}}
	all[0].without("the setting", func() string {
		return wordOf(all[0].AlterConfigs(context.Background(), []meta.ConfigChange{change})[0])
	})
	victim := all[3]
	rest := all[:3]
	victim.crash()
	rest[0].eventually("its replicas elsewhere", func() bool {
		for _, s := range rest[0].Image().Shards() {
			if s.Has(victim.id.server()) || len(s.ISR) != 3 || len(s.Leaving) > 0 {
				return false
			}
		}
		return true
	})
	holds(t, rest, "t", 20)
	back := victim.restart()
	all[3] = back
	back.eventually("its share again", func() bool { return balanced(back.Image(), 1, 2, 3, 4) })
	holds(t, all, "t", 20)
	onlyWanted(t, back)
}

func TestDeadNodeIsRemovedByForce(t *testing.T) {
	beside(t)
	all := briskTrio(t)
	all[0].create(meta.NewTopic{Name: "t", Partitions: 6, ReplicationFactor: 3}, meta.NewTopic{Name: "one", Partitions: 3, ReplicationFactor: 1})
	load(t, all, "t", 20)
	ctx := context.Background()
	victim, rest := all[2], all[:2]
	if err := rest[0].RemoveNode(ctx, 3, true, false); err == nil {
		t.Fatal("a node that is alive was removed by force")
	}
	victim.crash()
	rest[0].eventually("fenced", func() bool { n, _ := rest[0].Image().Node(3); return n.Fenced })
	rest[0].eventually("removal refused for the data only it has", func() bool {
		err := rest[0].RemoveNode(ctx, 3, true, false)
		return err != nil && len(err.Error()) > 0
	})
	rest[0].eventually("removal", func() bool { return rest[0].RemoveNode(ctx, 3, true, true) == nil })
	rest[0].eventually("two replicas each", func() bool {
		for _, s := range rest[0].Image().Shards() {
			if !s.Lost && (s.Has(victim.id.server()) || len(s.Leaving) > 0) {
				return false
			}
		}
		return true
	})
	rest = grow(t, rest, 5)
	fifth := rest[2]
	fifth.eventually("three replicas again", func() bool {
		for _, s := range fifth.Image().Shards() {
			if !s.Lost && len(s.ISR) != int(s.ReplicationFactor) {
				return false
			}
		}
		return true
	})
	holds(t, rest, "t", 20)
	recovers(t, rest, "one")
	old := launch(t, victim.o)
	select {
	case <-old.done:
		if old.err == nil {
			t.Error("the removed node ended without saying why")
		}
	case <-time.After(patience):
		t.Fatal("the removed node was let in again")
	}
}

// The leader of the metadata, and with it a shard's leader, dies again and again while a node is drained: whoever is next goes on.
func TestDrainGoesOnWithoutItsLeader(t *testing.T) {
	beside(t)
	all := grow(t, grow(t, briskTrio(t), 4), 5)
	all[0].create(meta.NewTopic{Name: "t", Partitions: 10, ReplicationFactor: 3})
	load(t, all, "t", 20)
	drained := leaderOf(t, all)
	id := drained.Self()
	drained.without("the drain to begin", func() string { return wordOf(drained.Drain(context.Background(), id, false)) })
	for range 3 {
		victim := leaderOf(t, all)
		at := slices.Index(all, victim)
		image := victim.Image()
		victim.eventually("a change under way", func() bool {
			return victim.Image().Index() > image.Index()+3 || replicasOn(victim.Image(), id) == 0
		})
		victim.crash()
		all[at] = victim.restart()
	}
	m := others(all, all[slices.IndexFunc(all, func(m *member) bool { return m.Self() == id })])[0]
	m.eventually("the node to be empty", func() bool { return replicasOn(m.Image(), id) == 0 && still(m.Image()) })
	holds(t, all, "t", 20)
	for _, x := range all {
		x.eventually("only wanted replicas", func() bool { return len(x.replicaMap()) == replicasOn(x.Image(), x.Self()) })
		onlyWanted(t, x)
	}
}

// A node gives a replica away and gets it back, several times: no record of an earlier removal takes the new one.
func TestReplicaMovesAwayAndBack(t *testing.T) {
	beside(t)
	all := grow(t, briskTrio(t), 4)
	all[0].create(meta.NewTopic{Name: "t", Partitions: 4, ReplicationFactor: 3})
	load(t, all, "t", 20)
	all[3].eventually("rest", func() bool { return still(all[3].Image()) })
	ctx := context.Background()
	s := all[0].Image().Shards()[0]
	out := s.Nodes()
	away := slices.Clone(out)
	for _, m := range all {
		if !slices.Contains(out, m.Self()) {
			away[2] = m.Self()
		}
	}
	for range 3 {
		for _, to := range [][]meta.NodeID{away, out} {
			all[0].eventually("the move to be taken", func() bool { return all[0].MoveShard(ctx, s.ID, to) == nil })
			all[1].eventually("the shard where it is wanted", func() bool {
				now := all[1].Image().Shard(s.ID)
				return slices.Equal(now.Nodes(), to) && len(now.Leaving) == 0 && len(now.ISR) == 3
			})
		}
	}
	if err := all[0].MoveShard(ctx, s.ID, out[:2]); err == nil {
		t.Error("a shard lost a replica by a move")
	}
	if err := all[0].MoveShard(ctx, s.ID, []meta.NodeID{1, 1, 2}); err == nil {
		t.Error("a node got two replicas")
	}
	if err := all[0].MoveShard(ctx, s.ID, []meta.NodeID{1, 2, 9}); err == nil {
		t.Error("a node that does not exist got a replica")
	}
	holds(t, all, "t", 20)
}

func TestElectPreferred(t *testing.T) {
	beside(t)
	all := trio(t)
	all[0].create(plain("t"))
	ctx := context.Background()
	s := all[0].Image().Shards()[0]
	all[1].without("the preferred leader to lead", func() string {
		if err := all[1].ElectPreferred(ctx, s.ID); !errors.Is(err, ErrElectionNotNeeded) {
			return fmt.Sprint(err)
		}
		return ""
	})
	leader := all[s.Preferred()-1]
	to := s.Nodes()[1]
	asked := all[s.Nodes()[2]-1]
	asked.without("the other leader", func() string {
		if now, _, ok := asked.LeaderOf(s.ID); ok && now == to {
			return ""
		}
		return fmt.Sprint(leader.replica(s.ID).group.Transfer(ctx, to)) // again, when it has got the lead back meanwhile
	})
	asked.without("an election", func() string {
		if err := asked.ElectPreferred(ctx, s.ID); err != nil && !errors.Is(err, ErrElectionNotNeeded) {
			return err.Error()
		}
		return ""
	})
	asked.eventually("the preferred leader to lead again", func() bool { now, _, ok := asked.LeaderOf(s.ID); return ok && now == s.Preferred() })
}

// recovers begins the lost shards of a topic anew and checks that its partitions are served with higher leader epochs.
func recovers(t *testing.T, all []*member, topic string) {
	t.Helper()
	m := all[0]
	lost := map[int32]int32{}
	for _, p := range m.Image().Topic(topic).Partitions {
		s := m.Image().Shard(p.Shard)
		if !s.Lost {
			if err := m.RecoverShard(context.Background(), s.ID, false); err == nil {
				t.Fatalf("shard %d has its data and is begun anew", s.ID)
			}
			continue
		}
		lost[p.Index] = p.EpochBase + int32(s.Term)
		m.without("the shard to begin anew", func() string {
			err := m.RecoverShard(context.Background(), s.ID, false)
			if err != nil && m.Image().Shard(s.ID).Lost {
				return err.Error()
			}
			return "" // or it did so at an earlier try, or with its neighbour
		})
	}
	if len(lost) == 0 {
		t.Fatal("no partition was lost")
	}
	for index, epoch := range lost {
		m.without("a leader of the new shard, of a higher epoch", func() string {
			image := m.Image()
			p := image.Topic(topic).Partitions[index]
			leader, _, ok := m.LeaderOf(p.Shard)
			term := image.Shard(p.Shard).Term
			if now := p.EpochBase + int32(term); !ok || term == 0 || now <= epoch {
				return fmt.Sprintf("%s-%d: leader %d, known: %t, leader epoch %d after %d", topic, index, leader, ok, now, epoch)
			}
			return ""
		})
		m.eventually("the partition", func() bool { return serves(all, m, topic, index) })
	}
	m.eventually("no lost shard", func() bool {
		return !slices.ContainsFunc(m.Image().Shards(), func(s *meta.Shard) bool { return s.Lost })
	})
	load(t, all, topic, 3)
}

// serves tells whether the leader of a partition has it and serves.
func serves(all []*member, m *member, topic string, index int32) bool {
	tp := m.Image().Topic(topic)
	leader, _, ok := m.LeaderOf(tp.Partitions[index].Shard)
	at := slices.IndexFunc(all, func(x *member) bool { return x.Self() == leader })
	if !ok || at < 0 {
		return false
	}
	_, g, there := all[at].Local(tp.ID, index)
	if !there {
		return false
	}
	_, serves := g.Serving()
	return serves
}
