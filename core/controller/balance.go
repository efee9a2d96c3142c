package controller

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"sluice/core/meta"
)

const (
	// movesAtOnce is how many shards of the cluster may have a replica on its way to another node: what they copy shares
	// disks and network with live traffic, and a move that is done early frees a disk early.
	movesAtOnce = 3
	// targetPatience is how long a node that is to take a replica may be silent before another one is chosen, also where replicas
	// of dead nodes are not replaced: the move would hold up a drain.
	targetPatience = time.Minute
)

// balancer decides which members shards shall have. It is pure: an image, who is alive, for how long others have been silent. It
// changes one replica of a shard at a time, and only a few shards at once; the next round sees how far they are.
//
// What is asked of it, the first first: replicas leave nodes that drain or have been dead for long; shards get back the replicas
// that they lack; and, where the metadata asks for balance, replicas are spread over racks, then evenly over nodes, then leaders.
type balancer struct {
	image *meta.Image
	// takes tells whether a node may get replicas: it is alive, has been for a while, and does not drain.
	takes func(meta.NodeID) bool
	// alive tells whether a node answers.
	alive func(meta.NodeID) bool
	// silent returns for how long a node has not answered, 0 for one that is alive.
	silent func(meta.NodeID) time.Duration
	// deadAfter is after how long the replicas of a silent node are made elsewhere; 0 means never.
	deadAfter time.Duration

	voters  map[meta.ShardID][]meta.Server // as planned so far
	changed map[meta.ShardID]bool
	count   map[meta.NodeID]int // replicas
	led     map[meta.NodeID]int // shards that the node shall lead
	budget  int
	moving  int
	blocked []blockedReplica
}

// blockedReplica is a replica that should leave its node and has nowhere to go.
type blockedReplica struct {
	Shard meta.ShardID
	Node  meta.NodeID
}

// begin counts what there is.
func (b *balancer) begin() {
	b.voters, b.changed = make(map[meta.ShardID][]meta.Server), make(map[meta.ShardID]bool)
	b.count, b.led = make(map[meta.NodeID]int), make(map[meta.NodeID]int)
	b.moving, b.blocked = 0, nil
	for _, s := range b.image.Shards() {
		if s.Lost {
			continue
		}
		b.voters[s.ID] = s.Voters
		for _, v := range s.Voters {
			b.count[v.Node]++
		}
		b.led[s.Preferred()]++
		b.moving += boolToInt(b.busy(s))
	}
	b.budget = movesAtOnce - b.moving
}

// plan returns the next changes; balance: also those that spread replicas and leaders.
func (b *balancer) plan(balance bool) []meta.ShardAssignment {
	b.begin()
	b.evacuate()
	b.complete()
	if balance {
		b.spreadRacks()
		b.spreadReplicas()
	}
	if balance && b.moving == 0 && len(b.changed) == 0 {
		b.spreadLeaders()
	}
	return b.result()
}

func (b *balancer) result() []meta.ShardAssignment {
	var out []meta.ShardAssignment
	for _, id := range slices.Sorted(maps.Keys(b.changed)) {
		s := b.image.Shard(id)
		out = append(out, meta.ShardAssignment{Shard: id, Generation: s.Generation, From: s.Voters, Voters: b.voters[id]})
	}
	return out
}

// busy tells whether a change of the shard's members is under way.
func (b *balancer) busy(s *meta.Shard) bool {
	if len(s.Leaving) > 0 {
		return true
	}
	return slices.ContainsFunc(s.Voters, func(v meta.Server) bool { return b.alive(v.Node) && !slices.Contains(s.ISR, v.Node) })
}

// free tells whether the shard may be given another member now.
func (b *balancer) free(s *meta.Shard) bool {
	return !s.Lost && !b.changed[s.ID] && !b.busy(s) && b.hasMajority(s)
}

func (b *balancer) hasMajority(s *meta.Shard) bool {
	up := 0
	for _, v := range s.Voters {
		up += boolToInt(b.alive(v.Node))
	}
	return up > len(s.Voters)/2
}

// mustLeave tells whether a wanted member of a shard shall be replaced.
func (b *balancer) mustLeave(s *meta.Shard, v meta.Server) bool {
	n, ok := b.image.Node(v.Node)
	if !ok || n.Draining {
		return true
	}
	silent := b.silent(v.Node)
	if len(s.Leaving) > 0 && silent > targetPatience && !slices.Contains(s.ISR, v.Node) {
		return true
	}
	return b.deadAfter > 0 && silent > b.deadAfter
}

// evacuate replaces members that must leave: of each shard one, where a node can take the replica.
func (b *balancer) evacuate() {
	for _, s := range b.image.Shards() {
		if s.Lost || b.changed[s.ID] {
			continue
		}
		for at, v := range s.Voters {
			if b.mustLeave(s, v) && b.replaceable(s, v) && b.evacuateReplica(s, at) {
				break
			}
		}
	}
}

