package meta

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// Levels of what a node can apply. A command of a higher level is only made once every node that is alive says that it has that
// level: a node of an older release would stop at it (ErrNewer).
const (
	// LevelMembership: AssignShards to EndBalance, kinds 20 to 29.
	LevelMembership = 1
	// LevelMoves: ChangeMoves to FinishMove, kinds 30 to 39, and the entries of package partition that go with them.
	LevelMoves = 2
	// LevelRefound: RefoundShard, kind 27.
	LevelRefound = 3
	// LevelRefoundMoving: RefoundShard with Moving.
	LevelRefoundMoving = 4
	// LevelCompaction: the entry of package partition that swaps segments.
	LevelCompaction = 5
	// Level is this release's.
	Level = LevelCompaction
)

// unregisteredMax is how many removed nodes are remembered. One that is older, and whose directory is started again after all, is
// known to nobody and gets no answer; it does no harm.
const unregisteredMax = 1000

// Kinds of the commands that change who is a member of what.
const (
	kindAssignShards kind = iota + 20
	kindDrainNode
	kindUnregisterNode
	kindReplicasRemoved
	kindConfirmReplicaRemovals
	kindRequestBalance
	kindEndBalance
	kindRefoundShard
)

// AssignShards gives shards other wanted members, each for itself: Result.Errors has one answer each, nil for what was done.
type AssignShards struct {
	Items []ShardAssignment `cbor:"1,keyasint"`
}

// ShardAssignment wants Voters, the preferred leader first, as the members of a shard that has the members From in the
// given generation. It is refused when the shard has changed meanwhile, and done already when it has these voters.
type ShardAssignment struct {
	Shard      ShardID  `cbor:"1,keyasint"`
	Generation uint64   `cbor:"2,keyasint"`
	From       []Server `cbor:"3,keyasint"`
	Voters     []Server `cbor:"4,keyasint"`
}

// DrainNode says that a node shall have no replicas, or that it may have some again.
type DrainNode struct {
	Node  NodeID `cbor:"1,keyasint"`
	Drain bool   `cbor:"2,keyasint,omitempty"`
}

// UnregisterNode removes a node that is no shard's wanted member. Unless Dead, it must have deleted all its replicas too. A node
// that has been removed does not come back with the same data directory.
type UnregisterNode struct {
	Server Server `cbor:"1,keyasint"`
	Dead   bool   `cbor:"2,keyasint,omitempty"`
	// LoseData gives up the shards that have no other member.
	LoseData bool `cbor:"3,keyasint,omitempty"`
}

// ReplicasRemoved says that servers are no longer members of a shard's group, and that this is committed there. It counts in the
// generation in which it was seen: later, they may be members again.
type ReplicasRemoved struct {
	Shard      ShardID  `cbor:"1,keyasint"`
	Generation uint64   `cbor:"2,keyasint"`
	Servers    []Server `cbor:"3,keyasint"`
}

// ConfirmReplicaRemovals says that replicas are deleted.
type ConfirmReplicaRemovals struct {
	Removals []ReplicaRemoval `cbor:"1,keyasint"`
}

// RequestBalance asks for replicas and leaders to be spread evenly. It stays until EndBalance.
type RequestBalance struct{}

// EndBalance says that there is nothing left to do for the request of that index.
type EndBalance struct {
	Request uint64 `cbor:"1,keyasint"`
}

func (*AssignShards) kind() kind           { return kindAssignShards }
func (*DrainNode) kind() kind              { return kindDrainNode }
func (*UnregisterNode) kind() kind         { return kindUnregisterNode }
func (*ReplicasRemoved) kind() kind        { return kindReplicasRemoved }
func (*ConfirmReplicaRemovals) kind() kind { return kindConfirmReplicaRemovals }
func (*RequestBalance) kind() kind         { return kindRequestBalance }
func (*EndBalance) kind() kind             { return kindEndBalance }
func (*RefoundShard) kind() kind           { return kindRefoundShard }

