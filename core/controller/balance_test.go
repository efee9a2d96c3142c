package controller

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"sluice/core/meta"
	"sluice/core/shard"
)

// simulation is a cluster without goroutines: the metadata, the members of each shard's group, and what the leaders report.
type simulation struct {
	*world
	t      interface{ Fatalf(string, ...any) }
	groups map[meta.ShardID][]shard.Replica
	leads  map[meta.ShardID]meta.NodeID
	added  int // replicas that were copied
	after  time.Duration
}

func newSimulation(t interface{ Fatalf(string, ...any) }, nodes, racks int) *simulation {
	s := &simulation{world: &world{state: meta.NewState(nil), dead: map[meta.NodeID]bool{}}, t: t}
	s.groups, s.leads = map[meta.ShardID][]shard.Replica{}, map[meta.ShardID]meta.NodeID{}
	for n := range nodes {
		s.join(meta.NodeID(n+1), fmt.Sprint("rack", n%racks))
	}
	return s
}

func (s *simulation) image() *meta.Image { return s.state.Image() }

func (s *simulation) alive(id meta.NodeID) bool { return !s.dead[id] }

func (s *simulation) balancer() *balancer {
	image := s.image()
	return &balancer{
		image: image, alive: s.alive, deadAfter: s.after,
		takes: func(id meta.NodeID) bool { n, _ := image.Node(id); return s.alive(id) && !n.Draining },
		silent: func(id meta.NodeID) time.Duration {
			if s.alive(id) {
				return 0
			}
			return time.Hour
		},
	}
}

// found opens the groups of new shards.
func (s *simulation) found() {
	for _, sh := range s.image().Shards() {
		if s.groups[sh.ID] != nil {
			continue
		}
		for _, v := range sh.Founding {
			s.groups[sh.ID] = append(s.groups[sh.ID], shard.Replica{Server: v, Voter: true, InSync: true})
		}
		s.report(sh.ID)
	}
}

// report elects a leader where there is none, and tells the metadata.
func (s *simulation) report(id meta.ShardID) {
	var isr []meta.NodeID
	voters := 0
	sh := s.image().Shard(id)
	for i, r := range s.groups[id] {
		s.groups[id][i].InSync = s.alive(r.Server.Node)
		if !r.Voter {
			continue
		}
		voters++
		if s.alive(r.Server.Node) {
			isr = append(isr, r.Server.Node)
		}
	}
	if len(isr) <= voters/2 {
		s.leads[id] = meta.NoNode
		return
	}
	if !slices.Contains(isr, s.leads[id]) {
		s.leads[id] = isr[0]
	}
	if p := sh.Preferred(); slices.Contains(isr, p) && s.leads[id] != p {
		s.leads[id] = p
	}
	s.do(&meta.ReportShard{Shard: id, Term: 1, Leader: s.leads[id], ISR: isr})
}

// duty is one round of a shard's leader.
func (s *simulation) duty(id meta.ShardID) (changed bool) {
	s.report(id)
	sh := s.image().Shard(id)
	leader, _ := s.image().Node(s.leads[id])
	if s.leads[id] == meta.NoNode || sh.Lost {
		return false
	}
	r := &roster{have: slices.Clone(s.groups[id]), self: leader.Server(), usable: func(x meta.Server) bool { return s.alive(x.Node) }}
	next := r.towards(sh.Voters)
	s.apply(sh, next)
	if next.what == actNothing {
		var gone []meta.Server
		for _, x := range sh.Leaving {
			if !isMember(s.groups[id], x) {
				gone = append(gone, x)
			}
		}
		if len(gone) == 0 {
			return false
		}
		s.do(&meta.ReplicasRemoved{Shard: id, Generation: sh.Generation, Servers: gone})
	}
	s.report(id)
	return true
}