// replaceable tells whether the shard can replace that member now. One that a move waits for in vain may be replaced although the
// shard is busy with that move: only it can end it.
func (b *balancer) replaceable(s *meta.Shard, v meta.Server) bool {
	if b.free(s) {
		return b.budget > 0
	}
	return len(s.Leaving) > 0 && !b.alive(v.Node) && !slices.Contains(s.ISR, v.Node)
}

func (b *balancer) evacuateReplica(s *meta.Shard, at int) (changed bool) {
	if to, ok := b.candidate(s, at); ok {
		b.replace(s, at, to)
		return true
	}
	b.blocked = append(b.blocked, blockedReplica{s.ID, s.Voters[at].Node})
	if at != 0 || b.busy(s) {
		return false
	}
	return b.passLead(s)
}

// passLead lets another member lead a shard whose first one should go and cannot.
func (b *balancer) passLead(s *meta.Shard) bool {
	best := -1
	for i, v := range s.Voters[1:] {
		if b.takes(v.Node) && (best < 0 || b.led[v.Node] < b.led[s.Voters[best].Node]) {
			best = i + 1
		}
	}
	if best > 0 {
		b.lead(s, best)
	}
	return best > 0
}

// lead makes the member at an index the preferred leader.
func (b *balancer) lead(s *meta.Shard, at int) {
	voters := slices.Clone(b.voters[s.ID])
	b.led[voters[0].Node]--
	b.led[voters[at].Node]++
	voters[0], voters[at] = voters[at], voters[0]
	b.voters[s.ID], b.changed[s.ID] = voters, true
}

// candidate chooses who gets the replica at an index: somebody who still has it, then racks that the shard does not use, then the
// nodes with the fewest replicas, then those that lead least.
func (b *balancer) candidate(s *meta.Shard, at int) (meta.Server, bool) {
	racks := b.racksWithout(s, at)
	rank := func(n meta.Node) [5]int {
		return [5]int{
			boolToInt(!slices.Contains(s.Leaving, n.Server())), boolToInt(racks[n.Rack]), b.count[n.ID], b.led[n.ID], int(n.ID),
		}
	}
	var best *meta.Node
	for _, n := range b.image.Nodes() {
		if !b.canTake(s, n) {
			continue
		}
		if best == nil {
			best = &n
			continue
		}
		if x, y := rank(n), rank(*best); slices.Compare(x[:], y[:]) < 0 {
			best = &n
		}
	}
	if best == nil {
		return meta.Server{}, false
	}
	return best.Server(), true
}

func (b *balancer) canTake(s *meta.Shard, n meta.Node) bool {
	has := slices.ContainsFunc(b.voters[s.ID], func(v meta.Server) bool { return v.Node == n.ID })
	return !has && b.takes(n.ID) && !b.image.RemovesReplica(s.ID, n.Server())
}

// racksWithout returns the racks of a shard's members but the one at an index.
func (b *balancer) racksWithout(s *meta.Shard, at int) map[string]bool {
	racks := make(map[string]bool)
	for i, v := range b.voters[s.ID] {
		if n, ok := b.image.Node(v.Node); ok && i != at {
			racks[n.Rack] = true
		}
	}
	return racks
}

// replace plans another server at an index of a shard's members; an index behind the last adds one.
func (b *balancer) replace(s *meta.Shard, at int, to meta.Server) {
	voters := slices.Clone(b.voters[s.ID])
	if at == len(voters) {
		voters = append(voters, to)
	} else {
		b.count[voters[at].Node]--
		b.led[voters[0].Node]--
		voters[at] = to
		if at == 0 {
			b.leastLedFirst(voters)
		}
		b.led[voters[0].Node]++
	}
	b.count[to.Node]++
	b.voters[s.ID], b.changed[s.ID] = voters, true
	b.budget--
}

// leastLedFirst gives the lead of a shard whose leader goes to the member that leads least. Among equals it is not the new one, at
// the front: the others can lead at once.
func (b *balancer) leastLedFirst(voters []meta.Server) {
	best := 0
	for i, v := range voters {
		if b.takes(v.Node) && (b.led[v.Node] < b.led[voters[best].Node] || best == 0 && b.led[v.Node] == b.led[voters[0].Node]) {
			best = i
		}
	}
	voters[0], voters[best] = voters[best], voters[0]
}

// complete gives shards back the replicas that they lack since a dead node was removed.
func (b *balancer) complete() {
	for _, s := range b.image.Shards() {
		if b.budget <= 0 {
			return
		}
		if have := len(s.Voters); have < int(s.ReplicationFactor) && b.free(s) {
			if to, ok := b.candidate(s, have); ok {
				b.replace(s, have, to)
			}
		}
	}
}

// spreadRacks moves a replica out of a rack that a shard uses twice, where another one has a node.
func (b *balancer) spreadRacks() {
	for _, s := range b.image.Shards() {
		if b.budget <= 0 {
			return
		}
		if b.free(s) {
			b.spreadRack(s)
		}
	}
}

func (b *balancer) spreadRack(s *meta.Shard) {
	for at := len(s.Voters) - 1; at >= 0; at-- { // the leader last
		n, _ := b.image.Node(s.Voters[at].Node)
		racks := b.racksWithout(s, at)
		if !racks[n.Rack] {
			continue
		}
		to, ok := b.candidate(s, at)
		if taker, _ := b.image.Node(to.Node); ok && !racks[taker.Rack] {
			b.replace(s, at, to)
			return
		}
	}
}