// newMembershipCommand returns nil for kinds that are not of membership.
func newMembershipCommand(k kind) Command {
	switch k {
	case kindAssignShards:
		return &AssignShards{}
	case kindDrainNode:
		return &DrainNode{}
	case kindUnregisterNode:
		return &UnregisterNode{}
	case kindReplicasRemoved:
		return &ReplicasRemoved{}
	case kindConfirmReplicaRemovals:
		return &ConfirmReplicaRemovals{}
	case kindRequestBalance:
		return &RequestBalance{}
	case kindEndBalance:
		return &EndBalance{}
	case kindRefoundShard:
		return &RefoundShard{}
	}
	return nil
}

// ReplicaRemoval is the explicit record that a server is no member of a shard any more: only with it the server deletes its
// replica. It stays until the server says that it has.
type ReplicaRemoval struct {
	Shard  ShardID `cbor:"1,keyasint"`
	Server Server  `cbor:"2,keyasint"`
}

func serverKey(s Server) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(s.Node))) + s.Incarnation + "\x00"
}

func (r ReplicaRemoval) key() string { return serverKey(r.Server) + shardKey(r.Shard) }

// ReplicaRemovals returns the shards whose replica a server has still to delete, by id.
func (i *Image) ReplicaRemovals(s Server) []ShardID {
	var out []ShardID
	prefix := serverKey(s)
	for key, r := range i.replicaRemovals.from(prefix) {
		if key[:min(len(prefix), len(key))] != prefix {
			break
		}
		out = append(out, r.Shard)
	}
	return out
}

// RemovesReplica tells whether a server has still to delete its replica of a shard.
func (i *Image) RemovesReplica(id ShardID, s Server) bool {
	_, ok := i.replicaRemovals.get(ReplicaRemoval{Shard: id, Server: s}.key())
	return ok
}

// Unregistered tells whether a data directory belongs to a node that was removed from the cluster.
func (i *Image) Unregistered(s Server) bool { return slices.Contains(i.unregistered, s) }

// BalanceRequest returns the index of the request to spread replicas and leaders, 0 when there is none.
func (i *Image) BalanceRequest() uint64 { return i.balance }

func (c *AssignShards) apply(t *transition) Result {
	r := Result{Errors: make([]*Error, len(c.Items))}
	for i := range c.Items {
		r.Errors[i] = t.assignShard(&c.Items[i])
	}
	return r
}

func (t *transition) assignShard(a *ShardAssignment) *Error {
	s := t.Shard(a.Shard)
	switch {
	case s == nil:
		return Errorf(CodeInvalidRequest, "Shard %d does not exist.", a.Shard)
	case slices.Equal(s.Voters, a.Voters):
		return nil
	case s.Lost:
		return Errorf(CodeInvalidRequest, "Shard %d has lost its data: there is nothing to move.", a.Shard)
	case s.Generation != a.Generation || !slices.Equal(s.Voters, a.From):
		return Errorf(CodeInvalidRequest, "Shard %d has changed meanwhile.", a.Shard)
	}
	if err := t.checkVoters(a); err != nil {
		return err
	}
	t.changeShard(a.Shard, func(s *Shard) {
		left := append(slices.Clone(s.Leaving), s.Voters...)
		left = slices.DeleteFunc(left, func(x Server) bool { return slices.Contains(a.Voters, x) })
		slices.SortFunc(left, compareServers)
		s.Leaving, s.Voters = slices.Compact(left), slices.Clone(a.Voters)
		s.Generation++
		s.ModIndex = t.index
	})
	return nil
}

func (t *transition) checkVoters(a *ShardAssignment) *Error {
	if len(a.Voters) == 0 {
		return Errorf(CodeInvalidReplicaAssignment, "Shard %d cannot be without replicas.", a.Shard)
	}
	for i, v := range a.Voters {
		if n, ok := t.Node(v.Node); !ok || n.Server() != v {
			return Errorf(CodeInvalidReplicaAssignment, "Node %d is not registered.", v.Node)
		}
		if slices.ContainsFunc(a.Voters[:i], func(o Server) bool { return o.Node == v.Node }) {
			return Errorf(CodeInvalidReplicaAssignment, "Node %d is named more than once.", v.Node)
		}
		if t.RemovesReplica(a.Shard, v) {
			return Errorf(CodeInvalidRequest, "Node %d has still to delete the replica of shard %d that it had before: try again.", v.Node, a.Shard)
		}
	}
	return nil
}