func (s *simulation) apply(sh *meta.Shard, x change) {
	g := s.groups[sh.ID]
	at := slices.IndexFunc(g, func(r shard.Replica) bool { return r.Server == x.who })
	switch x.what {
	case actAdd:
		if s.image().RemovesReplica(sh.ID, x.who) {
			s.t.Fatalf("%s is added to shard %d while it has still to delete its replica", x.who, sh.ID)
		}
		s.added++
		s.groups[sh.ID] = append(g, shard.Replica{Server: x.who})
	case actPromote:
		if !g[at].InSync {
			s.t.Fatalf("%s gets a vote in shard %d and is not in sync", x.who, sh.ID)
		}
		g[at].Voter = true
	case actTransfer:
		if !g[at].Voter || !g[at].InSync {
			s.t.Fatalf("shard %d is handed to %s: %+v", sh.ID, x.who, g[at])
		}
		s.leads[sh.ID] = x.who.Node
	case actRemove:
		s.checkRemoval(sh, g[at], slices.Delete(slices.Clone(g), at, at+1))
		s.groups[sh.ID] = slices.Delete(g, at, at+1)
	}
}

// checkRemoval: a group never gets smaller than it shall be, and keeps a majority of those that answer.
func (s *simulation) checkRemoval(sh *meta.Shard, gone shard.Replica, rest []shard.Replica) {
	voters, up := 0, 0
	for _, r := range rest {
		voters += boolToInt(r.Voter)
		up += boolToInt(r.Voter && s.alive(r.Server.Node))
	}
	switch {
	case sh.Has(gone.Server):
		s.t.Fatalf("shard %d: the wanted member %s is removed", sh.ID, gone.Server)
	case gone.Server.Node == s.leads[sh.ID]:
		s.t.Fatalf("shard %d: the leader %s removes itself", sh.ID, gone.Server)
	case gone.Voter && voters < len(sh.Voters):
		s.t.Fatalf("shard %d is left with %d voters of %d: %+v", sh.ID, voters, len(sh.Voters), rest)
	case gone.Voter && up <= voters/2:
		s.t.Fatalf("shard %d is left without a majority: %+v", sh.ID, rest)
	}
}

// round is one of the metadata leader's. It tells whether it planned anything.
func (s *simulation) round() bool {
	request := s.image().BalanceRequest()
	b := s.balancer()
	items := b.plan(request != 0)
	if moves := b.moving + countMoves(items); countMoves(items) > 0 && moves > movesAtOnce+retargeted(items, s.image()) {
		s.t.Fatalf("%d shards move at once", moves)
	}
	if len(items) > 0 {
		for i, e := range s.do(&meta.AssignShards{Items: items}).Errors {
			if e != nil {
				s.t.Fatalf("%+v: %s", items[i], e.Message)
			}
			if n := replaced(items[i]); n > 1 {
				s.t.Fatalf("%d replicas of shard %d are moved at once", n, items[i].Shard)
			}
		}
		return true
	}
	if request != 0 && b.moving == 0 {
		s.do(&meta.EndBalance{Request: request})
		return true
	}
	return false
}

// replaced counts the new members of a shard.
func replaced(a meta.ShardAssignment) int {
	n := 0
	for _, v := range a.Voters {
		n += boolToInt(!slices.Contains(a.From, v))
	}
	return n
}

func countMoves(items []meta.ShardAssignment) int {
	n := 0
	for _, a := range items {
		n += boolToInt(replaced(a) > 0)
	}
	return n
}

// retargeted counts the moves that replace one that goes on already.
func retargeted(items []meta.ShardAssignment, image *meta.Image) int {
	n := 0
	for _, a := range items {
		n += boolToInt(len(image.Shard(a.Shard).Leaving) > 0)
	}
	return n
}

// confirm lets the nodes that are alive delete what they shall.
func (s *simulation) confirm() (changed bool) {
	for _, n := range s.image().Nodes() {
		for _, id := range s.image().ReplicaRemovals(n.Server()) {
			if !s.alive(n.ID) {
				continue
			}
			if isMember(s.groups[id], n.Server()) {
				s.t.Fatalf("node %d deletes its replica of shard %d and is a member", n.ID, id)
			}
			s.do(&meta.ConfirmReplicaRemovals{Removals: []meta.ReplicaRemoval{{Shard: id, Server: n.Server()}}})
			changed = true
		}
	}
	return changed
}

// settle goes on until nothing changes, which must be soon.
func (s *simulation) settle() {
	for _, sh := range s.image().Shards() {
		s.report(sh.ID)
	}
	for range 1000 {
		changed := s.round()
		for _, sh := range s.image().Shards() {
			changed = s.duty(sh.ID) || changed
		}
		if !s.confirm() && !changed {
			return
		}
	}
	s.t.Fatalf("it does not come to rest")
}