// spreadReplicas moves replicas from the nodes with the most to those with the fewest until they differ by one at most.
func (b *balancer) spreadReplicas() {
	for b.budget > 0 && b.spreadOne() {
	}
}

// spreadOne plans the move that evens out most.
func (b *balancer) spreadOne() bool {
	nodes := b.takers()
	slices.SortStableFunc(nodes, func(x, y meta.Node) int { return cmp.Compare(b.count[x.ID], b.count[y.ID]) })
	for _, to := range nodes {
		for i := len(nodes) - 1; i >= 0; i-- {
			from := nodes[i]
			if b.count[from.ID]-b.count[to.ID] < 2 {
				break
			}
			if s, at := b.movable(from, to); s != nil {
				b.replace(s, at, to.Server())
				return true
			}
		}
	}
	return false
}

// takers are the nodes that replicas are spread over, by id.
func (b *balancer) takers() []meta.Node {
	return slices.DeleteFunc(slices.Clone(b.image.Nodes()), func(n meta.Node) bool { return !b.takes(n.ID) })
}

// movable returns the shard whose replica had best go from one node to another, and which of its members that is; nil when there
// is none. Shards with records come first, as long as the taker has fewer of them; then those whose leader need not change.
func (b *balancer) movable(from, to meta.Node) (best *meta.Shard, at int) {
	var bestRank [3]int
	lacks := b.partitions(to.ID) < b.partitions(from.ID)
	for _, s := range b.image.Shards() {
		i := slices.IndexFunc(b.voters[s.ID], func(v meta.Server) bool { return v.Node == from.ID })
		if i < 0 || !b.free(s) || !b.canTake(s, to) {
			continue
		}
		if racks := b.racksWithout(s, i); racks[to.Rack] && !racks[from.Rack] {
			continue // it would be worse off
		}
		rank := [3]int{boolToInt((s.Partitions > 0) != lacks), boolToInt(i == 0 && b.led[from.ID] <= b.led[to.ID]), int(s.ID)}
		if best == nil || slices.Compare(rank[:], bestRank[:]) < 0 {
			best, at, bestRank = s, i, rank
		}
	}
	return best, at
}

// partitions counts the partitions that have a replica on a node.
func (b *balancer) partitions(id meta.NodeID) int {
	n := 0
	for shard, voters := range b.voters {
		if slices.ContainsFunc(voters, func(v meta.Server) bool { return v.Node == id }) {
			n += b.image.Shard(shard).Partitions
		}
	}
	return n
}

// spreadLeaders makes other members the preferred leaders until each node leads its share of the shards that have partitions, and
// its share of the others. No data moves.
func (b *balancer) spreadLeaders() {
	for _, used := range []bool{true, false} {
		var shards []*meta.Shard
		for _, s := range b.image.Shards() {
			if (s.Partitions > 0) == used && !s.Lost && len(s.Voters) > 1 {
				shards = append(shards, s)
			}
		}
		// Each path makes two nodes that differ by two or more differ by two less, so there are fewer than shards.
		for range shards {
			if !b.shiftLead(shards) {
				break
			}
		}
	}
}

// shiftLead takes one shard's lead from the node that leads most and can give one up, and gives one to a node that leads at least two fewer,
// over as many nodes in between as it takes.
func (b *balancer) shiftLead(shards []*meta.Shard) bool {
	led := make(map[meta.NodeID]int)
	for _, s := range shards {
		led[b.voters[s.ID][0].Node]++
	}
	nodes := b.takers()
	slices.SortStableFunc(nodes, func(x, y meta.Node) int { return cmp.Compare(led[y.ID], led[x.ID]) })
	for _, n := range nodes {
		if b.shiftFrom(n.ID, shards, led) {
			return true
		}
	}
	return false
}

// handOff is a step of a path: a shard whose lead goes to its member at an index.
type handOff struct {
	shard *meta.Shard
	at    int
	from  meta.NodeID
}

// shiftFrom searches, breadth first, a path from a node to one that leads two fewer, and goes it.
func (b *balancer) shiftFrom(start meta.NodeID, shards []*meta.Shard, led map[meta.NodeID]int) bool {
	reached := map[meta.NodeID]handOff{start: {}}
	for queue := []meta.NodeID{start}; len(queue) > 0; queue = queue[1:] {
		node := queue[0]
		if led[start]-led[node] >= 2 {
			for node != start {
				step := reached[node]
				b.lead(step.shard, step.at)
				node = step.from
			}
			return true
		}
		for _, s := range shards {
			voters := b.voters[s.ID]
			if voters[0].Node != node || b.changed[s.ID] {
				continue
			}
			for at, v := range voters {
				if _, seen := reached[v.Node]; !seen && b.takes(v.Node) {
					reached[v.Node] = handOff{s, at, node}
					queue = append(queue, v.Node)
				}
			}
		}
	}
	return false
}
