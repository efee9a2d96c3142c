package controller

import (
	"testing"

	"pgregory.net/rapid"

	"sluice/core/meta"
	"sluice/core/shard"
)

func srv(id int) meta.Server { return meta.Server{Node: meta.NodeID(id), Incarnation: "a"} }

func group(ids ...int) (out []shard.Replica) {
	for _, id := range ids {
		out = append(out, shard.Replica{Server: srv(id), Voter: true, InSync: true})
	}
	return out
}

func servers(ids ...int) (out []meta.Server) {
	for _, id := range ids {
		out = append(out, srv(id))
	}
	return out
}

// quorumWorld is a metadata group whose leader changes its members.
type quorumWorld struct {
	have      []shard.Replica
	leader    meta.Server
	dead, bad map[meta.Server]bool
	q         quorum
}

func (w *quorumWorld) step() change {
	for i := range w.have {
		w.have[i].InSync = !w.dead[w.have[i].Server]
	}
	r := &roster{have: w.have, self: w.leader, usable: func(s meta.Server) bool { return !w.dead[s] }}
	w.q.bad = func(s meta.Server) bool { return w.bad[s] }
	x := r.towardsQuorum(&w.q)
	switch x.what {
	case actAdd:
		w.have = append(w.have, shard.Replica{Server: x.who})
	case actTransfer:
		w.leader = x.who
	}
	for i := range w.have {
		if w.have[i].Server != x.who {
			continue
		}
		switch x.what {
		case actPromote:
			w.have[i].Voter = true
		case actDemote:
			w.have[i].Voter = false
		case actRemove:
			w.have = append(w.have[:i:i], w.have[i+1:]...)
		}
		break
	}
	return x
}

// run goes on until nothing is left to do.
func (w *quorumWorld) run(t interface{ Fatalf(string, ...any) }) {
	for range 100 {
		x := w.step()
		if x.what == actNothing {
			return
		}
		if x.who == w.leader && (x.what == actDemote || x.what == actRemove) {
			t.Fatalf("the leader %s takes its own vote", x.who)
		}
		up, all := 0, 0
		for _, r := range w.have {
			all += boolToInt(r.Voter)
			up += boolToInt(r.Voter && !w.dead[r.Server])
		}
		if up <= all/2 {
			t.Fatalf("%v leaves no majority: %+v", x, w.have)
		}
	}
	t.Fatalf("it does not come to rest: %+v", w.have)
}

func (w *quorumWorld) voters() map[meta.NodeID]bool {
	out := map[meta.NodeID]bool{}
	for _, r := range w.have {
		if r.Voter {
			out[r.Server.Node] = true
		}
	}
	return out
}

func TestMetadataVotes(t *testing.T) {
	set := func(list []meta.Server) map[meta.Server]bool {
		m := map[meta.Server]bool{}
		for _, s := range list {
			m[s] = true
		}
		return m
	}
	for _, c := range []struct {
		name      string
		have      []int
		nodes     []int
		dead, bad []int
		target    int
		want      []int
	}{
		{name: "two more nodes", have: []int{1}, nodes: []int{1, 2, 3}, target: 3, want: []int{1, 2, 3}},
		{name: "a second node only follows", have: []int{1}, nodes: []int{1, 2}, target: 1, want: []int{1}},
		{name: "a dead one is replaced", have: []int{1, 2, 3}, nodes: []int{1, 2, 3, 4}, dead: []int{3}, bad: []int{3}, target: 3, want: []int{1, 2, 4}},
		{name: "a dead one that nobody replaces stays", have: []int{1, 2, 3}, nodes: []int{1, 2, 3}, dead: []int{3}, bad: []int{3}, target: 3, want: []int{1, 2, 3}},
		{name: "the leader drains", have: []int{1, 2, 3}, nodes: []int{1, 2, 3, 4}, bad: []int{1}, target: 3, want: []int{2, 3, 4}},
		{name: "an empty one leaves two", have: []int{1, 2, 3}, nodes: []int{1, 2, 3}, bad: []int{3}, target: 1, want: []int{1, 2}},
		{name: "a removed one", have: []int{1, 2, 3}, nodes: []int{1, 2}, dead: []int{3}, bad: []int{3}, target: 1, want: []int{1, 2}},
		{name: "a removed one is replaced first", have: []int{1, 2, 3}, nodes: []int{1, 2, 4}, dead: []int{3}, bad: []int{3}, target: 3, want: []int{1, 2, 4}},
	} {
		w := &quorumWorld{have: group(c.have...), leader: srv(1), dead: set(servers(c.dead...)), bad: set(servers(c.bad...)), q: quorum{nodes: servers(c.nodes...), target: c.target}}
		w.run(t)
		got := w.voters()
		for _, id := range c.want {
			if !got[meta.NodeID(id)] || len(got) != len(c.want) {
				t.Errorf("%s: voters %v, want %v", c.name, got, c.want)
				break
			}
		}
	}
}

// Whoever drains or dies, the group keeps a majority, and ends with as many good voters as it can have.
func TestMetadataVotesComeToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 9).Draw(t, "nodes")
		w := &quorumWorld{have: group(1), leader: srv(1), dead: map[meta.Server]bool{}, bad: map[meta.Server]bool{}}
		for id := 1; id <= n; id++ {
			w.q.nodes = append(w.q.nodes, srv(id))
		}
		w.q.target = metadataVoters(n)
		w.run(t)
		for id := 2; id <= n; id++ {
			if rapid.IntRange(0, 3).Draw(t, "drains") == 0 {
				w.bad[srv(id)] = true
			}
		}
		w.run(t)
		good := n - len(w.bad)
		voters := w.voters()
		for s := range w.bad {
			if voters[s.Node] && good >= w.q.target {
				t.Fatalf("%s drains, votes, and %d others could: %v", s, good, voters)
			}
		}
		if len(voters) < min(good, w.q.target) {
			t.Fatalf("%d voters of %d", len(voters), w.q.target)
		}
	})
}