func compareServers(a, b Server) int {
	return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Incarnation, b.Incarnation))
}

func (c *DrainNode) apply(t *transition) Result {
	n, ok := t.Node(c.Node)
	if !ok {
		return Result{Err: unknownNode(c.Node)}
	}
	if n.Draining != c.Drain {
		n.Draining = c.Drain
		t.putNode(n)
	}
	return Result{}
}

func unknownNode(id NodeID) *Error {
	return Errorf(CodeBrokerIDNotRegistered, "Node %d is not registered.", id)
}

func (c *UnregisterNode) apply(t *transition) Result {
	n, ok := t.Node(c.Server.Node)
	switch {
	case !ok && t.Unregistered(c.Server):
		return Result{}
	case !ok || n.Server() != c.Server:
		return Result{Err: unknownNode(c.Server.Node)}
	}
	if c.LoseData {
		t.loseShards(c.Server)
	}
	if err := t.checkEmpty(c); err != nil {
		return Result{Err: err}
	}
	t.nodes, t.nodesOwned = slices.DeleteFunc(slices.Clone(t.nodes), func(x Node) bool { return x.ID == n.ID }), true
	t.dropReplicaRemovals(c.Server)
	t.unregistered = append(slices.Clip(t.unregistered), c.Server)
	if len(t.unregistered) > unregisteredMax {
		t.unregistered = t.unregistered[1:]
	}
	return Result{}
}

// checkEmpty returns why a node cannot be removed yet. A shard whose data is lost holds nobody back.
func (t *transition) checkEmpty(c *UnregisterNode) *Error {
	wanted, leaving := 0, len(t.ReplicaRemovals(c.Server))
	for _, s := range t.shards {
		switch {
		case s.Has(c.Server) && !s.Lost:
			wanted++
		case slices.Contains(s.Leaving, c.Server):
			leaving++
		}
	}
	switch {
	case wanted > 0:
		return Errorf(CodeInvalidRequest, "Node %d has replicas of %d shards: drain it first.", c.Server.Node, wanted)
	case leaving > 0 && !c.Dead:
		return Errorf(CodeInvalidRequest, "Node %d has still to delete replicas of %d shards.", c.Server.Node, leaving)
	}
	return nil
}

// loseShards marks the shards whose data only one server had.
func (t *transition) loseShards(only Server) {
	for _, s := range slices.Clone(t.shards) {
		if len(s.Voters) == 1 && s.Has(only) && len(s.Leaving) == 0 && !s.Lost {
			t.changeShard(s.ID, func(s *Shard) { s.Lost, s.ModIndex = true, t.index })
		}
	}
}

func (t *transition) dropReplicaRemovals(s Server) {
	for _, id := range t.ReplicaRemovals(s) {
		t.replicaRemovals = t.replicaRemovals.drop(ReplicaRemoval{Shard: id, Server: s}.key())
	}
}

func (c *ReplicasRemoved) apply(t *transition) Result {
	s := t.Shard(c.Shard)
	if s == nil || s.Generation != c.Generation {
		return Result{}
	}
	for _, server := range c.Servers {
		if s.Has(server) || !slices.Contains(s.Leaving, server) {
			continue
		}
		if n, ok := t.Node(server.Node); ok && n.Server() == server {
			r := ReplicaRemoval{Shard: c.Shard, Server: server}
			t.replicaRemovals = t.replicaRemovals.put(r.key(), r)
		}
		t.changeShard(c.Shard, func(s *Shard) {
			s.Leaving = slices.DeleteFunc(slices.Clone(s.Leaving), func(x Server) bool { return x == server })
			if len(s.Leaving) == 0 {
				s.Leaving = nil
			}
		})
		s = t.Shard(c.Shard)
	}
	return Result{}
}

func (c *ConfirmReplicaRemovals) apply(t *transition) Result {
	for _, r := range c.Removals {
		t.replicaRemovals = t.replicaRemovals.drop(r.key())
	}
	return Result{}
}

func (c *RequestBalance) apply(t *transition) Result {
	if t.balance == 0 {
		t.balance = t.index
	}
	return Result{}
}

func (c *EndBalance) apply(t *transition) Result {
	if t.balance == c.Request {
		t.balance = 0
	}
	return Result{}
}
