package meta

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// membership draws a command about members, often one that fits.
func (h *history) membership(image *Image) Command {
	n := NodeID(rapid.IntRange(1, 5).Draw(h.t, "node"))
	node, _ := image.Node(n)
	switch rapid.IntRange(0, 6).Draw(h.t, "membership") {
	case 0, 1:
		return h.assign(image)
	case 2:
		return &DrainNode{Node: n, Drain: rapid.Bool().Draw(h.t, "drain")}
	case 3:
		return &UnregisterNode{Server: node.Server(), Dead: rapid.Bool().Draw(h.t, "dead"), LoseData: rapid.Bool().Draw(h.t, "lose")}
	case 4:
		var c ReplicasRemoved
		if s := h.shard(image); s != nil {
			c = ReplicasRemoved{Shard: s.ID, Generation: s.Generation - uint64(rapid.IntRange(0, 1).Draw(h.t, "late")), Servers: s.Leaving}
		}
		return &c
	case 5:
		var c ConfirmReplicaRemovals
		for _, id := range image.ReplicaRemovals(node.Server()) {
			c.Removals = append(c.Removals, ReplicaRemoval{Shard: id, Server: node.Server()})
		}
		return &c
	}
	if rapid.Bool().Draw(h.t, "end") {
		return &EndBalance{Request: image.BalanceRequest()}
	}
	return &RequestBalance{}
}

func (h *history) shard(image *Image) *Shard {
	if len(image.Shards()) == 0 {
		return nil
	}
	return rapid.SampledFrom(image.Shards()).Draw(h.t, "shard")
}

func (h *history) assign(image *Image) Command {
	s := h.shard(image)
	if s == nil {
		return &AssignShards{}
	}
	a := ShardAssignment{Shard: s.ID, Generation: s.Generation, From: s.Voters}
	for _, n := range image.Nodes() {
		if rapid.Bool().Draw(h.t, "votes") {
			a.Voters = append(a.Voters, n.Server())
		}
	}
	return &AssignShards{Items: []ShardAssignment{a}}
}

// checkMembers looks at what must hold of members in every image.
func checkMembers(t *rapid.T, i *Image) {
	for _, s := range i.Shards() {
		for _, v := range s.Voters {
			if slices.Contains(s.Leaving, v) {
				t.Fatalf("shard %d wants %s and has it leaving", s.ID, v)
			}
			if i.RemovesReplica(s.ID, v) {
				t.Fatalf("shard %d wants %s, which is to delete its replica", s.ID, v)
			}
			if n, ok := i.Node(v.Node); (!ok || n.Server() != v) && !s.Lost {
				t.Fatalf("shard %d wants %s, which is not registered", s.ID, v)
			}
		}
	}
	for _, r := range i.replicaRemovals.all() {
		if n, ok := i.Node(r.Server.Node); !ok || n.Server() != r.Server {
			t.Fatalf("%s is to delete a replica and is not registered: nobody would ever confirm it", r.Server)
		}
	}
}