func (s *simulation) makeTopics(rfs ...int) {
	for i, rf := range rfs {
		r := s.create(meta.NewTopic{Name: fmt.Sprint("t", i, "-", s.index), Partitions: int32(2 + i%5), ReplicationFactor: int16(rf)})
		if r[0].Err != nil {
			s.t.Fatalf("create: %s", r[0].Err.Message)
		}
	}
	s.found()
}

func (s *simulation) replicas() map[meta.NodeID]int {
	n := map[meta.NodeID]int{}
	for _, sh := range s.image().Shards() {
		for _, v := range sh.Voters {
			n[v.Node]++
		}
	}
	return n
}

// spreadOf returns the difference between most and fewest over the nodes that take part.
func (s *simulation) spreadOf(count map[meta.NodeID]int) int {
	least, most := 1<<30, 0
	for _, n := range s.balancer().takers() {
		least, most = min(least, count[n.ID]), max(most, count[n.ID])
	}
	return most - least
}

func (s *simulation) leaderSpread() (worst int) {
	for _, used := range []bool{true, false} {
		count := map[meta.NodeID]int{}
		for _, sh := range s.image().Shards() {
			if (sh.Partitions > 0) == used && len(sh.Voters) > 1 {
				count[sh.Preferred()]++
			}
		}
		worst = max(worst, s.spreadOf(count))
	}
	return worst
}

func TestJoinMovesAsLittleAsPossible(t *testing.T) {
	for nodes := 3; nodes <= 6; nodes++ {
		s := newSimulation(t, nodes, 100)
		s.makeTopics(3, 3, 1)
		s.do(&meta.RequestBalance{})
		s.settle()
		s.added = 0
		s.join(meta.NodeID(nodes+1), "new")
		s.do(&meta.RequestBalance{})
		s.settle()
		got := s.replicas()[meta.NodeID(nodes+1)]
		if s.spreadOf(s.replicas()) > 1 || s.added != got || got == 0 {
			t.Errorf("%d nodes and one more: replicas %v, %d were copied", nodes, s.replicas(), s.added)
		}
		if s.leaderSpread() > 1 {
			t.Errorf("%d nodes and one more: leaders differ by %d", nodes, s.leaderSpread())
		}
	}
}

func TestDrainedNodeIsEmptied(t *testing.T) {
	s := newSimulation(t, 4, 4)
	s.makeTopics(3, 3, 2, 1)
	s.do(&meta.DrainNode{Node: 2, Drain: true})
	s.settle()
	if n := replicaCount(s.image(), s.server(2)); n != 0 {
		t.Fatalf("%d replicas are left", n)
	}
	if got := s.spreadOf(s.replicas()); got > 2 {
		t.Errorf("replicas differ by %d: %v", got, s.replicas())
	}
	if r := s.do(&meta.UnregisterNode{Server: s.server(2)}); r.Err != nil {
		t.Fatal(r.Err)
	}
}

func TestDrainWaitsForANode(t *testing.T) {
	s := newSimulation(t, 3, 3)
	s.makeTopics(3)
	s.do(&meta.DrainNode{Node: 2, Drain: true})
	s.settle()
	if n := s.replicas()[2]; n == 0 {
		t.Fatal("the replicas went to a node that has one already")
	}
	for _, sh := range s.image().Shards() {
		if sh.Preferred() == 2 {
			t.Errorf("shard %d is to be led by a node that drains", sh.ID)
		}
	}
	b := s.balancer()
	b.begin()
	b.evacuate()
	if len(b.blocked) != len(s.image().Shards()) {
		t.Errorf("blocked: %v", b.blocked)
	}
	s.join(4, "d")
	s.settle()
	if n := s.replicas()[2]; n != 0 {
		t.Fatalf("%d replicas are left although there is a node", n)
	}
}

// A node that a replica was moving to dies before it has it: the move goes elsewhere, or back.
func TestDeadTargetIsReplaced(t *testing.T) {
	s := newSimulation(t, 5, 5)
	s.makeTopics(3)
	s.do(&meta.DrainNode{Node: 1, Drain: true})
	s.round()
	var target meta.NodeID
	for _, sh := range s.image().Shards() {
		for _, v := range sh.Voters {
			if len(sh.Leaving) > 0 && !slices.Contains(sh.ISR, v.Node) {
				target = v.Node
			}
		}
	}
	if target == 0 {
		t.Fatal("nothing moves")
	}
	s.dead[target] = true
	s.settle()
	for _, sh := range s.image().Shards() {
		if len(sh.Leaving) > 0 || sh.Has(s.server(1)) {
			t.Errorf("shard %d has %v, leaving %v, in sync %v", sh.ID, sh.Nodes(), sh.Leaving, sh.ISR)
		}
	}
}

