package controller

import (
	"cmp"
	"slices"

	"sluice/core/meta"
)

// shardsMax bounds the Raft groups of a cluster: each manual assignment with a new list of
// replicas needs one, and idle groups are cheap but not free.
const shardsMax = 1024

// placement decides where partitions go. It is pure: an image, who is alive, and the partitions
// placed so far in this plan. What it decides is carried in the command.
//
// A replication factor has its pool of shards: perNode for each live node, which is the preferred
// leader of those. Partitions are spread over leaders first, then over shards.
type placement struct {
	image   *meta.Image
	live    func(meta.NodeID) bool
	perNode int

	created []meta.ShardSpec
	voters  map[meta.ShardID][]meta.Server
	load    map[meta.ShardID]int // partitions, with the planned ones
	factor  map[meta.ShardID]int // how many voters a shard shall have
}

func newPlacement(image *meta.Image, live func(meta.NodeID) bool, perNode int) *placement {
	p := &placement{
		image: image, live: live, perNode: perNode,
		voters: make(map[meta.ShardID][]meta.Server), load: make(map[meta.ShardID]int),
		factor: make(map[meta.ShardID]int),
	}
	for _, s := range image.Shards() {
		if !image.HasLost(s) {
			p.voters[s.ID], p.load[s.ID], p.factor[s.ID] = s.Voters, s.Partitions, int(s.ReplicationFactor)
		}
	}
	return p
}

// undoTo forgets what was planned after a mark, for a topic that turns out to be refused.
func (p *placement) undoTo(mark int) {
	for _, s := range p.created[mark:] {
		delete(p.voters, s.ID)
		delete(p.load, s.ID)
		delete(p.factor, s.ID)
	}
	p.created = p.created[:mark]
}

func (p *placement) add(voters []meta.Server) meta.ShardID {
	id := p.image.NextShard() + meta.ShardID(len(p.created))
	p.created = append(p.created, meta.ShardSpec{ID: id, Voters: voters})
	p.voters[id], p.load[id], p.factor[id] = voters, 0, len(voters)
	return id
}

// pool returns the shards with rf voters that new partitions may go to, creating what is missing.
// They are in a fixed order.
func (p *placement) pool(rf int) []meta.ShardID {
	for _, n := range p.leaders() {
		for p.led(n.ID, rf) < p.perNode && len(p.voters) < shardsMax {
			p.add(p.chooseVoters(n, rf))
		}
	}
	var ids []meta.ShardID
	for id, voters := range p.voters {
		if p.factor[id] == rf && p.mayLead(voters[0].Node) && p.hasMajority(voters) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// leaders are the nodes that may be preferred leaders of new shards: the live ones that do not drain.
func (p *placement) leaders() []meta.Node {
	return slices.DeleteFunc(slices.Clone(p.image.Nodes()), func(n meta.Node) bool { return !p.mayLead(n.ID) })
}

func (p *placement) mayLead(id meta.NodeID) bool {
	n, ok := p.image.Node(id)
	return ok && !n.Draining && p.live(id)
}

func (p *placement) hasMajority(voters []meta.Server) bool {
	up := 0
	for _, v := range voters {
		if p.live(v.Node) {
			up++
		}
	}
	return up > len(voters)/2
}

// led counts the shards with rf voters that a node shall lead.
func (p *placement) led(node meta.NodeID, rf int) int {
	n := 0
	for id, voters := range p.voters {
		if p.factor[id] == rf && voters[0].Node == node {
			n++
		}
	}
	return n
}

// replicas counts the shards that have a replica on each node.
func (p *placement) replicas() map[meta.NodeID]int {
	n := make(map[meta.NodeID]int)
	for _, voters := range p.voters {
		for _, v := range voters {
			n[v.Node]++
		}
	}
	return n
}

// chooseVoters returns rf voters that begin with the leader: nodes that are alive and do not drain first, then racks not yet
// used, then the nodes with the fewest replicas, then the next higher id.
func (p *placement) chooseVoters(leader meta.Node, rf int) []meta.Server {
	voters := []meta.Server{leader.Server()}
	racks := map[string]bool{leader.Rack: true}
	count := p.replicas()
	rest := slices.DeleteFunc(slices.Clone(p.image.Nodes()), func(n meta.Node) bool { return n.ID == leader.ID })
	for len(voters) < rf && len(rest) > 0 {
		rank := func(n meta.Node) [4]int64 {
			return [4]int64{
				boolRank(!p.mayLead(n.ID)), boolRank(racks[n.Rack]), int64(count[n.ID]),
				(int64(n.ID) - int64(leader.ID)) & (1<<32 - 1), // a ring: after the leader come the higher ids
			}
		}
		best := slices.MinFunc(rest, func(a, b meta.Node) int { ra, rb := rank(a), rank(b); return slices.Compare(ra[:], rb[:]) })
		voters = append(voters, best.Server())
		racks[best.Rack] = true
		rest = slices.DeleteFunc(rest, func(n meta.Node) bool { return n.ID == best.ID })
	}
	return voters
}

func boolRank(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// spread places n further partitions of a topic; have are the shards of those that it has already.
// It returns nil when there is no shard to put them in.
func (p *placement) spread(n int32, rf int, have []meta.ShardID) []meta.ShardID {
	pool := p.pool(rf)
	if len(pool) == 0 {
		return nil
	}
	ofLeader, ofShard := make(map[meta.NodeID]int), make(map[meta.ShardID]int)
	count := func(id meta.ShardID) {
		ofShard[id]++
		if v := p.voters[id]; len(v) > 0 {
			ofLeader[v[0].Node]++
		}
	}
	for _, id := range have {
		count(id)
	}
	out := make([]meta.ShardID, 0, n)
	for range n {
		id := slices.MinFunc(pool, func(a, b meta.ShardID) int {
			return cmp.Or(
				cmp.Compare(ofLeader[p.voters[a][0].Node], ofLeader[p.voters[b][0].Node]),
				cmp.Compare(ofShard[a], ofShard[b]),
				cmp.Compare(p.load[a], p.load[b]),
				cmp.Compare(a, b))
		})
		out = append(out, id)
		count(id)
		p.load[id]++
	}
	return out
}

// exactly returns the shard whose voters are these nodes in this order, creating it if need be.
// ok is false when the cluster has too many shards.
func (p *placement) exactly(nodes []meta.NodeID) (id meta.ShardID, ok bool) {
	voters := make([]meta.Server, len(nodes))
	for i, id := range nodes {
		n, _ := p.image.Node(id)
		voters[i] = n.Server()
	}
	best, found := meta.ShardID(0), false
	for id, have := range p.voters {
		if slices.Equal(have, voters) && (!found || p.load[id] < p.load[best] || p.load[id] == p.load[best] && id < best) {
			best, found = id, true
		}
	}
	switch {
	case !found && len(p.voters) >= shardsMax:
		return 0, false
	case !found:
		best = p.add(voters)
	}
	p.load[best]++
	return best, true
}