func registered(t *testing.T, ids ...NodeID) (*State, func(Command) Result) {
	t.Helper()
	s, index := NewState(nil), uint64(0)
	do := func(c Command) Result {
		index++
		r, err := s.Apply(index, Encode(RequestID{}, c))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, id := range ids {
		do(&RegisterNode{Node: Node{ID: id, Incarnation: "a"}})
	}
	return s, do
}

func server3() []Server { return []Server{server(1, "a"), server(2, "a"), server(3, "a")} }

func TestReplicaGoesAndComesBack(t *testing.T) {
	s, do := registered(t, 1, 2, 3, 4)
	do(&CreateTopics{Shards: []ShardSpec{{ID: 1, Voters: server3()}}})
	away := []Server{server(1, "a"), server(2, "a"), server(4, "a")}
	assign := func(generation uint64, from, to []Server) *Error {
		return do(&AssignShards{Items: []ShardAssignment{{Shard: 1, Generation: generation, From: from, Voters: to}}}).Errors[0]
	}
	if err := assign(0, server3(), away); err != nil {
		t.Fatal(err)
	}
	if err := assign(0, server3(), away); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := assign(0, server3(), server3()[:2]); err == nil {
		t.Error("an assignment for what the shard was before is taken")
	}
	gone := &ReplicasRemoved{Shard: 1, Generation: 1, Servers: []Server{server(3, "a")}}
	if err := assign(1, away, server3()); err != nil {
		t.Fatal(err)
	}
	do(gone) // said in the generation before: node 3 is wanted again
	if s.Image().RemovesReplica(1, server(3, "a")) {
		t.Fatal("a late word takes a replica that is wanted")
	}
	if err := assign(2, server3(), away); err != nil {
		t.Fatal(err)
	}
	do(gone)
	if s.Image().RemovesReplica(1, server(3, "a")) {
		t.Fatal("a late word counts in another generation")
	}
	gone.Generation = 3
	do(gone)
	if got := s.Image().ReplicaRemovals(server(3, "a")); !slices.Equal(got, []ShardID{1}) || len(s.Image().Shard(1).Leaving) > 0 {
		t.Fatalf("records %v, leaving %v", got, s.Image().Shard(1).Leaving)
	}
	if err := assign(3, away, server3()); err == nil {
		t.Error("a node is to have a replica that it is deleting")
	}
	do(&ConfirmReplicaRemovals{Removals: []ReplicaRemoval{{Shard: 1, Server: server(3, "a")}}})
	if err := assign(3, away, server3()); err != nil {
		t.Error(err)
	}
}

func TestNodeIsRemovedForGood(t *testing.T) {
	s, do := registered(t, 1, 2, 3)
	do(&CreateTopics{Shards: []ShardSpec{{ID: 1, Voters: []Server{server(2, "a")}}}})
	do(&DrainNode{Node: 2, Drain: true})
	do(&RegisterNode{Node: Node{ID: 2, Incarnation: "a", Addr: "elsewhere"}})
	if n, _ := s.Image().Node(2); !n.Draining || n.Addr != "elsewhere" {
		t.Errorf("a registration ends a drain: %+v", n)
	}
	if r := do(&UnregisterNode{Server: server(2, "a"), Dead: true}); r.Err == nil {
		t.Fatal("a node with the only replica is removed")
	}
	if r := do(&UnregisterNode{Server: server(2, "a"), Dead: true, LoseData: true}); r.Err != nil || !s.Image().Shard(1).Lost {
		t.Fatal(r.Err)
	}
	if r := do(&UnregisterNode{Server: server(2, "a")}); r.Err != nil {
		t.Errorf("the same again: %v", r.Err)
	}
	if r := do(&RegisterNode{Node: Node{ID: 2, Incarnation: "a"}}); r.Err == nil {
		t.Error("a removed directory is let in")
	}
	if r := do(&RegisterNode{Node: Node{ID: 2, Incarnation: "b"}}); r.Err != nil {
		t.Error(r.Err)
	}
	if n, _ := s.Image().Node(2); n.Draining {
		t.Error("the new node drains")
	}
}

// A shard is moved away from the only server that has its data, and that one's directory is lost.
func TestDataIsLostWhileItMoves(t *testing.T) {
	for name, lose := range map[string]func(do func(Command) Result){
		"replaced": func(do func(Command) Result) {
			do(&FenceNode{Server: server(1, "a"), Fenced: true})
			do(&RegisterNode{Node: Node{ID: 1, Incarnation: "b"}})
		},
		"removed": func(do func(Command) Result) {
			do(&UnregisterNode{Server: server(1, "a"), Dead: true, LoseData: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, do := registered(t, 1, 2, 3)
			from, to, fresh := []Server{server(1, "a")}, []Server{server(2, "a")}, []Server{server(3, "a")}
			do(&CreateTopics{Shards: []ShardSpec{{ID: 1, Voters: from}}})
			do(&ReportShard{Shard: 1, Term: 4, Leader: 1, ISR: []NodeID{1}})
			do(&AssignShards{Items: []ShardAssignment{{Shard: 1, From: from, Voters: to}}})
			again := &RefoundShard{Shard: 1, Voters: fresh, Moving: true}
			if s.Image().HasLost(s.Image().Shard(1)) || do(again).Err == nil {
				t.Fatal("it is lost while the node that has it is there")
			}
			lose(do)
			if !s.Image().HasLost(s.Image().Shard(1)) {
				t.Fatal("it is not lost")
			}
			if do(&RefoundShard{Shard: 1, Voters: fresh}).Err == nil {
				t.Error("it began anew without Moving, as a node of an older release would not let it")
			}
			if r := do(again); r.Err != nil {
				t.Fatal(r.Err)
			}
			got := s.Image().Shard(1)
			if !slices.Equal(got.Founding, fresh) || !slices.Equal(got.Leaving, to) || got.Leader != NoNode || got.Term != 0 || s.Image().HasLost(got) {
				t.Errorf("%+v", got)
			}
			if r := do(again); r.Err != nil {
				t.Errorf("the same again: %v", r.Err)
			}
		})
	}
}

// The server that a shard was being moved to leads it after all, and says so late.
func TestDataThatHasMovedIsNotLost(t *testing.T) {
	s, do := registered(t, 1, 2)
	do(&CreateTopics{Shards: []ShardSpec{{ID: 1, Voters: []Server{server(1, "a")}}}})
	do(&ReportShard{Shard: 1, Term: 4, Leader: 1, ISR: []NodeID{1}})
	do(&AssignShards{Items: []ShardAssignment{{Shard: 1, From: []Server{server(1, "a")}, Voters: []Server{server(2, "a")}}}})
	do(&FenceNode{Server: server(1, "a"), Fenced: true})
	do(&RegisterNode{Node: Node{ID: 1, Incarnation: "b"}})
	do(&ReportShard{Shard: 1, Term: 5, Leader: 2, ISR: []NodeID{2}})
	if s.Image().HasLost(s.Image().Shard(1)) {
		t.Error("it is lost though it is led")
	}
	if do(&RefoundShard{Shard: 1, Voters: []Server{server(1, "b")}, Moving: true}).Err == nil {
		t.Error("a shard that is led began anew")
	}
}