func (s *simulation) server(id meta.NodeID) meta.Server {
	n, _ := s.image().Node(id)
	return n.Server()
}

// Nodes come, go, drain and die at any moment; then there is peace, and everything comes to where it shall be.
func TestBalanceComesToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(3, 6).Draw(t, "nodes")
		s := newSimulation(t, nodes, rapid.IntRange(1, nodes).Draw(t, "racks"))
		s.after = time.Minute
		s.makeTopics(3, 1, 2, 3)
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			s.disturb(t, &nodes)
		}
		for id := range s.dead {
			delete(s.dead, id)
		}
		for _, n := range s.image().Nodes() {
			s.do(&meta.DrainNode{Node: n.ID, Drain: n.ID == 1 && nodes > 3})
		}
		s.do(&meta.RequestBalance{})
		s.settle()
		s.checkRest(t)
	})
}

func (s *simulation) disturb(t *rapid.T, nodes *int) {
	id := meta.NodeID(rapid.IntRange(1, *nodes).Draw(t, "node"))
	switch rapid.IntRange(0, 9).Draw(t, "what") {
	case 0:
		if *nodes < 8 {
			*nodes++
			s.join(meta.NodeID(*nodes), fmt.Sprint("rack", *nodes%3))
		}
	case 1:
		s.do(&meta.DrainNode{Node: id, Drain: rapid.Bool().Draw(t, "drain")})
	case 2:
		s.dead[id] = rapid.Bool().Draw(t, "dead")
		for _, sh := range s.image().Shards() {
			s.report(sh.ID)
		}
	case 3:
		s.do(&meta.RequestBalance{})
	case 4:
		s.confirm()
	case 5, 6:
		s.round()
	default:
		for _, sh := range s.image().Shards() {
			if rapid.Bool().Draw(t, "duty") {
				s.duty(sh.ID)
			}
		}
	}
}

// checkRest looks at a cluster in which everybody lives and nothing is left to do.
func (s *simulation) checkRest(t *rapid.T) {
	image := s.image()
	for _, sh := range image.Shards() {
		if len(sh.Voters) != int(sh.ReplicationFactor) || len(sh.Leaving) > 0 || len(s.groups[sh.ID]) != len(sh.Voters) {
			t.Fatalf("shard %d: %d voters of %d, leaving %v, members %+v", sh.ID, len(sh.Voters), sh.ReplicationFactor, sh.Leaving, s.groups[sh.ID])
		}
		for _, r := range s.groups[sh.ID] {
			if !sh.Has(r.Server) || !r.Voter {
				t.Fatalf("shard %d wants %v and has %+v", sh.ID, sh.Voters, s.groups[sh.ID])
			}
		}
		s.checkRacks(t, sh)
	}
	for _, n := range image.Nodes() {
		if n.Draining && replicaCount(image, n.Server()) > 0 {
			t.Fatalf("node %d drains and has %d replicas", n.ID, replicaCount(image, n.Server()))
		}
	}
	if oneRack(image) && s.spreadOf(s.replicas()) > 1 {
		t.Fatalf("replicas: %v", s.replicas())
	}
	if again := s.balancer().plan(true); len(again) > 0 {
		t.Fatalf("another plan wants %+v", again)
	}
}

func oneRack(image *meta.Image) bool {
	return !slices.ContainsFunc(image.Nodes(), func(n meta.Node) bool { return n.Rack != image.Nodes()[0].Rack })
}

// checkRacks: a shard has as many racks as it has replicas, or as there are.
func (s *simulation) checkRacks(t *rapid.T, sh *meta.Shard) {
	used, there := map[string]bool{}, map[string]bool{}
	for _, v := range sh.Voters {
		n, _ := s.image().Node(v.Node)
		used[n.Rack] = true
	}
	for _, n := range s.balancer().takers() {
		there[n.Rack] = true
	}
	if len(used) < min(len(there), len(sh.Voters)) {
		t.Fatalf("shard %d is on %d racks of %d", sh.ID, len(used), len(there))
	}
}
